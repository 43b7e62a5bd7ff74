"""What tests/random_kills.py runs, and what it takes for a difference."""

import json
from pathlib import Path
from typing import Any

import pytest
from undisturbed import STAGES, differing, write_config

from accord.config import load_config
from accord.round_config import RoundConfig
from accord.runs import RunRecord


@pytest.mark.parametrize("name", STAGES)
def test_the_configurations_are_whole(tmp_path: Path, name: str) -> None:
    config = load_config(write_config(tmp_path, name, 6900), RoundConfig)
    sections = {"data": "sft", "sft": "sft", "feedback": "feedback", "reward": "reward", "eval": "eval"}
    assert getattr(config, sections.get(name, "rl")) is not None


def write_run(
    folder: Path, at: str = "01:00", loss: float = 0.5, accuracy: str = "0.812", **files: bytes
) -> Path:
    """A run's folder with a page, rows of metrics and a record that tells their hashes."""
    folder.mkdir()
    page = f"<p>29 November 2026, {at} UTC</p><table><tr><td>accuracy</td><td>{accuracy}</td></tr></table>"
    (folder / "report.html").write_text(page)
    row: dict[str, Any] = {"step": 1, "loss": loss, "eval_runtime": hash(at) % 100}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    record = RunRecord(
        id="sft-000000000000", stage="sft", status="done", config={}, parents={}, inputs={}, code={}, packages={},
        hardware={}, seed=0, started_at=f"2026-11-29T{at}", outputs={"report.html": at, "metrics.jsonl": at, "x": "1"},
    )  # fmt: skip
    (folder / "record.json").write_text(record.model_dump_json())
    return folder


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({}, []),
        ({"at": "23:59"}, []),
        ({"loss": 0.5000001}, ["metrics.jsonl"]),
        ({"accuracy": "0.813"}, ["report.html"]),
        ({"weights": b"\0\1"}, ["weights"]),
        ({"left_over": b""}, ["left_over"]),
    ],
)
def test_only_times_may_differ(tmp_path: Path, change: dict[str, Any], differs: list[str]) -> None:
    one = write_run(tmp_path / "one", weights=b"\0\0")
    other = write_run(tmp_path / "other", **{"weights": b"\0\0", **change})
    assert differing(one, other) == differs
