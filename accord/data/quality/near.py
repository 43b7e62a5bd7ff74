"""Rows that are nearly the same as an earlier one, and rows whose question is nearly one of a held-out file.

Two texts are near if the Jaccard similarity of their sets of 5-word sequences is at least 0.8. Candidates come from
MinHash signatures in an LSH index (rensa); each is then measured exactly, so that what is found is true, and with 21
bands of 6 hashes a pair at 0.8 is missed once in 700. rensa rather than datasketch: the same candidates, signatures of
20,000 rows of 100 words in 0.1 s rather than 5 s, no dependencies, wheels for Python 3.11 to 3.13.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from accord.data.quality.findings import Finding, answers, is_judged, needed, question, said, whole, words
from accord.records import Message, Row

SIMILAR = 0.8
SHINGLE = 5
BANDS, HASHES = 21, 6
SEED = 1
MEASURED = 50
"""So many candidates are measured for a text, those that are nearest by their signatures (whose error at 0.8 is 0.036):
thousands of rows that share a long instruction are all candidates for one another."""
CLOSE_ENOUGH = 0.65
"""By its signature, a candidate is not measured below this."""


def shingles(text: str) -> frozenset[str]:
    """All sequences of 5 words of a text; of a shorter text, the whole."""
    found = words(text)
    if len(found) <= SHINGLE:
        return frozenset([" ".join(found)] if found else [])
    return frozenset(" ".join(found[i : i + SHINGLE]) for i in range(len(found) - SHINGLE + 1))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """What two sets have in common, as a share of all they hold; 1 for two empty ones."""
    both = len(one & other)
    return both / (len(one) + len(other) - both) if one or other else 1.0


class NearTexts:
    """Texts that are not near one another, and the search for one that a further text is near to."""

    def __init__(self) -> None:
        self._rensa = needed("rensa", "rensa")
        self._index = self._rensa.RMinHashLSH(threshold=SIMILAR, num_perm=BANDS * HASHES, num_bands=BANDS)
        self._texts: list[str] = []
        self._signatures = np.zeros((1024, BANDS * HASHES), dtype=np.uint32)
        self._shingles = lru_cache(maxsize=4096)(lambda number: shingles(self._texts[number]))

    def nearest(self, text: str, accept: Callable[[int], bool] = lambda _: True) -> tuple[int, float] | None:
        """The number of the nearest text that was added, and how near it is; of equals the first.

        Args:
            text: compared with all texts at `SIMILAR` or more.
            accept: whether a text of this number may be the one.
        """
        mine = shingles(text)
        if not mine:
            return None
        signature = self._signature(mine)
        candidates = np.array(sorted(self._index.query(signature)), dtype=np.int64)
        alike = (self._signatures[candidates] == np.array(signature.digest(), dtype=np.uint32)).mean(axis=1)
        best: tuple[int, float] | None = None
        for i in np.argsort(-alike, kind="stable")[:MEASURED]:
            number = int(candidates[i])
            if alike[i] < CLOSE_ENOUGH:
                break
            similarity = jaccard(mine, self._shingles(number))
            if similarity >= SIMILAR and (best is None or similarity > best[1]) and accept(number):
                best = number, similarity
                if similarity == 1:
                    break
        return best

    def add(self, text: str) -> None:
        """Add a text; its number is how many there were."""
        signature, number = self._signature(shingles(text)), len(self._texts)
        self._index.insert(number, signature)
        if number == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.zeros_like(self._signatures)])
        self._signatures[number] = signature.digest()
        self._texts.append(text)

    def _signature(self, mine: frozenset[str]) -> Any:
        signature = self._rensa.RMinHash(num_perm=BANDS * HASHES, seed=SEED)
        signature.update(list(mine))
        return signature


class NearDuplicates:
    """The rows of one file or of several, one after the other."""

    def __init__(self) -> None:
        self._texts = NearTexts()
        self._rows: list[Row] = []
        self._places: list[str] = []

    def find(self, rows: Sequence[Row], places: Sequence[str]) -> list[Finding]:
        """The rows that are near an earlier one, of this file or of those before; what is near to such a row counts
        only if it is near to one that stays, so that without the found rows none are near.

        Where answers were judged, they must be near, too, one by one: one question has many pairs of answers.
        """
        found = []
        for i, (row, place) in enumerate(zip(rows, places, strict=True)):
            text = whole(row)
            mine = [shingles(each) for each in answers(row)] if is_judged(row) else None

            def accept(number: int, row: Row = row, mine: list[frozenset[str]] | None = mine) -> bool:
                earlier = self._rows[number]
                if mine is None or not is_judged(earlier):
                    return mine is None and not is_judged(earlier)
                if getattr(earlier, "label", None) != getattr(row, "label", None):
                    return False
                theirs = [shingles(each) for each in answers(earlier)]
                return len(mine) == len(theirs) and all(
                    jaccard(one, other) >= SIMILAR for one, other in zip(mine, theirs, strict=True)
                )

            near = self._texts.nearest(text, accept)
            if near:
                number, similarity = near
                found.append(Finding("near_duplicates", i, f"{similarity:.2f} like {self._places[number]}"))
            else:
                self._texts.add(text)
                self._rows.append(row)
                self._places.append(place)
        return found


class HeldOut:
    """Questions that a model shall be measured by, so it may not learn from them."""

    def __init__(self, rows: Iterable[Row], places: Iterable[str]) -> None:
        self._texts = NearTexts()
        self._places: list[str] = []
        for row, place in zip(rows, places, strict=True):
            text = said(question(row))
            if words(text) and self._texts.nearest(text) is None:
                self._texts.add(text)
                self._places.append(place)

    def find(self, rows: Sequence[Row]) -> list[Finding]:
        """The rows whose question, or one of whose users' turns, is near one of these."""
        found = []
        for i, row in enumerate(rows):
            near = [hit for text in _asked(question(row)) if (hit := self._texts.nearest(text))]
            if near:
                number, similarity = max(near, key=lambda hit: hit[1])
                found.append(Finding("near_heldout", i, f"{similarity:.2f} like {self._places[number]}"))
        return found


def _asked(turns: Sequence[Message]) -> list[str]:
    return list(dict.fromkeys([said(turns), *(turn.text for turn in turns if turn.role == "user")]))
