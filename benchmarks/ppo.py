"""Claim: an update of PPO over a shared base takes a quarter of the time of the last PPO that TRL had (1.12).

With all weights trained, the goal is half the time in half the memory, and it is not met: docs/decisions/0009 has the
figures, also those with the peer's libraries preloaded.

    python benchmarks/ppo.py --layout shared-base --top-layers 10     # seven minutes on two quiet cores
    python benchmarks/ppo.py                                          # all weights

Both optimise the bundled model with the same prompts: 16 answers an update of at most 64 tokens, 4 epochs, a separate
critic, the same untrained reward head. TRL trains all weights in the dtype that `--trl-dtype` says; accord trains all
weights or, with `--layout`, adapters. TRL samples answers of exactly 64 tokens; accord's end at EOS, which is part of
the claim. Each runs in a process of its own, in turn, so that a busy machine slows both. The first update of each run
warms up and does not count. Memory is the trainer's peak and, for accord, that of its sampler's process in addition.
The last line printed is one JSON object. In it are the shares of an update's time, too, and the tokens that learning
goes through in a second, as products a second beside the rate of one large product on this machine.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from helpers.ppo_runs import in_a_process, prepare, trl_environment
from helpers.result import mean_ratio, print_result

from accord import bundled
from accord.preload import libraries

ANSWERS, TOKENS, EPOCHS = 16, 64, 4
PROMPT_TOKENS, PREFIX_TOKENS = 44, 24
"""Of the bundled prompts: the mean, and what they all begin with."""
LAYER_WEIGHTS, HEAD_WEIGHTS = 106.2e6, 28.3e6
"""Of the bundled model."""
GOALS = {"separate": (2.0, 0.5), "lora": (2.0, 0.5), "shared-base": (4.0, 0.35)}


def main() -> None:
    """Run the pairs and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--trl",
        type=Path,
        help="the folder that trl==1.12.0 is in; else it is installed into a temporary one",
    )
    parser.add_argument("--trl-dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--layout", choices=list(GOALS), default="separate")
    parser.add_argument("--top-layers", type=int, help="adapters in the last so many layers only")
    parser.add_argument(
        "--preload-peer",
        action="store_true",
        help="give TRL the libraries that accord's command preloads for itself",
    )
    parser.add_argument("--updates", type=int, default=2, help="that count, in each run")
    parser.add_argument("--pairs", type=int, default=1, help="how often each of the two runs")
    parser.add_argument("--worker", choices=["accord", "trl"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker = run_accord if arguments.worker == "accord" else run_trl
        figures = worker(arguments.folder, arguments)
        kib = sum(
            resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        print(json.dumps(figures | {"peak_gib": kib / 2**20}))
        return

    pairs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peer_environment = trl_environment(arguments.trl, folder)
        if arguments.preload_peer:
            peer_environment["LD_PRELOAD"] = ":".join(libraries())
        prepare(folder, arguments.layout, arguments.top_layers)
        options = [
            "--updates",
            arguments.updates,
            "--layout",
            arguments.layout,
            "--trl-dtype",
            arguments.trl_dtype,
        ]
        if arguments.top_layers:
            options += ["--top-layers", arguments.top_layers]
        for pair in range(arguments.pairs):
            ours = in_a_process(__file__, "accord", folder, options)
            peer = in_a_process(__file__, "trl", folder, options, peer_environment)
            pairs.append((ours, peer))
            print(f"pair {pair + 1}: accord {ours}\n        trl {peer}", flush=True)
    found = mean_ratio([peer["seconds"] / ours["seconds"] for ours, peer in pairs])
    memory = statistics.fmean(ours["peak_gib"] / peer["peak_gib"] for ours, peer in pairs)
    speed_goal, memory_goal = GOALS[arguments.layout]

    def mean(name: str, side: int = 0) -> float:
        return statistics.fmean(pair[side][name] for pair in pairs)

    names = ("rollout_share", "scoring_share", "learning_share", "sync_share", "answer_tokens",
             "learning_tokens_per_second", "learning_gflops", "matrix_product_gflops")  # fmt: skip
    print_result(
        "PPO episodes in a second",
        f"TRL 1.12 PPOTrainer, {arguments.trl_dtype}" + ", preloaded" * arguments.preload_peer,
        **found,
        goal=speed_goal,
        ok=found["ratio"] >= speed_goal and memory <= memory_goal,
        pairs=len(pairs),
        layout=arguments.layout,
        top_layers=arguments.top_layers,
        peak_memory_ratio=round(memory, 2),
        peak_memory_goal=memory_goal,
        episodes_per_second=round(ANSWERS / mean("seconds"), 3),
        peer_episodes_per_second=round(ANSWERS / mean("seconds", 1), 3),
        **{name: round(mean(name), 3) for name in names},
    )


def run_accord(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """The stage itself, as a round runs it."""
    from accord.models.references import resolve
    from accord.runs import DataFile, Runs
    from accord.sampling.config import SamplingConfig
    from accord.sampling.shared import SharedSampler
    from rl.config import PPOConfig
    from rl.ppo import train_ppo

    lora = {"rank": 16, "alpha": 32, "top_layers": arguments.top_layers}
    config = PPOConfig(
        algorithm="ppo", prompts="bundled:demo/prompts.train.jsonl", updates=arguments.updates + 1,
        prompts_per_update=ANSWERS, epochs_per_update=EPOCHS, max_response_tokens=TOKENS, max_sequence_tokens=256,
        checkpoint_every_updates=1000, lora=None if arguments.layout == "separate" else lora,
        shared_base=arguments.layout == "shared-base", seed=time.time_ns() % 2**31,
    )  # fmt: skip
    runs = Runs(folder / "runs")
    named = folder / "reward-run"
    reward = f"run:{named.read_text()}" if named.exists() else str(folder / "reward-model")
    with SharedSampler(
        SamplingConfig(max_sequence_tokens=256, kv_cache_gib=0.25), folder / "vllm.log"
    ) as sampler:
        run = train_ppo(
            config, runs, resolve(bundled.MODEL, runs), resolve(reward, runs),
            DataFile(folder / "pairs.jsonl"), sampler,
        )  # fmt: skip
    rows = [row for row in run.metric_rows() if "policy_loss" in row][1:]
    names = ("rollout", "scoring", "learning", "sync")
    seconds = {name: statistics.fmean(row[f"{name}_runtime"] for row in rows) for name in names}
    total = sum(seconds.values())
    tokens = statistics.fmean(row["response_tokens"] for row in rows)
    # Learning goes through what the prompts do not have in common, and the answers; a token passes a layer's weights
    # once forward and twice backward, or once if they are frozen.
    passed = ANSWERS * (PROMPT_TOKENS - PREFIX_TOKENS + tokens) * EPOCHS
    separate = arguments.layout == "separate"
    layers = LAYER_WEIGHTS * (arguments.top_layers or 30) / 30
    products = (6 if separate else 4) * (2 * layers * passed + HEAD_WEIGHTS * ANSWERS * tokens * EPOCHS)
    return {
        "seconds": total,
        "answer_tokens": tokens,
        "learning_tokens_per_second": passed / seconds["learning"],
        "learning_gflops": products / seconds["learning"] / 1e9,
        "matrix_product_gflops": matrix_product_rate() / 1e9,
        **{f"{name}_share": seconds[name] / total for name in names},
    }


def matrix_product_rate() -> float:
    """Operations a second of one large float32 product."""
    import torch

    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    a @ b
    started, products = time.perf_counter(), 0
    while time.perf_counter() - started < 2:
        a @ b
        products += 1
    return 2 * 2048**3 * products / (time.perf_counter() - started)


def run_trl(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """TRL's trainer with a separate critic, as its documentation runs it."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    assert trl.__version__ == "1.12.0", trl.__version__
    base, reward = bundled.smollm2_135m_instruct(), folder / "reward-model"
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    lines = bundled.data_path("bundled:demo/prompts.train.jsonl").read_text().splitlines()
    ids = [
        tokenizer.apply_chat_template(
            json.loads(line)["prompt"], add_generation_prompt=True, return_dict=True
        )
        for line in lines
    ]
    dataset = Dataset.from_list([{"input_ids": row["input_ids"]} for row in ids])
    dtype = getattr(torch, arguments.trl_dtype)

    def causal() -> Any:
        return AutoModelForCausalLM.from_pretrained(base, dtype=dtype)

    def scoring() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(reward, num_labels=1, dtype=dtype)

    class Clock(TrainerCallback):
        times: list[float] = []  # noqa: RUF012

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(folder / "trl"), per_device_train_batch_size=ANSWERS, gradient_accumulation_steps=1,
            num_ppo_epochs=EPOCHS, response_length=TOKENS, total_episodes=ANSWERS * (arguments.updates + 1),
            stop_token="eos", missing_eos_penalty=1.0, temperature=1.0, num_sample_generations=0, report_to="none",
            save_strategy="no", use_cpu=not torch.cuda.is_available(), bf16=False, gradient_checkpointing=False,
            disable_tqdm=True, logging_strategy="no",
        ),
        processing_class=tokenizer, model=causal(), ref_model=causal(), reward_model=scoring(), value_model=scoring(),
        train_dataset=dataset, eval_dataset=dataset.select(range(8)), callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    first, *_, last = Clock.times
    return {"seconds": (last - first) / arguments.updates}


if __name__ == "__main__":
    main()
