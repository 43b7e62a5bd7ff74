"""The gate's statistics: paired differences with intervals, p-values and the chance to pass.

Both models are measured on the same items, and the interval is about the difference of their means. Items that
share a prompt or a sentence template are not independent, so everything is computed from whole clusters;
eval/contrasts.py has the intervals.

P-values against the margin are these intervals turned around: the smallest level at which the interval excludes it.
Functions take arrays; what the numbers mean is eval/metrics.py's business.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from eval.contrasts import Interval, contrast_of
from eval.shares import mcnemar_p

DRAWS = 20_000
"""Behind the chance to pass where it has no closed form; its standard error is at most 0.4 points."""


@dataclass(frozen=True)
class PairedDifference:
    """How much a mean changes from baseline to candidate, in the metric's units.

    `deviation` is the standard deviation of the clusters' differences: the difference's standard error is
    deviation / sqrt(clusters). The last four are None where no difference to test `against` was given.
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
    against: float | None = None
    p_above: float | None = None
    """One-sided, that the true difference is `against` or less."""
    p_below: float | None = None
    """One-sided, that the true difference is `against` or more."""
    pass_chance: float | None = None
    """That the interval excludes `against` if the true difference is zero."""


def paired_difference(
    baseline: Sequence[float],
    candidate: Sequence[float],
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
        resamples: of the bootstrap, and of the permutation test.
        seed: of both.
        is_share: the values' means are shares: an item's values differ by -1, 0 or 1.
        against: a difference to test against: the margin, with the sign of what is worse.

    Raises:
        ValueError: fewer than two clusters, or lists of different lengths.
    """
    b, c = np.asarray(baseline, float), np.asarray(candidate, float)
    index, sizes = _clusters(b, c, clusters)
    contrast = contrast_of(b, c, index, sizes, 1.0, resamples, seed, is_share)
    change = c - b
    if is_share and len(sizes) == len(b) and np.isin(change, (-1, 0, 1)).all():
        p_change = mcnemar_p(int((change > 0).sum()), int((change < 0).sum()))
    else:
        p_change = _exchange_p(b, c, index, lambda x, y, axis=-1: x.sum(axis) - y.sum(axis), resamples, seed)
    tail = (1 - confidence_level) / 2
    interval = contrast.limits(tail)
    chance = None if against is None else contrast.chance(against, tail)
    return _result(
        b, c, len(sizes), contrast.difference, interval, contrast.deviation, p_change, against, chance,
        contrast.tails,
    )  # fmt: skip


def paired_difference_of_distances(
    baseline: Sequence[float],
    candidate: Sequence[float],
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
    limit misses with twice its nominal rate: 5% for the limits of a two-sided 95% interval. `deviation` is that of
    c - b. `pass_chance` draws both contrasts from
    their joint normal distribution around an unchanged mean.
    """
    b, c = np.asarray(baseline, float), np.asarray(candidate, float)
    index, sizes = _clusters(b, c, clusters)
    minus = contrast_of(b, c, index, sizes, 1.0, resamples, seed, is_share)
    plus = contrast_of(b, c, index, sizes, -1.0, resamples, seed, is_share)

    def limits(tail: float) -> Interval:
        one, other = minus.limits(tail), plus.limits(tail)
        p, q, r, s = one.low, one.high, other.low, other.high
        return Interval(max(min(p, r), min(-q, -s)), max(min(q, s), min(-p, -r)))

    def tails(against: float) -> tuple[float, float]:
        # low > a means (p > a and r > a) or (q < -a and s < -a); high < a, (q < a or s < a) and (p > -a or r > -a)
        (above, below), (plus_above, plus_below) = minus.tails(against), plus.tails(against)
        (above_other, below_other), (plus_above_other, plus_below_other) = (
            minus.tails(-against),
            plus.tails(-against),
        )
        return (
            min(max(above, plus_above), max(below_other, plus_below_other)),
            max(min(below, plus_below), min(above_other, plus_above_other)),
        )

    def distance(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(np.abs(x.sum(axis)) - np.abs(y.sum(axis)))

    tail = (1 - confidence_level) / 2
    chance = None
    if against is not None:
        covariance = np.cov(minus.residuals, plus.residuals) / len(sizes)
        x, y = (
            np.random.default_rng(seed)
            .multivariate_normal([0, 2 * b.mean()], covariance, DRAWS, check_valid="ignore")
            .T
        )
        widths = minus.width(against, tail), plus.width(against, tail)
        high = np.maximum(np.minimum(x + widths[0], y + widths[1]), np.minimum(widths[0] - x, widths[1] - y))
        chance = float((high <= against).mean())
    return _result(
        b, c, len(sizes), abs(float(c.mean())) - abs(float(b.mean())), limits(tail), minus.deviation,
        _exchange_p(b, c, index, distance, resamples, seed), against, chance, tails,
    )  # fmt: skip


def _result(
    b: np.ndarray, c: np.ndarray, clusters: int, difference: float, interval: Interval, deviation: float,
    p_change: float, against: float | None, chance: float | None, tails: Callable[[float], tuple[float, float]],
) -> PairedDifference:  # fmt: skip
    p_above, p_below = (None, None) if against is None else tails(against)
    return PairedDifference(
        baseline=float(b.mean()), candidate=float(c.mean()), difference=difference, low=interval.low,
        high=interval.high, deviation=deviation, items=len(b), clusters=clusters, p_change=p_change,
        is_constant=bool(max(np.ptp(b), np.ptp(c), np.ptp(c - b)) == 0 and b[0] == c[0]),
        against=against, p_above=p_above, p_below=p_below, pass_chance=chance,
    )  # fmt: skip


def _clusters(b: np.ndarray, c: np.ndarray, clusters: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
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
