"""The slope on length and what it explains, against ordinary least squares with dummies and arithmetic in view."""

import math
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm

from eval.statistics.length_effect import length_effect, slope_of_one_model


def answers(seed: int, prompts: int = 30, samples: int = 2) -> tuple[Any, Any, list[str]]:
    """Scores and lengths [2, N] of both models, and the prompts."""
    chance = np.random.default_rng(seed)
    names = [f"p{i}" for i in range(prompts) for _ in range(samples)]
    level = np.repeat(chance.normal(0, 2, prompts), samples)
    tokens = chance.integers(10, 60, (2, len(names))) + 3 * level + np.array([[0], [8]])
    scores = level + 0.04 * tokens + np.array([[0], [0.5]]) + chance.normal(0, 0.5, tokens.shape)
    return scores, tokens, names


@pytest.mark.parametrize("samples", [1, 3])
def test_it_is_least_squares_with_a_level_for_each_prompt(samples: int) -> None:
    scores, tokens, prompts = answers(0, samples=samples)
    effect = length_effect(scores[0], scores[1], tokens[0], tokens[1], prompts)
    index = np.unique(prompts, return_inverse=True)[1]
    both = np.concatenate([index, index])
    columns = [np.eye(30)[both], np.repeat([0.0, 1.0], len(prompts))[:, None], tokens.reshape(-1, 1)]
    fit = sm.OLS(scores.ravel(), np.hstack(columns)).fit(
        cov_type="cluster", cov_kwds={"groups": both, "use_correction": False}
    )
    at_equal_length, slope = fit.params[-2:]
    error_at_equal_length, error = fit.bse[-2:]
    rest = np.array(effect.changes) - effect.explained
    assert effect.slope == pytest.approx(slope)
    assert np.mean(effect.slopes) == pytest.approx(slope)
    assert rest.mean() == pytest.approx(at_equal_length)
    assert np.mean(effect.explained) == pytest.approx(slope * (tokens[1] - tokens[0]).mean())
    assert standard_error(effect.slopes, index) == pytest.approx(error)
    # `rest` holds the spread of the change in length over prompts, too, which the regression takes as given.
    assert standard_error(rest.tolist(), index) >= 0.9 * error_at_equal_length


def standard_error(values: list[float], index: np.ndarray) -> float:
    sums = np.bincount(index, weights=np.array(values) - np.mean(values))
    return math.sqrt(float((sums**2).sum())) / len(values)


def test_by_hand() -> None:
    # One prompt with lengths 10 and 30, one with 20 and 20. The mean change is 10 tokens; less that and the prompts'
    # levels, lengths are -5, 5 and 5, -5, and scores 1, 7 and 2, 4 are (mean change 4) -1, 1 and 1, -1: slope 0.2.
    effect = length_effect([1, 2], [7, 4], [10, 20], [30, 20], ["a", "b"])
    assert effect.slope == pytest.approx(0.2)
    assert np.mean(effect.explained) == pytest.approx(0.2 * 10)
    assert effect.changes == [6, 2]


def test_a_score_that_is_length_is_all_explained() -> None:
    _, tokens, prompts = answers(1)
    effect = length_effect(0.1 * tokens[0], 0.1 * tokens[1], tokens[0], tokens[1], prompts)
    assert effect.explained == pytest.approx(effect.changes)


def test_equal_lengths_explain_nothing() -> None:
    scores, _, prompts = answers(2)
    lengths = [20.0] * len(prompts), [30.0] * len(prompts)
    effect = length_effect(scores[0], scores[1], *lengths, prompts)
    assert effect.slope == 0
    assert effect.explained == [0.0] * len(prompts)


def test_the_slope_of_one_model() -> None:
    # Within prompts, 10 tokens more are 3 and 1 more: 2 on average. Between prompts they are less.
    values = slope_of_one_model([0, 3, -8, -7], [10, 20, 50, 60], ["a", "a", "b", "b"])
    assert values is not None
    assert np.mean(values) == pytest.approx(0.2)
    assert slope_of_one_model([0, 3], [10, 20], ["a", "b"]) is None
