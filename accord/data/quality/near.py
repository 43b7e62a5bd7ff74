"""Rows that are nearly the same as an earlier one.

Two texts are near if the Jaccard similarity of their sets of 5-word sequences is at least 0.8. Candidates come from
MinHash signatures (accord/data/quality/signatures.py); each is then measured exactly, so that what is found is true.
The sequences themselves, 64 bits each, wait in a temporary file, to be read where a candidate must be measured: in
memory is what the signatures take, about 300 bytes a row.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from accord.data.quality.findings import Finding, answers, is_judged, whole, words
from accord.data.quality.notes import Notes
from accord.data.quality.signatures import SHINGLE, Signatures, sequences
from accord.records import Row

SIMILAR = 0.8
MEASURED = 50
"""So many candidates are measured for a text, those that are nearest by their signatures (whose error at 0.8 is 0.036):
thousands of rows that share a long instruction are all candidates for one another."""
CLOSE_ENOUGH = 0.65
"""By its signature, a candidate is not measured below this."""
AT_ONCE, CHARACTERS_AT_ONCE = 2048, 4_000_000
"""Texts that are looked up together."""


def shingles(text: str) -> frozenset[str]:
    """All sequences of 5 words of a text; of a shorter text, the whole."""
    found = words(text)
    if len(found) <= SHINGLE:
        return frozenset([" ".join(found)] if found else [])
    return frozenset(" ".join(found[i : i + SHINGLE]) for i in range(len(found) - SHINGLE + 1))


def jaccard(one: frozenset[Any], other: frozenset[Any]) -> float:
    """What two sets have in common, as a share of all they hold; 1 for two empty ones."""
    both = len(one & other)
    return both / (len(one) + len(other) - both) if one or other else 1.0


@dataclass(frozen=True)
class Near:
    """What a text is near to."""

    similarity: float
    note: Any
    """What was added with that text."""


class NearTexts:
    """Texts that are not near one another, and the search for one that a further text is near to."""

    def __init__(self) -> None:
        self._index = Signatures()
        self._notes = Notes()
        self._recent = lru_cache(maxsize=256)(self._read)

    def nearest(
        self,
        texts: Iterable[str],
        accept: Callable[[int, Any], bool] = lambda i, note: True,
        notes: Callable[[int], Any] | None = None,
    ) -> Iterator[Near | None]:
        """What each text is nearest to, at `SIMILAR` or more; of equals the first.

        Args:
            texts: looked up in order.
            accept: whether the text of this index may be near to the one that this was noted of.
            notes: what to note of the text of this index, as JSON has it; a text that is near to none is then added
                before the next one is looked up. Without `notes` none is added.
        """
        first = 0
        for batch in _batches(texts):
            found, starts = sequences(batch)
            signatures = self._index.of(found, starts)
            earlier, beside = self._index.candidates(signatures)
            numbers: dict[int, int] = {}
            for i in range(len(batch)):
                near = None
                mine = found[starts[i] : starts[i + 1]]
                if len(mine):
                    here = [numbers[j] for j in beside.get(i, ()) if j in numbers]
                    candidates = [*earlier.get(i, ()), *here]
                    if candidates:
                        near = self._measure(first + i, mine, signatures[i], candidates, accept)
                    if notes and near is None:
                        numbers[i] = self._add(mine, signatures[i], notes(first + i))
                yield near
            self._index.settle()
            first += len(batch)

    def _measure(
        self, i: int, found: np.ndarray, signature: np.ndarray, candidates: Sequence[int],
        accept: Callable[[int, Any], bool],
    ) -> Near | None:  # fmt: skip
        mine = frozenset(found.tolist())
        alike = self._index.alike(signature, candidates)
        best: Near | None = None
        for at in np.argsort(-alike, kind="stable")[:MEASURED]:
            if alike[at] < CLOSE_ENOUGH:
                break
            theirs, note = self._recent(candidates[at])
            similarity = jaccard(mine, theirs)
            if similarity >= SIMILAR and (best is None or similarity > best.similarity) and accept(i, note):
                best = Near(similarity, note)
                if similarity == 1:
                    break
        return best

    def _add(self, found: np.ndarray, signature: np.ndarray, note: Any) -> int:
        self._notes.add(len(found).to_bytes(8, "little") + found.tobytes() + json.dumps(note).encode())
        return self._index.add(signature)

    def _read(self, number: int) -> tuple[frozenset[int], Any]:
        """A text's sequences, and what was noted of it."""
        written = self._notes[number]
        behind = 8 + 8 * int.from_bytes(written[:8], "little")
        found = np.frombuffer(written[8:behind], np.uint64)
        return frozenset(found.tolist()), json.loads(written[behind:])


class NearDuplicates:
    """The rows of one file or of several, one after the other."""

    def __init__(self) -> None:
        self._texts = NearTexts()

    def find(self, rows: Sequence[Row], places: Sequence[str]) -> list[Finding]:
        """The rows that are near an earlier one, of this file or of those before; what is near to such a row counts
        only if it is near to one that stays, so that without the found rows none are near.

        Where answers were judged, they must be near, too, one by one: one question has many pairs of answers.
        """

        def note(i: int) -> list[Any]:
            row = rows[i]
            judged = [getattr(row, "label", None), answers(row)] if is_judged(row) else None
            return [places[i], judged]

        def accept(i: int, earlier: Any) -> bool:
            judged = note(i)[1]
            if judged is None or earlier[1] is None:
                return judged is earlier[1]
            (label, mine), (other, theirs) = judged, earlier[1]
            return (
                label == other
                and len(mine) == len(theirs)
                and all(
                    jaccard(shingles(one), shingles(another)) >= SIMILAR
                    for one, another in zip(mine, theirs, strict=True)
                )
            )

        found = self._texts.nearest(map(whole, rows), accept, note)
        return [
            Finding("near_duplicates", i, f"{near.similarity:.2f} like {near.note[0]}")
            for i, near in enumerate(found)
            if near
        ]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
