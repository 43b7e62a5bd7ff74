"""This model beside an earlier one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import permutation_test
from statsmodels.stats.contingency_tables import mcnemar

from accord.statistics import Estimate
from reward.card.prompts import Prompts, rightness
from reward.rows import ScoredPair


@dataclass(frozen=True)
class PreviousModel:
    """This model beside an earlier one, on the pairs that both scored."""

    name: str
    pairs: int
    left_out: int
    """Pairs without its scores, such as those whose prompt it was trained on."""
    accuracy: Estimate | None
    previous_accuracy: Estimate | None
    difference: Estimate | None
    """This model's accuracy minus the earlier one's, pair by pair."""
    p_value: float | None
    """Two-sided sign-flip permutation test of the difference, which flips whole prompts."""
    mcnemar_p_value: float | None
    """McNemar's exact test, two-sided, which takes pairs as independent."""


def against_previous(
    name: str, pairs: Sequence[ScoredPair], right: np.ndarray, prompts: Prompts
) -> PreviousModel:
    """The model beside the one that `previous_*_score` are by, called `name`."""
    before = [
        None
        if pair.previous_chosen_score is None or pair.previous_rejected_score is None
        else pair.previous_chosen_score - pair.previous_rejected_score
        for pair in pairs
    ]
    both = np.array([difference is not None for difference in before])
    left_out = int((~both).sum())
    if not both.any():
        return PreviousModel(name, 0, left_out, None, None, None, None, None)
    now = right[both]
    then = rightness(np.array([difference for difference in before if difference is not None]))
    by_prompt = np.bincount(prompts.of[both], now - then, minlength=prompts.count)
    gained, lost = int((now > then).sum()), int((now < then).sum())
    return PreviousModel(
        name=name,
        pairs=int(both.sum()),
        left_out=left_out,
        accuracy=prompts.share(now, both),
        previous_accuracy=prompts.share(then, both),
        difference=prompts.mean(now - then, both),
        p_value=sign_flip_p_value(by_prompt),
        mcnemar_p_value=float(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue) if gained + lost else 1.0,
    )


def sign_flip_p_value(differences: np.ndarray) -> float:
    """Two-sided: how often a sum as far from 0 comes up when the sign of each of these is drawn at random.

    Exact for up to 13 differences that are not 0, otherwise from 9,999 draws.
    """
    moved = differences[differences != 0]
    if len(moved) < 2:
        return 1.0
    found = permutation_test(
        (moved,), lambda values, axis: values.sum(axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=9_999, batch=500, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(found.pvalue)
