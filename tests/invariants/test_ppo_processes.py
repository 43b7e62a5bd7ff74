"""Two processes that share the work of a PPO run give what one gives, continue exactly, and end together."""

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ppo_helpers import make_prompts, make_reward_model, run_ppo, run_ppo_in_two_processes
from safetensors.torch import load_file
from torch.testing import assert_close
from training_helpers import assert_same, rows_without_times

from accord.config import load_config
from accord.models.references import Model
from accord.round import run_round
from accord.round_config import RoundConfig
from accord.runs import Run, Runs

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = {
    "updates": 3, "prompts_per_update": 6, "epochs_per_update": 2, "max_response_tokens": 8, "max_sequence_tokens": 300,
    "learning_rate": 3e-4, "missing_eos": "subtract", "kl_target_nats": 0.5, "kl_horizon_answers": 20,
    "evaluate_every_updates": 2, "seed": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def reward_model(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_reward_model(tiny_model, tmp_path_factory.mktemp("reward-model"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return make_prompts(tmp_path / "prompts.jsonl")


def only_run(root: Path) -> Run:
    (run,) = Runs(root).all()
    return run


@pytest.mark.parametrize(
    "more",
    [
        {},
        # A minibatch is one answer, so that in every step one of the processes has nothing to learn from.
        {"lora": {"rank": 4, "alpha": 8, "top_layers": 1}, "minibatches_per_epoch": 6, "learning_rate": 1e-3},
    ],
    ids=["full", "lora"],
)
def test_two_processes_equal_one(
    tiny_model: Model, reward_model: Model, preferences: Path, prompts: Path, tmp_path: Path, demonstrations: Path,
    more: dict[str, Any],
) -> None:  # fmt: skip
    config = {**CONFIG, **more, "prompts": str(prompts), "demonstrations": str(demonstrations)}
    one = run_ppo(config, tiny_model, reward_model, preferences, Runs(tmp_path / "one"))
    root = tmp_path / "two"
    assert run_ppo_in_two_processes(config, tiny_model, reward_model, preferences, Runs(root)) == [0, 0]
    two = only_run(root)
    assert two.id == one.id and two.record.status == "done"
    assert (root / "weights-0.txt").read_text() == (root / "weights-1.txt").read_text()

    rows, others = rows_without_times(one), rows_without_times(two)
    assert len(rows) == 6  # three updates, and evaluations before them, after the second and after the third
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            assert other[name] == pytest.approx(value, abs=5e-4), (row["step"], name)
    assert max(row.get("ratio_max", 0) for row in rows) > 1.01, "nothing was learned, so nothing was tested"
    for name in ("updates", "kept_update", "stop_reason"):
        assert one.metrics[name] == two.metrics[name]
    weights, other_weights = (load_file(run.path / "model" / "model.safetensors") for run in (one, two))
    for name, weight in weights.items():
        assert_close(weight, other_weights[name], atol=2e-4, rtol=0, msg=name)


def test_two_killed_and_continued_processes_equal_two_uninterrupted_ones(
    tiny_model: Model, reward_model: Model, preferences: Path, prompts: Path, tmp_path: Path
) -> None:
    """Bitwise: both orders of adding two numbers give the same."""
    config = {**CONFIG, "prompts": str(prompts)}
    straight, killed = Runs(tmp_path / "straight"), Runs(tmp_path / "killed")
    arguments = (config, tiny_model, reward_model, preferences)
    assert run_ppo_in_two_processes(*arguments, straight) == [0, 0]
    # in the middle of the second update, which has four steps
    codes = run_ppo_in_two_processes(*arguments, killed, kill_at="6")
    assert codes == [-signal.SIGKILL] * 2
    assert only_run(killed.root).record.status == "running"
    assert run_ppo_in_two_processes(*arguments, killed) == [0, 0]
    assert len(only_run(killed.root).record.continued_at) == 1
    assert_same(only_run(killed.root), only_run(straight.root))


def test_an_error_of_the_first_process_ends_both_with_one_sentence(
    tiny_model: Model, reward_model: Model, preferences: Path, prompts: Path, tmp_path: Path
) -> None:
    """It fails alone, while the other one waits for its answers; then a single process continues."""
    config = {**CONFIG, "prompts": str(prompts)}
    runs = Runs(tmp_path / "runs")
    codes = run_ppo_in_two_processes(config, tiny_model, reward_model, preferences, runs, fail_at=3)
    assert codes == [1, 1]
    assert (runs.root / "said.txt").read_text() == "no more answers\n"
    record = only_run(runs.root).record
    assert record.status == "failed" and record.error == "SamplerGoneError: no more answers"

    # One process may go on where two stopped.
    run = run_ppo(config, tiny_model, reward_model, preferences, runs)
    assert len(run.record.continued_at) == 1
    assert [row["step"] for row in run.metric_rows()] == [0, 1, 2, 2, 3, 3]


def test_the_command_under_accelerate_launch(
    tiny_model: Model, preferences: Path, prompts: Path, tmp_path: Path
) -> None:
    """Both take part, in shards or not, and one of them prints."""
    ppo = {"algorithm": "ppo", **CONFIG, "updates": 1, "prompts": str(prompts)}
    config = {
        "model": str(tiny_model.folder), "preferences": str(preferences), "rl": ppo,
        "sampling": {"engine": "transformers", "max_sequence_tokens": 300},
        "reward": {"learning_rate": 1e-3, "max_sequence_tokens": 300, "minimum_pairs": 4, "epochs": 1},
        "eval": {"prompts": str(prompts), "gate": {"eos_rate": {"direction": "higher", "margin": 0.5}}},
    }  # fmt: skip
    file = tmp_path / "round.yaml"
    file.write_text(yaml.safe_dump(config))
    runs = Runs(tmp_path / "runs")

    run_round(load_config(file, RoundConfig), runs, until="reward")
    for seed, engine in enumerate([["--multi_gpu"], ["--use_fsdp", "--fsdp_version", "2"]]):
        done = launch(file, runs, engine, [f"rl.seed={seed}"])
        (run,) = (
            each for each in runs.all() if each.record.stage == "ppo" and each.record.config["seed"] == seed
        )
        assert run.record.status == "done"
        assert run.record.hardware["sharding"] == ("fsdp2" if "--use_fsdp" in engine else "none")
        assert done.stdout.count("ppo: update 1/1") == done.stdout.count(f"ppo: {run.path}") == 1


def launch(
    file: Path, runs: Runs, engine: list[str], settings: list[str]
) -> subprocess.CompletedProcess[str]:
    """`accord ppo` in two processes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    # --multi_gpu is accelerate's word for several processes of one machine, with GPUs or without
    command = [
        str(Path(sys.executable).parent / "accelerate"), "launch", *engine, "--num_processes", "2",
        "--main_process_port", str(port), "-m", "accord", "--runs", str(runs.root), "ppo", str(file), *settings,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
