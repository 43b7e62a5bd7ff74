"""What must hold of PPO whatever it learns: exact resume, ratios of 1, one result for every division into passes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_helpers import make_prompts, make_reward_model, run_ppo, run_ppo_and_be_killed
from safetensors.torch import load_file
from training_helpers import assert_same

from accord.models.references import Model
from accord.runs import Runs
from accord.training import last_whole_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

# 16 steps: 4 updates of 2 epochs with one minibatch, policy and critic each
CONFIG = {
    "updates": 4, "prompts_per_update": 6, "epochs_per_update": 2, "max_response_tokens": 8, "max_sequence_tokens": 300,
    "learning_rate": 1e-3, "missing_eos": "subtract", "missing_eos_penalty": 0.1, "kl_target_nats": 0.5,
    "kl_horizon_answers": 20, "evaluate_every_updates": 2, "checkpoint_every_updates": 1, "seed": 3,
}  # fmt: skip
LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def reward_model(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_reward_model(tiny_model, tmp_path_factory.mktemp("reward-model"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return make_prompts(tmp_path / "prompts.jsonl")


@pytest.mark.parametrize(
    ("more", "first_kill", "second_kill"),
    # 6: in the middle of the second update; 9 more: while the last one learns
    [
        ({}, "6", "9"),
        ({"lora": LORA, "checkpoint_every_updates": 3}, "10", "finish"),
        ({"optimizer": "adamw_8bit"}, "6", "9"),
    ],
    ids=["full", "lora", "moments in 8 bit"],
)
def test_killed_and_continued_equals_uninterrupted(
    tiny_model: Model, reward_model: Model, preferences: Path, prompts: Path, tmp_path: Path, more: dict[str, Any],
    first_kill: str, second_kill: str,
) -> None:  # fmt: skip
    config = {**CONFIG, **more, "prompts": str(prompts)}
    straight = run_ppo(config, tiny_model, reward_model, preferences, Runs(tmp_path / "straight"))
    assert straight.metrics["updates"] == 4
    rows = [row for row in straight.metric_rows() if "policy_loss" in row]
    assert len({row["kl_coefficient"] for row in rows}) == 4, (
        "the controller did nothing, so nothing was tested"
    )

    killed = Runs(tmp_path / "killed")
    run_ppo_and_be_killed(config, tiny_model, reward_model, preferences, killed, first_kill)
    (run,) = killed.all()
    assert run.record.status == "running"
    whole = last_whole_checkpoint(run.path / "checkpoints")
    assert whole is not None
    # as if the kill had hit while the next checkpoint was written
    half = whole.with_name("checkpoint-1000")
    shutil.copytree(whole, half)
    (half / "trainer_state.json").unlink()
    run_ppo_and_be_killed(config, tiny_model, reward_model, preferences, killed, second_kill)
    assert not half.exists()

    continued = run_ppo(config, tiny_model, reward_model, preferences, Runs(tmp_path / "killed"))
    assert continued.id == straight.id
    assert len(continued.record.continued_at) == 2
    assert not (continued.path / "checkpoints").exists()
    assert_same(continued, straight)


def test_one_row_a_pass_equals_all_rows_in_one_and_first_ratios_are_1(
    tiny_model: Model, reward_model: Model, preferences: Path, prompts: Path, tmp_path: Path
) -> None:
    """Losses, figures and weights, over 3 updates of 8 answers; within each run the first epoch's ratios are exact."""
    runs = []
    for tokens_per_pass in (1, 100_000):
        config = {
            **CONFIG, "prompts": str(prompts), "prompts_per_update": 8, "updates": 3, "learning_rate": 3e-4,
            "tokens_per_pass": tokens_per_pass, "missing_eos_penalty": 0.0,
        }  # fmt: skip
        runs.append(run_ppo(config, tiny_model, reward_model, preferences, Runs(tmp_path / "runs")))
    one, all_rows = ([row for row in run.metric_rows() if "policy_loss" in row] for run in runs)
    assert len(one) == 3
    for row, other in zip(one, all_rows, strict=True):
        assert row["first_ratio_deviation"] == other["first_ratio_deviation"] == 0
        assert row["ratio_max"] > 1.01 and row["ratio_mean"] != 1, "later epochs moved nothing"
        for name in ("policy_loss", "value_loss", "score", "kl_k1_nats", "entropy_nats", "ratio_mean"):
            assert row[name] == pytest.approx(other[name], abs=5e-4), name
        for name in ("response_tokens", "eos_rate"):
            assert row[name] == other[name], name
    assert one[-1]["value_loss"] != pytest.approx(one[0]["value_loss"], rel=0.05)
    weights = [load_file(run.path / "model" / "model.safetensors") for run in runs]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=2e-4, rtol=0, msg=name)


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(
    tiny_model: Model, reward_model: Model, preferences: Path, prompts: Path, tmp_path: Path
) -> None:
    config = {**CONFIG, "prompts": str(prompts), "updates": 1}
    one, two = (
        run_ppo(config, tiny_model, reward_model, preferences, Runs(tmp_path / name))
        for name in ("one", "two")
    )
    assert_same(one, two)
    other = run_ppo({**config, "seed": 4}, tiny_model, reward_model, preferences, Runs(tmp_path / "one"))
    assert other.record.outputs["model/model.safetensors"] != one.record.outputs["model/model.safetensors"]
    assert json.loads((one.path / "record.json").read_text())["hardware"]["training_precision"] == "float32"
