"""Running a training stage in this process or in one that is killed, and looking into TRL's trainer while it runs.

python training_helpers.py STAGE CONFIG_JSON MODEL_FOLDER DATA RUNS KILL_AT
"""

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import transformers
from transformers import PreTrainedTokenizerBase, TrainerCallback

from accord.models.references import Model
from accord.records import Demonstration
from accord.runs import DataFile, Run, Runs
from accord.text_files import write_jsonl

TIMES = ("_runtime", "_per_second", "step_time")


def worker_of(launching: int, rank: int) -> psutil.Process | None:
    """The stage's process of that rank, below the command that launched it."""
    for process in psutil.Process(launching).children(recursive=True):
        try:
            if process.environ().get("RANK") == str(rank) and "accord" in process.cmdline():
                return process
        except psutil.Error:
            continue
    return None


def run_stage(stage: str, config: dict[str, Any], base: Model, data: Path, runs: Runs) -> Run:
    """One run of "sft", "reward", "dpo" or "kto" on a file."""
    if stage == "sft":
        from sft.config import SFTConfig
        from sft.train import fine_tune

        return fine_tune(SFTConfig(demonstrations=[{"path": str(data)}], **config), runs, base)
    if stage == "reward":
        from reward.config import RewardConfig
        from reward.train import train_reward_model

        return train_reward_model(RewardConfig(**config), runs, base, DataFile(data))
    if stage == "kto":
        from rl.config import KTOConfig
        from rl.kto import train_kto

        return train_kto(KTOConfig(algorithm="kto", **config), runs, base, DataFile(data))
    from rl.config import DPOConfig
    from rl.dpo import train_dpo

    return train_dpo(DPOConfig(**config), runs, base, DataFile(data))


def run_stage_and_be_killed(
    stage: str, config: dict[str, Any], base: Model, data: Path, runs: Runs, kill_at: str
) -> None:
    """The same in a process of its own that gets SIGKILL before update `kill_at`, or at "train_end",
    "card" or "finish"."""
    # A fork server imports torch and TRL once; its children are forked in no time and die alone.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sft.train", "reward.train", "rl.dpo", "rl.kto"])
    process = context.Process(target=_run_and_die, args=(stage, config, base, data, runs.root, kill_at))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _run_and_die(
    stage: str, config: dict[str, Any], base: Model, data: Path, root: Path, kill_at: str
) -> None:
    import torch

    torch.set_num_threads(1)
    if kill_at == "finish":
        Run.finish = kill_this_process  # type: ignore[method-assign]
    if kill_at == "card":
        import sft.report_card

        sft.report_card.judge = kill_this_process  # the last that is made of a fine-tuning's report card
    with every_trainer_calls(kill_at, kill_this_process):
        run_stage(stage, config, base, data, Runs(root))


def kill_this_process(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class At(TrainerCallback):
    """Calls `action(model=..., train_dataloader=..., ...)` before an update, or at "train_begin" or "train_end"."""

    def __init__(self, when: str, action: Callable[..., None]):
        self.when = when
        self.action = action

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        if self.when == "train_begin":
            self.action(**objects)

    def on_step_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        if self.when == str(state.global_step + 1):
            self.action(**objects)

    def on_train_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        if self.when == "train_end":
            self.action(**objects)


@contextmanager
def every_trainer_calls(when: str, action: Callable[..., None]) -> Iterator[None]:
    """Within it, every transformers trainer has the callback `At(when, action)`."""
    callbacks = transformers.trainer.DEFAULT_CALLBACKS
    callbacks.append(At(when, action))  # type: ignore[arg-type]
    try:
        yield
    finally:
        callbacks.pop()


def rows_without_times(run: Run) -> list[dict[str, Any]]:
    """The run's metric rows but for what a clock put there."""
    return [
        {key: value for key, value in row.items() if not key.endswith(TIMES)} for row in run.metric_rows()
    ]


def assert_same(run: Run, other: Run) -> None:
    """Equal rows, figures, counts and, bitwise, weights."""
    assert rows_without_times(run) == rows_without_times(other)
    assert run.metrics == other.metrics
    assert run.record.dropped == other.record.dropped
    files = [name for name in run.record.outputs if name.endswith(".safetensors")]
    assert files
    for name in files:  # bitwise: the recorded SHA-256 of the file
        assert run.record.outputs[name] == other.record.outputs[name], name


def encoded_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Demonstration], thinking: str = "learn"
) -> list[dict[str, list[int]]]:
    """The `input_ids` and `labels` of demonstrations, in their order, as a fine-tuning has them."""
    from sft.config import SFTConfig
    from sft.data import open_data_run, prepare

    with tempfile.TemporaryDirectory() as folder:
        write_jsonl(Path(folder) / "rows.jsonl", rows)
        config = SFTConfig.model_validate(
            {
                "demonstrations": str(Path(folder) / "rows.jsonl"), "heldout_fraction": 0, "thinking": thinking,
                "max_sequence_tokens": 100_000,
            }
        )  # fmt: skip
        data = open_data_run(prepare(config, Runs(folder), tokenizer))
        return [dict(row) for row in data.rows.sort("line").select_columns(["input_ids", "labels"])]
