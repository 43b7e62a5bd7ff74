"""Several processes that share the work of one run, as `accelerate launch` starts them; with one, nothing happens here.

    accelerate launch --num_processes 2 -m accord ppo CONFIG

The first process has the run, the sampler and the terminal. The others compute their share, and are told the rest. All
of them come by the same calls of `broadcast` and the sums in the same order, so what decides about the way must be the
same in all. When a process fails, the others notice in their next such call, or are ended by the launcher.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from accord.errors import AccordError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

PATIENCE = timedelta(days=7)
"""How long a process waits for another one that is alive; sampling may take hours."""
BUCKET_NUMBERS = 2**25
"""How many numbers are summed at a time."""
LOST = "another process of this run ended before its time; run the same command again to continue"

T = TypeVar("T")
Sharding = Literal["none", "fsdp2", "zero2", "zero3"]
"""How weights, gradients and the optimiser's state lie on devices: whole on each (with gradients summed), in shards by
torch's `fully_shard`, or by DeepSpeed's ZeRO."""


class ProcessLostError(AccordError):
    """Another process of the run ended."""


def count() -> int:
    """How many processes share the run."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def is_first() -> bool:
    """Whether this process has the run; true for the only one."""
    return rank() == 0


def sharding() -> Sharding:
    """How this process shares weights with the others, as whoever launched it says by accelerate's variables.

    Raises:
        UsageError: it says FSDP in its first version, or a stage of ZeRO that shards no gradients.
    """
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise UsageError("accord shards by FSDP in its second version; launch with --fsdp_version 2")
        return "fsdp2"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "")
        if stage not in ("2", "3"):
            raise UsageError("accord shards by ZeRO in its stages 2 and 3; launch with --zero_stage 2 or 3")
        return "zero2" if stage == "2" else "zero3"
    return "none"


def is_sharded() -> bool:
    """Whether several processes hold a part of every weight each, by torch's `fully_shard`."""
    return count() > 1 and sharding() == "fsdp2"


def offloads() -> bool:
    """Whether weights and the optimiser's state in shards wait in the host's memory."""
    return os.environ.get("FSDP_OFFLOAD_PARAMS") == "true"


def join() -> None:
    """Wait for the other processes and connect to them; `broadcast` and the sums do it where nobody has.

    On CPU they talk by gloo, on GPUs, of which each has one, by nccl.
    """
    if count() == 1:
        return
    import accelerate
    import torch

    accelerate.PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def broadcast(value: T) -> T:
    """The first process's value, in all of them.

    Raises:
        ProcessLostError: another process ended.
    """
    if count() == 1:
        return value
    found = [value if is_first() else None]
    with _together():
        import torch

        torch.distributed.broadcast_object_list(found)
    return found[0]  # type: ignore[return-value]


def from_first(find: Callable[[], T]) -> T:
    """What `find` returns in the first process, which alone calls it, in all of them."""
    return broadcast(find() if is_first() else None)  # type: ignore[return-value]


def share(sizes: Sequence[int], of: int | None = None) -> list[int]:
    """Which of so many things a process computes: dealt out by size, so that nobody has all the large ones.

    Args:
        sizes: of the things.
        of: the number of the process; None for this one.
    """
    order = sorted(range(len(sizes)), key=lambda index: sizes[index])
    return sorted(order[rank() if of is None else of :: count()])


def sum_tensors(tensors: Sequence["Tensor"]) -> None:
    """Sum tensors over the processes, in place, many in one go; equal bits everywhere.

    Raises:
        ProcessLostError: another process ended.
    """
    if count() == 1:
        return
    import torch

    for bucket in _buckets(tensors):
        flat = torch.cat([each.reshape(-1) for each in bucket])
        with _together():
            torch.distributed.all_reduce(flat)
        for each, summed in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
            each.copy_(summed.view_as(each))


def sum_gradients(parameters: Iterable["nn.Parameter"]) -> None:
    """Sum gradients over the processes, in place; a parameter that has none in any process keeps none.

    Raises:
        ProcessLostError: another process ended.
    """
    if count() == 1:
        return
    import torch

    all_parameters = list(parameters)
    uses = torch.tensor([float(p.grad is not None) for p in all_parameters], device=all_parameters[0].device)
    sum_tensors([uses])
    used = [p for p, uses_of_one in zip(all_parameters, uses.tolist(), strict=True) if uses_of_one]
    for p in used:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    sum_tensors([p.grad for p in used if p.grad is not None])


def take_maximum(tensor: "Tensor") -> None:
    """The largest of the processes' numbers, in place.

    Raises:
        ProcessLostError: another process ended.
    """
    if count() == 1:
        return
    import torch

    with _together():
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)


def gather(value: T) -> list[T]:
    """The values of all processes, in all of them.

    Raises:
        ProcessLostError: another process ended.
    """
    found: list[Any] = [value] * count()
    if count() > 1:
        with _together():
            import torch

            torch.distributed.all_gather_object(found, value)
    return found


def speaks() -> bool:
    """Whether this process, which failed, says so: the first one to fail does, and the others, which follow, do not."""
    if count() == 1:
        return True
    import torch

    if not torch.distributed.is_initialized():
        return is_first()
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        return int(store.add("accord/failed", 1)) == 1
    except RuntimeError:  # it went with the process that kept it
        return False


@contextlib.contextmanager
def noticing_losses() -> Iterator[None]:
    """Turns a connection that an engine lost, somewhere within a training step, into a sentence.

    Raises:
        ProcessLostError: another process ended.
    """
    try:
        yield
    except RuntimeError as error:
        import torch

        if not isinstance(error, torch.distributed.DistBackendError) and "gloo" not in str(error):
            raise
        raise ProcessLostError(LOST) from error


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Turns a lost connection into a sentence."""
    try:
        join()
        yield
    except RuntimeError as error:
        raise ProcessLostError(LOST) from error


def _buckets(tensors: Sequence["Tensor"]) -> Iterator[list["Tensor"]]:
    bucket: list[Tensor] = []
    numbers = 0
    for tensor in tensors:
        numbers += tensor.numel()
        if bucket and numbers > BUCKET_NUMBERS:
            yield bucket
            bucket, numbers = [], tensor.numel()
        bucket.append(tensor)
    if bucket:
        yield bucket
