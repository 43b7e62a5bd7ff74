"""Many conversations at once: the same tokens as one by one, in a third of the time.

A conversation whose text holds no control tokens of its own, and none of whose tokens spans the beginning of an
answer, is encoded with the others in one call of the tokenizer; every other one by `encode_conversation`, whose result
this has in any case.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from accord.chat.openings import goes_forward
from accord.chat.rendering import control_tokens, render
from accord.chat.tokens import (
    EncodedConversation,
    begins_of_answers,
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
"""Of so many conversations, the prompt of each answer is rendered, too, whatever the template looks like."""


def encode_conversations(
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Sequence[Message]],
    learns_thinking: bool = True,
) -> list[EncodedConversation | DataError]:
    """What `encode_conversation` gives for each, or what it raises."""
    found: list[EncodedConversation | DataError | None] = [None] * len(conversations)
    together: list[tuple[int, str, list[int]]] = []
    opening = opening_of_answers(tokenizer) if goes_forward(str(tokenizer.chat_template)) else ""
    if not control_tokens(tokenizer).special.search(opening):  # somebody's words may be the same
        opening = ""
    for i, messages in enumerate(conversations):
        try:
            rendered = render(tokenizer, messages)
            begins = _behind(opening, rendered.text, messages) if opening and not rendered.literal else None
            if begins is None or i < LOOKED_AT_TWICE:
                found_by_rendering = begins_of_answers(tokenizer, rendered.text, messages)
                opening = opening if begins in (None, found_by_rendering) else ""
                begins = found_by_rendering
        except DataError as error:
            found[i] = error
            continue
        thinks = not learns_thinking and any(message.reasoning_content for message in messages)
        if not rendered.literal and not thinks:
            together.append((i, rendered.text, begins))
    if together and joins_answers(tokenizer, str(tokenizer.chat_template)):
        together = []
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if together and backend is not None:
        texts = [text for _, text, _ in together]
        for (i, _, begins), encoding in zip(
            together, backend.encode_batch(texts, add_special_tokens=False), strict=True
        ):
            found[i] = _with_mask(tokenizer, conversations[i], begins, encoding)
    return [each or _alone(tokenizer, conversations[i], learns_thinking) for i, each in enumerate(found)]


def _behind(opening: str, text: str, messages: Sequence[Message]) -> list[int] | None:
    """Where the answers begin, if all of them answer a user, and the words that ask for one stand there as often."""
    roles = [message.role for message in messages]
    answers = roles.count("assistant")
    asked = sum(pair == ("user", "assistant") for pair in itertools.pairwise(roles))
    if not answers or answers != asked or text.count(opening) != answers:
        return None
    begins, at = [], 0
    for _ in range(answers):
        at = text.index(opening, at) + len(opening)
        begins.append(at)
    return begins


def _with_mask(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], begins: Sequence[int], encoding: Any
) -> EncodedConversation | None:
    """None where a token spans the beginning of an answer, or begins behind it, or an end is missing."""
    firsts = []
    for begin in begins:
        token = encoding.char_to_token(begin)
        if token is None or encoding.token_to_chars(token)[0] != begin:
            return None
        firsts.append(token)
    try:
        return mask_of_answers(encoding.ids, firsts, messages, tokenizer.eos_token_id)
    except ValueError:
        return None


def _alone(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], learns_thinking: bool
) -> EncodedConversation | DataError:
    try:
        return encode_conversation(tokenizer, messages, learns_thinking)
    except DataError as error:
        return error
