"""The gate's statistics: paired differences with intervals, power, and how many items would decide.

Both models are measured on the same items, and the interval is about the difference of their means. Items that
share a prompt or a sentence template are not independent, so whole clusters are resampled (Davison and Hinkley
1997, Bootstrap Methods and their Application, 3.8): SciPy's BCa bootstrap over (sum, size) of every cluster, at a
level that makes up for few clusters.
Everything else is statsmodels'. Functions take arrays; what the numbers mean is eval/metrics.py's business.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

ALPHA = 0.05
POWER = 0.8
FEWEST_TO_RESAMPLE = 10
"""Resampling fewer clusters finds few different means; their interval is Student's."""
MOST_CLUSTERS = 1_000_000
"""Where more would be needed to decide, no number is given: it would be no help."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """How much a mean changes from baseline to candidate, in the metric's units.

    `deviation` is the standard deviation of the clusters' differences: the difference's standard error is
    deviation / sqrt(clusters).
    """

    baseline: float
    candidate: float
    difference: float
    low: float
    high: float
    deviation: float
    items: int
    clusters: int


def paired_difference(
    baseline: Sequence[float],
    candidate: Sequence[float],
    clusters: Sequence[str],
    confidence_level: float = 0.95,
    resamples: int = 9_999,
    seed: int = 0,
    is_share: bool = False,
) -> PairedDifference:
    """mean(candidate) - mean(baseline) over the same items, with its interval.

    Args:
        baseline: one value for each item.
        candidate: the values for the same items in the same order.
        clusters: for each item, the key of its cluster.
        confidence_level: of the two-sided interval.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        is_share: the values' means are shares. Where no item differs between the models, the bootstrap would claim
            certainty; the interval then comes from the largest share of differing clusters that still leaves a
            (1 - confidence_level) / 2 chance to see none: the exact form of the "rule of three".

    Raises:
        ValueError: fewer than two clusters, or lists of different lengths.
    """
    return _paired(
        np.asarray(baseline, float), np.asarray(candidate, float), clusters, 1.0, confidence_level, resamples, seed,
        is_share,
    )  # fmt: skip


def paired_difference_of_distances(
    baseline: Sequence[float],
    candidate: Sequence[float],
    clusters: Sequence[str],
    confidence_level: float = 0.95,
    resamples: int = 9_999,
    seed: int = 0,
    is_share: bool = False,
) -> PairedDifference:
    """|mean(candidate)| - |mean(baseline)|: how much further from zero the candidate is, with its interval.

    The absolute value has a corner at zero, where the bootstrap fails (Andrews 2000, Econometrica 68). So the
    interval is made from those of two smooth contrasts, c - b in [p, q] and c + b in [r, s]. As
    |c| - |b| = max over signs u of min over signs v of (u c - v b), replacing each u c - v b by its limit gives

        low  = max(min(p, r), min(-q, -s))        high = max(min(q, s), min(-p, -r))

    Away from zero the interval is that of the one contrast that applies. At worst (baseline exactly zero) either
    limit misses with twice its nominal rate: 5% for the limits of a two-sided 95% interval. `deviation` is that of
    c - b; the other values of the result are |means| and their difference.
    """
    b, c = np.asarray(baseline, float), np.asarray(candidate, float)
    options = (confidence_level, resamples, seed, is_share)
    minus = _paired(b, c, clusters, 1.0, *options)
    plus = _paired(b, c, clusters, -1.0, *options)
    p, q, r, s = minus.low, minus.high, plus.low, plus.high
    return PairedDifference(
        baseline=minus.baseline,
        candidate=minus.candidate,
        difference=abs(minus.candidate) - abs(minus.baseline),
        low=max(min(p, r), min(-q, -s)),
        high=max(min(q, s), min(-p, -r)),
        deviation=minus.deviation,
        items=minus.items,
        clusters=minus.clusters,
    )


def _paired(
    baseline: np.ndarray, candidate: np.ndarray, clusters: Sequence[str], sign: float,
    confidence_level: float, resamples: int, seed: int, is_share: bool,
) -> PairedDifference:  # fmt: skip
    """The interval of mean(candidate) - sign * mean(baseline)."""
    if not len(baseline) == len(candidate) == len(clusters):
        raise ValueError("baseline, candidate and clusters must have one value for each item")
    _, index = np.unique(np.asarray(clusters, str), return_inverse=True)
    sizes = np.bincount(index).astype(float)
    if len(sizes) < 2:
        raise ValueError("an interval needs at least two clusters")
    change = candidate - sign * baseline
    sums = np.bincount(index, weights=change)
    difference = float(sums.sum() / sizes.sum())
    residuals = (sums - difference * sizes) / sizes.mean()
    deviation = float(residuals.std(ddof=1))
    if np.ptp(residuals) > 1e-12 and len(sizes) >= FEWEST_TO_RESAMPLE:
        interval = _bootstrap(sums, sizes, confidence_level, resamples, seed)
    elif np.ptp(residuals) > 1e-12:
        t = float(stats.t.isf((1 - confidence_level) / 2, len(sizes) - 1))
        half = t * deviation / math.sqrt(len(sizes))
        interval = Interval(difference - half, difference + half)
    elif is_share:
        unseen = 1 - ((1 - confidence_level) / 2) ** (1 / len(sizes))
        interval = Interval(difference - unseen, difference + unseen)
    else:
        interval = Interval(difference, difference)
    return PairedDifference(
        baseline=float(baseline.mean()), candidate=float(candidate.mean()), difference=difference,
        low=interval.low, high=interval.high, deviation=deviation, items=len(change), clusters=len(sizes),
    )  # fmt: skip


def _bootstrap(
    sums: np.ndarray, sizes: np.ndarray, confidence_level: float, resamples: int, seed: int
) -> Interval:
    def mean(sums: np.ndarray, sizes: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(sums.sum(axis=axis) / sizes.sum(axis=axis))

    level = _expanded(confidence_level, len(sums))
    for method in ("BCa", "percentile"):  # BCa is undefined (NaN) where every jackknife value is the same
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            limits = stats.bootstrap(
                (sums, sizes), mean, paired=True, n_resamples=resamples, batch=1_000, method=method,
                confidence_level=level, rng=np.random.default_rng(seed),
            ).confidence_interval  # fmt: skip
        if math.isfinite(limits.low) and math.isfinite(limits.high):
            break
    return Interval(float(limits.low), float(limits.high))


def _expanded(confidence_level: float, clusters: int) -> float:
    """The level at which the bootstrap's interval of a mean is as wide as Student's.

    Resampling finds the normal quantile and a standard deviation without Bessel's correction, so its intervals are
    too narrow for few clusters. 1 - 2 Phi(-sqrt(n / (n - 1)) t) makes up for both (Hesterberg 2015, The American
    Statistician 69, "expanded" intervals): 0.955 in place of 0.95 for 80 clusters, and 0.962 for 32.
    """
    t = stats.t.isf((1 - confidence_level) / 2, clusters - 1)
    return float(1 - 2 * stats.norm.sf(math.sqrt(clusters / (clusters - 1)) * t))


def wilson_interval(successes: int, items: int, confidence_level: float = 0.95) -> Interval:
    """Wilson's interval of a share (Wilson 1927); `items` independent items, of which `successes` have it."""
    low, high = proportion_confint(successes, items, alpha=1 - confidence_level, method="wilson")
    return Interval(float(low), float(high))


def minimum_detectable_effect(
    deviation: float, clusters: int, alpha: float = ALPHA, power: float = POWER
) -> float:
    """The smallest true difference that a paired two-sided t-test on this many clusters finds with this power."""
    if deviation == 0:
        return 0.0
    return deviation * float(
        TTestPower().solve_power(effect_size=None, nobs=clusters, alpha=alpha, power=power)
    )


def clusters_to_decide(
    distance: float, deviation: float, alpha: float = ALPHA, power: float = POWER
) -> int | None:
    """How many clusters bring an interval clear of the margin, with this power, if the difference stays as it is.

    Args:
        distance: between the observed difference and the margin, in the metric's units.
        deviation: of the clusters' differences.
        alpha: 1 minus the confidence level of the two-sided interval.
        power: the wanted chance.

    Returns:
        The number, or None above `MOST_CLUSTERS`: the difference sits on the margin, and data hardly help.
    """
    if deviation == 0:
        return 2
    effect = abs(distance) / deviation
    test = TTestPower()
    if effect == 0 or test.power(effect, MOST_CLUSTERS, alpha / 2, alternative="larger") < power:
        return None
    # statsmodels' root finder fails on steep power curves; power grows with the number, so halving finds it
    low, high = 1, MOST_CLUSTERS
    while high - low > 1:
        middle = (low + high) // 2
        if test.power(effect, middle, alpha / 2, df=max(middle - 1, 1), alternative="larger") >= power:
            high = middle
        else:
            low = middle
    return high
