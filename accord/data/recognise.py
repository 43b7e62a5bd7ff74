"""Which convention a row is in, and what it is in accord's own form.

A convention is recognised by its columns, never by a guess: where two readings are possible, the row is refused with
both. `columns` (docs/bring-your-data.md) says which column is what where names alone do not. Columns that no convention
uses stay as they are.
"""

from collections.abc import Mapping
from typing import Any

from accord.data.conventions import (
    ANSWERED,
    ANSWERS,
    ASKED,
    PARTS,
    RANKS,
    SCORES,
    SYSTEM,
    TURNS,
    Columns,
    Convention,
)
from accord.data.conversations import conversations, unpaired
from accord.data.preferences import comparisons, preferences
from accord.errors import UsageError
from accord.records import Comparison, Preference, Row, UnpairedFeedback


def mapped(row: Columns, columns: Mapping[str, str], name: str) -> dict[str, Any]:
    """A row with the columns that the user named under the names of the parts that they are.

    Of the columns that were not named, those that would be taken for a part are put aside as `column_<name>`.

    Raises:
        UsageError: a part that there is not.
    """
    if unknown := sorted(set(columns) - set(PARTS)):
        raise UsageError(f"columns of {name}: '{unknown[0]}' is no part of a row; {', '.join(PARTS)} are")
    if not columns:
        return dict(row)
    known = {*PARTS, *TURNS, *ASKED, *ANSWERED, *ANSWERS, *RANKS, *SCORES, *SYSTEM}
    renamed = {part: row[column] for part, column in columns.items() if column in row}
    rest = {key: value for key, value in row.items() if key not in columns.values()}
    return renamed | {f"column_{key}" if key in known else key: value for key, value in rest.items()}


def recognise(row: Columns, wanted: type[Row]) -> Convention | None:
    """The convention of a row that shall give a `wanted`; None where it is in none that accord knows.

    Raises:
        AmbiguousError: two readings are possible; the message names both.
    """
    if wanted is Preference:
        return preferences(row)
    if wanted is Comparison:
        return comparisons(row)
    if wanted is UnpairedFeedback:
        return unpaired(row)
    return conversations(row, wanted)
