"""The three layouts of PPO's four models (see `actors`): how they are loaded, and what is refused."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from accord import parallel
from accord.config import LoraConfig
from accord.errors import UsageError
from accord.models.adapters import peft_config
from accord.models.families import context_length
from accord.models.loading import check_same_tokens, load_policy, load_reward_model
from accord.models.references import Model
from accord.packing import ATTENTION, body_of, is_rounding
from reward.score import Ensemble, load_heads, reward_shift
from rl.policy_gradient.actors import Actors, pack
from rl.policy_gradient.settings import Computation, Layout
from rl.policy_gradient.sharding import Whole, hollow, local_device, shard


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
    lora = layout.lora
    dtype = computation.base_dtype if lora else torch.float32
    is_sharded = parallel.is_sharded()
    # The others are handed out their shards, so that a machine needs room for one whole model at a time.
    has_weights = parallel.is_first() or not is_sharded
    options: dict[str, Any] = {} if has_weights else {"device_map": "meta"}
    wholes: dict[str, Whole] = {}

    def place(names: tuple[str, ...], model: Any, *heads: nn.Module) -> Any:
        """Put a model where it computes, before the next one is loaded."""
        if has_weights:
            pack(model, max_sequence_tokens)
        else:
            body_of(model).set_attn_implementation(ATTENTION)
        for module in (model, *heads):
            _prepare(module, computation.gradient_checkpointing)
        if is_sharded:
            check_can_be_sharded(model)
            wholes.update(dict.fromkeys(names, shard(model, *heads)))
        else:
            for module in (model, *heads):
                module.to(local_device())
        return model

    torch.manual_seed(seed)
    shapes: Any = load_reward_model(reward_model, dtype, device_map="meta")
    critic_head = nn.Linear(shapes.score.in_features, 1, bias=shapes.score.bias is not None)
    if layout.reward_adapter is not None:
        _load_scoring(reward_model, dtype, critic_head, **options)
    model: Any = load_policy(policy, dtype, **options)
    if has_weights:
        check_logits(model)
    context = min(context_length(each.config) for each in (model, shapes))
    if max_sequence_tokens > context:
        raise UsageError(
            f"rl.max_sequence_tokens is {max_sequence_tokens}, and policy and reward model read at most {context} "
            "tokens; lower it"
        )
    if lora is not None:
        model = _with_adapter(model, policy, lora, "CAUSAL_LM")
    if layout.reward_adapter is not None:
        for name in ("critic", "reward"):
            _add_adapter(model, layout.reward_adapter, name)
        model.set_adapter("default")
    hollow_policy = hollow(model) if is_sharded and has_weights else None
    reference, reward = None, None
    if layout.reward_adapter is not None:
        reward_head = _reward_head(reward_model, critic_head)
        critic = place(("policy", "critic"), model, critic_head)
    else:
        place(("policy",), model)
        critic = _load_scoring(reward_model, dtype, critic_head, **options)
        reward_head = _reward_head(reward_model, critic_head)
        if lora is not None:
            critic = _with_adapter(critic, reward_model, lora, "FEATURE_EXTRACTION")
        place(("critic",), critic, critic_head)
        if lora is None:
            reference = place(("reference",), load_policy(policy, dtype, **options).requires_grad_(False))
            reward = place(("reward",), _load_scoring(reward_model, dtype, **options).requires_grad_(False))
    actors = Actors(
        model, critic, critic_head, reference, reward, computation.bfloat16, reward_head, ensemble,
        max_sequence_tokens, wholes, hollow_policy,
    )  # fmt: skip
    actors.score_shift = reward_shift(shapes)
    actors.check_parts(max_sequence_tokens)
    return actors


def _load_scoring(
    reward_model: Model, dtype: torch.dtype, head: nn.Linear | None = None, **options: Any
) -> Any:
    """The reward model's transformer; what stands on it goes into `head`."""
    scoring: Any = load_reward_model(reward_model, dtype, **options)
    if head is not None:
        weights = parallel.from_first(
            lambda: {name: p.float() for name, p in scoring.score.state_dict().items()}
        )
        head.load_state_dict(weights)
    return getattr(scoring, scoring.base_model_prefix)


def check_can_be_sharded(model: Any) -> None:
    """Whether torch's engine takes this model's weights apart rightly.

    Raises:
        UsageError: adapters of experts' stacked weights are put onto them in each pass, which it does not see.
    """
    if any(
        getattr(config, "target_parameters", None) for config in getattr(model, "peft_config", {}).values()
    ):
        raise UsageError(
            "adapters of a model with experts cannot be trained in shards; set compute.sharding to none, or train all "
            "weights (without rl.lora)"
        )


def _reward_head(reward_model: Model, critic_head: nn.Linear) -> nn.Linear:
    """The head that the critic starts with or, for an ensemble, all of its heads; frozen."""
    head = copy.deepcopy(critic_head)
    heads = load_heads(reward_model)
    if heads is not None:
        head = nn.Linear(heads.shape[1], len(heads), bias=False)
        head.weight = nn.Parameter(heads)
    return head.requires_grad_(False).to(local_device())


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
