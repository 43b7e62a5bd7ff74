"""What a convention is, the names that columns have in them, and what all of them read in one way."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from accord.data.turns import Turn, from_text, is_turns, text_of, turns_of
from accord.records import Comparison, Demonstration, Preference, Prompt, Row, UnpairedFeedback

TURNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
ASKED = ("prompt", "instruction", "question", "query")
ANSWERED = ("completion", "response", "output", "answer")
ANSWERS = ("responses", "completions", "answers")
RANKS = ("ranks", "ranking", "rank")
SCORES = ("scores", "overall_scores", "ratings")
SYSTEM = ("system", "system_prompt")
PARTS = (
    "messages", "prompt", "input", "completion", "text", "system", "history", "tools", "chosen", "rejected",
    "responses", "ranks", "scores", "label", "id",
)  # fmt: skip
"""What `columns` may name: the part that a column is."""
PLURALS: dict[type[Row], str] = {
    Demonstration: "demonstrations", Prompt: "prompts", Preference: "preferences", Comparison: "comparisons",
    UnpairedFeedback: "feedback",
}  # fmt: skip

Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Convention:
    """A way in which rows are written."""

    name: str
    used: frozenset[str]
    """The columns that it reads; others stay."""
    convert: Callable[[Columns], dict[str, Any]]
    """A row's columns to those of accord; raises ValueError for what it has no form for."""
    gives: type[Row]


class AmbiguousError(ValueError):
    """A row can be read in more than one way."""


def undecided(part: str, columns: list[str]) -> AmbiguousError:
    """What to raise where several columns may be one part."""
    return AmbiguousError(
        f"the {part} may be in {' or in '.join(columns)}; say which, with data.columns: {{{part}: {columns[0]}}} or so"
    )


def first_of(row: Columns, names: tuple[str, ...]) -> str | None:
    """The first of these columns that a row has something in."""
    return next((name for name in names if row.get(name)), None)


def prompt_of(columns: Columns, column: str, system: str | None, extra: str | None) -> list[Turn]:
    """The prompt in a column: a text, a transcript or turns; with system words and an input from other columns."""
    value = columns.get(column)
    if value in (None, ""):
        raise ValueError(f"{column}: there is no prompt")
    turns: list[Turn]
    if is_turns(value) or isinstance(value, Mapping):
        turns = turns_of(value)
    else:
        words = text_of(value, column)
        if extra and (more := columns.get(extra)):
            words += f"\n{text_of(more, extra)}"
        turns = from_text(words) or [{"role": "user", "content": words}]
    if system and (said := columns.get(system)):
        turns = [{"role": "system", "content": text_of(said, system)}, *turns]
    return turns


def answer_of(value: Any, column: str) -> list[Turn]:
    """An answer, as text or as turns."""
    if is_turns(value) or isinstance(value, Mapping):
        return turns_of(value)
    if value is None:
        raise ValueError(f"{column}: there is no answer")
    words = text_of(value, column) or " "  # as `chat.answer`: an empty one is a blank
    return turns_of([{"role": "assistant", "content": words}])
