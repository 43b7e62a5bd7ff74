"""What best of n, PPO and DPO make of the same number of sampled answers: the simulated annotators' utility after each.

    .venv/bin/python benchmarks/policy_optimisers.py [--seeds 1] [--out FOLDER] [--smoke]

Each is a round on the bundled model with the demo's fine-tuning. PPO and best of n learn from a reward model of 300
annotated answers, and sample 384 more; DPO learns from 684 annotated answers, as many in all. What is compared is the
utility (feedback/utility.py) of answers to the demo's 80 held-out prompts against those of the model before, by the
evaluation's own paired intervals. `tokens` counts what was sampled to learn from, the annotated answers among it.

`--smoke` asks for hardly anything, to see whether it works. The last line is one JSON object, whose `ratio` is the gain
of best of n over PPO's; there is no goal but a gain of best of n above zero.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from helpers.result import print_result

from accord.bundled import config_path, data_path
from accord.config import load_config
from accord.models.loading import load_tokenizer
from accord.models.references import resolve
from accord.preload import restart_with_libraries
from accord.records import Comparison, read_jsonl
from accord.round import run_round
from accord.round_config import RoundConfig
from accord.runs import Run, Runs

ANNOTATED, RESPONSES = 100, 3
UPDATES, ANSWERS_AN_UPDATE = 12, 32
N = 4
"""Of best of n."""


def settings(algorithm: str, seed: int, smoke: bool, prompts: Path) -> list[str]:
    """What differs from the demo's configuration."""
    annotated, updates = (8, 1) if smoke else (ANNOTATED, UPDATES)
    sampled = updates * ANSWERS_AN_UPDATE
    both = [
        "sft.card=null", "eval.suites=[]", "eval.gate={utility: {margin: 0.02}}", f"feedback.seed={seed}",
        f"eval.seed={seed}", f"feedback.max_prompts={annotated}",
    ]  # fmt: skip
    if smoke:
        both += [
            "sft.epochs=0.1", "eval.max_prompts=6", "feedback.max_response_tokens=12",
            "eval.max_response_tokens=12", "reward.heads=1", "reward.minimum_pairs=4", "reward.loss=bradley_terry",
        ]  # fmt: skip
    if algorithm == "ppo":
        return [*both, f"rl.updates={updates}", f"rl.seed={seed}"]
    common = f"heldout_fraction: 0.15, seed: {seed}, rows_per_update: 8, precision: auto, lora: {{rank: 16, alpha: 32}}"
    if algorithm == "dpo":
        more = sampled // RESPONSES
        dpo = "{algorithm: dpo, learning_rate: 5e-4, max_sequence_tokens: 320, " + common + "}"
        return [*both, "reward=null", f"feedback.max_prompts={annotated + more}", f"rl={dpo}"]
    lines = data_path("bundled:demo/prompts.train.jsonl").read_text(encoding="utf-8").splitlines(True)
    prompts.write_text("".join(lines[ANNOTATED : ANNOTATED + sampled // N]), encoding="utf-8")
    best_of_n = (
        f"{{algorithm: best_of_n, prompts: {prompts}, samples_per_prompt: {N}, max_response_tokens: 48, "
        f"max_sequence_tokens: 320, learning_rate: 1e-3, epochs: 2, {common}}}"
    )
    return [*both, f"rl={best_of_n}"]


def sampled_tokens(run: Run, runs: Runs) -> tuple[int, int]:
    """How many answers, and how many tokens, were sampled for a policy to learn from, those for annotators included."""
    feedback = next(each for each in runs.lineage(run) if each.record.stage == "feedback")
    comparisons = read_jsonl(feedback.path / "responses.jsonl", Comparison)
    tokenizer = load_tokenizer(resolve(f"run:{feedback.record.parents['policy']}", runs))
    responses = [response for each in comparisons for response in each.responses]
    tokens = sum(
        len(tokenizer.encode(each.text, add_special_tokens=False)) + (not each.truncated)
        for each in responses
    )
    if run.record.stage == "ppo":
        means = [row["response_tokens"] for row in run.metric_rows() if "policy_loss" in row]
        more, answers = round(sum(means) * ANSWERS_AN_UPDATE), len(means) * ANSWERS_AN_UPDATE
    elif run.record.stage == "best_of_n":
        more, answers = run.metrics["sampled_tokens"], run.metrics["prompts"] * N
    else:
        more, answers = 0, 0
    return len(responses) + answers, tokens + more


def main() -> None:
    """Run the rounds and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="where runs are kept; a second call continues there")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    restart_with_libraries()
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = options.out or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        runs = Runs(folder / "runs")
        for seed in range(options.seeds):
            for algorithm in ("best_of_n", "dpo", "ppo"):
                more = settings(algorithm, seed, options.smoke, folder / "prompts.jsonl")
                judged = run_round(load_config(config_path("demo.yaml"), RoundConfig, more), runs)
                policy = runs.load(f"run:{judged.record.parents['candidate']}")
                answers, tokens = sampled_tokens(policy, runs)
                figures = {name: judged.metrics[f"utility_{name}"] for name in ("difference", "low", "high")}
                table.append(
                    {"algorithm": algorithm, "seed": seed, "answers": answers, "tokens": tokens, **figures}
                )
                print(json.dumps(table[-1]), flush=True)
    gain = {
        algorithm: statistics.fmean(row["difference"] for row in table if row["algorithm"] == algorithm)
        for algorithm in ("best_of_n", "dpo", "ppo")
    }
    ratio = round(gain["best_of_n"] / gain["ppo"], 3) if gain["ppo"] else 0.0
    print_result(
        "utility that best of n gains, as a share of what PPO gains of as many sampled answers",
        "PPO, and DPO in the table",
        ratio=ratio,
        low=ratio,
        high=ratio,
        goal=0.0,
        ok=all(row["low"] > 0 for row in table if row["algorithm"] == "best_of_n"),
        gains={name: round(value, 4) for name, value in gain.items()},
        table=table,
    )


if __name__ == "__main__":
    main()
