"""Checkpoints of shards, by torch.distributed.checkpoint: any number of processes continues from them, sharded or not.

accelerate's own need the number of processes and the sharding that wrote them, and on CPU they crash.
"""

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from accord import parallel
from accord.compute.sharding import shard_like
from accord.errors import UsageError

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

SHARDS = "shards"
"""The folder within a checkpoint."""
TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)


class Checkpoints(_Trainer):
    """For trainers of transformers, before them in the order of inheritance; without sharding theirs are written."""

    model: Any
    lr_scheduler: Any

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers does it; weights in shards compute in bfloat16, and losses and sums of gradients do not."""
        super().create_accelerator_and_postprocess()
        if not self.args.bf16:
            return
        if self.is_deepspeed_enabled:  # which would round the weights themselves to bfloat16
            self.accelerator.state.deepspeed_plugin.deepspeed_config |= {
                "bf16": {"enabled": False},
                "torch_autocast": {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []},
            }
        elif (plugin := getattr(self.accelerator.state, "fsdp_plugin", None)) is not None:
            plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Nothing where there are shards: a checkpoint has them with the optimiser, and runs save whole models."""
        if not _is_sharded(self) and not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not _is_sharded(self):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = {
            "weights": get_model_state_dict(self.model, options=TRAINED),
            "optimizer": get_optimizer_state_dict(self.model, _optimizer(self), options=TRAINED),
        }
        dcp.save(state, checkpoint_id=Path(output_dir) / SHARDS)
        if parallel.is_first():
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if parallel.count() > 1:
            torch.distributed.barrier()  # the file that says that a checkpoint is whole comes next

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint) / SHARDS
        model = model if model is not None else self.model
        if _parts_of_deepspeed(Path(resume_from_checkpoint)):
            from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                weights = get_fp32_state_dict_from_zero_checkpoint(resume_from_checkpoint)
            model.load_state_dict(weights, strict=False)  # of an adapter, only what is trained is there
            return
        if not folder.exists():
            self._load_whole_weights(resume_from_checkpoint, model)
            return
        weights = get_model_state_dict(model, options=TRAINED)
        dcp.load({"weights": weights}, checkpoint_id=folder)
        set_model_state_dict(model, weights, options=TRAINED)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or (not _is_sharded(self) and not has_shards(Path(checkpoint))):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder, optimizer = Path(checkpoint) / SHARDS, _optimizer(self)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
        if not folder.exists():
            load_whole(optimizer, torch.load(Path(checkpoint) / OPTIMIZER_NAME, weights_only=True))
            return
        state = get_optimizer_state_dict(self.model, optimizer, options=TRAINED)
        dcp.load({"optimizer": state}, checkpoint_id=folder)
        set_optimizer_state_dict(self.model, optimizer, state, options=TRAINED)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is not None and has_shards(Path(best)):
            self._load_from_checkpoint(best)
        else:
            super()._load_best_model()

    def _load_whole_weights(self, checkpoint: str, model: Any) -> None:
        """Load what processes with whole weights wrote; with sharding, before the weights are in shards."""
        if any(isinstance(p, DTensor) for p in model.parameters()):
            return
        sharded, self.is_fsdp_enabled = self.is_fsdp_enabled, False
        try:
            super()._load_from_checkpoint(checkpoint, model)
        finally:
            self.is_fsdp_enabled = sharded


def has_shards(checkpoint: Path) -> bool:
    """Whether a checkpoint was written by processes that each had a part of the weights."""
    return (checkpoint / SHARDS).exists()


def check_continues(checkpoint: Path) -> None:
    """Only as many processes as wrote a checkpoint of DeepSpeed continue from it, with the same engine.

    Raises:
        UsageError: there are others.
    """
    parts = _parts_of_deepspeed(checkpoint)
    stage = "zero3" if list(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt")) else "zero2"
    ours = parallel.sharding() if parallel.sharding() in ("zero2", "zero3") else None
    if (ours, parallel.count()) == (stage, parts) or not (parts or ours):
        return
    way = f"{stage}, in {parts} processes" if parts else "none or fsdp2"
    raise UsageError(
        f"{checkpoint} was written with compute.sharding: {way}, and DeepSpeed continues from its own checkpoints "
        f"only, with as many processes; set that again, or remove {checkpoint.parent} to begin from the start"
    )


def _parts_of_deepspeed(checkpoint: Path) -> int:
    """How many processes wrote a checkpoint with DeepSpeed; 0 for any other."""
    return len(list(checkpoint.glob("global_step*/*_optim_states.pt")))


def load_whole(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load the state of an optimiser of whole weights into one of weights in shards."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {
            name: shard_like(value, parameters[number]) if getattr(value, "ndim", 0) else value
            for name, value in of_one.items()
        }
        for number, of_one in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})


def _is_sharded(trainer: Any) -> bool:
    return bool(trainer.is_fsdp_enabled)


def _optimizer(trainer: Any) -> torch.optim.Optimizer:
    """torch's, within accelerate's."""
    optimizer = trainer.optimizer
    found: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return found
