"""Models in shards: of every weight, gradient and moment of the optimiser each process holds a part.

torch's `fully_shard` has the weights of a layer together while it computes, and of what stands around the layers, heads
included, while the model computes. Gradients are summed, not averaged: losses are divided by the counts of all
processes. Every process must compute the same passes in the same order (see `rl.policy_gradient.rows.share_passes`).
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from accord import parallel
from accord.models.families import decoder_layers
from accord.packing import body_of

T = TypeVar("T")


class Whole(nn.Module):
    """A model and its heads; while it computes something, its weights are whole, but for those of layers."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.modules_inside = nn.ModuleList(modules)

    def forward(self, compute: Callable[[], T]) -> T:
        """What `compute` returns."""
        return compute()


def shard(model: nn.Module, *heads: nn.Module) -> Whole:
    """Put a model and its heads into shards, in place, on this process's device.

    The first process has all weights; those of the others count for nothing and may be on the meta device. What reads
    weights beside the layers' own forward passes must be computed by what is returned.
    """
    parallel.join()
    device = local_device()
    whole = Whole(model, *heads)
    weights = {name: p.detach() for name, p in whole.named_parameters()} if parallel.is_first() else {}
    options: dict[str, Any] = {"mesh": init_device_mesh(device.type, (parallel.count(),))}
    if parallel.offloads() and device.type != "cpu":
        options["offload_policy"] = CPUOffloadPolicy()
    for module in (*decoder_layers(body_of(model))[1], whole):
        sharded: FSDPModule = fully_shard(module, reshard_after_forward=True, **options)
        sharded.set_gradient_divide_factor(1.0)  # each module has its own
        if device.type == "cpu":
            sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    _hand_out(whole, weights, device)
    return whole


@torch.no_grad()
def _hand_out(whole: Whole, weights: dict[str, Tensor], device: torch.device) -> None:
    """Give each process its shards of the first one's weights, one weight after the other."""
    if not parallel.is_first():
        whole.to_empty(device="cpu" if parallel.offloads() else device)
        for module in whole.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
    for name, p in whole.named_parameters():
        assert isinstance(p, DTensor)
        weight = (
            weights.pop(name).to(device) if weights else torch.empty(p.shape, dtype=p.dtype, device=device)
        )
        shards = distribute_tensor(weight, p.device_mesh, p.placements, src_data_rank=0)
        p.to_local().copy_(shards.to_local())
    for buffer in whole.buffers():
        torch.distributed.broadcast(buffer, 0)


def local_device() -> torch.device:
    """Where this process computes."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def hollow(model: nn.Module) -> Any:
    """A copy of a model on the CPU whose weights have no memory yet; see `gathered`."""
    without_memory: dict[int, Any] = {}
    for p in model.parameters():
        empty = nn.Parameter(torch.empty_like(p, device="cpu"), requires_grad=p.requires_grad)
        empty.untyped_storage().resize_(0)
        without_memory[id(p)] = empty
    return copy.deepcopy(model, without_memory)  # what it has copied already


@contextlib.contextmanager
@torch.no_grad()
def gathered(model: nn.Module, copied: Any | None) -> Iterator[Any]:
    """The weights of a model in shards, in the first process's `hollow` copy of it, which is empty again afterwards.

    All processes take part, and one weight after the other is put together.

    Args:
        model: in shards.
        copied: the copy; None in the other processes, which get None.
    """
    into = {} if copied is None else dict(copied.named_parameters())
    for name, p in model.named_parameters():
        assert isinstance(p, DTensor)
        weight = p.full_tensor()
        if copied is not None:
            target = into[name]
            target.untyped_storage().resize_(target.numel() * target.element_size())
            target.copy_(weight)
    try:
        yield copied
    finally:
        for target in into.values():
            target.untyped_storage().resize_(0)
