"""What is found in rows, and the parts of a row that are looked at."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from accord.errors import UsageError
from accord.records import Comparison, Demonstration, Message, Preference, Prompt, Row, UnpairedFeedback

WORD = re.compile(
    r"[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
)
"""A word; in scripts that write no spaces (Chinese, Japanese, Thai) a character."""  # fmt: skip
_APART = str.maketrans({chr(i): " " for i in range(128) if not (chr(i).isalnum() or chr(i) == "_")})
TURNS = ("messages", "prompt", "chosen", "rejected", "completion", "responses", "rankings")
NOT_SAID = ("role", "type", "name", "id", "tool_call_id", "run", "annotator", "status")
"""What stands under these keys of turns, answers and rankings identifies, and is not said by anybody."""
IDENTIFIES = ("id", "duplicate_of", "assigned_to")
"""Columns that do."""


@dataclass(frozen=True)
class Finding:
    """Something about one row."""

    what: str
    """One of `accord.data.quality.kinds.KINDS`."""
    row: int
    """The row's index."""
    detail: str


def words(text: str) -> list[str]:
    """The words of a text, case folded."""
    if text.isascii():
        return text.lower().translate(_APART).split()
    return WORD.findall(text.casefold())


def needed(module: str, package: str) -> Any:
    """An optional library.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        raise UsageError(
            f"the package {package}, which measures the quality of data, is missing; run: pip install 'accord[data]'"
        ) from None


def question(row: Row) -> Sequence[Message]:
    """The turns before the (last) answer."""
    return row.messages[:-1] if isinstance(row, Demonstration) else getattr(row, "prompt", ())


def answer_turns(row: Row) -> list[Sequence[Message]]:
    """What stands behind the question: one answer, or those that are compared."""
    if isinstance(row, Demonstration):
        return [row.messages[-1:]]
    if isinstance(row, Preference):
        return [row.chosen, row.rejected]
    if isinstance(row, UnpairedFeedback):
        return [row.completion]
    if isinstance(row, Comparison):
        return [[Message(role="assistant", content=each.text or " ")] for each in row.responses]
    return []


def answers(row: Row) -> list[str]:
    """The texts of `answer_turns`."""
    return [said(turns) for turns in answer_turns(row)]


def learned(row: Row) -> list[str]:
    """The answers that a model would learn to give: none of a comparison, of which the best is not settled yet."""
    turns: Iterable[Message] = ()
    if isinstance(row, Demonstration):
        turns = (turn for turn in row.messages if turn.weight != 0)
    elif isinstance(row, Preference):
        turns = row.chosen
    elif isinstance(row, UnpairedFeedback) and row.label:
        turns = row.completion
    return [turn.text for turn in turns if turn.role == "assistant"]


def said(turns: Iterable[Message]) -> str:
    """All but system messages, which many rows share."""
    return "\n".join(turn.text for turn in turns if turn.role != "system")


def whole(row: Row) -> str:
    """Question and answers."""
    return "\n".join([said(question(row)), *answers(row)])


def is_judged(row: Row) -> bool:
    """Whether people judged its answers, so that rows with one question and other answers say other things."""
    return not isinstance(row, Demonstration | Prompt)


def strings(row: Row) -> list[str]:
    """All texts of a row: turns, thinking, calls, reasons, and columns that accord does not know."""
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    with_texts(row.model_dump(exclude_unset=True), note)
    return found


def with_texts(columns: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The columns of a row with every text of it (see `strings`) as `change` gives it."""

    def walk(value: Any, identifying: Sequence[str]) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, Mapping):
            return {
                key: each if key in identifying else walk(each, () if key == "arguments" else identifying)
                for key, each in value.items()
            }
        return [walk(each, identifying) for each in value] if isinstance(value, list) else value

    return {
        name: each if name in IDENTIFIES else walk(each, NOT_SAID if name in TURNS else ())
        for name, each in columns.items()
    }
