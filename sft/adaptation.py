"""A model made ready for a method of fine-tuning: what is frozen, what is added, where it has dropout."""

import fnmatch
from typing import TYPE_CHECKING, Any

from accord import parallel
from accord.compute import sharding
from accord.config import LoraConfig
from accord.errors import UsageError
from accord.models.adapters import peft_config
from accord.models.families import decoder_layers
from accord.models.files import names as few
from accord.models.files import read_settings
from accord.models.loading import check_can_be_trained, load_policy
from accord.models.references import Model
from accord.models.saving import save_with_virtual_tokens
from accord.runs import Run
from accord.training import base_dtype, quantization, save_dtype, save_trained_model
from sft.methods import DEFAULT_VIRTUAL_TOKENS, MethodConfig, TrainedWeights, check_sharding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sft.trainer import Trainer

IA3_MODULES = ["k_proj", "v_proj", "down_proj"]
"""That have factors where PEFT does not know better; the last one is the inner layer of the MLP."""


def model_and_penalties(config: MethodConfig, base: Model) -> dict[str, Any]:
    """The arguments of `sft.trainer.Trainer` that say what is trained, and what holds it to the base.

    Raises:
        UsageError: the method does not go with this model, or with how weights are sharded.
    """
    check_sharding(config, parallel.sharding())
    check_can_be_trained(base)
    dtype = base_dtype(config)
    model: Any = load_policy(
        base, dtype, **quantization(config.lora), **dropout_options(base, config.dropout)
    )
    if config.train_only:
        choose_weights(model, config.train_only, base.reference)
    copies = config.lora is None and config.adapter is None  # what is trained is the base itself
    copies |= config.lora is not None and config.lora.start != "zero"  # a part of it went into the adapter
    return {
        "model": model,
        "peft_config": adapter_config(base, config),
        "kl_to_base": config.kl_to_base,
        "l2_to_start": config.l2_to_start,
        "base": load_policy(base, dtype) if config.kl_to_base and copies else None,
    }


def save_adapted(
    config: MethodConfig, trainer: "Trainer", tokenizer: "PreTrainedTokenizerBase", run: Run, base: Model
) -> None:
    """Write `model/`, merged where that is possible, and `adapter/`, where there is one."""
    dtype = save_dtype(config.save_dtype, base)
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if config.adapter and config.adapter.adds_tokens:
        model = sharding.whole_model(trainer)
        if not parallel.is_first():
            return
        save_with_virtual_tokens(model, load_policy(base), tokenizer, run.path / "model", dtype)
        return
    whole = config.lora is None and config.adapter is None
    if whole:
        restore_dropout(model, base, dropout_options(base, config.dropout))
    save_trained_model(
        trainer, tokenizer, run, load_policy(base) if not whole and parallel.is_first() else None, dtype
    )


def adapter_config(base: Model, config: MethodConfig) -> Any:
    """The PEFT configuration of what is added to `base`; None where its own weights are trained.

    Raises:
        UsageError: they do not go together.
    """
    if config.adapter is None:
        if config.lora and config.l2_to_start:
            _check_has_factors(base, config.lora)
        return peft_config(base, config.lora, "CAUSAL_LM")
    import peft

    if config.adapter.method == "ia3":
        return _ia3(base)
    tokens = config.adapter.virtual_tokens or DEFAULT_VIRTUAL_TOKENS
    if config.adapter.method == "prefix":
        return peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens)
    return peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=tokens, prompt_tuning_init="SAMPLE_VOCAB",
        tokenizer_name_or_path=str(base.folder),
    )  # fmt: skip


def choose_weights(model: Any, chosen: TrainedWeights, reference: str) -> None:
    """Freeze all weights of a model but those that are chosen.

    Raises:
        UsageError: a part of the choice names nothing in this model.
    """
    weights = dict(model.named_parameters())
    trained: set[str] = set()
    for pattern in chosen.names:
        found = set(fnmatch.filter(weights, pattern))
        if not found:
            raise UsageError(
                f"sft.train_only.names: no weight of {reference} has the name '{pattern}'; its weights are called such "
                f"as {few([name for name in weights if '.0.' in name] or weights)}"
            )
        trained |= found
    if chosen.last_layers:
        path, layers = decoder_layers(model)
        if chosen.last_layers > len(layers):
            raise UsageError(
                f"sft.train_only.last_layers is {chosen.last_layers}, and {reference} has {len(layers)} layers"
            )
        beginnings = tuple(f"{path}.{i}." for i in range(len(layers) - chosen.last_layers, len(layers)))
        trained |= {name for name in weights if name.startswith(beginnings)}
    if chosen.norms:
        found = {
            f"{path}.{name}"
            for path, module in model.named_modules()
            if "norm" in type(module).__name__.lower()
            for name, _ in module.named_parameters(recurse=False)
        }
        if not found:
            raise UsageError(
                f"sft.train_only.norms: {reference} has no normalisations with weights; name others"
            )
        trained |= found
    if chosen.biases:
        found = {name for name in weights if name.endswith("bias")}
        if not found:
            raise UsageError(
                f"sft.train_only.biases: {reference} has no biases, as most models of today; set norms in their place"
            )
        trained |= found
    for name, weight in weights.items():
        weight.requires_grad_(name in trained)


def dropout_options(base: Model, dropout: float) -> dict[str, float]:
    """What `load_policy` takes to give a model this dropout wherever its architecture has it.

    Raises:
        UsageError: it has it nowhere.
    """
    if not dropout:
        return {}
    from transformers import AutoConfig

    fields = [
        name
        for name, value in vars(AutoConfig.from_pretrained(base.folder)).items()
        if name.endswith(("dropout", "pdrop", "dropout_rate"))
        and not name.startswith(("classifier", "summary"))
        and isinstance(value, int | float)
    ]
    if not fields:
        raise UsageError(
            f"sft.dropout: the architecture of {base.reference} has no dropout; train with lora and lora.dropout, or "
            "set it to 0"
        )
    return dict.fromkeys(fields, dropout)


def restore_dropout(model: Any, base: Model, options: dict[str, float]) -> None:
    """Let a model's configuration say of dropout again what its base's does, so that no later stage has it."""
    settings = read_settings(base.folder / "config.json")
    defaults = type(model.config)()
    for name in options:
        setattr(model.config, name, settings.get(name, getattr(defaults, name, 0.0)))


def _ia3(base: Model) -> Any:
    """PEFT's own choice of modules for a family that it knows, and Llama's for others that have them."""
    import peft
    import torch
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN
    from transformers import AutoConfig, AutoModel

    kind = read_settings(base.folder / "config.json").get("model_type")
    if kind in KNOWN:
        return peft.IA3Config(task_type="CAUSAL_LM")
    with torch.device("meta"):
        body: Any = AutoModel.from_config(AutoConfig.from_pretrained(base.folder))
    found = {
        name.rpartition(".")[2]
        for name, module in body.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    if missing := [name for name in IA3_MODULES if name not in found]:
        raise UsageError(
            f"sft.adapter: ia3 is not possible here, for {base.reference} has no linear module {few(missing)}, and "
            f"PEFT knows of no others in {kind} models; train it with lora"
        )
    return peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=IA3_MODULES, feedforward_modules=IA3_MODULES[-1:]
    )


def _check_has_factors(base: Model, lora: LoraConfig) -> None:
    if getattr(peft_config(base, lora, "CAUSAL_LM"), "target_parameters", None):
        raise UsageError(
            f"sft.l2_to_start: {base.reference} has experts, whose adapters are stacked, and their distance is not "
            "measured; set it to 0"
        )
