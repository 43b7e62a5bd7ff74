"""`accord compare RUN RUN...`: runs beside one another."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from accord.cli.shared import AS_JSON, runs_of_command
from accord.terminal import say

if TYPE_CHECKING:
    from eval.page.side_by_side import Figure, SideBySide

WIDTH = 40
"""Characters of a column."""


@click.command(short_help="Show runs beside one another: figures, settings, answers.")
@click.argument("run", nargs=-1, required=True)
@click.option("--output", type=click.Path(path_type=Path), help="Where to write a page, with answers, too.")
@AS_JSON
def compare(run: tuple[str, ...], output: Path | None, as_json: bool) -> None:
    """Show evaluations, reward models, policies or other finished runs beside one another.

    Figures come with their intervals, settings only where they differ. A page (--output) and JSON also have the answers
    to the prompts that all of several evaluations asked. Which model is better, only an evaluation of both can say:
    `accord gate`.
    """
    from accord.text_files import write_atomically
    from eval.page.side_by_side import page, side_by_side

    runs = runs_of_command()
    compared = side_by_side([runs.load(each) for each in run], runs)
    if output:
        write_atomically(output, page(compared))
    if as_json:
        say(json.dumps(compared.as_dict(), indent=2, ensure_ascii=False))
    else:
        _show(compared)
    if output and not as_json:
        say(f"\n{output}")


def _show(compared: "SideBySide") -> None:
    first = max(
        [WIDTH, *(len(row.title) for row in compared.figures), *(len(s.key) for s in compared.settings)]
    )

    def line(title: str, cells: list[str]) -> None:
        say(f"{title:<{first}}  " + "  ".join(f"{cell:<{WIDTH}}" for cell in cells).rstrip())

    line("", compared.runs)
    for row in compared.figures:
        line(row.title, [_words(each) for each in row.of])
    say("\ndiffers:" if compared.settings else "\nall settings and inputs are the same")
    for setting in compared.settings:
        line(setting.key, [_short(each) for each in setting.of])
    if compared.answers:
        say(f"\nanswers to {len(compared.answers)} prompts of all: --output PAGE.html or --json")


def _words(figure: "Figure | None") -> str:
    from accord.page.words import number

    if figure is None:
        return "-"
    text = number(figure.value)
    if figure.low is not None and figure.high is not None:
        signed = figure.change is not None
        change = f"{number(figure.change, signed=True)}, " if signed else ""
        text += f" ({change}{number(figure.low, signed)} to {number(figure.high, signed)})"
    return text + (f" {figure.verdict}" if figure.verdict else "")


def _short(value: str | None) -> str:
    value = "-" if value is None else value
    return value if len(value) <= WIDTH else f"{value[: WIDTH - 1]}…"
