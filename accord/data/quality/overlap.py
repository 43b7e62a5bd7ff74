"""Which of some short texts occur in a long stream of others: verbatim, with a few words changed, or reordered.

    found = find_overlaps(["Why do leaves turn red in autumn before they fall?"], training)
    found[0]        # None, or the training row that is most like the text, how, and how much of it

    found = RowOverlaps(["Why do leaves ..."]).of(text)         # of one row alone: its items, and how

The items are indexed and the stream is read once, so memory depends on the items alone. Nothing is sampled: each item
is compared with every row that could be like it. MinHash (Broder 1997) would only estimate the same shares; its LSH
index is slower here and misses some edited items (benchmarks/contamination.py). And a Jaccard similarity is small where
a short item stands inside a long row, so what is measured is the item's share in the row. Texts are compared as words:
NFKC, case folded, without punctuation.

How an item is found, the first that applies:

- exact: at least half of its sequences of 13 words occur in the rows (GPT-3, appendix C,
  https://arxiv.org/abs/2005.14165), or all of it stands in one row; an item of fewer than 5 words must be a whole turn.
- edited: some part of a row differs from it in at most one word of every eight (changed, dropped or added); what is
  left of an item of more than 16 words counts as another eight;
- reordered: three quarters of its sequences of 3 words stand near each other in one row, in any order.

Items of fewer than 8 words are found verbatim only: with one word changed they are other questions.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
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


@dataclass(frozen=True)
class _Item:
    """An item's words as numbers."""

    words: tuple[int, ...]
    distinct: frozenset[int]
    shingles: frozenset[int]
    """Their places in the index's table."""

    @classmethod
    def of(cls, words: tuple[int, ...], shingles: Sequence[int]) -> "_Item":
        return cls(words, frozenset(words), frozenset(shingles))

    @property
    def allowed_edits(self) -> int:
        if len(self.words) < SHORTEST_EDITED:
            return 0
        return 1 if len(self.words) < 2 * WORDS_PER_EDIT else math.ceil(len(self.words) / WORDS_PER_EDIT)

    @property
    def least_edited(self) -> int:
        """How many of the shingles a row with an edited copy has: an edit ends three at most (Ukkonen 1992)."""
        return max(1, len(self.shingles) - _SHINGLE * self.allowed_edits)

    @property
    def least_reordered(self) -> int:
        share = REORDERED_SHARE if len(self.words) >= SHORTEST_EDITED else 1
        return max(1, math.ceil(share * len(self.shingles)))


@dataclass(frozen=True)
class _Row:
    """A training row: all its words, as numbers too (0 for words that no item has), and its shingles of the table."""

    text: TrainingText
    words: list[str]
    numbers: list[int]
    distinct: set[int]
    places: list[int]
    shingles: list[int]
    distinct_shingles: set[int]


class _Index:
    """The items, and what has been seen of them."""

    def __init__(self, texts: Sequence[str]):
        self.numbers: dict[str, int] = {}
        items = [
            tuple(self.numbers.setdefault(word, len(self.numbers) + 1) for word in words_of(text))
            for text in texts
        ]
        keys = [
            np.unique(_shingles(np.array(item if len(item) >= SHORTEST_INSIDE else (), np.int64)))
            for item in items
        ]
        self.table, counts = np.unique(np.concatenate([*keys, np.empty(0, np.int64)]), return_counts=True)
        shingles = [np.searchsorted(self.table, each) for each in keys]
        self.items = [_Item.of(item, each.tolist()) for item, each in zip(items, shingles, strict=True)]
        self._enter(shingles, counts)
        self.whole_turns: dict[tuple[int, ...], list[int]] = {}
        for i, item in enumerate(items):
            if 0 < len(item) < SHORTEST_INSIDE:
                self.whole_turns.setdefault(item, []).append(i)
        self.first_seen: dict[bytes, tuple[str, int] | None] = {
            sequence: None for item in items for sequence in _long_sequences(item)
        }
        self.best: list[Overlap | None] = [None] * len(items)

    def _enter(self, shingles: Sequence[np.ndarray], counts: np.ndarray) -> None:
        """Enter every item under its rarest shingles only: so many that a row which has as many of them as it needs
        must have one of these (prefix filter, Chaudhuri et al. 2006). So a template's shingles cost little."""
        entered = []
        for item, own in zip(self.items, shingles, strict=True):
            least = min(item.least_edited, item.least_reordered)
            entered.append(own[np.argsort(counts[own], kind="stable")][: max(0, len(own) - least + 1)])
        every = np.concatenate([*entered, np.empty(0, np.int64)])
        order = np.argsort(every, kind="stable")
        self.entries = np.repeat(np.arange(len(entered)), [len(each) for each in entered])[order]
        self.starts = np.searchsorted(every[order], np.arange(len(self.table) + 1))

    def compare(self, text: TrainingText) -> None:
        """Note what one training row has in common with the items."""
        for i, overlap in self.overlaps(text, self._see_long_sequences, self._is_exact):
            self._note(i, overlap)

    def overlaps(
        self,
        text: TrainingText,
        see: Callable[[np.ndarray, np.ndarray, TrainingText], None],
        settled: Callable[[int], bool],
    ) -> Iterator[tuple[int, Overlap]]:
        """Which items one row has by itself, and how.

        Args:
            text: the row.
            see: gets its words as numbers, where sequences of items stand among them, and the row.
            settled: whether an item need not be compared.
        """
        turns = [words_of(turn) for turn in text.turns]
        for turn in turns:
            if len(turn) < SHORTEST_INSIDE and self.whole_turns:
                for i in self.whole_turns.get(tuple(self.numbers.get(word, 0) for word in turn), ()):
                    yield i, Overlap("exact", 1.0, text.source, text.line, " ".join(turn))
        words = [word for turn in turns for word in turn]
        if len(words) < _SHINGLE or not len(self.table):
            return
        as_list = [self.numbers.get(word, 0) for word in words]
        numbers = np.array(as_list, np.int64)
        keys = _shingles(numbers)
        shingles = np.searchsorted(self.table, keys)
        known = self.table[np.minimum(shingles, len(self.table) - 1)] == keys
        places = np.flatnonzero(known)
        if not len(places):
            return
        see(numbers, known, text)
        found = shingles[places].tolist()
        row = _Row(text, words, as_list, set(as_list), places.tolist(), found, set(found))
        candidates = {
            i
            for each in row.distinct_shingles
            for i in self.entries[self.starts[each] : self.starts[each + 1]].tolist()
        }
        for i in candidates:
            if not settled(i) and (overlap := _compare(self.items[i], row)):
                yield i, overlap

    def _is_exact(self, i: int) -> bool:
        best = self.best[i]
        return best is not None and best.how == "exact"

    def _see_long_sequences(self, numbers: np.ndarray, known: np.ndarray, text: TrainingText) -> None:
        for sequence in _long_sequences_among(numbers, known):
            if self.first_seen.get(sequence, text) is None:
                self.first_seen[sequence] = (text.source, text.line)

    def _note(self, i: int, overlap: Overlap) -> None:
        best = self.best[i]
        if best is None or rank(overlap.how, overlap.share) > rank(best.how, best.share):
            self.best[i] = overlap

    def found(self) -> list[Overlap | None]:
        """The best of every item, with the long sequences that all rows have together."""
        words = {number: word for word, number in self.numbers.items()}
        for i, item in enumerate(each.words for each in self.items):
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


class RowOverlaps:
    """The same for single rows, which says what is to be left out: the items that a row holds by itself.

    The exact rule's sequences of 13 words then are to stand in the one row, half of an item's.
    """

    def __init__(self, items: Sequence[str]):
        """Args: the items, held in memory."""
        self._index = _Index(items)
        self._holders: dict[bytes, list[int]] = {}
        self._longs = [set(_long_sequences(item.words)) for item in self._index.items]
        for i, sequences in enumerate(self._longs):
            for sequence in sequences:
                self._holders.setdefault(sequence, []).append(i)

    def of(self, text: TrainingText) -> list[tuple[int, Overlap]]:
        """The numbers of the items that a row holds, with how, the strictest first."""
        best: dict[int, Overlap] = {}
        seen: set[bytes] = set()

        def see(numbers: np.ndarray, known: np.ndarray, _: TrainingText) -> None:
            seen.update(each for each in _long_sequences_among(numbers, known) if each in self._holders)

        for i, overlap in self._index.overlaps(text, see, lambda _: False):
            if i not in best or rank(overlap.how, overlap.share) > rank(best[i].how, best[i].share):
                best[i] = overlap
        for i, count in Counter(i for each in seen for i in self._holders[each]).items():
            share = count / len(self._longs[i])
            if share >= EXACT_SHARE and (i not in best or best[i].how != "exact"):
                best[i] = Overlap("exact", share, text.source, text.line, "")
        return sorted(best.items(), key=lambda each: rank(each[1].how, each[1].share), reverse=True)


def _long_sequences_among(numbers: np.ndarray, known: np.ndarray) -> Iterator[bytes]:
    """The sequences of 13 words of a row all of whose words stand so in items."""
    inner = LONG_SEQUENCE - _SHINGLE + 1
    if len(known) < inner:
        return
    sums = np.concatenate([[0], np.cumsum(known)])
    for start in np.flatnonzero(sums[inner:] - sums[:-inner] == inner).tolist():
        yield numbers[start : start + LONG_SEQUENCE].tobytes()


def _compare(item: _Item, row: _Row) -> Overlap | None:
    """What a row has in common with an item, the cheap tests first."""
    count, missing = len(item.shingles & row.distinct_shingles), len(item.distinct - row.distinct)
    may_be_edited = missing <= item.allowed_edits and count >= item.least_edited
    if not may_be_edited and count < item.least_reordered:
        return None
    shared = [
        (place, each) for place, each in zip(row.places, row.shingles, strict=True) if each in item.shingles
    ]
    count, start, end = _densest(shared, ROOM * len(item.words))

    def overlap(how: How, share: float, matching: Sequence[str]) -> Overlap:
        return Overlap(how, share, row.text.source, row.text.line, " ".join(matching))

    if may_be_edited and count >= item.least_edited:
        first = max(0, shared[0][0] - len(item.words))
        last = shared[-1][0] + _SHINGLE + len(item.words)
        edits, stop = fewest_edits(item.words, row.numbers[first:last])
        matching = row.words[max(0, first + stop - len(item.words)) : first + stop]
        if edits == 0:
            return overlap("exact", 1.0, matching)
        if edits <= item.allowed_edits:
            return overlap("edited", 1 - edits / len(item.words), matching)
    if count >= item.least_reordered and len(item.words) >= SHORTEST_EDITED:
        return overlap("reordered", count / len(item.shingles), row.words[start : end + _SHINGLE - 1])
    return None


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


def _densest(shingles: Sequence[tuple[int, int]], room: int) -> tuple[int, int, int]:
    """The window of `room` places with the most different shingles: how many, its first place, and its end.

    `shingles` are pairs of a place and a shingle, in the order of places.
    """
    inside: dict[int, int] = {}
    best, left = (0, 0, 0), 0
    for place, shingle in shingles:
        inside[shingle] = inside.get(shingle, 0) + 1
        while shingles[left][0] <= place - room:
            gone = shingles[left][1]
            inside[gone] -= 1
            if not inside[gone]:
                del inside[gone]
            left += 1
        if len(inside) > best[0]:
            best = len(inside), shingles[left][0], place + 1
    return best


# --- texts as words

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
