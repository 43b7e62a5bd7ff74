"""Models and tokenizers in memory, from a folder that `accord.models.references` found."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.errors import AccordError, UsageError
from accord.models.families import attention_for, reward_model_class
from accord.models.files import (
    check_is_policy,
    has_virtual_tokens,
    is_reward_model,
    names,
    read_settings,
    weights_folder,
)
from accord.models.references import Model
from accord.models.weights import refuse_misfits, without_bars, without_load_report

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(model: Model) -> "PreTrainedTokenizerBase":
    """The model's tokenizer, checked and prepared for conversations (`chat.prepare_tokenizer`)."""
    from accord.chat.tokenizer import prepare_tokenizer

    tokenizer = prepare_tokenizer(read_tokenizer(model.folder), model.reference)
    check_tokens_have_rows(model, tokenizer)
    return tokenizer


def read_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer as it is.

    Raises:
        UsageError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # of the tokenizers library, without a class of their own
        why = " ".join(str(error).split())[:200]
        raise UsageError(
            f"the tokenizer in {folder} cannot be loaded ({type(error).__name__}: {why}); put the tokenizer "
            "files there that came with the model"
        ) from None
    return found


def check_tokens_have_rows(model: Model, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Whether the embeddings have a row for each token that may be read. A control token that is never used needs none.

    Raises:
        UsageError: with both sizes.
    """
    config = read_settings(model.folder / "config.json")
    rows = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    if not isinstance(rows, int):
        return
    template = str(tokenizer.chat_template)
    used = {tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token}
    added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
    without = [
        token
        for token, id_ in tokenizer.get_vocab().items()
        if id_ >= rows and (not added.get(token) or token in used or token in template)
    ]
    if without:
        raise UsageError(
            f"the tokenizer of {model.reference} has {len(tokenizer)} tokens and its embeddings have {rows} rows, so "
            f"{len(without)} of its tokens have none ({names(without)}); set `chat_template`, which adds rows, or give "
            "it the tokenizer that it was trained with"
        )


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
    """The model with its language-model head, in `dtype` (default float32); with its virtual tokens, if it has some.

    Attention is transformers' own ("eager") on CPU, where torch's fused backward pass is slower, and sdpa on GPU.

    Raises:
        UsageError: it is a reward model, or its weights are not those that its architecture needs.
    """
    import torch
    from transformers import AutoModelForCausalLM

    check_is_policy(model.reference, model.folder)
    _no_bars_in_log_files()
    with without_load_report():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            weights_folder(model.folder),
            dtype=dtype or torch.float32,
            attn_implementation=attention_implementation(model),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    refuse_misfits(model.reference, loaded[0], loaded[1])
    return with_virtual_tokens(_with_whole_embeddings(loaded[0]), model.folder)


def with_virtual_tokens(model: Any, folder: Path) -> Any:
    """The model with the virtual tokens that a folder holds, if it holds some."""
    if not has_virtual_tokens(folder) or model.device.type == "meta":
        return model
    import peft

    return peft.PeftModel.from_pretrained(model, str(folder))


def check_can_be_trained(model: Model) -> None:
    """Refuse a model with virtual tokens where weights are trained further, or become another kind of model.

    Raises:
        UsageError: it is one.
    """
    if has_virtual_tokens(model.folder):
        raise UsageError(
            f"{model.reference} was tuned by virtual tokens (sft.adapter), which are in no weights that this stage "
            "could train on; it can be sampled and evaluated. Fine-tune with lora in their place"
        )


def load_reward_model(
    model: Model, dtype: "torch.dtype | None" = None, new_head: bool = False, **options: Any
) -> "PreTrainedModel":
    """The model with a scalar head, in `dtype` (default float32).

    With `new_head`, a model that has none yet gets one (zero bias, one row), whose weights are random.

    Raises:
        UsageError: it has no such head, its family cannot be given one, or its weights are not those that its
            architecture needs.
    """
    import torch
    from transformers import AutoConfig

    check_can_be_trained(model)
    _no_bars_in_log_files()
    family = reward_model_class(AutoConfig.from_pretrained(model.folder))
    with without_load_report():
        loaded: Any = family.from_pretrained(
            model.folder,
            num_labels=1,
            dtype=dtype or torch.float32,
            attn_implementation=attention_implementation(model),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    refuse_misfits(model.reference, loaded[0], loaded[1], new_head)
    return _with_whole_embeddings(loaded[0])


def check_fit(model: Model) -> None:
    """Whether the weights of a policy or a reward model are all there and all used; only their shapes are read.

    Raises:
        UsageError: some are not, or transformers knows no such model.
    """
    kind, load = "language model", load_policy
    if is_reward_model(model.folder):
        kind, load = "reward model", load_reward_model
    try:
        with without_bars():
            load(model, device_map="meta")
    except AccordError:
        raise
    except Exception as error:  # a setting that means nothing to it is a KeyError, an IndexError, ...
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UsageError(
            f"{model.reference} cannot be loaded as a {kind}: {why[:300]}{'...' if len(why) > 300 else ''}"
        ) from None


def _with_whole_embeddings(model: Any) -> Any:
    """A padding token's row gets no gradient: where config.json takes EOS for padding, EOS would not be learned."""
    embeddings = model.get_input_embeddings()
    if getattr(embeddings, "padding_idx", None) is not None:
        embeddings.padding_idx = None
    return model


def _no_bars_in_log_files() -> None:
    """Loading and saving weights draw progress bars, which are of use on a terminal only."""
    import transformers

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()


def attention_implementation(model: Model) -> str:
    """The attention that is fastest to train with here (docs/decisions/0005-speed-on-cpu.md)."""
    import torch

    return attention_for(model.folder, "sdpa") if torch.cuda.is_available() else "eager"
