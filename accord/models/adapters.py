"""Low-rank adapters as PEFT takes them."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accord.config import LoraConfig
from accord.errors import UsageError
from accord.models.families import decoder_layers
from accord.models.files import ADAPTER, ADAPTER_WEIGHTS, read_settings
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
        UsageError: the model has fewer layers than `top_layers`, experts with what these do not go with, or a weight
            that is narrower than the rank where `start` decomposes it.
    """
    if lora is None:
        return None
    import peft

    start: Any = True if lora.start == "zero" else lora.start
    return peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, use_rslora=lora.rank_stabilized,
        use_dora=lora.dora, init_lora_weights=start, task_type=task, **_targets(model, lora), **options,
    )  # fmt: skip


def takes_from_base(model: Any) -> bool:
    """Whether adapters started from a part of the frozen weights, which are others than the base's since then."""
    config = getattr(model, "peft_config", {}).get("default")
    return isinstance(getattr(config, "init_lora_weights", True), str)


def adds_tokens(model: Any) -> bool:
    """Whether a loaded model has virtual tokens before every sequence."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def fit_to_base(adapter: Path, start: Path) -> None:
    """Rewrite an adapter that was trained beside what `start` took out of the base, so that it fits the base itself.

    Both factors get those of the start beside their own: B A - B0 A0 = [B, -B0] [A; A0], an adapter of twice the rank.

    Args:
        adapter: the folder as PEFT saved it; is rewritten.
        start: the folder of the same adapter before the first update.
    """
    import torch
    from safetensors.torch import load_file, save_file

    after, before = (load_file(folder / ADAPTER_WEIGHTS) for folder in (adapter, start))
    for name, weight in after.items():
        if ".lora_A." in name:
            after[name] = torch.cat([weight, before[name]], dim=0)
        elif ".lora_B." in name:
            after[name] = torch.cat([weight, -before[name]], dim=1)
    save_file(after, adapter / ADAPTER_WEIGHTS, {"format": "pt"})
    settings = read_settings(adapter / ADAPTER)
    settings["init_lora_weights"] = True
    settings["r"] *= 2
    settings["lora_alpha"] *= math.sqrt(2) if settings["use_rslora"] else 2  # the scale stays
    (adapter / ADAPTER).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


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
    if lora.start != "zero":
        _check_rank(model, lora, body)
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
    for key, is_set, none in (
        ("dropout", lora.dropout > 0, "0"),
        ("quantize_base", lora.quantize_base, "false"),
        ("dora", lora.dora, "false"),
        ("start", lora.start != "zero", "zero"),
    ):
        if is_set:
            raise UsageError(
                f"lora.{key}: {model.reference} has experts, whose adapters PEFT adds to stacked weights, and those go "
                f"with no {key}; set it to {none}"
            )


def _check_rank(model: Model, lora: LoraConfig, body: Any) -> None:
    narrowest = min(min(body.get_submodule(name).weight.shape) for name in _linear(body))
    if lora.rank > narrowest:
        raise UsageError(
            f"lora.rank is {lora.rank}, and start: {lora.start} decomposes weights of which {model.reference} has some "
            f"that are only {narrowest} wide; lower the rank, or set start to zero"
        )
