"""Win rates against arithmetic in view, and the length-controlled one against statsmodels' least squares."""

import numpy as np
import pytest
import statsmodels.api as sm

from accord.errors import DataError
from eval.statistics.win_rate import length_controlled, length_only_win_rate, win_values


def fitted(wins: list[float], before: list[int], after: list[int]) -> tuple[float, float]:
    """Intercept and its HC0 standard error, by statsmodels."""
    d = np.subtract(after, before).astype(float)
    x = np.tanh(d / np.sqrt((d**2).mean()))
    fit = sm.OLS(wins, sm.add_constant(x)).fit(cov_type="HC0")
    return fit.params[0], fit.bse[0]


def test_who_wins() -> None:
    assert win_values([1.0, 2.0, 3.0], [2.0, 2.0, -1.0]) == [1.0, 0.5, 0.0]


def test_intercept_and_standard_error_equal_statsmodels() -> None:
    random = np.random.default_rng(0)
    before, after = random.integers(5, 60, 200).tolist(), random.integers(5, 90, 200).tolist()
    wins = random.choice([0.0, 0.5, 1.0], 200, p=[0.3, 0.1, 0.6]).tolist()
    values = length_controlled(wins, before, after)
    intercept, standard_error = fitted(wins, before, after)
    assert np.mean(values) == pytest.approx(intercept, abs=1e-12)
    assert np.std(values) / np.sqrt(200) == pytest.approx(standard_error, abs=1e-12)


def test_four_prompts_by_hand() -> None:
    """d = (-1, -1, 1, 1), so s = 1 and x = (-t, -t, t, t), t = tanh 1, which is orthogonal to the constant. So a is the
    wins' mean, 1/2, b x is -1/4 or 1/4, the residuals are the wins minus 1/4 or 3/4, and n [(X'X)^-1 X_i]_0 is 1."""
    assert length_controlled([0, 0.5, 1, 0.5], [2, 2, 1, 1], [1, 1, 2, 2]) == pytest.approx(
        [0.5 - 0.25, 0.5 + 0.25, 0.5 + 0.25, 0.5 - 0.25]
    )


def test_a_scorer_that_only_likes_length_wins_nothing() -> None:
    """The candidate's answers are longer for two thirds of the prompts, and the longer answer always wins."""
    random = np.random.default_rng(1)
    before = random.integers(20, 60, 3000)
    after = before + np.where(random.random(3000) < 2 / 3, 1, -1) * random.integers(20, 41, 3000)
    wins = win_values(before.tolist(), after.tolist())
    assert np.mean(wins) == pytest.approx(2 / 3, abs=0.03)
    assert length_only_win_rate(wins, before.tolist(), after.tolist()) == 1.0
    assert np.mean(length_controlled(wins, before.tolist(), after.tolist())) == pytest.approx(0.5, abs=0.03)


def test_a_better_model_stays_better_at_equal_length() -> None:
    """P(win) = 0.7 + 0.2 tanh(d / s): the win rate is moved by length, the controlled one is 0.7."""
    random = np.random.default_rng(2)
    before = np.full(20_000, 100)
    after = before + np.rint(random.normal(30, 40, 20_000)).astype(int)
    d = (after - before).astype(float)
    wins = (random.random(20_000) < 0.7 + 0.2 * np.tanh(d / np.sqrt((d**2).mean()))).astype(float)
    values = length_controlled(wins.tolist(), before.tolist(), after.tolist())
    standard_error = np.std(values) / np.sqrt(20_000)
    assert abs(np.mean(values) - 0.7) < 4 * standard_error
    assert np.mean(wins) > 0.7 + 10 * standard_error


@pytest.mark.parametrize("after", [[5, 6, 7], [8, 9, 10]])
def test_lengths_that_all_differ_alike_leave_the_wins(after: list[int]) -> None:
    assert length_controlled([1.0, 0.0, 0.5], [5, 6, 7], after) == [1.0, 0.0, 0.5]


def test_constant_wins_stay_what_they_are() -> None:
    assert length_controlled([1.0] * 4, [1, 2, 3, 4], [4, 2, 9, 1]) == pytest.approx([1.0] * 4)


def test_how_often_the_longer_answer_wins() -> None:
    """Longer and wins, longer and loses, shorter and loses (the longer wins), a tie, equal length: 1, 0, 1, .5, .5."""
    rate = length_only_win_rate([1, 0, 0, 0.5, 1], [1, 1, 2, 1, 1], [2, 2, 1, 2, 1])
    assert rate == pytest.approx((1 + 0 + 1 + 0.5 + 0.5) / 5)


def test_answers_to_other_prompts_are_refused() -> None:
    with pytest.raises(DataError, match="same prompts"):
        win_values([1.0], [1.0, 2.0])
    with pytest.raises(DataError, match="finite"):
        win_values([1.0], [float("nan")])
    with pytest.raises(DataError, match="same prompts"):
        length_controlled([], [], [])
