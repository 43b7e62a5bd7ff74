"""The gate's statistics: paired differences with intervals, p-values and the chance to pass.

Both models are measured on the same items, and the interval is about the difference of their means. Items that
share a prompt or a sentence template are not independent, so everything is computed from whole clusters. Three kinds:

- shares: Tango's score interval (eval/shares.py), over counts divided by the clusters' design effect;
- other means: the bootstrap-t over clusters (Efron 1981; Davison and Hinkley 1997, Bootstrap Methods and their
  Application, 2.4 and 3.8), which allows for skewness and for few clusters;
- where fewer than `FEWEST_TO_RESAMPLE` clusters differ between the models: Student's, with their number less one as
  its degrees of freedom.

P-values against the margin are these intervals turned around: the smallest level at which the interval excludes it.
Functions take arrays; what the numbers mean is eval/metrics.py's business.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from eval.shares import design_effect, mcnemar_p, pass_chance_of_share, tango_limits

FEWEST_TO_RESAMPLE = 10
"""Resampling fewer clusters finds few different means; their interval is Student's."""
DRAWS = 100_000
"""Behind the chance to pass where it has no closed form; its error is below 0.2 points."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


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


@dataclass(frozen=True)
class _Contrast:
    """mean(candidate) - sign * mean(baseline), with its limits at any quantile of one tail."""

    difference: float
    deviation: float
    residuals: np.ndarray
    limits: Callable[[float], Interval]
    """Of the chance in each tail."""
    chance: Callable[[float, float], float]
    """That a limit with this chance in its tail clears a margin this far away, if the true difference is zero."""


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
    contrast = _contrast(b, c, index, sizes, 1.0, resamples, seed, is_share)
    change = c - b
    if is_share and len(sizes) == len(b) and np.isin(change, (-1, 0, 1)).all():
        p_change = mcnemar_p(int((change > 0).sum()), int((change < 0).sum()))
    else:
        p_change = _exchange_p(b, c, index, lambda x, y, axis=-1: x.sum(axis) - y.sum(axis), resamples, seed)
    tail = (1 - confidence_level) / 2
    interval = contrast.limits(tail)
    chance = None if against is None else contrast.chance(abs(against), tail)
    return _result(
        b, c, len(sizes), contrast.difference, interval, contrast.deviation, p_change, against, chance,
        contrast.limits, resamples,
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
    minus = _contrast(b, c, index, sizes, 1.0, resamples, seed, is_share)
    plus = _contrast(b, c, index, sizes, -1.0, resamples, seed, is_share)

    def limits(tail: float) -> Interval:
        one, other = minus.limits(tail), plus.limits(tail)
        p, q, r, s = one.low, one.high, other.low, other.high
        return Interval(max(min(p, r), min(-q, -s)), max(min(q, s), min(-p, -r)))

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
        widths = stats.t.isf(tail, len(sizes) - 1) * np.sqrt(np.diag(covariance))
        high = np.maximum(np.minimum(x + widths[0], y + widths[1]), np.minimum(widths[0] - x, widths[1] - y))
        chance = float((high <= against).mean())
    return _result(
        b, c, len(sizes), abs(float(c.mean())) - abs(float(b.mean())), limits(tail), minus.deviation,
        _exchange_p(b, c, index, distance, resamples, seed), against, chance, limits, resamples,
    )  # fmt: skip


def _result(
    b: np.ndarray, c: np.ndarray, clusters: int, difference: float, interval: Interval, deviation: float,
    p_change: float, against: float | None, chance: float | None, limits: Callable[[float], Interval], resamples: int,
) -> PairedDifference:  # fmt: skip
    p_above = p_below = None
    if against is not None:
        smallest = 1 / (resamples + 1)
        p_above = _smallest_tail(lambda tail: limits(tail).low > against, smallest)
        p_below = _smallest_tail(lambda tail: limits(tail).high < against, smallest)
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


def _contrast(
    b: np.ndarray, c: np.ndarray, index: np.ndarray, sizes: np.ndarray, sign: float, resamples: int, seed: int,
    is_share: bool,
) -> _Contrast:  # fmt: skip
    change = c - sign * b
    count = len(sizes)
    sums = np.bincount(index, weights=change)
    difference = float(sums.sum() / sizes.sum())
    residuals = (sums - difference * sizes) / sizes.mean()
    deviation = float(residuals.std(ddof=1))

    def chance_of_mean(margin: float, tail: float) -> float:
        if deviation == 0:
            return float(margin >= 0)
        return float(TTestPower().power(margin / deviation, count, tail, alternative="larger"))

    if is_share and np.isin(change, (-1, 0, 1)).all():
        gained, lost = int((change > 0).sum()), int((change < 0).sum())
        effect = design_effect(deviation**2 / count, gained, lost, len(change))
        # copies of clusters: where nothing varies, as many items as clusters are sure to be independent
        effect = len(change) / count if deviation <= 1e-12 else effect
        items = len(change) / effect
        deviation = deviation if deviation > 1e-12 else math.sqrt(1 / count)  # as if one cluster had differed
        is_clustered = count < len(change)

        def limits_of_share(tail: float) -> Interval:
            quantile = stats.t.isf(tail, count - 1) if is_clustered else stats.norm.isf(tail)
            return Interval(*tango_limits(gained / effect, lost / effect, items, float(quantile)))

        def chance_of_share(margin: float, tail: float) -> float:
            differing = max((gained + lost) / len(change), 1 / count)
            return pass_chance_of_share(differing, max(round(items), 2), margin, tail)

        return _Contrast(difference, deviation, residuals, limits_of_share, chance_of_share)
    if np.ptp(residuals) <= 1e-12:
        exact = Interval(difference, difference)
        return _Contrast(
            difference, 0.0, residuals, lambda tail: exact, lambda margin, tail: float(margin >= 0)
        )
    error = deviation / math.sqrt(count)
    differing = int((np.bincount(index, weights=np.abs(change)) > 0).sum())
    if differing < FEWEST_TO_RESAMPLE:

        def limits_of_student(tail: float) -> Interval:
            half = float(stats.t.isf(tail, max(differing - 1, 1))) * error
            return Interval(difference - half, difference + half)

        return _Contrast(difference, deviation, residuals, limits_of_student, chance_of_mean)
    ratios = _studentised(sums, sizes, difference, resamples, seed)

    def limits_of_bootstrap(tail: float) -> Interval:
        low, high = np.quantile(ratios, (tail, 1 - tail), method="weibull")
        return Interval(difference - float(high) * error, difference - float(low) * error)

    return _Contrast(difference, deviation, residuals, limits_of_bootstrap, chance_of_mean)


def _studentised(
    sums: np.ndarray, sizes: np.ndarray, difference: float, resamples: int, seed: int
) -> np.ndarray:
    """(resampled mean - mean) / resampled standard error, for each resample of clusters; sorted."""
    chance = np.random.default_rng(seed)
    count = len(sums)
    ratios = []
    for start in range(0, resamples, 500):
        drawn = chance.integers(0, count, (min(500, resamples - start), count))
        s, w = sums[drawn], sizes[drawn]
        mean = s.sum(axis=1) / w.sum(axis=1)
        residuals = (s - mean[:, None] * w) / w.mean(axis=1)[:, None]
        error = residuals.std(axis=1, ddof=1) / math.sqrt(count)
        # a resample of one cluster's copies has no error; the difference's sign then says which tail it is in
        ratios.append(np.clip((mean - difference) / np.maximum(error, 1e-12), -1e3, 1e3))
    return np.sort(np.concatenate(ratios))


def _exchange_p(
    b: np.ndarray, c: np.ndarray, index: np.ndarray, statistic: Callable[..., np.ndarray], resamples: int, seed: int
) -> float:  # fmt: skip
    """The p-value of "the models could be swapped in any cluster"; exact where there are few enough clusters."""
    test = stats.permutation_test(
        (np.bincount(index, weights=c), np.bincount(index, weights=b)), statistic, permutation_type="samples",
        vectorized=True, n_resamples=resamples, batch=500, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(test.pvalue)


def _smallest_tail(excludes: Callable[[float], bool], smallest: float) -> float:
    """The smallest chance in a tail at which the limit excludes a value; 1 where not even 0.5 does."""
    low, high = math.log(smallest), math.log(0.4999)
    if not excludes(math.exp(high)):
        return 1.0
    if excludes(math.exp(low)):
        return smallest
    for _ in range(25):
        middle = (low + high) / 2
        if excludes(math.exp(middle)):
            high = middle
        else:
            low = middle
    return math.exp(high)


def wilson_interval(successes: int, items: int, confidence_level: float = 0.95) -> Interval:
    """Wilson's interval of a share (Wilson 1927); `items` independent items, of which `successes` have it."""
    low, high = proportion_confint(successes, items, alpha=1 - confidence_level, method="wilson")
    return Interval(float(low), float(high))
