"""Choosing what to ask: probabilities counted over many seeds, and estimates that the choice must not bias."""

import numpy as np
import pytest
from scipy.stats import binomtest, chi2

from accord.errors import UsageError
from accord.records import Comparison, Message, Response
from feedback.asking.select import (
    LENGTH_BINS,
    inclusion_probabilities,
    select_by_uncertainty,
    select_length_balanced,
    select_random,
    systematic_sample,
    uncertainty,
)


def comparison(name: str, *lengths: int) -> Comparison:
    return Comparison(
        id=name,
        prompt=[Message(role="user", content=name)],
        responses=[Response(text="x" * length, run="policy0", seed=i) for i, length in enumerate(lengths)],
    )


def test_probabilities_are_in_proportion_and_never_above_one() -> None:
    # 2 of sizes 1, 1, 2, 4: in proportion 1/4, 1/4, 1/2, 1
    assert inclusion_probabilities(np.array([1.0, 1, 2, 4]), 2).tolist() == [0.25, 0.25, 0.5, 1.0]
    # 3 of 1, 1, 2, 16: the last alone is certain; 2 of 1, 1, 2 in proportion would be 1/2, 1/2, 1
    assert inclusion_probabilities(np.array([1.0, 1, 2, 16]), 3).tolist() == [0.5, 0.5, 1.0, 1.0]
    # all of them
    assert inclusion_probabilities(np.array([1.0, 5, 2]), 3).tolist() == [1.0, 1.0, 1.0]


def test_each_is_drawn_with_its_probability_and_the_number_is_fixed() -> None:
    sizes = np.random.default_rng(0).gamma(1.0, size=40)
    probabilities = inclusion_probabilities(sizes, 11)
    assert probabilities.sum() == pytest.approx(11)
    draws, times = 4_000, np.zeros(40)
    for seed in range(draws):
        drawn = systematic_sample(probabilities, np.random.default_rng(seed))
        assert len(drawn) == len(set(drawn)) == 11
        times[drawn] += 1
    for count, p in zip(times, probabilities, strict=True):
        # 40 tests at a corrected level of 1 in 1,000
        assert binomtest(int(count), draws, min(p, 1.0)).pvalue > 0.001 / 40
    free = probabilities < 1
    deviation = (times - draws * probabilities)[free] ** 2 / (draws * probabilities * (1 - probabilities))[
        free
    ]
    # a sum of squares of 40 correlated normals with mean 40; far beyond it would be a wrong probability somewhere
    assert deviation.sum() < chi2.isf(1e-6, free.sum())


def test_random_and_complete_choices() -> None:
    comparisons = [comparison(str(i), 10, 20) for i in range(10)]
    chosen = select_random(comparisons, 4, seed=1)
    assert [each.selection_probability for each in chosen] == pytest.approx([0.4] * 4)
    assert [each.id for each in chosen] == sorted(each.id for each in chosen)
    assert chosen == select_random(comparisons, 4, seed=1)
    assert chosen != select_random(comparisons, 4, seed=2)
    everything = select_random(comparisons, 10, seed=1)
    assert [(each.id, each.selection_probability) for each in everything] == [
        (str(i), 1.0) for i in range(10)
    ]
    for count in (0, 11):
        with pytest.raises(UsageError, match="cannot choose"):
            select_random(comparisons, count, seed=1)


def test_a_second_choice_multiplies_the_probabilities() -> None:
    comparisons = [comparison(str(i), 10, 20) for i in range(10)]
    twice = select_random(select_random(comparisons, 5, seed=1), 2, seed=1)
    assert [each.selection_probability for each in twice] == pytest.approx([0.5 * 0.4] * 2)


def test_small_and_large_differences_in_length_are_asked_evenly() -> None:
    # 80 that differ by 10 characters, 15 by 60, 5 by 1,000: bins of 80, 15 and 5
    comparisons = (
        [comparison(f"a{i:02}", 100, 110, 105) for i in range(80)]
        + [comparison(f"b{i:02}", 100, 160, 120) for i in range(15)]
        + [comparison(f"c{i:02}", 100, 1_100, 120) for i in range(5)]
    )
    assert [int(np.digitize(each, LENGTH_BINS)) for each in (10, 60, 1_000)] == [0, 2, 6]
    for seed in range(20):
        chosen = select_length_balanced(comparisons, 12, seed)
        assert [sum(each.id[0] == letter for each in chosen) for letter in "abc"] == [4, 4, 4]
        # the last bin has 5 for a share of 7: all are taken, and the others share what is left
        chosen = select_length_balanced(comparisons, 21, seed)
        assert [sum(each.id[0] == letter for each in chosen) for letter in "abc"] == [8, 8, 5]
        assert {each.id[0]: each.selection_probability for each in chosen} == pytest.approx(
            {"a": 8 / 80, "b": 8 / 15, "c": 1.0}
        )


def test_uncertainty_of_one_model_and_of_an_ensemble() -> None:
    pair, three = comparison("pair", 1, 2), comparison("three", 1, 2, 3)
    assert uncertainty(pair, [1.0, 1.0]) == 1.0
    # sigmoid(ln 3) = 3/4, and 4 * 3/4 * 1/4 = 3/4
    assert uncertainty(pair, [np.log(3), 0.0]) == pytest.approx(0.75)
    # pairs (0,1): 1; (0,2) and (1,2): 3/4
    assert uncertainty(three, [np.log(3), np.log(3), 0.0]) == pytest.approx((1 + 0.75 + 0.75) / 3)
    # differences 1 and 3: mean 2, deviation sqrt(2), Phi(sqrt(2)) = 0.92135
    assert uncertainty(pair, [[1.0, 3.0], [0.0, 0.0]]) == pytest.approx(4 * 0.92135 * 0.07865, rel=1e-4)
    # members that agree to the last digit, and members that see no difference
    assert uncertainty(pair, [[1.0, 1.0], [0.0, 0.0]]) == 0.0
    assert uncertainty(pair, [[1.0, 2.0], [1.0, 2.0]]) == 1.0
    for scores in ([1.0], [1.0, float("nan")], [[[1.0]], [[2.0]]]):
        with pytest.raises(UsageError, match="comparison 'pair': needs a finite score"):
            uncertainty(pair, scores)


def test_selected_by_uncertainty_the_corrected_mean_is_unbiased_and_the_naive_one_is_not() -> None:
    # what is measured (say, whether annotators disagree) goes with the uncertainty
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 3, 200)
    values = (rng.random(200) < 1 / (1 + np.exp(np.abs(margins)))).astype(float)
    comparisons = [comparison(str(i), 10, 20) for i in range(200)]
    scores = [[float(margin), 0.0] for margin in margins]
    corrected, naive = [], []
    for seed in range(1_000):
        chosen = select_by_uncertainty(comparisons, 40, scores, seed)
        assert len(chosen) == 40
        found = values[[int(each.id) for each in chosen]]
        p = np.array([each.selection_probability for each in chosen])
        corrected.append((found / p).sum() / 200)
        naive.append(found.mean())
    standard_error = np.std(corrected, ddof=1) / np.sqrt(1_000)
    print(f"truth {values.mean():.3f}, corrected {np.mean(corrected):.3f}, naive {np.mean(naive):.3f}")
    assert abs(np.mean(corrected) - values.mean()) < 3.3 * standard_error  # p 0.001
    assert np.mean(naive) > values.mean() + 0.05


def test_no_comparison_is_beyond_reach() -> None:
    comparisons = [comparison(str(i), 10, 20) for i in range(10)]
    sure, unsure = [100.0, 0.0], [0.0, 0.0]
    found: dict[str, float] = {}
    for seed in range(300):
        for each in select_by_uncertainty(comparisons, 2, [sure] * 8 + [unsure] * 2, seed):
            found[each.id] = each.selection_probability or 0.0
    # uncertainties 0 (8 times) and 1 (twice) have the mean 0.2: sizes 0.02 and 0.92, which sum to 2
    assert found == pytest.approx({str(i): 0.02 if i < 8 else 0.92 for i in range(10)})
    assert len(select_by_uncertainty(comparisons, 2, [sure] * 10, 0)) == 2
    with pytest.raises(UsageError, match="scores of 1 comparisons for 10"):
        select_by_uncertainty(comparisons, 2, [sure], 0)
