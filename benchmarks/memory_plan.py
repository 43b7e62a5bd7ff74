"""The memory model of accord.compute.planning against measured peaks, on CPU, with the bundled model.

    .venv/bin/python benchmarks/memory_plan.py [--combinations NAME...] [--tokens 512]

Each combination of stage, layout, sharding and processes runs in processes of its own, which take a few optimiser
steps. Measured is what a process's anonymous memory is at its most from the second step on, above what it had after its
imports. Of several processes the largest counts. The largest of them all takes about 5 GB, or as much divided over
processes. The last line is one JSON object; `ratio` is the mean of predicted to measured.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from helpers.result import mean_ratio, print_result

WITHIN = 0.1
LORA = {"rank": 8}
COMBINATIONS: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "sft": ("sft", {}, 1, "none"),
    "sft, lora": ("sft", {"lora": LORA}, 1, "none"),
    "reward": ("reward", {}, 1, "none"),
    "dpo, lora": ("dpo", {"lora": LORA}, 1, "none"),
    "ppo": ("ppo", {}, 1, "none"),
    "ppo, lora": ("ppo", {"lora": LORA}, 1, "none"),
    "sft on 2": ("sft", {}, 2, "none"),
    "sft on 2, fsdp2": ("sft", {}, 2, "fsdp2"),
    "reward on 2, fsdp2": ("reward", {}, 2, "fsdp2"),
    "dpo on 2, fsdp2": ("dpo", {}, 2, "fsdp2"),
    "ppo on 2": ("ppo", {}, 2, "none"),
    "ppo on 2, fsdp2": ("ppo", {}, 2, "fsdp2"),
    "ppo, lora on 2, fsdp2": ("ppo", {"lora": LORA}, 2, "fsdp2"),
    "sft on 4, fsdp2": ("sft", {}, 4, "fsdp2"),
    "ppo on 4, fsdp2": ("ppo", {}, 4, "fsdp2"),
}
"""Stage, settings, processes, sharding."""
ROWS, STEPS = 4, 3
WORDS = "the sea is wide and the bread is fresh because people know how to wait for it "


ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
"""What is freed goes back to the system at once, so that a process's memory is that of its tensors."""


def memory() -> int:
    """Anonymous memory of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this benchmark needs Linux")


class Peak:
    """Samples this process's memory from `start` on."""

    def __init__(self) -> None:
        self.largest = 0
        self.running = False

    def start(self) -> None:
        if not self.running:
            self.running = True
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self.running:
            self.largest = max(self.largest, memory())
            time.sleep(0.002)


class Seen:
    """What the model was given: the most tokens at a time, and the longest row."""

    def __init__(self) -> None:
        self.tokens = self.longest = 0

    def __call__(self, module: Any, arguments: Any, named: Any) -> None:
        ids = named.get("input_ids", arguments[0] if arguments else None)
        if ids is not None:
            self.tokens, self.longest = max(self.tokens, ids.numel()), max(self.longest, ids.shape[-1])


def write_rows(folder: Path, tokens: int) -> tuple[Path, Path]:
    """Demonstrations and preferences, a pass of which has about so many tokens."""
    from accord.records import Demonstration, Message, Preference
    from accord.text_files import write_jsonl

    words = WORDS.split()

    def said(index: int, share: float, tail: str) -> str:
        count = int(tokens / ROWS * share) - 40
        return " ".join(words[(index + i) % len(words)] for i in range(max(4, count))) + tail

    def question(index: int) -> Message:
        return Message(role="user", content=f"Say {index} more.")

    demonstrations, preferences = folder / "demonstrations.jsonl", folder / "preferences.jsonl"
    rows = range(ROWS * (STEPS + 1) * 8)
    write_jsonl(
        demonstrations,
        [
            Demonstration(messages=[question(i), Message(role="assistant", content=said(i, 1, "."))])
            for i in rows
        ],
    )
    write_jsonl(
        preferences,
        [
            Preference(
                prompt=[question(i)],
                chosen=[Message(role="assistant", content=said(i, 0.5, "."))],
                rejected=[Message(role="assistant", content=said(i, 0.5, "!"))],
            )
            for i in rows
        ],
    )
    return demonstrations, preferences


def train_stage(stage: str, settings: dict[str, Any], tokens: int, folder: Path) -> None:
    """A stage on TRL's trainers."""
    from accord.bundled import MODEL
    from accord.models.references import resolve
    from accord.runs import DataFile, Runs

    runs = Runs(folder / "runs")
    base = resolve(MODEL, runs)
    demonstrations, preferences = folder / "demonstrations.jsonl", folder / "preferences.jsonl"
    common = {
        **settings, "rows_per_pass": ROWS, "rows_per_update": 2 * ROWS * int(os.environ.get("WORLD_SIZE", 1)),
        "max_sequence_tokens": 4 * tokens, "checkpoint_every_updates": 1000, "trainer": {"max_steps": STEPS},
    }  # fmt: skip
    if stage == "sft":
        from sft.config import SFTConfig
        from sft.train import fine_tune

        written = {"demonstrations": str(demonstrations), "heldout_fraction": 0, "card": None}
        fine_tune(SFTConfig.model_validate({**common, **written}), runs, base)
    elif stage == "reward":
        from reward.config import RewardConfig
        from reward.train import train_reward_model

        train_reward_model(RewardConfig(**common), runs, base, DataFile(preferences))
    else:
        from rl.config import DPOConfig
        from rl.dpo import train_dpo

        train_dpo(DPOConfig(**common), runs, base, DataFile(preferences))


def train_ppo(settings: dict[str, Any], tokens: int, folder: Path) -> None:
    """PPO's learning on made-up answers: no sampler takes part."""
    import torch

    from accord.bundled import MODEL
    from accord.config import LoraConfig
    from accord.models.loading import load_reward_model, load_tokenizer
    from accord.models.references import resolve
    from accord.runs import Runs
    from rl.policy_gradient.layouts import load_actors
    from rl.policy_gradient.learner import experience, hear, learn
    from rl.policy_gradient.rollout import Rollout
    from rl.policy_gradient.settings import Estimation, Layout, Objective, Passes, Steps

    policy = resolve(MODEL, Runs(folder / "runs"))
    tokenizer = load_tokenizer(policy)
    reward = folder / f"reward-{os.environ.get('RANK', 0)}"
    load_reward_model(policy, new_head=True).save_pretrained(reward)
    tokenizer.save_pretrained(reward)
    lora = LoraConfig(**settings["lora"]) if "lora" in settings else None
    actors = load_actors(
        tokenizer, policy, resolve(str(reward), Runs(folder / "runs")), 4 * tokens, Layout(lora), seed=0
    )
    optimiser = torch.optim.AdamW(
        [*actors.policy_parameters.values(), *actors.critic_parameters.values()], lr=1e-5, fused=True
    )
    count, length = 2 * ROWS * int(os.environ.get("WORLD_SIZE", 1)), tokens // ROWS
    made = torch.Generator().manual_seed(0)
    rows = torch.randint(1000, 20000, (count, length), generator=made).tolist()
    rollout = Rollout(
        [row[: length // 4] for row in rows], [row[length // 4 :] for row in rows],
        [[-8.0] * (length - length // 4)] * count, [True] * count,
    )  # fmt: skip
    passes = Passes(tokens_per_pass=tokens)
    opinions = hear(actors, rollout, passes)
    found = experience(opinions, opinions.scores, 0.05, Estimation())
    learn(actors, optimiser, rollout, found, Objective(), Steps(epochs=STEPS), passes, "0")


def work(stage: str, settings: dict[str, Any], tokens: int, folder: Path) -> None:
    """In one of the processes: train, and leave what was measured."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook
    from transformers import PreTrainedModel

    from accord import parallel

    if stage == "ppo":
        pass
    else:
        import sft.train  # noqa: F401
    (torch.ones(256, 256, requires_grad=True) @ torch.ones(256, 256)).sum().backward()
    parallel.join()
    before, peak, seen = memory(), Peak(), Seen()
    steps: list[int] = []

    def stepped(*_: Any) -> None:
        steps.append(1)
        if len(steps) >= (2 if stage == "ppo" else 1):  # of policy and of critic: now all moments are there
            peak.start()

    register_optimizer_step_post_hook(stepped)
    made = PreTrainedModel.__init__

    def make(self: Any, *arguments: Any, **named: Any) -> None:
        made(self, *arguments, **named)
        self.register_forward_pre_hook(seen, with_kwargs=True)

    PreTrainedModel.__init__ = make  # type: ignore[method-assign]
    # what comes after the training is not of interest: saving, evaluating
    total = STEPS * (2 if stage == "ppo" else 1)

    def leave(*_: Any) -> None:
        if len(steps) == total:
            found = {"peak": peak.largest - before, "tokens": seen.tokens, "longest": seen.longest}
            (folder / f"found-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(found))
            parallel.broadcast(None)  # nobody ends before all are here
            os._exit(0)

    register_optimizer_step_post_hook(leave)
    if stage == "ppo":
        train_ppo(settings, tokens, folder)
    else:
        train_stage(stage, settings, tokens, folder)


def measure(name: str, tokens: int) -> tuple[int, int]:
    """What was predicted and what was measured, in bytes."""
    from accord.bundled import smollm2_135m_instruct
    from accord.compute.config import ComputeConfig
    from accord.compute.launch import run_launch
    from accord.compute.machines import Launch
    from accord.compute.planning import Devices, ModelShape, Work, estimate

    stage, settings, processes, sharding = COMBINATIONS[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_rows(folder, tokens)
        command = [__file__, "--worker", stage, "--settings", json.dumps(settings), "--folder", place]
        command += ["--tokens", str(tokens)]
        if processes == 1:
            code = subprocess.run([sys.executable, *command], check=False).returncode
        else:
            from accord.compute.launch import accelerate_config, free_port

            compute = ComputeConfig.model_validate({"devices": processes, "sharding": sharding})
            config = folder / "accelerate.yaml"
            config.write_text(json.dumps(accelerate_config(compute, free_port())))
            code = run_launch(compute, Launch(str(config), str(folder / "reason"), command), 0)
        found = [json.loads(path.read_text()) for path in folder.glob("found-*.json")]
    if code or len(found) != processes:
        raise SystemExit(f"{name}: ended with {code}")
    largest = max(found, key=lambda each: each["peak"])
    planned = Work(
        stage, lora_rank=settings.get("lora", {}).get("rank"), tokens_per_pass=largest["tokens"],
        attended=largest["longest"] if stage != "ppo" else tokens // ROWS, passes=2, steps=STEPS,
    )  # fmt: skip
    shape = ModelShape.of(smollm2_135m_instruct())
    memory = estimate(shape, planned, Devices(processes, sharding))  # type: ignore[arg-type]
    parts = (memory.weights, memory.gradients, memory.optimiser, memory.gathered, memory.activations)
    shown = " + ".join(f"{part / 2**30:.2f}" for part in parts)
    print(
        f"{name:<24} {largest['tokens']:>6} tokens  measured {largest['peak'] / 2**30:.2f}  predicted "
        f"{memory.total / 2**30:.2f} GiB ({shown})  ratio {memory.total / largest['peak']:.2f}",
        flush=True,
    )
    return memory.total, largest["peak"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--combinations", nargs="*", choices=list(COMBINATIONS), default=list(COMBINATIONS))
    parser.add_argument("--tokens", type=int, default=512, help="of a pass; default: %(default)s")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        work(chosen.worker, json.loads(chosen.settings), chosen.tokens, chosen.folder)
        sys.exit(1)  # it leaves at the last step
    os.environ.update(ALLOCATOR)
    ratios = []
    for name in chosen.combinations:
        predicted, measured = measure(name, chosen.tokens)
        ratios.append(predicted / measured)
    ratio = mean_ratio(ratios)
    print_result(
        "the memory model predicts the peak of a process", "measured peaks", **ratio, goal=WITHIN,
        ok=all(abs(each - 1) <= WITHIN for each in ratios),
        ratios=dict(zip(chosen.combinations, (round(each, 3) for each in ratios), strict=True)),
    )  # fmt: skip


if __name__ == "__main__":
    main()
