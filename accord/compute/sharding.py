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
    if sharding == "none":
        return
    if sharding == "fsdp2":
        os.environ.update(FSDP_SETTINGS)
    elif importlib.util.find_spec("deepspeed") is None:
        raise UsageError(
            f"compute.sharding: {sharding} needs DeepSpeed; run `pip install 'accord[zero]'`, or set fsdp2"
        )
    import torch

    if not torch.accelerator.is_available():
        from accord.compute import on_cpu

        on_cpu.let_accelerate_shard()
        if sharding != "fsdp2":
            on_cpu.let_deepspeed_start()


def take_models_for_whole() -> None:
    """With ZeRO-3, transformers and TRL take all models for parts of them from a trainer's arguments on; no more so.

    That is, until the trainer itself is made, which lets them do it again.
    """
    if parallel.sharding() == "zero3":
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


@contextlib.contextmanager
def whole_on_device(trainer: Any) -> Iterator[None]:
    """Lets the whole model compute before its weights are in shards; accelerate leaves it on the host until then."""
    if parallel.sharding() == "none":
        yield
        return
    trainer.model.to(trainer.accelerator.device)
    take_models_for_whole()
    try:
        yield
    finally:
        trainer.model.to("cpu")
        if parallel.sharding() == "zero3":
            from transformers.integrations.deepspeed import set_hf_deepspeed_config

            set_hf_deepspeed_config(trainer.accelerator.state.deepspeed_plugin.hf_ds_config)


def full(parameter: Any) -> Any:
    """A parameter whose shards the processes have, whole in each, without gradients; all call it together."""
    tensor = parameter.detach()
    if hasattr(tensor, "full_tensor"):
        return tensor.full_tensor()
    if hasattr(parameter, "ds_id"):  # ZeRO-3's, which is empty in between
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            return parameter.detach().clone()
    return tensor


def shard_like(tensor: Any, other: Any) -> Any:
    """A whole tensor, in shards as another one is."""
    if not hasattr(other, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, other.device_mesh, other.placements)


@parallel.noticing_losses()
def whole_model(trainer: Any) -> Any:
    """The trainer's model with whole weights in the first process; all call it together.

    Where weights are in shards, nobody can compute with the model afterwards.

    Raises:
        ProcessLostError: another process of the run ended.
    """
    import torch
    from torch.distributed.fsdp import FSDPModule

    model = trainer.accelerator.unwrap_model(trainer.model)
    if parallel.sharding() in ("none", "zero2"):
        return model
    made: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in made:  # tied ones once
                whole = full(parameter)
                made[id(parameter)] = (
                    torch.nn.Parameter(whole.cpu(), parameter.requires_grad)
                    if parallel.is_first()
                    else parameter
                )
            module._parameters[name] = made[id(parameter)]
    return model
