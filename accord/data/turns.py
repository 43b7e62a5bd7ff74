"""Conversations as other tools write them, turned into accord's messages.

OpenAI's chat messages [1], ShareGPT's `from` and `value`, transcripts with "Human:" and "Assistant:", text that a
ChatML template wrote, and pairs of earlier questions and answers.

[1] https://platform.openai.com/docs/api-reference/chat, with `weight` as in its fine-tuning files
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from accord.records import is_slip
from accord.text_files import parse_json

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user", "customer": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "ai": "assistant", "bing": "assistant", "bard": "assistant", "claude": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool",
    "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
CALLS = ("function_call", "tool_call")
"""ShareGPT's roles of a turn whose words are a call of a tool, as JSON."""
LEARNED = ("weight", "train", "loss", "trainable")
"""What a message calls it whether its turn is learned."""
MESSAGE_KEYS = (
    "role", "from", "content", "value", "name", "tools", "tool_calls", "function_call", "tool_call_id",
    "reasoning_content", "thinking", "refusal", *LEARNED,
)  # fmt: skip
THINKING = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
CHATML = re.compile(r"\s*<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
WRITTEN_TURNS = re.compile(r'\s*\[\s*\{\s*"(?:role|from)"\s*:')
SPEAKER = re.compile(r"(?:^|\n\n)(Human|User|Assistant|System): ?")

Turn = dict[str, Any]


def is_turns(value: Any) -> bool:
    """Whether a column's value looks like a conversation."""
    value = parsed(value)
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, Mapping) and ({"role", "from"} & each.keys()) for each in value)
    )


def parsed(value: Any) -> Any:
    """The value itself, or what it says in JSON: files of text columns keep lists so."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return parse_json(value)
        except ValueError:
            return value
    return value


def text_of(value: Any, column: str) -> str:
    """What is said in a column.

    Raises:
        ValueError: it is no text, or a conversation in JSON that is broken.
    """
    if not isinstance(value, str):
        raise ValueError(f"{column}: is {type(value).__name__}, not text or turns")
    if WRITTEN_TURNS.match(value):
        try:
            parse_json(value)
        except ValueError as error:
            raise ValueError(f"{column}: begins as a conversation in JSON, and is {error}") from None
    return value


def turns_of(value: Any) -> list[Turn]:
    """A conversation, or one turn, as accord's messages.

    Raises:
        ValueError: a turn has a role or a content that accord has no form for; the message names it.
    """
    value = parsed(value)
    turns = value if isinstance(value, list) else [value]
    return [_turn(each, i) for i, each in enumerate(turns)]


def _turn(turn: Any, i: int) -> Turn:
    if not isinstance(turn, Mapping):
        raise ValueError(f"messages.{i}: is no turn with a role and a content")
    said = str(turn.get("role", turn.get("from", ""))).strip().lower()
    if said not in ROLES:
        raise ValueError(
            f"messages.{i}.role: is '{said}'; known are system, developer, user, assistant and tool, and ShareGPT's"
        )
    for key in turn:
        if key not in MESSAGE_KEYS and (near := next((k for k in MESSAGE_KEYS if is_slip(key, k)), None)):
            raise ValueError(f"messages.{i}.{key}: unknown key; did you mean '{near}'?")
    role = ROLES[said]
    found: Turn = {"role": role}
    words = _words(turn.get("content", turn.get("value")), i)
    if said in CALLS:
        found["tool_calls"], words = _calls([{"function": parsed(words)}], i), ""
    elif calls := turn.get("tool_calls"):
        found["tool_calls"] = _calls(parsed(calls), i)
    elif call := turn.get("function_call"):
        found["tool_calls"] = _calls([{"function": parsed(call)}], i)
    if not words and turn.get("refusal"):
        words = text_of(turn["refusal"], f"messages.{i}.refusal")
    if role == "assistant":
        thought = turn.get("reasoning_content") or turn.get("thinking")
        inline = THINKING.match(words)
        if inline and not thought:
            thought, words = inline.group(1).strip(), words[inline.end() :]
        if thought:
            found["reasoning_content"] = text_of(thought, f"messages.{i}.reasoning_content")
        if (weight := _weight(turn, i)) is not None:
            found["weight"] = weight
    for key in ("name", "tool_call_id"):
        if turn.get(key):
            found[key] = text_of(turn[key], f"messages.{i}.{key}")
    if turn.get("tools"):
        found["tools"] = tools_of(turn["tools"])
    return found | {"content": words}


def _words(content: Any, i: int) -> str:
    """The text of a message; parts of text are joined by line breaks, as vLLM joins them."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Sequence):
        raise ValueError(f"messages.{i}.content: is {type(content).__name__}, not text")
    words = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        text = part if isinstance(part, str) else part.get("text", part.get("refusal"))
        if kind not in ("text", "input_text", "output_text", "refusal") or not isinstance(text, str):
            raise ValueError(
                f"messages.{i}.content: has a part of the type '{kind}', and accord reads text only"
            )
        words.append(text)
    return "\n".join(words)


def _calls(calls: Any, i: int) -> list[dict[str, Any]]:
    """Calls with their arguments as an object, which is how chat templates take them."""
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not function.get("name"):
            raise ValueError(f"messages.{i}.tool_calls: a call without the name of its function")
        arguments = function.get("arguments", {})
        for _ in range(2):  # some exports encode them twice
            arguments = parsed(json.loads(arguments) if _is_quoted(arguments) else arguments)
        if not isinstance(arguments, Mapping):
            raise ValueError(
                f"messages.{i}.tool_calls: the arguments of '{function['name']}' are no JSON object"
            )
        one = {"type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}
        found.append(({"id": call["id"]} if call.get("id") else {}) | one)
    return found


def _is_quoted(text: Any) -> bool:
    return isinstance(text, str) and text.startswith('"') and text.endswith('"')


def tools_of(value: Any) -> list[dict[str, Any]]:
    """The tools of a conversation, as a list of schemas.

    Raises:
        ValueError: they are no list of objects.
    """
    tools = parsed(value)
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError("tools: is no list of JSON schemas of functions")
    return [dict(tool) for tool in tools]


def _weight(turn: Mapping[str, Any], i: int) -> int | None:
    for key in LEARNED:
        if (value := turn.get(key)) is not None:
            if value not in (0, 1):
                raise ValueError(
                    f"messages.{i}.{key}: is {value!r}; 0 leaves a turn out of the loss, 1 learns it"
                )
            return int(value)
    return None


def from_text(text: str) -> list[Turn] | None:
    """The turns of a transcript or of ChatML; None where the text is neither.

    A transcript begins with a speaker, and every turn after a blank line with one. An answer without a word is a blank.
    """
    if text.lstrip().startswith("<|im_start|>"):
        found = [(m.group(1).lower(), m.group(2)) for m in CHATML.finditer(text)]
        if CHATML.sub("", text).strip() or any(role not in ROLES for role, _ in found):
            return None
        return [{"role": ROLES[role], "content": words} for role, words in found]
    text = text.strip()
    parts = SPEAKER.split(text)
    if parts[0] or len(parts) < 3:
        return None
    return [
        {"role": ROLES[role.lower()], "content": words.strip() or " "}
        for role, words in zip(parts[1::2], parts[2::2], strict=True)
    ]


def history_of(value: Any) -> list[Turn]:
    """Earlier turns: pairs of what was asked and answered, or a conversation.

    Raises:
        ValueError: it is neither.
    """
    value = parsed(value)
    if not value:
        return []
    if is_turns(value):
        return turns_of(value)
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise ValueError("history: is no list of pairs of what was asked and answered")
    roles = ("user", "assistant")
    return [
        {"role": role, "content": text_of(words, "history")}
        for pair in value
        for role, words in zip(roles, pair, strict=True)
    ]
