"""A configuration needs the sections of what it runs, and no others; what is missing is asked for by who needs it."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from accord.cli.main import main
from accord.config import load_config
from accord.errors import UsageError
from accord.models.references import Model
from accord.preflight import check_round
from accord.round import run_round
from accord.round_config import RoundConfig
from accord.round_plan import stages_until
from accord.runs import Runs
from accord.text_files import write_jsonl

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"max_sequence_tokens": 200, "rows_per_update": 16, "rows_per_pass": 16, "learning_rate": 1e-3}
DPO = {"algorithm": "dpo", **SMALL}
GRPO = {"algorithm": "grpo", "prompts": "prompts.jsonl", "reward_function": "mine.py:f"}
GATE: dict[str, Any] = {"gate": {"eos_rate": {"margin": 1.0}}, "suites": []}


def config(**sections: Any) -> RoundConfig:
    return RoundConfig.model_validate(sections)


@pytest.mark.parametrize(
    ("sections", "until", "stages"),
    [
        ({"sft": {"demonstrations": "d.jsonl"}}, "sft", ["sft"]),
        ({"sft": {"demonstrations": "d.jsonl"}}, None, ["sft"]),
        ({"preferences": "p.jsonl", "rl": DPO}, "dpo", ["rl"]),
        ({"preferences": "p.jsonl", "rl": DPO}, None, ["rl"]),
        ({"preferences": "p.jsonl", "reward": {}}, "reward", ["reward"]),
        ({"preferences": "p.jsonl", "reward": {}, "rl": DPO}, "dpo", ["rl"]),
        ({"preferences": "p.jsonl", "reward": {}, "rl": DPO}, None, ["reward", "rl"]),
        ({"preferences": "p.jsonl", "rl": DPO, "eval": GATE}, None, ["rl", "eval"]),
        ({"preferences": "p.jsonl", "reward": {}, "rl": DPO, "eval": GATE}, "eval", ["reward", "rl", "eval"]),
        ({"rl": GRPO}, "grpo", ["rl"]),
        ({"preferences": "p.jsonl", "rl": GRPO}, "grpo", ["rl"]),
        ({"feedback": {"prompts": "x"}, "rl": GRPO}, "grpo", ["feedback", "rl"]),
        ({"preferences": "p.jsonl", "reward": {}, "rl": GRPO}, None, ["rl"]),
        ({"preferences": "p.jsonl", "reward": {}, "rl": GRPO, "eval": GATE}, None, ["reward", "rl", "eval"]),
        (
            {"preferences": "p.jsonl", "reward": {}, "rl": {"algorithm": "ppo", "prompts": "x"}},
            "ppo",
            ["reward", "rl"],
        ),
        ({"sft": {"demonstrations": "d.jsonl"}, "eval": GATE}, None, ["sft", "eval"]),
        ({"feedback": {"prompts": "x"}}, None, ["feedback"]),
    ],
)
def test_what_a_command_runs(sections: dict[str, Any], until: str | None, stages: list[str]) -> None:
    assert stages_until(config(**sections), until) == stages


@pytest.mark.parametrize(
    ("sections", "until", "says"),
    [
        ({}, None, "no section of a stage, so there is nothing to run; add one or more of sft, feedback, reward,"),
        ({}, "sft", "has no sft section, which `accord sft` needs; add one with sft.demonstrations"),
        ({}, "reward", "has no reward section, which `accord reward` needs; add one (`reward: {}` takes"),
        ({}, "grpo", "has no rl section, which `accord grpo` needs; add one, such as `rl: {algorithm: dpo}`"),
        ({}, "eval", "has no eval section, which `accord eval` needs; add one with the margins of eval.gate"),
        ({"rl": DPO}, "dpo", "`accord dpo` needs preferences, and this configuration names none; set `preferences`"),
        ({"reward": {}}, None, "`accord round` needs preferences, and this configuration names none"),
        ({"preferences": "p", "rl": {"algorithm": "ppo", "prompts": "x"}}, "ppo",
         "has no reward section, which `accord ppo` needs: its critic starts from the reward model, whatever"),
        ({"preferences": "p", "rl": {"algorithm": "rloo", "prompts": "x"}}, None,
         "has no reward section, which `accord round` needs: it optimises the reward model's scores, where there is"),
        ({"eval": GATE}, None, "compares a new policy with the one before it, and this configuration makes none; add"),
    ],
)  # fmt: skip
def test_what_is_missing_is_asked_for_by_the_command(
    sections: dict[str, Any], until: str | None, says: str
) -> None:
    with pytest.raises(UsageError) as refused:
        stages_until(config(**sections), until)
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "written",
    ["d.jsonl", ["d.jsonl"], {"path": "d.jsonl"}, [{"path": "d.jsonl"}], [{"path": "d.jsonl", "weight": 1}]],
)
def test_a_path_is_enough_for_demonstrations(written: Any, runs: Runs) -> None:
    short, long = (
        RoundConfig.model_validate({"sft": {"demonstrations": each}}).sft
        for each in (written, [{"path": "d.jsonl", "weight": 1.0}])
    )
    assert short and long and short == long
    assert runs.run_id_for("sft", short, {}) == runs.run_id_for("sft", long, {})


def test_a_slip_in_one_file_s_mapping_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("sft: {demonstrations: {path: d.jsonl, wieght: 2}}\n")
    with pytest.raises(UsageError, match=r"unknown key 'sft.demonstrations.0.wieght'; did you mean 'weight'"):
        load_config(tmp_path / "c.yaml", RoundConfig)


@pytest.mark.parametrize("gate", ["{}", "null", "{eos_rate: null}"])
def test_an_empty_gate_is_refused_in_our_words(tmp_path: Path, gate: str) -> None:
    (tmp_path / "c.yaml").write_text(f"eval: {{gate: {gate}}}\n")
    with pytest.raises(UsageError, match=r"'eval.gate': names no metric that decides, so .*\{eos_rate: "):
        load_config(tmp_path / "c.yaml", RoundConfig)


def test_preferences_that_are_not_there_are_refused_before_anything_starts(
    runs: Runs, tiny_model: Model
) -> None:
    for until in ("dpo", None):
        with pytest.raises(Exception, match=r"^preferences: none-such-file: no such file"):
            run_round(config(model=str(tiny_model.folder), preferences="none-such-file", rl=DPO), runs, until)
    assert runs.all() == []


def test_a_gate_on_rewards_needs_a_reward_section(runs: Runs, tiny_model: Model, preferences: Path) -> None:
    gate = {"gate": {"reward": {"margin": 1.0}}, "suites": []}
    without = config(model=str(tiny_model.folder), preferences=str(preferences), rl=DPO, eval=gate)
    with pytest.raises(UsageError, match=r"^eval.gate: .* margin for 'reward', so .*; add a reward section"):
        check_round(without, runs)


# --- by command


def accord(runs: Runs, *arguments: str | Path) -> str:
    done = CliRunner().invoke(main, ["--runs", str(runs.root), *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.output


def test_sft_alone_and_then_the_round_that_ends_with_it(
    runs: Runs, tiny_model: Model, demonstrations: Path, tmp_path: Path
) -> None:
    (tmp_path / "sft.yaml").write_text(
        f"model: {tiny_model.folder}\n"
        f"sft: {{demonstrations: {demonstrations}, rows_per_update: 16, rows_per_pass: 16}}\n"
    )
    assert "sft: " in accord(runs, "sft", tmp_path / "sft.yaml")
    said = accord(runs, "round", tmp_path / "sft.yaml")
    assert "no eval section, so there is no verdict, and nothing can be promoted" in said
    assert [run.record.stage for run in runs.all()] == ["data", "sft"]


def test_dpo_trains_no_reward_model_and_is_judged_without_one(
    runs: Runs, tiny_model: Model, preferences: Path, tmp_path: Path
) -> None:
    write_jsonl(
        tmp_path / "prompts.jsonl",
        [{"prompt": [{"role": "user", "content": f"Held out {i}?"}]} for i in range(4)],
    )
    sections: dict[str, Any] = {
        "model": str(tiny_model.folder), "preferences": str(preferences), "rl": DPO,
        "sampling": {"engine": "transformers"},
    }  # fmt: skip
    alone = run_round(config(**sections), runs)
    assert alone.record.stage == "dpo" and [run.record.stage for run in runs.all()] == ["dpo"]
    assert run_round(config(**sections, reward=SMALL), Runs(runs.root, only="dpo"), "dpo").id == alone.id
    judged = config(
        **sections,
        eval={
            **GATE, "prompts": str(tmp_path / "prompts.jsonl"), "max_response_tokens": 4, "samples_per_prompt": 1,
            "bootstrap_resamples": 999,
        },
    )  # fmt: skip
    verdict = run_round(judged, runs)
    assert verdict.record.stage == "eval" and verdict.record.parents == {"candidate": alone.id}
    assert "baseline" in verdict.record.inputs
    assert sorted(run.record.stage for run in runs.all()) == ["dpo", "eval"]


def test_a_stage_alone_reads_no_file_of_later_ones(
    runs: Runs, tiny_model: Model, demonstrations: Path
) -> None:
    whole = config(
        model=str(tiny_model.folder), preferences="gone.jsonl",
        sft={"demonstrations": str(demonstrations), "rows_per_update": 16, "rows_per_pass": 16},
        rl={"algorithm": "ppo", "prompts": "gone.jsonl"}, eval={**GATE, "prompts": "gone.jsonl"}, reward={},
    )  # fmt: skip
    assert run_round(whole, runs, "sft").record.stage == "sft"
