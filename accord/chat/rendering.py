"""What a chat template writes of a conversation, and which parts of that are control tokens."""

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from accord.errors import DataError
from accord.records import Message, messages_as_dicts
from accord.time_limit import time_limit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS_TO_RENDER = 20.0
"""What a conversation takes is a thousandth of one; a template may loop for ever."""
PLAIN = {"role", "content"}
"""The keys of a message that only says something."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as the template writes it, and the parts of it that only look like control tokens."""

    text: str
    literal: list[tuple[int, int]] = field(default_factory=list)
    """Where in the text: from and up to."""


def render(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], add_generation_prompt: bool = False
) -> Rendered:
    """What the template writes. Whatever looks like a control token in a message is covered while it does.

    Raises:
        DataError: the template refuses the conversation, or leaves a part of it out.
    """
    control = control_tokens(tokenizer)
    dicts = messages_as_dicts(messages)
    tools = dicts[0].pop("tools", None) if dicts else None
    if dicts and not dicts[0]["content"] and not dicts[0].get("tool_calls"):
        del dicts[0]  # it was there for the tools
    covered: list[str] = []
    mark = ""

    def cover(match: re.Match[str]) -> str:
        nonlocal mark
        mark = mark or _mark_for([messages_as_dicts(messages)])
        covered.append(match.group())
        return f"{mark}{len(covered) - 1}{mark}"

    def cover_all(value: Any, pattern: re.Pattern[str]) -> Any:
        if isinstance(value, str):
            return pattern.sub(cover, value)
        if isinstance(value, list):
            return [cover_all(each, pattern) for each in value]
        if isinstance(value, dict):
            return {key: cover_all(each, pattern) for key, each in value.items()}
        return value

    if tools or any(each.keys() - PLAIN or control.any.search(each["content"]) for each in dicts):
        dicts = [
            cover_all(each, control.special if each["role"] == "assistant" else control.any) for each in dicts
        ]
        tools = cover_all(tools, control.any)
    try:
        with time_limit(SECONDS_TO_RENDER):
            text = str(
                tokenizer.apply_chat_template(
                    dicts, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
    except Exception as error:  # jinja2's TemplateError, or whatever Python raises inside a template
        raise DataError(_refusal(error, messages)) from None
    _check_nothing_is_left_out(text, dicts, tools)
    if not covered:
        return Rendered(text)
    parts, literal, length = [], [], 0
    for i, part in enumerate(re.split(f"{mark}([0-9]+){mark}", text)):
        part = covered[int(part)] if i % 2 else part
        if i % 2:
            literal.append((length, length + len(part)))
        parts.append(part)
        length += len(part)
    return Rendered("".join(parts), literal)


def _refusal(error: Exception, messages: Sequence[Message]) -> str:
    said = " ".join(str(error).split())
    way = ""
    if any(message.role == "system" for message in messages):
        way = "; if it has no system role, set data.system: merge_into_user"
    return f"the model's chat template refuses this conversation: {said}{way}"


def _check_nothing_is_left_out(text: str, messages: Sequence[dict[str, Any]], tools: Any) -> None:
    """Refuse a template that drops what it has no form for, as many do without a word.

    Thinking parts of all but the last answer are an exception: many templates leave them out by design.

    Raises:
        DataError: with what it leaves out.
    """

    def end_of(words: Any, begin: int = 0) -> int | None:
        """Where the words end that the template wrote first behind a place, as they are or as JSON has them."""
        words = str(words).strip()
        forms = [words]
        if not words.isprintable() or '"' in words or "\\" in words:
            forms.append(json.dumps(words, ensure_ascii=False)[1:-1])
        ends = [at + len(form) for form in forms if (at := text.find(form, begin)) >= 0]
        return min(ends, default=None)

    for tool in tools or []:
        if end_of(name := tool.get("function", tool).get("name", "")) is None:
            raise DataError(
                f"the model's chat template leaves out the tools (of which one is '{name}'); use a model whose "
                "template knows them, or take the column tools away"
            )
    at = 0
    for i, message in enumerate(messages):
        if message["role"] == "system":  # some templates write it before the last question
            if end_of(message["content"]) is None:
                raise DataError("the model's chat template leaves out what the system message says")
            continue
        for call in message.get("tool_calls", []):
            if end_of(name := call["function"]["name"], at) is None:
                raise DataError(
                    f"the model's chat template leaves out calls of tools (messages.{i} calls '{name}'); use a model "
                    "whose template knows them, or leave such rows out"
                )
        end = end_of(message["content"], at)
        if end is None:
            raise DataError(
                f"the model's chat template leaves out what messages.{i} says ({message['role']}: "
                f"{message['content'][:40]!r})"
            )
        at = end
    thought = messages[-1].get("reasoning_content") if messages else None
    if thought and end_of(thought) is None:
        raise DataError(
            "the model's chat template leaves out the thinking part (reasoning_content) of the last answer; set "
            "sft.thinking: cut, or use a model whose template knows it"
        )


def _mark_for(conversation: Any) -> str:
    """A character of the private use area that a conversation does not hold."""
    said = json.dumps(conversation, ensure_ascii=False)
    return next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in said)


@dataclass(frozen=True)
class ControlTokens:
    """A tokenizer's control tokens: as patterns that find them in texts, and their ids."""

    special: re.Pattern[str]
    """Those that are marked special."""
    any: re.Pattern[str]
    """Those, and others that are written like marks, as <tool_call> is: a model may write them, nobody else."""
    added: dict[str, Any]
    """By its text, each special token's id and whether it takes white space before and behind it: (id, left, right)."""


@functools.lru_cache(maxsize=16)
def control_tokens(tokenizer: "PreTrainedTokenizerBase") -> ControlTokens:
    """A tokenizer's control tokens; asked again after some were added, once the cache is cleared."""
    added = {str(token.content): (id_, token) for id_, token in tokenizer.added_tokens_decoder.items()}
    special = {
        text: (id_, token.lstrip, token.rstrip)
        for text, (id_, token) in added.items()
        if text and (token.special or text in tokenizer.all_special_tokens)
    }
    marks = [text for text in added if re.fullmatch(r"<[^<>\s]+>|\[[^\[\]\s]+\]", text)]

    def pattern(texts: Sequence[str]) -> re.Pattern[str]:
        return re.compile(
            "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or r"(?!)"
        )

    return ControlTokens(pattern(list(special)), pattern([*special, *marks]), special)
