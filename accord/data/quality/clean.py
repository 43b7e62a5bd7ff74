"""Rows repaired, redacted and left out, as a user asked: what `accord data convert` does, and nothing by itself."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from accord.data.quality.encoding import repaired
from accord.data.quality.findings import Finding, with_texts
from accord.data.quality.kinds import KINDS, chosen, find
from accord.data.quality.language import languages
from accord.data.quality.near import HeldOut
from accord.data.quality.personal import PLACEHOLDERS, redacted
from accord.data.reading import Reading
from accord.errors import DataError, UsageError
from accord.records import Row, describe

LANGUAGE = re.compile(r"language(!?=)([a-z]{2,3}|unknown)")


@dataclass
class Wishes:
    """What a user asked for."""

    drop: list[str] = field(default_factory=list)
    """Kinds of `KINDS`, and such as `language!=en` or `language=de`."""
    redact: list[str] = field(default_factory=list)
    repair: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, drop: str, redact: str, repair: str, against: bool) -> "Wishes":
        """From comma-separated lists.

        Raises:
            UsageError: one names what there is not, or `near_heldout` is to be dropped and there is no held-out file.
        """
        names = _names(drop)
        spoken = [name for name in names if LANGUAGE.fullmatch(name)]
        kinds = chosen([name for name in names if name not in spoken], list(KINDS), "--drop")
        if "near_heldout" in kinds and not against:
            raise UsageError("--drop near_heldout: say with --against FILE which questions are held out")
        return cls(
            [*kinds, *spoken],
            chosen(_names(redact), list(PLACEHOLDERS), "--redact"),
            chosen(_names(repair), ["encoding", "invisible"], "--repair"),
        )


@dataclass
class Cleaned:
    """What became of the rows of a file."""

    dropped: list[dict[str, Any]]
    """Each with its place, the reasons, and the row as it was."""
    reasons: dict[str, int]
    """Rows by reason; one row may have several."""
    redacted: int = 0
    repaired: int = 0
    """Rows, among those that stay."""


def clean(reading: Reading, wishes: Wishes, held_out: HeldOut | None = None) -> Cleaned:
    """Repair, then redact, then leave out; `reading` holds the rows that stay.

    Raises:
        DataError: no row would stay.
        UsageError: a library is missing.
    """
    as_read = reading.rows
    rows, changes, reasons = _changed(as_read, wishes)
    for finding in find(rows, reading.places, _kinds(wishes.drop), held_out=held_out):
        reasons.setdefault(finding.row, []).append(finding)
    for name in wishes.drop:
        if match := LANGUAGE.fullmatch(name):
            equal, wanted = match.group(1) == "=", match.group(2)
            for i, found in enumerate(languages(rows)):
                if (found == wanted) == equal and (equal or found != "unknown"):
                    reasons.setdefault(i, []).append(Finding(name, i, found))
    counts = Counter(what for found in reasons.values() for what in {each.what for each in found})
    if as_read and len(reasons) == len(as_read):
        listed = ", ".join(f"{count} for {what}" for what, count in counts.most_common())
        raise DataError(f"{reading.name}: no row would be left ({listed}); drop less")
    dropped = [
        {
            "place": reading.places[i],
            "reasons": [{"what": each.what, "detail": each.detail} for each in reasons[i]],
            "row": as_read[i].model_dump(exclude_unset=True),
        }
        for i in sorted(reasons)
    ]
    stay = [i for i in range(len(rows)) if i not in reasons]
    reading.rows, reading.places = [rows[i] for i in stay], [reading.places[i] for i in stay]
    done = Counter(kind for i in stay for kind in changes.get(i, ()))
    return Cleaned(dropped, dict(counts), done["redact"], done["repair"])


def _changed(
    rows: Sequence[Row], wishes: Wishes
) -> tuple[list[Row], dict[int, list[str]], dict[int, list[Finding]]]:
    """The rows repaired and redacted, what was done to which, and those that cannot stand as they then are."""
    found: list[Row] = []
    changes: dict[int, list[str]] = {}
    reasons: dict[int, list[Finding]] = {}
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
            except ValidationError as error:  # for instance, answers that differed in what was redacted only
                reasons[i] = [Finding("invalid_when_changed", i, describe(error))]
        found.append(row)
    return found, changes, reasons


def _kinds(drop: Sequence[str]) -> list[str]:
    return [name for name in drop if name in KINDS]


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]
