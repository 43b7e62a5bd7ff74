"""PPO on the tiny model: a reward model for it, a run in this process or in one that is killed."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import torch

from accord.models import Model, load_reward_model, load_tokenizer, resolve
from accord.records import Message, Prompt, write_jsonl
from accord.runs import DataFile, Run, Runs
from accord.sampling.config import SamplingConfig
from accord.sampling.shared import SharedSampler
from reward.train import initialise_head

SAMPLING = SamplingConfig(engine="transformers", max_sequence_tokens=300)


def make_reward_model(base: Model, folder: Path, seed: int = 1) -> Model:
    """A reward model over the base's tokens, with a random head and slightly other weights than the base."""
    model: Any = load_reward_model(base)
    initialise_head(model.score, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.model.parameters():
            p += 0.05 * p.std() * torch.randn(p.shape, generator=generator)
    model.save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    return resolve(str(folder), Runs(folder / "no-runs"))


def make_prompts(path: Path, count: int = 12) -> Path:
    write_jsonl(
        path, [Prompt(prompt=[Message(role="user", content="Say " * (i % 4) + str(i))]) for i in range(count)]
    )
    return path


def run_ppo(config: dict[str, Any], policy: Model, reward_model: Model, preferences: Path, runs: Runs) -> Run:
    from rl.config import PPOConfig
    from rl.ppo import train_ppo

    with SharedSampler(SAMPLING) as sampler:
        return train_ppo(
            PPOConfig(algorithm="ppo", **config), runs, policy, reward_model, DataFile(preferences), sampler
        )


def run_ppo_and_be_killed(
    config: dict[str, Any], policy: Model, reward_model: Model, preferences: Path, runs: Runs, kill_at: str
) -> None:
    """The same in a process of its own that gets SIGKILL after so many optimiser steps, or at "finish"."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rl.ppo"])
    arguments = (config, policy, reward_model, preferences, runs.root, kill_at)
    process = context.Process(target=_run_and_die, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _run_and_die(
    config: dict[str, Any], policy: Model, reward_model: Model, preferences: Path, root: Path, kill_at: str
) -> None:
    torch.set_num_threads(1)

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if kill_at == "finish":
        Run.finish = die  # type: ignore[method-assign]
    else:
        steps = 0

        def count(*_: Any) -> None:
            nonlocal steps
            steps += 1
            if steps == int(kill_at):
                die()

        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(count)
    run_ppo(config, policy, reward_model, preferences, Runs(root))
