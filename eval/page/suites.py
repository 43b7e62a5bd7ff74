"""What the page says of each suite: its metrics, its groups, and the items that got worse."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accord.page.words import label, number
from eval.page.floors import FloorRow, floor_rows
from eval.page.metrics import (
    PERCENT_UNITS,
    Axis,
    GatedRow,
    UngatedRow,
    change_text,
    direction_of,
    families,
    gated_rows,
    reading,
    short,
    value_text,
)
from eval.rows import Outcome, SuiteItem, SuiteSubject
from eval.suites.kind import Ratio, Value
from eval.suites.metrics import Direction
from eval.verdict.gate import Verdict
from eval.verdict.rule import MetricResult, SliceResult

ITEMS_SHOWN = 6


@dataclass(frozen=True)
class GroupPlot:
    """Where a group stands on its metric's plot; positions are percent of the width.

    The bar is the interval of the change, seen from the baseline. It is None where the group is too small.
    """

    before: float
    after: float
    bar: tuple[float, float] | None


@dataclass(frozen=True)
class GroupRow:
    """One metric in one group, in words."""

    group: str
    metric: str
    basis: str
    baseline: str
    candidate: str
    change: str
    interval: str
    """Empty where the group is too small to say."""
    says: str
    difference: float
    """To sort by."""
    plot: GroupPlot | None = None

    @classmethod
    def of(cls, result: SliceResult, plot: GroupPlot | None = None) -> "GroupRow":
        """A group's row."""
        interval, says = "", "too small to say"
        if result.low is not None and result.high is not None:
            low, high = change_text(result, result.low), change_text(result, result.high)
            interval = f"{low.removesuffix(' points')} to {high}"
            says = reading(result.direction, result.low, result.high)
        return cls(
            group=result.slice, metric=short(result.title), basis=f"{number(result.clusters)} {result.cluster}",
            baseline=value_text(result, result.baseline), candidate=value_text(result, result.candidate),
            change=change_text(result, result.difference), interval=interval, says=says,
            difference=result.difference, plot=plot,
        )  # fmt: skip


@dataclass(frozen=True)
class Groups:
    """The groups of a suite by its leading metric, on one scale."""

    metric: str
    rows: list[GroupRow]
    ends: tuple[str, str]
    centre: float | None
    """Where no preference is, in percent of the width, for a metric that has such a point."""


@dataclass(frozen=True)
class ItemView:
    """An item that got worse: what it says, and what it came to under both models."""

    id: str
    group: str | None
    columns: dict[str, list[str]]
    values: list[tuple[str, str, str]]
    """Every metric's name, and its value under the baseline and under the candidate."""
    baseline: list[str]
    candidate: list[str]
    are_texts: bool
    """Whether the last two are answers; otherwise they are log-likelihoods."""


@dataclass(frozen=True)
class SuiteView:
    """A suite's section of the page."""

    about: SuiteSubject
    floors: list[FloorRow]
    gated: list[GatedRow]
    ungated: list[UngatedRow]
    sorted_by: str
    """The metric by which items got worse; empty where nothing says which values are better."""
    worse: list[ItemView]
    worse_count: int
    groups: Groups | None
    more_groups: list[GroupRow]
    """The groups by the suite's other metrics."""


def suite_views(verdict: Verdict, items: Sequence[SuiteItem], axis: Axis) -> list[SuiteView]:
    """The sections of all suites, in the order of the verdict."""
    without_margin = [row for family in families(verdict, axis) for row in family.rows]
    views = []
    for suite in verdict.suites:
        front = f"{suite.name}/"
        metrics = [metric for metric in verdict.metrics if metric.name.startswith(front)]
        whole = [metric for metric in metrics if not metric.slice]
        slices = [each for each in verdict.slices if each.name.startswith(front)]
        own = [item for item in items if item.suite == suite.name]
        floors = [floor for floor in verdict.floors if floor.name.startswith(front)]
        decide = {each.name for each in (*whole, *floors) if each.verdict}
        leading = next((each for each in whole if each.name in decide), whole[0] if whole else None)
        direction = direction_of(leading.name, verdict) if leading else None
        worse = _got_worse(own, leading, direction) if leading and direction else []
        views.append(
            SuiteView(
                about=suite,
                floors=floor_rows(floors),
                gated=gated_rows(metrics, axis),
                ungated=[row for row in without_margin if row.row.name.startswith(front)],
                sorted_by=short(leading.title) if leading and direction else "",
                worse=[_item(item, whole) for item in worse[:ITEMS_SHOWN]],
                worse_count=len(worse),
                groups=_groups([each for each in slices if leading and each.name == leading.name]),
                more_groups=[
                    GroupRow.of(each) for each in slices if not leading or each.name != leading.name
                ],
            )
        )
    return views


# --- groups


def _groups(slices: Sequence[SliceResult]) -> Groups | None:
    """One metric's groups, drawn on one scale; None without any."""
    if not slices:
        return None
    bars = [_bar(each) for each in slices]
    first = slices[0]
    centre = 0.0 if first.direction == "closer_to_zero" else None
    low, high = {"share": (0.0, 1.0), "share above one half": (-0.5, 0.5)}.get(first.unit, (0.0, 0.0))
    if low == high:
        values = [x for each in slices for x in (each.baseline, each.candidate)]
        values += [x for bar in bars if bar for x in bar] + ([] if centre is None else [centre])
        room = (max(values) - min(values)) * 0.06 or 1.0
        low, high = min(values) - room, max(values) + room
        if centre is not None:
            low, high = min(low, -high), max(high, -low)

    def x(value: float) -> float:
        return round(2 + 96 * min(max((value - low) / (high - low), 0), 1), 2)

    rows = [
        GroupRow.of(
            each, GroupPlot(x(each.baseline), x(each.candidate), (x(bar[0]), x(bar[1])) if bar else None)
        )
        for each, bar in zip(slices, bars, strict=True)
    ]
    ends = value_text(first, low), value_text(first, high)
    return Groups(short(first.title), rows, ends, None if centre is None else x(centre))


def _bar(result: SliceResult) -> tuple[float, float] | None:
    """The interval of the change, added to the baseline's value (or to its distance, on the candidate's side)."""
    if result.low is None or result.high is None:
        return None
    if result.direction != "closer_to_zero":
        return result.baseline + result.low, result.baseline + result.high
    distances = (max(0.0, abs(result.baseline) + each) for each in (result.low, result.high))
    near, far = distances
    return (-far, -near) if result.candidate < 0 else (near, far)


# --- items


def _got_worse(items: Iterable[SuiteItem], metric: MetricResult, direction: Direction) -> list[SuiteItem]:
    """The items that got worse in a metric, those that got worse the most first.

    Of a metric whose mean should be close to zero, those are the items that moved to the side where the candidate's
    mean is: a single item is seldom near zero, and says nothing by being far from it.
    """
    name = metric.name.split("/")[-1]
    sign = 1 if direction == "lower" else -1 if direction == "higher" else math.copysign(1, metric.candidate)
    found = []
    for item in items:
        if name in item.baseline.values and name in item.candidate.values:
            before, after = _number(item.baseline.values[name]), _number(item.candidate.values[name])
            if sign * (after - before) > 0:
                found.append((sign * (after - before), item))
    return [item for _, item in sorted(found, key=lambda pair: -pair[0])]


def _number(value: Value) -> float:
    if isinstance(value, list):
        value = Ratio(sum(each.numerator for each in value), sum(each.denominator for each in value))
    if isinstance(value, Ratio):
        return value.numerator / value.denominator if value.denominator else 0.0
    return value


def _item(item: SuiteItem, metrics: Sequence[MetricResult]) -> ItemView:
    values = []
    for metric in metrics:
        name = metric.name.split("/")[-1]
        both = (item.baseline.values.get(name), item.candidate.values.get(name))
        if both[0] is not None and both[1] is not None:
            values.append((short(metric.title), _value(metric, both[0]), _value(metric, both[1])))
    return ItemView(
        id=item.id, group=item.group, columns=columns(item.item), values=values, baseline=_said(item.baseline),
        candidate=_said(item.candidate), are_texts=item.baseline.replies is not None,
    )  # fmt: skip


def _value(metric: MetricResult, value: Value) -> str:
    """One item's value: a share's is a yes or a no."""
    figure = _number(value)
    if metric.unit == "share" and figure in (0.0, 1.0):
        return "yes" if figure else "no"
    return value_text(metric, figure) + ("" if metric.unit in PERCENT_UNITS else f" {metric.unit}")


def columns(item: Mapping[str, Any]) -> dict[str, list[str]]:
    """An item's columns as a reader may see them: a line for each part of a list, without a program's marks."""
    place, answers = item.get("label"), item.get("answers")
    if isinstance(place, int) and isinstance(answers, list) and place < len(answers):
        item = {name: value for name, value in item.items() if name != "label"} | {
            "right_answer": answers[place]
        }
    return {
        name: [_plain(each) for each in value] if isinstance(value, list) else [_plain(value)]
        for name, value in item.items()
        if value is not None
    }


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        if value.keys() == {"role", "content"}:
            return f"{label(str(value['role']))}: {value['content']}"
        return ", ".join(f"{label(str(name))}: {_plain(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _said(outcome: Outcome) -> list[str]:
    """The replies as they are, or the log-likelihoods in nats."""
    if outcome.replies is not None:
        return [reply.text for reply in outcome.replies]
    return [
        ", ".join(f"{score.nats:.2f}" for score in scores).replace("-", "−")
        for scores in outcome.scores or []
    ]
