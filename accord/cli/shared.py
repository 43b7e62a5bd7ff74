"""What the commands of every group share: their arguments, and the way to a run."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from accord.runs import Run, Runs

CONFIG = click.argument("config", type=click.Path(path_type=Path))
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[key=value]...")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
RUN = click.argument("run")


def runs_of_command(only: str | None = None) -> "Runs":
    """The runs in the folder that the command line names; `only` is the one stage that may do new work."""
    from accord.runs import Runs

    return Runs(click.get_current_context().find_root().obj, only)


def run_until(
    stage: str, config: Path, overrides: tuple[str, ...], wait: bool = False, alone: bool = False
) -> "Run":
    """Run or continue a round's stages up to `stage`; `alone` refuses to do the earlier ones' work."""
    from accord.config import load_config
    from accord.round_config import RoundConfig

    round_config = load_config(config, RoundConfig, overrides)
    from accord.round import run_round  # takes seconds to import, which a mistake in the file need not cost

    return run_round(round_config, runs_of_command(only=stage if alone else None), until=stage, wait=wait)


def group_with_default(default: str) -> type[click.Group]:
    """A group that takes a first word which is a file's name, and no command's, as the argument of `default`."""

    class Group(click.Group):
        def resolve_command(
            self, ctx: click.Context, args: list[str]
        ) -> tuple[str | None, click.Command | None, list[str]]:
            word = args[0]
            names_a_file = Path(word).is_file() or Path(word).suffix != "" or "/" in word
            if self.get_command(ctx, word) is None and names_a_file:
                args = [default, *args]
            return super().resolve_command(ctx, args)

    return Group
