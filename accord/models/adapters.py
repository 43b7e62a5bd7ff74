"""Low-rank adapters as PEFT takes them."""

from typing import Any

from accord.config import LoraConfig
from accord.errors import UsageError
from accord.models.references import Model


def peft_config(model: Model, lora: LoraConfig | None, task: str, **options: Any) -> Any:
    """The PEFT configuration of adapters for `model` from an accord one, or None for full fine-tuning.

    Raises:
        UsageError: the model has fewer layers than `top_layers`.
    """
    if lora is None:
        return None
    import peft

    targets: dict[str, Any] = {"target_modules": "all-linear"}
    if lora.top_layers is not None:
        targets = _targets_in_top_layers(model, lora.top_layers)
    return peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, task_type=task, **targets, **options,
    )  # fmt: skip


def _targets_in_top_layers(model: Model, top_layers: int) -> dict[str, Any]:
    """What "all-linear" is within some layers, which PEFT does not take together."""
    import torch
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):  # names only, no weights
        layers = AutoModel.from_config(AutoConfig.from_pretrained(model.folder)).layers
    if top_layers > len(layers):
        raise UsageError(f"lora.top_layers is {top_layers}, and {model.reference} has {len(layers)} layers")
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in layers.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    return {
        "target_modules": sorted(linear), "layers_pattern": "layers",
        "layers_to_transform": list(range(len(layers) - top_layers, len(layers))),
    }  # fmt: skip
