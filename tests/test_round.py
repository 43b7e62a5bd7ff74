"""A whole round by its command, every part real: model, Argilla, sampler, trainers, gate. Killed twice on the way.

The round is configs/tiny.yaml, in the transformers' or vLLM's sampler, whichever `auto` finds.
"""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from processor_time import processor_seconds_of_children

ROOT = Path(__file__).parents[1]
ACCORD = str(Path(sys.executable).parent / "accord")
STAGES = ["data", "sft", "feedback", "reward", "dpo", "eval"]
SECONDS_FOR_A_STAGE = 600


@pytest.fixture(scope="module")
def runs_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("round") / "runs"


@pytest.fixture(scope="module")
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accord(runs_root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [ACCORD, "--runs", str(runs_root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=1200)


def start_round(runs_root: Path, port: int) -> subprocess.Popen[str]:
    arguments = ["--runs", str(runs_root), "round", str(ROOT / "configs/tiny.yaml"), f"feedback.port={port}"]
    return subprocess.Popen([ACCORD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_during(stage: str, runs_root: Path, port: int) -> None:
    """Start the round and end it with SIGKILL as soon as the stage has written a checkpoint."""
    process = start_round(runs_root, port)
    deadline = time.monotonic() + SECONDS_FOR_A_STAGE
    try:
        while not list(runs_root.glob(f"{stage}-*/checkpoints/checkpoint-*/trainer_state.json")):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, f"no checkpoint of {stage} in time"
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def records(runs_root: Path) -> dict[str, dict[str, Any]]:
    listed = json.loads(accord(runs_root, "runs", "list", "--json").stdout)
    return {record["stage"]: record for record in listed}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_round_that_is_killed_twice_still_ends_with_a_verdict(runs_root: Path, free_port: int) -> None:
    kill_during("reward", runs_root, free_port)
    before = records(runs_root)
    assert before["reward"]["status"] == "running"
    kill_during("dpo", runs_root, free_port)

    process = start_round(runs_root, free_port)
    output = process.communicate(timeout=SECONDS_FOR_A_STAGE)[0]
    assert process.returncode in (0, 10, 11), output
    assert "verdict: " in output and "report.html" in output

    after = records(runs_root)
    assert sorted(after) == sorted(STAGES)
    assert {record["status"] for record in after.values()} == {"done"}
    assert after["sft"] == before["sft"], "a finished stage was written again"
    assert after["feedback"] == before["feedback"], "a finished stage was written again"
    assert len(after["reward"]["continued_at"]) == 1 and len(after["dpo"]["continued_at"]) == 1


@pytest.mark.slow
def test_the_same_command_again_reuses_everything(runs_root: Path, free_port: int) -> None:
    before = records(runs_root)
    started = processor_seconds_of_children()
    process = start_round(runs_root, free_port)
    output = process.communicate(timeout=SECONDS_FOR_A_STAGE)[0]
    assert process.returncode in (0, 10, 11), output
    assert processor_seconds_of_children() - started < 60
    assert records(runs_root) == before


@pytest.mark.slow
def test_lineage_reaches_the_input_files_and_verifies(runs_root: Path) -> None:
    run_id = records(runs_root)["eval"]["id"]
    lineage = json.loads(accord(runs_root, "runs", "lineage", run_id, "--json").stdout)
    assert sorted(record["stage"] for record in lineage) == sorted(STAGES)
    files = {role for record in lineage for role in record["inputs"]}
    assert {"base", "demonstrations_0", "prompts", "suite:sentence_pairs"} <= files
    assert accord(runs_root, "runs", "verify").returncode == 0


@pytest.mark.slow
def test_every_ranking_came_through_argilla_from_its_own_user(runs_root: Path) -> None:
    folder = runs_root / records(runs_root)["feedback"]["id"]
    comparisons = [json.loads(line) for line in (folder / "comparisons.jsonl").read_text().splitlines()]
    assert len(comparisons) == 10
    for comparison in comparisons:
        annotators = [ranking["annotator"] for ranking in comparison["rankings"]]
        assert len(annotators) == len(set(annotators)) == 4
        assert all(name.startswith("simulated_") for name in annotators)


@pytest.mark.slow
def test_edited_weights_are_refused(runs_root: Path, free_port: int) -> None:
    weights = next(runs_root.glob("dpo-*/model/model.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        refused = accord(runs_root, "promote", records(runs_root)["eval"]["id"])
        assert refused.returncode == 1 and "was changed after it finished" in refused.stderr
        assert accord(runs_root, "runs", "verify").returncode == 1
        process = start_round(runs_root, free_port)
        output = process.communicate(timeout=SECONDS_FOR_A_STAGE)[0]
        assert process.returncode == 1 and "was changed after it finished" in output
    finally:
        weights.write_bytes(content)


@pytest.mark.slow
def test_the_next_round_asks_about_what_the_reward_model_is_unsure_of(
    runs_root: Path, free_port: int, tmp_path: Path
) -> None:
    reward = records(runs_root)["reward"]["id"]
    chosen = (
        "feedback.selection=uncertainty", "feedback.max_comparisons=6", f"feedback.selection_reward_model=run:{reward}",
        "feedback.gold=bundled:demo/gold.jsonl", "feedback.duplicate_rate=0.5", f"feedback.port={free_port}",
    )  # fmt: skip
    pulled = accord(runs_root, "feedback", "pull", str(ROOT / "configs/tiny.yaml"), *chosen)
    assert pulled.returncode == 0, pulled.stderr
    (record,) = [
        each
        for each in json.loads(accord(runs_root, "runs", "list", "--json").stdout)
        if each["stage"] == "feedback" and reward in each["parents"].values()
    ]
    folder = runs_root / record["id"]
    rows = [json.loads(line) for line in (folder / "comparisons.jsonl").read_text().splitlines()]
    asked = [row for row in rows if "duplicate_of" not in row and "gold_ranks" not in row]
    assert (len(rows), len(asked)) == (6 + 3 + 1, 6)
    probabilities = {row["selection_probability"] for row in asked}
    assert len(probabilities) > 1 and all(0 < value <= 1 for value in probabilities)

    figures = json.loads(accord(runs_root, "feedback", "agreement", record["id"], "--json").stdout)
    assert (figures["gold_records"], figures["duplicates"]) == (1, 3)
    told = accord(runs_root, "feedback", "agreement", record["id"]).stdout
    assert "Krippendorff" in told and "simulated_careful" in told
    data = tmp_path / "data"
    exported = accord(runs_root, "feedback", "export", record["id"], "--output", str(data))
    assert exported.returncode == 0, exported.stderr
    assert "SIMULATED" in (data / "README.md").read_text()


@pytest.mark.slow
def test_ppo_takes_the_place_of_dpo_and_reuses_what_came_before(runs_root: Path, free_port: int) -> None:
    before = records(runs_root)
    arguments = ("round", str(ROOT / "configs/tiny-ppo.yaml"), f"feedback.port={free_port}")
    done = accord(runs_root, *arguments)
    assert done.returncode in (0, 10, 11), done.stdout + done.stderr
    after = records(runs_root)
    assert {stage: after[stage] for stage in STAGES[:5]} == {stage: before[stage] for stage in STAGES[:5]}
    assert after["ppo"]["parents"].keys() == {"policy", "reward_model", "preferences"}
    assert after["ppo"]["parents"]["reward_model"] == after["reward"]["id"]
    assert after["eval"]["parents"]["candidate"] == after["ppo"]["id"]
    rows = (runs_root / after["ppo"]["id"] / "metrics.jsonl").read_text().splitlines()
    updates = [json.loads(row) for row in rows if "policy_loss" in row]
    assert [row["first_ratio_deviation"] for row in updates] == [0, 0]
    assert updates[0]["kl_k3_nats"] == pytest.approx(0, abs=1e-6) and updates[1]["kl_k3_nats"] > 0
