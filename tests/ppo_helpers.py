"""PPO on the tiny model: a reward model for it, a run in this process or in one that is killed."""

import hashlib
import json
import multiprocessing
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from accord import parallel
from accord.errors import AccordError, SamplerGoneError
from accord.models.loading import load_reward_model, load_tokenizer
from accord.models.references import Model, resolve
from accord.parallel import Sharding
from accord.records import Message, Prompt
from accord.runs import DataFile, Run, Runs
from accord.sampling.config import SamplingConfig
from accord.sampling.shared import SharedSampler
from accord.sampling.transformers_sampler import TransformersSampler
from accord.text_files import write_jsonl
from reward.trainer import initialise_heads
from rl.policy_gradient.loop import Loop
from rl.policy_gradient.rollout import PolicySampler

SAMPLING = SamplingConfig(engine="transformers", max_sequence_tokens=300)


def make_reward_model(base: Model, folder: Path, seed: int = 1) -> Model:
    """A reward model over the base's tokens, with a random head and slightly other weights than the base."""
    model: Any = load_reward_model(base, new_head=True)
    initialise_heads(model.score, seed)
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


def run_ppo(
    config: dict[str, Any],
    policy: Model,
    reward_model: Model,
    preferences: Path,
    runs: Runs,
    **unchecked: Any,
) -> Run:
    """A run; `unchecked` are settings that a configuration may not have."""
    from rl.config import PPOConfig
    from rl.ppo import train_ppo

    with SharedSampler(SAMPLING) as sampler:
        return train_ppo(
            PPOConfig(algorithm="ppo", **config).model_copy(update=unchecked),
            runs,
            policy,
            reward_model,
            DataFile(preferences),
            sampler,
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


@dataclass(frozen=True)
class Job:
    """A run for several processes."""

    config: dict[str, Any]
    policy: Model
    reward_model: Model
    preferences: Path
    root: Path
    """Of its runs; see `run_ppo_in_processes`."""
    sharding: Sharding = "none"


def run_ppo_in_two_processes(
    config: dict[str, Any], policy: Model, reward_model: Model, preferences: Path, runs: Runs,
    kill_at: str | None = None, fail_at: int | None = None,
) -> list[Any]:  # fmt: skip
    """`run_ppo_in_processes` for one run without sharding."""
    job = Job(config, policy, reward_model, preferences, runs.root)
    return run_ppo_in_processes([job], kill_at=kill_at, fail_at=fail_at)


def run_ppo_in_processes(
    jobs: Sequence[Job], processes: int = 2, kill_at: str | None = None, killed: Sequence[int] | None = None,
    fail_at: int | None = None, lose_sampler: bool = False,
) -> list[Any]:  # fmt: skip
    """Runs, one after the other, in processes that `accelerate launch` might have started; returns their exit codes.

    Beside its runs, each process leaves for each job a digest of all that it has trained and, of models in shards, how
    many numbers of each model it holds, and of how many; what was said about an error is in said.txt.

    Args:
        jobs: what to run.
        processes: how many there are.
        kill_at: as for `run_ppo_and_be_killed`.
        killed: which processes; all of them, if left out.
        fail_at: the number of the rollout at which the sampler, which the first one has, fails.
        lose_sampler: at its first answers, the sampler is gone.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rl.ppo"])
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = []
    for rank in range(processes):
        environment = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1,
        }  # fmt: skip
        dies = kill_at is not None and (killed is None or rank in killed)
        arguments = (jobs, kill_at if dies else None, environment, fail_at, lose_sampler)
        started.append(context.Process(target=_run_as_one_of_several, args=arguments))
        started[-1].start()
    for process in started:
        process.join(timeout=300)
        assert process.exitcode is not None, "it hangs"
    return [process.exitcode for process in started]


def _run_as_one_of_several(
    jobs: Sequence[Job],
    kill_at: str | None,
    environment: dict[str, Any],
    fail_at: int | None,
    lose_sampler: bool,
) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    if fail_at is not None:
        real, calls = PolicySampler.sample, []

        def sample(self: PolicySampler, *arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == fail_at and parallel.is_first():
                raise SamplerGoneError("no more answers")
            return real(self, *arguments)

        PolicySampler.sample = sample  # type: ignore[method-assign]
    if lose_sampler:
        real_restart, real_answers = PolicySampler._restart, TransformersSampler.sample

        def answers(self: TransformersSampler, *arguments: Any) -> Any:
            if arguments[2] == jobs[0].config["max_response_tokens"]:
                raise SamplerGoneError("it was lost")
            return real_answers(self, *arguments)

        def restart(self: PolicySampler, policy: Any) -> None:
            TransformersSampler.sample = real_answers  # type: ignore[method-assign]
            real_restart(self, policy)

        TransformersSampler.sample = answers  # type: ignore[method-assign]
        PolicySampler._restart = restart  # type: ignore[method-assign]
    real_run = Loop.run
    root = jobs[0].root

    def run(self: Loop) -> None:
        real_run(self)
        trained = {**self.actors.policy_parameters, **self.actors.critic_parameters}
        whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in trained.values()]
        digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in whole))
        (root / f"weights-{environment['RANK']}.txt").write_text(digest.hexdigest())
        held = {}
        for name in ("policy", "critic", "reference", "reward"):
            model = getattr(self.actors, name)
            if model is not None:
                shards = [p for p in model.parameters() if isinstance(p, DTensor)]
                assert len(shards) in (0, len(list(model.parameters())))
                held[name] = [sum(p.to_local().numel() for p in shards), sum(p.numel() for p in shards)]
        (root / f"held-{environment['RANK']}.json").write_text(json.dumps(held))

    Loop.run = run  # type: ignore[method-assign]
    try:
        for job in jobs:
            root = job.root
            os.environ.update(
                {"ACCELERATE_USE_FSDP": str(job.sharding == "fsdp2").lower(), "FSDP_VERSION": "2"}
            )
            arguments = (job.config, job.policy, job.reward_model, job.preferences)
            if kill_at is None:
                run_ppo(*arguments, Runs(root))
            else:
                _run_and_die(*arguments, root, kill_at)
    except AccordError as error:  # as the command does
        if parallel.speaks():
            with (root / "said.txt").open("a") as file:
                file.write(f"{error}\n")
        raise SystemExit(error.exit_code) from None
