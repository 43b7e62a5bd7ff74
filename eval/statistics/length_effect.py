"""How much of a change in scores is a change in length: a slope within prompts, and the change at equal length.

    effect = length_effect(rewards_before, rewards_after, tokens_before, tokens_after, prompts)
    effect.slope                                                # score units per token
    paired_difference(effect.explained, effect.changes, prompts)    # what is left at equal length, with its interval

Every answer's score is fitted by least squares as its prompt's level, plus a constant for the candidate's answers, plus
a slope times its length. So only answers to one prompt are compared with each other, and the constant is the change at
equal length. The slope is of what these answers show, not of what causes what: where better answers must be longer,
it is part of their quality.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LengthEffect:
    """The slope, and what it explains, as values whose means are estimates.

    The values are linearised: each holds its item's share of the slope's error. So a mean's spread over clusters is
    that of the estimate, and whatever compares means, by bootstrap or otherwise, may take them
    (cluster-robust, Liang and Zeger 1986, https://doi.org/10.1093/biomet/73.1.13).
    """

    slope: float
    slopes: list[float]
    """One value for each item; their mean is the slope."""
    changes: list[float]
    """Score of the candidate's answer minus the baseline's, as measured."""
    explained: list[float]
    """Their mean is the slope times the mean change in length; `changes` less this is the change at equal length."""


def length_effect(
    before: Sequence[float],
    after: Sequence[float],
    tokens_before: Sequence[float],
    tokens_after: Sequence[float],
    prompts: Sequence[str],
) -> LengthEffect:
    """The fit for pairs of answers, one of each model, in the same order in all lists.

    Where lengths differ only as the models do, or not at all, length and model cannot be told apart: the slope is 0.
    """
    scores, lengths = np.array([before, after], float), np.array([tokens_before, tokens_after], float)  # 2N
    _, index = np.unique(np.asarray(prompts, str), return_inverse=True)
    slope, influence = _slope(_within(scores, index), _within(lengths, index))
    changes, longer = scores[1] - scores[0], lengths[1] - lengths[0]
    explained = slope * longer + longer.mean() * influence
    return LengthEffect(slope, (slope + influence).tolist(), changes.tolist(), explained.tolist())


def slope_of_one_model(
    scores: Sequence[float], tokens: Sequence[float], prompts: Sequence[str]
) -> list[float] | None:
    """Values, one for each answer, whose mean is the slope of one model's scores on length within prompts.

    None where no prompt has two answers of different length.
    """
    _, index = np.unique(np.asarray(prompts, str), return_inverse=True)
    x = _centred(np.array([tokens], float), index)
    if np.abs(x).max() < 1e-9:
        return None
    slope, influence = _slope(_centred(np.array([scores], float), index), x)
    return [float(value) for value in slope + influence]


def _slope(y: np.ndarray, x: np.ndarray) -> tuple[float, np.ndarray]:
    """Of y on x [models, N], and each item's part of its error, which sum to zero."""
    spread = float((x**2).sum())
    if spread < 1e-9 * x.size:
        return 0.0, np.zeros(x.shape[1])
    slope = float((x * y).sum() / spread)
    return slope, x.shape[1] * (x * (y - slope * x)).sum(axis=0) / spread


def _within(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Values [2, N] less their prompt's mean, and less what the models differ by on average."""
    half = (values[1] - values[0]).mean() / 2
    return _centred(values, index) + np.array([[half], [-half]])


def _centred(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    counts = np.bincount(index) * len(values)
    means = np.bincount(index, weights=values.sum(axis=0)) / counts
    return np.asarray(values - means[index])
