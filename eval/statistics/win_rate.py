"""How often the candidate's answer beats the baseline's to the same prompt, and how often it would at equal length.

    wins = win_values(baseline_scores, candidate_scores)                       # 1, 0.5 or 0 for each prompt
    fair = length_controlled(wins, baseline_tokens, candidate_tokens)          # their mean: the rate at equal length

A judge or a reward model that likes long answers lets a model win by writing more. As AlpacaEval 2 does (Dubois et
al. 2024, https://arxiv.org/abs/2404.04475), wins are regressed on a bounded difference of lengths, and the win rate is
read off where that is zero.

Where we differ. AlpacaEval fits a logistic model with terms for the model, the length and each instruction's
difficulty, over many models at once, and averages its predictions. One pair of models does not tell the difficulty, and
a logistic likelihood has no place for ties. So this is least squares, win = a + b tanh(d/s) + error, and the answer is
a. Both take tanh of the scaled difference, so that one answer of great length does not decide; AlpacaEval scales by the
standard deviation, and we by the root mean square s, so that d = 0 stays where it is.

What it cannot do. Where one model's answers are nearly always the longer ones, "at equal length" is a guess beyond the
data: the interval grows, and `a` may leave 0 to 1. The standard error is a little too small for few prompts: in 3,000
simulated comparisons the 95 % interval held a in 92 % with 50 prompts, 95 % with 300 and 96 % with 1,000. That s is
estimated, too, changed none of these by more than 0.1 points.
"""

import math
from collections.abc import Sequence

import numpy as np

from accord.errors import DataError


def win_values(baseline_scores: Sequence[float], candidate_scores: Sequence[float]) -> list[float]:
    """1 where the candidate's answer scores higher, 0 where the baseline's does, and 0.5 for a tie, prompt by prompt.

    Raises:
        DataError: the lists do not belong to the same prompts, or a score is no number.
    """
    _check_same_length(baseline_scores, candidate_scores)
    if not all(map(math.isfinite, [*baseline_scores, *candidate_scores])):
        raise DataError("a score is not a finite number; score the answers again")
    return [
        0.5 if one == other else float(other > one)
        for one, other in zip(baseline_scores, candidate_scores, strict=True)
    ]


def length_only_win_rate(
    wins: Sequence[float], baseline_tokens: Sequence[int], candidate_tokens: Sequence[int]
) -> float:
    """How often the longer of two answers wins; 0.5 if length says nothing.

    Ties count half, and so do pairs of equal length, whoever wins.

    Raises:
        DataError: the lists differ in length, or are empty.
    """
    _check_same_length(wins, baseline_tokens, candidate_tokens)
    sides = [
        0.5 + np.sign(after - before) * (win - 0.5)
        for win, before, after in zip(wins, baseline_tokens, candidate_tokens, strict=True)
    ]
    return float(np.mean(sides))


def length_controlled(
    wins: Sequence[float], baseline_tokens: Sequence[int], candidate_tokens: Sequence[int]
) -> list[float]:
    """One value for each prompt, whose mean is the win rate at equal length.

    That is the intercept a of the least-squares fit wins = a + b x, x_i = tanh(d_i / s), where d_i is the candidate's
    length minus the baseline's in tokens and s the root mean square of d. The values are linearised: with X the rows
    (1, x_i) and e the residuals,

        value_i = a + n [(X'X)^-1 X_i]_0 e_i.

    Residuals are orthogonal to X, so the values' mean is a exactly; and the sum of their squared deviations over n^2 is
    the heteroscedasticity-consistent variance of a (HC0; White 1980), in which b's uncertainty is included. So whatever
    compares means of values, bootstrap over clusters included, may take them for any other metric's.

    Where no lengths differ, or all differ by the same (so that length and model cannot be told apart), the slope is
    taken as zero and the values are the wins.

    Raises:
        DataError: the lists differ in length, or are empty.
    """
    _check_same_length(wins, baseline_tokens, candidate_tokens)
    y = np.asarray(wins, dtype=float)  # N
    difference = np.asarray(candidate_tokens, dtype=float) - np.asarray(baseline_tokens, dtype=float)  # N
    if np.ptp(difference) == 0:
        return list(map(float, wins))
    x = np.tanh(difference / np.sqrt(np.mean(difference**2)))
    rows = np.column_stack([np.ones_like(x), x])  # N2
    inverse = np.linalg.inv(rows.T @ rows)
    coefficients = inverse @ (rows.T @ y)
    residuals = y - rows @ coefficients
    values = coefficients[0] + len(y) * (rows @ inverse[:, 0]) * residuals
    return [float(value) for value in values]


def _check_same_length(*lists: Sequence[float]) -> None:
    lengths = {len(each) for each in lists}
    if len(lengths) > 1 or 0 in lengths:
        raise DataError(
            f"a win rate needs one value of each for every prompt, not {sorted(lengths)}; give both models' answers "
            "to the same prompts"
        )
