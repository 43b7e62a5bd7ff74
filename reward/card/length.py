"""Rules that read nothing of the answers, and how far the score follows length."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import rankdata

from accord.records import conversation_id
from accord.statistics import Estimate
from reward.card.prompts import Prompts, rightness
from reward.rows import ScoredPair


@dataclass(frozen=True)
class Baselines:
    """Accuracy of rules that read nothing of the answers, on the same pairs."""

    longer_chosen_share: float | None
    """Of the training pairs of unequal length, those whose chosen answer is the longer: decides
    `length_only_prefers`."""
    length_only_prefers: Literal["longer", "shorter"]
    length_only: Estimate
    longer: Estimate
    shorter: Estimate
    first: Estimate | None
    """Always preferring the answer that stood first on the annotators' page; None where no order is known."""
    above_length_only: Estimate
    """The model's accuracy minus the length-only rule's, pair by pair."""


@dataclass(frozen=True)
class LengthBias:
    """How far the score follows length (log tokens); an answer that is in several pairs counts once."""

    answers: int
    pearson: Estimate | None
    spearman: Estimate | None
    """Its interval holds the ranks fixed."""
    pearson_within_prompts: Estimate | None
    """Of score and log tokens after taking each prompt's means out: long answers against short ones to one question."""
    spearman_within_prompts: Estimate | None
    model_prefers_longer: Estimate | None
    """Share of the pairs of unequal length where the longer answer has the higher score."""
    annotators_prefer_longer: Estimate | None
    """Share of the same pairs where the longer answer was chosen."""
    excess: Estimate | None
    """The difference of the two: above 0, the model likes length more than annotators do."""


def baselines(
    pairs: Sequence[ScoredPair], right: np.ndarray, longer_chosen_share: float, prompts: Prompts
) -> Baselines:
    """The accuracy of rules that read nothing of what the answers say."""
    longer = rightness(np.array([pair.chosen_tokens - pair.rejected_tokens for pair in pairs]))
    prefers: Literal["longer", "shorter"] = "shorter" if longer_chosen_share < 0.5 else "longer"
    length_only = longer if prefers == "longer" else 1 - longer
    known = np.array([pair.shown_first is not None for pair in pairs])
    first = np.array([float(pair.shown_first == "chosen") for pair in pairs])
    return Baselines(
        longer_chosen_share=longer_chosen_share if math.isfinite(longer_chosen_share) else None,
        length_only_prefers=prefers,
        length_only=prompts.share(length_only),
        longer=prompts.share(longer),
        shorter=prompts.share(1 - longer),
        first=prompts.share(first[known], known) if known.any() else None,
        above_length_only=prompts.mean(right - length_only),
    )


def length_bias(
    pairs: Sequence[ScoredPair], chosen: np.ndarray, rejected: np.ndarray, prompts: Prompts
) -> LengthBias:
    """How the scores follow length, over the answers, and over the pairs whose answers differ in length."""
    # the row of the first pair with each answer tells the answer's prompt
    answers: dict[Any, tuple[int, float, float]] = {}
    for row, pair in enumerate(pairs):
        for text, score, tokens in (
            (pair.chosen, chosen[row], pair.chosen_tokens),
            (pair.rejected, rejected[row], pair.rejected_tokens),
        ):
            key = (prompts.of[row], conversation_id(text))
            answers.setdefault(key, (row, float(score), math.log(max(1, tokens))))
    rows = np.array([row for row, _, _ in answers.values()])
    score, length = (np.array([each[i] for each in answers.values()]) for i in (1, 2))
    inner_score, inner_length = (_centred(values, prompts.of[rows]) for values in (score, length))
    gap = np.array([pair.chosen_tokens - pair.rejected_tokens for pair in pairs])
    unequal = gap != 0
    by_model = rightness((chosen - rejected) * np.sign(gap))[unequal]
    by_annotators = rightness(gap)[unequal]
    return LengthBias(
        answers=len(answers),
        pearson=_correlation(score, length, rows, prompts),
        spearman=_correlation(rankdata(score), rankdata(length), rows, prompts),
        pearson_within_prompts=_correlation(inner_score, inner_length, rows, prompts),
        spearman_within_prompts=_correlation(rankdata(inner_score), rankdata(inner_length), rows, prompts),
        model_prefers_longer=prompts.share(by_model, unequal) if unequal.any() else None,
        annotators_prefer_longer=prompts.share(by_annotators, unequal) if unequal.any() else None,
        excess=prompts.mean(by_model - by_annotators, unequal) if unequal.any() else None,
    )


def _centred(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    sums, sizes = np.bincount(groups, values), np.bincount(groups)
    centred = values - (sums / np.maximum(sizes, 1))[groups]
    return np.where(np.abs(centred) < 1e-9 * max(1.0, float(np.abs(values).max())), 0.0, centred)


def _correlation(x: np.ndarray, y: np.ndarray, rows: np.ndarray, prompts: Prompts) -> Estimate | None:
    """Pearson's correlation, a function of the sums of x, y and their products."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()

    def correlation(sums: np.ndarray) -> np.ndarray:
        n, sx, sy, xx, yy, xy = (sums[..., i] for i in range(6))
        variances = np.maximum(n * xx - sx**2, 0) * np.maximum(n * yy - sy**2, 0)
        return np.clip((n * xy - sx * sy) / np.sqrt(variances), -1, 1)

    return prompts.estimate(np.column_stack([np.ones(len(x)), x, y, x * x, y * y, x * y]), correlation, rows)
