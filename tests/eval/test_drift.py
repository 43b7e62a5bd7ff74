"""Drift over rounds, from verdicts made by hand."""

import pytest

from eval.checks.audit import Audit
from eval.checks.contamination import Contamination
from eval.config import Margin, metrics_of
from eval.page.drift import Drift, drifts
from eval.statistics.paired import PairedDifference
from eval.suites.metrics import METRICS, Metric
from eval.verdict.gate import Subject, Verdict
from eval.verdict.rule import MetricResult, conclude_metric

LEAN = metrics_of(["sentence_pairs"])["sentence_pairs/lean"]
MODELS = [Subject(reference=f"m{i}", digest=f"digest {i}") for i in range(9)]


def change(before: float, after: float) -> PairedDifference:
    by = after - before
    return PairedDifference(before, after, by, by - 0.01, by + 0.01, 0.5, 160, 80, p_above=0.01, p_below=0.99)


def utility(before: float, after: float, margin: float = 0.1) -> MetricResult:
    return conclude_metric(
        METRICS["utility"], change(before, after), Margin(direction="higher", margin=margin)
    )


def verdict(
    number: int, *metrics: MetricResult, prompts: str = "p", items: str = "i", scorer: int = 8
) -> Verdict:
    return Verdict(
        outcome="PASS", metrics=list(metrics), suites=[], confidence_level=0.95, baseline=MODELS[number],
        candidate=MODELS[number + 1], reward_model=MODELS[scorer],
        contamination=Contamination(suites=[], rows=0, sources=[], unchecked=[], unknown=[]), audit=Audit(),
        files={"prompts": prompts, "suite:sentence_pairs": items},
        evidence={}, gate="g", code={}, sources={}, lineage={}, record="r", run=f"eval-{number}",
    )  # fmt: skip


def only(*verdicts: Verdict) -> Drift:
    (drift,) = drifts(verdicts)
    return drift


def test_three_rounds_of_six_tenths_of_a_margin_are_too_much() -> None:
    values = [0.7, 0.64, 0.58, 0.52]
    rounds = [verdict(i, utility(values[i], values[i + 1])) for i in range(3)]
    one, two, three = (only(*rounds[: n + 1]) for n in range(3))
    assert not one.is_beyond_margin
    assert two.total == pytest.approx(0.12) and two.is_beyond_margin
    assert three.total == pytest.approx(0.18) and three.is_beyond_margin
    assert [step.round for step in three.comparable] == [1, 2, 3]


def test_a_round_alone_is_the_gates_business_and_a_recovery_counts() -> None:
    assert not only(verdict(0, utility(0.7, 0.4))).is_beyond_margin
    back = only(verdict(0, utility(0.7, 0.62)), verdict(1, utility(0.62, 0.69)))
    assert back.total == pytest.approx(0.01) and not back.is_beyond_margin
    # exactly one margin is tolerated
    assert not only(verdict(0, utility(0.7, 0.65)), verdict(1, utility(0.65, 0.6))).is_beyond_margin


def test_other_prompts_break_the_line() -> None:
    values = [0.7, 0.64, 0.58, 0.52]
    rounds = [
        verdict(i, utility(values[i], values[i + 1]), prompts="old" if i == 0 else "new") for i in range(3)
    ]
    drift = only(*rounds)
    assert [step.starts_anew for step in drift.steps] == ["", "the prompts changed", ""]
    assert drift.total == pytest.approx(0.12) and len(drift.comparable) == 2


def test_other_items_break_the_line_of_their_suite_only() -> None:
    def lean(before: float, after: float) -> MetricResult:
        return conclude_metric(LEAN, change(before, after), Margin(direction="closer_to_zero", margin=0.1))

    before, after = (
        verdict(0, lean(0.1, 0.2), utility(0.7, 0.7)),
        verdict(1, lean(0.2, 0.25), utility(0.7, 0.7)),
    )
    whole, _ = drifts([before, after])
    assert whole.total == pytest.approx(0.15) and whole.is_beyond_margin
    changed, prompts = drifts(
        [before, after.model_copy(update={"files": {"prompts": "p", "suite:sentence_pairs": "j"}})]
    )
    assert changed.comparable[0].starts_anew == "the suite's items changed" and not changed.is_beyond_margin
    assert len(prompts.comparable) == 2


TASK = Metric("arc/acc", "arc: acc", "", "documents", "", "quality", direction="higher")


def task(number: int, **files: str) -> Verdict:
    """A round in which a task of lm-eval's fell by 0.06."""
    before = 0.7 - 0.06 * number
    fell = conclude_metric(TASK, change(before, before - 0.06), Margin(direction="higher", margin=0.1))
    named = {f"suite:arc/{name.replace('_', '.')}": digest for name, digest in files.items()}
    return verdict(number, fell).model_copy(update={"files": {"prompts": "p", **named}})


def test_another_task_of_lm_eval_breaks_the_line() -> None:
    same = only(task(0, arc_yaml="i"), task(1, arc_yaml="i"))
    assert same.total == pytest.approx(0.12) and same.is_beyond_margin
    for other in ({"arc_yaml": "j"}, {"arc_yaml": "i", "more_yaml": "k"}):
        drift = only(task(0, arc_yaml="i"), task(1, **other))
        assert drift.comparable[0].starts_anew == "the suite's items changed" and not drift.is_beyond_margin
    # the baseline's logged samples are those of the candidate before it, or another run of a task nobody can tell
    assert only(task(0, baseline="a", candidate="b"), task(1, baseline="b", candidate="c")).is_beyond_margin
    broken = [
        only(task(0, baseline="a", candidate="b"), task(1, baseline="B", candidate="c")),
        only(task(0, arc_yaml="i"), task(1, baseline="b", candidate="c")),
    ]
    assert ["logged samples" in drift.comparable[0].starts_anew for drift in broken] == [True, True]


def test_a_lean_that_crosses_zero_counts_by_its_distance() -> None:
    def lean(before: float, after: float) -> MetricResult:
        return conclude_metric(LEAN, change(before, after), Margin(direction="closer_to_zero", margin=0.1))

    drift = only(verdict(0, lean(-0.05, 0.08)), verdict(1, lean(0.08, -0.12)))
    # from 0.05 to 0.08 to 0.12 away
    assert [step.worsening for step in drift.steps] == pytest.approx([0.03, 0.04])
    assert [step.after for step in drift.steps] == pytest.approx([0.08, 0.12])


def test_scores_of_two_reward_models_are_not_added() -> None:
    def reward(before: float, after: float) -> MetricResult:
        return conclude_metric(
            METRICS["reward"], change(before, after), Margin(direction="higher", margin=0.1)
        )

    same = only(verdict(0, reward(1, 0.92)), verdict(1, reward(0.92, 0.84)))
    assert same.is_beyond_margin
    other = only(verdict(0, reward(1, 0.92), scorer=7), verdict(1, reward(5, 4.92)))
    assert other.comparable[0].starts_anew == "another reward model scored the answers"


def test_a_round_that_did_not_measure_it_breaks_the_line() -> None:
    drift = only(verdict(0, utility(0.7, 0.64)), verdict(1), verdict(2, utility(0.6, 0.54)))
    assert [step.round for step in drift.steps] == [1, 3]
    assert (
        drift.steps[1].starts_anew == "a round in between did not measure it" and not drift.is_beyond_margin
    )


def test_fewer_items_break_the_line() -> None:
    few = utility(0.6, 0.54).model_copy(update={"items": 20, "clusters": 10})
    assert (
        only(verdict(0, utility(0.7, 0.6)), verdict(1, few))
        .comparable[0]
        .starts_anew.endswith("items were taken")
    )
