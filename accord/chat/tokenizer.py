"""A tokenizer and its chat template, checked and made ready for training on conversations."""

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from accord.chat.rendering import control_tokens, render
from accord.chat.tokens import can_be_cut, encode_conversation, encode_prompt
from accord.errors import DataError, UsageError
from accord.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


logger = logging.getLogger("accord.chat")

PROBE = (
    ("system", "Answer  briefly."), ("user", " Name a prime.\n"), ("assistant", "Seven."), ("user", "Another?"),
    ("assistant", "Eleven, or\n\nthirteen. "), ("user", "\tThanks!"), ("assistant", "\nNot at all."),
)  # fmt: skip
"""Several turns, every role, and white space where it is often lost."""
PADDING = "<|pad|>"
"""What a tokenizer gets that has no token to spare."""
TEMPLATES = ("chatml", "llama3", "zephyr", "mistral", "gemma")
"""The chat templates in accord/models/chat_templates."""


def prepare_tokenizer(
    tokenizer: "PreTrainedTokenizerBase", name: str, add_padding: bool = False
) -> "PreTrainedTokenizerBase":
    """Check a tokenizer for training on conversations: with a probe of several turns, all three promises above.

    The EOS becomes the token that ends the assistant's turns in the template, which is not always the one that ended
    a document in pre-training. Padding gets a token of its own: collators that take EOS mask the EOS to be learned.
    The template becomes plain Jinja, which every server reads: `{% generation %}` is known to transformers alone.

    Args:
        tokenizer: is changed.
        name: of the model, for messages.
        add_padding: where no control token is to spare for padding, add one; the embeddings must grow by its row.

    Raises:
        UsageError: no chat template, or one that breaks a promise; no token ends a turn; none is there for padding.
    """
    if not tokenizer.chat_template:
        raise UsageError(
            f"model {name} has no chat template; set `chat_template` to one of {', '.join(TEMPLATES)}, to a "
            "file.jinja, or to a model whose template it shall have"
        )
    _make_plain(tokenizer, name)
    probe = _probe(tokenizer, name)
    _set_end_of_turn(tokenizer, name, probe)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        _set_padding(tokenizer, name, probe, add_padding)
    try:
        encoded = encode_conversation(tokenizer, probe)
        for i, message in enumerate(probe):
            if message.role == "assistant":
                prompt = encode_prompt(tokenizer, probe[:i])
                if encoded.input_ids[: len(prompt)] != prompt:
                    length = len(prompt)
                    raise DataError(
                        f"asked for an answer, the tokens say {tokenizer.decode(prompt)[-40:]!r}, and in the whole "
                        f"conversation {tokenizer.decode(encoded.input_ids[:length])[-40:]!r}, so what is sampled "
                        "would not continue what was trained"
                    )
    except DataError as error:
        raise UsageError(f"model {name}: {error}") from None
    return tokenizer


def render_probe(tokenizer: "PreTrainedTokenizerBase", name: str) -> str:
    """The probe as the template writes it.

    Raises:
        UsageError: the template takes no conversation of user and assistant by turns.
    """
    return render(tokenizer, _probe(tokenizer, name)).text


def _make_plain(tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    """Take the generation markers out of the template, or of each of several; what it writes stays the same.

    Raises:
        UsageError: a template of several is called by none, because there is no default.
    """
    given: Any = tokenizer.chat_template
    if isinstance(given, dict) and "default" not in given:
        raise UsageError(
            f"model {name} has several chat templates ({', '.join(given)}) and none of them is called default; set "
            "`chat_template` to a file that holds the right one"
        )
    # An `if` is as transparent as the markers, and its tags eat as much white space.
    plain = {
        key: re.sub(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})", _as_if, text)
        for key, text in (given if isinstance(given, dict) else {"default": given}).items()
    }
    if plain == given or plain["default"] == given:
        return
    before = render_probe(tokenizer, name)
    tokenizer.chat_template = plain if isinstance(given, dict) else plain["default"]  # type: ignore[assignment]
    if render_probe(tokenizer, name) != before:
        raise UsageError(
            f"model {name}: its chat template writes something else without its generation markers, which only "
            "transformers knows; take them out"
        )


def _as_if(marker: re.Match[str]) -> str:
    begin, is_end, end = marker.groups()
    return f"{begin}endif{end}" if is_end else f"{begin}if true{end}"


def _probe(tokenizer: "PreTrainedTokenizerBase", name: str) -> list[Message]:
    """The probe, as much of it as the template takes: some know no system role.

    Raises:
        UsageError: it takes no conversation of user and assistant by turns.
    """
    turns = [Message(role=role, content=text) for role, text in PROBE]  # type: ignore[arg-type]
    for messages in (turns, turns[1:]):
        try:
            render(tokenizer, messages)
            return messages
        except DataError as error:
            refusal = error
    raise UsageError(f"model {name}: {refusal}")


def _set_end_of_turn(tokenizer: "PreTrainedTokenizerBase", name: str, probe: Sequence[Message]) -> None:
    """Make the control token that follows every answer of the probe the EOS.

    Raises:
        UsageError: none follows every answer, or they differ.
    """
    control = control_tokens(tokenizer)
    text = render(tokenizer, probe).text
    ends = []
    for message in probe:
        if message.role == "assistant":
            words = message.content.strip()
            after = control.special.search(text, text.find(words) + len(words)) if words in text else None
            ends.append(after.group() if after else "")
    if len(set(ends)) > 1 or not ends[0]:
        raise UsageError(
            f"model {name}: its chat template ends the assistant's turns with "
            f"{', '.join(repr(end) if end else 'no control token' for end in ends)}, where one control token must end "
            "each of them; mend the template"
        )
    if tokenizer.eos_token != ends[0]:
        logger.info(f"model {name}: its answers end with {ends[0]!r}, which is its EOS from here on")
        tokenizer.eos_token = ends[0]


def _set_padding(
    tokenizer: "PreTrainedTokenizerBase", name: str, probe: Sequence[Message], add: bool
) -> None:
    """Make a control token that is there for padding, or for nothing, the padding token; or add one.

    Raises:
        UsageError: there is none to spare, and none may be added.
    """
    text = render(tokenizer, probe).text
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    free = [each for each in control_tokens(tokenizer).added if each not in taken and each not in text]
    for words in ("pad", "endoftext", "reserved|unused", "unk"):
        for each in free:
            if re.search(words, each, re.IGNORECASE):
                logger.info(f"model {name}: {each!r} is its padding token from here on")
                tokenizer.pad_token = each
                return
    if not add:
        raise UsageError(
            f"model {name}: its tokenizer has no padding token apart from the EOS {tokenizer.eos_token!r}, and no "
            "control token to spare; as `model` of a configuration, it gets one"
        )
    add_control_tokens(tokenizer, [PADDING])
    tokenizer.pad_token = PADDING


def add_control_tokens(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[str]) -> None:
    """Make control tokens of these texts, each a token of its own; ids that are new need rows in the embeddings."""
    from tokenizers import AddedToken

    new: Any = [AddedToken(token, special=True, normalized=False) for token in tokens]
    tokenizer.add_tokens(new, special_tokens=True)
    control_tokens.cache_clear()
    can_be_cut.cache_clear()
