"""Rows of metrics also go to the trackers that accelerate knows, through its own mechanism for them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import accelerate.tracking
import pytest
from accelerate.tracking import GeneralTracker
from ppo_helpers import make_prompts, make_reward_model, run_ppo

from accord.errors import UsageError
from accord.models.references import Model
from accord.runs import Runs
from rl.config import PPOConfig
from rl.trackers import check_trackers

pytestmark = pytest.mark.usefixtures("one_thread")


class FileTracker(GeneralTracker):
    """A tracker as accelerate asks for, that writes down how it was called."""

    name = "file"
    requires_logging_directory = True
    calls: ClassVar[list[Any]] = []

    def __init__(self, run_name: str, logging_dir: Path) -> None:
        super().__init__()
        self.calls.append(("named", run_name))
        self.file = (logging_dir / "rows.jsonl").open("a")

    @property
    def tracker(self) -> Any:
        return self.file

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.calls.append(("configured", values))

    def log(self, values: dict[str, Any], step: int | None, **kwargs: Any) -> None:
        self.file.write(json.dumps({"step": step, **values}) + "\n")

    def finish(self) -> None:
        self.file.close()


@pytest.fixture
def file_tracker(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FileTracker]]:
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "file", FileTracker)
    FileTracker.calls.clear()
    yield FileTracker


def test_a_tracker_gets_the_rows_and_changes_neither_the_run_nor_its_id(
    tiny_model: Model, preferences: Path, tmp_path: Path, file_tracker: type[FileTracker]
) -> None:
    reward_model = make_reward_model(tiny_model, tmp_path / "reward-model")
    config = {
        "prompts": str(make_prompts(tmp_path / "prompts.jsonl")), "updates": 2, "prompts_per_update": 4,
        "max_response_tokens": 6, "max_sequence_tokens": 300, "learning_rate": 1e-3,
    }  # fmt: skip
    plain = run_ppo(config, tiny_model, reward_model, preferences, Runs(tmp_path / "plain"))
    config |= {"report_to": ["file"]}
    tracked = run_ppo(config, tiny_model, reward_model, preferences, Runs(tmp_path / "tracked"))
    assert tracked.id == plain.id
    name = "model/model.safetensors"
    assert tracked.record.outputs[name] == plain.record.outputs[name]
    assert tracked.record.outputs.keys() == plain.record.outputs.keys()

    rows = [json.loads(line) for line in (tracked.path / "trackers" / "rows.jsonl").read_text().splitlines()]
    assert rows == tracked.metric_rows() and [row["step"] for row in rows] == [1, 2, 2]
    (_, named), (_, configured) = file_tracker.calls
    assert named == tracked.id
    assert configured["learning_rate"] == 1e-3 and configured["report_to"] == '["file"]'

    # A reader of the board leaves things beside it; the run is still as it was made.
    (tracked.path / "trackers" / "cache").write_text("")
    tracked.check_outputs()


def test_a_tracker_that_is_missing_is_named_before_anything_is_loaded(
    tiny_model: Model, preferences: Path, runs: Runs
) -> None:
    with pytest.raises(
        UsageError, match=r"^rl.report_to: accelerate knows no tracker 'tensorbord'; .*tensorboard,"
    ):
        check_trackers(["tensorbord"])
    installed = {str(kind) for kind in accelerate.tracking.get_available_trackers()}
    missing = next(name for name in ("aim", "dvclive", "swanlab") if name not in installed)
    nowhere = Model("", Path("nowhere"), "")
    with pytest.raises(UsageError, match=f"^rl.report_to: {missing} is not installed; install it"):
        run_ppo({"prompts": "nowhere", "report_to": [missing]}, nowhere, nowhere, preferences, runs)
    assert not runs.root.exists()
    check_trackers(PPOConfig(algorithm="ppo", prompts="").report_to)
