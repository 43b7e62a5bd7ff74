"""Two claims about `rl.overlap_updates: 1`: more updates a minute, and scores that are as high after as many updates.

    python benchmarks/overlap.py                 # most of an hour on two quiet cores
    python benchmarks/overlap.py --smoke         # tiny models and two updates: whether it works at all

- *Time.* The bundled model learns all but its first layers by adapters over a shared base; vLLM has one core and the
  trainer another, as if each had a device of its own. Runs with 0 and 1 take turns, in an order that changes. The
  figure is updates a minute, but for the first update and the last one, which overlap with nothing.
- *Learning.* A tiny random model learns to write vowels, with 0 and 1 and each of some seeds. The held-out scores after
  the last update must be within each other's 95% intervals.

The last line printed is one JSON object: the claim about time, and the other in `further_claims`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from helpers.ppo_runs import in_a_process, prepare
from helpers.result import mean_ratio, print_result

from accord import bundled

GOAL = 1.15


def main() -> None:
    """Measure both and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=4, help="runs with 0 and with 1 for the time")
    parser.add_argument("--updates", type=int, default=8, help="of a run for the time")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-updates", type=int, default=40)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--worker", choices=["time", "learning"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--overlap", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.smoke:
        options.pairs, options.updates, options.seeds, options.learning_updates = 1, 4, 1, 3
    if options.worker:
        worker = time_of_updates if options.worker == "time" else learn
        print(json.dumps(worker(options.folder, options)))
        return

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_tiny_model(folder)
        if not options.smoke:
            prepare(folder, "shared-base", top_layers=24)
        common = [*(["--smoke"] if options.smoke else []), "--updates", options.updates,
                  "--learning-updates", options.learning_updates]  # fmt: skip
        ratios, minutes = [], {0: [], 1: []}  # type: ignore[var-annotated]
        for pair in range(options.pairs):
            for overlap in (0, 1) if pair % 2 == 0 else (1, 0):
                arguments = [*common, "--overlap", overlap, "--seed", pair]
                minutes[overlap].append(in_a_process(__file__, "time", folder, arguments))
            ratios.append(minutes[1][-1] / minutes[0][-1])
            print(
                f"pair {pair + 1}: {minutes[0][-1]:.2f} and {minutes[1][-1]:.2f} updates a minute", flush=True
            )
        curves = []
        for seed in range(options.seeds):
            both = [
                in_a_process(__file__, "learning", folder, [*common, "--overlap", overlap, "--seed", seed])
                for overlap in (0, 1)
            ]
            curves.append(both)
            for overlap, found in enumerate(both):
                scores = ", ".join(f"{score:.3f}" for score in found["scores"])
                print(f"seed {seed}, overlap {overlap}: {scores} (last one +- {1.96 * found['error']:.3f})")
    ratio = mean_ratio(ratios)
    apart = [abs(a["scores"][-1] - b["scores"][-1]) for a, b in curves]
    within = [
        distance <= 1.96 * min(a["error"], b["error"]) for distance, (a, b) in zip(apart, curves, strict=True)
    ]
    print_result(
        "updates a minute with rl.overlap_updates=1", "rl.overlap_updates=0", **ratio, goal=GOAL,
        ok=ratio["low"] >= GOAL,
        updates_a_minute={overlap: round(statistics.fmean(each), 3) for overlap, each in minutes.items()},
        further_claims=[
            {
                "claim": "held-out scores of both are within each other's 95% intervals",
                "ok": all(within), "seeds": len(within), "within": sum(within),
                "differences": [round(distance, 4) for distance in apart],
            }
        ],
    )  # fmt: skip


def time_of_updates(folder: Path, options: argparse.Namespace) -> float:
    """Updates a minute, sampler and trainer with a core each."""
    import torch

    from accord.models.references import resolve
    from accord.runs import Runs
    from accord.sampling import SamplingConfig
    from accord.sampling.shared import SharedSampler

    for_trainer, for_sampler = sorted(os.sched_getaffinity(0))[:2]
    torch.set_num_threads(1)
    runs = Runs(folder / "runs")
    model = resolve(str(folder / "tiny") if options.smoke else bundled.MODEL, runs)
    config = SamplingConfig(engine="vllm", max_sequence_tokens=256, answers_at_once=32, kv_cache_gib=0.5)
    with SharedSampler(config, folder / "vllm.log") as sampler:
        os.sched_setaffinity(0, {for_sampler})  # the engine starts with it, and keeps it
        sampler.use(model)
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), {for_trainer})
        settings = {"updates": options.updates, "seed": options.seed, "overlap_updates": options.overlap}
        rows = rows_of(folder, runs, model, sampler, settings, options.smoke)
    seconds = [
        sum(value for name, value in row.items() if name.endswith("_runtime"))
        for row in rows
        if "policy_loss" in row
    ][1:-1]
    return 60 * len(seconds) / sum(seconds)


def learn(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Held-out scores of a run with a tiny model, and the standard error of the last one."""
    import torch

    from accord.models.references import resolve
    from accord.runs import Runs
    from accord.sampling import SamplingConfig
    from accord.sampling.shared import SharedSampler

    torch.set_num_threads(1)
    runs = Runs(folder / "runs")
    settings = {
        "updates": options.learning_updates, "seed": options.seed, "overlap_updates": options.overlap,
        "evaluate_every_updates": max(1, options.learning_updates // 8),
    }  # fmt: skip
    with SharedSampler(SamplingConfig(engine="transformers", max_sequence_tokens=256)) as sampler:
        rows = rows_of(folder, runs, resolve(str(folder / "tiny"), runs), sampler, settings, tiny=True)
    evaluated = [row for row in rows if "eval_score" in row]
    return {
        "scores": [row["eval_score"] for row in evaluated],
        "error": evaluated[-1]["eval_score_standard_error"],
    }


def rows_of(
    folder: Path, runs: Any, model: Any, sampler: Any, settings: dict[str, Any], tiny: bool
) -> list[dict[str, Any]]:
    """Run PPO; returns its rows of metrics."""
    from accord.models.references import resolve
    from accord.records import Message, Preference, Prompt
    from accord.runs import DataFile
    from accord.text_files import write_jsonl
    from rl.config import PPOConfig
    from rl.ppo import train_ppo

    prompts, pairs = folder / "prompts.jsonl", folder / "held-out.jsonl"
    question = "Give me advice number {} on how to spend a day."
    asked = [[Message(role="user", content=question.format(i))] for i in range(400)]
    write_jsonl(prompts, [Prompt(prompt=each) for each in asked[:200]])
    answers = {
        name: [Message(role="assistant", content=text)]
        for name, text in (("chosen", "aei"), ("rejected", "xyz"))
    }
    write_jsonl(pairs, [Preference(prompt=each, **answers) for each in asked[200:]])
    shared = {"prompts": str(prompts), "missing_eos": "subtract", "missing_eos_penalty": 0.0,
              "max_sequence_tokens": 256}  # fmt: skip
    if tiny:
        reward = f"{Path(__file__).parent / 'helpers' / 'ppo_rewards.py'}:vowels"
        layout: dict[str, Any] = {
            "reward_function": reward, "prompts_per_update": 32, "max_response_tokens": 16, "learning_rate": 1e-3,
            "heldout_fraction": 0.9, "kl_coefficient": 0.01,
        }  # fmt: skip
        reward_model = resolve(str(folder / "tiny-reward"), runs)
    else:
        layout = {
            "prompts_per_update": 32, "max_response_tokens": 64, "epochs_per_update": 2, "learning_rate": 1e-4,
            "heldout_fraction": 0.05, "shared_base": True, "lora": {"rank": 16, "alpha": 32, "top_layers": 24},
        }  # fmt: skip
        reward_model = resolve((folder / "reward-run").read_text(), runs)
    config = PPOConfig.model_validate({"algorithm": "ppo", **shared, **layout, **settings})
    return train_ppo(config, runs, model, reward_model, DataFile(pairs), sampler).metric_rows()


def make_tiny_model(folder: Path) -> None:
    """A random model of two layers over bytes with the bundled model's chat template, and a reward model on it.

    In a process of its own, because this one imports no torch.
    """
    script = f"""
from pathlib import Path
import tokenizers, torch
from tokenizers import decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from accord import bundled
special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
words = special + sorted(pre_tokenizers.ByteLevel.alphabet())
backend = tokenizers.Tokenizer(models.BPE(vocab={{word: i for i, word in enumerate(words)}}, merges=[]))
backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
backend.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=special[0], bos_token=special[1],
                                    eos_token=special[2], model_max_length=1024)
tokenizer.chat_template = (Path(bundled.__file__).parent / "smollm2_chat_template.jinja").read_text()
torch.manual_seed(0)
config = dict(vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
              num_key_value_heads=1, head_dim=32, max_position_embeddings=1024, initializer_range=0.1,
              tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2)
for kind, name, more in ((LlamaForCausalLM, "tiny", {{}}), (LlamaForSequenceClassification, "tiny-reward", {{"num_labels": 1}})):
    kind(LlamaConfig(**config, **more)).save_pretrained(Path({str(folder)!r}) / name)
    tokenizer.save_pretrained(Path({str(folder)!r}) / name)
"""  # noqa: E501
    subprocess.run([sys.executable, "-c", script], check=True)


if __name__ == "__main__":
    main()
