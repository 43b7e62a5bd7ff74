"""A policy's weights on their way to engines, in the steps of vLLM's own weight transfer: start, update, finish.

Each file of weights is written once, read by all engines at the same time and removed, so no second copy of the policy
lies anywhere. Where trainer and engine compute on one GPU the weights stay there, and handles of vLLM's backend `ipc`
go over in place of a file.
"""

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from accord.sampling.weights import checkpoint_weights, in_batches, weight_files

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

T = TypeVar("T")


class Receiver(Protocol):
    """One engine, by the methods that vLLM has for it (its `VLLMWeightSyncClient`)."""

    @property
    def shares_gpu(self) -> bool:
        """Whether it computes on the GPU that has the policy."""
        ...

    def start_weight_update(self) -> None:
        """Before the first part."""
        ...

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Take a part: what the engine's backend calls its update info."""
        ...

    def finish_weight_update(self, weight_version: str) -> None:
        """After the last part: from now on the weights have this name."""
        ...


def hand_over(policy: "PreTrainedModel", receivers: Sequence[Receiver], parent: Path | None = None) -> None:
    """Give engines the policy's weights, an adapter merged; files of them are in a folder of `parent`."""
    version = uuid.uuid4().hex
    on_gpu = all(receiver.shares_gpu for receiver in receivers)
    in_all([receiver.start_weight_update for receiver in receivers])
    for part in _handles(policy) if on_gpu else _files(policy, parent):
        in_all([lambda r=receiver, part=part: r.update_weights(part) for receiver in receivers])  # type: ignore[misc]
    in_all([lambda r=receiver: r.finish_weight_update(version) for receiver in receivers])  # type: ignore[misc]


def _files(policy: "PreTrainedModel", parent: Path | None) -> Iterator[dict[str, Any]]:
    for path in weight_files(policy, parent):
        yield {"path": str(path)}


def _handles(policy: "PreTrainedModel") -> Iterator[dict[str, Any]]:
    """As `vllm.distributed.weight_transfer.ipc_engine.IPCWeightTransferUpdateInfo` wants them, without vLLM."""
    import torch
    from torch.multiprocessing.reductions import reduce_tensor

    def handle(tensor: "Tensor") -> dict[str, Any]:
        gpu = str(torch.cuda.get_device_properties(tensor.device).uuid)
        return {gpu: reduce_tensor(tensor.detach())[1]}

    for batch in in_batches(checkpoint_weights(policy)):  # which must live until they are taken
        yield {
            "names": list(batch), "dtype_names": [str(t.dtype).removeprefix("torch.") for t in batch.values()],
            "shapes": [list(t.shape) for t in batch.values()], "ipc_handles": [handle(t) for t in batch.values()],
        }  # fmt: skip


def in_background(work: Callable[[], T]) -> "Future[T]":
    """Work in a thread that does not keep the program from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def in_all(works: Sequence[Callable[[], T]]) -> list[T]:
    """The results of works that go on at the same time.

    Raises:
        Exception: of the first one that failed, when all have ended.
    """
    if len(works) == 1:
        return [works[0]()]
    futures = [in_background(work) for work in works]
    wait(futures)
    return [future.result() for future in futures]
