"""Which of some short texts occur in a long stream of others: verbatim, with a few words changed, or reordered.

    found = find_overlaps(["Why do leaves turn red in autumn before they fall?"], training)
    found[0]        # None, or the training row that is most like the text, how, and how much of it

The items are indexed and the stream is read once, so memory depends on the items alone. Nothing is sampled: each item
is compared with every row that could be like it. MinHash (Broder 1997) would only estimate the same shares, and a
Jaccard similarity is small where a short item stands inside a long row, so what is measured is the item's share in the
row. Texts are compared as words: NFKC, case folded, without punctuation.

How an item is found, the first that applies:

- exact: at least half of its sequences of 13 words occur in the rows (GPT-3, appendix C,
  https://arxiv.org/abs/2005.14165), or all of it stands in one row; an item of fewer than 5 words must be a whole turn.
- edited: some part of a row differs from it in at most one word of eight (changed, dropped or added);
- reordered: three quarters of its sequences of 3 words stand near each other in one row, in any order.

Items of fewer than 8 words are found verbatim only: with one word changed they are other questions.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

LONG_SEQUENCE = 13
"""Words of the sequences that the exact rule counts."""
EXACT_SHARE = 0.5
"""Of an item's long sequences: an item whose template alone is in the training rows is not contaminated."""
WORDS_PER_EDIT = 8
REORDERED_SHARE = 0.75
SHORTEST_EDITED = 8
SHORTEST_INSIDE = 5
"""Words of the shortest items that count when they are edited, and when they stand inside a longer turn."""
ROOM = 2
"""An item's words are looked for in windows that are so many times as long as it."""

_SHINGLE = 3
_BITS = 21
"""For a word's number: three of them fit into 64 bits. Items have far fewer than two million different words."""
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]")
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
"""Thai, Lao, Chinese and Japanese have no spaces between words: every character is one."""
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")

How = Literal["exact", "edited", "reordered"]


@dataclass(frozen=True)
class TrainingText:
    """One row of training data: its turns, and where it stands."""

    turns: tuple[str, ...]
    source: str
    line: int


@dataclass(frozen=True)
class Overlap:
    """The row that is most like an item."""

    how: How
    share: float
    """exact: of the item's sequences of 13 words, in all rows together; edited: of its words; reordered: of its
    sequences of 3 words."""
    source: str
    line: int
    text: str
    """The words of the row that are like the item's, as they were compared."""


def rank(how: How, share: float) -> tuple[int, float]:
    """The larger, the stricter the way in which something was found, and then the more of it."""
    return ("reordered", "edited", "exact").index(how), share


def words_of(text: str) -> list[str]:
    """A text's words as they are compared: NFKC, case folded, without punctuation and invisible characters."""
    if not text.isascii():
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
        text = unicodedata.normalize("NFKC", text.casefold())
    return _WORD.findall(text.lower())


def find_overlaps(items: Sequence[str], training: Iterable[TrainingText]) -> list[Overlap | None]:
    """For each item what it has in common with the training rows; None where that is too little to matter.

    Args:
        items: held in memory.
        training: read once, and not kept.
    """
    index = _Index(items)
    for text in training:
        index.compare(text)
    return index.found()


class _Index:
    """The items' words as numbers, and which of their sequences have been seen."""

    def __init__(self, items: Sequence[str]):
        self.numbers: dict[str, int] = {}
        self.items = [
            tuple(self.numbers.setdefault(word, len(self.numbers) + 1) for word in words_of(item))
            for item in items
        ]
        self.best: list[Overlap | None] = [None] * len(items)
        self.whole_turns: dict[tuple[int, ...], list[int]] = {}
        for i, item in enumerate(self.items):
            if 0 < len(item) < SHORTEST_INSIDE:
                self.whole_turns.setdefault(item, []).append(i)
        self.first_seen: dict[bytes, tuple[str, int] | None] = {
            sequence: None for item in self.items for sequence in _long_sequences(item)
        }
        self._index_shingles()

    def _index_shingles(self) -> None:
        """Enter every item under its rarest shingles only: so many that a row which has as many of them as it needs
        must have one of these (prefix filter, Chaudhuri et al. 2006). So a template's shingles cost nothing."""
        keys = [np.unique(_shingles(np.array(item, np.int64))) for item in self.items]
        keys = [
            each if len(item) >= SHORTEST_INSIDE else each[:0]
            for item, each in zip(self.items, keys, strict=True)
        ]
        self.table, counts = np.unique(np.concatenate([*keys, np.empty(0, np.int64)]), return_counts=True)
        self.shingles = [np.searchsorted(self.table, each) for each in keys]
        self.needed = [_needed(len(item), len(each)) for item, each in zip(self.items, keys, strict=True)]
        entered = [
            each[np.argsort(counts[each], kind="stable")][: len(each) - needed + 1]
            for each, needed in zip(self.shingles, self.needed, strict=True)
        ]
        shingles = np.concatenate([*entered, np.empty(0, np.int64)])
        order = np.argsort(shingles, kind="stable")
        self.entries = np.repeat(np.arange(len(entered)), [len(each) for each in entered])[order]
        self.starts = np.searchsorted(shingles[order], np.arange(len(self.table) + 1))

    def compare(self, text: TrainingText) -> None:
        """Note what one training row has in common with the items."""
        turns = [words_of(turn) for turn in text.turns]
        for turn in turns:
            if len(turn) < SHORTEST_INSIDE and self.whole_turns:
                for i in self.whole_turns.get(tuple(self.numbers.get(word, 0) for word in turn), ()):
                    self._note(i, Overlap("exact", 1.0, text.source, text.line, " ".join(turn)))
        words = [word for turn in turns for word in turn]
        if len(words) < _SHINGLE or not len(self.table):
            return
        numbers = np.array([self.numbers.get(word, 0) for word in words], np.int64)
        keys = _shingles(numbers)
        places = np.searchsorted(self.table, keys)
        known = self.table[np.minimum(places, len(self.table) - 1)] == keys
        at = np.flatnonzero(known)
        if not len(at):
            return
        self._see_long_sequences(numbers, known, text)
        shingles = places[at]
        rare = np.unique(shingles)
        rare = rare[self.starts[rare + 1] > self.starts[rare]]
        if not len(rare):
            return
        entries = [self.entries[self.starts[each] : self.starts[each + 1]] for each in rare]
        for i in np.unique(np.concatenate(entries)).tolist():
            best = self.best[i]
            if best is None or best.how != "exact":
                self._compare_with(i, words, numbers, at, shingles, text)

    def _see_long_sequences(self, numbers: np.ndarray, known: np.ndarray, text: TrainingText) -> None:
        inner = LONG_SEQUENCE - _SHINGLE + 1
        if len(known) < inner:
            return
        sums = np.concatenate([[0], np.cumsum(known)])
        for start in np.flatnonzero(sums[inner:] - sums[:-inner] == inner).tolist():
            sequence = numbers[start : start + LONG_SEQUENCE].tobytes()
            if self.first_seen.get(sequence, text) is None:
                self.first_seen[sequence] = (text.source, text.line)

    def _compare_with(
        self, i: int, words: list[str], numbers: np.ndarray, at: np.ndarray, shingles: np.ndarray, text: TrainingText
    ) -> None:  # fmt: skip
        item, own, needed = self.items[i], self.shingles[i], self.needed[i]
        shared = np.isin(shingles, own)
        if shared.sum() < needed:
            return
        count, start, end = _densest(at[shared].tolist(), shingles[shared].tolist(), ROOM * len(item))
        if count < needed:
            return
        # An edit at the window's edge may stand outside of it.
        start, end = max(0, start - len(item)), min(len(words), end + _SHINGLE - 1 + len(item))
        edits, stop = fewest_edits(item, numbers[start:end].tolist())
        matching = words[max(start, start + stop - len(item) - edits) : start + stop]
        how: How
        if edits == 0:
            how, share = "exact", 1.0
        elif len(item) < SHORTEST_EDITED:
            return
        elif edits * WORDS_PER_EDIT <= len(item):
            how, share = "edited", 1 - edits / len(item)
        elif count >= REORDERED_SHARE * len(own):
            how, share, matching = "reordered", count / len(own), words[start:end]
        else:
            return
        self._note(i, Overlap(how, share, text.source, text.line, " ".join(matching)))

    def _note(self, i: int, overlap: Overlap) -> None:
        best = self.best[i]
        if best is None or rank(overlap.how, overlap.share) > rank(best.how, best.share):
            self.best[i] = overlap

    def found(self) -> list[Overlap | None]:
        """The best of every item, with the long sequences that all rows have together."""
        words = {number: word for word, number in self.numbers.items()}
        for i, item in enumerate(self.items):
            sequences = _long_sequences(item)
            rows = [row for row in map(self.first_seen.__getitem__, sequences) if row is not None]
            if rows and len(rows) >= EXACT_SHARE * len(sequences):
                (source, line), _ = Counter(rows).most_common(1)[0]
                seen = [self.first_seen[sequence] == (source, line) for sequence in sequences]
                covered = sorted(
                    {
                        place
                        for start, hit in enumerate(seen)
                        if hit
                        for place in range(start, start + LONG_SEQUENCE)
                    }
                )
                matching = " ".join(words[item[place]] for place in covered)
                self._note(i, Overlap("exact", len(rows) / len(sequences), source, line, matching))
        return self.best


def _needed(words: int, shingles: int) -> int:
    """How many of an item's different shingles a row has at least, if it has the item: an edit ends three of them at
    most (Ukkonen 1992)."""
    if words < SHORTEST_EDITED:
        return shingles
    edited = shingles - _SHINGLE * (words // WORDS_PER_EDIT)
    return max(1, min(edited, int(np.ceil(REORDERED_SHARE * shingles))))


def _shingles(numbers: np.ndarray) -> np.ndarray:
    """Each sequence of three word numbers as one; -1 where a word is none of the items'."""
    if len(numbers) < _SHINGLE:
        return np.empty(0, np.int64)
    first, second, third = numbers[:-2], numbers[1:-1], numbers[2:]
    keys = (first << 2 * _BITS) | (second << _BITS) | third
    return np.where((first > 0) & (second > 0) & (third > 0), keys, -1)


def _long_sequences(item: tuple[int, ...]) -> list[bytes]:
    starts = range(len(item) - LONG_SEQUENCE + 1)
    return [np.array(item[start : start + LONG_SEQUENCE], np.int64).tobytes() for start in starts]


def _densest(places: list[int], shingles: list[int], room: int) -> tuple[int, int, int]:
    """The window of `room` places with the most different shingles: how many, its first place, and its end."""
    inside: Counter[int] = Counter()
    best, left = (0, 0, 0), 0
    for right, (place, shingle) in enumerate(zip(places, shingles, strict=True)):
        inside[shingle] += 1
        while places[left] <= place - room:
            inside[shingles[left]] -= 1
            if not inside[shingles[left]]:
                del inside[shingles[left]]
            left += 1
        if len(inside) > best[0]:
            best = len(inside), places[left], places[right] + 1
    return best


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
