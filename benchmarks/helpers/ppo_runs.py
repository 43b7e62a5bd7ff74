"""What the benchmarks of PPO have in common: two trainers, each in a process of its own, and what both start from."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from accord import bundled
from accord.preload import libraries


def trl_environment(folder: Path | None, temporary: Path) -> dict[str, str]:
    """An environment in which TRL 1.12 stands before the installed one; it is installed where no folder has it."""
    if folder is None:
        folder = temporary / "trl"
        install = ["-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), "trl==1.12.0"]
        subprocess.run([sys.executable, *install], check=True)
    return {"PYTHONPATH": str(folder), "TRL_EXPERIMENTAL_SILENCE": "1"}


def in_a_process(
    script: str, worker: str, folder: Path, options: list[Any], environment: dict[str, str] | None = None
) -> Any:
    """Run one of the two in a process of its own; accord's with the libraries that its command preloads."""
    if environment is None:
        environment = {"LD_PRELOAD": ":".join(libraries())}
    command = [sys.executable, script, "--worker", worker, "--folder", str(folder), *map(str, options)]
    done = subprocess.run(
        command, env=dict(os.environ) | environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def prepare(folder: Path, layout: str, top_layers: int | None = None) -> None:
    """A reward model (untrained head), and for a shared base the run with its adapter; and a pair to hold out."""
    from accord.models.loading import load_reward_model, load_tokenizer
    from accord.models.references import resolve
    from accord.records import Message, Preference
    from accord.runs import DataFile, Runs
    from accord.text_files import write_jsonl
    from reward.config import RewardConfig
    from reward.train import train_reward_model
    from reward.trainer import initialise_heads

    runs = Runs(folder / "runs")
    base = resolve(bundled.MODEL, runs)
    pairs = [
        Preference(
            prompt=[Message(role="user", content=f"Say {word}.")],
            chosen=[Message(role="assistant", content=word)],
            rejected=[Message(role="assistant", content="No.")],
        )
        for word in ("yes", "one", "two", "three", "four", "five")
    ]
    write_jsonl(folder / "pairs.jsonl", pairs)
    if layout == "shared-base":
        config = RewardConfig(
            lora={"rank": 16, "alpha": 32, "top_layers": top_layers}, minimum_pairs=1, learning_rate=1e-5
        )
        run = train_reward_model(config, runs, base, DataFile(folder / "pairs.jsonl"))
        (folder / "reward-model").symlink_to(run.path / "model")
        (folder / "reward-run").write_text(run.id)
        return
    model: Any = load_reward_model(base, new_head=True)
    initialise_heads(model.score, seed=0)
    model.save_pretrained(folder / "reward-model")
    load_tokenizer(base).save_pretrained(folder / "reward-model")
