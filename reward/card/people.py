"""The model beside the people who ranked the same answers: agreement, best of n, and the worst mistakes."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import comb, expit
from scipy.stats import rankdata

from accord.statistics import Estimate
from feedback.belief.rankings import counts, vote
from reward.card.prompts import Prompts
from reward.rows import ScoredComparison, ScoredPair

WORST = 10


@dataclass(frozen=True)
class Ceiling:
    """How far annotators agree, over the held-out pairs with two strict votes or more, each of which counts once.

    These are what people reach, no bound: a model that were always right would agree with one annotator more often than
    a second annotator does, since only one of the two then errs.
    """

    two_annotators: Estimate
    """The chance that the strict votes of two different annotators agree."""
    model_with_annotator: Estimate
    """The chance that the model agrees with the strict vote of one annotator."""
    annotator_with_others: Estimate
    """The chance that an annotator agrees with the majority of the others; half where these are split evenly."""
    model_with_others: Estimate
    """The same for the model: with the majority that is left when any one annotator is left out."""
    model_above_annotator: Estimate
    """The difference of these two: below 0, another annotator would predict the others better than the model does."""


@dataclass(frozen=True)
class BestOf:
    """What is expected when the score picks one of n answers, which are drawn at random from those that were ranked."""

    n: int
    kl_nats: float
    """KL of best-of-n from the policy: log n - (n - 1) / n (Stiennon et al. 2020,
    https://arxiv.org/abs/2009.01325)."""
    judgement: Estimate
    """Of the answer that is picked: mean over annotators of its place, 1 for the best and 0 for the last."""
    ceiling: Estimate
    """The same where that judgement itself picks; a little too high, as it is judged by what it was picked by."""
    score: Estimate
    """The model's own score of the answer that it picks."""


@dataclass(frozen=True)
class BestOfN:
    """Whether picking by the score, ever harder, still finds what people prefer: over-optimisation by best-of-n."""

    comparisons: int
    left_out: int
    """Ranked comparisons with another number of answers than the commonest."""
    curve: list[BestOf]
    gain: Estimate
    """Judgement at the largest n minus that of an answer drawn at random (n = 1)."""
    last_step: Estimate | None
    """Judgement at the largest n minus that at the n before; None where there are only two answers."""


@dataclass(frozen=True)
class Mistake:
    """A pair that the model ordered wrongly."""

    row: int
    """Which of the pairs it is, from 0: its line in heldout.jsonl."""
    chosen_score: float
    rejected_score: float
    confidence: float
    """sigmoid(rejected_score - chosen_score): how sure the model was."""
    votes: tuple[int, int, int] | None
    """Annotators who preferred the chosen answer, the other one, and neither; None without comparisons."""


# --- agreement


def ceiling(
    pairs: Sequence[ScoredPair], comparisons: Sequence[ScoredComparison], right: np.ndarray, prompts: Prompts
) -> Ceiling | None:
    """How far annotators and model agree; None where no pair has two strict votes."""
    rows: list[int] = []
    figures: list[tuple[float, ...]] = []
    for row, votes in enumerate(_votes(pairs, comparisons)):
        strict = np.array([each for each in votes or [] if each])
        if len(strict) < 2:
            continue
        n, ayes, model = len(strict), int((strict > 0).sum()), 2 * right[row] - 1
        others = np.sign(strict.sum() - strict)  # without each annotator in turn
        two = (math.comb(ayes, 2) + math.comb(n - ayes, 2)) / math.comb(n, 2)
        agreements = ((1 + each).mean() / 2 for each in (model * strict, strict * others, model * others))
        rows.append(row)
        figures.append((two, *agreements))
    if not rows:
        return None
    at, values = np.array(rows), np.array(figures)
    return Ceiling(
        two_annotators=prompts.share(values[:, 0], at),
        model_with_annotator=prompts.share(values[:, 1], at),
        annotator_with_others=prompts.share(values[:, 2], at),
        model_with_others=prompts.share(values[:, 3], at),
        model_above_annotator=prompts.mean(values[:, 3] - values[:, 2], at),
    )


def _votes(pairs: Sequence[ScoredPair], comparisons: Sequence[ScoredComparison]) -> list[list[int] | None]:
    """Each pair's votes: 1 for the chosen answer, -1 for the other, 0 for a tie; None where they are not known.

    A pair's id names its comparison and the places of its answers, as `feedback.belief.preferences` writes it:
    `c-17:2>0`.
    """
    by_id = {comparison.id: comparison for comparison in comparisons}
    found: list[list[int] | None] = []
    for pair in pairs:
        name, _, places = (pair.id or "").rpartition(":")
        first, _, second = places.partition(">")
        comparison = by_id.get(name)
        if comparison is None or not {first, second} <= {str(i) for i in range(len(comparison.responses))}:
            found.append(None)
            continue
        given = [ranking.ranks for ranking in comparison.rankings if counts(ranking) and ranking.ranks]
        found.append([vote(ranks, int(first), int(second)) for ranks in given])
    return found


# --- best of n


def best_of_n(comparisons: Sequence[ScoredComparison], prompts: Prompts) -> BestOfN | None:
    """What picking by the score finds, for each n up to the commonest number of answers; None without rankings."""
    judged = {row: value for row, each in enumerate(comparisons) if (value := _judgement(each)) is not None}
    if not judged:
        return None
    sizes = Counter(len(value) for value in judged.values())
    k = max(sizes, key=lambda size: (sizes[size], size))
    rows = np.array([row for row, value in judged.items() if len(value) == k])
    judgement = [judged[row] for row in rows]
    score = [np.mean(comparisons[row].scores, axis=1) for row in rows]

    def picked(by: Sequence[np.ndarray], what: Sequence[np.ndarray], n: int) -> np.ndarray:
        return np.array([best_of(b, w, n) for b, w in zip(by, what, strict=True)])

    values = {n: picked(score, judgement, n) for n in range(1, k + 1)}
    return BestOfN(
        comparisons=len(rows),
        left_out=len(judged) - len(rows),
        curve=[
            BestOf(
                n=n,
                kl_nats=math.log(n) - (n - 1) / n,
                judgement=prompts.mean(values[n], rows),
                ceiling=prompts.mean(picked(judgement, judgement, n), rows),
                score=prompts.mean(picked(score, score, n), rows),
            )
            for n in values
        ],
        gain=prompts.mean(values[k] - values[1], rows),
        last_step=prompts.mean(values[k] - values[k - 1], rows) if k > 2 else None,
    )


def _judgement(comparison: ScoredComparison) -> np.ndarray | None:
    """Of each response, the mean over annotators of 1 for the best place to 0 for the last; ties share their places."""
    ranks = [r.ranks for r in comparison.rankings if counts(r) and r.ranks is not None]
    if not ranks:
        return None
    last = len(comparison.responses) - 1
    return np.mean([1 - (rankdata(each) - 1) / last for each in ranks], axis=0)


def best_of(scores: np.ndarray, values: np.ndarray, n: int) -> float:
    """The expected value of the best-scored answer of n drawn without replacement, exactly.

    The answer at place j of k by score is the best of a random subset of size n with probability
    C(k - j, n - 1) / C(k, n); answers of equal score share their places' probability.

    Args:
        scores: that pick [k].
        values: what is averaged [k].
        n: 1 to k.
    """
    k = len(scores)
    by_place = comb(k - np.arange(1, k + 1), n - 1) / comb(k, n)
    group = rankdata(-scores, method="dense").astype(int) - 1
    share = np.bincount(np.sort(group), by_place) / np.bincount(group)
    return float((share[group] * values).sum())


# --- mistakes


def worst_mistakes(
    pairs: Sequence[ScoredPair],
    comparisons: Sequence[ScoredComparison],
    chosen: np.ndarray,
    rejected: np.ndarray,
) -> list[Mistake]:
    """The pairs that were ordered wrongly with the greatest difference of scores, that one first."""
    votes = _votes(pairs, comparisons)
    differences = chosen - rejected
    worst = [int(row) for row in np.argsort(differences, kind="stable")[:WORST] if differences[row] < 0]
    return [
        Mistake(
            row=row,
            chosen_score=float(chosen[row]),
            rejected_score=float(rejected[row]),
            confidence=float(expit(-differences[row])),
            votes=None
            if (given := votes[row]) is None
            else (given.count(1), given.count(-1), given.count(0)),
        )
        for row in worst
    ]
