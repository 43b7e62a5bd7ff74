"""The gate on numbers made for each verdict, and what promotion refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from synthetic_round import make_round

from accord.errors import TamperedError, UsageError
from accord.runs import Run, Runs
from eval.config import EvalConfig, Margin, metrics_of
from eval.promotion import PromotionRefusedError, check_verdict
from eval.statistics.paired import PairedDifference
from eval.verdict.gate import EXIT_CODES, read_verdict
from eval.verdict.rule import MetricResult, conclude_metric, decide, two_digits

ALL = metrics_of(["sentence_pairs"])


def change(low: float, difference: float, high: float, deviation: float = 0.5) -> PairedDifference:
    return PairedDifference(
        baseline=0.5, candidate=0.5 + difference, difference=difference, low=low, high=high, deviation=deviation,
        items=160, clusters=80,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("direction", "interval", "verdict"),
    [
        # higher is better, margin 0.1: a fall of up to 0.1 is tolerated
        ("higher", (-0.09, 0.0, 0.09), "PASS"),
        ("higher", (-0.10, 0.0, 0.10), "PASS"),
        ("higher", (-0.11, 0.0, 0.11), "INCONCLUSIVE"),
        ("higher", (-0.30, -0.2, -0.10), "INCONCLUSIVE"),
        ("higher", (-0.30, -0.2, -0.11), "FAIL"),
        ("higher", (0.20, 0.3, 0.40), "PASS"),
        # lower is better, margin 0.1: a rise of up to 0.1 is tolerated
        ("lower", (-0.40, -0.3, -0.20), "PASS"),
        ("lower", (0.00, 0.05, 0.09), "PASS"),
        ("lower", (0.05, 0.08, 0.15), "INCONCLUSIVE"),
        ("lower", (0.11, 0.2, 0.30), "FAIL"),
        ("closer_to_zero", (-0.40, -0.3, -0.20), "PASS"),
        ("closer_to_zero", (0.11, 0.2, 0.30), "FAIL"),
    ],
)
def test_verdict_of_one_metric(direction: Any, interval: tuple[float, float, float], verdict: str) -> None:
    result = conclude_metric(ALL["utility"], change(*interval), Margin(direction=direction, margin=0.1))
    assert result.verdict == verdict
    assert (result.clusters_to_decide is not None) == (verdict == "INCONCLUSIVE")


def test_inconclusive_says_how_many_would_decide() -> None:
    # observed 0, margin 0.1, deviation 0.5: the distance is 0.2 deviations, ((1.96 + 0.84) / 0.2)^2 = 196
    result = conclude_metric(ALL["utility"], change(-0.11, 0, 0.11), Margin(direction="higher", margin=0.1))
    assert result.clusters_to_decide == pytest.approx(198, abs=3)
    # an interval that did not decide with 80 needs more than 80, whatever the planning formula says
    result = conclude_metric(
        ALL["utility"], change(-0.11, 0, 0.11, deviation=0.1), Margin(direction="higher", margin=0.1)
    )
    assert result.clusters_to_decide == 81


def test_a_metric_without_margin_has_no_say() -> None:
    result = conclude_metric(ALL["reward"], change(-9, -8, -7), None)
    assert (result.verdict, result.margin, result.direction) == (None, None, None)
    with pytest.raises(UsageError, match="names no metric"):
        decide([result])


def results(*verdicts: str | None) -> list[MetricResult]:
    outcome: list[Any] = list(verdicts)
    base = conclude_metric(ALL["utility"], change(-0.01, 0, 0.01), Margin(direction="higher", margin=0.1))
    return [base.model_copy(update={"verdict": verdict}) for verdict in outcome]


@pytest.mark.parametrize(
    ("verdicts", "outcome"),
    [
        (["PASS", "PASS", None], "PASS"),
        (["PASS", "INCONCLUSIVE", None], "INCONCLUSIVE"),
        (["PASS", "INCONCLUSIVE", "FAIL"], "FAIL"),
        (["FAIL", "PASS", "PASS"], "FAIL"),
    ],
)
def test_verdict_of_all(verdicts: list[str | None], outcome: str) -> None:
    assert decide(results(*verdicts)) == outcome


def test_exit_codes() -> None:
    assert EXIT_CODES == {"PASS": 0, "FAIL": 10, "INCONCLUSIVE": 11}


def test_planning_figures_are_rounded_up() -> None:
    assert [two_digits(n) for n in (7, 81, 184, 1379, 19625)] == [7, 81, 190, 1400, 20000]


def test_unknown_metric_names_the_known_one() -> None:
    with pytest.raises(ValidationError, match="did you mean 'utility'"):
        EvalConfig.model_validate({"gate": {"utlity": {"direction": "higher", "margin": 0.1}}})
    for margin in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            Margin(direction="higher", margin=margin)
    with pytest.raises(ValidationError):
        EvalConfig(gate={})


def test_round_trip_and_content(failed_round: tuple[Run, Runs]) -> None:
    run, _ = failed_round
    verdict = read_verdict(run)
    assert verdict.outcome == "FAIL" and verdict.exit_code == 10
    assert [metric.name for metric in verdict.deciding] == ["utility"]
    assert verdict.reason() == "worse than its margin, with certainty: Simulated annotators' utility"
    assert verdict.candidate.run == run.record.parents["candidate"]
    assert verdict.files == run.record.inputs
    assert verdict.code == run.record.code


def test_a_pass_may_be_promoted_by_evaluation_or_candidate(passed_round: tuple[Run, Runs]) -> None:
    run, runs = passed_round
    candidate = runs.load(run.record.parents["candidate"])
    assert check_verdict(run, runs).outcome == "PASS"
    assert check_verdict(candidate, runs).run == run.id


@pytest.mark.parametrize(("utility_change", "code"), [(-0.1, 10), (-0.02, 11)])
def test_other_verdicts_are_refused_with_their_code(tmp_path: Path, utility_change: float, code: int) -> None:
    run, runs = make_round(tmp_path, utility_change)
    with pytest.raises(PromotionRefusedError, match="stays out") as refused:
        check_verdict(run, runs)
    assert refused.value.exit_code == code


def test_what_was_never_evaluated_is_refused(passed_round: tuple[Run, Runs]) -> None:
    run, runs = passed_round
    sft = runs.load(run.record.parents["baseline"])
    with pytest.raises(PromotionRefusedError, match="never evaluated") as refused:
        check_verdict(sft, runs)
    assert refused.value.exit_code == 1


def rewrite(run: Run, name: str, old: str, new: str, fix_record: bool) -> None:
    """Change a file of a finished run and, as a clever forger would, its hash in the record."""
    from accord.digests import file_digest

    path = run.path / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    if fix_record:
        record = json.loads((run.path / "record.json").read_text())
        record["outputs"][name] = file_digest(path)
        (run.path / "record.json").write_text(json.dumps(record))


def test_a_changed_verdict_is_refused(tmp_path: Path) -> None:
    run, runs = make_round(tmp_path, -0.1)
    rewrite(run, "verdict.json", '"outcome": "FAIL"', '"outcome": "PASS"', fix_record=False)
    with pytest.raises(TamperedError, match=r"verdict\.json was changed"):
        check_verdict(run, runs)


def test_a_forged_outcome_does_not_fit_its_signature(tmp_path: Path) -> None:
    run, runs = make_round(tmp_path, -0.1)
    rewrite(run, "verdict.json", '"outcome": "FAIL"', '"outcome": "PASS"', fix_record=True)
    with pytest.raises(TamperedError, match="signature does not fit"):
        check_verdict(runs.load(run.id), runs)


@pytest.mark.parametrize("role", ["candidate", "baseline", "reward_model"])
def test_changed_weights_are_refused(passed_round: tuple[Run, Runs], role: str) -> None:
    run, runs = passed_round
    (runs.root / run.record.parents[role] / "model" / "model.safetensors").write_text("other")
    with pytest.raises(TamperedError, match=r"model\.safetensors was changed"):
        check_verdict(run, Runs(runs.root))


def test_weights_with_a_mended_record_are_refused(passed_round: tuple[Run, Runs]) -> None:
    run, runs = passed_round
    candidate = runs.load(run.record.parents["candidate"])
    rewrite(candidate, "model/model.safetensors", "{}", "other", fix_record=True)
    with pytest.raises(TamperedError):
        check_verdict(run, Runs(runs.root))


def test_another_gate_is_refused(passed_round: tuple[Run, Runs]) -> None:
    run, runs = passed_round
    record = json.loads((run.path / "record.json").read_text())
    record["config"]["gate"]["utility"]["margin"] = 9.0
    (run.path / "record.json").write_text(json.dumps(record))
    with pytest.raises(TamperedError, match="another gate"):
        check_verdict(runs.load(run.id), runs)
