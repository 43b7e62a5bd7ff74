"""Weights in shards, for trainers on accelerate: what is set before one is made, and whole weights after it."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

from accord import parallel
from accord.errors import UsageError

FSDP_SETTINGS = {
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",  # the other processes would compute with weights that nobody loaded
}
"""accelerate's variables, whatever the launcher set: every layer is a unit of its own, gathered when it is needed."""


def prepare() -> None:
    """Make accelerate shard as `parallel.sharding` says; to be called before a trainer is made.

    Raises:
        UsageError: the engine is not installed.
    """
    sharding = parallel.sharding()
    if sharding == "fsdp2":
        import torch

        os.environ.update(FSDP_SETTINGS)
        if not torch.accelerator.is_available():
            from accord.compute.on_cpu import let_accelerate_shard

            let_accelerate_shard()
    elif sharding != "none" and importlib.util.find_spec("deepspeed") is None:
        raise UsageError(f"compute.sharding: {sharding} needs deepspeed; pip install deepspeed, or set fsdp2")


@contextlib.contextmanager
def whole_on_device(trainer: Any) -> Iterator[None]:
    """Lets the whole model compute before its weights are in shards; accelerate leaves it on the host until then."""
    if parallel.sharding() == "none":
        yield
        return
    trainer.model.to(trainer.accelerator.device)
    try:
        yield
    finally:
        trainer.model.to("cpu")


def full(tensor: Any) -> Any:
    """A tensor whose shards the processes have, whole in each; all call it together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(tensor: Any, other: Any) -> Any:
    """A whole tensor, in shards as another one is."""
    if not hasattr(other, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, other.device_mesh, other.placements)


def whole_model(trainer: Any) -> Any:
    """The trainer's model with whole weights in the first process; all call it together.

    Where weights are in shards, nobody can compute with the model afterwards.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    sharding = parallel.sharding()
    if sharding == "none":
        return model
    if sharding == "fsdp2":
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        weights = None
    else:
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    _put_in_place(model, weights)
    return model


def _put_in_place(model: Any, weights: dict[str, Any] | None) -> None:
    """Give the first process's model whole parameters: from `weights`, or gathered one by one."""
    import torch

    made: dict[int, Any] = {}
    for path, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in made:  # tied ones once
                whole = full(parameter.detach()) if weights is None else weights.get(f"{path}.{name}")
                made[id(parameter)] = (
                    parameter
                    if whole is None or not parallel.is_first()
                    else torch.nn.Parameter(whole.cpu(), parameter.requires_grad)
                )
            module._parameters[name] = made[id(parameter)]
