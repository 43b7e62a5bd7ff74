"""Metrics and groups in words and numbers for readers, and the rows, order and plots of the page's tables of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from accord.page.render import number
from accord.page.render import percent as percent
from eval.suites.metrics import METRICS, Direction
from eval.verdict.gate import Verdict
from eval.verdict.rule import MetricResult, Result, SliceResult, two_digits

PERCENT_UNITS = ("share", "share above one half")


def value_text(metric: Result | SliceResult, value: float) -> str:
    """A value of a metric, in its unit."""
    if metric.unit in PERCENT_UNITS:
        return percent(value + 0.5 if metric.unit == "share above one half" else value)
    return number(value)


def short(title: str) -> str:
    """A metric's label without its suite's title, with a capital."""
    rest = title.split(": ", 1)[-1]
    return rest[:1].upper() + rest[1:]


def short_name(metric: Result) -> str:
    """A metric's label without its suite's title, with its group."""
    return short(metric.title) + (f" ({metric.slice})" if metric.slice else "")


def change_text(metric: Result | SliceResult, change: float) -> str:
    """A change of a metric, signed; shares change by percentage points."""
    if metric.unit in PERCENT_UNITS:
        return f"{100 * change:+.1f} points".replace("-", "−")
    return number(change, signed=True)


def p_text(p: float | None) -> str:
    """A p-value, as far as its digits mean anything."""
    if p is None:
        return ""
    return "below 0.001" if p < 0.001 else "above 0.5" if p > 0.5 else f"{p:.3f}"


def tolerated(metric: MetricResult) -> str:
    """A gated metric's margin in words."""
    assert metric.margin is not None
    amount = change_text(metric, metric.margin).removeprefix("+")
    move = {"higher": "fall", "lower": "rise"}.get(str(metric.direction), f"move away from {_centre(metric)}")
    return f"a {move} by up to {amount}" if metric.margin else f"no {move}"


def _centre(metric: MetricResult) -> str:
    return "50%" if metric.unit == "share above one half" else "zero"


def explain(metric: MetricResult, confidence_level: float) -> str:
    """What happened to a gated metric, and why it got its verdict, in sentences for someone who does not code."""
    name = metric.label
    before, after = value_text(metric, metric.baseline), value_text(metric, metric.candidate)
    low, high = change_text(metric, metric.low), change_text(metric, metric.high)
    what = (
        f"the change in its distance from {_centre(metric)}"
        if metric.direction == "closer_to_zero"
        else "the change"
    )
    sentences = [
        f"{name}: {before}, as before." if before == after else f"{name}: from {before} to {after}.",
        f"With {100 * confidence_level:g}% confidence {what} is between {low} and {high}; "
        f"the margin tolerates {tolerated(metric)}.",
    ]
    if metric.verdict == "FAIL":
        sentences.append("Even the mildest of these changes is worse than that.")
    elif metric.verdict == "PASS":
        sentences.append("Even the worst of these changes is within it.")
    elif metric.cannot_decide:
        sentences.append(f"It cannot decide: {metric.cannot_decide}.")
    elif metric.worsening[0] > (metric.margin or 0):
        sentences.append(
            "All of these changes are worse than that, but one of several metrics may be so by chance (p "
            f"{p_text(metric.p_beyond_corrected)}, corrected for the family “{metric.family}”)."
        )
        if metric.clusters_to_decide:
            sentences.append(
                f"About {number(two_digits(metric.clusters_to_decide))} {metric.cluster} would decide, and there "
                f"were {number(metric.clusters)}."
            )
    elif metric.clusters_to_decide is None:
        sentences.append(
            "The observed change lies so close to the margin that more data would hardly decide."
        )
    else:
        sentences.append(
            "Some of these changes are within it and some are worse: about "
            f"{number(two_digits(metric.clusters_to_decide))} {metric.cluster} would decide, and there were "
            f"{number(metric.clusters)}."
        )
    return " ".join(sentences)


@dataclass(frozen=True)
class Axis:
    """The forest plot's axis: changes in units of each metric's margin, worse on the left, better on the right."""

    worst: float
    best: float

    @classmethod
    def around(cls, metrics: Sequence[MetricResult]) -> "Axis":
        """An axis that shows these intervals, as far as that leaves the margin visible."""
        scaled = [w / scale(metric) for metric in metrics for w in metric.worsening]
        return cls(min(max([1.5, *scaled]) + 0.2, 8), min(max([1, *(-w for w in scaled)]) + 0.2, 5))

    def x(self, worsening: float) -> float:
        """Where a worsening, in margins, stands: percent of the width, cut off at the ends."""
        share = (self.worst - worsening) / (self.worst + self.best)
        return round(100 * min(max(share, 0.005), 0.995), 3)


def scale(metric: MetricResult) -> float:
    """What counts as 1 on the axis: the margin, or the interval where no worsening is tolerated."""
    return metric.margin or max(abs(metric.low), abs(metric.high)) or 1.0


@dataclass(frozen=True)
class MetricRow:
    """One row of the table of metrics; positions are percent of the plot's width."""

    name: str
    label: str
    short_label: str
    """Without the suite's title."""
    meaning: str
    unit: str
    baseline: str
    candidate: str
    change: str
    interval: str
    tolerated: str
    verdict: str
    detectable: str
    basis: str
    pass_chance: str
    p_change: str
    p_within: str
    p_beyond: str
    p_beyond_corrected: str
    family: str
    left: float
    dot: float | None
    right: float
    beyond_left: bool
    beyond_right: bool

    @classmethod
    def of(cls, metric: MetricResult, axis: Axis) -> "MetricRow":
        """A metric's row on this axis."""
        least, observed, most = (w / scale(metric) for w in metric.worsening)
        return cls(
            name=metric.name, label=metric.label, short_label=metric.label.split(": ", 1)[-1], meaning=metric.meaning,
            unit="" if metric.unit in PERCENT_UNITS else metric.unit,
            baseline=value_text(metric, metric.baseline), candidate=value_text(metric, metric.candidate),
            change=change_text(metric, metric.difference),
            interval=f"{change_text(metric, metric.low).removesuffix(' points')} to {change_text(metric, metric.high)}",
            tolerated=tolerated(metric) if metric.margin is not None else "", verdict=metric.verdict or "",
            detectable=change_text(metric, metric.minimum_detectable_effect).removeprefix("+"),
            basis=f"{number(metric.clusters)} {metric.cluster}",
            pass_chance="" if metric.pass_chance is None else f"{100 * metric.pass_chance:.0f}%",
            p_change=p_text(metric.p_change), p_within=p_text(metric.p_within), p_beyond=p_text(metric.p_beyond),
            p_beyond_corrected=p_text(metric.p_beyond_corrected), family=metric.family or "",
            left=axis.x(most), right=axis.x(least),
            dot=axis.x(observed) if -axis.best < observed < axis.worst else None,
            beyond_left=most > axis.worst, beyond_right=-least > axis.best,
        )  # fmt: skip


def too_small(slices: Sequence[SliceResult]) -> list[str]:
    """The groups that are too small to say anything, with their sizes."""
    found = {(each.slice, each.clusters, each.cluster) for each in slices if each.low is None}
    return [f"{name} ({number(clusters)} {cluster})" for name, clusters, cluster in sorted(found)]


# --- the order of the tables, and metrics without a margin

RANKS = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}
FAMILY_ORDER = ("safety", "bias", "quality")


@dataclass(frozen=True)
class GatedRow:
    """A metric with a margin, and what its table is sorted by."""

    row: MetricRow
    rank: int
    worst: float
    """The largest plausible worsening, in margins."""


@dataclass(frozen=True)
class UngatedRow:
    """A metric without a margin. Its plot has zero in the middle and better on the right, in its interval's own scale;
    positions are percent of the width."""

    row: MetricRow
    says: str
    is_directed: bool
    left: float
    dot: float
    right: float


@dataclass(frozen=True)
class Family:
    """The metrics of one family that have no margin."""

    name: str
    rows: list[UngatedRow]

    def count(self, says: str) -> int:
        """How many of them say so."""
        return sum(row.says == says for row in self.rows)


def gated_rows(metrics: Sequence[MetricResult], axis: Axis) -> list[GatedRow]:
    """Those that failed first, then the undecided, then those that passed; in each, the nearest to its margin first."""
    rows = [
        GatedRow(MetricRow.of(each, axis), RANKS[each.verdict], each.worsening[2] / scale(each))
        for each in metrics
        if each.verdict
    ]
    return sorted(rows, key=lambda each: (each.rank, -each.worst))


def families(verdict: Verdict, axis: Axis) -> list[Family]:
    """The metrics without a margin, by family."""
    found: dict[str, list[UngatedRow]] = {}
    of_suite = {suite.name: suite.family for suite in verdict.suites}
    for metric in verdict.metrics:
        if metric.verdict is None:
            known = METRICS.get(metric.name)
            family = known.family if known else of_suite.get(metric.name.split("/")[0], "other")
            found.setdefault(family, []).append(_ungated(metric, direction_of(metric.name, verdict), axis))
    order = {name: i for i, name in enumerate(FAMILY_ORDER)}
    return [Family(name, found[name]) for name in sorted(found, key=lambda name: order.get(name, len(order)))]


def direction_of(name: str, verdict: Verdict) -> Direction | None:
    """Which values of a metric are better, whether or not it has a margin; None where nothing says."""
    results: list[MetricResult | SliceResult] = [*verdict.metrics, *verdict.slices]
    for each in results:
        if each.name == name and each.direction:
            return each.direction
    return METRICS[name].direction if name in METRICS else None


def reading(direction: Direction | None, low: float, high: float) -> str:
    """What the interval of a change says."""
    if low <= 0 <= high:
        return "either way"
    if direction is None:
        return "higher" if low > 0 else "lower"
    return "better" if (low > 0) == (direction == "higher") else "worse"


def _ungated(metric: MetricResult, direction: Direction | None, axis: Axis) -> UngatedRow:
    sign = -1 if direction in ("lower", "closer_to_zero") else 1
    ends = sorted(50 + 46 * sign * each / scale(metric) for each in (metric.low, metric.high))
    return UngatedRow(
        row=MetricRow.of(metric, axis), says=reading(direction, metric.low, metric.high),
        is_directed=direction is not None, left=round(ends[0], 2), right=round(ends[1], 2),
        dot=round(50 + 46 * sign * metric.difference / scale(metric), 2),
    )  # fmt: skip
