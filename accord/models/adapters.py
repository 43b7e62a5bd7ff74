"""Low-rank adapters as PEFT takes them."""

from collections.abc import Iterator
from typing import Any

from accord.config import LoraConfig
from accord.errors import UsageError
from accord.models.families import decoder_layers
from accord.models.references import Model

WITHOUT_ADAPTER = {
    kind: {"out_proj", "conv1d"} for kind in ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
}
"""Modules that PEFT refuses, by model type: the fused kernels of state space models go past their adapters."""
RENAMED_BY_PEFT = {"gate", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj"}
"""Names of modules that PEFT takes for the experts' in all layers, where a model has experts."""


def peft_config(model: Model, lora: LoraConfig | None, task: str, **options: Any) -> Any:
    """The PEFT configuration of adapters for `model` from an accord one, or None for full fine-tuning.

    Raises:
        UsageError: the model has fewer layers than `top_layers`, or experts with what these do not go with.
    """
    if lora is None:
        return None
    import peft

    return peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, task_type=task, **_targets(model, lora),
        **options,
    )  # fmt: skip


def _targets(model: Model, lora: LoraConfig) -> dict[str, Any]:
    """All linear modules, those that are parameters of experts and routers included, but for the model's head.

    PEFT's "all-linear" is that for models without experts, and does not go with a choice of layers.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(model.folder)
    with torch.device("meta"):  # names only, no weights
        body = AutoModel.from_config(config)
    parameters = set(_stacked(body))
    refused = WITHOUT_ADAPTER.get(config.model_type, set())
    if lora.top_layers is None and not parameters and not refused:
        return {"target_modules": "all-linear"}

    modules = set(_linear(body))
    modules = {name for name in modules if name.rsplit(".", 1)[-1] not in refused}
    if parameters:
        _check_experts(model, lora)
        by_weight = {name for name in modules if name.rsplit(".", 1)[-1] in RENAMED_BY_PEFT}
        modules -= by_weight
        parameters |= {f"{name}.weight" for name in by_weight}
    if lora.top_layers is not None:
        path, layers = decoder_layers(body)
        if lora.top_layers > len(layers):
            raise UsageError(
                f"lora.top_layers is {lora.top_layers}, and {model.reference} has {len(layers)} layers"
            )
        beginnings = tuple(f"{path}.{i}." for i in range(len(layers) - lora.top_layers, len(layers)))
        modules, parameters = (
            {name for name in names if name.startswith(beginnings)} for names in (modules, parameters)
        )
    targets: dict[str, Any] = {"target_modules": sorted(modules)}
    if parameters:
        targets["target_parameters"] = sorted(parameters)
    return targets


def _linear(body: Any) -> Iterator[str]:
    """The names of linear modules."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return (name for name, module in body.named_modules() if isinstance(module, nn.Linear | Conv1D))


def _stacked(body: Any) -> Iterator[str]:
    """The names of the experts' matrices, which are stacked in a parameter, and of the routers' matrices."""
    experts = [
        f"{name}.{own}"
        for name, module in body.named_modules()
        if not _is_torch_s(module)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    ]
    if not experts:
        return
    yield from experts
    for name, module in body.named_modules():
        own = getattr(module, "weight", None)
        if not _is_torch_s(module) and getattr(own, "ndim", 0) == 2:
            yield f"{name}.weight"


def _is_torch_s(module: Any) -> bool:
    """A module of torch's, or of a kind of them: an embedding, a convolution."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | nn.Embedding | Conv1D) or type(module).__module__.startswith(
        "torch."
    )


def _check_experts(model: Model, lora: LoraConfig) -> None:
    for key, value, none in (("dropout", lora.dropout, "0"), ("quantize_base", lora.quantize_base, "false")):
        if value:
            raise UsageError(
                f"lora.{key}: {model.reference} has experts, whose adapters PEFT adds to stacked weights, and those go "
                f"with no {key}; set it to {none}"
            )
