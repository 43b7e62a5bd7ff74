"""The order of the page's metrics, and those without a margin: by family, each drawn in units of its own interval."""

from collections.abc import Sequence
from dataclasses import dataclass

from eval.page.metric_rows import Axis, MetricRow, scale
from eval.suites.metrics import METRICS, Direction
from eval.verdict.gate import Verdict
from eval.verdict.rule import MetricResult, SliceResult

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
