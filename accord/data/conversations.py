"""Conventions of conversations: demonstrations, prompts, and answers with a label."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from accord.data.conventions import (
    ANSWERED,
    ASKED,
    SYSTEM,
    TURNS,
    AmbiguousError,
    Columns,
    Convention,
    answer_of,
    first_of,
    undecided,
)
from accord.data.turns import Turn, from_text, history_of, is_turns, parsed, text_of, tools_of, turns_of
from accord.records import Demonstration, Row, UnpairedFeedback


def conversations(row: Columns, wanted: type[Row]) -> Convention | None:
    """How a row is read as a demonstration, or as a prompt without the last answer."""
    found = _dialogue(row)
    if found is None or (wanted is Demonstration and not found.has_answers):
        return None
    convert = found.turns

    def demonstration(columns: Columns) -> dict[str, Any]:
        return {"messages": convert(columns)}

    def prompt(columns: Columns) -> dict[str, Any]:
        turns = convert(columns)
        while turns and turns[-1]["role"] == "assistant":  # the answer, which is not asked for
            turns = turns[:-1]
        return {"prompt": turns}

    return Convention(found.name, found.used, demonstration if wanted is Demonstration else prompt, wanted)


@dataclass(frozen=True)
class _Dialogue:
    """How the one conversation of a row is to be read."""

    name: str
    used: frozenset[str]
    turns: Callable[[Columns], list[Turn]]
    has_answers: bool = True


def _dialogue(row: Columns) -> _Dialogue | None:
    whole = [column for column in TURNS if is_turns(row.get(column))]
    asked = [column for column in ASKED if row.get(column) not in (None, "")]
    answered = [column for column in ANSWERED if column in row]
    if not asked and answered and row.get("input"):
        asked = ["input"]
    text = ["text"] if isinstance(row.get("text"), str) and from_text(row["text"]) else []
    ways = [*([whole[0]] if whole else []), *(["+".join([*asked, *answered])] if asked else []), *text]
    if len(whole) > 1:
        ways = [*whole, *ways[1:]]
    if len(ways) > 1 or len(asked) > 1 or len(answered) > 1:
        _say_ambiguous(whole, asked, answered, text)
    system, tools = first_of(row, SYSTEM), first_of(row, ("tools",))
    around = [column for column in (system, tools) if column]

    def complete(columns: Columns, turns: list[Turn]) -> list[Turn]:
        if system and (words := columns.get(system)):
            turns = [{"role": "system", "content": text_of(words, system)}, *turns]
        if tools and columns.get(tools):
            turns = [{**turns[0], "tools": tools_of(columns[tools])}, *turns[1:]]
        return turns

    if whole:
        (column,) = whole
        first = parsed(row[column])[0]
        form = "ShareGPT" if "from" in first else "OpenAI messages"
        name = f"{form} ({', '.join([column, *around])})"
        return _Dialogue(
            name,
            frozenset([column, *around]),
            lambda columns: complete(columns, turns_of(columns.get(column) or [])),
        )
    if asked:
        used = [*asked, *answered]
        extra = "input" if asked[0] == "instruction" and "input" in row else None
        history = "history" if "history" in row else None
        used += [each for each in (extra, history) if each]
        form = {"instruction": "Alpaca", "query": "query and response"}.get(asked[0], "prompt and completion")

        def one_turn(columns: Columns) -> list[Turn]:
            question = columns.get(asked[0])
            if is_turns(question) or isinstance(question, Mapping):
                turns = turns_of(question)
            else:
                words = "" if question is None else text_of(question, asked[0])
                if extra and (more := columns.get(extra)):
                    words += f"\n{text_of(more, extra)}"
                turns = [{"role": "user", "content": words}]
            if answered:
                turns += answer_of(columns.get(answered[0]), answered[0])
            return complete(columns, [*(history_of(columns.get(history)) if history else []), *turns])

        name = f"{form} ({', '.join([*used, *around])})"
        return _Dialogue(
            name, frozenset([*used, *around]), one_turn, bool(answered) or is_turns(row[asked[0]])
        )
    if text:

        def spoken(columns: Columns) -> list[Turn]:
            turns = from_text(text_of(columns.get("text", ""), "text"))
            if turns is None:
                raise ValueError(
                    "text: is no transcript whose turns begin with 'Human:' and 'Assistant:', nor ChatML"
                )
            return complete(columns, turns)

        return _Dialogue(f"transcript ({', '.join(['text', *around])})", frozenset(["text", *around]), spoken)
    return None


def _say_ambiguous(whole: list[str], asked: list[str], answered: list[str], text: list[str]) -> None:
    if len(asked) > 1 or (len(answered) > 1 and not whole):
        many = asked if len(asked) > 1 else answered
        part = "prompt" if many is asked else "completion"
        raise undecided(part, many)
    if len(whole) + len(text) + bool(asked) > 1:
        ways = [*whole, *([" and ".join([*asked, *answered])] if asked else []), *text]
        raise AmbiguousError(
            f"the conversation may be in {' or in '.join(ways)}; say which, with data.columns: {{messages: ...}} "
            "or "
            "{prompt: ..., completion: ...}"
        )


def unpaired(row: Columns) -> Convention | None:
    """How a row is read as an answer that is desirable or not."""
    found = _dialogue(row)
    if found is None or not found.has_answers or "label" not in row:
        return None

    def convert(columns: Columns) -> dict[str, Any]:
        *prompt, completion = found.turns(columns)
        label = columns.get("label")
        if str(label).lower() not in ("true", "false", "1", "0"):
            raise ValueError(
                f"label: is {label!r}; true says that the answer is desirable, false that it is not"
            )
        return {"prompt": prompt, "completion": [completion], "label": str(label).lower() in ("true", "1")}

    name = f"{found.name.partition(' (')[0]} with a label ({', '.join([*sorted(found.used), 'label'])})"
    return Convention(name, found.used | {"label"}, convert, UnpairedFeedback)
