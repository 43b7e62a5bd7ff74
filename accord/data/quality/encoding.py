"""Texts that were decoded wrongly on their way here, and characters that nobody sees."""

import re
from collections.abc import Sequence

from accord.data.quality.findings import Finding, needed, strings
from accord.records import Row

INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b\u2060\u202a-\u202e\u2066-\u2069\ufeff]"
    "|(?<![\U0001f3f4\U000e0000-\U000e007f])[\U000e0000-\U000e007f]+"
)
"""Control characters, spaces of no width, marks of direction and tags. Joiners (U+200C, U+200D), which scripts and
emoji need, are none, nor the tags of a flag."""


def damaged(rows: Sequence[Row]) -> list[Finding]:
    """Rows with text in a wrong encoding, by ftfy (`cafÃ©`), or with U+FFFD, which stands for what was lost."""
    found = []
    for i, row in enumerate(rows):
        for text in strings(row):
            if text.isascii():
                continue
            at = _first_difference(text, repaired(text, ["encoding"]))
            if at is None and "\ufffd" in text:
                at = text.index("\ufffd")
            if at is not None:
                found.append(Finding("encoding", i, _word(text, at)))
                break
    return found


def invisible(rows: Sequence[Row]) -> list[Finding]:
    """Rows with characters of `INVISIBLE`."""
    findings = []
    for i, row in enumerate(rows):
        codes = {f"U+{ord(found[0]):04X}" for text in strings(row) for found in INVISIBLE.findall(text)}
        if codes:
            findings.append(Finding("invisible", i, ", ".join(sorted(codes)[:5])))
    return findings


def repaired(text: str, kinds: Sequence[str]) -> str:
    """A text mended: `encoding` undoes what ftfy can undo, `invisible` leaves characters of `INVISIBLE` out."""
    if "encoding" in kinds and not text.isascii():
        text = needed("ftfy", "ftfy").fix_encoding(text)
    return INVISIBLE.sub("", text) if "invisible" in kinds else text


def _word(text: str, at: int) -> str:
    """What stands there between blanks, and no more: its neighbours may be personal."""
    return f"{text[:at].rpartition(' ')[2][-15:]}{text[at:].partition(' ')[0][:15]}".replace("\n", " ")


def _first_difference(one: str, other: str) -> int | None:
    if one == other:
        return None
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
