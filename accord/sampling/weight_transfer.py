"""What accord adds to vLLM's worker: weights from files, by vLLM's own weight transfer.

Imported by vLLM's processes alone, as it imports vLLM. Naming `PolicyLoader` as `worker_extension_cls` makes every
worker import this module, which registers the backend `accord_files`: vLLM's own backends are all for GPUs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

BACKEND = "accord_files"


@dataclass
class NoInfo(WeightTransferInitInfo):
    """Files need no appointment."""


@dataclass
class FileInfo(WeightTransferUpdateInfo):
    """One part of the weights."""

    path: str
    """Of a file of safetensors, where this worker runs."""


class FileTransferEngine(WeightTransferEngine[NoInfo, FileInfo]):
    """Takes weights from files; each may be removed as soon as `update_weights` returns."""

    init_info_cls = NoInfo
    update_info_cls = FileInfo

    def init_transfer_engine(self, init_info: NoInfo) -> None:
        """Nothing: there is nobody to connect to."""

    def start_weight_update(self) -> None:
        """Let vLLM unpack each layer as its weights come, and pack it again."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one file's weights."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FileInfo) -> None:
        """Load one file's weights.

        Raises:
            FileNotFoundError: the file does not exist where this worker runs.
        """
        model: Any = self.model
        with safe_open(update_info.path, framework="pt") as file:
            # A copy, because vLLM keeps tensors until their layer is complete, and the file may be gone by then.
            model.load_weights((name, file.get_tensor(name).clone()) for name in file.keys())  # noqa: SIM118

    def finish_weight_update(self) -> None:
        """End the update; on a CPU, pack what vLLM packed when it started and does not pack again.

        A tied output head computes from a repacked copy of its old weights, and experts, which were packed in place,
        take raw ones for packed.
        """
        finalize_layerwise_reload(self.model, self.model_config)
        head = getattr(self.model, "lm_head", None)
        if head is not None and hasattr(head, "cpu_linear"):
            head.quant_method.process_weights_after_loading(head)
        for layer in self.model.modules():
            kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
            experts = getattr(kernel, "fused_experts", None)
            if experts is not None and hasattr(experts, "isa"):  # those of a CPU
                experts.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        """Nothing is held."""


WeightTransferEngineFactory.register_engine(BACKEND, FileTransferEngine)


class PolicyLoader:
    """Mixed into vLLM's worker (`worker_extension_cls`), where it can reach the configuration."""

    def describe_policy(self: Any) -> dict[str, Any]:
        """What decides whether this server can sample for a trainer."""
        config, transfer = self.model_config, self.vllm_config.weight_transfer_config
        plain = (int, float, str, bool)
        return {
            "config": {
                key: value for key, value in config.hf_config.to_dict().items() if isinstance(value, plain)
            },
            "dtype": str(config.dtype).removeprefix("torch."),
            "logprobs_mode": str(config.logprobs_mode),
            "max_model_len": int(config.max_model_len),
            "device": str(self.device_config.device_type),
            "chunked_prefill": bool(self.scheduler_config.enable_chunked_prefill),
            "weight_transfer": transfer and str(transfer.backend),
        }
