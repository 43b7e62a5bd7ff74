"""Intervals of a difference of means over clusters of items. Three kinds of data need three methods:

- shares: Tango's score interval (eval/shares.py), over counts divided by the clusters' design effect;
- other means: the bootstrap-t over clusters (Efron 1981; Davison and Hinkley 1997, Bootstrap Methods and their
  Application, 2.4 and 3.8), which allows for skewness and for clusters of unequal sizes;
- where fewer than `FEWEST_TO_RESAMPLE` clusters differ between the models: Student's, with their number less one as
  its degrees of freedom.

benchmarks/gate_simulation.py measures how often they hold the truth.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.power import TTestPower

from eval.shares import design_effect, pass_chance_of_share, tango_limits, tango_statistic

FEWEST_TO_RESAMPLE = 10
"""Resampling fewer clusters finds few different means; their interval is Student's."""

MOST_ERRORS = 6.0
"""No limit of the bootstrap-t is farther from the difference than so many standard errors."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Contrast:
    """mean(candidate) - sign * mean(baseline), in the metric's units, with its limits at any chance in each tail."""

    difference: float
    deviation: float
    """Of the clusters' differences."""
    residuals: np.ndarray
    """One for each cluster; their standard deviation is `deviation`."""
    limits: Callable[[float], Interval]
    """Of the chance in each tail."""
    tails: Callable[[float], tuple[float, float]]
    """Of a difference: the smallest chances in a tail at which the low limit is above it, and the high one below it."""
    chance: Callable[[float, float], float]
    """Of a margin (negative or positive) and the chance in a tail: that the limit clears the margin if the true
    difference is zero."""
    width: Callable[[float, float], float]
    """Of a margin and the chance in a tail: how far from the difference the limit is, where it is near the margin."""


def contrast_of(
    baseline: np.ndarray, candidate: np.ndarray, index: np.ndarray, sizes: np.ndarray, sign: float, resamples: int,
    seed: int, is_share: bool,
) -> Contrast:  # fmt: skip
    """The contrast by the method that fits the values.

    Args:
        baseline: one value for each item.
        candidate: the values for the same items in the same order.
        index: for each item the number of its cluster.
        sizes: for each cluster how many items it has.
        sign: 1 for the difference of the means, -1 for their sum.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        is_share: whether every item is a yes or a no; one whose two values cannot be that is treated as a number.
    """
    change = candidate - sign * baseline
    sums = np.bincount(index, weights=change)
    difference = float(sums.sum() / sizes.sum())
    residuals = (sums - difference * sizes) / sizes.mean()
    if is_share and np.isin(change, (-1, 0, 1)).all():
        return _of_shares(change, difference, residuals)
    if np.ptp(residuals) <= 1e-12:
        exact = Interval(difference, difference)
        return Contrast(
            difference, 0.0, residuals, lambda _: exact, lambda a: (float(exact.low <= a), float(exact.high >= a)),
            lambda *_: 1.0, lambda *_: 0.0,
        )  # fmt: skip
    differing = int((np.bincount(index, weights=np.abs(change)) > 0).sum())
    if differing < FEWEST_TO_RESAMPLE:
        return _by_student(difference, residuals, max(differing - 1, 1))
    return _by_bootstrap(difference, residuals, sums, sizes, resamples, seed)


def _of_shares(change: np.ndarray, difference: float, residuals: np.ndarray) -> Contrast:
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    count, deviation = len(residuals), float(residuals.std(ddof=1))
    if deviation > 1e-12:
        effect = design_effect(deviation**2 / count, gained, lost, len(change))
    else:  # nothing varies: as many items as clusters are sure to be independent, and one of them could have differed
        effect, deviation = len(change) / count, math.sqrt(1 / count)
    b, c, items = gained / effect, lost / effect, len(change) / effect

    def quantile(tail: float) -> float:
        return float(stats.t.isf(tail, count - 1) if count < len(change) else stats.norm.isf(tail))

    def tails(against: float) -> tuple[float, float]:
        statistic = float(tango_statistic(b, c, items, min(max(against, -1 + 1e-9), 1 - 1e-9)))
        law = stats.t(count - 1) if count < len(change) else stats.norm()
        return float(law.sf(statistic)), float(law.cdf(statistic))

    def chance(margin: float, tail: float) -> float:
        differing = max((gained + lost) / len(change), 1 / count)
        alpha = float(stats.norm.sf(quantile(tail)))
        return pass_chance_of_share(differing, max(round(items), 2), abs(margin), alpha)

    def width(margin: float, tail: float) -> float:
        margin = min(max(abs(margin), 1e-6), 1 - 1e-6)
        half = max((b + c) / 2, 0.5)
        return quantile(tail) * margin / -float(tango_statistic(half, half, items, margin))

    return Contrast(
        difference, deviation, residuals, lambda tail: Interval(*tango_limits(b, c, items, quantile(tail))), tails,
        chance, width,
    )  # fmt: skip


def _by_student(difference: float, residuals: np.ndarray, freedom: int) -> Contrast:
    deviation = float(residuals.std(ddof=1))
    error = deviation / math.sqrt(len(residuals))

    def width(_: float, tail: float) -> float:
        return float(stats.t.isf(tail, freedom)) * error

    def limits(tail: float) -> Interval:
        return Interval(difference - width(0, tail), difference + width(0, tail))

    def tails(against: float) -> tuple[float, float]:
        ratio = (difference - against) / error
        return float(stats.t.sf(ratio, freedom)), float(stats.t.cdf(ratio, freedom))

    def chance(margin: float, tail: float) -> float:
        # the power of a t-test over `freedom` + 1 clusters with the same standard error
        effect = abs(margin) / (error * math.sqrt(freedom + 1))
        return float(TTestPower().power(effect, freedom + 1, tail, alternative="larger"))

    return Contrast(difference, deviation, residuals, limits, tails, chance, width)


def _by_bootstrap(
    difference: float, residuals: np.ndarray, sums: np.ndarray, sizes: np.ndarray, resamples: int, seed: int
) -> Contrast:
    deviation, count = float(residuals.std(ddof=1)), len(sums)
    error = deviation / math.sqrt(count)
    random = np.random.default_rng(seed)
    parts = []
    for start in range(0, resamples, 500):
        drawn = random.integers(0, count, (min(500, resamples - start), count))
        s, w = sums[drawn], sizes[drawn]
        mean = s.sum(axis=1) / w.sum(axis=1)
        spread = ((s - mean[:, None] * w) / w.mean(axis=1)[:, None]).std(axis=1, ddof=1)
        parts.append((mean - difference, spread / math.sqrt(count)))
    changes, errors = (np.concatenate(each) for each in zip(*parts, strict=True))
    # of nearly equal clusters, some resamples have hardly any error, or none, and would reach beyond all reason
    ratios = np.sort(np.clip(changes / np.maximum(errors, 1e-12), -MOST_ERRORS, MOST_ERRORS))

    def ends(tail: float) -> tuple[float, float]:
        low, high = np.quantile(ratios, (tail, 1 - tail), method="weibull")
        return float(low), float(high)

    def limits(tail: float) -> Interval:
        low, high = ends(tail)
        return Interval(difference - high * error, difference - low * error)

    def tails(against: float) -> tuple[float, float]:
        # the inverse of `limits`, and never below 1 / (resamples + 1)
        places = np.arange(1, resamples + 1) / (resamples + 1)
        share = float(np.interp((difference - against) / error, ratios, places))
        return 1 - share, share

    def chance(margin: float, tail: float) -> float:
        # each resample is an evaluation whose true difference is zero, with the limit it would have had
        low, high = ends(tail)
        cleared = changes - high * errors >= margin if margin < 0 else changes - low * errors <= margin
        return float(cleared.mean())

    def width(_: float, tail: float) -> float:
        return float(stats.t.isf(tail, count - 1)) * error

    return Contrast(difference, deviation, residuals, limits, tails, chance, width)
