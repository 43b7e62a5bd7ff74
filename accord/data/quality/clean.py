"""Rows repaired, redacted and left out, as a user asked: what `accord data convert` does, and nothing by itself.

    cleaner = Cleaner(Wishes.of(drop="near_duplicates,loss>4", redact="pii"))
    for rows, places in parts:              # of a file, or of several; a few thousand rows at a time
        part = cleaner.take(rows, places)   # part.rows stay, part.dropped are left out, with the reasons

What becomes of a row does not depend on how the rows are cut into parts.
"""

import math
import operator
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from accord.data.quality.encoding import repaired
from accord.data.quality.findings import Finding, with_texts
from accord.data.quality.held_out import HeldOut
from accord.data.quality.kinds import AGAINST, KINDS, Finder, chosen
from accord.data.quality.language import languages
from accord.data.quality.near import NearDuplicates
from accord.data.quality.personal import PLACEHOLDERS, redacted
from accord.data.reading import Reading
from accord.errors import DataError, UsageError
from accord.records import Row
from accord.text_files import describe

LANGUAGE = re.compile(r"language(!?=)([a-z]{2,3}|unknown)")
NUMBER = re.compile(r"(\w+) *(<=|>=|<|>) *([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")
COMPARED = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass
class Wishes:
    """What a user asked for."""

    drop: list[str] = field(default_factory=list)
    """Kinds of `KINDS`, and such as `language!=en`, `language=de` or, of a column of numbers, `loss>4`."""
    redact: list[str] = field(default_factory=list)
    repair: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, drop: str = "", redact: str = "", repair: str = "", against: bool = False) -> "Wishes":
        """From comma-separated lists; `against` says whether anything is held out.

        Raises:
            UsageError: one names what there is not, or nothing is held out and rows near to that are to be dropped.
        """
        names = _names(drop)
        own = [name for name in names if LANGUAGE.fullmatch(name) or NUMBER.fullmatch(name)]
        kinds = chosen([name for name in names if name not in own], list(KINDS), "--drop")
        for kind in AGAINST:
            if kind in kinds and not against:
                raise UsageError(f"--drop {kind}: say with --against FILE which questions are held out")
        return cls(
            [*kinds, *own],
            chosen(_names(redact), list(PLACEHOLDERS), "--redact"),
            chosen(_names(repair), ["encoding", "invisible"], "--repair"),
        )


@dataclass
class Part:
    """What became of some rows."""

    rows: list[Row]
    """Those that stay."""
    places: list[str]
    dropped: list[dict[str, Any]]
    """Each with its place, the reasons, and the row as it was."""


@dataclass
class Cleaned:
    """What became of the rows of a file."""

    dropped: list[dict[str, Any]]
    """As `Part.dropped`."""
    reasons: dict[str, int]
    """Rows by reason; one row may have several."""
    redacted: int = 0
    repaired: int = 0
    """Rows, among those that stay."""


class Cleaner:
    """Repairs, then redacts, then leaves out, part by part."""

    def __init__(
        self, wishes: Wishes, held_out: HeldOut | None = None, near: NearDuplicates | None = None
    ) -> None:
        """Nothing is read yet.

        Args:
            wishes: what is to be done.
            held_out: what no row should hold.
            near: the rows of the files before; those of these are added.

        Raises:
            UsageError: a library is missing.
        """
        self._wishes = wishes
        self._finder = Finder([name for name in wishes.drop if name in KINDS], near, held_out)
        self.kept = 0
        self.dropped = 0
        self.redacted = 0
        self.repaired = 0
        """Rows so far; the last two are among those that stay."""
        self.reasons: Counter[str] = Counter()
        """Dropped rows by reason; one row may have several."""

    @property
    def looks_first(self) -> bool:
        """Whether all rows must go through `look` before the first goes through `take`."""
        return self._finder.looks_first

    def look(self, rows: Sequence[Row]) -> None:
        """Learn what is usual among all rows; does nothing where no wish depends on that."""
        if self.looks_first:
            self._finder.look(self._changed(rows)[0])

    def take(self, rows: Sequence[Row], places: Sequence[str]) -> Part:
        """The next rows, with the place of each.

        Raises:
            DataError: a row has no number in a column that is to be compared with one.
            UsageError: a library is missing.
        """
        changed, changes, reasons = self._changed(rows)
        for finding in [*self._finder.find(changed, places), *self._of_wishes(changed, places)]:
            reasons.setdefault(finding.row, []).append(finding)
        self.reasons.update(what for found in reasons.values() for what in {each.what for each in found})
        dropped = [
            {
                "place": places[i],
                "reasons": [{"what": each.what, "detail": each.detail} for each in reasons[i]],
                "row": rows[i].model_dump(exclude_unset=True),
            }
            for i in sorted(reasons)
        ]
        stay = [i for i in range(len(rows)) if i not in reasons]
        done = Counter(kind for i in stay for kind in changes.get(i, ()))
        self.redacted += done["redact"]
        self.repaired += done["repair"]
        self.kept += len(stay)
        self.dropped += len(dropped)
        return Part([changed[i] for i in stay], [places[i] for i in stay], dropped)

    def check_left(self, name: str, before: int = 0) -> None:
        """Refuse to leave nothing of what is called so, of which no row was taken while `kept` was `before`.

        Raises:
            DataError: all rows were dropped.
        """
        if self.dropped and self.kept == before:
            listed = ", ".join(f"{count} for {what}" for what, count in self.reasons.most_common())
            raise DataError(f"{name}: no row would be left ({listed}); drop less")

    def _of_wishes(self, rows: Sequence[Row], places: Sequence[str]) -> Iterator[Finding]:
        """What is said by language and by columns of numbers."""
        for name in self._wishes.drop:
            if match := LANGUAGE.fullmatch(name):
                equal, wanted = match.group(1) == "=", match.group(2)
                for i, found in enumerate(languages(rows)):
                    if (found == wanted) == equal and (equal or found != "unknown"):
                        yield Finding(name, i, found)
            elif match := NUMBER.fullmatch(name):
                column, sign, bound = match.groups()
                for i, (row, place) in enumerate(zip(rows, places, strict=True)):
                    value = _number(row, column, place)
                    if COMPARED[sign](value, float(bound)):
                        yield Finding(name, i, f"{column} is {value:g}")

    def _changed(
        self, rows: Sequence[Row]
    ) -> tuple[list[Row], dict[int, list[str]], dict[int, list[Finding]]]:
        """The rows repaired and redacted, what was done to which, and those that cannot stand as they then are."""
        wishes = self._wishes
        found: list[Row] = []
        changes: dict[int, list[str]] = {}
        reasons: dict[int, list[Finding]] = {}
        if not (wishes.repair or wishes.redact):
            return list(rows), changes, reasons
        for i, row in enumerate(rows):
            columns = before = row.model_dump(exclude_unset=True)
            if wishes.repair:
                after = with_texts(columns, lambda text: repaired(text, wishes.repair))
                changes[i] = ["repair"] * (after != columns)
                columns = after
            if wishes.redact:
                after = with_texts(columns, lambda text: redacted(text, wishes.redact))
                changes[i] = [*changes.get(i, []), *["redact"] * (after != columns)]
                columns = after
            if columns != before:
                try:
                    row = type(row).model_validate(columns)
                except (
                    ValidationError
                ) as error:  # for instance, answers that differed in what was redacted only
                    reasons[i] = [Finding("invalid_when_changed", i, describe(error))]
            found.append(row)
        return found, changes, reasons


def clean(reading: Reading, wishes: Wishes, held_out: HeldOut | None = None) -> Cleaned:
    """Clean a whole file; `reading` then holds the rows that stay.

    Raises:
        DataError: no row would stay, or one has no number in a column that is to be compared with one.
        UsageError: a library is missing.
    """
    cleaner = Cleaner(wishes, held_out)
    cleaner.look(reading.rows)
    part = cleaner.take(reading.rows, reading.places)
    cleaner.check_left(reading.name)
    reading.rows, reading.places = part.rows, part.places
    return Cleaned(part.dropped, dict(cleaner.reasons), cleaner.redacted, cleaner.repaired)


def _number(row: Row, column: str, place: str) -> float:
    value = getattr(row, column, None) if column in row.model_fields_set else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        says = f"is {value!r}"[:60] if column in row.model_fields_set else "is missing"
        raise DataError(
            f"{place}: {column}: {says}, and must be a number to be compared; mend the row, or do not drop by {column}"
        )
    return float(value)


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]
