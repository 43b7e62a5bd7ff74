"""Verdicts from numbers: Holm by hand, metrics that cannot decide, groups with margins of their own."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from accord.errors import UsageError
from eval.config import EvalConfig, Margin, Rules, metrics_of
from eval.measuring.values import Measured, linear, measured_answers
from eval.rows import MeasuredAnswer, Sample
from eval.statistics.paired import PairedDifference, paired_difference, paired_difference_of_distances
from eval.statistics.planning import minimum_detectable_effect
from eval.verdict.comparison import compare, slices
from eval.verdict.rule import MetricResult, conclude_metric, correct

ALL = metrics_of(["sentence_pairs"])

FALL = Margin(direction="higher", margin=0.1)


def change(p_beyond: float, low: float = -0.3, high: float = -0.11) -> PairedDifference:
    return PairedDifference(
        baseline=0.6, candidate=0.4, difference=-0.2, low=low, high=high, deviation=0.5, items=160, clusters=80,
        against=-0.1, p_below=p_beyond, p_above=1 - p_beyond, pass_chance=0.8,
    )  # fmt: skip


def results(*p: float, family: str = "quality") -> list[MetricResult]:
    margin = FALL.model_copy(update={"family": family})
    return [conclude_metric(ALL["utility"], change(each), margin) for each in p]


def test_holm_by_hand() -> None:
    # sorted 0.005, 0.012, 0.02: times 3, 2 and 1, and never below an earlier one: 0.015, 0.024, 0.024
    corrected = correct(results(0.02, 0.005, 0.012))
    assert [each.p_beyond_corrected for each in corrected] == pytest.approx([0.024, 0.015, 0.024])
    assert [each.verdict for each in corrected] == ["FAIL"] * 3
    # 0.02 alone is a FAIL; beside another metric of its family it is 0.04, more than 0.025; in another family it is not
    alone = correct(results(0.02))
    assert alone[0].verdict == "FAIL"
    both = correct([*results(0.02), *results(0.4)])
    assert [each.p_beyond_corrected for each in both] == pytest.approx([0.04, 0.4])
    assert both[0].verdict == "INCONCLUSIVE" and both[0].clusters_to_decide is not None
    apart = correct([*results(0.02), *results(0.4, family="bias")])
    assert apart[0].verdict == "FAIL"


def test_a_metric_without_margin_is_in_no_family_and_a_pass_is_not_corrected() -> None:
    reported = conclude_metric(ALL["reward"], change(0.001), None)
    passed = conclude_metric(ALL["utility"], change(0.9, low=-0.05, high=0.05), FALL)
    corrected = correct([reported, passed, *results(0.02)])
    assert corrected[0] == reported
    assert corrected[1].verdict == "PASS" and corrected[1].p_within == pytest.approx(0.1)
    assert corrected[2].p_beyond_corrected == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("name", "direction", "before", "after", "margin", "stuck"),
    [
        ("eos_rate", "higher", 0.95, 0.95, 0.1, None),
        ("eos_rate", "higher", 0.08, 0.08, 0.1, "no candidate could be worse"),
        ("eos_rate", "higher", 0.0, 0.3, 0.0, "no candidate could be worse"),
        ("eos_rate", "higher", 1.0, 0.995, 0.1, "too easy"),
        ("eos_rate", "higher", 0.9, 1.0, 0.1, None),
        ("eos_rate", "lower", 0.0, 0.0, 0.1, None),
        ("eos_rate", "lower", 0.95, 0.9, 0.1, "no candidate could be worse"),
        ("sentence_pairs/lean", "closer_to_zero", 0.45, 0.45, 0.1, "no candidate could be worse"),
        ("sentence_pairs/lean", "closer_to_zero", -0.2, 0.2, 0.1, None),
        ("utility", "higher", 0.0, 0.0, 0.1, None),
    ],
)
def test_floors_and_ceilings(
    name: str, direction: Any, before: float, after: float, margin: float, stuck: str | None
) -> None:
    unchanged = replace(
        change(0.9), baseline=before, candidate=after, difference=after - before, low=0.0, high=0.0
    )
    result = conclude_metric(ALL[name], unchanged, Margin(direction=direction, margin=margin))
    assert result.verdict == ("INCONCLUSIVE" if stuck else "PASS")
    assert (stuck in result.cannot_decide) if stuck and result.cannot_decide else result.cannot_decide is None
    assert result.pass_chance == (0.0 if stuck else 0.8)


def test_faults_that_neither_model_ever_makes_pass_with_enough_items() -> None:
    """Tango's bound of 0 in n against 0 in n is z^2 / (n + z^2): 4.6 points for 80 items, 13.8 for 24."""
    for items, bound, verdict in ((80, 3.8415 / 83.8415, "PASS"), (24, 3.8415 / 27.8415, "INCONCLUSIVE")):
        names = [str(i) for i in range(items)]
        never = paired_difference([0.0] * items, [0.0] * items, names, is_share=True, against=0.1)
        assert never.is_constant and never.high == pytest.approx(bound, abs=1e-4)
        result = conclude_metric(ALL["eos_rate"], never, Margin(direction="lower", margin=0.1))
        assert (result.verdict, result.cannot_decide) == (verdict, None)
    always = paired_difference(
        [1.0] * 80, [1.0] * 80, [str(i) for i in range(80)], is_share=True, against=0.1
    )
    assert (
        conclude_metric(ALL["eos_rate"], always, Margin(direction="lower", margin=0.1)).verdict
        == "INCONCLUSIVE"
    )


def test_items_of_one_value_cannot_pass() -> None:
    still = paired_difference([3.0] * 12, [3.0] * 12, [str(i) for i in range(12)], against=-0.1)
    assert still.is_constant
    result = conclude_metric(ALL["reward"], still, FALL)
    assert (result.verdict, result.clusters_to_decide) == ("INCONCLUSIVE", None)
    assert result.cannot_decide is not None and "same value" in result.cannot_decide


@pytest.mark.parametrize("compared", [paired_difference, paired_difference_of_distances])
def test_a_model_that_answers_the_same_passes_with_enough_items_and_never_fails(compared: Any) -> None:
    # the values span 1; 12 items tell 26 points (1 - 0.025^(1/12)), 100 items 3.6
    for items, verdict in ((12, "INCONCLUSIVE"), (34, "INCONCLUSIVE"), (36, "PASS"), (100, "PASS")):
        values = [3.0, 4.0] * (items // 2)
        same = compared(values, values, [str(i) for i in range(items)], resamples=9, against=-0.1)
        assert not same.is_constant and same.difference == 0
        result = conclude_metric(ALL["reward"], same, FALL)
        assert result.verdict == verdict
        assert result.pass_chance == (verdict == "PASS")
        assert (
            conclude_metric(ALL["reward"], same, Margin(direction="higher", margin=0.0)).verdict
            == "INCONCLUSIVE"
        )


def test_a_share_in_few_very_unequal_clusters_cannot_pass() -> None:
    # (31 * 1 + 31)^2 / (31 + 31^2) = 3.9
    clusters = [str(i) for i in range(31)] + ["large"] * 31
    values = [1.0, 1.0, 0.0] * 20 + [1.0, 1.0]
    unequal = paired_difference(values, values, clusters, resamples=9, is_share=True, against=-0.5)
    assert unequal.effective_clusters == pytest.approx(62**2 / (31 + 31**2))
    result = conclude_metric(ALL["eos_rate"], unequal, Margin(direction="higher", margin=0.5))
    assert result.verdict == "INCONCLUSIVE" and "weigh only as much as 4" in str(result.cannot_decide)
    equal = paired_difference(
        values, values, [str(i // 2) for i in range(62)], resamples=9, is_share=True, against=-0.5
    )
    assert conclude_metric(ALL["eos_rate"], equal, Margin(direction="higher", margin=0.5)).verdict == "PASS"


def test_the_smallest_margin_passes_with_the_stated_power() -> None:
    margin = minimum_detectable_effect(0.5, 80)
    assert TTestPower().power(margin / 0.5, 80, 0.025, alternative="larger") == pytest.approx(0.8, abs=1e-4)
    data = np.random.default_rng(0).normal(0, 0.5, (4_000, 80))
    high = data.mean(1) + stats.t.isf(0.025, 79) * data.std(1, ddof=1) / np.sqrt(80)
    assert (high <= margin).mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("is_share", [False, True])
@pytest.mark.parametrize("compared", [paired_difference, paired_difference_of_distances])
def test_p_values_are_the_intervals_turned_around(is_share: bool, compared: Any) -> None:
    chance = np.random.default_rng(0)
    for _ in range(8):
        count = int(chance.integers(24, 70))
        b = chance.normal(0.2, 1, count)
        c = b + chance.normal(0.1, 0.5, count)
        if is_share:
            b = np.where(chance.random(count) < 0.6, 0.5, -0.5)
            c = np.where(chance.random(count) < 0.3, -b, b)
        clusters = [str(i // 2) for i in range(count)]
        plain = compared(b, c, clusters, resamples=9, is_share=is_share)
        for limit, outside in ((plain.low, -1e-6), (plain.high, 1e-6)):
            for side in (1, -1):
                tested = compared(
                    b, c, clusters, resamples=9, is_share=is_share, against=limit + side * outside
                )
                p = tested.p_above if outside < 0 else tested.p_below
                assert (p < 0.025) == (side == 1) and p == pytest.approx(0.025, abs=0.005)


def test_exchange_of_models_by_enumeration() -> None:
    before, after = [0.0, 0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0, 10.0]
    # all changes of one sign: of the 32 ways to swap, only 2 are as extreme
    assert paired_difference(before, after, list("abcde")).p_change == pytest.approx(2 / 32)
    # |mean| is the same after a change of sign
    distance = paired_difference_of_distances(after, [-x for x in after], list("abcde"))
    assert distance.p_change == 1.0


# --- groups


def sample(number: int, utility_change: float, group: str | None) -> Sample:
    def answer(utility: float) -> MeasuredAnswer:
        return MeasuredAnswer(
            prompt_id=f"p{number}", sample=0, seed=0, text="a b", tokens=2 + number % 3, finish="eos",
            utility=utility, distinct_bigrams=1.0,
        )  # fmt: skip

    base = 0.5 + 0.01 * (number % 7)
    return Sample(
        id=f"p{number}", sample=0, prompt=[{"role": "user", "content": "?"}], group=group,
        baseline=answer(base), candidate=answer(base + utility_change),
    )  # fmt: skip


def grouped() -> list[Sample]:
    chance = np.random.default_rng(0)
    changes = chance.normal(0, 0.02, 45)
    names = ["cooking"] * 20 + ["medicine"] * 20 + ["law"] * 5
    return [
        sample(i, float(x) - (0.2 if g == "medicine" else 0), g)
        for i, (x, g) in enumerate(zip(changes, names, strict=True))
    ]


def config(**slice_margins: float) -> EvalConfig:
    gate: Any = {"utility": {"direction": "higher", "margin": 0.15, "slices": slice_margins}}
    return EvalConfig(gate=gate, bootstrap_resamples=999)


def test_groups_are_reported_and_decide_only_where_the_gate_names_them() -> None:
    rows = grouped()
    found = {
        each.slice: each for each in slices(measured_answers(rows), config().rules) if each.name == "utility"
    }
    assert found["medicine"].difference == pytest.approx(-0.2, abs=0.02)
    low, high = found["medicine"].low, found["medicine"].high
    assert low is not None and high is not None and low < -0.2 + 0.02 and high < -0.17
    assert (found["law"].clusters, found["law"].low) == (5, None)  # too small to say

    overall, *_ = compare(measured_answers(rows), config().rules).metrics
    assert overall.verdict == "PASS"  # about -0.09
    gated = {
        each.slice: each
        for each in compare(measured_answers(rows), config(medicine=0.1, cooking=0.1).rules).metrics
        if each.margin
    }
    assert gated[None].verdict == "PASS" and gated["cooking"].verdict == "PASS"
    assert gated["medicine"].verdict == "FAIL" and gated["medicine"].label.endswith("(medicine)")
    # three one-sided tests in the family, so Holm's smallest is three times the raw one
    assert gated["medicine"].p_beyond_corrected == pytest.approx(3 * gated["medicine"].p_beyond)


def test_groups_have_the_intervals_of_the_gate_and_nothing_is_resampled_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rules = metrics_of(["sentence_pairs"]), config().gate, 0.95, 999, 0
    rows, lean = grouped(), "sentence_pairs/lean"
    measured = measured_answers(rows)
    halves = [0.5 if i % 3 else -0.5 for i in range(45)]
    groups, templates = [each.group for each in rows], [f"t{i // 2}" for i in range(45)]
    measured[lean] = Measured([*halves], [*halves[::-1]], templates, groups)
    tested = {}
    for name in ("utility", "eos_rate", "response_tokens", lean):
        values = measured[name].of("medicine")
        compared = paired_difference_of_distances if name == lean else paired_difference
        is_share = ALL[name].is_share
        tested[name] = compared(
            linear(values.before), linear(values.after), values.clusters, is_share=is_share
        )
    monkeypatch.setattr("eval.statistics.paired.stats.permutation_test", None)
    monkeypatch.setattr("eval.statistics.means.simulate", None)
    found = {each.name: each for each in slices(measured, Rules(*rules)) if each.slice == "medicine"}
    assert {each for each in found if found[each].low is not None} == measured.keys()
    for name, change in tested.items():
        assert (found[name].low, found[name].high) == (change.low, change.high)
        assert found[name].difference == pytest.approx(change.difference)


@pytest.mark.parametrize(("group", "message"), [("laws", "no such group"), ("law", "has 5 prompts")])
def test_margins_for_groups_that_cannot_decide(group: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compare(measured_answers(grouped()), config(**{group: 0.1}).rules)
