"""MinHash signatures of texts, and which of many texts have much in common by them, at 300 bytes a text.

    index = Signatures()
    mine = index.of(*sequences(["Why is the sky blue?", ...]))
    earlier, beside = index.candidates(mine)        # which others share a band with each text
    number = index.add(mine[0])
    index.settle()                                  # from now on it is a candidate

Two texts whose sets of 5-word sequences have the Jaccard similarity s have each of their 126 hashes in common with
probability s; they are candidates for one another if all hashes of one of 21 bands of 6 are the same. So a pair at 0.8
is missed once in 700. The hashes are rensa's. A band's keys are a few sorted runs, each at least twice as long as the
next one, so that they are merged seldom; they are looked up for many texts together. Of the hashes themselves eight
bits are kept, which estimate a similarity as well as 32 do.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from accord.data.quality.findings import needed, words

SHINGLE = 5
BANDS, HASHES = 21, 6
SEED = 1
BLOCK = 65_536
MOST = 1000
"""So many texts of one band are candidates, the first ones: those that share a long part share many bands."""

_PLAIN = bytes(
    i if i >= 128 else ord(chr(i).lower()) if chr(i).isalnum() or chr(i) == "_" else ord(" ")
    for i in range(256)
)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_LOW = np.uint64(32)
_NUMBER = np.uint64(0xFFFFFFFF)


class Signatures:
    """The signatures of texts that were added, which are numbered from 0 on."""

    def __init__(self) -> None:
        """An empty index.

        Raises:
            UsageError: rensa is not installed.
        """
        self._hash: Any = needed("rensa", "rensa").RMinHash.digest_matrix_from_flat_token_hashes
        self._runs: list[list[np.ndarray]] = []
        """Each, for each band, uint64 [texts], sorted: a key in the upper half, a number in the lower one."""
        self._short: list[np.ndarray] = []
        """Eight bits of each hash, uint8 [BLOCK, 126]; arrays that do not grow are never copied."""
        self._waiting: list[np.ndarray] = []
        self.count = 0

    def of(self, sequences: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """The signatures [texts, 126] (uint32) from `sequences`; of a text without words one that says nothing."""
        matrix = self._hash(sequences, starts.astype(np.uint64), BANDS * HASHES, SEED)
        hashes = chain.from_iterable(matrix.to_rows())
        return np.fromiter(hashes, np.uint32).reshape(len(starts) - 1, BANDS * HASHES)

    def candidates(self, signatures: np.ndarray) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
        """By place in this batch, the numbers of those that share a band with it, and the earlier places that do.

        What was added since the last `settle` is not among the numbers. Each list is sorted.
        """
        keys = _keys(signatures)
        order = np.argsort(keys, axis=1, kind="stable")
        earlier: dict[int, set[int]] = {}
        beside: dict[int, set[int]] = {}
        for band in range(BANDS):
            ordered = keys[band][order[band]]
            wanted = ordered << _LOW
            for run in self._runs:
                _look_up(run[band], wanted, order[band], earlier)
            starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
            for at in np.flatnonzero(np.diff(starts) > 1):
                group = order[band][starts[at] : starts[at + 1]].tolist()
                for i, place in enumerate(group[1:], start=1):
                    beside.setdefault(place, set()).update(group[: min(i, MOST)])
        return (
            {place: sorted(each) for place, each in earlier.items()},
            {place: sorted(each) for place, each in beside.items()},
        )

    def add(self, signature: np.ndarray) -> int:
        """Number a text; it is a candidate from the next `settle` on."""
        if self.count == BLOCK * len(self._short):
            self._short.append(np.empty((BLOCK, BANDS * HASHES), dtype=np.uint8))
        self._short[-1][self.count % BLOCK] = signature  # the lower eight bits
        self._waiting.append(signature)
        self.count += 1
        return self.count - 1

    def settle(self) -> None:
        """Enter what was added into the bands."""
        if not self._waiting:
            return
        numbers = np.arange(self.count - len(self._waiting), self.count, dtype=np.uint64)
        run = list((_keys(np.stack(self._waiting)) << _LOW) | numbers)
        self._waiting = []
        for keys in run:
            keys.sort()
        while self._runs and len(self._runs[-1][0]) < 2 * len(run[0]):
            before = self._runs.pop()
            for band in range(BANDS):  # one at a time, so that little is there twice
                both = np.concatenate([before[band], run[band]])
                both.sort()
                before[band] = run[band] = both
            run = before
        self._runs.append(run)

    def alike(self, signature: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
        """The share of its hashes that each of these texts has, too: about their Jaccard similarity, within 0.04."""
        theirs = np.stack([self._short[number // BLOCK][number % BLOCK] for number in numbers])
        return (theirs == signature.astype(np.uint8)).mean(axis=1)


def sequences(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """64 bits for each sequence of 5 words of some texts, and where each text's begin; the last is the end of all.

    A text of fewer words is one sequence, of none it has none. Words are as `findings.words` has them.
    """
    as_bytes = [
        text.encode() if text.isascii() else " ".join(words(text)).encode("utf-8", "surrogatepass")
        for text in texts
    ]
    # bytes from 128 on are parts of words; the blanks at the end are for the last word's eight bytes
    buffer = b" ".join([b"", *as_bytes, b" " * 8]).translate(_PLAIN)
    found, starts = _words(buffer)
    lengths = np.array([len(each) + 1 for each in as_bytes], dtype=np.int64)
    counts = np.diff(np.searchsorted(starts, np.concatenate([[0], np.cumsum(lengths)]) + 1))
    padding = np.where(counts, np.maximum(SHINGLE - counts, 0), 0)
    ends = np.cumsum(counts + padding)
    padded = np.zeros(len(found) + int(padding.sum()) + SHINGLE, dtype=np.uint64)
    padded[np.arange(len(found)) + np.repeat(np.cumsum(padding), counts)] = found
    mixed = np.zeros(len(padded) - SHINGLE, dtype=np.uint64)
    for i in range(SHINGLE):
        mixed = mixed * _MIX + padded[i : len(mixed) + i]
    inside = np.ones(len(mixed), dtype=bool)
    for back in range(1, SHINGLE):  # they would go on in the next text
        inside[ends[counts > 0] - back] = False
    of_text = np.maximum(counts + padding - SHINGLE + 1, 0)
    return mixed[inside], np.concatenate([[0], np.cumsum(of_text)])


def _words(buffer: bytes) -> tuple[np.ndarray, np.ndarray]:
    """64 bits for each word between blanks, and the place of its first byte; eight bytes of a word at a time."""
    is_word = np.frombuffer(buffer, np.uint8) != ord(" ")
    edges = np.flatnonzero(is_word[1:] != is_word[:-1]) + 1
    starts, sizes = edges[::2], edges[1::2] - edges[::2]
    eights = np.ndarray((len(buffer) - 7,), "<u8", buffer, strides=(1,))
    found = sizes.astype(np.uint64)
    places, left = np.arange(len(starts)), sizes
    offset = 0
    while len(places):
        keep = np.uint64(0xFFFFFFFFFFFFFFFF) >> (np.uint64(8) * np.maximum(8 - left, 0).astype(np.uint64))
        mixed = (found[places] ^ (eights[starts[places] + offset] & keep)) * _MIX
        found[places] = mixed ^ (mixed >> _LOW)
        offset += 8
        places, left = places[left > 8], left[left > 8] - 8
    return found, starts


def _keys(signatures: np.ndarray) -> np.ndarray:
    """[bands, texts]: 32 bits of each band's hashes, as uint64."""
    bands = signatures.reshape(len(signatures), BANDS, HASHES).astype(np.uint64)
    mixed = np.zeros(bands.shape[:2], dtype=np.uint64)
    for i in range(HASHES):
        mixed = (mixed ^ bands[:, :, i]) * _MIX
        mixed ^= mixed >> _LOW
    return np.ascontiguousarray((mixed & _NUMBER).T)


def _look_up(run: np.ndarray, wanted: np.ndarray, places: np.ndarray, found: dict[int, set[int]]) -> None:
    """Note for each place which numbers stand under its key in a band's run; the keys are sorted."""
    starts = np.searchsorted(run, wanted)
    there = run[np.minimum(starts, len(run) - 1)]
    for i in np.flatnonzero((starts < len(run)) & (there >> _LOW == wanted >> _LOW)):
        start = int(starts[i])
        end = int(np.searchsorted(run, wanted[i] | _NUMBER, side="right"))
        numbers = run[start : min(end, start + MOST)] & _NUMBER
        found.setdefault(int(places[i]), set()).update(numbers.tolist())
