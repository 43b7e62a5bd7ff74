"""Floors: what the candidate itself has to reach, whatever the baseline does.

A margin says "not worse than before by more than this", and two models that never refuse a harmful request keep it. A
floor is about the candidate alone: its own interval has to lie on the good side. The three verdicts are those of
margins (eval/verdict/rule.py), and so is the correction for several metrics: a floor's FAIL is one more test of its
family.
"""

from collections.abc import Sequence
from typing import Self

from accord.errors import UsageError
from eval.config import Margin, Rules, Side
from eval.measuring.values import Measured, linear
from eval.statistics.floors import Level, clearance, fewest_items, items_to_decide, level
from eval.statistics.planning import ALPHA, clusters_to_decide
from eval.suites.kind import Ratio, Value
from eval.suites.metrics import Metric
from eval.verdict.rule import Result

SIGNS: dict[Side, int] = {"at_least": 1, "at_most": -1}


class FloorResult(Result):
    """The candidate's own value of one metric against a floor; `low` and `high` are the interval of that value."""

    side: Side
    bound: float
    independent: float | None
    """Of a share: how many independent items say as much; None for another mean."""
    deviation: float
    """Of clusters, as planning needs it; 0 for a share."""
    ends: tuple[float, float] | None
    """Of a share: the two values that an item can have."""
    needed: float | None
    """What a candidate must truly reach to pass in 8 of 10 evaluations of this size; None where nothing would do."""

    @property
    def room(self) -> float:
        """How far the worst plausible value lies on the good side; negative is below the floor."""
        return self.low - self.bound if self.side == "at_least" else self.bound - self.high

    def undecided(self, alpha: float) -> Self:
        """The same, INCONCLUSIVE, with the number of clusters that would decide."""
        if self.ends is None or self.independent is None:
            count = clusters_to_decide(self.candidate - self.bound, self.deviation, alpha)
        else:
            start, width = self.ends[0], self.ends[1] - self.ends[0]
            share, bound = (self.candidate - start) / width, (self.bound - start) / width
            items = items_to_decide(min(max(share, 0.0), 1.0), bound, SIGNS[self.side], alpha)
            count = None if items is None else -(-items * self.clusters // max(round(self.independent), 1))
        # those at hand did not decide, whatever the planning formula says
        needed = None if count is None else max(count, self.clusters + 1)
        return self.model_copy(update={"verdict": "INCONCLUSIVE", "clusters_to_decide": needed})


def level_of_candidate(
    metric: Metric, values: Measured, rules: Rules
) -> tuple[Level, tuple[float, float] | None]:
    """The candidate's mean of a metric with its interval, and the ends of the scale where it is a share."""
    level_, ends, _ = _levels(metric, values, rules)
    return level_, ends


def conclude_floors(metric: Metric, values: Measured, margin: Margin, rules: Rules) -> list[FloorResult]:
    """The results of a metric's floors; `eval.verdict.rule.correct` has the last word on a FAIL."""
    if not margin.floors:
        return []
    found, ends, baseline = _levels(metric, values, rules)
    return [
        conclude_floor(metric, found, ends, side, bound, margin, baseline, 1 - rules.confidence_level)
        for side, bound in margin.floors.items()
    ]


def conclude_floor(
    metric: Metric, found: Level, ends: tuple[float, float] | None, side: Side, bound: float, margin: Margin,
    baseline: float, alpha: float = ALPHA,
) -> FloorResult:  # fmt: skip
    """One floor's result.

    Args:
        metric: what is measured.
        found: the candidate's mean of it.
        ends: of a share: the two values that an item can have.
        side: which values are good.
        bound: the floor.
        margin: what the gate has for the metric.
        baseline: the baseline's mean, to be shown beside it.
        alpha: 1 minus the confidence level of the interval.
    """
    sign = SIGNS[side]
    stands = clearance(found, bound, sign, alpha, ends)
    result = FloorResult(
        name=metric.name, title=metric.label, meaning=metric.meaning, unit=metric.unit, items=found.items,
        clusters=found.clusters, cluster=metric.cluster, baseline=baseline, candidate=found.value, low=found.low,
        high=found.high, direction=margin.direction or metric.direction, family=margin.family or metric.family,
        p_within=stands.p_above if sign > 0 else stands.p_below,
        p_beyond=stands.p_below if sign > 0 else stands.p_above, side=side, bound=bound,
        independent=found.independent, deviation=stands.deviation, ends=ends, needed=stands.needed,
    )  # fmt: skip
    if found.is_constant:
        return result.model_copy(
            update={
                "verdict": "INCONCLUSIVE",
                "cannot_decide": "every item has the same value, so nothing shows how far others lie; take other items",
            }
        )
    if (found.high < bound) if sign > 0 else (found.low > bound):
        return result.model_copy(update={"verdict": "FAIL"})
    if result.room >= 0:
        return result.model_copy(update={"verdict": "PASS"})
    return result.undecided(alpha)


def check_floors(rules: Rules, name: str, clusters: Sequence[str]) -> None:
    """Refuse floors of shares that so few items cannot meet, even if every one of them is good.

    Raises:
        UsageError: with how many items it takes.
    """
    metric, margin = rules.metrics[name], rules.gate.get(name)
    if margin is None or metric.ends is None:
        return
    count, (start, end) = len(set(clusters)), metric.ends
    for side, bound in margin.floors.items():
        fewest = fewest_items((bound - start) / (end - start), SIGNS[side], 1 - rules.confidence_level)
        if count < fewest:
            raise UsageError(
                f"the gate asks '{name}' to be {side.replace('_', ' ')} {bound:g}, and there are {count} "
                f"{metric.cluster}: too few to show it even if all were good; take at least {fewest:,}, or a floor "
                "that is easier to meet"
            )


def _levels(
    metric: Metric, values: Measured, rules: Rules
) -> tuple[Level, tuple[float, float] | None, float]:
    before, after, clusters, ends = values.before, values.after, values.clusters, metric.ends
    if ends is None and _are_parts_of_a_share([*before, *after]):
        # a share of those items that have a denominator, such as right answers that were given up
        baseline = linear(before)
        kept = [
            (x.numerator, key)
            for x, key in zip(after, clusters, strict=True)
            if isinstance(x, Ratio) and x.denominator
        ]
        if len({key for _, key in kept}) >= 2:
            after, clusters, ends = [x for x, _ in kept], [key for _, key in kept], (0.0, 1.0)
            return level(linear(after), clusters, rules.confidence_level, ends), ends, _mean(baseline)
    x, others = linear(after), linear(before)
    if metric.reference is not None:  # the baseline's part is the other one: a win here is a loss there
        others = [2 * metric.reference - each for each in x]
    found = level(x, clusters, rules.confidence_level, ends, others, rules.seed)
    return found, ends, _mean(linear(before))


def _are_parts_of_a_share(values: Sequence[Value]) -> bool:
    return any(isinstance(each, Ratio) for each in values) and all(
        isinstance(each, Ratio)
        and each.denominator in (0.0, 1.0)
        and each.numerator in (0.0, each.denominator)
        for each in values
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
