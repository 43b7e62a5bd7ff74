"""Whether the disagreement of a model's heads tells where it is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import mannwhitneyu, rankdata

from accord.statistics import Estimate
from reward.card.prompts import Prompts
from reward.card.slices import Slice, one_slice, thirds
from reward.rows import ScoredPair

AUROC_BINS = 100


@dataclass(frozen=True)
class Ensemble:
    """Whether the heads' disagreement tells which pairs are ordered wrongly.

    Disagreement is the standard deviation over heads of the score difference. An AUROC is the chance that a pair
    ordered wrongly has more of it than one ordered rightly: 1/2 is useless, 1 perfect; pairs of equal scores are left
    out.
    """

    heads: int
    auroc: Estimate | None
    auroc_relative: Estimate | None
    """Of the disagreement divided by the size of the mean difference."""
    auroc_of_difference: Estimate | None
    """Of a small mean difference alone, which one head could tell: what disagreement has to beat."""
    thirds: list[Slice]
    """Accuracy on the pairs with the least, a middling and the most disagreement."""


def ensemble(
    pairs: Sequence[ScoredPair], differences: np.ndarray, right: np.ndarray, prompts: Prompts
) -> Ensemble | None:
    """Whether the heads' disagreement tells which pairs are ordered wrongly; None for a single head."""
    heads = len(pairs[0].chosen_scores)
    if heads < 2:
        return None
    by_head = np.array([np.subtract(pair.chosen_scores, pair.rejected_scores) for pair in pairs])
    disagreement = by_head.std(axis=1, ddof=1)
    decided = differences != 0
    wrong, size = right[decided] == 0, np.abs(differences[decided])
    third = thirds(disagreement)
    return Ensemble(
        heads=heads,
        auroc=auroc(disagreement[decided], wrong, decided, prompts),
        auroc_relative=auroc(disagreement[decided] / size, wrong, decided, prompts),
        auroc_of_difference=auroc(-size, wrong, decided, prompts),
        thirds=[
            one_slice("disagreement", name, right[third == each], prompts, third == each)
            for each, name in enumerate(("least", "middling", "most"))
            if (third == each).any()
        ],
    )


def auroc(values: np.ndarray, wrong: np.ndarray, rows: np.ndarray, prompts: Prompts) -> Estimate | None:
    """The chance that a wrong pair has a higher value than a right one, equal values counting half.

    Args:
        values: [pairs].
        wrong: whether the pair was ordered wrongly [pairs].
        rows: which rows these pairs are.
        prompts: of all rows.

    Returns:
        Mann and Whitney's U over its maximum, or None unless there are pairs of both kinds. The interval is of the
        same after putting the values into a hundred bins of equal mass.
    """
    if wrong.all() or not wrong.any():
        return None
    u = mannwhitneyu(values[wrong], values[~wrong], method="asymptotic").statistic
    exact = float(u) / (int(wrong.sum()) * int((~wrong).sum()))
    place = np.minimum(AUROC_BINS * (rankdata(values) - 0.5) / len(values), AUROC_BINS - 1).astype(int)
    contributions = np.zeros((len(values), 2 * AUROC_BINS))
    contributions[np.arange(len(values)), place + AUROC_BINS * wrong] = 1

    def binned(sums: np.ndarray) -> np.ndarray:
        right_ones, wrong_ones = sums[..., :AUROC_BINS], sums[..., AUROC_BINS:]
        below = right_ones.cumsum(axis=-1) - right_ones / 2
        return (wrong_ones * below).sum(axis=-1) / (wrong_ones.sum(axis=-1) * right_ones.sum(axis=-1))

    found = prompts.estimate(contributions, binned, rows)
    return replace(found, value=exact) if found else None
