"""Accuracy on parts of the held-out pairs: by length, by how sure annotators were, by a column, by annotator."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import rankdata

from accord.statistics import FEWEST_CLUSTERS, Estimate
from feedback.belief.rankings import counts, vote
from reward.card.prompts import Prompts
from reward.rows import ScoredComparison, ScoredPair

FEWEST_PAIRS = 20
"""A slice of fewer pairs, or of fewer prompts than an interval needs, is too small to say anything of."""
ABOUT_EQUAL = 0.1
"""Two answers are about equally long if their tokens differ by at most this share of the longer one's."""
LENGTHS = ("chosen is shorter", "about equally long", "chosen is longer")
UNANIMITY = ("unanimous", "contested", "one annotator")
MOST_VALUES = 20
"""The most frequent values of a topic column are slices of their own; the rest is pooled."""
POOLED = "all other values"


@dataclass(frozen=True)
class Slice:
    """Accuracy on a part of the held-out pairs; `accuracy` is None where the part is too small to say."""

    by: str
    """What the parts differ in, such as "length" or the name of a column."""
    name: str
    pairs: int
    prompts: int
    accuracy: Estimate | None


def by_length(pairs: Sequence[ScoredPair], right: np.ndarray, prompts: Prompts) -> list[Slice]:
    """By whether the chosen answer is the shorter, about as long, or the longer."""
    return _slices("length", [_length_difference(pair) for pair in pairs], right, prompts, LENGTHS)


def _length_difference(pair: ScoredPair) -> str:
    longest = max(pair.chosen_tokens, pair.rejected_tokens)
    if abs(pair.chosen_tokens - pair.rejected_tokens) <= ABOUT_EQUAL * longest:
        return LENGTHS[1]
    return LENGTHS[2] if pair.chosen_tokens > pair.rejected_tokens else LENGTHS[0]


def by_strength(pairs: Sequence[ScoredPair], right: np.ndarray, prompts: Prompts) -> list[Slice]:
    """By the annotators' margin, or else the weight, in thirds; and by whether they were unanimous, if several were."""
    found: list[Slice] = []
    for by in ("margin", "weight"):
        known = [i for i, pair in enumerate(pairs) if getattr(pair, by) is not None]
        if not known or (found and by == "weight"):
            continue
        values = np.array([getattr(pairs[i], by) for i in known])
        third = thirds(values)
        names: list[str | None] = [None] * len(pairs)
        order = []
        for each in range(3):
            inside = values[third == each]
            if len(inside):
                low, high = f"{inside.min():.2g}", f"{inside.max():.2g}"
                order.append(low if low == high else f"{low} to {high}")
                for i in np.flatnonzero(third == each):
                    names[known[i]] = order[-1]
        found = _slices(by, names, right, prompts, order)
    unanimous = [
        None
        if pair.agreement is None
        else UNANIMITY[2]
        if pair.annotators == 1
        else UNANIMITY[pair.agreement < 1]
        for pair in pairs
    ]
    return [*found, *_slices("agreement", unanimous, right, prompts, UNANIMITY)]


def thirds(values: np.ndarray) -> np.ndarray:
    """0, 1 or 2 for the lowest, middle and highest third of the values; equal values are in the same third."""
    return np.minimum(3 * (rankdata(values) - 0.5) / len(values), 2).astype(int)


def by_column(name: str, pairs: Sequence[ScoredPair], right: np.ndarray, prompts: Prompts) -> list[Slice]:
    """By a column of text: its most frequent values, and all others together."""
    values = [(pair.model_extra or {}).get(name) for pair in pairs]
    texts = [value if isinstance(value, str) else None for value in values]
    frequent = {value for value, _ in Counter(sorted(t for t in texts if t)).most_common(MOST_VALUES)}
    return _slices(name, [t if t in frequent else POOLED if t else None for t in texts], right, prompts)


def by_annotator(comparisons: Sequence[ScoredComparison], prompts: Prompts) -> list[Slice]:
    """For each annotator, how the scores order the answers (of different text) that this one ranked differently."""
    votes: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row, comparison in enumerate(comparisons):
        scores = [float(np.mean(heads)) for heads in comparison.scores]
        for ranking in comparison.rankings:
            if counts(ranking) and ranking.ranks is not None:
                for i, j in _different(comparison):
                    if given := vote(ranking.ranks, i, j):
                        agrees = (1 + given * float(np.sign(scores[i] - scores[j]))) / 2
                        votes[ranking.annotator].append((row, agrees))
    parts = []
    for name, own in sorted(votes.items()):
        rows, right = np.array([row for row, _ in own]), np.array([right for _, right in own])
        parts.append(one_slice("annotator", name, right, prompts, rows))
    return parts


def _different(comparison: ScoredComparison) -> list[tuple[int, int]]:
    """The pairs of responses whose texts differ."""
    texts = [response.text for response in comparison.responses]
    return [(i, j) for i, j in combinations(range(len(texts)), 2) if texts[i] != texts[j]]


def _slices(
    by: str, names: Sequence[str | None], right: np.ndarray, prompts: Prompts, order: Sequence[str] = ()
) -> list[Slice]:
    """Accuracy by name, in this order, or the largest part first; None is in no part."""
    sizes = Counter(name for name in names if name is not None)
    parts = []
    for name in order or sorted(sizes, key=lambda name: (name == POOLED, -sizes[name], name)):
        rows = np.array([each == name for each in names])
        if rows.any():
            parts.append(one_slice(by, name, right[rows], prompts, rows))
    return parts


def one_slice(by: str, name: str, right: np.ndarray, prompts: Prompts, rows: np.ndarray) -> Slice:
    """The accuracy on these rows, unless they are too few to say."""
    of = prompts.among(rows)
    enough = len(right) >= FEWEST_PAIRS and of >= FEWEST_CLUSTERS
    return Slice(by, name, len(right), of, prompts.share(right, rows) if enough else None)
