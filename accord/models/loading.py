"""Models and tokenizers in memory, from a folder that `accord.models.references` found."""

import sys
from typing import TYPE_CHECKING, Any

from accord.errors import UsageError
from accord.models.families import attention_for, reward_model_class
from accord.models.references import Model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(model: Model) -> "PreTrainedTokenizerBase":
    """The model's tokenizer, checked and prepared for conversations (`chat.prepare_tokenizer`)."""
    from transformers import AutoTokenizer

    from accord.chat import prepare_tokenizer

    return prepare_tokenizer(AutoTokenizer.from_pretrained(model.folder), model.reference)


def check_same_tokens(ours: "PreTrainedTokenizerBase", policy: Model, reward_model: Model) -> None:
    """A reward model that reads the token ids of a policy, whose tokenizer is `ours`, must mean the same by them.

    Raises:
        UsageError: its tokenizer or its chat template is another one.
    """
    theirs = load_tokenizer(reward_model)
    probe = [{"role": "user", "content": "Is 1 + 1 = 2?\n\nYes"}]
    if (
        ours.get_vocab() != theirs.get_vocab()
        or ours.eos_token_id != theirs.eos_token_id
        or ours.apply_chat_template(probe) != theirs.apply_chat_template(probe)
    ):
        raise UsageError(
            f"the reward model {reward_model.reference} has another tokenizer or chat template than the policy "
            f"{policy.reference}, whose tokens it must read; train the reward model from this policy"
        )


def load_policy(model: Model, dtype: "torch.dtype | None" = None, **options: Any) -> "PreTrainedModel":
    """The model with its language-model head, in `dtype` (default float32).

    Attention is transformers' own ("eager") on CPU, where torch's fused backward pass is slower, and sdpa on GPU.
    """
    import torch
    from transformers import AutoModelForCausalLM

    _no_bars_in_log_files()
    return AutoModelForCausalLM.from_pretrained(
        model.folder,
        dtype=dtype or torch.float32,
        attn_implementation=attention_implementation(model),
        use_safetensors=True,
        **options,
    )


def load_reward_model(model: Model, dtype: "torch.dtype | None" = None, **options: Any) -> "PreTrainedModel":
    """The model with a scalar head; a new head (zero bias, one row) where the model has none yet.

    Raises:
        UsageError: its family cannot be given one.
    """
    import torch
    from transformers import AutoConfig

    _no_bars_in_log_files()
    found: PreTrainedModel = reward_model_class(AutoConfig.from_pretrained(model.folder)).from_pretrained(
        model.folder,
        num_labels=1,
        dtype=dtype or torch.float32,
        attn_implementation=attention_implementation(model),
        use_safetensors=True,
        **options,
    )
    return found


def _no_bars_in_log_files() -> None:
    """Loading and saving weights draw progress bars, which are of use on a terminal only."""
    import transformers

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()


def attention_implementation(model: Model) -> str:
    """The attention that is fastest to train with here (docs/decisions/0005-speed-on-cpu.md)."""
    import torch

    return attention_for(model.folder, "sdpa") if torch.cuda.is_available() else "eager"
