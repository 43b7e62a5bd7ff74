"""Limits of means: the jackknife by leaving out, Hall's transformation turned around, and the rule of three."""

import math

import numpy as np
import pytest
from scipy import stats

from eval.statistics.means import MOST_SKEWNESS, Fit, fit, limits, simulate, skewed_quantile

ALL = np.ones(4, bool)


def test_symmetric_values_by_hand() -> None:
    # errors -3, -1, 1, 3, each over the 3 other items: the squares add up to 20 / 9
    known = fit(np.array([-3.0, -1.0, 1.0, 3.0]), np.ones(4), ALL)
    assert known.error == pytest.approx(math.sqrt(20 / 9))
    assert known.skewness == pytest.approx(0)
    # by spread 3 * 20^2 / (81 + 1 + 1 + 81) = 7.3, by size 4; the fewer, less one
    assert known.freedom == pytest.approx(3)
    low, high = limits(known, 4, 6.0, 0.025)
    half = stats.t.isf(0.025, 3) * math.sqrt(20 / 9)
    assert (low, high) == pytest.approx((-half, half), rel=1e-4)


def test_the_error_is_the_jackknifes() -> None:
    chance = np.random.default_rng(0)
    sums, sizes = chance.normal(1, 1, 9), chance.integers(1, 6, 9).astype(float)
    known = fit(sums, sizes, np.ones(9, bool))
    without = [(sums.sum() - s) / (sizes.sum() - w) for s, w in zip(sums, sizes, strict=True)]
    assert known.error == pytest.approx(math.sqrt(sum((m - known.mean) ** 2 for m in without)))


def test_unequal_sizes_and_one_wild_cluster_leave_few_degrees_of_freedom() -> None:
    sizes = np.array([1.0, 1.0, 1.0, 5.0])
    # (1 + 1 + 1 + 25)^2 / (1 + 1 + 1 + 625) = 784 / 628 is below 2, which counts as 2
    assert fit(np.array([1.0, -1.0, 1.0, -1.0]), sizes, ALL).freedom == 1
    wild = np.array([0.0] * 39 + [40.0])
    # errors -1 (39 times) and 39: 3 * (39 + 1521)^2 / (39 + 39^4) - 1
    expected = 3 * 1560**2 / (39 + 39**4) - 1
    assert fit(wild, np.ones(40), wild > 0).freedom == pytest.approx(expected)


@pytest.mark.parametrize("skewness", [-0.2, -0.05, 0.0, 0.05, 0.1])
@pytest.mark.parametrize("quantile", [-2.3, -1.0, 0.4, 2.0])
def test_halls_transformation_turned_around(skewness: float, quantile: float) -> None:
    k, t = skewness, float(skewed_quantile(skewness, quantile))
    if abs(t - quantile) < MOST_SKEWNESS:
        assert t + k * t**2 + k**2 * t**3 / 3 + k / 2 == pytest.approx(quantile, abs=1e-4)
    else:
        assert t == pytest.approx(quantile - math.copysign(MOST_SKEWNESS, k))


def test_limits_of_exponential_values_hold_the_truth() -> None:
    # Student's interval misses 6.6% of the time here, and nearly always on one side
    values = np.random.default_rng(1).exponential(1, (4_000, 60))
    known = fit(values, np.ones_like(values), np.ones_like(values, bool))
    low, high = limits(known, 60, 9.0, 0.025)
    assert 0.94 <= ((low <= 1) & (high >= 1)).mean() <= 0.96
    assert (high < 1).mean() < 0.035
    half = stats.t.isf(0.025, 59) * values.std(1, ddof=1) / math.sqrt(60)
    assert (values.mean(1) + half < 1).mean() > 0.045


def test_clusters_that_all_agree_are_bounded_by_the_rule_of_three() -> None:
    still = fit(np.zeros(80), np.ones(80), np.zeros(80, bool))
    low, high = limits(still, 80, 2.0, 0.025)
    # at that share of clusters that change, all 80 of a sample agree with chance 2.5%; each may change by 2
    assert (1 - high / 2.0) ** 80 == pytest.approx(0.025)
    assert low == -high
    one = np.arange(80) == 0
    few = limits(fit(np.where(one, 1e-6, 0.0), np.ones(80), one), 80, 2.0, 0.025)
    assert np.array(few) == pytest.approx(np.array([low, high]), abs=1e-6)


def test_little_known_skewness_moves_limits_outwards_only() -> None:
    sums = np.zeros(80)
    sums[:12] = np.arange(12.0) ** 2
    known = fit(sums, np.ones(80), sums > 0)
    low, high = limits(known, 80, 121.0, 0.025)
    quantile = float(stats.t.isf(0.025, float(known.freedom)))
    assert low == pytest.approx(float(known.mean) - quantile * float(known.error))
    assert high > float(known.mean) + 1.2 * quantile * float(known.error)
    freely = known._replace(moved=np.asarray(80))
    assert limits(freely, 80, 121.0, 0.025)[0] > low


def test_simulated_evaluations_have_mean_zero_and_the_right_spread() -> None:
    chance = np.random.default_rng(2)
    sizes = np.full(50, 3.0)
    sums = chance.normal(2, 1, 50)
    once, twice = simulate(sums, sizes, np.ones(50, bool), 0)
    error = sums.std(ddof=1) / 3 / math.sqrt(50)  # the standard error of the mean over items
    for each in (once, twice):
        assert isinstance(each, Fit) and each.mean.shape == (4_000,)
        assert each.mean.mean() == pytest.approx(0, abs=4 * error / math.sqrt(4_000))
        assert each.mean.std() == pytest.approx(error, rel=0.06)
