"""Agreement: published examples, independent libraries, and counts done by hand."""

import contextlib
import importlib
import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.inter_rater import cohens_kappa as statsmodels_kappa

from accord.records import Comparison, Message, Ranking, Response
from accord.statistics import Bootstrap, holm, two_sided_poisson_binomial, wilson
from feedback.belief.agreement import measure_agreement
from feedback.belief.coefficients import alpha, cohens_kappa, coincidences, kendalls_w, ratio

# Krippendorff 2011, section C: four observers, twelve units, values 1 to 5, missing data. His nominal alpha is 0.743;
# the ordinal one is what the package `krippendorff` 0.9.0 gives.
OBSERVERS = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
    (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
)


def record(
    name: str,
    answers: dict[str, list[int]],
    texts: tuple[str, ...] = ("a", "bb", "ccc"),
    **columns: object,
) -> Comparison:
    return Comparison(
        id=name,
        prompt=[Message(role="user", content=str(columns.pop("prompt", name)))],
        responses=[Response(text=text, run="policy0", seed=i) for i, text in enumerate(texts)],
        rankings=[Ranking(annotator=who, ranks=ranks, seconds=5.0) for who, ranks in answers.items()],
        **columns,
    )


# --- coefficients


def test_alpha_of_krippendorffs_own_example() -> None:
    total = sum(
        coincidences([value - 1 for value in unit if value is not None], 5)
        for unit in zip(*OBSERVERS, strict=True)
    )
    # his matrix's margins: of 40 pairable values, 9 are 1, 13 are 2, 10 are 3, 5 are 4 and 3 are 5
    assert total.sum(axis=0).tolist() == pytest.approx([9, 13, 10, 5, 3])
    assert float(alpha(total, ordinal=False)) == pytest.approx(0.743, abs=5e-4)
    assert float(alpha(total, ordinal=True)) == pytest.approx(0.815, abs=5e-4)


def test_alpha_is_the_librarys() -> None:
    """The package `krippendorff` is no dependency (its licence is the GPL); 0.9.0 gave the numbers below."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, (5, 60)) * (rng.random((5, 60)) < 0.5) + rng.integers(0, 4, 60)
    missing = rng.random(values.shape) < 0.3
    total = sum(coincidences(values[~missing[:, i], i].tolist(), 8) for i in range(60))
    expected = {"ordinal": 0.41306971347987365, "nominal": 0.2603728663863448}
    with contextlib.suppress(ImportError):
        library = importlib.import_module("krippendorff")
        table = np.where(missing, np.nan, values)
        expected = {level: library.alpha(table, level_of_measurement=level) for level in expected}
    for level, value in expected.items():
        assert float(alpha(total, level == "ordinal")) == pytest.approx(value, abs=1e-9)


def test_alpha_is_undefined_where_all_values_are_the_same() -> None:
    assert math.isnan(float(alpha(coincidences([1, 1, 1], 3), ordinal=True)))


def test_kendalls_w_is_friedmans_statistic_scaled() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        rankings = rng.integers(1, 4, (6, 5))  # many ties
        expected = stats.friedmanchisquare(*rankings.T).statistic / (6 * (5 - 1))
        assert kendalls_w(rankings.tolist()) == pytest.approx(expected)
    assert kendalls_w([[1, 2, 3], [1, 2, 3]]) == 1.0
    assert kendalls_w([[1, 2, 3], [3, 2, 1]]) == 0.0
    assert math.isnan(kendalls_w([[1, 1], [1, 1]]))


def test_kappa_is_statsmodels() -> None:
    table = np.random.default_rng(0).integers(0, 20, (3, 3)).astype(float)
    assert float(cohens_kappa(table)) == pytest.approx(statsmodels_kappa(table).kappa)
    assert math.isnan(float(cohens_kappa(np.diag([5.0, 0, 0]))))


# --- intervals and tests


def test_the_bootstrap_is_scipys_bca_but_for_chance() -> None:
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 5, 60)
    sums = rng.exponential(1.0, 60) * sizes
    found = Bootstrap(60, seed=0).estimate(np.stack([sums, sizes], axis=1), ratio, int(sizes.sum()))
    expected = stats.bootstrap(
        (sums, sizes), lambda a, b, axis=-1: a.sum(axis=axis) / b.sum(axis=axis), paired=True, method="BCa",
        n_resamples=20_000, rng=np.random.default_rng(0),
    )  # fmt: skip
    assert found is not None and found.low is not None and found.high is not None
    assert found.value == pytest.approx(sums.sum() / sizes.sum())
    error = expected.standard_error
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.15 * error)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.15 * error)


def test_the_bootstrap_covers_what_it_should() -> None:
    rng, inside = np.random.default_rng(0), 0
    for i in range(200):
        values = rng.normal(2.0, 1.0, 40)
        found = Bootstrap(40, seed=i).estimate(np.stack([values, np.ones(40)], axis=1), ratio, 40)
        assert found is not None and found.low is not None and found.high is not None
        inside += found.low <= 2.0 <= found.high
    assert (
        0.90 <= inside / 200 <= 0.985
    )  # 0.95 less a little for 40 clusters; three standard errors are 0.046


def test_too_few_clusters_have_no_interval_and_an_undefined_figure_is_none() -> None:
    ones = np.ones((9, 2))
    found = Bootstrap(9).estimate(ones, ratio, 9)
    assert found is not None and (found.value, found.low, found.high) == (1.0, None, None)
    assert Bootstrap(9).estimate(0 * ones, ratio, 0) is None
    assert measure_agreement([]).annotators == {}


def test_the_poisson_binomial_test_is_the_binomial_for_equal_chances() -> None:
    # 9 of 10 at 1/2: P(at least 9) = 11 / 1024
    assert two_sided_poisson_binomial(9, [0.5] * 10) == pytest.approx(22 / 1024)
    assert two_sided_poisson_binomial(5, [0.5] * 10) == 1.0
    # of chances 1/3 and 1/2, none happens with 2/3 * 1/2
    assert two_sided_poisson_binomial(0, [1 / 3, 1 / 2]) == pytest.approx(2 / 3)


def test_holm_multiplies_the_smallest_by_the_number_of_tests() -> None:
    assert holm([0.04, None, 0.01, 0.03]) == pytest.approx([0.06, None, 0.03, 0.06])
    assert holm([None]) == [None]


def test_wilson_of_eight_in_ten() -> None:
    # center (0.8 + z^2/20) / (1 + z^2/10) = 0.7167, half width z sqrt(0.16/10 + z^2/400) / (1 + z^2/10) = 0.2265
    found = wilson(0.8, 10)
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


# --- records


def test_alpha_of_ranks_counts_each_response_as_a_unit() -> None:
    # ties: a's ranks 1, 1, 2 are mid-ranks 1.5, 1.5, 3, scaled 0.25, 0.25, 1; b's are 0, 0.5, 1
    answers = {"a": [1, 1, 2], "b": [1, 2, 3]}
    comparisons = [record(f"r{i}", answers) for i in range(3)]
    comparisons.append(record("alone", {"a": [1, 2, 3]}))  # says nothing of agreement
    found = measure_agreement(comparisons)
    # the domain 0, 0.25, 0.5, 1 as 0 to 3: units (1, 0), (1, 2) and (3, 3), each three times
    total = 3 * (coincidences([1, 0], 4) + coincidences([1, 2], 4) + coincidences([3, 3], 4))
    assert found.alpha_ranks is not None and found.alpha_ranks.items == 9
    assert found.alpha_ranks.value == pytest.approx(float(alpha(total, ordinal=True)))
    # pairs: (tie, first), (first, first), (first, first), each three times: nominal
    total = 3 * (coincidences([1, 2], 3) + 2 * coincidences([2, 2], 3))
    assert found.alpha_pairs is not None and found.alpha_pairs.items == 9
    assert found.alpha_pairs.value == pytest.approx(float(alpha(total, ordinal=False)))
    assert (found.overlapping, found.comparisons) == (3, 4)
    assert found.kendall_w is not None and found.kendall_w.value == pytest.approx(
        kendalls_w(list(answers.values()))
    )
    assert found.kendall_w_by_chance == 0.5


def test_figures_of_an_annotator_counted_by_hand() -> None:
    shown = {"display_order": [2, 0, 1]}
    comparisons = [
        # the first shown is response 2, which x ranks best; gold says the opposite of x in 0,2 and 1,2
        record("gold", {"x": [2, 3, 1], "y": [1, 2, 3]}, gold_ranks=[1, 2, 3], **shown),
        record("one", {"x": [1, 2, 3], "y": [1, 1, 2]}, prompt="p", **shown),
        # the responses of the duplicate stand in another order; x now says c best, then a, then b
        record("again", {"x": [1, 2, 3]}, ("ccc", "a", "bb"), prompt="p", duplicate_of="one", display_order=[0, 1, 2]),
        record("tied", {"x": [1, 1, 1], "y": [3, 2, 1]}, **shown),
        record("left", {}, assigned_to=["x", "y"]),
    ]  # fmt: skip
    comparisons[4] = comparisons[4].model_copy(
        update={
            "rankings": [
                Ranking(annotator="x", status="draft", ranks=[1, 2, 3]),
                Ranking(annotator="y", status="discarded"),
                Ranking(annotator="judge", ranks=[1, 2, 3], adjudicates=True),
            ]
        }
    )
    found = measure_agreement(comparisons)
    assert set(found.annotators) == {"x", "y"}
    x, y = found.annotators["x"], found.annotators["y"]
    assert (x.submitted, x.discarded, x.skipped) == (4, 0, 1)
    assert (y.submitted, y.discarded, y.skipped) == (3, 1, 0)
    assert x.gold is not None and (x.gold.value, x.gold.items) == (pytest.approx(1 / 3), 1)
    assert y.gold is not None and y.gold.value == 1.0
    # a above b both times; c below a and b first, above them then
    assert x.self_consistency is not None
    assert (x.self_consistency.value, x.self_consistency.items) == (pytest.approx(1 / 3), 1)
    assert y.self_consistency is None
    # pairs that both order: in "one" 0,2 and 1,2, alike; in "tied" x orders none; gold does not count
    assert x.with_others is not None and (x.with_others.value, x.with_others.items) == (1.0, 2)
    # first shown is best for x in "gold" and "again", not in "one"; "tied" says nothing
    assert x.first_position is not None
    assert x.first_position.share.value == pytest.approx(2 / 3)
    assert x.first_position.by_chance == pytest.approx(1 / 3)
    # P(at least 2 of 3 at 1/3) = 7/27, two-sided 14/27; y: best first once of 3, with chances 1/3, 2/3, 1/3:
    # P(at most 1) = 8/27 + 16/27 ... is above one half, so 1; Holm doubles x's to 28/27, so 1
    assert x.first_position.p_value == 1.0
    # x: longer better in gold 2 of 3 (c over a, c over b), one 0 of 3, again 2 of 3
    assert x.length is not None and x.length.share.value == pytest.approx(4 / 9)
    # y: gold 0 of 3, one 0 of 2, tied 3 of 3
    assert x.length.others == pytest.approx(3 / 8)
    assert x.length.excess.value == pytest.approx(4 / 9 - 3 / 8)
    assert (x.ties, y.ties) == (pytest.approx(3 / 12), pytest.approx(1 / 9))
    assert x.median_seconds == 5.0
    # pair labels of x and y: "one" (first, tie), (first, first), (first, first); "tied" three (tie, second)
    kappa = found.kappa["x", "y"]
    table = np.zeros((3, 3))
    table[2, 1], table[2, 2], table[1, 0] = 1, 2, 3
    assert (kappa.value, kappa.items) == (pytest.approx(statsmodels_kappa(table).kappa), 6)


def test_a_tie_in_one_of_two_duplicates_is_half_consistent() -> None:
    comparisons = [record("one", {"x": [1, 2, 3]}), record("again", {"x": [1, 1, 2]}, duplicate_of="one")]
    found = measure_agreement(comparisons).annotators["x"].self_consistency
    assert found is not None and found.value == pytest.approx((0.5 + 1 + 1) / 3)


def test_without_display_order_positions_are_unknown() -> None:
    found = measure_agreement([record(f"r{i}", {"x": [1, 2, 3]}) for i in range(3)])
    assert found.annotators["x"].first_position is None
    assert found.alpha_ranks is None and found.kendall_w is None and found.kappa == {}


def test_nothing_at_all() -> None:
    found = measure_agreement([record("r", {})])
    assert found.annotators == {} and found.warnings == [] and found.overlapping == 0


def test_intervals_count_prompts_and_not_rankings() -> None:
    """Ten copies of each prompt are no more evidence than one."""
    rng = np.random.default_rng(0)

    def ranking() -> list[int]:
        return (1 + rng.permutation(3)).tolist()

    answers = []
    for _ in range(40):
        truth = ranking()
        answers.append({who: truth if rng.random() < 0.6 else ranking() for who in "xyz"})
    once = measure_agreement([record(f"r{i}", each) for i, each in enumerate(answers)])
    tenfold = measure_agreement(
        [record(f"r{i}-{j}", each, prompt=f"r{i}") for i, each in enumerate(answers) for j in range(10)]
    )
    one, ten = once.alpha_ranks, tenfold.alpha_ranks
    assert one is not None and ten is not None and None not in (one.low, one.high, ten.low, ten.high)
    assert ten.value == pytest.approx(one.value, abs=0.01)
    assert ten.low == pytest.approx(one.low, abs=0.02) and ten.high == pytest.approx(one.high, abs=0.02)
    assert once.as_dict()["alpha_ranks"] == {
        "value": one.value,
        "low": one.low,
        "high": one.high,
        "items": 120,
    }
    names = [tuple(each["annotators"]) for each in once.as_dict()["kappa"]]
    assert names == [("x", "y"), ("x", "z"), ("y", "z")] and all(a < b for a, b in pairwise(names))
