"""Fine-tuning on packed conversations: tokens per second against TRL's SFTTrainer with its best packing.

    .venv/bin/python benchmarks/sft_packing.py [PAIRS_OF_RUNS]

The same conversations (the demo's, several times over with a number before each), LoRA on the bundled model, the same
length, the same dtype: bfloat16 where the processor multiplies in it. Each in a process of its own, in turn, both with
the libraries that accord's commands preload. What is timed is the training; a token is one that the model reads, of
the conversations, without padding. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from helpers.result import mean_ratio, print_result

from accord.preload import ALREADY, libraries

GOAL = 1.0
ROWS, LENGTH, ROWS_PER_UPDATE = 240, 512, 4


def conversations() -> list[dict[str, Any]]:
    from accord.bundled import data_path

    path = data_path("bundled:demo/demonstrations.train.jsonl")
    shipped = [json.loads(line) for line in path.read_text().splitlines()]
    rows = []
    for i in range(ROWS):
        row = json.loads(json.dumps(shipped[i % len(shipped)]))
        row["messages"][-2]["content"] = f"({i}) {row['messages'][-2]['content']}"
        rows.append({"messages": row["messages"]})
    return rows


def with_accord(folder: Path) -> dict[str, float]:
    import sft.train
    from accord import bundled
    from accord.models.references import resolve
    from accord.runs import Runs
    from sft.config import SFTConfig
    from sft.data import prepare

    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in conversations()))
    runs = Runs(folder / "runs")
    seconds = 0.0
    train = sft.train.train_in_run

    def timed(*arguments: Any, **options: Any) -> None:
        nonlocal seconds
        started = time.perf_counter()
        train(*arguments, **options)
        seconds = time.perf_counter() - started

    sft.train.train_in_run = timed
    config = SFTConfig.model_validate(
        {
            "demonstrations": str(folder / "rows.jsonl"), "heldout_fraction": 0, "packing": True, "lora": {},
            "max_sequence_tokens": LENGTH, "rows_per_update": ROWS_PER_UPDATE, "rows_per_pass": ROWS_PER_UPDATE,
            "precision": "auto", "checkpoint_every_updates": 10_000,
        }
    )  # fmt: skip
    base = resolve(bundled.MODEL, runs)
    run = sft.train.fine_tune(config, runs, base)
    tokens = prepare(config, runs, sft.train.load_tokenizer(base)).metrics["tokens_an_epoch"]
    return {"seconds": seconds, "tokens": tokens, "updates": run.metrics["updates"]}


def with_trl(folder: Path) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from accord import bundled
    from accord.config import LoraConfig
    from accord.models.adapters import peft_config
    from accord.models.loading import load_tokenizer
    from accord.models.references import resolve
    from accord.runs import Runs
    from accord.training import computes_in_bfloat16
    from accord.training_config import TrainingConfig

    base = resolve(bundled.MODEL, Runs(folder))
    in_bfloat16 = computes_in_bfloat16(TrainingConfig(precision="auto"))
    trainer = SFTTrainer(
        model=str(base.folder),
        args=SFTConfig(
            output_dir=str(folder), packing=True, max_length=LENGTH, per_device_train_batch_size=ROWS_PER_UPDATE,
            num_train_epochs=1, bf16=in_bfloat16, use_cpu=not torch.cuda.is_available(), save_strategy="no",
            report_to="none", disable_tqdm=True, gradient_checkpointing=False, learning_rate=2e-5, logging_steps=1,
            model_init_kwargs={"dtype": torch.bfloat16 if in_bfloat16 else torch.float32},
        ),
        train_dataset=Dataset.from_list(conversations()), processing_class=load_tokenizer(base),
        peft_config=peft_config(base, LoraConfig(), "CAUSAL_LM"),
    )  # fmt: skip
    tokens = sum(len(ids) for ids in trainer.train_dataset["input_ids"])
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens": tokens, "updates": trainer.state.global_step}


def measure(what: str) -> dict[str, float]:
    environment = {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", ALREADY)}
    environment["LD_PRELOAD"] = ":".join(libraries())
    command = [sys.executable, __file__, "--what", what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found = dict(json.loads(done.stdout.splitlines()[-1]))
    return {**found, "rate": found["tokens"] / found["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="?", type=int, default=3)
    parser.add_argument("--what", choices=["accord", "trl"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what:
        with tempfile.TemporaryDirectory() as folder:
            found = (with_accord if options.what == "accord" else with_trl)(Path(folder))
        print(json.dumps(found))
        return
    pairs = []
    for i in range(options.runs):
        order = ("accord", "trl") if i % 2 == 0 else ("trl", "accord")
        pairs.append({what: measure(what) for what in order})
        print(pairs[-1], flush=True)
    ratio = mean_ratio([pair["accord"]["rate"] / pair["trl"]["rate"] for pair in pairs])
    rates = {
        f"tokens_per_second_{what}": round(statistics.median(pair[what]["rate"] for pair in pairs), 1)
        for what in ("accord", "trl")
    }
    print_result(
        "packed conversations are learned as fast", "trl's SFTTrainer with packing=True", **ratio, goal=GOAL,
        ok=ratio["high"] >= GOAL, **rates, updates=pairs[0]["accord"]["updates"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
