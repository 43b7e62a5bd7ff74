"""Every stage by its command on a tiny model, undisturbed, and what of its run would be the same at any other time.

Used by random_kills.py.
"""

import contextlib
import functools
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml

ROWS_A_CHUNK = 25
"""Of the data's preparation, so that several processes share it."""
SECONDS = 300
"""For any command."""
CACHES = (".cache", "reference-log-probabilities")
"""Beside the runs."""
IMPORTED = [
    "accord.cli.main", "accord.round", "trl.trainer.grpo_trainer", "trl.trainer.rloo_trainer", "training_helpers",
]  # fmt: skip
SHARED = {"learning_rate": 1e-3, "max_sequence_tokens": 300, "checkpoint_every_updates": 2, "seed": 3}
PAIRS = {**SHARED, "epochs": 3, "rows_per_update": 8, "rows_per_pass": 2, "evaluate_every_updates": 4}
ONLINE = {**PAIRS, "epochs": 4, "num_generations": 2, "max_response_tokens": 16, "warmup_fraction": 0}
PPO = {
    "algorithm": "ppo", "updates": 6, "prompts_per_update": 6, "epochs_per_update": 2, "max_response_tokens": 16,
    "max_sequence_tokens": 300, "learning_rate": 1e-3, "evaluate_every_updates": 2, "seed": 3,
}  # fmt: skip
BEST_OF_N = {
    **SHARED, "algorithm": "best_of_n", "rounds": 2, "samples_per_prompt": 4, "epochs": 2, "rows_per_update": 4,
    "rows_per_pass": 1, "max_response_tokens": 64, "warmup_fraction": 0, "lora": {"rank": 4, "alpha": 8},
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A command, and how often it is killed."""

    command: str
    kills: int
    builds_on: tuple[str, ...] = ()
    """Names in `STAGES`."""
    rl: dict[str, Any] = field(default_factory=dict)
    engine: str = "transformers"
    first: str = "record.json"
    """The file of the run from whose first line on it is killed; of vLLM, not while it starts."""

    @property
    def in_records(self) -> str:
        """What the records of its runs call it."""
        return {"data prepare": "data", "feedback pull": "feedback"}.get(self.command, self.command)


TO_SFT = ("data", "sft")
TO_REWARD = (*TO_SFT, "reward")
STAGES = {
    "data": Stage("data prepare", 5),
    "sft": Stage("sft", 5, ("data",)),
    "feedback": Stage("feedback pull", 3, TO_SFT),
    "reward": Stage("reward", 5, TO_SFT),
    "dpo": Stage("dpo", 5, TO_SFT, {**PAIRS, "algorithm": "dpo"}),
    "kto": Stage("kto", 4, TO_SFT, {**PAIRS, "algorithm": "kto"}),
    "ppo": Stage("ppo", 5, TO_REWARD, PPO),
    "ppo vllm": Stage("ppo", 4, TO_REWARD, {**PPO, "seed": 4}, "vllm", "metrics.jsonl"),
    "rloo": Stage("rloo", 4, TO_REWARD, {**ONLINE, "algorithm": "rloo"}),
    "grpo": Stage("grpo", 4, TO_REWARD, {**ONLINE, "algorithm": "grpo"}),
    "best_of_n": Stage("best_of_n", 4, TO_REWARD, BEST_OF_N),
    "eval": Stage("eval", 5, (*TO_REWARD, "dpo"), {**PAIRS, "algorithm": "dpo"}),
}
"""In an order in which each finds what it builds on."""


# --- what they read


def make_material(folder: Path) -> None:
    """A tiny model and the files that the stages read."""
    from tiny_families import make_family

    from accord.records import Demonstration, Message, Preference, Prompt
    from accord.text_files import write_jsonl

    def said(role: str, text: str) -> Message:
        return Message.model_validate({"role": role, "content": text})

    make_family("llama", folder / "model", max_position_embeddings=1024)
    write_jsonl(
        folder / "demonstrations.jsonl",
        [
            Demonstration(messages=[said("user", f"{i} + 1?"), said("assistant", "I" * (i % 7) + f"{i + 1}")])
            for i in range(400)
        ],
    )
    write_jsonl(
        folder / "preferences.jsonl",
        [
            Preference(
                prompt=[said("user", f"Ask {i % 20}")],
                chosen=[said("assistant", "please " * (1 + i // 20) + str(i))],
                rejected=[said("assistant", "now" * (1 + i % 3) + str(i))],
            )
            for i in range(40)
        ],
    )
    write_jsonl(
        folder / "prompts.jsonl",
        [Prompt(id=f"p{i}", prompt=[said("user", "Say " * (i % 4) + str(i))]) for i in range(12)],
    )


def write_config(folder: Path, name: str, port: int) -> Path:
    """The configuration of one stage, with those of the stages before it."""
    stage = STAGES[name]
    sections: dict[str, Any] = {
        "model": str(folder / "model"),
        "sampling": {"engine": stage.engine, "max_sequence_tokens": 300, "kv_cache_gib": 0.1},
        "sft": {
            **SHARED, "demonstrations": str(folder / "demonstrations.jsonl"), "epochs": 0.2, "rows_per_update": 4,
            "rows_per_pass": 1, "evaluate_every_updates": 5, "heldout_fraction": 0.05,
        },
    }  # fmt: skip
    if name == "feedback":
        sections["feedback"] = {
            "prompts": str(folder / "prompts.jsonl"), "max_response_tokens": 16, "annotators_per_record": 2,
            "port": port,
        }  # fmt: skip
    else:
        sections |= {
            "preferences": str(folder / "preferences.jsonl"),
            "reward": {**PAIRS, "rows_per_update": 4, "rows_per_pass": 1, "minimum_pairs": 4},
        }
    if stage.rl:
        prompts = (
            {} if stage.rl["algorithm"] in ("dpo", "kto") else {"prompts": str(folder / "prompts.jsonl")}
        )
        sections["rl"] = {**stage.rl, **prompts}
    if name == "eval":
        sections["eval"] = {
            "prompts": str(folder / "prompts.jsonl"), "max_response_tokens": 16, "bootstrap_resamples": 999,
            "suites": ["sentence_pairs"], "max_suite_items": 20, "gate": {"eos_rate": {"margin": 0.5}},
        }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


# --- commands in processes that are forked


def start(arguments: Sequence[str], root: Path, environment: dict[str, Any] | None = None) -> BaseProcess:
    """An accord command in a process group of its own; what it prints goes to a file beside the runs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=_be_the_command, args=(list(arguments), root, environment or {}))
    process.start()
    return process


def _be_the_command(arguments: list[str], root: Path, environment: dict[str, Any]) -> None:
    os.setsid()
    os.environ.update({name: str(value) for name, value in environment.items()})
    with Path(f"{root}.txt").open("ab", buffering=0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    import torch

    from accord.cli.main import main
    from accord.data import encoding

    torch.set_num_threads(1)
    encoding.ROWS_A_CHUNK = ROWS_A_CHUNK
    main(["--runs", str(root), *arguments])


def ended(process: BaseProcess) -> int:
    """Its exit code.

    Raises:
        TimeoutError: it works on and on; it is killed.
    """
    process.join(SECONDS)
    if process.exitcode is None:
        kill(process)
        raise TimeoutError(f"it still works after {SECONDS} s")
    return process.exitcode


def kill(process: BaseProcess) -> None:
    """SIGKILL for the process and all of its group."""
    assert process.pid
    with contextlib.suppress(ProcessLookupError):  # it noticed that another one was gone, and has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def wait_for(found: Callable[[], Any], process: BaseProcess) -> bool:
    """Whether it is found before the process ends."""
    while not found():
        if process.exitcode is not None:
            return bool(found())
        time.sleep(0.001)
    return True


# --- what is compared

TIMES = (
    "_runtime", "_per_second", "step_time", "seconds", "submitted_at", "started_at", "ended_at", "continued_at",
)  # fmt: skip
"""How the keys end whose values a clock put there."""
HASHES = {
    "record.json": (
        "metrics.jsonl", "report.html", "agreement.json", "comparisons.jsonl", "reliability.json", "verdict.json",
        "verdict.sig.json",
    ),
    "reliability.json": ("comparisons",),
    "verdict.json": ("record",),
    "verdict.sig.json": ("signature",),
}  # fmt: skip
"""Files with keys whose values are hashes or signatures of what has times, and these keys."""
MADE, TOOK = r"\d+ \w+ \d{4}, \d\d:\d\d UTC", r'(?<=<td data-label="Took:" class="number">)[^<]*'
SECONDS_FOR_AN_ANSWER = r'(?<=<td class="number">)[^<]*(?=</td></tr>)'
"""What a clock put on pages, and, in an annotator's row, on that of a feedback run."""


def without_times(path: Path) -> Any:
    """A file's bytes, or all that it says but for what a clock put there."""
    if path.name == "report.html":
        text = re.sub(f"{MADE}|{TOOK}", "", path.read_text(encoding="utf-8"))
        is_of_annotators = path.with_name("comparisons.jsonl").exists()
        return re.sub(SECONDS_FOR_AN_ANSWER, "", text) if is_of_annotators else text
    if path.name in ("metrics.jsonl", "comparisons.jsonl"):
        return [_timeless(json.loads(row)) for row in path.read_text(encoding="utf-8").splitlines()]
    if path.name in (*HASHES, "agreement.json"):
        return _timeless(json.loads(path.read_text(encoding="utf-8")), HASHES.get(path.name, ()))
    return path.read_bytes()


def _timeless(value: Any, hashes: Sequence[str] = ()) -> Any:
    if isinstance(value, list):
        return [_timeless(each, hashes) for each in value]
    if isinstance(value, dict):
        return {
            key: None if key in hashes and isinstance(each, str) else _timeless(each, hashes)
            for key, each in value.items()
            if not key.endswith(TIMES)
        }
    return value


def differing(run: Path, other: Path) -> list[str]:
    """The names of all files that differ, or are in one of two runs only."""
    names = {
        str(path.relative_to(each)) for each in (run, other) for path in each.rglob("*") if path.is_file()
    }
    return sorted(
        name
        for name in names
        if not (run / name).is_file()
        or not (other / name).is_file()
        or without_times(run / name) != without_times(other / name)
    )


def largest_difference(run: Path, other: Path) -> float:
    """Of any two numbers of the weights of two runs."""
    from safetensors.torch import load_file

    ours, theirs = (load_file(each / "model" / "model.safetensors") for each in (run, other))
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


# --- a stage, undisturbed and disturbed


class Undisturbed:
    """The folder of runs in which each stage was done once, in one process; a stage can be done there anew."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """Runs the stages of these names, and those that they build on."""
        self.folder, self.root = folder, folder / "runs"
        self.port = free_port()
        self.runs: dict[str, Path] = {}
        self.seconds: dict[str, float] = {}
        needed = {*names, *(earlier for name in names for earlier in STAGES[name].builds_on)}
        for name in STAGES:
            if name in needed:
                write_config(folder, name, self.port)
                before = set(self.root.glob("*"))
                process = start(self.command(name), self.root)
                wait_for(functools.partial(self._begun, STAGES[name], before), process)
                began = time.monotonic()
                self.check(name, ended(process))
                self.seconds[name] = time.monotonic() - began
                self.runs[name] = self._begun(STAGES[name], before)[0].parent
                shutil.copytree(self.runs[name], self.kept(name))
                print(f"{name}: {self.seconds[name]:.1f} s", file=sys.stderr, flush=True)

    def _begun(self, stage: Stage, before: set[Path]) -> list[Path]:
        found = self.root.glob(f"{stage.in_records}-*/{stage.first}")
        return [path for path in found if path.parent not in before and path.stat().st_size]

    def has_begun(self, name: str) -> bool:
        """Whether the stage is at its work."""
        path = self.runs[name] / STAGES[name].first
        return path.exists() and path.stat().st_size > 0

    def command(self, name: str) -> list[str]:
        """The words after `accord --runs ROOT`."""
        return [*STAGES[name].command.split(), str(self.folder / f"{name}.yaml")]

    def kept(self, name: str) -> Path:
        """What the undisturbed run left."""
        return self.folder / "undisturbed" / name

    def check(self, name: str, code: int) -> None:
        """Look at a command's exit code.

        Raises:
            RuntimeError: it did not end well; with the end of what it printed.
        """
        if code not in ((0, 10, 11) if name == "eval" else (0,)):
            raise RuntimeError(f"{name} ended with {code}:\n" + Path(f"{self.root}.txt").read_text()[-2000:])

    def forget(self, name: str) -> None:
        """Nothing of the stage is left, but for what it builds on."""
        from feedback.argilla.access import argilla_home
        from feedback.argilla.server import process

        process.stop(argilla_home(self.root))
        for each in (self.runs[name], argilla_home(self.root), *(self.root / each for each in CACHES)):
            shutil.rmtree(each, ignore_errors=True)

    def restore(self, name: str) -> None:
        """The undisturbed run is back."""
        self.forget(name)
        shutil.copytree(self.kept(name), self.runs[name])

    def record(self, name: str) -> dict[str, Any]:
        """Of its run, as it is now."""
        return dict(json.loads((self.runs[name] / "record.json").read_text()))

    def last_step(self, name: str) -> int | None:
        """Of its run's rows of metrics so far."""
        path = self.runs[name] / "metrics.jsonl"
        steps = re.findall(r'"step": (\d+)', path.read_text()) if path.exists() else []
        return int(steps[-1]) if steps else None


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
