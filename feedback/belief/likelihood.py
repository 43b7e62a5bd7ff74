"""The likelihood of rankings under the model of `reliability`, integrated over what the responses are worth.

A ranking is a sequence of choices of the best of those that remain. Comparisons are independent given the annotators'
parameters, so each has an integral of its own over k - 1 coordinates, a sum over quasi-random points around its
posterior, weighted by importance (Robert and Casella 2004, Monte Carlo Statistical Methods, 3.3).
"""

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from jaxtyping import Float
from scipy.linalg import helmert
from scipy.special import logsumexp, softmax
from scipy.stats import norm, qmc

TRUTH_SLOPE = 6.0
"""The beta of a gold answer or an adjudication: taken as truth, but for near-ties of the responses' worth."""
WIDER = 2.0
"""How much wider than the posterior (in variance) the points are spread, so that its tails are seen."""
MOST_SUBSETS = 40
"""Tied sets are alternatives up to the size at which there are no more subsets than this: of any size for up to 5
responses, pairs for 6 to 8. A larger tie counts as the mean over the sets of that size within it."""
CHUNK = 1 << 16
"""Numbers worked on at a time; more would not fit into a processor's cache."""


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


def _choices(answer: GivenRanking) -> list[tuple[set[int], set[int]]]:
    """A ranking as choices: which responses remained, and which of them were ranked best.

    The truth says nothing by a tie but that each of the tied is better than what follows.
    """
    left, choices = set(range(len(answer.ranks))), []
    for rank in sorted(set(answer.ranks)):
        best = {i for i in left if answer.ranks[i] == rank}
        if answer.who is None:
            choices += [({i} | (left - best), {i}) for i in best if left - best]
        elif len(left) > 1:
            choices.append((left, best))
        left = left - best
    return choices


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


class ComparisonBatch:
    """Comparisons of k responses each as arrays, and the points over which their worths are integrated.

    C comparisons, R choices (rows, sorted by comparison), T subsets of responses that may be chosen, P points. Only
    differences of worth matter, so a point z has k - 1 coordinates, standard normal by the prior, and the centred
    worths are z @ basis + gamma x.
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
        self.rankings = {
            name: sum(each.who == name for given in answers.values() for each in given) for name in names
        }
        rows = [(c, each, *choice) for c, given in enumerate(answers.values()) for each in given
                for choice in _choices(each)]  # fmt: skip
        observed = max((len(best) for _, _, _, best in rows), default=1)
        sizes = [
            t
            for t in range(1, observed + 1)
            if t == 1 or sum(comb(k, i + 1) for i in range(t)) <= MOST_SUBSETS
        ]
        members = [set(s) for size in sizes for s in combinations(range(k), size)]
        alternatives = np.array([[(i in s) / len(s) for i in range(k)] for s in members])  # [T, k]
        self.extra = np.array([len(s) - 1.0 for s in members])  # [T]
        self.basis = helmert(k)  # [k - 1, k]
        self.length = length
        self.block = np.array([c for c, _, _, _ in rows], int)  # [R]
        self.who = np.array(
            [self.count if each.who is None else names.index(each.who) for _, each, _, _ in rows], int
        )
        self.allowed = np.array(
            [[0.0 if s <= left else -np.inf for s in members] for _, _, left, _ in rows]
        ).reshape(-1, len(members))  # [R, T]
        chosen = np.array([[(i in best) / len(best) for i in range(k)] for _, _, _, best in rows]).reshape(
            -1, k
        )
        self.chosen_extra = np.array([min(len(best), sizes[-1]) - 1.0 for _, _, _, best in rows])  # [R]
        early = np.array([each.early for _, each, _, _ in rows]).reshape(-1, k)
        row_length = length[self.block]
        self.early, self.early_chosen = early @ alternatives.T, (early * chosen).sum(axis=1)  # [R, T], [R]
        self.row_length, self.length_chosen = row_length @ alternatives.T, (row_length * chosen).sum(axis=1)
        self.alternatives, self.chosen = (
            self.basis @ alternatives.T,
            chosen @ self.basis.T,
        )  # [k - 1, T], [R, k - 1]
        self.center = np.zeros((len(length), k - 1))
        self.root = np.broadcast_to(np.eye(k - 1), (len(length), k - 1, k - 1))

    def spread(self, points: int) -> None:
        """Lay the points anew: normal around `center` with the covariance root @ root'."""
        chance = np.random.default_rng(0)
        uniform = qmc.Sobol(self.k - 1, scramble=True, rng=chance).random(points)
        # each comparison's own shift, so that what the points miss averages out over comparisons
        shift = chance.random((len(self.center), 1, self.k - 1))
        standard = norm.ppf(np.clip((uniform + shift) % 1, 1e-9, 1 - 1e-9))  # [C, P, k - 1]
        self.z = self.center[:, None, :] + np.einsum("cij,cpj->cpi", self.root, standard)
        log_determinant = np.log(np.abs(np.linalg.det(self.root)))
        self.log_density = -0.5 * (standard**2).sum(axis=2) - log_determinant[:, None]  # [C, P]
        rows_per_comparison = max(1, len(self.block) // len(self.z))
        size = max(1, CHUNK // (points * len(self.extra) * rows_per_comparison))
        self.chunks = []
        for start in range(0, len(self.z), size):
            stop = min(start + size, len(self.z))
            rows = slice(*np.searchsorted(self.block, [start, stop]))
            if rows.stop > rows.start:
                self.chunks.append((slice(start, stop), rows))

    def approach(self, theta: Float[np.ndarray, " parameters"]) -> None:
        """Move the center of the points to the mean of the posterior, and their spread to `WIDER` times its own."""
        _, _, weights = self.evidence(theta)
        self.center = np.einsum("cp,cpi->ci", weights, self.z)
        centred = self.z - self.center[:, None, :]
        covariance = np.einsum("cp,cpi,cpj->cij", weights, centred, centred, optimize=True)
        self.root = np.linalg.cholesky(WIDER * covariance + 1e-4 * np.eye(self.k - 1))

    def evidence(
        self, theta: Float[np.ndarray, " parameters"]
    ) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " parameters"], Float[np.ndarray, "C P"]]:
        """The log evidence of each comparison, the gradient of their sum, and the points' posterior weights.

        log evidence = log mean over points of prior(z) likelihood(z) / density(z); its gradient is the mean of the
        log likelihood's gradient under the weights.
        """
        gamma = theta[-1]
        beta, fixed, fixed_chosen = self._fixed(theta, gamma)
        logs = -0.5 * (self.z**2).sum(axis=2) - self.log_density
        weights = softmax(logs, axis=1)
        mean_choice, by_beta = np.empty_like(fixed), np.empty(len(fixed))
        for blocks, rows in self.chunks:
            block = self.block[rows] - blocks.start
            of_blocks = np.moveaxis(self.z[blocks] @ self.alternatives, 2, 0)
            worth = np.ascontiguousarray(of_blocks)[:, block]  # [T, rows, P]
            worth_chosen = np.einsum("rpi,ri->rp", self.z[blocks][block], self.chosen[rows])
            choice = beta[rows, None] * worth + fixed[rows].T[:, :, None]
            choice -= (highest := choice.max(axis=0))
            np.exp(choice, out=choice)
            choice /= (total := choice.sum(axis=0))
            likelihood = beta[rows, None] * worth_chosen + fixed_chosen[rows, None] - highest - np.log(total)
            present, first = np.unique(block, return_index=True)
            logs[blocks][present] += np.add.reduceat(likelihood, first, axis=0)
            weights[blocks] = softmax(logs[blocks], axis=1)
            of_rows = weights[blocks][block]  # [rows, P]
            mean_choice[rows] = np.einsum("rp,trp->rt", of_rows, choice)
            worth *= choice
            by_beta[rows] = np.einsum("rp,rp->r", of_rows, worth_chosen - worth.sum(axis=0))

        by_length = self.length_chosen - (mean_choice * self.row_length).sum(axis=1)
        by_row = (
            by_beta + gamma * by_length,
            self.early_chosen - (mean_choice * self.early).sum(axis=1),
            by_length,
            self.chosen_extra - mean_choice @ self.extra,
        )
        of_annotator = [np.bincount(self.who, each, self.count + 1)[: self.count] for each in by_row]
        gradient = np.append(np.stack(of_annotator, axis=1).ravel(), (beta * by_length).sum())
        return logsumexp(logs, axis=1) - np.log(logs.shape[1]), gradient, weights

    def linear(self, theta: Float[np.ndarray, " parameters"]) -> dict[str, LinearChoices]:
        """The choices of every comparison given the annotators' parameters."""
        beta, fixed, fixed_chosen = self._fixed(theta, 0.0)
        alternatives = (
            self.alternatives.T @ self.basis
        )  # [T, k], centred, as only differences of worth matter
        chosen = self.chosen @ self.basis
        return {
            id_: LinearChoices(
                beta[rows, None] * chosen[rows],
                fixed_chosen[rows],
                beta[rows, None, None] * alternatives,
                fixed[rows],
            )
            for c, id_ in enumerate(self.ids)
            for rows in [self.block == c]
        }

    def _fixed(self, theta: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
        worth = self.z @ self.basis + theta[-1] * self.length[:, None, :]  # [C, P, k]
        pairs: dict[str, dict[tuple[int, int], PairPosterior]] = {id_: {} for id_ in self.ids}
        for i, j in combinations(range(self.k), 2):
            difference = worth[:, :, i] - worth[:, :, j]
            probability = (weights * (difference > 0)).sum(axis=1)
            mean = (weights * difference).sum(axis=1)
            deviation = np.sqrt((weights * (difference - mean[:, None]) ** 2).sum(axis=1))
            for c, id_ in enumerate(self.ids):
                pairs[id_][i, j] = PairPosterior(
                    float(np.clip(probability[c], 0.0, 1.0)), float(mean[c]), float(deviation[c])
                )
        return pairs
