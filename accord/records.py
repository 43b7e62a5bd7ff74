"""The rows that flow between stages, as JSON Lines in TRL's conversational formats.

One preference, on one line of a file:

    {"prompt": [{"role": "user", "content": "Name a prime."}],
     "chosen": [{"role": "assistant", "content": "Seven is prime."}],
     "rejected": [{"role": "assistant", "content": "Nine."}], "agreement": 0.75, "annotators": 4}

Columns that accord does not know are kept, so files made for other tools stay whole; a column whose name is
a slip away from one of accord's is refused, because a silently ignored "wieght" is worse than an error.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from accord.errors import DataError
from accord.text_files import describe, parse_json, read_text

Role = Literal["system", "user", "assistant", "tool"]


class Message(BaseModel):
    """One turn of a conversation, as OpenAI's API and chat templates have it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Role
    name: str | None = None
    """Of the speaker, or of the tool that answers."""
    tools: list[dict[str, Any]] | None = None
    """Of the whole conversation, at its first message: the JSON schemas of the functions that the assistant may call.
    A column `tools` of a row is kept here."""
    tool_calls: list[dict[str, Any]] | None = None
    """What the assistant calls: `{"type": "function", "function": {"name": ..., "arguments": {...}}}` each."""
    tool_call_id: str | None = None
    """Of the call that a tool's turn answers."""
    reasoning_content: str | None = None
    """What the assistant thought before it answered, without the tags of its template."""
    weight: Literal[0, 1] | None = None
    """0: this turn of the assistant is read, and not learned."""
    content: str

    @field_validator("content")
    @classmethod
    def _says_something(cls, content: str, info: ValidationInfo) -> str:
        if not content and not (info.data.get("tool_calls") or info.data.get("tools")):
            raise PydanticCustomError("string_too_short", "String should have at least 1 character")
        return content

    @property
    def text(self) -> str:
        """What people and judges read: the words, and the calls of tools as JSON, one a line."""
        calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in self.tool_calls or []]
        return "\n".join([*([self.content] if self.content else []), *calls])


class _Place(str):
    """A file and a line. Rows are equal wherever they were read, so all places are."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Place)

    __hash__ = str.__hash__


class Row(BaseModel):
    """One line of a file: named columns, and whatever other columns the file came with."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    _place: _Place = PrivateAttr(default_factory=_Place)  # a default would be copied for every row

    @property
    def place(self) -> str:
        """The file and the line, or row, that it was read from; empty for one that was not."""
        return str(self._place)

    @model_validator(mode="before")
    @classmethod
    def _tools_stand_at_the_first_message(cls, row: Any) -> Any:
        name = next((each for each in ("messages", "prompt") if each in cls.model_fields), None)
        if name is None or not isinstance(row, Mapping) or not row.get("tools"):
            return row
        messages = row.get(name)
        if not isinstance(messages, list) or not messages or not isinstance(messages[0], Mapping):
            return row
        rest = {key: value for key, value in row.items() if key != "tools"}
        return rest | {name: [{**messages[0], "tools": row["tools"]}, *messages[1:]]}

    @model_validator(mode="after")
    def _no_misspelled_column(self) -> Self:
        lacking = [name for name in type(self).model_fields if name not in self.model_fields_set]
        for name in self.model_extra or {}:
            for known in lacking:
                if is_slip(name, known):
                    raise ValueError(f"unknown column '{name}'; did you mean '{known}'?")
        return self


def is_slip(written: str, meant: str) -> bool:
    """Whether a name is another one mistyped: one letter changed, left out, added or swapped with its neighbour.

    In a name of eight letters or more it may be two; names of up to three letters have too many neighbours.
    """
    most = 0 if len(meant) < 4 else 1 if len(meant) < 8 else 2
    if abs(len(written) - len(meant)) > most:
        return False
    # Optimal string alignment: `rows[i][j]` edits turn the first i letters of the one into the first j of the other.
    rows = [list(range(len(meant) + 1))]
    for i, letter in enumerate(written, start=1):
        row = [i]
        for j, other in enumerate(meant, start=1):
            edits = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == meant[j - 2] and written[i - 2] == other:
                edits = min(edits, rows[-2][j - 2] + 1)
            row.append(edits)
        rows.append(row)
    return rows[-1][-1] <= most


class Demonstration(Row):
    """A conversation whose assistant turns are to be imitated."""

    messages: list[Message] = Field(min_length=2)

    @model_validator(mode="after")
    def _teaches(self) -> Self:
        if self.messages[-1].role != "assistant":
            raise ValueError("messages: the last message must be the assistant's")
        turns = [
            (i, turn) for i, turn in enumerate(self.messages) if turn.role == "assistant" and turn.weight != 0
        ]
        if not turns:
            raise ValueError("messages: every turn of the assistant has weight 0, so nothing can be learned")
        for i, turn in turns:
            if not turn.text.strip():
                raise ValueError(
                    f"messages.{i}.content: a blank answer would be learned; leave the row out, or give "
                    "the turn weight 0"
                )
        return self


def _text_of_number(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Id = Annotated[str, Field(min_length=1), BeforeValidator(_text_of_number)]
"""What identifies a row in its file; a whole number counts as its digits."""


class Prompt(Row):
    """A conversation that waits for the assistant's next turn."""

    prompt: list[Message] = Field(min_length=1)
    id: Id | None = None

    @model_validator(mode="after")
    def _ends_with_user(self) -> Self:
        if self.prompt[-1].role not in ("user", "tool"):
            raise ValueError("prompt: the last message must be the user's, or a tool's")
        return self


class Preference(Row):
    """Two answers to one prompt, and which of them was preferred."""

    prompt: list[Message] = Field(min_length=1)
    chosen: list[Message] = Field(min_length=1)
    rejected: list[Message] = Field(min_length=1)
    margin: float | None = None
    """By how much the chosen answer is better, in steps of the annotators' scale."""
    weight: float | None = Field(default=None, ge=0)
    annotators: int | None = Field(default=None, ge=1)
    agreement: float | None = Field(default=None, ge=0, le=1)
    chosen_truncated: bool | None = None
    rejected_truncated: bool | None = None
    """Whether the answer was cut off before its EOS, so that policy optimisation must not learn an EOS there."""
    id: Id | None = None

    @model_validator(mode="after")
    def _is_a_choice(self) -> Self:
        if (self.margin or 0) < 0:
            raise ValueError(
                f"margin: is {self.margin}; where the rejected answer is the better one, swap the two"
            )
        if self.prompt[-1].role == "assistant":
            raise ValueError(
                "prompt: the last message is the assistant's; its answers stand in chosen and rejected"
            )
        for name, turns in (("chosen", self.chosen), ("rejected", self.rejected)):
            for i in (0, -1):
                if turns[i].role != "assistant":
                    raise ValueError(
                        f"{name}: must begin and end with the assistant, found '{turns[i].role}'"
                    )
        if _words(self.chosen) == _words(self.rejected):
            raise ValueError(
                "chosen: equals rejected, but for white space at most, so the row states no preference"
            )
        return self


def _words(turns: Iterable[Message]) -> list[str]:
    return [f"{turn.role}: {turn.text.strip()}" for turn in turns]


class UnpairedFeedback(Row):
    """One answer to a prompt, and whether it is desirable; as TRL names the columns of its unpaired preferences."""

    prompt: list[Message] = Field(min_length=1)
    completion: list[Message] = Field(min_length=1)
    label: bool
    truncated: bool | None = None
    """Whether the answer was cut off before its EOS, as for a `Preference`."""
    id: Id | None = None

    @model_validator(mode="after")
    def _ends_with_assistant(self) -> Self:
        for i in (0, -1):
            if self.completion[i].role != "assistant":
                raise ValueError(
                    f"completion: must begin and end with the assistant, found '{self.completion[i].role}'"
                )
        return self


class Response(BaseModel):
    """One answer of a policy, as it was sampled; of one from elsewhere nobody knows from which run, by which seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    text: str
    run: str | None = None
    seed: int | None = None
    truncated: bool = False
    """Whether the token limit cut it off; otherwise the policy ended it with EOS."""


class Ranking(BaseModel):
    """One annotator's answer to one comparison; `ranks[i]` is the rank of `responses[i]`, 1 is best, ties share.

    The other parts are there where the task asked for them. All lists are in the order of the comparison's
    `responses`, whatever order the annotator saw them in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    annotator: str
    status: Literal["submitted", "discarded", "draft", "deleted"] = "submitted"
    """`deleted`: it was pulled once, and the server does not have it any more."""
    ranks: list[int] | None = None
    strength: int | None = Field(default=None, ge=1, le=3)
    """Of a choice between two: 1 slightly better, 2 better, 3 much better; None for a tie."""
    ratings: list[dict[str, int]] | None = None
    """For each response, 1 to 5 by criterion."""
    harmful: list[int] | None = None
    """The indices of the responses that the annotator flagged as harmful."""
    reason: str | None = None
    seconds: float | None = None
    submitted_at: str | None = None
    adjudicates: bool = False
    """Whether this answer was given to settle a disagreement, and so decides."""


class Comparison(Row):
    """Several answers to one prompt and every ranking of them, before anything is aggregated."""

    id: Id
    prompt: list[Message] = Field(min_length=1)
    responses: list[Response] = Field(min_length=2)
    rankings: list[Ranking] = []
    display_order: list[int] | None = None
    """Which response stands at each place of the annotator's page; None: derived from the id."""
    duplicate_of: str | None = None
    """The comparison that this one repeats in another order, to see whether annotators agree with themselves."""
    gold_ranks: list[int] | None = None
    """The known answer of a record that is there to check attention."""
    selection_probability: float | None = Field(default=None, gt=0, le=1)
    """With which probability this comparison was chosen to be asked about."""
    assigned_to: list[str] | None = None
    """The annotators who shall answer; None: whoever comes first."""

    @model_validator(mode="after")
    def _lists_fit(self) -> Self:
        k = len(self.responses)
        if self.prompt[-1].role == "assistant":
            raise ValueError("prompt: the last message is the assistant's; its answers stand in responses")
        if self.display_order is not None and sorted(self.display_order) != list(range(k)):
            raise ValueError(f"display_order: is no permutation of 0 to {k - 1}")
        if self.gold_ranks is not None and len(self.gold_ranks) != k:
            raise ValueError(f"gold_ranks: has {len(self.gold_ranks)} ranks for {k} responses")
        for i, ranking in enumerate(self.rankings):
            if ranking.ranks is None and ranking.status == "submitted":
                raise ValueError(f"rankings.{i}.ranks: a submitted ranking needs ranks")
            for name, values in (("ranks", ranking.ranks), ("ratings", ranking.ratings)):
                if values is not None and len(values) != k:
                    raise ValueError(f"rankings.{i}.{name}: has {len(values)} {name} for {k} responses")
            if any(not 0 <= index < k for index in ranking.harmful or []):
                raise ValueError(f"rankings.{i}.harmful: names a response that is not there")
        return self

    @property
    def is_probe(self) -> bool:
        """Whether it checks annotators (gold or duplicate) rather than asks for new preferences."""
        return self.duplicate_of is not None or self.gold_ranks is not None


def without_reasoning(message: Message) -> Message:
    """The same turn without its thinking part."""
    return message.model_copy(update={"reasoning_content": None}) if message.reasoning_content else message


@contextmanager
def said_of(row: Row) -> Iterator[None]:
    """Within it, what is wrong is said of the row's file and line."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{row.place}: {error}" if row.place else str(error)) from None


RowT = TypeVar("RowT", bound=Row)


def read_jsonl(path: Path, row_type: type[RowT]) -> list[RowT]:
    """Every row of a JSON Lines file; each knows its place in it.

    Raises:
        DataError: the file is missing, unreadable or empty, or a line is not what `row_type` expects; the
            message names file, line and field.
    """
    rows = []
    origin = origin_of(path)
    # Not splitlines(), which also splits at the U+2028 and U+0085 that a JSON string may hold as they are.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(row_type.model_validate(parse_json(line)))
        except ValidationError as error:
            raise DataError(f"{path}:{number}: {describe(error)}") from None
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}") from None
        rows[-1]._place = _Place(f"{origin}: row {number}" if origin else f"{path}:{number}")
    if not rows:
        raise DataError(
            f"{path}: holds no rows; it must hold at least one {row_type.__name__.lower()} a line"
        )
    return rows


ORIGINS = TypeAdapter(dict[str, str])
ORIGIN = ".origin"
"""What the name of a file of rows ends with that says, beside it, from which file and how they were made."""


def origin_of(path: Path) -> str:
    """The user's file of which `path` holds the rows, one for one; empty for a file that is the user's own."""
    return read_origin(path).get("file", "").partition("@sha256:")[0]


def read_origin(path: Path) -> dict[str, str]:
    """What the file beside a file of rows says of how they were made; empty where there is none.

    Raises:
        DataError: it says nothing of the kind.
    """
    beside = Path(f"{path}{ORIGIN}")
    try:
        return ORIGINS.validate_json(beside.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError):
        raise DataError(
            f"{beside}: is damaged; remove it and {path}, which accord made, and run this again"
        ) from None


def holds_comparisons(path: Path) -> bool:
    """Whether the first row of a file is a comparison; what else may be wrong with it is said by who reads it."""
    try:
        with path.open(encoding="utf-8") as file:
            return '"responses"' in next((line for line in file if line.strip()), "")
    except (OSError, UnicodeDecodeError):
        return False


def content_id(value: Any, digits: int = 12) -> str:
    """The first hex digits of the SHA-256 of a value's canonical JSON: equal values, equal ids, on any machine."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:digits]


def conversation_id(messages: Iterable[Message], digits: int = 64) -> str:
    """What identifies a prompt, or any conversation: two are one if they have the same turns, every one of them."""
    return content_id(messages_as_dicts(messages), digits)


def question_id(prompt: Iterable[Message]) -> str:
    """What prompts that ask the same have in common: words, but for case and white space, and no system messages."""
    return content_id(
        [[turn.role, " ".join(turn.text.casefold().split())] for turn in prompt if turn.role != "system"], 64
    )


def messages_as_dicts(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Messages in the plain form that chat templates and TRL take; a turn's weight is no part of what it says."""
    return [message.model_dump(exclude_none=True, exclude={"weight"}) for message in messages]
