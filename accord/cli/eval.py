"""`accord eval ...`: compare two models, and list or install what they are measured by."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from accord import parallel
from accord.cli.shared import AS_JSON, CONFIG, OVERRIDES, group_with_default, run_until
from accord.terminal import say

if TYPE_CHECKING:
    from accord.runs import Run


@click.group("eval", cls=group_with_default("compare"), subcommand_metavar="CONFIG | COMMAND [ARGS]...")
def evaluation() -> None:
    """Compare two models, or see what they are measured by.

    `accord eval CONFIG [key=value]...` is short for `accord eval compare CONFIG [key=value]...`.
    """


@evaluation.command(short_help="Compare the new policy with the one before it.")
@CONFIG
@OVERRIDES
def compare(config: Path, overrides: tuple[str, ...]) -> None:
    """Compare the new policy with the one before, and give a verdict. The stages it builds on must be finished."""
    run = run_until("eval", config, overrides, alone=True)
    if parallel.is_first():
        say(f"eval: {run.path}\n{json.dumps(run.metrics, indent=2)}")
    finish_with_verdict(run)


def finish_with_verdict(run: "Run") -> None:
    """Say what an evaluation found and what to do next, and leave with the verdict's exit code."""
    from eval.page.summary import text_summary
    from eval.verdict.gate import read_verdict

    verdict = read_verdict(run)
    next_command = f"accord promote {run.id}" if verdict.exit_code == 0 else f"accord runs lineage {run.id}"
    say("\n" + "\n".join(text_summary(verdict)))
    say(f"report:  {run.path / 'report.html'}")
    say(f"next:    {next_command}")
    click.get_current_context().exit(verdict.exit_code)


@evaluation.command("install-suites", short_help="Install published data sets to measure by.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def install_suites(names: tuple[str, ...]) -> None:
    """Install published data sets, by their names without `public:`; all of them if none is named.

    Their packages go into a folder of the environment that nothing imports from, without what they depend on. A data
    set that is there already is checked and not installed again.
    """
    from eval.suites.public.install import install_suites

    install_suites(names, say)


@evaluation.command(short_help="List all suites and what they measure.")
@AS_JSON
def suites(as_json: bool) -> None:
    """List all suites and what they measure; those called public: are published data sets."""
    from eval.suites.public.adapters import ADAPTERS
    from eval.suites.suite import PUBLIC, find_suite, shipped

    found = [find_suite(name) for name in [*shipped(), *(f"{PUBLIC}{name}" for name in sorted(ADAPTERS))]]
    rows = [
        {
            "name": f"{PUBLIC}{suite.name}" if suite.is_public else suite.name, "title": suite.title,
            "family": suite.family, "measures": suite.measures, "metrics": sorted(suite.metrics),
            "license": suite.license, "installed": suite.file.is_file(),
        }
        for suite in found
    ]  # fmt: skip
    if as_json:
        say(json.dumps(rows, indent=2))
        return
    for row in rows:
        missing = "" if row["installed"] else "  (not installed: accord eval install-suites)"
        say(f"{row['name']}  [{row['family']}]{missing}\n    {row['measures']}")
