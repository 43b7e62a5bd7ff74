"""Whether a model's family can go through a round's stages, tried out on a tiny random model of it.

Reward models, adapters and PPO ask more of a model than that transformers loads it, and what they would refuse would
otherwise show after people have annotated. Only the configuration of the model is needed, no weights.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accord.config import LoraConfig
from accord.errors import AccordError, UsageError
from accord.models.adapters import peft_config
from accord.models.families import context_length, reward_model_class
from accord.models.references import Model
from accord.round_config import RoundConfig
from accord.training import quiet_libraries
from rl.config import DPOConfig, KTOConfig, PPOConfig

SMALL = {
    "vocab_size": 256, "intermediate_size": 128, "moe_intermediate_size": 32, "ffn_dim": 128, "n_inner": 128,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "shared_expert_intermediate_size": 32, "shared_intermediate_size": 32, "sliding_window": 16,
    "attention_chunk_size": 16, "first_k_dense_replace": 1, "mamba_n_groups": 1, "mamba_chunk_size": 16,
    "mamba_d_state": 16, "n_groups": 1, "chunk_size": 16, "state_size": 16,
}  # fmt: skip
"""Settings that are independent of one another in every family: what a tiny model has at most."""
MOST_PARAMETERS = 100e6


def family_faults(
    model: Model, config: RoundConfig, sections: Sequence[str]
) -> list[tuple[str, AccordError]]:
    """What the stages of a round would refuse in a model of this family, by the key of the configuration.

    A family that no tiny model can be made of is not tried, and refused by the stage that cannot take it.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        of_family = AutoConfig.from_pretrained(model.folder)
    except ValueError:
        return [("model", UsageError(f"{model.folder}/config.json is of no family that transformers knows"))]
    if type(of_family) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        error = f"{of_family.model_type} models do not continue a text; take a causal language model"
        return [("model", UsageError(error))]
    found: list[tuple[str, AccordError]] = []

    @contextmanager
    def fault_of(key: str) -> Iterator[None]:
        try:
            yield
        except AccordError as error:
            found.append((key, error))

    with quiet_libraries():
        for name in sections:
            with fault_of(f"{name}.lora"):
                _check_adapters(model, of_family, getattr(getattr(config, name), "lora", None), name)
            if name == "sft" or (name == "rl" and isinstance(config.rl, DPOConfig | KTOConfig)):
                with fault_of(f"{name}.trainer"):
                    check_balance(of_family, name, getattr(config, name).trainer)
        if "reward" in sections:
            with fault_of("reward"):
                reward_model_class(of_family)
        if "rl" in sections and isinstance(config.rl, PPOConfig):
            with fault_of("rl"):
                _check_ppo(model, of_family, config)
    return found


def _check_adapters(model: Model, of_family: Any, lora: LoraConfig | None, section: str) -> None:
    """Whether PEFT adds them."""
    if lora is None:
        return
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    adapters = peft_config(model, lora, "CAUSAL_LM")
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(of_family)
        try:
            peft.get_peft_model(whole, adapters)
        except ValueError as error:
            raise UsageError(
                f"{section}.lora: PEFT adds no adapters to {of_family.model_type} models ({error}); train without lora"
            ) from None


def check_balance(of_family: Any, section: str, trainer: dict[str, Any]) -> None:
    """TRL adds to the loss what keeps experts in equal use, and reads their number under one name only.

    Raises:
        UsageError: this family has them under another.
    """
    text = of_family.get_text_config()
    coefficient = trainer.get("router_aux_loss_coef")
    if coefficient is None:
        coefficient = getattr(text, "router_aux_loss_coef", 0.0)
    if coefficient and hasattr(text, "output_router_logits") and not hasattr(text, "num_experts"):
        raise UsageError(
            f"{section}.trainer: TRL computes no loss of the balance between experts for {of_family.model_type} "
            "models; set router_aux_loss_coef there to 0.0"
        )


def _check_ppo(model: Model, of_family: Any, config: RoundConfig) -> None:
    from accord.packing import body_of
    from rl.policy_gradient.actors import pack
    from rl.policy_gradient.layouts import check_logits

    assert isinstance(config.rl, PPOConfig)
    context = context_length(of_family)
    if config.rl.max_sequence_tokens > context:
        raise UsageError(
            f"rl.max_sequence_tokens is {config.rl.max_sequence_tokens}, and {model.reference} reads at most {context} "
            "tokens; lower it"
        )
    tiny = tiny_model(of_family)
    if tiny is not None:
        check_logits(tiny)
        pack(body_of(tiny), 64)
    if config.rl.shared_base and config.rl.lora and config.reward and config.reward.lora:
        theirs, ours = (
            set(peft_config(model, lora, "CAUSAL_LM").target_parameters or ())
            for lora in (config.reward.lora, config.rl.lora)
        )
        if theirs and theirs != ours:
            raise UsageError(
                f"rl.shared_base: the experts of {model.reference} have adapters of policy and reward model alike, or "
                "none; give reward.lora and rl.lora the same top_layers, or set rl.shared_base to false"
            )


def tiny_model(of_family: Any) -> Any | None:
    """A random model of the same code with few and narrow layers and short windows; None where none can be made."""
    import torch
    from transformers import AutoModelForCausalLM

    for narrow in (True, False):
        try:
            settings = _small(of_family)
            if narrow:
                _narrow(settings)
            with torch.device("meta"):
                whole: Any = AutoModelForCausalLM.from_config(settings)
            if sum(p.numel() for p in whole.parameters()) > MOST_PARAMETERS:
                continue
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                tiny = AutoModelForCausalLM.from_config(
                    settings, dtype=torch.float32, attn_implementation="eager"
                )
                spread_weights(tiny)
            tiny.eval()(torch.arange(48)[None], use_cache=False)
        except Exception:
            continue
        return tiny
    return None


def _small(of_family: Any) -> Any:
    """Its settings with few layers, but one of each kind, and little in them."""
    small = copy.deepcopy(of_family)
    text = small.get_text_config()
    layers = text.num_hidden_layers
    by_layer = {
        key: value for key, value in vars(text).items() if isinstance(value, list) and len(value) == layers
    }
    kinds = {key: set(map(str, value)) for key, value in by_layer.items()}
    fewest = next(
        count
        for count in range(1, layers + 1)
        if all(set(map(str, value[:count])) == kinds[key] for key, value in by_layer.items())
    )
    count = min(layers, max(4, fewest))
    text.num_hidden_layers = count
    for key, value in by_layer.items():
        setattr(text, key, value[:count])
    for key, most in SMALL.items():
        before = getattr(text, key, None)
        if isinstance(before, int) and before > most:
            setattr(text, key, most)
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, key, None)
    return small


def _narrow(small: Any) -> None:
    """Give it two heads and a width that follows from them; a state space follows from the width."""
    text = small.get_text_config()
    heads, width = getattr(text, "num_attention_heads", None), text.hidden_size
    text.hidden_size = 128
    if heads:
        groups = getattr(text, "num_key_value_heads", None)
        text.hidden_size = 2 * (getattr(text, "head_dim", None) or width // heads)
        text.num_attention_heads = 2
        if groups is not None:
            text.num_key_value_heads = 2 if groups == heads else 1
    for count, size, expand in (
        ("mamba_n_heads", "mamba_d_head", "mamba_expand"),
        ("num_heads", "head_dim", "expand"),
    ):
        if hasattr(text, count) and hasattr(text, expand):
            inner = int(getattr(text, expand) * text.hidden_size)
            setattr(text, count, max(1, inner // getattr(text, size)))
            if getattr(text, "mamba_d_ssm", None):
                text.mamba_d_ssm = inner


def spread_weights(model: Any) -> None:
    """Draw weights so that attention is sharp and logits spread by about 4: what is computed wrongly then shows."""
    import torch

    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p is embeddings.weight or (head is not None and p is head.weight):
                p.normal_(std=4 / math.sqrt(p.shape[-1]))
            elif p.ndim > 1:
                p.normal_(std=1.5 / math.sqrt(p.shape[-1]))
            elif key.endswith("bias"):
                p.add_(torch.randn_like(p) * 0.1)
