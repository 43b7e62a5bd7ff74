"""The gate's statistics: paired differences with intervals, p-values and the chance to pass.

Both models are measured on the same items, and the interval is about the difference of their means. Items that
share a prompt or a sentence template are not independent, so everything is computed from whole clusters;
eval/statistics/contrasts.py has the intervals.

P-values against the margin are these intervals turned around: the smallest level at which the interval excludes it.
Functions take arrays; what the numbers mean is eval/suites/metrics.py's business.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from eval.statistics.contrasts import Interval, Simulated, contrast_of, p_values
from eval.statistics.planning import POWER, minimum_detectable_effect
from eval.statistics.shares import mcnemar_p

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class PairedDifference:
    """How much a mean changes from baseline to candidate, in the metric's units.

    `deviation` is of the clusters' differences, as seen from what this evaluation could find: Student's test over
    as many clusters with this standard deviation would need the same margin to pass a candidate that is exactly as
    good in 8 of 10 evaluations. For values without skewness in clusters of equal sizes it is nearly the plain one. The
    last four are None where no difference to test `against` was given.
    """

    baseline: float
    candidate: float
    difference: float
    low: float
    high: float
    deviation: float
    items: int
    clusters: int
    p_change: float = 1.0
    """Two-sided, that the models are exchangeable: McNemar's exact test for independent shares, otherwise a
    permutation test that swaps the models by cluster."""
    is_constant: bool = False
    """Whether all items have one and the same value under both models."""
    effective_clusters: float = math.inf
    """As many clusters of equal sizes weigh the same: (sum of sizes)^2 / sum of squared sizes (Kish 1965)."""
    against: float | None = None
    p_above: float | None = None
    """One-sided, that the true difference is `against` or less."""
    p_below: float | None = None
    """One-sided, that the true difference is `against` or more."""
    pass_chance: float | None = None
    """That the interval excludes `against` if the true difference is zero."""


def paired_difference(
    baseline: Values,
    candidate: Values,
    clusters: Sequence[str],
    confidence_level: float = 0.95,
    resamples: int = 9_999,
    seed: int = 0,
    is_share: bool = False,
    against: float | None = None,
) -> PairedDifference:
    """mean(candidate) - mean(baseline) over the same items, with its interval.

    Args:
        baseline: one value for each item.
        candidate: the values for the same items in the same order.
        clusters: for each item, the key of its cluster.
        confidence_level: of the two-sided interval.
        resamples: of the permutation test.
        seed: of the permutation test, and of the evaluations that are simulated for the chance to pass.
        is_share: the values' means are shares: an item's values differ by -1, 0 or 1.
        against: a difference to test against: the margin, with the sign of what is worse.

    Raises:
        ValueError: fewer than two clusters, or lists of different lengths.
    """
    b, c = np.asarray(baseline, float), np.asarray(candidate, float)
    index, sizes = clusters_of(b, c, clusters)
    contrast = contrast_of(b, c, index, sizes, 1.0, seed, is_share)
    tail = (1 - confidence_level) / 2
    change = c - b
    if is_share and len(sizes) == len(b) and np.isin(change, (-1, 0, 1)).all():
        p_change = mcnemar_p(int((change > 0).sum()), int((change < 0).sum()))
    else:
        p_change = _exchange_p(b, c, index, lambda x, y, axis=-1: x.sum(axis) - y.sum(axis), resamples, seed)
    found = _result(
        b, c, sizes, contrast.difference, contrast.limits, contrast.simulated(0.0, tail), p_change, against, tail
    )  # fmt: skip
    if against is None or contrast.chance is None:
        return found
    return replace(found, pass_chance=contrast.chance(against, tail))


def paired_difference_of_distances(
    baseline: Values,
    candidate: Values,
    clusters: Sequence[str],
    confidence_level: float = 0.95,
    resamples: int = 9_999,
    seed: int = 0,
    is_share: bool = False,
    against: float | None = None,
) -> PairedDifference:
    """|mean(candidate)| - |mean(baseline)|: how much further from zero the candidate is, with its interval.

    The absolute value has a corner at zero, where the bootstrap fails (Andrews 2000, Econometrica 68). So the
    interval is made from those of two smooth contrasts, c - b in [p, q] and c + b in [r, s]. As
    |c| - |b| = max over signs u of min over signs v of (u c - v b), replacing each u c - v b by its limit gives

        low  = max(min(p, r), min(-q, -s))        high = max(min(q, s), min(-p, -r))

    Away from zero the interval is that of the one contrast that applies. At worst (baseline exactly zero) either
    limit misses with twice its nominal rate: 5% for the limits of a two-sided 95% interval. The arguments are those of
    `paired_difference`.
    """
    b, c = np.asarray(baseline, float), np.asarray(candidate, float)
    index, sizes = clusters_of(b, c, clusters)
    minus, plus = (contrast_of(b, c, index, sizes, sign, seed, is_share) for sign in (1.0, -1.0))

    def distance(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(np.abs(x.sum(axis)) - np.abs(y.sum(axis)))

    tail = (1 - confidence_level) / 2
    # both contrasts draw the same clusters; that of the sum is twice the baseline where nothing changed, and the second
    # resampling takes the baseline from the first
    change, change_again = minus.simulated(0.0, tail)
    total, _ = plus.simulated(2 * float(b.mean()), tail)
    _, total_again = plus.simulated(total.mean - change.mean, tail)
    return _result(
        b, c, sizes, abs(float(c.mean())) - abs(float(b.mean())),
        lambda tail: _distance(minus.limits(tail), plus.limits(tail)), (
            _around_corner(change, total), _around_corner(change_again, total_again)
        ),
        _exchange_p(b, c, index, distance, resamples, seed), against, tail,
    )  # fmt: skip


@dataclass(frozen=True)
class ObservedDifference(Interval):
    """The difference with its interval, of which nothing is tested."""

    difference: float


def difference_interval(
    baseline: Values,
    candidate: Values,
    clusters: Sequence[str],
    confidence_level: float = 0.95,
    is_share: bool = False,
    closer_to_zero: bool = False,
) -> ObservedDifference:
    """Only the difference and the interval of `paired_difference`, or of `paired_difference_of_distances` for
    `closer_to_zero`; nothing is resampled for them.

    Raises:
        ValueError: as `paired_difference`.
    """
    b, c = np.asarray(baseline, float), np.asarray(candidate, float)
    index, sizes = clusters_of(b, c, clusters)
    tail = (1 - confidence_level) / 2
    minus = contrast_of(b, c, index, sizes, 1.0, 0, is_share)
    if not closer_to_zero:
        found = minus.limits(tail)
        return ObservedDifference(found.low, found.high, minus.difference)
    found = _distance(minus.limits(tail), contrast_of(b, c, index, sizes, -1.0, 0, is_share).limits(tail))
    return ObservedDifference(found.low, found.high, abs(float(c.mean())) - abs(float(b.mean())))


def _distance(minus: Interval, plus: Interval) -> Interval:
    found = _around_corner(minus, plus)
    return Interval(float(found.low), float(found.high))


def _around_corner(minus: Interval | Simulated, plus: Interval | Simulated) -> Simulated:
    """The limits of the distance from those of the two contrasts."""
    p, q, r, s = (np.asarray(each) for each in (minus.low, minus.high, plus.low, plus.high))
    return Simulated(
        np.maximum(np.minimum(p, r), np.minimum(-q, -s)), np.maximum(np.minimum(q, s), np.minimum(-p, -r))
    )


def _result(
    b: np.ndarray, c: np.ndarray, sizes: np.ndarray, difference: float, limits: Callable[[float], Interval],
    simulated: tuple[Simulated, Simulated], p_change: float, against: float | None, tail: float,
) -> PairedDifference:  # fmt: skip
    interval = limits(tail)
    rise = [each.high for each in simulated]
    fall = [-each.low for each in simulated]
    p_above, p_below, chance, worse = None, None, None, [rise, fall]
    if against is not None:
        once, twice = rise if not np.signbit(against) else fall
        # a sample promises too much, by as much as its samples promise more than itself
        chance = float(np.clip(2 * (once <= abs(against)).mean() - (twice <= abs(against)).mean(), 0, 1))
        p_above, p_below = p_values(limits, against)
        worse = [[once, twice]]
    needed = max(detectable(once, twice) for once, twice in worse)
    return PairedDifference(
        baseline=float(b.mean()), candidate=float(c.mean()), difference=difference, low=interval.low,
        high=interval.high, deviation=needed / minimum_detectable_effect(1.0, len(sizes), 2 * tail), items=len(b),
        clusters=len(sizes), p_change=p_change, effective_clusters=float(sizes.sum() ** 2 / (sizes**2).sum()),
        is_constant=bool(max(np.ptp(b), np.ptp(c), np.ptp(c - b)) == 0 and b[0] == c[0]),
        against=against, p_above=p_above, p_below=p_below, pass_chance=chance,
    )  # fmt: skip


def detectable(once: np.ndarray, twice: np.ndarray) -> float:
    """The margin that evaluations like this one clear with the chance `POWER`, corrected as the chance to pass is."""
    first, second = (float(np.quantile(each, POWER)) for each in (once, twice))
    return first**2 / second if min(first, second) > 0 else max(first, 0.0)


def clusters_of(b: np.ndarray, c: np.ndarray, clusters: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """For each item the number of its cluster, and for each cluster how many items it has."""
    if not len(b) == len(c) == len(clusters):
        raise ValueError("baseline, candidate and clusters must have one value for each item")
    _, index = np.unique(np.asarray(clusters, str), return_inverse=True)
    sizes = np.bincount(index).astype(float)
    if len(sizes) < 2:
        raise ValueError("an interval needs at least two clusters")
    return index, sizes


def _exchange_p(
    b: np.ndarray, c: np.ndarray, index: np.ndarray, statistic: Callable[..., np.ndarray], resamples: int, seed: int
) -> float:  # fmt: skip
    """The p-value of "the models could be swapped in any cluster"; exact where there are few enough clusters."""
    test = stats.permutation_test(
        (np.bincount(index, weights=c), np.bincount(index, weights=b)), statistic, permutation_type="samples",
        vectorized=True, n_resamples=resamples, batch=500, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(test.pvalue)


def wilson_interval(successes: int, items: int, confidence_level: float = 0.95) -> Interval:
    """Wilson's interval of a share (Wilson 1927); `items` independent items, of which `successes` have it."""
    low, high = proportion_confint(successes, items, alpha=1 - confidence_level, method="wilson")
    return Interval(float(low), float(high))
