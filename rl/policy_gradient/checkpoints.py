"""Checkpoints of PPO, always between two updates: what a continued run needs to equal an uninterrupted one bitwise.

    checkpoints/checkpoint-<update>/                     weights, the optimiser's moments, torch's RNG state
    checkpoints/checkpoint-<update>/trainer_state.json   `Progress`; written last, so that it marks a whole checkpoint
    checkpoints/best-<update>/                           the policy of the best evaluation

Tensors are written by torch.distributed.checkpoint, by each process what it holds of them, and can be read by any other
number of processes, in shards or not. Prompts, seeds and the order of minibatches follow from the update's number, and
the learning rate, too.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from transformers.trainer import TRAINER_STATE_NAME

from accord import parallel
from accord.errors import AccordError
from accord.optimizers import make_room, moments, set_moments
from accord.sampling.protocol import Completion
from accord.terminal import say
from accord.text_files import write_atomically
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
    """Write the checkpoint of `progress.update`, then remove all others. All processes take part.

    Raises:
        Exception: of a full disk; nothing half-written stays.
    """
    actors, progress = trained.actors, trained.progress
    target = folder / f"checkpoint-{progress.update}"
    best = progress.best
    best_target = folder / f"best-{best.update}" if best is not None else None
    try:
        if best is not None and best_target is not None and best.update == progress.update:
            _write(best_target, {"policy": _weights(actors.policy_parameters)})
        _write(target, _state(trained))
        if parallel.is_first():
            write_atomically(target / TRAINER_STATE_NAME, json.dumps(asdict(progress)))
    except Exception:
        if parallel.is_first():
            last_whole_checkpoint(folder)  # removes what is half-written
        raise
    if parallel.is_first():
        for path in folder.iterdir():
            if path not in (target, best_target):
                shutil.rmtree(path)


def load_checkpoint(folder: Path, actors: Actors, optimiser: torch.optim.Optimizer) -> Progress | None:
    """Continue from the newest whole checkpoint: sets weights, optimiser and RNG; None where there is none.

    Raises:
        AccordError: it was written by an earlier version.
    """
    checkpoint = parallel.from_first(lambda: last_whole_checkpoint(folder))
    if checkpoint is None:
        return None
    if not (checkpoint / ".metadata").exists():
        raise AccordError(
            f"{checkpoint} was written by an earlier version of accord, which kept checkpoints in another form; "
            f"continue with that version, or delete {folder} to train from the beginning"
        )
    if parallel.is_first():
        say(f"ppo: continues from {checkpoint.name}")
    values = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    values["evaluations"] = [Evaluation(**each) for each in values["evaluations"]]
    if values["ahead"] is not None:
        values["ahead"] = [Completion(**each) for each in values["ahead"]]
    trained = Trained(actors, optimiser, Progress(**values))
    _make_room(checkpoint, trained)
    state = _state(trained)
    _read(checkpoint, state)
    for name, p in _trained(actors).items():
        if name in state["optimiser"]:
            set_moments(optimiser, p, state["optimiser"][name])
    torch.set_rng_state(state["rng"])
    actors.score_shift = trained.progress.score_shift
    return trained.progress


def load_best(folder: Path, progress: Progress, actors: Actors) -> None:
    """Give the policy the weights of its best evaluation, unless it has them. All processes take part."""
    if progress.best is not None and progress.best.update != progress.update:
        _read(folder / f"best-{progress.best.update}", {"policy": _weights(actors.policy_parameters)})


def _state(trained: Trained) -> dict[str, Any]:
    """All tensors of a checkpoint; those of weights and of the optimiser are the ones in use."""
    optimiser = trained.optimiser
    return {
        "policy": _weights(trained.actors.policy_parameters),
        "critic": _weights(trained.actors.critic_parameters),
        "optimiser": {
            name: moments(optimiser, p)
            for name, p in _trained(trained.actors).items()
            if p in optimiser.state
        },
        "rng": torch.get_rng_state(),
    }


def _make_room(checkpoint: Path, trained: Trained) -> None:
    """Give the optimiser moments for what had some when the checkpoint was written."""
    written = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    had = [p for name, p in _trained(trained.actors).items() if f"optimiser.{name}.step" in written]
    make_room(trained.optimiser, had)


def _trained(actors: Actors) -> dict[str, nn.Parameter]:
    """Policy and critic, whose weights may have the same names."""
    return {
        f"{model}.{name}": p
        for model, parameters in (("policy", actors.policy_parameters), ("critic", actors.critic_parameters))
        for name, p in parameters.items()
    }


def _weights(parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in parameters.items()}


def _write(folder: Path, state: dict[str, Any]) -> None:
    if parallel.is_first():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)  # another process may be there already
    with _plain_errors():
        parallel.join()
        dcp.save(state, storage_writer=dcp.FileSystemWriter(folder), no_dist=parallel.count() == 1)


def _read(folder: Path, state: dict[str, Any]) -> None:
    """Into the tensors of `state`, each of which must be there."""
    with _plain_errors():
        parallel.join()
        dcp.load(state, storage_reader=dcp.FileSystemReader(folder), no_dist=parallel.count() == 1)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """torch collects the errors of all processes; here comes the first one as it was."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error
