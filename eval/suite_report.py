"""What the page says of each suite: its metrics, its groups, and the items that got worse."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.gate import SuiteSubject, Verdict
from eval.judgement import MetricResult, SliceResult
from eval.metric_rows import Axis, MetricRow, change_text, value_text
from eval.metrics import Direction
from eval.rows import Outcome, SuiteItem
from eval.suites.kind import Ratio, Value

ITEMS_SHOWN = 6


@dataclass(frozen=True)
class GroupRow:
    """One metric in one group: the values of both models and, where the group is large enough, the interval."""

    group: str
    metric: str
    basis: str
    baseline: str
    candidate: str
    change: str
    interval: str
    """Empty where the group is too small to say."""

    @classmethod
    def of(cls, result: SliceResult) -> "GroupRow":
        """A group's row."""
        interval = ""
        if result.low is not None and result.high is not None:
            low, high = change_text(result, result.low), change_text(result, result.high)
            interval = f"{low.removesuffix(' points')} to {high}"
        return cls(
            group=result.slice, metric=result.title.split(": ", 1)[-1], basis=f"{result.clusters} {result.cluster}",
            baseline=value_text(result, result.baseline), candidate=value_text(result, result.candidate),
            change=change_text(result, result.difference), interval=interval,
        )  # fmt: skip


@dataclass(frozen=True)
class ItemView:
    """An item that got worse: what it says, and what it came to under both models."""

    id: str
    group: str | None
    columns: dict[str, str]
    worsening: float
    baseline: list[str]
    candidate: list[str]


@dataclass(frozen=True)
class SuiteView:
    """A suite's section of the page."""

    about: SuiteSubject
    metrics: list[MetricRow]
    sorted_by: str | None
    """The metric by which items got worse."""
    worse: list[ItemView]
    worse_count: int
    groups: list[GroupRow]


def suite_views(verdict: Verdict, items: Sequence[SuiteItem], axis: Axis) -> list[SuiteView]:
    """The sections of all suites, in the order of the verdict."""
    return [
        _view(
            suite,
            [metric for metric in verdict.metrics if metric.name.startswith(f"{suite.name}/") and not metric.slice],
            [each for each in verdict.slices if each.name.startswith(f"{suite.name}/")],
            [item for item in items if item.suite == suite.name],
            axis,
        )
        for suite in verdict.suites
    ]  # fmt: skip


def _view(
    suite: SuiteSubject, metrics: Sequence[MetricResult], slices: Sequence[SliceResult],
    items: Sequence[SuiteItem], axis: Axis,
) -> SuiteView:  # fmt: skip
    gated = [metric for metric in metrics if metric.direction]
    by = (gated or [*metrics])[0] if metrics else None
    worse: list[tuple[float, SuiteItem]] = []
    if by and by.direction:
        worse = sorted(_worsenings(items, by.name.split("/")[1], by.direction), key=lambda pair: -pair[0])
    return SuiteView(
        about=suite,
        metrics=[MetricRow.of(metric, axis) for metric in metrics],
        sorted_by=by.label.split(": ", 1)[-1] if by and by.direction else None,
        worse=[_item(item, change) for change, item in worse[:ITEMS_SHOWN]],
        worse_count=len(worse),
        groups=[GroupRow.of(each) for each in slices],
    )


def _worsenings(
    items: Iterable[SuiteItem], name: str, direction: Direction
) -> Iterable[tuple[float, SuiteItem]]:
    """The items that got worse in a metric, and by how much."""
    for item in items:
        if name in item.baseline.values and name in item.candidate.values:
            before, after = _number(item.baseline.values[name]), _number(item.candidate.values[name])
            change = {
                "higher": before - after, "lower": after - before, "closer_to_zero": abs(after) - abs(before),
            }[direction]  # fmt: skip
            if change > 0:
                yield change, item


def _number(value: Value) -> float:
    if isinstance(value, Ratio):
        return value.numerator / value.denominator if value.denominator else 0.0
    return value


def _item(item: SuiteItem, worsening: float) -> ItemView:
    return ItemView(
        id=item.id, group=item.group, columns=_columns(item.item), worsening=worsening,
        baseline=_said(item.baseline), candidate=_said(item.candidate),
    )  # fmt: skip


def _columns(item: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in item.items() if value is not None}


def _said(outcome: Outcome) -> list[str]:
    """The replies as they are, or the scores in nats."""
    if outcome.replies is not None:
        return [reply.text or "(an empty answer)" for reply in outcome.replies]
    return [
        ", ".join(f"{score.nats:.2f}" for score in scores).replace("-", "−") + " nats"
        for scores in outcome.scores or []
    ]
