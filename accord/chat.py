"""Conversations to token ids and back. Every stage goes through here, so that all of them see the same tokens.

A conversation that ends with the assistant ends exactly at that turn's end-of-sequence token: it is the last token
the policy is taught, the one the reward model scores at, and the last one the sampler returns. Many templates add a
line break after it; that is cut off at the end, and not learned elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accord.errors import UsageError
from accord.records import Message, messages_as_dicts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodedConversation:
    """Token ids of a conversation and, for each, whether the assistant said it (its EOS included)."""

    input_ids: list[int]
    assistant_mask: list[int]


def prepare_tokenizer(tokenizer: "PreTrainedTokenizerBase", name: str) -> "PreTrainedTokenizerBase":
    """Check a tokenizer for training on conversations, and give it a template that marks the assistant's turns.

    A template without `{% generation %}` markers yields assistant masks that are all zero, silently; TRL knows
    marked versions of the common templates, and accord refuses the others.

    Raises:
        UsageError: no chat template, no marked version of it known, no EOS token, no padding token apart from EOS
            (a collator that pads with EOS masks the EOS that should be learned), or assistant's turns that do not
            end with EOS.
    """
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    if not tokenizer.chat_template:
        raise UsageError(
            f"model {name} has no chat template; put a chat_template.jinja with generation markers into its folder"
        )
    if not has_generation_markers(tokenizer.chat_template):
        try:
            marked = get_training_chat_template(tokenizer)
        except ValueError:
            marked = None
        if marked is None:
            raise UsageError(
                f"model {name}: its chat template has no {{% generation %}} markers, so the assistant's turns cannot "
                "be told apart; add the markers to the chat_template.jinja in its folder"
            )
        tokenizer.chat_template = marked
    if tokenizer.eos_token_id is None:
        raise UsageError(f"model {name}: its tokenizer has no eos_token; set one in tokenizer_config.json")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UsageError(
            f"model {name}: its tokenizer needs a pad_token apart from the eos_token {tokenizer.eos_token!r}; set one "
            "in tokenizer_config.json"
        )
    probe = [Message(role="user", content="Name a prime."), *answer("Seven.")]
    ids, mask = _apply_template(tokenizer, probe)
    if tokenizer.eos_token_id not in [token for token, said in zip(ids, mask, strict=True) if said]:
        raise UsageError(
            f"model {name}: its chat template does not end the assistant's turn with the eos_token "
            f"{tokenizer.eos_token!r} inside the generation markers; set eos_token in tokenizer_config.json to the "
            "token that ends a turn, or mend the template"
        )
    return tokenizer


def encode_conversation(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]
) -> EncodedConversation:
    """A whole conversation, ending with the assistant's EOS, as ids and assistant mask of the same length."""
    ids, mask = _apply_template(tokenizer, messages)
    for i in reversed(range(len(ids))):
        # What a template puts after a turn's EOS is never generated, so it is not learned either.
        ends_turn = mask[i] and (i + 1 == len(mask) or not mask[i + 1])
        if ends_turn and ids[i] != tokenizer.eos_token_id:
            mask[i] = 0
    end = len(mask) - mask[::-1].index(1)
    return EncodedConversation(ids[:end], mask[:end])


def _apply_template(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]
) -> tuple[list[int], list[int]]:
    encoded: Any = tokenizer.apply_chat_template(
        messages_as_dicts(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return list(encoded["input_ids"]), list(encoded["assistant_masks"])


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[Message]) -> list[int]:
    """A prompt up to where the assistant's answer starts."""
    encoded: Any = tokenizer.apply_chat_template(
        messages_as_dicts(prompt), tokenize=True, return_dict=True, add_generation_prompt=True
    )
    return list(encoded["input_ids"])


def decode_response(tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[int]) -> str:
    """The text of a sampled answer, without special tokens and outer white space."""
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()


def answer(text: str) -> list[Message]:
    """An assistant's turn as TRL's `chosen` and `rejected` columns hold it; an empty one counts as a blank.

    A message has content, so wherever an answer without any is scored or judged, it is as one space.
    """
    return [Message(role="assistant", content=text or " ")]


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginnings."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def start_of_text(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token that preceded every document in pre-training.

    It is BOS, except where the chat template writes BOS before every turn, as ChatML tokenizers have it: after such
    a turn marker the model expects "user" or "assistant", and would be scored on that. There it is the document
    separator <|endoftext|> of the GPT-2 family; EOS, where neither exists.

    Raises:
        UsageError: the tokenizer has no such token.
    """
    bos = tokenizer.bos_token_id
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    if isinstance(bos, int):
        rendered: Any = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)
        if list(rendered["input_ids"]).count(bos) <= 1:
            return bos
    separator = tokenizer.get_vocab().get("<|endoftext|>", tokenizer.eos_token_id)
    if not isinstance(separator, int):
        raise UsageError(
            "the tokenizer has no token that starts a document; set a bos_token in tokenizer_config.json"
        )
    return separator
