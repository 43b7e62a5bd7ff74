"""Means over clusters of items: limits that allow for skewness, unequal clusters, and clusters that hardly differ.

A mean is the sum over clusters of their items' values, divided by the number of items. With e_i the sum of cluster i
less its size times the mean, W the number of items and h_i cluster i's share of them:

- the standard error is the jackknife's, sqrt(sum (e_i / (1 - h_i))^2) / W, which grows where single clusters weigh much
  (MacKinnon and White 1985, Journal of Econometrics 29);
- Student's quantile has the degrees of freedom of that variance by Satterthwaite's rule, from the spread of the squared
  e_i or from that of the squared sizes, whichever are fewer, and at most the number of clusters less one;
- the quantile is moved for skewness by Hall's transformation (1992, Journal of the Royal Statistical Society B 54).

All functions take many evaluations at once, one a row; benchmarks/gate_simulation.py measures how often the limits hold
the truth.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import special

FEWEST_TO_KNOW_SIZE = 10
"""Where fewer clusters differ, and others do not, they do not show how large a difference can be."""
FEWEST_TO_KNOW_SKEWNESS = 30
"""Where fewer clusters differ, and others do not, their skewness may move a limit outwards only."""
MOST_SKEWNESS = 2.0
"""Skewness moves no limit by more than so many standard errors: Hall's cube root is steep where it crosses zero."""
SIMULATED = 4_000
"""Evaluations behind a chance to pass; its standard error is at most 1.8 points (1.4 at 80%)."""


class Fit(NamedTuple):
    """What the limits of a mean are made of; each has one value for each evaluation."""

    mean: np.ndarray
    error: np.ndarray
    """The standard error."""
    skewness: np.ndarray
    """A third of the mean's own skewness: 0 for symmetric values, and smaller the more clusters there are."""
    freedom: np.ndarray
    """Degrees of freedom."""
    moved: np.ndarray
    """Clusters whose mean is not the commonest."""


def fit(
    sums: Float[np.ndarray, "*evaluations clusters"],
    sizes: Float[np.ndarray, "*evaluations clusters"],
    moved: Bool[np.ndarray, "*evaluations clusters"],
) -> Fit:
    """The mean, and how well it is known.

    Args:
        sums: of each cluster's values; the last axis is over clusters.
        sizes: of each cluster, in items.
        moved: for each cluster whether its mean is not the commonest.
    """
    items = sizes.sum(-1, keepdims=True)
    mean = sums.sum(-1, keepdims=True) / items
    errors = (sums - mean * sizes) / (items - sizes)
    squares, weights = errors * errors, sizes * sizes
    variance = squares.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        skewness = np.nan_to_num((squares * errors).sum(-1) / variance**1.5 / 3)
        # for normal values the fourth powers add up to 3 times the squares' squares
        by_spread = np.nan_to_num(3 * variance**2 / (squares * squares).sum(-1), nan=np.inf)
    by_size = weights.sum(-1) ** 2 / (weights * weights).sum(-1)
    freedom = np.clip(np.minimum(by_spread, by_size), 2, sums.shape[-1]) - 1
    return Fit(mean[..., 0], np.sqrt(variance), skewness, freedom, moved.sum(-1))


def limits(
    known: Fit, clusters: int, spread: float, tail: float
) -> tuple[Float[np.ndarray, "*evaluations"], Float[np.ndarray, "*evaluations"]]:
    """The low and the high limit of the true mean.

    Args:
        known: from `fit`.
        clusters: how many there are.
        spread: the largest difference that a cluster can have, in the values' units.
        tail: the chance that either limit misses.

    Where fewer than `FEWEST_TO_KNOW_SIZE` clusters differ, an unseen kind of cluster of share p would have been missed
    with the chance (1 - p)^clusters. So p may be up to 1 - tail^(1/clusters), and the limits are at least p times
    `spread` from the mean (the rule of three, Hanley and Lippman-Hand 1983, for any tail).
    """
    quantile = special.stdtrit(known.freedom, 1 - tail)
    below, above = (skewed_quantile(known.skewness, sign * quantile) for sign in (-1, 1))
    still = known.moved < clusters
    outwards = still & (known.moved < FEWEST_TO_KNOW_SKEWNESS)
    below = np.where(outwards, np.minimum(below, -quantile), below)
    above = np.where(outwards, np.maximum(above, quantile), above)
    unseen = np.where(
        still & (known.moved < FEWEST_TO_KNOW_SIZE), spread * (1 - tail ** (1 / clusters)), -np.inf
    )
    return (
        np.asarray(known.mean - np.maximum(above * known.error, unseen)),
        np.asarray(known.mean + np.maximum(-below * known.error, unseen)),
    )


def skewed_quantile(
    skewness: Float[np.ndarray, "*#evaluations"] | float, quantile: Float[np.ndarray, "*#evaluations"] | float
) -> Float[np.ndarray, "*evaluations"]:
    """The quantile of (mean - truth) / error, from that of the same ratio without skewness.

    Hall's transformation g(t) = t + k t^2 + k^2 t^3 / 3 + k / 2 makes the ratio symmetric, up to terms of the order of
    1 / clusters, where 3 k is the mean's skewness; this is the t at which g is `quantile`.
    """
    k = np.where(np.abs(skewness) < 1e-6, 1e-6, skewness)
    turned = (np.cbrt(1 + 3 * k * (quantile - k / 2)) - 1) / k
    return np.asarray(np.clip(turned, quantile - MOST_SKEWNESS, quantile + MOST_SKEWNESS))


def simulate(
    sums: Float[np.ndarray, " clusters"],
    sizes: Float[np.ndarray, " clusters"],
    moved: Bool[np.ndarray, " clusters"],
    seed: int,
) -> tuple[Fit, Fit]:
    """Fits of evaluations like this one, whose true mean is zero: resampled from it, and each of those once more.

    The second shows how far resampling falls short: a sample understates its own skewness and the error of its
    standard error, and a sample of the sample does so again (Hall 1992, The Bootstrap and Edgeworth Expansion, 1.4).
    """
    random, count = np.random.default_rng(seed), len(sums)
    once, twice = [], []
    for start in range(0, SIMULATED, 250):
        rows = min(250, SIMULATED - start)
        drawn = random.integers(0, count, (rows, count))
        s, w, m = _around_zero(sums, sizes)[drawn], sizes[drawn], moved[drawn]
        once.append(fit(s, w, m))
        again = random.integers(0, count, (rows, count))
        s, w, m = (np.take_along_axis(each, again, 1) for each in (_around_zero(s, w), w, m))
        twice.append(fit(s, w, m))
    first, second = (
        Fit(*(np.concatenate(each) for each in zip(*fits, strict=True))) for fits in (once, twice)
    )
    return first, second


def _around_zero(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The clusters' sums about a mean of zero, enlarged by what fitting the mean took from their variance."""
    items = sizes.sum(-1, keepdims=True)
    errors = (sums - sums.sum(-1, keepdims=True) / items * sizes) / np.sqrt(1 - sizes / items)
    return np.asarray(errors - errors.sum(-1, keepdims=True) / items * sizes)
