"""Losses on rows outside of training, and weights between the base's and the tuned ones, chosen by them."""

from typing import Any

import torch
from accelerate.utils import convert_outputs_to_fp32
from datasets import Dataset

from accord.compute.sharding import shard_like
from sft.trainer import Trainer


def loss_on(trainer: Trainer, rows: Dataset) -> float:
    """The loss on rows with `input_ids` and `labels`, taken as the trainer takes that on held-out rows."""
    model: Any = trainer.model
    was_training = model.training
    model.eval()

    @convert_outputs_to_fp32  # as what `accelerate` makes of the model when training begins
    def forward(**inputs: Any) -> Any:
        with trainer.accelerator.autocast():
            return model(**inputs)

    per_pass = trainer.args.per_device_eval_batch_size
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(rows), per_pass):
            batch = [rows[index] for index in range(start, min(start + per_pass, len(rows)))]
            batch = [{key: row[key] for key in ("input_ids", "labels")} for row in batch]
            inputs: Any = trainer._prepare_inputs(trainer.data_collator(batch))
            total += float(trainer.compute_loss(forward, inputs)) * len(batch)
    trainer._metrics["eval"].clear()
    model.train(was_training)
    return total / len(rows)


def weights_at_start(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copies of what is trained, by name, in float32, as it is trained; to be taken before training."""
    model: Any = trainer.model
    return {name: p.detach().float().clone() for name, p in model.named_parameters() if p.requires_grad}


def keep_best(
    trainer: Trainer,
    start: dict[str, torch.Tensor],
    shares: list[float],
    heldout: Dataset,
    retention: Dataset | None,
) -> dict[str, Any]:
    """Leave the model at that share of the way from `start` to where it is whose loss is the lowest.

    Of an adapter's two factors only the second one is scaled, so that the merged weights are on the straight line.

    Args:
        trainer: after training.
        start: from `weights_at_start`.
        shares: in (0, 1]; 1 is the tuned model.
        heldout: rows that the loss is taken on.
        retention: rows whose loss is added to it.

    Returns:
        The figures: `interpolated` (the share), `interpolation` (a row for each), `heldout_loss`.
    """
    model: Any = trainer.model
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tuned = {name: p.detach().clone() for name, p in trained.items()}
    start = {name: shard_like(start[name], p) for name, p in tuned.items()}

    @torch.no_grad()
    def place(share: float) -> None:
        for name, p in trained.items():
            whole = share == 1 or ".lora_A." in name
            p.copy_(tuned[name] if whole else start[name].lerp(tuned[name], share))

    table = []
    for share in sorted(set(shares)):
        place(share)
        row = {"share": share, "heldout_loss": loss_on(trainer, heldout)}
        if retention is not None:
            row["retention_loss"] = loss_on(trainer, retention)
        table.append(row)
    best = min(table, key=lambda row: row["heldout_loss"] + row.get("retention_loss", 0.0))
    place(best["share"])
    return {"heldout_loss": best["heldout_loss"], "interpolated": best["share"], "interpolation": table}
