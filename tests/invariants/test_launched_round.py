"""A round that launches its training: one command, a killed process, several machines."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ppo_helpers import make_prompts
from safetensors.torch import load_file
from torch.testing import assert_close
from training_helpers import worker_of

from accord.config import load_config
from accord.models.references import Model
from accord.round import run_round
from accord.round_config import RoundConfig
from accord.runs import Runs

pytestmark = pytest.mark.usefixtures("one_thread")

PPO = {
    "algorithm": "ppo", "updates": 3, "prompts_per_update": 6, "epochs_per_update": 2, "max_response_tokens": 8,
    "max_sequence_tokens": 300, "learning_rate": 3e-4, "seed": 3,
}  # fmt: skip


@pytest.fixture
def written(tiny_model: Model, preferences: Path, tmp_path: Path) -> Path:
    """The configuration of a round, whose reward model is trained by one process."""
    prompts = make_prompts(tmp_path / "prompts.jsonl")
    config = {
        "model": str(tiny_model.folder), "preferences": str(preferences), "rl": {**PPO, "prompts": str(prompts)},
        "sampling": {"engine": "transformers", "max_sequence_tokens": 300},
        "reward": {"learning_rate": 1e-3, "max_sequence_tokens": 300, "minimum_pairs": 4, "epochs": 1},
    }  # fmt: skip
    file = tmp_path / "round.yaml"
    file.write_text(yaml.safe_dump(config))
    run_round(load_config(file, RoundConfig), Runs(tmp_path / "runs"), until="reward")
    return file


def kill_after_first_update(root: Path) -> threading.Thread:
    def wait_and_kill() -> None:
        until = time.monotonic() + 200
        while time.monotonic() < until:
            rows = [path.read_text() for path in root.glob("ppo-*/metrics.jsonl")]
            if rows and '"step": 1' in rows[0] and (process := worker_of(os.getpid(), 1)):
                process.kill()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=wait_and_kill)
    thread.start()
    return thread


def test_a_round_launches_ppo_and_goes_on_after_a_killed_process(
    written: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "accord")
    shutil.copytree(tmp_path / "runs", tmp_path / "alone")
    killer = kill_after_first_update(tmp_path / "runs")
    shards = load_config(written, RoundConfig, ["compute.devices=2", "compute.sharding=fsdp2"])
    two = run_round(shards, Runs(tmp_path / "runs"))
    killer.join()
    said = [record.getMessage() for record in caplog.records if record.name == "accord.compute.launch"]
    assert said == [
        "ppo: starts in 2 processes, sharded by fsdp2",
        "ppo: a worker was lost (signal 9); starts again from its last checkpoint (1 of 3)",
    ]
    assert len(two.record.continued_at) == 1

    one = run_round(load_config(written, RoundConfig), Runs(tmp_path / "alone"))
    assert (two.id, two.is_done) == (one.id, True)
    weights, others = (load_file(run.path / "model" / "model.safetensors") for run in (one, two))
    for name, weight in weights.items():
        assert_close(weight, others[name], atol=2e-4, rtol=0, msg=name)


def test_two_machines_run_the_same_command(written: Path, tmp_path: Path) -> None:
    """Two commands stand for two machines; each has one process of the stage."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        rendezvous = f"127.0.0.1:{server.getsockname()[1]}"
    command = [
        sys.executable, "-m", "accord", "--runs", str(tmp_path / "runs"), "round", str(written), "rl.updates=1",
        "compute.machines=2", f"compute.rendezvous={rendezvous}",
    ]  # fmt: skip
    machines: list[Any] = [
        subprocess.Popen(
            command, env={**os.environ, "ACCORD_MACHINE": str(number)}, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in (1, 0)
    ]  # fmt: skip
    try:
        (_, followed), (shown, said) = (machine.communicate(timeout=200) for machine in machines)
    finally:
        for machine in machines:
            machine.send_signal(signal.SIGKILL)
    assert [machine.returncode for machine in machines] == [0, 0], said + followed
    (run,) = [run for run in Runs(tmp_path / "runs").all() if run.record.stage == "ppo"]
    assert run.is_done and f"ppo: {run.path}" in shown
    assert "ppo: starts in 2 processes on 2 machines" in said
    assert "waits for the first machine" in followed
