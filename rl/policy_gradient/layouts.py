"""The three layouts of PPO's four models (see `actors`): how they are loaded, and what is refused."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from accord.config import LoraConfig
from accord.errors import UsageError
from accord.models.adapters import peft_config
from accord.models.families import context_length
from accord.models.loading import check_same_tokens, load_policy, load_reward_model
from accord.models.references import Model
from accord.packing import body_of, is_rounding
from reward.score import Ensemble, load_heads, reward_shift
from rl.policy_gradient.actors import Actors
from rl.policy_gradient.settings import Computation, Layout


def load_actors(
    tokenizer: PreTrainedTokenizerBase,
    policy: Model,
    reward_model: Model,
    max_sequence_tokens: int,
    layout: Layout = Layout(),  # noqa: B008
    computation: Computation = Computation(),  # noqa: B008
    ensemble: Ensemble = "mean",
    seed: int = 0,
) -> Actors:
    """Load the models.

    Args:
        tokenizer: the policy's.
        policy: what is optimised, and the reference.
        reward_model: the scores, and where the critic starts.
        max_sequence_tokens: the longest prompt and answer together, which both must be able to read.
        layout: which of them share weights.
        computation: in what they compute.
        ensemble: what the score of a reward model that is an ensemble is; the critic starts from its mean.
        seed: of new adapters.

    Raises:
        UsageError: the reward model has another tokenizer, a context is too short, or the policy's logits are not its
            output layer's product.
    """
    check_same_tokens(tokenizer, policy, reward_model)
    lora, base_dtype = layout.lora, computation.base_dtype
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    torch.manual_seed(seed)
    policy_model: Any = load_policy(policy, base_dtype if lora else torch.float32)
    check_logits(policy_model)
    scoring: Any = load_reward_model(reward_model, base_dtype if lora else torch.float32)
    context = min(context_length(model.config) for model in (policy_model, scoring))
    if max_sequence_tokens > context:
        raise UsageError(
            f"rl.max_sequence_tokens is {max_sequence_tokens}, and policy and reward model read at most {context} "
            "tokens; lower it"
        )
    head, backbone = scoring.score, getattr(scoring, scoring.base_model_prefix)
    critic_head = nn.Linear(head.in_features, 1, bias=head.bias is not None)
    critic_head.load_state_dict({name: p.float() for name, p in head.state_dict().items()})
    heads = load_heads(reward_model)
    options: Any = {"bfloat16": computation.bfloat16, "reward_heads": heads, "ensemble": ensemble}
    options["longest"] = max_sequence_tokens
    actors: Actors
    if lora is None:
        reference, reward = copy.deepcopy(policy_model), copy.deepcopy(backbone)
        for frozen in (reference, reward):
            frozen.requires_grad_(False)
        actors = Actors(policy_model, backbone, critic_head, reference, reward, **options)
    elif layout.reward_adapter is not None:
        model = _with_adapter(policy_model, policy, lora, "CAUSAL_LM")
        for name in ("critic", "reward"):
            _add_adapter(model, layout.reward_adapter, name)
        model.set_adapter("default")
        actors = Actors(model, model, critic_head, **options)
    else:
        actors = Actors(
            _with_adapter(policy_model, policy, lora, "CAUSAL_LM"),
            _with_adapter(backbone, reward_model, lora, "FEATURE_EXTRACTION"),
            critic_head,
            **options,
        )
    for module in (
        actors.policy,
        actors.critic,
        actors.reference,
        actors.reward,
        critic_head,
        actors.reward_head,
    ):
        if module is not None:
            module.to(device)
            _prepare(module, computation.gradient_checkpointing)
    actors.score_shift = reward_shift(scoring)
    actors.check_parts(max_sequence_tokens)
    return actors


@torch.no_grad()
def check_logits(model: Any) -> None:
    """Some models scale or cap their logits after the output layer; here that would go unnoticed.

    Raises:
        UsageError: this one does.
    """
    ids = torch.arange(8)[None] % model.config.get_text_config().vocab_size
    model.eval()
    states = body_of(model)(input_ids=ids, use_cache=False).last_hidden_state
    product = states @ model.get_output_embeddings().weight.T
    logits = model(input_ids=ids, use_cache=False).logits
    if not is_rounding(logits[0], product[0]):
        raise UsageError(
            f"PPO takes logits from the output layer, and {type(model).__name__} changes them after it (by a bias, a "
            "cap or a scale); use rl.algorithm=dpo for this model"
        )


def _with_adapter(model: Any, loaded_from: Model, lora: LoraConfig, task: str) -> Any:
    import peft

    adapted = peft.get_peft_model(model, peft_config(loaded_from, lora, task))
    for p in adapted.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    return adapted


def _add_adapter(model: Any, folder: Path, name: str) -> None:
    """Add the reward model's adapter under a name; its head is loaded elsewhere."""
    import peft
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    config: Any = peft.LoraConfig.from_pretrained(str(folder))
    config.task_type, config.modules_to_save, config.inference_mode = "CAUSAL_LM", None, False
    try:
        model.add_adapter(name, config)
    except ValueError as error:  # experts have adapters of every model, or of none
        raise UsageError(
            f"rl.shared_base: policy and reward model cannot share their experts as rl.lora and reward.lora are "
            f"({error}); give both the same top_layers, or set rl.shared_base to false"
        ) from None
    weights = {
        key: value for key, value in load_peft_weights(str(folder), device="cpu").items() if "lora_" in key
    }
    result: Any = set_peft_model_state_dict(model, weights, adapter_name=name)
    missing = [key for key in result.missing_keys if f".{name}." in key]
    if result.unexpected_keys or missing:
        raise UsageError(
            f"the adapter in {folder} does not fit the policy; train the reward model from this policy with lora"
        )
    for key, p in model.named_parameters():
        if f".{name}." in key:
            p.data = p.data.float()


def _prepare(model: nn.Module, gradient_checkpointing: bool) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0  # type: ignore[assignment]
    model.eval()
    any_model: Any = model
    if gradient_checkpointing and hasattr(model, "gradient_checkpointing_enable"):
        any_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()  # transformers checkpoints in training mode only; there is no dropout left to switch on
