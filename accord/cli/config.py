"""`accord init` and `accord config ...`: a configuration to start from, and what is in one."""

import json
from pathlib import Path

import click
import yaml

from accord.cli.shared import AS_JSON, CONFIG, OVERRIDES, Group, runs_of_command
from accord.errors import AccordError, UsageError
from accord.terminal import say

PURPOSES = ("sft", "dpo", "kto", "reward", "round")
"""The configurations that `accord init` writes, each named as the command that runs it."""
SCHEMA = ".accord-schema.json"
"""The file beside a configuration that tells editors what may stand in it."""


@click.command(short_help="Write a configuration to start from.")
@click.argument("purpose", type=click.Choice(PURPOSES), default="round")
@click.option(
    "--output", type=click.Path(path_type=Path), help="The file to write; default: PURPOSE.yaml here."
)
def init(purpose: str, output: Path | None) -> None:
    """Write a configuration to start from, on data that accord brings along, and its schema for editors beside it.

    PURPOSE is what to run: sft, dpo, kto, reward, or a whole round, which is the default.
    """
    from accord.bundled import config_path
    from accord.round_schema import round_schema
    from accord.text_files import write_atomically

    path = output or Path(f"{purpose}.yaml")
    text = f"# yaml-language-server: $schema={SCHEMA}\n" + config_path(f"{purpose}.yaml").read_text("utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} is there already; name another file with --output, or remove it") from None
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be written ({error.strerror}); name another with --output"
        ) from None
    write_atomically(path.parent / SCHEMA, json.dumps(round_schema(), indent=2) + "\n")
    say(f"written: {path}, and {path.parent / SCHEMA} for editors")
    say(f"check:   accord config check {path}")
    say(f"run:     accord {purpose} {path}")


@click.group("config", cls=Group, short_help="Check and show configurations.")
def config_group() -> None:
    """Check a configuration, show all that it sets, or print the schema of all of them."""


@config_group.command(short_help="Say whether a configuration can run, or all that is wrong.")
@CONFIG
@OVERRIDES
@AS_JSON
def check(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say whether all stages of a configuration can run, or all that is wrong with it; nothing is started."""
    from accord.config import load_config
    from accord.preflight import check_round
    from accord.round_config import RoundConfig
    from accord.round_plan import stages_until
    from rl.algorithms import algorithm_named

    try:
        settings = load_config(config, RoundConfig, overrides)
        check_round(settings, runs_of_command())
    except AccordError as error:
        if as_json:
            first, *lines = str(error).splitlines()
            wrong = [line.strip() for line in lines] or [first]
            say(json.dumps({"ok": False, "stages": [], "wrong": wrong}, indent=2))
        raise
    stages = [
        algorithm_named(settings.rl.algorithm).name if name == "rl" and settings.rl else name
        for name in stages_until(settings, None)
    ]
    if as_json:
        say(json.dumps({"ok": True, "stages": stages, "wrong": []}, indent=2))
        return
    say(f"ok: {config} runs {', '.join(stages)}")


@config_group.command(short_help="Print all settings of a configuration, defaults included.")
@CONFIG
@OVERRIDES
@AS_JSON
def show(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print all settings of a configuration as YAML, defaults and overrides included; it can be run as it is."""
    from accord.config import load_config
    from accord.round_config import RoundConfig

    values = load_config(config, RoundConfig, overrides).model_dump(mode="json")
    given = {name: value for name, value in values.items() if value is not None}
    if as_json:
        say(json.dumps(given, indent=2))
        return
    say(yaml.safe_dump(given, sort_keys=False, allow_unicode=True, width=120), nl=False)


@config_group.command(short_help="Print the JSON Schema of configurations.")
def schema() -> None:
    """Print the JSON Schema of a round's configuration, by which editors complete keys and mark slips."""
    from accord.round_schema import round_schema

    say(json.dumps(round_schema(), indent=2))
