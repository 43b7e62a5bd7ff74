"""A look at whether a model can be fine-tuned as `sft` says, and whether the later stages can take what comes of it."""

import logging
from collections.abc import Sequence
from typing import Any

from accord.errors import UsageError
from accord.models.references import Model
from accord.preflight.shared import Faults
from accord.round_config import RoundConfig
from sft.config import SFTConfig

logger = logging.getLogger("accord.preflight")


def look_at_virtual_tokens(config: RoundConfig, sections: Sequence[str], faults: Faults) -> None:
    """They are merged into no weights: what needs those is refused, and who samples in their place is said."""
    adapter = config.sft.adapter if config.sft else None
    if adapter is None or not adapter.adds_tokens:
        return
    what = f"{adapter.method} tuning leaves virtual tokens, which cannot be merged into weights"
    with faults.of("sft.adapter"):
        if getattr(config.rl, "shared_base", False) and "rl" in sections:
            raise UsageError(f"{what}, and rl.shared_base needs adapters of one base; fine-tune with lora")
        if later := [name for name in ("reward", "rl") if name in sections]:
            raise UsageError(
                f"{what}, and {' and '.join(later)} would train those on; fine-tune with lora, or leave these out"
            )
        if not {"feedback", "eval"} & set(sections):
            return
        if config.sampling.engine == "server":
            raise UsageError(f"{what}, and a server has none; set sampling.engine to transformers")
        if config.eval and "eval" in sections and any(task.folder for task in config.eval.lm_eval.values()):
            from eval.measuring.lm_eval_tasks import VIRTUAL_TOKENS

            raise UsageError(VIRTUAL_TOKENS)
    if config.sampling.engine != "transformers":
        logger.info("sft.adapter: %s, so vLLM cannot sample them; transformers will, more slowly", what)


def look_at_method(config: SFTConfig, model: Model, faults: Faults) -> None:
    """Try the method on the model's architecture, without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from accord.preflight.families import tiny_model
    from sft.adaptation import adapter_config, choose_weights, dropout_options

    of_family = AutoConfig.from_pretrained(model.folder)
    with faults.of("sft.dropout"):
        dropout_options(model, config.dropout)
    if config.train_only:
        with faults.of("sft.train_only"), torch.device("meta"):
            choose_weights(AutoModelForCausalLM.from_config(of_family), config.train_only, model.reference)
    if config.adapter:
        with faults.of("sft.adapter"), torch.device("meta"):
            _add(AutoModelForCausalLM.from_config(of_family), adapter_config(model, config), model)
    if config.lora and config.l2_to_start:
        with faults.of("sft.l2_to_start"):
            adapter_config(model, config)
    if config.kl_to_base and (tiny := tiny_model(of_family)) is not None:
        from sft.trainer import check_logits

        with faults.of("sft.kl_to_base"):
            check_logits(tiny)


def _add(whole: Any, adapter: Any, model: Model) -> None:
    import peft

    if adapter.is_prompt_learning:
        adapter.prompt_tuning_init = "RANDOM"  # it would read the tokenizer
    try:
        peft.get_peft_model(whole, adapter)
    except (ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"PEFT cannot add it to {model.reference} ({' '.join(str(error).split())[:200]}); train with lora"
        ) from None
