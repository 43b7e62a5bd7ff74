"""Training a reward model: pairs per second against TRL's RewardTrainer; and an ensemble of 4 against 4 models.

    .venv/bin/python benchmarks/reward_training.py [PAIRS_OF_RUNS]

The same pairs, the same adapters on the bundled model, float32 on both sides, in processes of their own and in turn;
both with the libraries that accord's commands preload. Two shapes: rankings of four answers, which are six pairs each
and four answers to compute here, twelve for TRL; and single pairs. What is timed is the training, without loading.
The ensemble of four heads and the four models score the same answers; what is compared is the process's peak memory.
The last line is one JSON object; `ratio` is that of the rankings.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from helpers import planted
from helpers.result import Ratio, mean_ratio, print_result

from accord.preload import ALREADY, libraries

GOAL = 2.0
PROMPTS, ANSWERS = {"rankings": 32, "pairs": 96}, {"rankings": 4, "pairs": 2}
PAIRS_PER_UPDATE = 24
HEADS = 4


def judged(shape: str) -> list[Any]:
    """All pairs of every prompt's answers, the better one chosen."""
    from accord.chat.tokens import answer
    from accord.records import Preference

    rows = []
    for comparison in planted.comparisons(np.random.default_rng(0), PROMPTS[shape], ANSWERS[shape]):
        texts = sorted((each.text for each in comparison.responses), key=planted.quality, reverse=True)
        rows += [
            Preference(prompt=comparison.prompt, chosen=answer(a), rejected=answer(b))
            for a, b in itertools.combinations(texts, 2)
        ]
    return rows


def train_with_accord(shape: str, folder: Path) -> float:
    from trl import RewardConfig

    from accord import bundled
    from accord.config import LoraConfig
    from accord.models.adapters import peft_config
    from accord.models.loading import load_reward_model, load_tokenizer
    from accord.models.references import resolve
    from accord.runs import Runs
    from reward.choices import choices_from_pairs
    from reward.data import encode_choices
    from reward.trainer import GroupRewardTrainer

    base = resolve(bundled.MODEL, Runs(folder))
    tokenizer = load_tokenizer(base)
    rows = encode_choices(tokenizer, choices_from_pairs(judged(shape)))
    per_update = PAIRS_PER_UPDATE * len(rows) // len(judged(shape))
    trainer = GroupRewardTrainer(
        model=load_reward_model(base, new_head=True),
        args=RewardConfig(per_device_train_batch_size=per_update, **_arguments(folder)),
        train_dataset=rows, processing_class=tokenizer, peft_config=peft_config(base, LoraConfig(), "SEQ_CLS"),
        centering_coefficient=0.01,
    )  # fmt: skip
    return _seconds(trainer)


def train_with_trl(shape: str, folder: Path) -> float:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    from accord import bundled
    from accord.config import LoraConfig
    from accord.models.adapters import peft_config
    from accord.models.loading import load_tokenizer
    from accord.models.references import resolve
    from accord.records import messages_as_dicts
    from accord.runs import Runs

    base = resolve(bundled.MODEL, Runs(folder))
    rows = [
        {name: messages_as_dicts(getattr(row, name)) for name in ("prompt", "chosen", "rejected")}
        for row in judged(shape)
    ]
    trainer = RewardTrainer(
        model=str(base.folder),
        args=RewardConfig(
            per_device_train_batch_size=PAIRS_PER_UPDATE, center_rewards_coefficient=0.01, **_arguments(folder)
        ),
        train_dataset=Dataset.from_list(rows), processing_class=load_tokenizer(base),
        peft_config=peft_config(base, LoraConfig(), "SEQ_CLS"),
    )  # fmt: skip
    return _seconds(trainer)


def _arguments(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "num_train_epochs": 1, "learning_rate": 1e-4, "bf16": False, "use_cpu": True,
        "gradient_checkpointing": False, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "max_length": None, "logging_steps": 100,
    }  # fmt: skip


def score_with(what: str, folder: Path) -> float:
    """Score answers with an ensemble of four heads, or with four models."""
    import torch

    from accord import bundled
    from accord.chat.tokens import encode_conversation
    from accord.models.loading import load_reward_model, load_tokenizer
    from accord.models.references import resolve
    from accord.runs import Runs
    from reward.score import score_ids_by_head, set_heads

    base = resolve(bundled.MODEL, Runs(folder))
    tokenizer = load_tokenizer(base)
    rows = [encode_conversation(tokenizer, [*row.prompt, *row.chosen]).input_ids for row in judged("pairs")]
    models: list[Any] = [
        load_reward_model(base, new_head=True).eval() for _ in range(1 if what == "ensemble" else HEADS)
    ]
    if what == "ensemble":
        set_heads(models[0], torch.randn(HEADS, models[0].score.in_features))
    started = time.perf_counter()
    for model in models:
        score_ids_by_head(model, tokenizer, rows)
    return time.perf_counter() - started


def _seconds(trainer: Any) -> float:
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started


def measure(what: str, shape: str) -> dict[str, float]:
    """Seconds and peak memory [GiB] of one process."""
    environment = {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", ALREADY)}
    environment["LD_PRELOAD"] = ":".join(libraries())
    command = [sys.executable, __file__, "--what", what, "--shape", shape]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="?", type=int, default=3)
    parser.add_argument("--what", choices=["accord", "trl", "ensemble", "models"], help=argparse.SUPPRESS)
    parser.add_argument("--shape", default="pairs", choices=list(PROMPTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what:
        with tempfile.TemporaryDirectory() as folder:
            work = {"accord": train_with_accord, "trl": train_with_trl}.get(options.what)
            seconds = work(options.shape, Path(folder)) if work else score_with(options.what, Path(folder))
        gibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": seconds, "memory": gibibytes}))
        return

    ratios: dict[str, Ratio] = {}
    figures: dict[str, Any] = {}
    for shape in PROMPTS:
        pairs = PROMPTS[shape] * ANSWERS[shape] * (ANSWERS[shape] - 1) // 2
        both = [{what: measure(what, shape) for what in ("accord", "trl")} for _ in range(options.runs)]
        ratios[shape] = mean_ratio([each["trl"]["seconds"] / each["accord"]["seconds"] for each in both])
        for what in ("accord", "trl"):
            figures[f"{shape}_pairs_per_second_{what}"] = round(
                pairs / statistics.median(each[what]["seconds"] for each in both), 2
            )
            figures[f"{shape}_memory_{what}"] = round(
                statistics.median(each[what]["memory"] for each in both), 2
            )
        print(
            shape,
            ratios[shape],
            {key: value for key, value in figures.items() if key.startswith(shape)},
            flush=True,
        )
    ensemble, models = measure("ensemble", "pairs"), measure("models", "pairs")
    figures |= {
        "ensemble_memory": round(ensemble["memory"], 2), "models_memory": round(models["memory"], 2),
        "ensemble_seconds": round(ensemble["seconds"], 2), "models_seconds": round(models["seconds"], 2),
    }  # fmt: skip
    print_result(
        "a reward model learns from rankings of four faster",
        "trl's RewardTrainer on their pairs",
        **ratios["rankings"],
        goal=GOAL,
        ok=ratios["rankings"]["low"] >= GOAL,
        **{f"pairs_{name}": value for name, value in ratios["pairs"].items()},
        **figures,
    )


if __name__ == "__main__":
    main()
