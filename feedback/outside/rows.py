"""What annotators said elsewhere, as comparisons.

A file (JSON Lines, JSON, CSV or Parquet) holds comparisons in accord's own form, or one row an annotator and record, in
any convention of preferences or rankings that accord reads, or labels of single answers:

    {"prompt": "Name a prime.", "responses": ["Nine.", "Seven."], "ranks": [2, 1], "annotator": "ann"}
    {"prompt": "Name a prime.", "response_a": "Nine.", "response_b": "Seven.", "winner": "tie", "annotator": "bob"}
    {"prompt": "Name a prime.", "chosen": "Seven.", "rejected": "Nine.", "annotator": "cyd"}
    {"prompt": "Name a prime.", "completion": "Seven.", "label": true, "annotator": "ann"}

Rows about the same prompt and the same answers are rankings of one comparison, in whatever order each names the
answers. Who ranks one a second time repeats it, as in a duplicate of ours: it tells how far a person agrees with
himself. Labels of one annotator for several answers to a prompt are a ranking of these, with ties; an answer that is
the only one to its prompt cannot be compared, and is left out.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from accord.data.files import Fault, RawRow, raw_rows
from accord.data.reading import RowReader
from accord.errors import DataError
from accord.records import (
    Comparison,
    Message,
    Preference,
    Ranking,
    Response,
    UnpairedFeedback,
    content_id,
    conversation_id,
)
from accord.text_files import describe

WHO = (
    "annotator", "annotator_id", "worker", "worker_id", "rater", "rater_id", "labeler", "labeler_id", "labeller",
    "user_id",
)  # fmt: skip
"""Columns that may say who ranked."""
CHOICES = ("winner", "preference", "better_response_id")
TIES = frozenset({"tie", "tied", "equal", "both", "neither", "draw", "same", "tie (bothbad)", "0.5"})
GOOD, BAD = {"label": 5}, {"label": 1}
"""A label as a rating, from which labels of single answers follow again (`feedback.belief.labels`)."""


@dataclass
class _Said:
    """What one annotator said of the answers to a prompt."""

    place: str
    who: str
    prompt: list[Message]
    texts: list[str]
    ranks: list[int]
    ratings: list[dict[str, int]] | None = None
    id: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


def read_outside(file: str) -> tuple[list[Comparison], int]:
    """The comparisons of a file with all their rankings, and how many labelled answers could not be compared.

    Raises:
        DataError: a row is in no convention, does not say who ranked, or ranks nothing; or there is no ranking.
    """
    whole: list[Comparison] = []
    said: list[_Said] = []
    labels: dict[tuple[str, str], list[tuple[RawRow, UnpairedFeedback]]] = defaultdict(list)
    reader, label_reader = RowReader(file, Preference), RowReader(file, UnpairedFeedback)
    for raw in raw_rows(file):
        if isinstance(raw, Fault):
            raise DataError(f"{raw.place}: {raw.message}")
        try:
            if "rankings" in raw.columns:
                whole.append(Comparison.model_validate(raw.columns))
                continue
            who = _who(raw)
            if "label" in raw.columns and "chosen" not in raw.columns:
                row = label_reader.row_of(raw)
                assert isinstance(row, UnpairedFeedback)
                labels[who, conversation_id(row.prompt)].append((raw, row))
            else:
                said.append(_ranking(raw, who, reader))
        except ValidationError as error:
            raise DataError(f"{raw.place}: {describe(error)}") from None
        except ValueError as error:
            raise DataError(f"{raw.place}: {error}") from None
    left_out = 0
    for (who, _), rows in labels.items():
        by_text = {_text(row.completion): row for _, row in rows}
        if len(by_text) < 2:
            left_out += 1
            continue
        marks = [row.label for row in by_text.values()]
        first = rows[0][1]
        said.append(
            _Said(
                rows[0][0].place, who, first.prompt, list(by_text), [1 if good else 2 for good in marks],
                [dict(GOOD if good else BAD) for good in marks],
            )
        )  # fmt: skip
    comparisons = [*whole, *_grouped(said, {each.id for each in whole})]
    if not any(comparison.rankings for comparison in comparisons):
        raise DataError(
            f"{file}: holds no ranking"
            + (f"; {left_out} labels are of the only answer to their prompt" if left_out else "")
        )
    return comparisons, left_out


def _who(raw: RawRow) -> str:
    for name in WHO:
        if raw.columns.get(name) not in (None, ""):
            return str(raw.columns[name])
    raise DataError(
        f"{raw.place}: does not say who ranked; name the annotator in a column 'annotator' (or {', '.join(WHO[1:4])})"
    )


def _ranking(raw: RawRow, who: str, reader: RowReader) -> _Said:
    """One row in any convention of preferences or rankings."""
    columns = {name: value for name, value in raw.columns.items() if name not in WHO}
    choice = next((name for name in CHOICES if str(columns.get(name, "")).strip().casefold() in TIES), None)
    if choice:  # which of two is named does not matter then
        columns[choice] = "0"
    row = reader.row_of(RawRow(raw.place, columns))
    id_, more = getattr(row, "id", None), dict(row.model_extra or {})
    if isinstance(row, Comparison):
        if not row.rankings or row.rankings[0].ranks is None:
            raise DataError(f"{raw.place}: has neither ranks nor scores")
        given_id = id_ if "id" in columns else None
        texts = [response.text for response in row.responses]
        return _Said(raw.place, who, row.prompt, texts, row.rankings[0].ranks, None, given_id, more)
    assert isinstance(row, Preference)
    ranks = [1, 1] if choice else [1, 2]
    return _Said(raw.place, who, row.prompt, [_text(row.chosen), _text(row.rejected)], ranks, None, id_, more)


def _text(turns: Sequence[Message]) -> str:
    return "\n\n".join(turn.text for turn in turns)


def _grouped(said: Sequence[_Said], taken: set[str]) -> list[Comparison]:
    """One comparison for each prompt with the same answers; what an annotator says of it again goes to a duplicate."""
    groups: dict[tuple[str, tuple[str, ...]], list[_Said]] = defaultdict(list)
    for each in said:
        groups[conversation_id(each.prompt), tuple(sorted(each.texts))].append(each)
    found: list[Comparison] = []
    for (prompt, texts), given in groups.items():
        id_ = given[0].id
        if id_ is None or id_ in taken:
            id_ = content_id([prompt, texts])
        taken.add(id_)
        # an order that says nothing of which answer is preferred
        order = sorted(given[0].texts, key=lambda text: content_id(text, 64))
        rounds: dict[str, int] = defaultdict(int)
        rankings: dict[int, list[Ranking]] = defaultdict(list)
        for each in given:
            rankings[rounds[each.who]].append(_in_order(each, order))
            rounds[each.who] += 1
        for number, its in sorted(rankings.items()):
            found.append(
                Comparison(
                    id=id_ if number == 0 else f"{id_}#{number + 1}", prompt=given[0].prompt,
                    responses=[Response(text=text) for text in order], rankings=its,
                    duplicate_of=id_ if number else None, **_unknown(given[0].more),
                )
            )  # fmt: skip
    return found


def _in_order(said: _Said, order: Sequence[str]) -> Ranking:
    """The ranking with its lists in the comparison's order of the answers."""
    left = list(range(len(said.texts)))
    places = []
    for text in order:
        place = next(i for i in left if said.texts[i] == text)
        left.remove(place)
        places.append(place)
    try:
        return Ranking(
            annotator=said.who, ranks=[said.ranks[i] for i in places],
            ratings=[said.ratings[i] for i in places] if said.ratings else None,
        )  # fmt: skip
    except IndexError:
        raise DataError(f"{said.place}: has {len(said.ranks)} ranks for {len(said.texts)} answers") from None


def _unknown(more: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in more.items() if name not in Comparison.model_fields}
