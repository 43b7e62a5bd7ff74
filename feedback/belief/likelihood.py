"""The likelihood of rankings under the model of `reliability`, integrated over what the responses are worth.

A ranking is a sequence of choices of the best of those that remain. Comparisons are independent given the annotators'
parameters, so each has an integral of its own over k - 1 coordinates, a sum over quasi-random points around its
posterior, weighted by importance (Robert and Casella 2004, Monte Carlo Statistical Methods, 3.3).
"""

from collections import Counter
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise
from math import comb
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import helmert
from scipy.special import ndtri
from scipy.stats import qmc

TRUTH_SLOPE = 6.0
"""The beta of a gold answer or an adjudication: taken as truth, but for near-ties of the responses' worth."""
WIDER = 2.0
"""How much wider than the posterior (in variance) the points are spread, so that its tails are seen."""
MOST_SUBSETS = 40
"""Tied sets of more than two are alternatives up to the size at which there are no more subsets than this: of any size
for up to 5 responses. Of 6 or more, pairs alone are, whose number grows as the square of that of the responses: were
they left out, every tie would speak against its giver. A larger tie counts as the mean over the sets of that size
within it."""
CHUNK = 1 << 17
"""Numbers worked on at a time; more would not fit into a processor's cache."""
LARGEST_LOG = 600.0
"""Log weights up to this, and down to minus this, are exponentiated as they are."""


@dataclass(frozen=True)
class PairPosterior:
    """Of two responses: the probability that the first is worth more, and their difference in worth (mean, deviation).

    Worth is in standard deviations of responses to one prompt.
    """

    probability: float
    difference: float
    deviation: float


@dataclass(frozen=True)
class GivenRanking:
    """One ranking of a comparison's responses; `who` is None for the truth, `early` 1 at the first place ... 0."""

    who: str | None
    ranks: list[int]
    early: Float[np.ndarray, " k"]


@lru_cache(maxsize=1 << 14)
def _choices(ranks: tuple[int, ...], is_truth: bool) -> tuple[tuple[frozenset[int], frozenset[int]], ...]:
    """A ranking as choices: which responses remained, and which of them were ranked best.

    The truth says nothing by a tie but that each of the tied is better than what follows.
    """
    left, choices = frozenset(range(len(ranks))), []
    for rank in sorted(set(ranks)):
        best = frozenset(i for i in left if ranks[i] == rank)
        if is_truth:
            choices += [(frozenset({i}) | (left - best), frozenset({i})) for i in best if left - best]
        elif len(left) > 1:
            choices.append((left, best))
        left = left - best
    return tuple(choices)


@dataclass(frozen=True)
class LinearChoices:
    """The R choices in one comparison's rankings: log weights of what may be chosen, linear in the worths [k].

    `chosen` and `alternatives` are the coefficients, `chosen_fixed` and `fixed` the rest; minus infinity where an
    alternative was not there any more.
    """

    chosen: Float[np.ndarray, "R k"]
    chosen_fixed: Float[np.ndarray, " R"]
    alternatives: Float[np.ndarray, "R T k"]
    fixed: Float[np.ndarray, "R T"]


@dataclass(frozen=True)
class PointChoices:
    """Choices among equally many alternatives, at their comparisons' points."""

    rows: Int[np.ndarray, " rows"]
    block: Int[np.ndarray, " rows"]
    """Their comparisons, counted from the chunk's first."""
    z: Float[np.ndarray, "rows k P"]
    weights: Float[np.ndarray, "rows T P"]
    """Of the alternatives, which sum to `total`."""
    total: Float[np.ndarray, "rows P"]


class ChunkRows(NamedTuple):
    """Some comparisons and their choices: `alike` has, of those with equally many alternatives, how many, the rows, the
    rows counted from the first one, and the comparisons counted so; `starts` where the rows of each of `present` begin.
    """

    blocks: slice
    rows: slice
    alike: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]
    starts: np.ndarray
    present: np.ndarray


@dataclass(frozen=True)
class Chunk:
    """What the parameters make of some comparisons, and the posterior weights of their points."""

    blocks: slice
    choices: list[PointChoices]
    evidence: Float[np.ndarray, " C"]
    weights: Float[np.ndarray, "C P"]


OF_ROWS = (
    "block", "who", "sizes", "allowed", "extra", "early", "row_length", "early_chosen", "length_chosen",
    "chosen_extra", "alternatives", "chosen",
)  # fmt: skip


class ComparisonBatch:
    """Comparisons of k responses each as arrays, and the points over which their worths are integrated.

    C comparisons, R choices (rows, sorted by comparison), T subsets of responses that may be chosen, P points. Only
    differences of worth matter, so a point z has k - 1 coordinates, standard normal by the prior, and the centred
    worths are z @ basis + gamma x. `z` has a 1 as its last coordinate, so that log weights are linear in it. Of the T
    subsets a row has those first that may be chosen, `sizes` of them.
    """

    def __init__(
        self,
        k: int,
        names: list[str],
        answers: dict[str, list[GivenRanking]],
        length: Float[np.ndarray, "C {k}"],
    ) -> None:
        """Args: `answers` by comparison; `length` the scaled centred log lengths."""
        self.ids, self.k, self.count = list(answers), k, len(names)
        self.rankings = Counter(each.who for given in answers.values() for each in given)
        number: dict[str | None, int] = {name: i for i, name in enumerate(names)}
        pattern_of: dict[tuple[frozenset[int], frozenset[int]], int] = {}
        rows = [
            (c, number.get(each.who, self.count), pattern_of.setdefault(choice, len(pattern_of)), each.early)
            for c, given in enumerate(answers.values())
            for each in given
            for choice in _choices(tuple(each.ranks), each.who is None)
        ]
        self.block, self.who, pattern = np.array([row[:3] for row in rows], int).reshape(-1, 3).T  # [R]
        early = np.array([row[3] for row in rows]).reshape(-1, k)
        observed = max((len(best) for _, best in pattern_of), default=1)
        sizes = [
            t
            for t in range(1, observed + 1)
            if t <= 2 or sum(comb(k, i + 1) for i in range(t)) <= MOST_SUBSETS
        ]
        members = [frozenset(s) for size in sizes for s in combinations(range(k), size)]
        may_be = np.array([[s <= left for s in members] for left, _ in pattern_of]).reshape(-1, len(members))
        order = np.argsort(~may_be, axis=1, kind="stable")[pattern]  # [R, T]
        self.sizes = may_be.sum(axis=1)[pattern]  # [R]
        self.allowed = np.where(np.arange(len(members)) < self.sizes[:, None], 0.0, -np.inf)  # [R, T]
        subsets = np.array([[(i in s) / len(s) for i in range(k)] for s in members])  # [T, k]
        self.extra = np.array([len(s) - 1.0 for s in members])[order]  # [R, T]
        self.basis = helmert(k)  # [k - 1, k]
        self.length = length
        chosen = np.array([[(i in best) / len(best) for i in range(k)] for _, best in pattern_of])
        chosen = chosen.reshape(-1, k)[pattern]
        most = [min(len(best), sizes[-1]) - 1.0 for _, best in pattern_of]
        self.chosen_extra = np.array(most, float)[pattern]  # [R]
        row_length = length[self.block]
        self.early = np.take_along_axis(early @ subsets.T, order, axis=1)  # [R, T]
        self.row_length = np.take_along_axis(row_length @ subsets.T, order, axis=1)
        self.early_chosen, self.length_chosen = (
            (early * chosen).sum(axis=1),
            (row_length * chosen).sum(axis=1),
        )
        self.alternatives = (subsets @ self.basis.T)[order]  # [R, T, k - 1]
        self.chosen = chosen @ self.basis.T  # [R, k - 1]
        self.center = np.zeros((len(length), k - 1))
        self.root = np.broadcast_to(np.eye(k - 1), (len(length), k - 1, k - 1))
        chance = np.random.default_rng(0)
        qmc.Sobol(k - 1, scramble=True, rng=chance)  # as in `spread`
        # each comparison's own shift, so that what the points miss averages out over comparisons
        self.shift = chance.random((len(length), 1, k - 1))

    def parts(self, comparisons: int) -> "Iterator[ComparisonBatch]":
        """The same in batches of so many comparisons, whose points lie where they would lie here."""
        for start in range(0, len(self.ids), comparisons):
            part, blocks = copy(self), slice(start, start + comparisons)
            rows = slice(*np.searchsorted(self.block, [start, start + comparisons]))
            for name in ("ids", "length", "center", "root", "shift"):
                setattr(part, name, getattr(self, name)[blocks])
            for name in OF_ROWS:
                setattr(part, name, getattr(self, name)[rows])
            part.block = part.block - start
            yield part

    def spread(self, points: int) -> None:
        """Lay the points anew: normal around `center` with the covariance root @ root'."""
        uniform = qmc.Sobol(self.k - 1, scramble=True, rng=np.random.default_rng(0)).random(points)
        standard = ndtri(np.clip((uniform + self.shift) % 1, 1e-9, 1 - 1e-9))  # [C, P, k - 1]
        self.z = np.ones((len(standard), self.k, points))
        self.z[:, :-1] = self.center[:, :, None] + self.root @ standard.transpose(0, 2, 1)
        log_determinant = np.log(np.abs(np.linalg.det(self.root)))
        density = -0.5 * (standard**2).sum(axis=2) - log_determinant[:, None]
        self.log_ratio = -0.5 * (self.z[:, :-1] ** 2).sum(axis=1) - density  # [C, P]
        self.reach = float(np.sqrt((self.z[:, :-1] ** 2).sum(axis=1).max(initial=0.0)))
        first_rows = np.searchsorted(self.block, np.arange(len(self.ids) + 1))
        chunk = first_rows[:-1] * (points * self.extra.shape[1]) // CHUNK
        starts = np.flatnonzero(np.diff(chunk, prepend=-1))
        self.chunks = [
            self._chunk(first, stop, first_rows)
            for first, stop in pairwise([*starts.tolist(), len(self.ids)])
        ]

    def _chunk(self, start: int, stop: int, first_rows: Int[np.ndarray, " comparisons"]) -> "ChunkRows":
        rows = np.arange(first_rows[start], first_rows[stop])
        sizes, block = self.sizes[rows], self.block[rows] - start
        alike = [(int(size), np.flatnonzero(sizes == size)) for size in np.unique(sizes)]
        return ChunkRows(
            slice(start, stop),
            slice(int(first_rows[start]), int(first_rows[stop])),
            [(size, rows[at], at, block[at]) for size, at in alike],
            np.flatnonzero(np.diff(block, prepend=-1)),
            np.unique(block),
        )

    def approach(self, theta: Float[np.ndarray, " parameters"]) -> None:
        """Move the center of the points to the mean of the posterior, and their spread to `WIDER` times its own."""
        _, _, weights = self.evidence(theta)
        z = self.z[:, :-1]
        self.center = (z @ weights[:, :, None])[:, :, 0]
        centred = z - self.center[:, :, None]
        covariance = (centred * weights[:, None, :]) @ centred.transpose(0, 2, 1)
        self.root = np.linalg.cholesky(WIDER * covariance + 1e-4 * np.eye(self.k - 1))

    def evidence(
        self, theta: Float[np.ndarray, " parameters"]
    ) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " parameters"], Float[np.ndarray, "C P"]]:
        """The log evidence of each comparison, the gradient of their sum, and the points' posterior weights.

        log evidence = log mean over points of prior(z) likelihood(z) / density(z); its gradient is the mean of the
        log likelihood's gradient under the weights.
        """
        gamma = theta[-1]
        beta, fixed, _ = self.fixed_parts(theta, gamma)
        weights = np.empty_like(self.log_ratio)
        evidence = np.empty(len(weights))
        moments = np.zeros((*fixed.shape, self.k))  # [R, T, k], means over points and alternatives of z
        for chunk in self.likelihoods(theta):
            evidence[chunk.blocks], weights[chunk.blocks] = chunk.evidence, chunk.weights
            for each in chunk.choices:
                of_rows = chunk.weights[each.block] / each.total
                weighted = each.z * of_rows[:, None, :]
                moments[each.rows, : each.weights.shape[1]] = each.weights @ weighted.transpose(0, 2, 1)
        mean_choice = moments[:, :, -1]
        mean_worth = (moments[:, :, :-1] * self.alternatives).sum(axis=(1, 2))
        center = (self.z[:, :-1] @ weights[:, :, None])[self.block, :, 0]
        by_length = self.length_chosen - (mean_choice * self.row_length).sum(axis=1)
        by_row = (
            (self.chosen * center).sum(axis=1) - mean_worth + gamma * by_length,
            self.early_chosen - (mean_choice * self.early).sum(axis=1),
            by_length,
            self.chosen_extra - (mean_choice * self.extra).sum(axis=1),
        )
        of_annotator = [np.bincount(self.who, each, self.count + 1)[: self.count] for each in by_row]
        gradient = np.append(np.stack(of_annotator, axis=1).ravel(), (beta * by_length).sum())
        return evidence, gradient, weights

    def likelihoods(self, theta: Float[np.ndarray, " parameters"]) -> "Iterator[Chunk]":
        """The weights of what may be chosen at every point, and the points' own, for some comparisons at a time."""
        beta, fixed, fixed_chosen = self.fixed_parts(theta, theta[-1])
        highest = fixed.max(axis=1)
        linear = np.concatenate(
            [beta[:, None, None] * self.alternatives, (fixed - highest[:, None])[:, :, None]], axis=2
        )  # [R, T, k]
        chosen = np.zeros((len(self.ids), self.k))  # the sums over a comparison's choices
        np.add.at(chosen, self.block, np.column_stack([beta[:, None] * self.chosen, fixed_chosen - highest]))
        is_wild = np.abs(beta).max(initial=0.0) * self.reach > LARGEST_LOG
        for blocks, all_rows, alike, starts, present in self.chunks:
            z, choices = self.z[blocks], []
            logs = self.log_ratio[blocks] + (chosen[blocks, None] @ z)[:, 0]
            log_total = np.empty((all_rows.stop - all_rows.start, z.shape[2]))
            for size, rows, at, block in alike:
                of_rows = z[block]  # [rows, k, P]
                choice = linear[rows, :size] @ of_rows  # [rows, T, P]
                most = choice.max(axis=1) if is_wild else np.zeros(1)
                if is_wild:
                    choice -= most[:, None]
                np.exp(choice, out=choice)
                total = choice.sum(axis=1)
                log_total[at] = np.log(total) + most
                choices.append(PointChoices(rows, block, of_rows, choice, total))
            if choices:
                logs[present] -= np.add.reduceat(log_total, starts, axis=0)
            highest_log = logs.max(axis=1, keepdims=True)
            weights = np.exp(logs - highest_log)
            sums = weights.sum(axis=1, keepdims=True)
            evidence = (highest_log + np.log(sums))[:, 0] - np.log(weights.shape[1])
            yield Chunk(blocks, choices, evidence, weights / sums)

    def linear(self, theta: Float[np.ndarray, " parameters"]) -> dict[str, LinearChoices]:
        """The choices of every comparison given the annotators' parameters."""
        beta, fixed, fixed_chosen = self.fixed_parts(theta, 0.0)
        # centred, as only differences of worth matter
        alternatives = beta[:, None, None] * (self.alternatives @ self.basis)  # [R, T, k]
        chosen = beta[:, None] * (self.chosen @ self.basis)
        ends = np.searchsorted(self.block, np.arange(len(self.ids) + 1)).tolist()
        return {
            id_: LinearChoices(
                chosen[start:end], fixed_chosen[start:end], alternatives[start:end], fixed[start:end]
            )
            for id_, (start, end) in zip(self.ids, pairwise(ends), strict=True)
        }

    def ranked_by_one(self) -> list[str]:
        """The comparisons whose choices are all one annotator's."""
        starts = np.searchsorted(self.block, np.arange(len(self.ids) + 1)).tolist()
        return [
            id_
            for id_, (start, end) in zip(self.ids, pairwise(starts), strict=True)
            if start < end and (self.who[start:end] == self.who[start]).all() and self.who[start] < self.count
        ]

    def fixed_parts(self, theta: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each choice's beta [R], and what else the log weights of alternatives [R, T] and chosen [R] are made of.

        `gamma` is the shared liking for length where the worths exclude it, 0 where they include it.
        """
        parameters = np.vstack([theta[:-1].reshape(-1, 4), [TRUTH_SLOPE, 0.0, 0.0, -30.0]])
        beta, position, length, tie = parameters[self.who].T
        length_or_worth = length + beta * gamma
        fixed = self.allowed + (
            position[:, None] * self.early
            + length_or_worth[:, None] * self.row_length
            + tie[:, None] * self.extra
        )
        fixed_chosen = (
            position * self.early_chosen + length_or_worth * self.length_chosen + tie * self.chosen_extra
        )
        return beta, fixed, fixed_chosen

    def pair_posteriors(
        self, theta: Float[np.ndarray, " parameters"]
    ) -> dict[str, dict[tuple[int, int], PairPosterior]]:
        """What is known of every pair of responses, given the annotators' parameters."""
        _, _, weights = self.evidence(theta)
        worth = self.basis.T @ self.z[:, :-1] + theta[-1] * self.length[:, :, None]  # [C, k, P]
        pairs: dict[str, dict[tuple[int, int], PairPosterior]] = {id_: {} for id_ in self.ids}
        for i, j in combinations(range(self.k), 2):
            difference = worth[:, i] - worth[:, j]
            probability = (weights * (difference > 0)).sum(axis=1)
            mean = (weights * difference).sum(axis=1)
            deviation = np.sqrt((weights * (difference - mean[:, None]) ** 2).sum(axis=1))
            found = (np.clip(probability, 0.0, 1.0).tolist(), mean.tolist(), deviation.tolist())
            for id_, *values in zip(self.ids, *found, strict=True):
                pairs[id_][i, j] = PairPosterior(*values)
        return pairs
