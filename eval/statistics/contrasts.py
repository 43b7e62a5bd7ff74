"""Intervals of a difference of means over clusters of items, and what they would be in evaluations like this one.

- shares: Tango's score interval (eval/statistics/shares.py), over counts divided by the clusters' design effect;
- other means: Student's with the jackknife's standard error and Hall's correction for skewness
  (eval/statistics/means.py).

benchmarks/gate_simulation.py measures how often they hold the truth.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, stats

from eval.statistics import means
from eval.statistics.shares import design_effect, expected_pass_chance, pass_chance_of_share, tango_limits

LEAST_P = 1e-9
"""P-values are not told apart below this."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Simulated:
    """Both limits in many evaluations like the one at hand, whose true difference is known."""

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray | float = math.nan
    """The difference that each observes."""


@dataclass(frozen=True)
class Contrast:
    """mean(candidate) - sign * mean(baseline), in the metric's units, with its limits at any chance in each tail."""

    difference: float
    limits: Callable[[float], Interval]
    """Of the chance in each tail; they move towards the difference as it grows."""
    simulated: Callable[[np.ndarray | float, float], tuple[Simulated, Simulated]]
    """Of the true difference to assume and the chance in each tail: evaluations resampled from this one, and from those
    (`eval.statistics.means.simulate`)."""
    chance: Callable[[float, float], float] | None = None
    """Of a margin and the chance in a tail: that the limit clears the margin if the true difference is zero. None where
    it is counted from `simulated`."""


def contrast_of(
    baseline: Float[np.ndarray, " items"], candidate: Float[np.ndarray, " items"], index: Int[np.ndarray, " items"],
    sizes: Float[np.ndarray, " clusters"], sign: float, seed: int, is_share: bool,
) -> Contrast:  # fmt: skip
    """The contrast by the method that fits the values.

    Args:
        baseline: one value for each item.
        candidate: the values for the same items in the same order.
        index: for each item the number of its cluster.
        sizes: for each cluster how many items it has.
        sign: 1 for the difference of the means, -1 for their sum.
        seed: of the simulated evaluations.
        is_share: whether every item is a yes or a no; one whose two values cannot be that is treated as a number.
    """
    change = candidate - sign * baseline
    sums = np.bincount(index, weights=change)
    if is_share and np.isin(change, (-1, 0, 1)).all():
        return _of_shares(change, sums, sizes, seed)
    return _of_means(sums, sizes, float(np.ptp(np.concatenate([baseline, candidate]))), seed)


def _of_means(sums: np.ndarray, sizes: np.ndarray, spread: float, seed: int) -> Contrast:
    count = len(sums)
    away = np.abs(sums / sizes - np.median(sums / sizes))
    moved = away > 1e-12 * max(spread, 1e-300)
    known = means.fit(sums, sizes, moved)

    def limits(tail: float) -> Interval:
        low, high = means.limits(known, count, spread, tail)
        return Interval(float(low), float(high))

    def simulated(truth: np.ndarray | float, tail: float) -> tuple[Simulated, Simulated]:
        def found(known: means.Fit) -> Simulated:
            known = known._replace(mean=known.mean + truth)
            return Simulated(*means.limits(known, count, spread, tail), known.mean)

        once, twice = means.simulate(sums, sizes, moved, seed)
        return found(once), found(twice)

    return Contrast(float(known.mean), limits, simulated)


def _of_shares(change: np.ndarray, sums: np.ndarray, sizes: np.ndarray, seed: int) -> Contrast:
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    count, difference = len(sums), float(sums.sum() / sizes.sum())
    residuals = (sums - difference * sizes) / sizes.mean()
    if np.ptp(residuals) > 1e-12:
        effect = design_effect(float(residuals.var(ddof=1)) / count, gained, lost, len(change))
    else:  # nothing varies: only as many items as clusters are sure to be independent
        effect = len(change) / count
    b, c, items = gained / effect, lost / effect, len(change) / effect

    def quantile(tail: float) -> float:
        return float(stats.t.isf(tail, count - 1) if count < len(change) else stats.norm.isf(tail))

    def limits(tail: float) -> Interval:
        low, high = tango_limits(b, c, items, quantile(tail))
        return Interval(float(low), float(high))

    def chance(margin: float, tail: float) -> float:
        differing = max((gained + lost) / len(change), 1 / count)
        alpha = float(stats.norm.sf(quantile(tail)))
        count_chance = expected_pass_chance if count == len(change) else pass_chance_of_share
        return count_chance(differing, max(round(items), 2), abs(margin), alpha)

    def simulated(truth: np.ndarray | float, tail: float) -> tuple[Simulated, Simulated]:
        # as many items differ as here, and one at least; by how much more in one direction varies as it does here
        def found(known: means.Fit) -> Simulated:
            mean = np.clip(known.mean + truth, -1, 1)
            differing = np.maximum(max(b + c, 1.0), np.abs(mean) * items)
            both = (differing + mean * items) / 2, (differing - mean * items) / 2
            return Simulated(*tango_limits(*both, items, quantile(tail)), mean)

        once, twice = means.simulate(sums, sizes, np.ones(count, bool), seed)
        return found(once), found(twice)

    return Contrast(difference, limits, simulated, chance)


def p_values(limits: Callable[[float], Interval], against: float) -> tuple[float, float]:
    """The smallest chances in a tail at which the low limit is above `against`, and the high one below it.

    These are the one-sided p-values of "the true difference is `against` or less" and "... or more"; 1 where no chance
    is large enough, and at least `LEAST_P`.
    """

    def smallest(excess: Callable[[Interval], float]) -> float:
        def at(logarithm: float) -> float:
            return excess(limits(math.exp(logarithm)))

        first, last = math.log(LEAST_P), math.log(0.999)
        if at(last) <= 0:
            return 1.0
        return LEAST_P if at(first) >= 0 else math.exp(optimize.brentq(at, first, last))

    return smallest(lambda found: found.low - against), smallest(lambda found: against - found.high)
