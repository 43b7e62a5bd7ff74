"""Training stages in one process, or in several that `accelerate launch` might have started, without a launcher."""

import contextlib
import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_helpers import every_trainer_calls, kill_this_process, run_stage

from accord import parallel
from accord.errors import AccordError
from accord.models.references import Model
from accord.runs import DataFile, Run, Runs

STAGES = ("sft.train", "reward.train", "rl.dpo", "rl.kto", "rl.online")
ZERO = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "DS_ACCELERATOR": "cpu",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
}
SHARDED: dict[str, dict[str, str]] = {
    "none": {},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    "zero2": {**ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": {**ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}


@dataclass
class Stage:
    """A stage to run: "sft", "reward", "dpo", "kto", "rloo", "grpo" or "best_of_n", with what it reads."""

    name: str
    config: dict[str, Any]
    data: Path
    prompts: Path | None = None
    reward_model: Model | None = None

    def run(self, base: Model, runs: Runs) -> Run:
        if self.name == "best_of_n":
            from ppo_helpers import SAMPLING

            from accord.sampling.shared import SharedSampler
            from rl.best_of_n import train_best_of_n
            from rl.config import BestOfNConfig

            with SharedSampler(SAMPLING) as sampler:
                config = BestOfNConfig(
                    **{"algorithm": "best_of_n", "prompts": str(self.prompts), **self.config}
                )
                return train_best_of_n(config, runs, base, self.reward_model, DataFile(self.data), sampler)
        if self.name not in ("rloo", "grpo"):
            return run_stage(self.name, self.config, base, self.data, runs)
        from rl.config import OnlineConfig
        from rl.online import train_online

        settings = OnlineConfig(**{"algorithm": self.name, "prompts": str(self.prompts), **self.config})
        return train_online(settings, runs, base, self.reward_model, DataFile(self.data))


def run_in_processes(
    count: int, sharding: str, stages: Sequence[Stage], base: Model, root: Path,
    kill: tuple[int, str] | None = None, timeout: float = 240,
) -> list[int]:  # fmt: skip
    """Run stages one after another in so many processes; returns their exit codes.

    What is said about an error is in said.txt.

    Args:
        count: of processes.
        sharding: "none", "fsdp2", "zero2" or "zero3".
        stages: what they run.
        base: the model that all start from.
        root: of the runs.
        kill: the process that gets SIGKILL, and before which update, or at "train_end" or "finish".
        timeout: in seconds.
    """
    root.mkdir(parents=True, exist_ok=True)
    return start_processes(count, sharding, _run_stages, (list(stages), base, root, kill), timeout)


def start_processes(
    count: int, sharding: str, work: Callable[..., None], arguments: tuple[Any, ...], timeout: float = 240
) -> list[int]:
    """Let so many processes do the same work; returns their exit codes."""
    context = multiprocessing.get_context("forkserver")
    # imports torch and TRL once
    context.set_forkserver_preload([*STAGES, "trl.trainer.grpo_trainer", "trl.trainer.rloo_trainer"])
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = []
    for rank in range(count):
        environment = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1,
            **SHARDED[sharding],
        }  # fmt: skip
        processes.append(context.Process(target=_be_one_of_several, args=(environment, work, arguments)))
        processes[-1].start()
    for process in processes:
        process.join(timeout=timeout)
        if process.exitcode is None:
            for each in processes:
                each.kill()
            raise AssertionError("it hangs")
    return [int(process.exitcode or 0) for process in processes]


def _be_one_of_several(
    environment: dict[str, Any], work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    import torch

    torch.set_num_threads(1)
    work(*arguments)


def _run_stages(stages: Sequence[Stage], base: Model, root: Path, kill: tuple[int, str] | None) -> None:
    from accelerate.state import AcceleratorState, DistributedType, PartialState

    if parallel.sharding().startswith("zero"):
        shard_small_weights()
    kill_at = kill[1] if kill and kill[0] == parallel.rank() else None
    if kill_at == "finish":
        Run.finish = kill_this_process  # type: ignore[method-assign]
    killing = every_trainer_calls(kill_at, kill_this_process) if kill_at else contextlib.nullcontext()
    try:
        with killing:
            for stage in stages:
                stage.run(base, Runs(root))
                # A process has one stage, and accelerate one state for it.
                AcceleratorState._reset_state()
                PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
    except AccordError as error:  # as the command does
        if parallel.speaks():
            with (root / "said.txt").open("a") as file:
                file.write(f"{error}\n")
        raise SystemExit(error.exit_code) from None


def shard_small_weights() -> None:
    """DeepSpeed keeps small weights whole in each process, which all of a tiny model are."""
    from accord.compute.checkpoints import Checkpoints

    theirs = Checkpoints.create_accelerator_and_postprocess

    def create(trainer: Any) -> None:
        theirs(trainer)
        config = trainer.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
        config["stage3_param_persistence_threshold"] = 0

    Checkpoints.create_accelerator_and_postprocess = create  # type: ignore[method-assign]
