"""A file, read to its end: the rows that are good, the faults of all others, and the convention they are in."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from accord.data.config import DataConfig
from accord.data.conventions import PLURALS, AmbiguousError, Convention
from accord.data.files import Fault, RawRow, is_json_lines, raw_rows
from accord.data.recognise import mapped, recognise
from accord.errors import DataError
from accord.records import Comparison, Demonstration, Message, Preference, Prompt, Row, UnpairedFeedback
from accord.text_files import describe_all

OWN = "accord's own form"
INLINE_THINKING = re.compile(r"\s*<think>")


@dataclass
class Reading:
    """What a file holds."""

    name: str
    row_type: type[Row]
    convention: str = OWN
    """Of the file; `OWN` if the stages can read it as it is."""
    rows: list[Row] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    """Of each row, its file and line, or row."""
    faulty: list[tuple[list[Fault], Any]] = field(default_factory=list)
    """Rows, as the file has them (None where a line is no row), and all that is wrong with each."""

    @property
    def faults(self) -> list[Fault]:
        """In the order of the file."""
        return [fault for faults, _ in self.faulty for fault in faults]

    def fault(self) -> str:
        """The first fault, and how many more there are."""
        first, kinds = self.faults[0], {fault.kind for fault in self.faults}
        more = ""
        if len(self.faults) > 1:
            more = (
                f" (and {len(self.faults) - 1} more faults, of {len(kinds)} kinds in all; "
                f"`accord data check {self.name}` shows them)"
            )
        return f"{first.place}: {first.message}{more}"

    def check(self) -> None:
        """Raise what is wrong, as one sentence.

        Raises:
            DataError: a row is faulty, or there is none.
        """
        if self.faults:
            raise DataError(self.fault())
        if not self.rows:
            one = PLURALS[self.row_type][:-1]
            raise DataError(f"{self.name}: holds no rows; it must hold at least one {one} a line")


def read(reference: str, row_type: type[Row], config: DataConfig | None = None) -> Reading:
    """Read a file of any kind (`accord.data.files`) and convention (`accord.data.conventions`) as `row_type`.

    For `Preference`, a file of comparisons or of rankings is read as comparisons.

    Raises:
        DataError: there is no such file, or it is in no convention, or in more than one.
        UsageError: its `columns` name a part that there is not, or a column that it has not.
    """
    reader = RowReader(reference, row_type, config)
    for raw in raw_rows(reference):
        reader.take(raw)
    reading = reader.reading
    reading.convention = reader.convention_of_file()
    return reading


class RowReader:
    """Reads the rows of a file one after the other, which must be in one convention."""

    def __init__(self, reference: str, row_type: type[Row], config: DataConfig | None = None):
        config = config or DataConfig()
        self.reading = Reading(reference, row_type)
        """What was taken since the last `taken`."""
        self.columns = config.columns.get(reference, {})
        self.merge_system = config.system == "merge_into_user"
        self.convention: Convention | None = None
        self.begun = False
        """Whether a row was taken before."""
        self.good = False
        """Whether one of them was good."""
        self.changed = False
        """Whether a row is not what the file says."""
        self.ids: dict[str, str] = {}
        """The place of each."""

    def take(self, raw: RawRow | Fault) -> None:
        """Add a row to what `reading` holds, to its good rows or to its faulty ones.

        Raises:
            DataError, UsageError: the file is not what it should be, as `read` says it.
        """
        reading = self.reading
        if isinstance(raw, Fault):
            reading.faulty.append(([raw], None))
            self.begun = True
            return
        try:
            row = self.row_of(raw)
        except ValidationError as error:
            found = [(said, said.partition(", found")[0]) for said in describe_all(error)]
            self.refuse(raw, found)
        except ValueError as error:
            self.refuse(raw, [(str(error), re.sub(r"'[^']*'", "'...'", str(error)))])
        else:
            id_ = row.id if isinstance(row, Prompt | Comparison) else None
            if id_ is not None and (earlier := self.ids.setdefault(id_, raw.place)) != raw.place:
                message = f"id: '{id_}' stands in {earlier}, too; give every row its own"
                self.refuse(raw, [(message, "an id that stands twice")])
                return
            reading.rows.append(row)
            reading.places.append(raw.place)
            self.begun = self.good = True

    def taken(self) -> Reading:
        """What was read since this was last asked for, which is then forgotten."""
        reading = self.reading
        self.reading = Reading(reading.name, reading.row_type)
        return reading

    def convention_of_file(self) -> str:
        """The convention, once all rows were taken; `OWN` if the stages can read the file as it is."""
        if self.convention:
            return self.convention.name
        if self.changed or not is_json_lines(self.reading.name):
            return PLURALS[self.reading.row_type]
        return OWN

    def refuse(self, raw: RawRow, found: Sequence[tuple[str, str]]) -> None:
        """Keep a row with what is wrong with it, each time with what it has in common with others."""
        faults = [Fault(raw.place, re.sub(r"\.\d+", ".*", kind), said) for said, kind in found]
        self.reading.faulty.append((faults, raw.columns))
        self.begun = True

    def row_of(self, raw: RawRow) -> Row:
        """The row in accord's own form.

        Raises:
            ValueError: it is not what it should be.
            DataError, UsageError: the file is not.
        """
        reading = self.reading
        columns = mapped(raw.columns, self.columns, reading.name)
        missing = set(self.columns.values()) - raw.columns.keys()
        if missing and not self.begun:
            raise DataError(
                f"{raw.place}: has no column '{min(missing)}', which data.columns names; it has {_listed(raw.columns)}"
            )
        if not self.begun and reading.row_type is Preference and _is_comparison(columns):
            reading.row_type = Comparison
        try:
            row = reading.row_type.model_validate(columns)
            if self.convention or _thinks_inline(row):
                row = self.converted(columns, raw.place, row)
        except ValidationError as error:
            row = self.converted(columns, raw.place, error)
        if self.columns:
            self.changed = True
        if self.merge_system and (merged := without_system(row)) is not row:
            self.changed = True
            row = merged
        return row

    def converted(self, columns: dict[str, Any], place: str, otherwise: Row | ValidationError) -> Row:
        """The row in accord's form; where it is in none, `otherwise`: the row, or what is wrong with it as accord's."""
        reading = self.reading
        try:
            found = recognise(columns, reading.row_type)
        except AmbiguousError as error:
            raise DataError(f"{place}: {error}") from None
        if found is None:
            if isinstance(otherwise, Row):
                return otherwise
            if not self.begun and not _is_own(columns, reading.row_type):
                raise DataError(f"{place}: {_unknown(columns, reading.row_type)}") from None
            if self.convention and not _is_own(columns, reading.row_type):
                raise ValueError(
                    f"is not in the convention of the rows before it, {self.convention.name}; its columns are "
                    f"{_listed(columns)}"
                )
            raise otherwise
        before = _form(self.convention) if self.convention else OWN if self.good else None
        if before == OWN and _is_own(columns, reading.row_type):
            before = None
        if before not in (None, _form(found)):
            raise ValueError(
                f"is in another convention than the rows before it: {_form(found)}, not {before}"
            )
        self.convention = self.convention or found
        rest = {key: value for key, value in columns.items() if key not in found.used}
        clean = {key: value for key, value in rest.items() if value is not None}
        return reading.row_type.model_validate(clean | found.convert(columns))


def _form(convention: Convention) -> str:
    return convention.name.partition(" (")[0]


def _is_comparison(columns: Mapping[str, Any]) -> bool:
    if "responses" in columns and "rankings" in columns:
        return True
    if "chosen" in columns and "rejected" in columns:
        return False
    try:
        return recognise(columns, Comparison) is not None or "responses" in columns
    except AmbiguousError:
        return False


def _is_own(columns: Mapping[str, Any], row_type: type[Row]) -> bool:
    """Whether a row has the columns that one of accord's must have."""
    return all(
        name in columns
        for name, field in row_type.model_fields.items()
        if field.is_required() and name != "id"
    )


def _thinks_inline(row: Row) -> bool:
    """Whether an answer begins with a thinking part in tags, which then is kept apart."""
    turns: Iterable[Message] = ()
    if isinstance(row, Demonstration):
        turns = row.messages
    elif isinstance(row, Preference):
        turns = (*row.prompt, *row.chosen, *row.rejected)
    return any(turn.role == "assistant" and INLINE_THINKING.match(turn.content) for turn in turns)


def _unknown(columns: Mapping[str, Any], wanted: type[Row]) -> str:
    """What to say of a file whose first row is in no convention that gives what is wanted."""
    listed, kind = _listed(columns), PLURALS[wanted]
    others: list[type[Row]] = list(PLURALS)
    for other in others:
        if other is wanted or (wanted is Preference and other is Comparison):
            continue
        try:
            found = recognise(columns, other)
        except AmbiguousError:
            continue
        if found and other is not Prompt:
            return f"holds {PLURALS[other]}, {found.name}, and {kind} are needed here"
    example = {
        Demonstration: '{"messages": [...]}, or a prompt and a completion', Prompt: '{"prompt": [...]}',
        Preference: '{"prompt": [...], "chosen": [...], "rejected": [...]}',
        Comparison: '{"prompt": [...], "responses": [...], "ranks": [...]}',
        UnpairedFeedback: '{"prompt": [...], "completion": [...], "label": true}',
    }[wanted]  # fmt: skip
    if isinstance(columns.get("text"), str):
        return (
            "text: is written out by a chat template or has no turns, and a conversation needs its turns, as "
            f"{example}"
        )
    return (
        f"its columns ({listed}) are in no convention of {kind} that accord knows; write {example}, or say in "
        "data.columns which column is what (docs/bring-your-data.md)"
    )


def _listed(columns: Mapping[str, Any]) -> str:
    names = [str(name) for name in columns]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "none"


def without_system(row: Row) -> Row:
    """The row, with what its system messages say before the words of the user's next turn."""
    changed: dict[str, Any] = {}
    for name in ("messages", "prompt"):
        turns = getattr(row, name, None)
        if turns and any(turn.role == "system" for turn in turns):
            changed[name] = list(_merged(turns))
    return type(row).model_validate(row.model_dump(exclude_unset=True) | changed) if changed else row


def _merged(turns: Iterable[Message]) -> Iterator[dict[str, Any]]:
    said: list[str] = []
    tools = None
    for turn in turns:
        if turn.role == "system":
            said += [turn.content] if turn.content else []
            tools = tools or turn.tools
            continue
        message = turn.model_dump(exclude_none=True)
        if turn.role == "user" and said:
            message["content"] = "\n\n".join([*said, message["content"]])
            said = []
        if tools:
            message["tools"], tools = tools, None
        yield message
    if said:
        raise ValueError("a system message has no turn of the user behind it that it could be merged into")
