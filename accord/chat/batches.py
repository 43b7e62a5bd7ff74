"""Many conversations at once: the same tokens as one by one, in a third of the time.

A conversation whose text holds no control tokens of its own is encoded with the others in one call of the tokenizer,
and an answer begins behind the tokens that ask for one. Where the template may look ahead, or a token spans the
beginning of an answer, or anything else is unusual, `encode_conversation` does it, whose result this has in any case.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from accord.chat.openings import goes_forward
from accord.chat.rendering import control_tokens, render
from accord.chat.tokens import (
    EncodedConversation,
    encode_conversation,
    joins_answers,
    mask_of_answers,
    opening_of_answers,
)
from accord.errors import DataError
from accord.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOOKED_AT_TWICE = 16
"""Of so many conversations, what was found together is compared with what is found alone."""


def encode_conversations(
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Sequence[Message]],
    learns_thinking: bool = True,
) -> list[EncodedConversation | DataError]:
    """What `encode_conversation` gives for each, or what it raises."""
    together = _Together(tokenizer, learns_thinking)
    found = together.encode(conversations) if together.goes else [None] * len(conversations)
    for i, each in enumerate(found[:LOOKED_AT_TWICE]):
        alone = _alone(tokenizer, conversations[i], learns_thinking)
        if each not in (None, alone):  # a template or a tokenizer that nobody foresaw
            found = [None] * len(conversations)
            break
        found[i] = alone
    return [each or _alone(tokenizer, conversations[i], learns_thinking) for i, each in enumerate(found)]


class _Together:
    """Encodes what needs no second look."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", learns_thinking: bool):
        self.tokenizer = tokenizer
        self.learns_thinking = learns_thinking
        self.backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        template = str(tokenizer.chat_template)
        self.goes = bool(
            self.backend is not None
            and goes_forward(template)
            and not joins_answers(tokenizer, template)
            and control_tokens(tokenizer).special.match(opening_of_answers(tokenizer).lstrip())
        )

    def encode(self, conversations: Sequence[Sequence[Message]]) -> list[Any]:
        """The encoded conversations; None for all that have to be looked at alone."""
        texts: list[str] = []
        places: list[int] = []
        for i, messages in enumerate(conversations):
            if self.is_plain(messages):
                try:
                    rendered = render(self.tokenizer, messages)
                except DataError:
                    continue
                if not rendered.literal:
                    texts.append(rendered.text)
                    places.append(i)
        opening = self.backend.encode(opening_of_answers(self.tokenizer), add_special_tokens=False).ids
        found: list[Any] = [None] * len(conversations)
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        for i, encoding in zip(places, encodings, strict=True):
            found[i] = _with_mask(encoding.ids, opening, conversations[i], self.tokenizer.eos_token_id)
        return found

    def is_plain(self, messages: Sequence[Message]) -> bool:
        """Whether each answer is one to a user, and all of it is learned or none."""
        roles = [message.role for message in messages]
        asked = sum(pair == ("user", "assistant") for pair in itertools.pairwise(roles))
        thinks = not self.learns_thinking and any(message.reasoning_content for message in messages)
        return asked == roles.count("assistant") > 0 and not thinks


def _with_mask(
    ids: Sequence[int], opening: Sequence[int], messages: Sequence[Message], eos: Any
) -> EncodedConversation | None:
    """None where the tokens that ask for an answer do not stand there once for each; a longer token took the last."""
    ids, size = list(ids), len(opening)
    firsts = []
    at = -1
    for _ in range(ids.count(opening[0])):
        at = ids.index(opening[0], at + 1)
        if ids[at : at + size] == opening:
            firsts.append(at + size)
    if len(firsts) != sum(message.role == "assistant" for message in messages):
        return None
    try:
        return mask_of_answers(ids, firsts, messages, eos)
    except ValueError:
        return None


def _alone(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], learns_thinking: bool
) -> EncodedConversation | DataError:
    try:
        return encode_conversation(tokenizer, messages, learns_thinking)
    except DataError as error:
        return error
