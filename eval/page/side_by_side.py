"""Runs beside one another: their figures with intervals, the settings in which they differ, and answers to one prompt.

    compared = side_by_side([runs.load("eval-1"), runs.load("eval-2")], runs)
    page(compared)

Figures of runs are each from data of their own; whether two of them differ is for an evaluation to say, which asks both
models the same (`accord gate`). So nothing here is called better.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accord.errors import UsageError
from accord.page.render import render
from accord.page.words import figure_label, stage_title
from accord.records import Message, read_jsonl
from accord.runs import Run, Runs
from eval.page.floors import required
from eval.rows import Sample
from eval.verdict.gate import read_verdict

Value = float | int | str | None


@dataclass(frozen=True)
class Figure:
    """A figure of one run; for evaluations the candidate's, with its change from the baseline."""

    value: Value
    low: float | None = None
    high: float | None = None
    change: float | None = None
    """What `low` and `high` are about, where there is one."""
    verdict: str | None = None


@dataclass(frozen=True)
class Figures:
    """One figure of all runs; None for a run that has none of that name."""

    key: str
    title: str
    of: list[Figure | None]


@dataclass(frozen=True)
class Setting:
    """A setting, input or parent that is not the same in all runs; None for a run without it."""

    key: str
    of: list[str | None]


@dataclass(frozen=True)
class Answers:
    """What was answered to one prompt with one seed."""

    id: str
    sample: int
    prompt: list[Message]
    baseline: str | None
    """None where the runs have several baselines."""
    of: list[str]
    """Of the candidates."""
    length: list[int]
    """In tokens."""


@dataclass(frozen=True)
class SideBySide:
    """Everything, in the order of the runs."""

    runs: list[str]
    stages: list[str]
    started: list[str]
    figures: list[Figures]
    settings: list[Setting]
    answers: list[Answers]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self)
        for row in found["answers"]:
            row["prompt"] = [message.model_dump(exclude_none=True) for message in row["prompt"]]
        return found


def side_by_side(chosen: Sequence[Run], runs: Runs) -> SideBySide:
    """Compare two or more finished runs, whose files are those that were recorded.

    Raises:
        UsageError: there is one run only, or one of them is not finished.
        TamperedError: a file was changed.
    """
    if len({run.id for run in chosen}) < 2:
        raise UsageError("name two different runs or more; `accord runs list` shows them")
    for run in chosen:
        if not run.is_done:
            raise UsageError(
                f"run {run.id} is {run.record.status}, not done; only finished runs can be compared"
            )
        runs.check(run)
    return SideBySide(
        [run.id for run in chosen],
        [stage_title(run.record) for run in chosen],
        [run.record.started_at for run in chosen],
        _merged([dict(_figures(run)) for run in chosen]),
        _differing([dict(_settings(run)) for run in chosen]),
        _answers(chosen),
    )


def _figures(run: Run) -> Iterator[tuple[tuple[str, str], Figure]]:
    """Each figure, behind its key and its title."""
    if run.record.stage == "eval":
        verdict = read_verdict(run)
        yield ("outcome", "Verdict"), Figure(verdict.outcome)
        for floor in verdict.floors:
            name = (f"{floor.name} {floor.side} {floor.bound:g}", f"{floor.label}: {required(floor)}")
            yield name, Figure(floor.candidate, floor.low, floor.high, verdict=floor.verdict)
        for metric in verdict.metrics:
            name = (metric.name + (f": {metric.slice}" if metric.slice else ""), metric.label)
            yield name, Figure(metric.candidate, metric.low, metric.high, metric.difference, metric.verdict)
        return
    metrics = run.metrics
    for key, value in metrics.items():
        of_interval = any(key == f"{name}_{end}" for name in metrics for end in ("low", "high"))
        if not of_interval and (value is None or isinstance(value, float | int | str)):
            yield (
                (key, figure_label(key)),
                Figure(value, metrics.get(f"{key}_low"), metrics.get(f"{key}_high")),
            )


def _merged(figures: Sequence[Mapping[tuple[str, str], Figure]]) -> list[Figures]:
    """Those that most runs have first, else in the order in which they come."""
    names = list(dict.fromkeys(name for each in figures for name in each))
    rows = [Figures(*name, [each.get(name) for each in figures]) for name in names]
    return sorted(rows, key=lambda row: row.of.count(None))


def _settings(run: Run) -> Iterator[tuple[str, str]]:
    yield from _flat(run.record.config)
    for role, source in (run.record.parents | run.record.inputs).items():
        yield f"made from: {role}", source
    if processes := run.record.hardware.get("processes"):
        yield "processes", str(processes)
    yield "accord's commit", str(run.record.code.get("commit"))


def _flat(section: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", "none" if value is None else str(value)


def _differing(settings: Sequence[Mapping[str, str]]) -> list[Setting]:
    keys = dict.fromkeys(key for each in settings for key in each)
    rows = [Setting(key, [each.get(key) for each in settings]) for key in keys]
    return [row for row in rows if len(set(row.of)) > 1]


def _answers(chosen: Sequence[Run]) -> list[Answers]:
    """Of evaluations: the prompts that all of them asked, in the order of the first."""
    if any(run.record.stage != "eval" for run in chosen):
        return []
    asked = [
        {(row.id, row.sample): row for row in read_jsonl(run.path / "samples.jsonl", Sample)}
        for run in chosen
    ]
    shared = [key for key in asked[0] if all(key in each for each in asked[1:])]
    one_baseline = len({read_verdict(run).baseline.digest for run in chosen}) == 1
    return [
        Answers(
            *key,
            asked[0][key].prompt,
            asked[0][key].baseline.text if one_baseline else None,
            [each[key].candidate.text for each in asked],
            [each[key].candidate.tokens for each in asked],
        )
        for key in shared
    ]


def page(compared: SideBySide) -> str:
    """The comparison as an HTML page."""
    return render(Path(__file__).parent, "side_by_side.html.jinja", {"compared": compared})
