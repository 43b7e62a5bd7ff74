"""Runs of tokens that an answer has in common with a training row.

One pass over the training rows, as they lie in their Arrow files: what is kept grows with the answers and not with the
rows. The answers' sequences of `GRAM` tokens are a table of hashes; a row's that are in it are chained to runs. For
each place in an answer the longest run that ends there is kept, with its row.

Not counted is what stands in the answer's own prompt, and boilerplate: sequences in more than `BOILERPLATE` different
rows. Both cut a run in two. A row that is shown many times is one row.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from accord.progress import progress

if TYPE_CHECKING:
    from datasets import Dataset

GRAM = 8
"""Tokens of the shortest run that is found."""
BOILERPLATE = 10
ROWS_AT_ONCE = 1_000
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class CopiedRun:
    """The longest run of an answer that stands in a training row."""

    begin: int
    """In the answer's tokens."""
    tokens: int
    row: int
    """Among the training rows, from 0."""


@dataclass
class _Table:
    """The answers' sequences, by hash."""

    hashes: np.ndarray
    """Sorted, each once."""
    places: list[list[tuple[int, int]]]
    """Of each hash: answers, and where in them."""
    rows: list[set[bytes]] = field(default_factory=list)
    """In which different rows each was found, up to one more than makes it boilerplate."""
    live: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))
    """Those that are no boilerplate so far."""


def copied_runs(
    train: "Dataset", prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> list[CopiedRun | None]:
    """For each answer its longest run; None for one with no run of `GRAM` tokens.

    Args:
        train: with the column `input_ids`.
        prompts: the token ids before each answer.
        answers: token ids.
    """
    table = _table(prompts, answers)
    best: list[dict[int, tuple[int, int]]] = [{} for _ in answers]
    if len(table.hashes):
        with progress("looking for copied runs", len(train)) as update:
            for number, ids in _rows(train, table):
                _chain(number, ids, table, answers, best)
                update(number)
    boilerplate = {
        place for spots, live in zip(table.places, table.live, strict=True) if not live for place in spots
    }
    return [
        _longest(i, ends, boilerplate)  #
        for i, ends in enumerate(best)
    ]


def _hashes(ids: np.ndarray) -> np.ndarray:
    """Of all sequences of `GRAM` tokens: a polynomial modulo 2^64."""
    if len(ids) < GRAM:
        return np.empty(0, dtype=np.uint64)
    mixed = (ids.astype(np.uint64) + np.uint64(1)) * _FACTOR
    mixed ^= mixed >> np.uint64(29)
    found = np.zeros(len(ids) - GRAM + 1, dtype=np.uint64)
    for i in range(GRAM):
        found = found * np.uint64(0xBF58476D1CE4E5B9) + mixed[i : len(mixed) - GRAM + 1 + i]
    return found


def _table(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> _Table:
    places: dict[int, list[tuple[int, int]]] = {}
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        of_prompt = set(_hashes(np.asarray(prompt)).tolist())
        for place, each in enumerate(_hashes(np.asarray(answer)).tolist()):
            if each not in of_prompt:
                places.setdefault(each, []).append((i, place))
    ordered = sorted(places)
    return _Table(
        np.array(ordered, dtype=np.uint64), [places[each] for each in ordered],
        [set() for _ in ordered], np.ones(len(ordered), dtype=bool),
    )  # fmt: skip


def _rows(train: "Dataset", table: _Table) -> Iterator[tuple[int, np.ndarray]]:
    """The rows that have one of the sequences: their number and tokens."""
    first = 0
    for batch in train.select_columns(["input_ids"]).with_format("arrow").iter(ROWS_AT_ONCE):
        column = batch.column("input_ids").combine_chunks()
        ids = column.flatten().to_numpy(zero_copy_only=False)
        ends = np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))
        found = _hashes(ids)
        at = np.searchsorted(table.hashes, found)
        at[at == len(table.hashes)] = 0
        hits = np.flatnonzero((table.hashes[at] == found) & table.live[at])
        for row in np.unique(np.searchsorted(ends, hits, side="right")).tolist():
            begin = int(ends[row - 1]) if row else 0
            yield first + row, ids[begin : int(ends[row])]
        first += len(ends)


def _chain(
    number: int,
    ids: np.ndarray,
    table: _Table,
    answers: Sequence[Sequence[int]],
    best: list[dict[int, tuple[int, int]]],
) -> None:
    """Follow the answers' sequences through one row, and keep the longest run that ends at each place."""
    row_id = hashlib.blake2b(ids.tobytes(), digest_size=8).digest()
    found = _hashes(ids)
    at = np.searchsorted(table.hashes, found)
    at[at == len(table.hashes)] = 0
    hits = np.flatnonzero((table.hashes[at] == found) & table.live[at])
    before: Mapping[tuple[int, int], int] = {}
    last = -2
    for where in hits.tolist():
        gram = int(at[where])
        seen = table.rows[gram]
        seen.add(row_id)
        if len(seen) > BOILERPLATE:
            table.live[gram] = False
        words = ids[where : where + GRAM].tolist()
        lengths = {}
        for answer, place in table.places[gram]:
            if list(answers[answer][place : place + GRAM]) != words:  # a collision of hashes
                continue
            length = 1 + (before.get((answer, place - 1), 0) if where == last + 1 else 0)
            lengths[answer, place] = length
            if length > best[answer].get(place, (0, 0))[0]:
                best[answer][place] = (length, number)
        before, last = lengths, where


def _longest(
    answer: int, ends: Mapping[int, tuple[int, int]], boilerplate: set[tuple[int, int]]
) -> CopiedRun | None:
    longest: CopiedRun | None = None
    for end, (grams, row) in sorted(ends.items()):
        begin = end - grams + 1
        cuts = [place for place in range(begin, end + 1) if (answer, place) in boilerplate]
        begin = cuts[-1] + 1 if cuts else begin
        tokens = end - begin + GRAM if begin <= end else 0
        if tokens > (longest.tokens if longest else 0):
            longest = CopiedRun(begin, tokens, row)
    return longest
