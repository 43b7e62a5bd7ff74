"""Checkpoints of PPO, always between two updates: what a continued run needs to equal an uninterrupted one bitwise.

    checkpoints/checkpoint-<update>/state.pt             weights, the optimiser's moments, torch's RNG state
    checkpoints/checkpoint-<update>/trainer_state.json   `Progress`; written last, so that it marks a whole checkpoint
    checkpoints/best-<update>.pt                         the policy of the best evaluation

Prompts, seeds and the order of minibatches follow from the update's number, and the learning rate, too.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME

from accord import parallel
from accord.records import write_atomically
from accord.sampling.protocol import Completion
from accord.training import last_whole_checkpoint
from rl.policy_gradient.actors import Actors
from rl.policy_gradient.watch import Evaluation


@dataclass
class Progress:
    """How far a run is, apart from weights."""

    kl_coefficient: float
    score_shift: float
    update: int = 0
    """The last finished one."""
    first_response_tokens: float = 0.0
    stop_reason: str | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """All of metrics.jsonl."""
    ahead: list[Completion] | None = None
    """With `rl.overlap_updates: 1`: the next update's answers, which the policy of one update before has given."""

    @property
    def best(self) -> Evaluation | None:
        """The evaluation of a trained policy with the lowest preference loss; the earliest one of equals."""
        trained = [each for each in self.evaluations if each.update > 0]
        return min(trained, key=lambda each: each.preference_loss) if trained else None


@dataclass(frozen=True)
class Trained:
    """What is trained, with what, and how far it is: all that a checkpoint holds."""

    actors: Actors
    optimiser: torch.optim.Optimizer
    progress: Progress


def save_checkpoint(folder: Path, trained: Trained) -> None:
    """Write the checkpoint of `progress.update`, then remove all others.

    Raises:
        Exception: of a full disk; nothing half-written stays.
    """
    actors, progress = trained.actors, trained.progress
    target = folder / f"checkpoint-{progress.update}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    best = progress.best
    try:
        if best is not None and best.update == progress.update:
            torch.save(_weights(actors.policy_parameters), folder / f"best-{best.update}.pt")
        state = {
            "policy": _weights(actors.policy_parameters),
            "critic": _weights(actors.critic_parameters),
            "optimiser": trained.optimiser.state_dict(),
            "rng": torch.get_rng_state(),
        }
        torch.save(state, target / "state.pt")
        write_atomically(target / TRAINER_STATE_NAME, json.dumps(asdict(progress)))
    except Exception:
        last_whole_checkpoint(folder)  # removes what is half-written
        raise
    for path in folder.iterdir():
        if path.name.startswith("checkpoint-") and path != target:
            shutil.rmtree(path)
        elif path.name.startswith("best-") and (best is None or path.name != f"best-{best.update}.pt"):
            path.unlink()


def load_checkpoint(folder: Path, actors: Actors, optimiser: torch.optim.Optimizer) -> Progress | None:
    """Continue from the newest whole checkpoint: sets weights, optimiser and RNG; None where there is none."""
    checkpoint = parallel.from_first(lambda: last_whole_checkpoint(folder))
    if checkpoint is None:
        return None
    if parallel.is_first():
        click.echo(f"ppo: continues from {checkpoint.name}")
    state = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
    set_weights(actors.policy_parameters, state["policy"])
    set_weights(actors.critic_parameters, state["critic"])
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["rng"])
    values = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    values["evaluations"] = [Evaluation(**each) for each in values["evaluations"]]
    if values["ahead"] is not None:
        values["ahead"] = [Completion(**each) for each in values["ahead"]]
    progress = Progress(**values)
    actors.score_shift = progress.score_shift
    return progress


def load_best(folder: Path, progress: Progress, actors: Actors) -> None:
    """Give the policy the weights of its best evaluation, unless it has them."""
    if progress.best is not None and progress.best.update != progress.update:
        path = folder / f"best-{progress.best.update}.pt"
        set_weights(actors.policy_parameters, torch.load(path, map_location="cpu", weights_only=True))


@torch.no_grad()
def set_weights(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, torch.Tensor]) -> None:
    """Copy tensors into the parameters of the same names."""
    if parameters.keys() != weights.keys():
        raise RuntimeError("the checkpoint holds other weights than the models have")
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


def _weights(parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu() for name, p in parameters.items()}
