"""Intervals and tests for the figures of feedback: what is resampled is always all that concerns one prompt.

Rankings of one prompt, its pairs, and its duplicates are not independent, so whole prompts are drawn (Davison and
Hinkley 1997, Bootstrap Methods and their Application, 3.8). Every figure bootstrapped here is a function of sums over
prompts, which makes all resamples one matrix product.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.special import ndtr, ndtri
from scipy.stats import binom
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

CONFIDENCE = 0.95
RESAMPLES = 1_999
BLOCK_OF_RESAMPLES, BLOCK_OF_CLUSTERS = 100, 4_000
"""Worked on at a time, so that little more than `times` is in memory."""
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
        chance = np.random.default_rng(seed)
        # a byte a number, as none is above 255: of many clusters, each is drawn a few times
        self.times = np.empty((self.clusters, RESAMPLES), np.uint8)
        for start in range(0, RESAMPLES, BLOCK_OF_RESAMPLES):
            count = min(BLOCK_OF_RESAMPLES, RESAMPLES - start)
            self.times[:, start : start + count] = chance.multinomial(self.clusters, even, count).T

    def estimate(
        self,
        contributions: Num[np.ndarray, "clusters figures"],
        statistic: Callable[[np.ndarray], np.ndarray],
        items: int,
        clusters: Int[np.ndarray, " clusters"] | None = None,
    ) -> Estimate | None:
        """A statistic of summed contributions, with its interval.

        Args:
            contributions: what each cluster adds [clusters, F].
            statistic: takes sums [..., F] and gives values [...], NaN where it is undefined.
            items: of what the figure is made, for the record.
            clusters: which clusters the contributions are of, each once, where the others add nothing.

        Returns:
            The estimate, or None where the statistic is undefined.
        """
        total = contributions.sum(axis=0)
        with np.errstate(all="ignore"):
            value = float(statistic(total))
            if not np.isfinite(value):
                return None
            involved = np.flatnonzero(contributions.any(axis=1))
            if len(involved) < FEWEST_CLUSTERS:
                return Estimate(value, None, None, items)
            contributions = contributions[involved]
            resampled = statistic(
                self.sums(contributions, involved if clusters is None else clusters[involved])
            )
            left_out = [
                statistic(total - contributions[start : start + BLOCK_OF_CLUSTERS])
                for start in range(0, len(contributions), BLOCK_OF_CLUSTERS)
            ]
        return interval(value, resampled, np.concatenate(left_out), items)

    def sums(
        self, contributions: Num[np.ndarray, "clusters figures"], clusters: Int[np.ndarray, " clusters"]
    ) -> Float[np.ndarray, "resamples figures"]:
        """What the contributions of some clusters, each named once, sum to in every resample."""
        found = np.zeros((RESAMPLES, contributions.shape[1]))
        for start in range(0, len(clusters), BLOCK_OF_CLUSTERS):
            block = slice(start, start + BLOCK_OF_CLUSTERS)
            found += self.times[clusters[block]].astype(float).T @ contributions[block]
        return found


def interval(
    value: float,
    resampled: Num[np.ndarray, " resamples"],
    left_out: Num[np.ndarray, " values"],
    items: int,
    counts: Int[np.ndarray, " values"] | None = None,
) -> Estimate:
    """A figure with its BCa interval, by its values in resamples and without each of the clusters.

    Args:
        value: the figure of all clusters.
        resampled: of each resample; those that are not finite are left out.
        left_out: without one cluster.
        items: of what the figure is made, for the record.
        counts: without how many clusters each of `left_out` is what remains; one each by default.
    """
    counts = np.ones(len(left_out), int) if counts is None else counts
    resampled, known = resampled[np.isfinite(resampled)], np.isfinite(left_out)
    if np.ptp(resampled) < 1e-12:
        return Estimate(value, value, value, items)
    left_out, counts = left_out[known], counts[known]
    pull = (counts * left_out).sum() / counts.sum() - left_out
    spread = (counts * pull**2).sum() ** 1.5
    acceleration = (counts * pull**3).sum() / (6 * spread) if spread > 0 else 0.0
    below = ((resampled < value).mean() + (resampled <= value).mean()) / 2
    bias = ndtri(np.clip(below, 1 / len(resampled), 1 - 1 / len(resampled)))
    limits = bias + ndtri([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    quantiles = np.quantile(resampled, ndtr(bias + limits / (1 - acceleration * limits)))
    return Estimate(value, float(quantiles[0]), float(quantiles[1]), items)


def wilson(share: float, items: int) -> Estimate:
    """A share of so many independent items with Wilson's (1927) interval."""
    low, high = proportion_confint(share * items, items, alpha=1 - CONFIDENCE, method="wilson")
    return Estimate(share, float(low), float(high), items)


def two_sided_poisson_binomial(successes: int, probabilities: Sequence[float]) -> float:
    """The chance of a count at least as extreme, twice the smaller tail, in trials of these probabilities.

    The distribution of the count is the convolution of binomial ones, of the trials of one probability each; what of
    them is too small for a number of 64 bits is left out.
    """
    distribution: np.ndarray = np.ones(1)
    start = 0
    for p, trials in zip(*np.unique(np.asarray(probabilities, float), return_counts=True), strict=True):
        of_these = binom.pmf(np.arange(trials + 1), trials, p)
        present = np.flatnonzero(of_these)
        start += present[0]
        distribution = np.convolve(distribution, of_these[present[0] : present[-1] + 1])
    here = successes - start
    lower, upper = distribution[: max(0, here + 1)].sum(), distribution[max(0, here) :].sum()
    return float(min(1.0, 2 * min(lower, upper)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The same p-values after Holm's (1979) correction for their number; None stays None."""
    known = [p for p in p_values if p is not None]
    corrected = iter(multipletests(known, method="holm")[1].tolist() if known else [])
    return [None if p is None else float(next(corrected)) for p in p_values]
