"""What a file of rows holds, and all that is wrong with it, before anything learns from it.

report = examine(read("chats.jsonl", Demonstration), tokenizer, max_tokens=1024)
"""

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.bundled import data_path
from accord.data.conventions import PLURALS, AmbiguousError
from accord.data.files import HUB, Fault, RawRow, raw_rows
from accord.data.reading import Reading
from accord.data.recognise import recognise
from accord.errors import DataError
from accord.records import (
    Comparison,
    Demonstration,
    Message,
    Preference,
    Prompt,
    Row,
    UnpairedFeedback,
    conversation_id,
    question_id,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from accord.data.quality.survey import Quality

PLACES = 3
"""So many places of each kind of fault are named."""
MARKUP = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>",
    re.IGNORECASE,
)
"""What chat templates of many models write around turns."""


@dataclass
class Faults:
    """The faults of one kind."""

    kind: str
    count: int
    places: list[str]
    example: str


@dataclass
class Contents:
    """What the good rows of a file hold."""

    rows: int
    columns: dict[str, int]
    """Those that accord does not use, and in how many rows."""
    roles: dict[str, int]
    """Turns of each role."""
    turns: dict[int, int]
    """Rows by their number of turns, prompt and answer together."""
    figures: dict[str, int]
    """Counts of what is worth a look."""
    lengths: dict[str, float]
    """Of a row with its longest answer: in tokens, if there is a tokenizer, and else in characters."""
    unit: str


@dataclass
class Report:
    """Everything about one file."""

    name: str
    kind: str
    convention: str
    encoding: str
    faulty_rows: int
    faults: list[Faults]
    contents: Contents
    examples: list[tuple[str, str, str]] = field(default_factory=list)
    """Rows worth a look: what about them, where, and the beginning of their text."""
    quality: "Quality | None" = None
    """Of the good rows, where it was asked for."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def kind_of_rows(reference: str, columns: Mapping[str, str]) -> type[Row]:
    """What the rows of a file are, by the first that can be read.

    Raises:
        DataError: they can be read as nothing, or the file cannot.
    """
    from accord.data.recognise import mapped

    unreadable: Fault | None = None
    for raw in raw_rows(reference):
        if isinstance(raw, Fault):
            unreadable = unreadable or raw
            continue
        found = _kind_of(mapped(raw.columns, columns, reference), raw)
        if found is None:
            listed = ", ".join(map(str, raw.columns)) or "none"
            raise DataError(
                f"{raw.place}: its columns ({listed}) are in no convention that accord knows; say which column is what "
                "with --columns (docs/bring-your-data.md)"
            )
        return found
    if unreadable:
        raise DataError(f"{unreadable.place}: {unreadable.message}")
    raise DataError(f"{reference}: holds no rows")


def _kind_of(columns: Mapping[str, Any], raw: RawRow) -> type[Row] | None:
    for row_type in (Preference, Comparison, UnpairedFeedback, Demonstration, Prompt):
        try:
            found = recognise(columns, row_type)
            if found is None:
                continue
            made = found.convert(columns)
        except AmbiguousError as error:
            raise DataError(f"{raw.place}: {error}") from None
        except ValueError:
            return row_type
        if row_type is Demonstration and made["messages"][-1]["role"] != "assistant":
            continue
        return row_type
    return None


def examine(
    reading: Reading, tokenizer: "PreTrainedTokenizerBase | None" = None, max_tokens: int | None = None
) -> Report:
    """Look at all that a file holds.

    Args:
        reading: the file.
        tokenizer: of the model that shall learn from it. Lengths are then in tokens, and rows that its template refuses
            move from `reading.rows` to `reading.faulty`.
        max_tokens: the longest row that a stage would take.
    """
    lengths = _encode_all(reading, tokenizer) if tokenizer else []
    if not tokenizer:
        lengths = [
            max(sum(len(turn.text) for turn in turns) for turns in conversations(row)) for row in reading.rows
        ]
    contents, examples = _contents(reading, lengths, tokenizer, max_tokens)
    return Report(
        name=reading.name,
        kind=PLURALS[reading.row_type],
        convention=reading.convention,
        encoding=_encoding(reading.name),
        faulty_rows=len(reading.faulty),
        faults=_by_kind(reading.faults),
        contents=contents,
        examples=examples,
    )


def conversations(row: Row) -> list[Sequence[Message]]:
    """Every conversation of a row, from its first turn to its last."""
    if isinstance(row, Demonstration):
        return [row.messages]
    if isinstance(row, Prompt):
        return [row.prompt]
    if isinstance(row, Preference):
        return [[*row.prompt, *row.chosen], [*row.prompt, *row.rejected]]
    if isinstance(row, UnpairedFeedback):
        return [[*row.prompt, *row.completion]]
    if isinstance(row, Comparison):
        from accord.chat.tokens import answer

        return [[*row.prompt, *answer(response.text)] for response in row.responses]
    raise TypeError(type(row).__name__)


def _encode_all(reading: Reading, tokenizer: "PreTrainedTokenizerBase") -> list[float]:
    """The longest conversation of every good row in tokens; rows that the chat template refuses become faulty."""
    from accord.chat.tokens import encode_conversation, encode_prompt

    lengths: list[float] = []
    kept: list[tuple[Row, str]] = []
    for row, place in zip(reading.rows, reading.places, strict=True):
        try:
            lengths.append(
                max(
                    len(encode_prompt(tokenizer, turns))
                    if isinstance(row, Prompt)
                    else len(encode_conversation(tokenizer, turns).input_ids)
                    for turns in conversations(row)
                )
            )
            kept.append((row, place))
        except DataError as error:
            kind = re.sub(r"messages\.\d+", "messages.*", str(error).partition(" (")[0])
            reading.faulty.append(([Fault(place, kind, str(error))], row.model_dump(exclude_none=True)))
    reading.rows, reading.places = [row for row, _ in kept], [place for _, place in kept]
    return lengths


def _by_kind(faults: Sequence[Fault]) -> list[Faults]:
    found: dict[str, Faults] = {}
    for fault in faults:
        of_kind = found.setdefault(fault.kind, Faults(fault.kind, 0, [], fault.message))
        of_kind.count += 1
        if len(of_kind.places) < PLACES:
            of_kind.places.append(fault.place)
    return sorted(found.values(), key=lambda each: -each.count)


def _contents(
    reading: Reading,
    lengths: Sequence[float],
    tokenizer: "PreTrainedTokenizerBase | None",
    max_tokens: int | None,
) -> tuple[Contents, list[tuple[str, str, str]]]:
    rows = reading.rows
    markup = MARKUP
    if tokenizer:
        own = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
        markup = re.compile("|".join([MARKUP.pattern, *map(re.escape, own)]))
    found: dict[str, list[int]] = {}

    def note(what: str, i: int, is_so: Any) -> None:
        if is_so:
            found.setdefault(what, []).append(i)

    columns: Counter[str] = Counter()
    roles: Counter[str] = Counter()
    turns: Counter[int] = Counter()
    seen: dict[str, set[Any]] = {"rows": set(), "questions": set(), "pairs": set()}
    exact: set[str] = set()
    for i, row in enumerate(rows):
        columns.update((row.model_extra or {}).keys())
        whole = conversations(row)
        said = [turn for each in whole for turn in each]
        roles.update(turn.role for turn in whole[0])
        turns[len(whole[0])] += 1
        identity = tuple(conversation_id(each) for each in whole)
        note("duplicates", i, identity in seen["rows"])
        seen["rows"].add(identity)
        prompt = whole[0] if isinstance(row, Prompt) else whole[0][:-1]
        question, as_written = question_id(prompt), conversation_id(prompt)
        note(
            "prompts_that_differ_in_case_or_space",
            i,
            question in seen["questions"] and as_written not in exact,
        )
        seen["questions"].add(question)
        exact.add(as_written)
        if isinstance(row, Preference):
            note("opposites", i, (identity[1], identity[0]) in seen["pairs"])
            seen["pairs"].add(identity)
            note("weight_zero", i, row.weight == 0)
        note("control_tokens_in_texts", i, any(markup.search(turn.text) for turn in said))
        note("blank_answers", i, any(t.role == "assistant" and not t.text.strip() for t in said))
        note("with_system_message", i, any(turn.role == "system" and turn.content for turn in said))
        note("with_tools", i, any(turn.tools or turn.tool_calls for turn in said))
        note("with_thinking", i, any(turn.reasoning_content for turn in said))
        note("with_turns_of_weight_0", i, any(turn.weight == 0 for turn in said))
        note("too_long", i, tokenizer and max_tokens and lengths[i] > max_tokens)
    figures = {what: len(found.get(what, [])) for what in FIGURES if what in found or what in ALWAYS}
    if tokenizer is None or max_tokens is None:
        figures.pop("too_long", None)
    examples = [
        (what, reading.places[i], _beginning(rows[i], markup if what == "control_tokens_in_texts" else None))
        for what in ("too_long", "duplicates", "opposites", "control_tokens_in_texts", "blank_answers",
                     "prompts_that_differ_in_case_or_space")
        for i in found.get(what, [])[:PLACES]
    ]  # fmt: skip
    spread = {}
    if lengths:
        ordered = sorted(lengths)
        spread = {
            "shortest": ordered[0], "median": statistics.median(ordered),
            "95%": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], "longest": ordered[-1],
            "sum": sum(ordered),
        }  # fmt: skip
    unit = "tokens" if tokenizer else "characters"
    return (
        Contents(len(rows), dict(columns), dict(roles), dict(sorted(turns.items())), figures, spread, unit),
        examples,
    )


FIGURES = {
    "duplicates": "rows that repeat an earlier one",
    "opposites": "pairs whose opposite was preferred before",
    "prompts_that_differ_in_case_or_space": "prompts that another asks in other case or spacing",
    "too_long": "rows over the limit of tokens",
    "blank_answers": "rows with a blank answer",
    "weight_zero": "pairs of weight 0",
    "control_tokens_in_texts": "rows whose text holds control tokens (they are read as text)",
    "with_system_message": "rows with a system message",
    "with_tools": "rows with tools",
    "with_thinking": "rows with thinking parts",
    "with_turns_of_weight_0": "rows with turns that are not learned",
}
ALWAYS = ("duplicates", "blank_answers", "control_tokens_in_texts", "too_long")


def _beginning(row: Row, markup: re.Pattern[str] | None) -> str:
    texts = [turn.text for each in conversations(row) for turn in each]
    text = next((text for text in texts if markup and markup.search(text)), texts[-1])
    at = match.start() if markup and (match := markup.search(text)) else 0
    words = " ".join(text[max(0, at - 40) : at + 100].split())
    return ("… " if at > 40 else "") + words + (" …" if len(text) > at + 100 else "")


def _encoding(name: str) -> str:
    path = data_path(name)
    if name.startswith(HUB) or not Path(path).is_file():
        return ""
    with Path(path).open("rb") as file:
        beginning = file.read(4)
    if beginning[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16"
    return "UTF-8 with a byte-order mark" if beginning[:3] == b"\xef\xbb\xbf" else ""
