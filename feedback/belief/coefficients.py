"""Coefficients of agreement: Krippendorff's alpha, Cohen's kappa and Kendall's W.

Alpha and kappa are functions of sums over units, in the last axes of an array, so that all resamples of a bootstrap
are computed at once. (The package `krippendorff` has the GPL, so it is an oracle of the tests where it is installed.)

Krippendorff 2011, "Computing Krippendorff's alpha-reliability". Cohen 1960, "A coefficient of agreement for nominal
scales". Kendall and Babington Smith 1939, "The problem of m rankings".
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Num
from scipy.stats import rankdata


def alpha(
    coincidences: Num[np.ndarray, "*resamples values values"], ordinal: bool
) -> Float[np.ndarray, "*resamples"]:
    """Krippendorff's alpha of matrices of coincidences [..., V, V]: 1 - D_observed / D_expected.

    The ordinal difference of values c < k is the square of sum n_g (g from c to k) - (n_c + n_k) / 2, the nominal one
    is 1. NaN where all values are the same.
    """
    n = coincidences.sum(axis=-1)
    total = n.sum(axis=-1)
    if ordinal:
        middle = n.cumsum(axis=-1) - n / 2
        difference = (middle[..., :, None] - middle[..., None, :]) ** 2
    else:
        difference = np.broadcast_to(1 - np.eye(n.shape[-1]), coincidences.shape)
    observed = (coincidences * difference).sum(axis=(-2, -1)) / total
    expected = (n[..., :, None] * n[..., None, :] * difference).sum(axis=(-2, -1)) / (total * (total - 1))
    return np.asarray(1 - observed / np.where(expected > 0, expected, np.nan))


def coincidences(values: Sequence[int], count: int) -> Float[np.ndarray, "{count} {count}"]:
    """What one unit adds to the matrix: each ordered pair of its values with the weight 1 / (values - 1)."""
    n = np.bincount(values, minlength=count).astype(float)
    return np.zeros((count, count)) if n.sum() < 2 else (np.outer(n, n) - np.diag(n)) / (n.sum() - 1)


def cohens_kappa(
    confusion: Num[np.ndarray, "*resamples values values"],
) -> Float[np.ndarray, "*resamples"]:
    """Cohen's kappa of contingency tables [..., V, V]; NaN where chance alone gives full agreement."""
    share = confusion / confusion.sum(axis=(-2, -1), keepdims=True)
    observed = np.trace(share, axis1=-2, axis2=-1)
    expected = (share.sum(axis=-1) * share.sum(axis=-2)).sum(axis=-1)
    return np.asarray((observed - expected) / np.where(expected < 1, 1 - expected, np.nan))


def kendalls_w(rankings: Sequence[Sequence[int]]) -> float:
    """Kendall's W of m rankings of the same k responses, corrected for ties; NaN where all rankings tie everything.

    W = 12 S / (m^2 (k^3 - k) - m sum (t^3 - t)) with S the squared deviations of the responses' rank sums, and t the
    sizes of the groups of ties.
    """
    ranks = np.array([rankdata(each) for each in rankings])
    m, k = ranks.shape
    deviations = ranks.sum(axis=0) - m * (k + 1) / 2
    ties = sum(float(t) ** 3 - t for each in ranks for t in np.unique(each, return_counts=True)[1])
    possible = m**2 * (k**3 - k) - m * ties
    return float(12 * (deviations**2).sum() / possible) if possible > 0 else float("nan")


def ratio(sums: Num[np.ndarray, "*resamples 2"]) -> Float[np.ndarray, "*resamples"]:
    """Of (numerator, denominator) in the last axis."""
    return np.asarray(sums[..., 0] / np.where(sums[..., 1] > 0, sums[..., 1], np.nan))
