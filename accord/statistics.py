"""Intervals and tests for the figures of feedback: what is resampled is always all that concerns one prompt.

Rankings of one prompt, its pairs, and its duplicates are not independent, so whole prompts are drawn (Davison and
Hinkley 1997, Bootstrap Methods and their Application, 3.8). Every figure bootstrapped here is a function of sums over
prompts, which makes all resamples one matrix product.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Num
from scipy.stats import norm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

CONFIDENCE = 0.95
RESAMPLES = 1_999
FEWEST_CLUSTERS = 10
"""Resampling fewer finds few different values, so there is no interval."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval; None where too little is known for one. `items` is what it is made of."""

    value: float
    low: float | None
    high: float | None
    items: int


class Bootstrap:
    """Resamples of the same clusters for many figures.

    The bias-corrected and accelerated interval (BCa: Efron 1987, Better Bootstrap Confidence Intervals).
    """

    def __init__(self, clusters: int, seed: int = 0) -> None:
        """Draw `RESAMPLES` resamples of so many clusters: how often each is in each."""
        self.clusters = max(1, clusters)
        even = np.full(self.clusters, 1 / self.clusters)
        self.times = np.random.default_rng(seed).multinomial(self.clusters, even, RESAMPLES).astype(float)

    def estimate(
        self,
        contributions: Num[np.ndarray, "clusters figures"],
        statistic: Callable[[np.ndarray], np.ndarray],
        items: int,
    ) -> Estimate | None:
        """A statistic of summed contributions, with its interval.

        Args:
            contributions: what each cluster adds [clusters, F].
            statistic: takes sums [..., F] and gives values [...], NaN where it is undefined.
            items: of what the figure is made, for the record.

        Returns:
            The estimate, or None where the statistic is undefined.
        """
        total = contributions.sum(axis=0)
        with np.errstate(all="ignore"):
            value = float(statistic(total))
            if not np.isfinite(value):
                return None
            involved = contributions.any(axis=1)
            if involved.sum() < FEWEST_CLUSTERS:
                return Estimate(value, None, None, items)
            resampled = statistic(self.times @ contributions)
            left_out = statistic(total - contributions[involved])
        resampled, left_out = resampled[np.isfinite(resampled)], left_out[np.isfinite(left_out)]
        if np.ptp(resampled) < 1e-12:
            return Estimate(value, value, value, items)
        pull = left_out.mean() - left_out
        spread = (pull**2).sum() ** 1.5
        acceleration = (pull**3).sum() / (6 * spread) if spread > 0 else 0.0
        below = ((resampled < value).mean() + (resampled <= value).mean()) / 2
        bias = norm.ppf(np.clip(below, 1 / len(resampled), 1 - 1 / len(resampled)))
        limits = bias + norm.ppf([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        quantiles = np.quantile(resampled, norm.cdf(bias + limits / (1 - acceleration * limits)))
        return Estimate(value, float(quantiles[0]), float(quantiles[1]), items)


def wilson(share: float, items: int) -> Estimate:
    """A share of so many independent items with Wilson's (1927) interval."""
    low, high = proportion_confint(share * items, items, alpha=1 - CONFIDENCE, method="wilson")
    return Estimate(share, float(low), float(high), items)


def two_sided_poisson_binomial(successes: int, probabilities: Sequence[float]) -> float:
    """The chance of a count at least as extreme, twice the smaller tail, in trials of these probabilities.

    The distribution of the count is the convolution of the trials', exactly.
    """
    distribution: np.ndarray = np.ones(1)
    for p in probabilities:
        distribution = np.convolve(distribution, [1 - p, p])
    lower, upper = distribution[: successes + 1].sum(), distribution[successes:].sum()
    return float(min(1.0, 2 * min(lower, upper)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The same p-values after Holm's (1979) correction for their number; None stays None."""
    known = [p for p in p_values if p is not None]
    corrected = iter(multipletests(known, method="holm")[1].tolist() if known else [])
    return [None if p is None else float(next(corrected)) for p in p_values]
