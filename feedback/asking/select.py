"""Which comparisons to ask annotators about, when there are more than they can answer.

    chosen = select_by_uncertainty(comparisons, count=500, scores=scores, seed=0)
    chosen[0].selection_probability     # with which this comparison was to be chosen

Every comparison has a known probability of being chosen that is not zero, so what holds of all of them can be
estimated from those chosen: the Horvitz-Thompson (1952) estimate of a mean over N is sum(value / probability) / N.
The number chosen is fixed. Both come from systematic sampling with unequal probabilities (Madow 1949, "On the theory
of systematic sampling, II").
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy.special import expit, ndtr

from accord.errors import UsageError
from accord.records import Comparison

LENGTH_BINS = (25, 50, 100, 200, 400, 800)
"""Characters between a comparison's longest and shortest response: the bins' borders."""
LEAST_SHARE = 0.1
"""No comparison's probability is below this share of what it would be by an even draw."""

Scores = Sequence[float] | Sequence[Sequence[float]]
"""Of one comparison: a score a response, or for each response a score a member of an ensemble."""


def select_random(comparisons: Sequence[Comparison], count: int, seed: int) -> list[Comparison]:
    """`count` comparisons, each with the same probability.

    All three functions return the chosen comparisons in the order given, with `selection_probability`; one that was
    itself chosen with a probability keeps that as a factor.

    Raises:
        UsageError: there are fewer than `count` comparisons, or `count` is not positive.
    """
    return _draw(comparisons, np.ones(len(comparisons)), count, seed)


def select_length_balanced(comparisons: Sequence[Comparison], count: int, seed: int) -> list[Comparison]:
    """`count` comparisons, evenly from those whose responses differ little and much in length.

    Each of the bins of `LENGTH_BINS` that holds comparisons gives equally many, or all that it has; to within one.

    Raises:
        UsageError: as `select_random`.
    """
    spread = [
        max(len(r.text) for r in comparison.responses) - min(len(r.text) for r in comparison.responses)
        for comparison in comparisons
    ]
    bins = np.digitize(spread, LENGTH_BINS)
    return _draw(comparisons, 1 / np.bincount(bins)[bins], count, seed, strata=bins)


def select_by_uncertainty(
    comparisons: Sequence[Comparison], count: int, scores: Sequence[Scores], seed: int
) -> list[Comparison]:
    """`count` comparisons with probabilities in proportion to how unsure a reward model is of their order.

    The uncertainty of a pair is 4 p (1 - p), mean over the pairs of a comparison. From one score a response, p is
    sigmoid(difference), Bradley and Terry's. From an ensemble, p is the chance that a new member would order the pair
    so: Phi(mean / standard deviation of the members' differences). None is chosen with less than `LEAST_SHARE` of an
    even draw's probability.

    Args:
        comparisons: to draw from.
        count: how many.
        scores: for each comparison its responses' scores; lists of equal length, for an ensemble of two or more.
        seed: of the draw.

    Raises:
        UsageError: as `select_random`, or scores that do not fit the comparisons.
    """
    if len(scores) != len(comparisons):
        raise UsageError(f"there are scores of {len(scores)} comparisons for {len(comparisons)}")
    sizes = np.array([uncertainty(c, s) for c, s in zip(comparisons, scores, strict=True)])
    even = sizes.mean() if len(sizes) and sizes.mean() > 0 else 1.0
    # (1 - f) size + f mean has the same sum, and is at least f times the mean
    return _draw(comparisons, (1 - LEAST_SHARE) * sizes + LEAST_SHARE * even, count, seed)


def uncertainty(comparison: Comparison, scores: Scores) -> float:
    """How unsure the scores leave the order of a comparison's responses: 0 to 1, as above."""
    values = np.asarray(scores, float)
    if values.ndim not in (1, 2) or len(values) != len(comparison.responses) or not np.isfinite(values).all():
        raise UsageError(
            f"comparison '{comparison.id}': needs a finite score, or equally many of them, for each of its "
            f"{len(comparison.responses)} responses"
        )
    found = []
    for i, j in combinations(range(len(values)), 2):
        difference = values[i] - values[j]
        if values.ndim == 1 or len(difference) == 1:
            p = float(expit(np.sum(difference)))
        else:
            mean, deviation = difference.mean(), difference.std(ddof=1)
            p = (
                float(ndtr(mean / deviation))
                if deviation > 0
                else float(expit(np.inf * mean) if mean else 0.5)
            )
        found.append(4 * p * (1 - p))
    return float(np.mean(found))


# --- sampling


def _draw(
    comparisons: Sequence[Comparison],
    sizes: np.ndarray,
    count: int,
    seed: int,
    strata: np.ndarray | None = None,
) -> list[Comparison]:
    if not 0 < count <= len(comparisons):
        raise UsageError(f"cannot choose {count} of {len(comparisons)} comparisons")
    probabilities = inclusion_probabilities(sizes, count)
    return [
        comparisons[i].model_copy(
            update={
                "selection_probability": float(probabilities[i])
                * (comparisons[i].selection_probability or 1.0)
            }
        )
        for i in systematic_sample(probabilities, np.random.default_rng(seed), strata)
    ]


def inclusion_probabilities(sizes: np.ndarray, count: int) -> np.ndarray:
    """Probabilities in proportion to positive `sizes` that sum to `count`; those that would exceed 1 are 1."""
    certain = np.zeros(len(sizes), bool)
    while True:
        rest = sizes[~certain].sum()
        left = count - certain.sum()
        probabilities = np.where(certain, 1.0, sizes * (left / rest if rest > 0 else 0.0))
        above = (probabilities >= 1.0) & ~certain
        if not above.any():
            return np.asarray(probabilities)
        certain |= above


def systematic_sample(
    probabilities: np.ndarray, chance: np.random.Generator, strata: np.ndarray | None = None
) -> np.ndarray:
    """The indices, ascending, of a sample that has each index with its probability, and always as many as these sum to.

    The probabilities are laid end to end in random order (stratum by stratum, where strata are given), and the one
    under each of the points u, u + 1, u + 2 ... is taken, with u uniform in [0, 1).
    """
    order = chance.permutation(len(probabilities))
    if strata is not None:
        order = order[np.argsort(strata[order], kind="stable")]
    ends = np.cumsum(probabilities[order])
    count = round(float(ends[-1]))
    ends[-1] = count
    points = chance.random() + np.arange(count)
    return np.sort(order[np.searchsorted(ends, points, side="right")])
