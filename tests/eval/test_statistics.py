"""Statistics against arithmetic in view, SciPy's and statsmodels' own tests, and simulation with known truth."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from eval.statistics.means import fit, limits
from eval.statistics.paired import (
    difference_interval,
    paired_difference,
    paired_difference_of_distances,
    wilson_interval,
)
from eval.statistics.planning import MOST_CLUSTERS, clusters_to_decide, minimum_detectable_effect


def names(count: int, each: int = 1) -> list[str]:
    return [f"c{i // each}" for i in range(count * each)]


def test_means_and_deviation_by_hand() -> None:
    # clusters {1, 3} and {5} and {7}: changes 1, 3 | 5 | 7; the mean over items is 4
    change = paired_difference([0, 0, 0, 0], [1, 3, 5, 7], ["a", "a", "b", "c"])
    assert (change.baseline, change.candidate, change.difference) == (0, 4, 4)
    assert (change.items, change.clusters) == (4, 3)
    assert change.effective_clusters == pytest.approx((2 + 1 + 1) ** 2 / (4 + 1 + 1))


def test_deviation_is_that_of_values_that_need_no_correction() -> None:
    chance = np.random.default_rng(8)
    after = chance.normal(0, 2, 400)
    change = paired_difference(np.zeros(400), after, names(400), resamples=9)
    assert change.deviation == pytest.approx(after.std(ddof=1), rel=0.05)


def test_interval_is_near_students_for_normal_data() -> None:
    chance = np.random.default_rng(1)
    before = chance.normal(0, 1, 400)
    after = before + chance.normal(0.3, 0.5, 400)
    change = paired_difference(before, after, names(400))
    low, high = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert change.low == pytest.approx(low, abs=0.005)
    assert change.high == pytest.approx(high, abs=0.005)


def test_copies_of_an_item_add_no_certainty() -> None:
    chance = np.random.default_rng(2)
    after = chance.normal(0, 1, 50)
    once = paired_difference(np.zeros(50), after, names(50))
    thrice = paired_difference(np.zeros(150), np.repeat(after, 3), names(50, each=3))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    naive = paired_difference(np.zeros(150), np.repeat(after, 3), names(150))
    assert naive.high - naive.low < 0.65 * (once.high - once.low)  # 1 / sqrt(3) = 0.58


def test_order_of_items_does_not_matter() -> None:
    chance = np.random.default_rng(3)
    after, clusters = chance.normal(0, 1, 60), np.array(names(20, each=3))
    order = chance.permutation(60)
    a = paired_difference(np.zeros(60), after, clusters.tolist())
    b = paired_difference(np.zeros(60), after[order], clusters[order].tolist())
    assert (a.low, a.high) == pytest.approx((b.low, b.high))


@pytest.mark.parametrize("clusters", [12, 32, 80])
def test_coverage_with_normal_data_in_clusters(clusters: int) -> None:
    chance = np.random.default_rng(4)
    repetitions, truth, inside = 1_500, 0.4, 0
    for _ in range(repetitions):
        shared = np.repeat(chance.normal(0, 1, clusters), 3)
        after = truth + shared + chance.normal(0, 0.7, 3 * clusters)
        change = difference_interval(np.zeros(3 * clusters), after, names(clusters, each=3))
        inside += change.low <= truth <= change.high
    # three standard errors of a share of 0.95 over 1,500 repetitions are 0.017
    assert 0.933 <= inside / repetitions <= 0.967


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.0), (0.0, 0.25), (0.25, 0.0), (0.5, 0.7), (-0.3, 0.3)])
def test_distance_from_zero_covers_the_truth_even_at_the_corner(before: float, after: float) -> None:
    chance = np.random.default_rng(5)
    repetitions, low_misses, high_misses = 500, 0, 0
    for _ in range(repetitions):
        b = before + chance.normal(0, 1, 60)
        change = difference_interval(
            b, after - before + b + chance.normal(0, 0.6, 60), names(60), closer_to_zero=True
        )
        low_misses += change.low > abs(after) - abs(before)
        high_misses += change.high < abs(after) - abs(before)
    assert low_misses / repetitions <= 0.06
    assert high_misses / repetitions <= 0.06  # a candidate at its margin would pass that often


def test_distance_is_the_plain_difference_where_both_means_are_far_from_zero() -> None:
    chance = np.random.default_rng(6)
    before = 5 + chance.normal(0, 1, 80)
    after = before + chance.normal(0.2, 0.5, 80)
    plain = paired_difference(before, after, names(80))
    distance = paired_difference_of_distances(before, after, names(80))
    assert (distance.low, distance.high) == (plain.low, plain.high)
    mirrored = paired_difference_of_distances(-before, -after, names(80))
    assert (mirrored.low, mirrored.high) == pytest.approx((plain.low, plain.high), abs=0.01)
    assert mirrored.difference == pytest.approx(plain.difference)


@pytest.mark.parametrize("compared", [paired_difference, paired_difference_of_distances])
def test_only_the_interval(compared: Any) -> None:
    chance = np.random.default_rng(9)
    before = chance.normal(0.1, 1, 40)
    after = before + chance.normal(0, 0.5, 40)
    whole = compared(before, after, names(40), resamples=9)
    only = difference_interval(
        before, after, names(40), closer_to_zero=compared is paired_difference_of_distances
    )
    assert (only.low, only.high) == (whole.low, whole.high)


def test_no_change_at_all() -> None:
    # none of 3 clusters changed: at a share p of changing ones that has the chance (1 - p)^3 = 2.5%; the values span 2
    change = paired_difference([1, 2, 3], [1, 2, 3], names(3))
    assert (change.low, change.high) == pytest.approx(
        (-2 * (1 - 0.025 ** (1 / 3)), 2 * (1 - 0.025 ** (1 / 3)))
    )
    shifted = paired_difference([1, 2, 3], [2, 3, 4], names(3))
    assert (shifted.low + shifted.high) / 2 == pytest.approx(1) and shifted.high > 1.5
    # a share may still change on items that were not seen; Tango's limit is z^2 / (n + z^2), and the exact one, where
    # (1 - x)^80 = 0.025, is near it
    share = paired_difference([1] * 80, [1] * 80, names(80), is_share=True)
    assert share.high == pytest.approx(1.959964**2 / (80 + 1.959964**2))
    assert share.low == pytest.approx(-share.high)
    assert share.high == pytest.approx(1 - 0.025 ** (1 / 80), abs=0.001)


def test_refuses_what_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two clusters"):
        paired_difference([1, 2], [1, 2], ["a", "a"])
    with pytest.raises(ValueError, match="one value for each item"):
        paired_difference([1], [1, 2], ["a", "b"])


def test_wilson_by_hand() -> None:
    # Wilson: centre (p + z^2/2n) / (1 + z^2/n), here p = 0.9, n = 20, z = 1.959964
    z, n, p = stats.norm.ppf(0.975), 20, 0.9
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    interval = wilson_interval(18, 20)
    assert (interval.low, interval.high) == pytest.approx((centre - half, centre + half))
    assert wilson_interval(0, 15).low == pytest.approx(0)


def test_minimum_detectable_effect_is_found_with_the_stated_power() -> None:
    effect = minimum_detectable_effect(2.0, 50)
    assert TTestPower().power(effect / 2.0, 50, 0.05) == pytest.approx(0.8, abs=1e-4)
    # the normal approximation (1.96 + 0.84) * sd / sqrt(n) is a little below Student's
    assert effect == pytest.approx((1.95996 + 0.84162) * 2 / math.sqrt(50), rel=0.03)
    chance = np.random.default_rng(7)
    data = chance.normal(effect, 2.0, (4000, 50))
    found = stats.ttest_1samp(data, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.02)


def test_number_that_decides() -> None:
    # ((1.96 + 0.84) / 0.2)^2 = 196, and two or three more for Student's t
    assert clusters_to_decide(0.1, 0.5) == pytest.approx(198, abs=3)
    assert clusters_to_decide(-0.1, 0.5) == clusters_to_decide(0.1, 0.5)
    assert clusters_to_decide(0.05, 0.5) == pytest.approx(4 * 196, abs=6)
    needed = clusters_to_decide(0.3, 0.7)
    assert needed is not None
    test = TTestPower()
    assert test.power(0.3 / 0.7, needed, 0.025, alternative="larger") >= 0.8
    assert test.power(0.3 / 0.7, needed - 1, 0.025, alternative="larger") < 0.8
    assert clusters_to_decide(0, 0.5) is None
    assert clusters_to_decide(1e-5, 1.0) is None  # it would take more than MOST_CLUSTERS
    assert MOST_CLUSTERS < (2.8 / 1e-5) ** 2


def test_planned_number_decides_for_skewed_values() -> None:
    """The median plan of 30 evaluations of 60 exponential values, tried out; the formula for normal ones says 90."""
    chance = np.random.default_rng(10)
    planned = []
    for seed in range(30):
        after = chance.exponential(1, 60)
        change = paired_difference(
            np.zeros(60), after - after.mean(), names(60), resamples=1, seed=seed, against=0.3
        )
        needed = clusters_to_decide(0.3, change.deviation)
        assert needed is not None
        planned.append(needed)
    count = int(np.median(planned))
    values = chance.exponential(1, (4_000, count)) - 1
    known = fit(values, np.ones_like(values), np.ones(values.shape, bool))
    passes = (limits(known, count, 9.0, 0.025)[1] <= 0.3).mean()
    assert 0.75 <= passes <= 0.87
    plain = values[:, :90]
    known = fit(plain, np.ones_like(plain), np.ones(plain.shape, bool))
    assert (limits(known, 90, 9.0, 0.025)[1] <= 0.3).mean() < 0.72
