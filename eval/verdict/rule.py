"""What the numbers say: each metric's verdict, and that of all together. Pure functions of numbers.

A verdict is made of one-sided tests at alpha / 2, where 1 - alpha is the confidence level of the intervals (2.5% each
for 95%). Two kinds of wrong verdicts are possible, and they add up differently over several metrics:

- **A wrong PASS.** PASS asks every gated metric to be within its margin. If one truly is not, that one's test has to
  err, so the chance is at most alpha / 2, however many metrics there are (an intersection-union test; Berger 1982,
  Technometrics 24). Nothing is corrected. For "closer_to_zero" it is up to alpha (eval/statistics/paired.py says why).
- **A wrong FAIL.** FAIL asks only one metric to be beyond its margin, so each more metric is one more chance to err.
  Within each family the p-values of "this metric is within its margin" are corrected by Holm's method (1979,
  Scandinavian Journal of Statistics 6): the chance that any metric of a family that truly is within its margin is
  said to be beyond it is at most alpha / 2. Families are not corrected against each other: each is a claim of its own.

P-values for "no change at all" are printed uncorrected and decide nothing.

A metric cannot PASS where its items could not have shown a worsening (`why_stuck`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict
from statsmodels.stats.multitest import multipletests

from accord.errors import UsageError
from eval.config import Margin
from eval.statistics.paired import PairedDifference
from eval.statistics.planning import ALPHA, clusters_to_decide, minimum_detectable_effect
from eval.suites.metrics import Direction, Metric

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]
AT_AN_END = 0.01
"""Items that may lie off the end of the scale while all of them count as stuck there."""


FEWEST_UNEQUAL = 40
"""Effective clusters that a share needs where cluster sizes differ much: with fewer, its interval misses too often."""
MOST_UNEQUAL = 0.8
"""Cluster sizes differ much where there are fewer effective clusters than this share of all."""


class Result(BaseModel, ABC):
    """What the gate says of one metric: against its margin (`MetricResult`), or against a floor
    (`eval.verdict.floors.FloorResult`). What has to do with a verdict is None for a metric that is only reported."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    title: str
    """For readers, as `meaning` is."""
    meaning: str
    slice: str | None = None
    unit: str
    items: int
    clusters: int
    cluster: str
    baseline: float
    candidate: float
    low: float
    high: float
    direction: Direction | None = None
    family: str | None = None
    p_within: float | None = None
    """One-sided, that the candidate is beyond the margin or the floor; small for a PASS, and not corrected."""
    p_beyond: float | None = None
    """One-sided, that the candidate is within it; small for a FAIL."""
    p_beyond_corrected: float | None = None
    """The same, corrected for the tests of its family."""
    verdict: Outcome | None = None
    cannot_decide: str | None = None
    """Why the items could not have shown a worsening, if so."""
    clusters_to_decide: int | None = None
    """For INCONCLUSIVE: how many clusters would decide; None where no reachable number would."""

    @property
    def label(self) -> str:
        """The metric's name for readers."""
        return self.title + (f" ({self.slice})" if self.slice else "")

    @abstractmethod
    def undecided(self, alpha: float) -> Self:
        """The same, INCONCLUSIVE, with the number of clusters that would decide."""


class MetricResult(Result):
    """One metric of both models, over all items or over the group named by `slice`.

    `difference`, `low` and `high` are candidate minus baseline in the metric's units; for "closer_to_zero" the
    difference of the two means' distances from zero.
    """

    difference: float
    candidate_low: float | None = None
    """The interval of the candidate's own value; None for a group of items."""
    candidate_high: float | None = None
    deviation: float
    """Of the clusters' differences."""
    p_change: float
    """Two-sided, that nothing changed at all."""
    margin: float | None = None
    minimum_detectable_effect: float
    pass_chance: float | None = None
    """That a candidate which is exactly as good passes, with items like these."""

    def undecided(self, alpha: float) -> Self:
        """The same, INCONCLUSIVE, with the number of clusters that would decide."""
        assert self.margin is not None
        needed = clusters_to_decide(self.worsening[1] - self.margin, self.deviation, alpha)
        # The interval at hand did not decide, so more than these are needed, whatever the planning formula says.
        needed = None if needed is None else max(needed, self.clusters + 1)
        return self.model_copy(update={"verdict": "INCONCLUSIVE", "clusters_to_decide": needed})

    @property
    def worsening(self) -> tuple[float, float, float]:
        """The change turned so that positive is worse: the least plausible, the observed, the largest plausible."""
        if self.direction == "higher":
            return -self.high, -self.difference, -self.low
        return self.low, self.difference, self.high


class SliceResult(BaseModel):
    """One metric over one group of items; the interval is None where they are too few to say anything."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    title: str
    unit: str
    slice: str
    items: int
    clusters: int
    cluster: str
    baseline: float
    candidate: float
    difference: float
    low: float | None
    high: float | None
    direction: Direction | None = None
    """For "closer_to_zero" the difference is that of the two means' distances from zero."""


ResultT = TypeVar("ResultT", bound=Result)


def conclude_metric(
    metric: Metric, change: PairedDifference, margin: Margin | None, alpha: float = ALPHA, slice_name: str | None = None
) -> MetricResult:  # fmt: skip
    """One metric's result, and its verdict if it has a margin; `correct` has the last word on a FAIL.

    Args:
        metric: what is measured.
        change: with p-values `against` the margin, if there is one.
        margin: of the whole metric; a slice's is its entry in `slices`.
        alpha: 1 minus the confidence level of the interval.
        slice_name: the group of items, if these are not all.
    """
    result = MetricResult(
        name=metric.name, title=metric.label, meaning=metric.meaning, slice=slice_name,
        unit=metric.unit, items=change.items, clusters=change.clusters,
        cluster=metric.cluster, baseline=change.baseline, candidate=change.candidate,
        difference=change.difference, low=change.low, high=change.high, deviation=change.deviation,
        p_change=change.p_change,
        minimum_detectable_effect=minimum_detectable_effect(change.deviation, change.clusters, alpha),
    )  # fmt: skip
    tolerated = None
    if margin is not None:
        tolerated = margin.slices[slice_name] if slice_name else margin.margin
    if margin is None or tolerated is None:
        return result
    direction = margin.direction or metric.direction
    assert direction is not None, "EvalConfig refuses a gate without directions"
    falls = direction == "higher"
    stuck = why_stuck(change, direction, tolerated, metric.ends) if metric.reference is None else None
    result = result.model_copy(
        update={
            "direction": direction, "margin": tolerated, "family": margin.family or metric.family,
            "p_within": change.p_above if falls else change.p_below,
            "p_beyond": change.p_below if falls else change.p_above,
            "pass_chance": 0.0 if stuck else change.pass_chance,
        }
    )  # fmt: skip
    least, _, most = result.worsening
    if least > tolerated:
        return result.model_copy(update={"verdict": "FAIL"})
    if stuck:
        return result.model_copy(update={"verdict": "INCONCLUSIVE", "cannot_decide": stuck})
    if most <= tolerated:
        return result.model_copy(update={"verdict": "PASS"})
    return result.undecided(alpha)


def why_stuck(
    change: PairedDifference, direction: Direction, margin: float, ends: tuple[float, float] | None
) -> str | None:
    """Why these items could not have shown a worsening beyond the margin, whatever the candidate; None if they could.

    The rule: no variation at all; or a share whose baseline has no more room to worsen than the margin (or than
    `AT_AN_END`), a floor; or a share of successes that is within `AT_AN_END` of 1 under both models, a ceiling, where
    the items are too easy to tell models apart; or a share of items in few clusters of very unequal sizes, of which no
    interval is right. Means that are no shares have no known ends.

    A share of faults (lower is better) has no ceiling: that neither model ever refuses a harmless request is what such
    a suite is there to show, and its items could all have shown a refusal.
    """
    if change.is_constant and not (ends and direction == "lower" and change.baseline == ends[0]):
        return "every item has the same value under both models, so nothing could be seen; take other items"
    if ends is None:
        return None
    if change.effective_clusters < min(FEWEST_UNEQUAL, MOST_UNEQUAL * change.clusters):
        return (
            f"its {change.clusters} clusters are of very unequal sizes and weigh only as much as "
            f"{change.effective_clusters:.0f} equal ones: too few to say; take at least {FEWEST_UNEQUAL}, or equal ones"
        )
    low, high = ends
    both = (change.baseline, change.candidate)
    rooms = {
        "higher": change.baseline - low, "lower": high - change.baseline,
        "closer_to_zero": min(-low, high) - abs(change.baseline),
    }  # fmt: skip
    if rooms[direction] <= max(margin, AT_AN_END) + 1e-12:
        return (
            "the baseline is so near the worst value that no candidate could be worse by more than the margin"
        )
    if direction == "higher" and high - min(both) <= AT_AN_END + 1e-12:
        return "both models are at the best value on nearly every item: too easy to tell them apart; take harder ones"
    return None


def correct(metrics: Sequence[ResultT], alpha: float = ALPHA) -> list[ResultT]:
    """The results with Holm-corrected p-values of their FAIL, and INCONCLUSIVE where a FAIL does not withstand that."""
    results = list(metrics)
    for family in dict.fromkeys(metric.family for metric in metrics if metric.verdict is not None):
        members = [i for i, each in enumerate(metrics) if each.family == family and each.verdict is not None]
        raw = [p if (p := metrics[i].p_beyond) is not None else math.nan for i in members]
        if any(math.isnan(p) for p in raw):
            raise ValueError(f"a metric of the family '{family}' has no p-value against its margin")
        for i, p in zip(members, multipletests(raw, method="holm")[1], strict=True):
            results[i] = results[i].model_copy(update={"p_beyond_corrected": float(p)})
            # the tolerance is that of turning the interval into a p-value
            if results[i].verdict == "FAIL" and p > alpha / 2 * (1 + 1e-6):
                results[i] = results[i].undecided(alpha / len(members))
    return results


def distrust(metrics: Sequence[ResultT], reasons: Mapping[str, str]) -> list[ResultT]:
    """The metrics, of which those of suites that are not to be trusted cannot pass; they may still fail.

    Args:
        metrics: with their verdicts.
        reasons: why not, by suite; those of the answers to held-out prompts are "prompts".
    """
    found = []
    for metric in metrics:
        reason = reasons.get(metric.name.split("/")[0] if "/" in metric.name else "prompts")
        if reason and metric.verdict in ("PASS", "INCONCLUSIVE"):
            metric = metric.model_copy(update={"verdict": "INCONCLUSIVE", "cannot_decide": reason})
        found.append(metric)
    return found


def decide(metrics: Sequence[Result]) -> Outcome:
    """The outcome of all gated metrics and floors together.

    Raises:
        UsageError: no metric is gated, so nothing could ever fail.
    """
    verdicts = [metric.verdict for metric in metrics if metric.verdict is not None]
    if not verdicts:
        raise UsageError("the gate names no metric that was measured; give at least one a margin")
    if "FAIL" in verdicts:
        return "FAIL"
    return "INCONCLUSIVE" if "INCONCLUSIVE" in verdicts else "PASS"


def two_digits(number: int) -> int:
    """Rounded up to two leading digits: a planning figure has no more."""
    unit = int(10 ** max(len(str(number)) - 2, 0))
    return -(-number // unit) * unit
