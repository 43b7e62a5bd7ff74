"""What the commands of every group share: their arguments, and the way to a run."""

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from accord.errors import UsageError

if TYPE_CHECKING:
    from accord.run_store import RunStore
    from accord.runs import Run, Runs

CONFIG = click.argument("config", type=click.Path(path_type=Path))
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[key=value]...")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
RUN = click.argument("run")


def runs_of_command(only: str | None = None) -> "Runs":
    """The runs in the folder that the command line names; `only` is the one stage that may do new work."""
    from accord.runs import Runs

    root: click.Context = click.get_current_context().find_root()
    return Runs(root.obj, only, store_of_command())


def reference_of(model: str, runs: "Runs") -> str:
    """A model as references have it, from one as people write it: also a run's id alone, or `promoted`.

    Raises:
        UsageError: no model was promoted yet, or there is no such run.
        TamperedError: the list of promotions was changed.
    """
    if model == "promoted":
        from eval.promotion import read_entries

        if not (entries := read_entries(runs)):
            raise UsageError(f"no model was promoted in {runs.root} yet; `accord promote RUN` does it")
        return entries[-1].promotion.model
    if ":" in model or "/" in model or Path(model).exists():
        return model
    return f"run:{runs.load(model).id}"


def store_of_command() -> "RunStore | None":
    """The store that the command line names."""
    from accord.run_store import RunStore

    url = click.get_current_context().find_root().params["store"]
    return RunStore(url) if url else None


def run_until(
    stage: str | None, config: Path, overrides: tuple[str, ...], wait: bool = False, alone: bool = False
) -> "Run":
    """Run or continue a round's stages up to `stage` (None: all); `alone` refuses to do the earlier ones' work."""
    from accord.compute import worker
    from accord.compute.launch import machine_rank, serve
    from accord.config import load_config
    from accord.round_config import RoundConfig

    round_config = load_config(config, RoundConfig, overrides)
    runs = runs_of_command(only=stage if alone else None)
    checked = worker.is_launched()  # whoever started this process has looked
    if "LOCAL_RANK" not in os.environ and machine_rank(round_config.compute) > 0:
        click.get_current_context().exit(serve(round_config.compute))
    if not checked and round_config.compute.machines == 1:  # else the other machines hear what is wrong
        from accord.preflight import check_round

        check_round(round_config, runs, stage)
        checked = True
    from accord.round import run_round  # takes seconds to import, which a mistake need not cost

    return run_round(round_config, runs, stage, wait, checked)


class Group(click.Group):
    """Lists its commands in the order of their definition, and says what a mistyped one may have meant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, as they were added."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, but for the message about a word that is no command."""
        word = args[0]
        if self.get_command(ctx, word) is None and not word.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"No such command '{word}'.{self.meant(ctx, word)}")
        return super().resolve_command(ctx, args)

    def meant(self, ctx: click.Context, word: str) -> str:
        """A sentence about the nearest command: of this group, or else of any; empty where none is near."""
        near = difflib.get_close_matches(word, self.commands, n=1)
        if near:
            return f" Did you mean '{ctx.command_path} {near[0]}'?"
        root = ctx.find_root()
        everywhere = dict(_paths(root.command, str(root.info_name)))
        near = difflib.get_close_matches(word, everywhere, n=1)
        return f" Did you mean '{everywhere[near[0]]}'?" if near else ""


def _paths(command: click.Command, path: str) -> Iterator[tuple[str, str]]:
    """The name of every command below one, and all that has to be typed for it."""
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield name, f"{path} {name}"
            yield from _paths(inner, f"{path} {name}")


def names_a_file(word: str) -> bool:
    """Whether a word that is no command looks like a file's name."""
    return Path(word).is_file() or Path(word).suffix != "" or "/" in word


def group_with_default(default: str) -> type[click.Group]:
    """A group that takes a first word which is a file's name, and no command's, as the argument of `default`."""

    class WithDefault(Group):
        def resolve_command(
            self, ctx: click.Context, args: list[str]
        ) -> tuple[str | None, click.Command | None, list[str]]:
            if self.get_command(ctx, args[0]) is None and names_a_file(args[0]):
                args = [default, *args]
            return super().resolve_command(ctx, args)

    return WithDefault
