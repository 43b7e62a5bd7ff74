"""Texts as words, so that the same text written differently is the same, and how many words two texts differ in."""

import re
import unicodedata
from collections.abc import Sequence

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]")
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
"""Thai, Lao, Chinese and Japanese have no spaces between words: every character is one."""
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")


def words_of(text: str) -> list[str]:
    """A text's words as they are compared: NFKC, case folded, without punctuation and invisible characters."""
    if not text.isascii():
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
        text = unicodedata.normalize("NFKC", text.casefold())
    return _WORD.findall(text.lower())


def fewest_edits(pattern: Sequence[int], text: Sequence[int]) -> tuple[int, int]:
    """How many words must be changed, dropped or added to find the pattern in some part of the text, and where it ends.

    Bit-parallel (Myers 1999, https://doi.org/10.1145/316542.316550): a column of the edit-distance table is the bits
    of two integers, which say where it rises and where it falls.
    """
    if not pattern:
        return 0, 0
    where: dict[int, int] = {}
    for i, word in enumerate(pattern):
        where[word] = where.get(word, 0) | 1 << i
    every, last = (1 << len(pattern)) - 1, 1 << len(pattern) - 1
    rises, falls, edits = every, 0, len(pattern)
    best = edits, 0
    for end, word in enumerate(text, start=1):
        equal = where.get(word, 0)
        vertical = equal | falls
        horizontal = (((equal & rises) + rises) ^ rises) | equal
        up, down = falls | (every & ~(horizontal | rises)), rises & horizontal
        edits += bool(up & last) - bool(down & last)
        up, down = (up << 1) & every, (down << 1) & every
        rises, falls = down | (every & ~(vertical | up)), up & vertical
        best = min(best, (edits, end))
    return best
