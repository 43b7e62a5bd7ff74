"""Where the simulated annotators' formula is measured, and where a margin for it is refused."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from synthetic_round import StageConfig, stage
from test_evaluate import FakeSampler, prompts  # noqa: F401  (a fixture)

from accord.bundled import config_path
from accord.config import load_config
from accord.errors import UsageError
from accord.models.loading import load_tokenizer
from accord.models.references import Model, resolve
from accord.records import read_jsonl
from accord.round import run_round
from accord.round_config import RoundConfig
from accord.runs import DataFile, Run, Runs, Source
from eval.config import EvalConfig
from eval.evaluate import evaluate
from eval.measuring.annotators import annotators_behind, check_formula_is_not_gated, measures_formula
from eval.rows import Sample
from eval.verdict.gate import read_verdict
from feedback.config import FeedbackConfig, ReviewConfig
from feedback.utility import utility


def feedback(runs: Runs, number: int, kind: Any) -> Run:
    config = FeedbackConfig(prompts="p", annotators=kind, seed=number)
    return stage(runs, "feedback", config, {}, [], {"annotators_kind": kind})


def trained(runs: Runs, sources: Mapping[str, Source], number: int = 0) -> Run:
    return stage(runs, "dpo", StageConfig(seed=number), sources, [], {})


def test_who_judged_is_read_from_the_whole_lineage(runs: Runs, tmp_path: Path) -> None:
    file = tmp_path / "preferences.jsonl"
    file.write_text("{}\n")
    programs, people = feedback(runs, 1, "simulated"), feedback(runs, 2, "human")
    joined = stage(
        runs, "feedback", StageConfig(), {"feedback_0": programs, "feedback_1": people}, [],
        {"annotators_kind": "simulated"},
    )  # fmt: skip
    first = trained(runs, {"preferences": programs}, 1)
    lineages = {
        first: {"simulated"},
        trained(runs, {"preferences": people}, 2): {"human"},
        trained(runs, {"preferences": joined}, 3): {"simulated", "human"},
        trained(runs, {"policy": first, "preferences": people}, 4): {"simulated", "human"},
        trained(runs, {"policy": first, "preferences": DataFile(file)}, 5): {"simulated", "unknown"},
        trained(runs, {}, 6): set(),
    }
    assert {run.id: annotators_behind([run.id, None], runs) for run in lineages} == {
        run.id: kinds for run, kinds in lineages.items()
    }
    # a review of an evaluation, and a run that people are still at work on
    evaluation = stage(runs, "eval", StageConfig(), {"candidate": first}, [], {})
    review = stage(runs, "feedback", ReviewConfig(annotators="human"), {"evaluation": evaluation}, [], {})
    assert annotators_behind([review.id], runs) == {"simulated", "human"}
    assert annotators_behind([first.id, people.id], runs) == {"simulated", "human"}
    assert annotators_behind([None], runs) == set()


@pytest.mark.parametrize(
    ("models", "others", "why"),
    [
        ({"simulated"}, {"simulated"}, None),
        ({"simulated"}, set(), None),
        (set(), set(), "no simulated annotators judged for these models"),
        (set(), {"simulated"}, "no simulated annotators judged for these models"),
        ({"simulated", "human"}, set(), "people judged here"),
        ({"simulated"}, {"human"}, "people judged here"),
        ({"simulated", "unknown"}, set(), "who gave the preferences in the file is not known"),
    ],
)
def test_the_formula_stays_where_only_programs_judged(models: Any, others: Any, why: str | None) -> None:
    assert measures_formula(models, others) == (why is None)
    check_formula_is_not_gated({"reward"}, models, others)
    if why is None:
        check_formula_is_not_gated({"utility"}, models, others)
        return
    with pytest.raises(UsageError, match=f"has a margin for 'utility'.*, and {why}; take it out"):
        check_formula_is_not_gated({"utility", "reward"}, models, others)


@pytest.mark.parametrize("kind", ["simulated", "human"])
def test_an_evaluation_measures_it_where_programs_judged_and_refuses_it_where_people_did(
    kind: str, tiny_model: Model, runs: Runs, prompts: Path  # noqa: F811
) -> None:  # fmt: skip
    with runs.begin("dpo", StageConfig(), {"preferences": feedback(runs, 0, kind)}) as run:
        shutil.copytree(tiny_model.folder, run.path / "model")
        run.finish({})
    candidate = resolve(f"run:{run.id}", runs)
    sampler: Any = FakeSampler(load_tokenizer(tiny_model))

    def gate(**margins: float) -> Run:
        margin = {name: {"margin": each} for name, each in margins.items()}
        config = EvalConfig.model_validate({"prompts": str(prompts), "suites": [], "gate": margin})
        return evaluate(config, runs, sampler, tiny_model, candidate, show=lambda line: None)

    if kind == "human":
        with pytest.raises(UsageError, match="people judged here"):
            gate(utility=0.1)
        assert sampler.calls == [] and not [each for each in runs.all() if each.record.stage == "eval"]
    run = gate(utility=0.1) if kind == "simulated" else gate(eos_rate=0.1)
    found = {each.candidate.utility for each in read_jsonl(run.path / "samples.jsonl", Sample)}
    is_measured = "utility" in {metric.name for metric in read_verdict(run).metrics}
    assert (None in found, is_measured) == (kind == "human", kind == "simulated")
    if kind == "simulated":
        for each in read_jsonl(run.path / "samples.jsonl", Sample):
            assert each.candidate.utility == utility(each.prompt, each.candidate.text)


def test_a_round_with_people_is_refused_before_anything_starts(runs: Runs, tmp_path: Path) -> None:
    rest = {"model": "no/such-model", "reward": {}, "rl": {}, "eval": {"gate": {"utility": {"margin": 0.1}}}}

    def start(**settings: Any) -> None:
        run_round(RoundConfig.model_validate(rest | settings), runs)

    with pytest.raises(UsageError, match="people judged here"):
        start(feedback={"prompts": "p", "annotators": "human"})
    with pytest.raises(UsageError, match="the preferences in the file is not known"):
        start(preferences=str(tmp_path / "preferences.jsonl"))
    assert not runs.root.exists()
    earlier = trained(runs, {"preferences": feedback(runs, 0, "human")})
    with pytest.raises(UsageError, match="people judged here"):
        start(model=f"run:{earlier.id}", feedback={"prompts": "p"})


def test_the_demo_with_people_gates_what_they_can_be_measured_by(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from accord.cli import main

    configs = []
    monkeypatch.setattr(
        main, "_round",
        lambda path, overrides, wait: configs.append(load_config(path, RoundConfig, overrides)),
    )  # fmt: skip
    for arguments in ([], ["--human"]):
        assert CliRunner().invoke(main.main, ["demo", *arguments]).exit_code == 0
    simulated, human = configs
    assert simulated == load_config(config_path("demo.yaml"), RoundConfig)
    assert simulated.feedback and human.feedback and human.feedback.annotators == "human"
    assert simulated.eval.gate.keys() - human.eval.gate.keys() == {"utility"} and len(human.eval.gate) == 5
    check_formula_is_not_gated(simulated.eval.gate, {simulated.feedback.annotators})
    check_formula_is_not_gated(human.eval.gate, {human.feedback.annotators})
    with pytest.raises(ValueError, match="names no metric that decides"):
        EvalConfig.model_validate({"gate": {"utility": None}})
