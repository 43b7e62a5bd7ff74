"""How far each annotator follows what the answers are worth, and what the answers are worth given that.

Two models. `fit_reliability` is for rankings: Bradley and Terry's, with an annotator's reliability (Chen et al. 2013,
"Pairwise ranking aggregation in a crowdsourced setting"), a liking of his for early places and one for long answers.
feedback/dawid_skene.py is for labels.

    reliability = fit_reliability(comparisons)
    reliability.annotators["ann-3"].beta          # 0: follows nothing; below 0: ranks the wrong way round
    reliability.probability("c-17", 0, 2)         # that response 0 is the better one

Annotator a likes response i of a comparison by

    s_ai = beta_a u_i + position_a (1 at the first place ... 0 at the last) + length_a x_i

where u_i is what the response is worth and x_i its log length, centred in the comparison and scaled. His ranking is
a sequence of choices of the best of those that remain, ties included, by Davidson and Luce's model (Firth, Kosmidis
and Turner 2019, "Davidson-Luce model for multi-item choice with ties"): a tied set T has the weight
exp((|T| - 1) tie_a + mean of s_ai over T). For two responses this is Davidson's (1970) extension of Bradley and Terry;
without ties it is Plackett and Luce's.

Priors: u_i ~ N(gamma x_i, 1), beta ~ N(1, 1), position, length, gamma ~ N(0, 1), tie ~ N(-1, 1). That beta is centred
above 0 fixes the sign of everything. gamma is the part of the liking for length that annotators share: it counts as
worth, and only what one annotator likes it more than the others is his bias. Places are drawn at random, so a liking
for a place is never worth.

The annotators' parameters maximise their posterior with every u integrated out; were u maximised jointly, an
annotator who is never contradicted would look infallible (Neyman and Scott 1948). Given the parameters, comparisons
are independent and have few responses each, so the integrals are sums over quasi-random points of each comparison's
own, drawn around its posterior and weighted by importance. (Laplace's approximation was tried, and called pairs 75%
certain that were never wrong: under a reliable annotator the posterior is a cut-off normal, whose mode says little.)
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from scipy.linalg import helmert
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax
from scipy.stats import norm, qmc

from accord.records import Comparison
from feedback.rankings import same_responses

TRUTH_SLOPE = 6.0
"""The beta of a gold answer or an adjudication: taken as truth, but for near-ties of the responses' worth."""
FEWEST_ANNOTATORS, FEWEST_GOLD = 3, 10
PRECISION_IF_ALIKE = 100.0
"""With fewer annotators and gold records, nothing says which of two who disagree is wrong: the likelihood is as high
with either as the liar. All are then taken as about equally reliable, by a prior of beta with this precision, so that
what they disagree on stays undecided."""
PRIOR_MEAN = np.array([1.0, 0.0, 0.0, -1.0])
"""Of beta, position, length and tie; each has the standard deviation 1, as has gamma around 0."""
POINTS, FINAL_POINTS = 128, 512
"""Quasi-random points a comparison: while the parameters are sought, and for the probabilities."""
ROUNDS = 12
"""At most so many times are the points moved to where the posterior is; it takes 4 to 6."""
WIDER = 2.0
"""How much wider than the posterior (in variance) the points are spread, so that its tails are seen."""
MOST_SUBSETS = 40
"""Tied sets are alternatives up to the size at which there are no more subsets than this: of any size for up to 5
responses, pairs for 6 to 8. A larger tie counts as the mean over the sets of that size within it."""
SETTLED = 0.05
"""A round that moves no parameter by more is the last; their deviations are several times this."""
CHUNK = 1 << 16
"""Numbers worked on at a time; more would not fit into a processor's cache."""


@dataclass(frozen=True)
class AnnotatorReliability:
    """One annotator's parameters with their standard deviations; `rankings` is how many of his were used."""

    beta: float
    beta_deviation: float
    position: float
    position_deviation: float
    length: float
    length_deviation: float
    tie: float
    rankings: int

    @property
    def accuracy(self) -> float:
        """How many pairs of responses he would order as their worth does, were they equally long and placed."""
        return expected_accuracy(self.beta)

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """The same at beta minus and plus 1.96 standard deviations."""
        half = 1.96 * self.beta_deviation
        return expected_accuracy(self.beta - half), expected_accuracy(self.beta + half)


def expected_accuracy(beta: float) -> float:
    """The mean of 1 / (1 + exp(-beta |d|)) over differences in worth d ~ N(0, 2), by Gauss-Hermite quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(64)
    return float((weights * expit(beta * math.sqrt(2) * np.abs(points))).sum() / weights.sum())


@dataclass(frozen=True)
class PairPosterior:
    """Of two responses: the probability that the first is worth more, and their difference in worth (mean, deviation).

    Worth is in standard deviations of responses to one prompt.
    """

    probability: float
    difference: float
    deviation: float


@dataclass(frozen=True)
class Reliability:
    """What the rankings say of annotators and responses; a comparison that nobody ranked is not in `pairs`."""

    annotators: dict[str, AnnotatorReliability]
    shared_length: float
    """gamma: how much more a response is worth for one standard deviation more of log length."""
    pairs: dict[str, dict[tuple[int, int], PairPosterior]]
    """By comparison and pair of responses (first index below the second)."""
    converged: bool

    def probability(self, comparison_id: str, first: int, second: int) -> float | None:
        """That response `first` is worth more than `second`; None where nobody ranked the comparison."""
        of_comparison = self.pairs.get(comparison_id)
        if of_comparison is None:
            return None
        if first < second:
            return of_comparison[first, second].probability
        return 1 - of_comparison[second, first].probability

    def as_dict(self) -> dict[str, Any]:
        """The annotators' part as JSON; what concerns the responses is in the preferences."""
        return {
            "annotators": {name: asdict(each) for name, each in self.annotators.items()},
            "shared_length": self.shared_length,
            "converged": self.converged,
        }


def fit_reliability(comparisons: Sequence[Comparison]) -> Reliability:
    """Fit the model above to every submitted ranking.

    Gold answers and adjudications enter as answers of an annotator who cannot err (beta fixed at `TRUTH_SLOPE`).
    A duplicate adds its rankings to the comparison that it repeats. Where `display_order` is missing, places
    are taken as without influence. Nothing is drawn at random: the same records give the same figures.
    """
    names, groups = _gather(comparisons)
    theta = np.append(np.tile(PRIOR_MEAN, len(names)), 0.0)
    if not names:
        return Reliability({}, 0.0, {}, True)
    known = sum(comparison.gold_ranks is not None for comparison in comparisons)
    can_tell_apart = len(names) >= FEWEST_ANNOTATORS or known >= FEWEST_GOLD
    beta_precision = 1.0 if can_tell_apart else PRECISION_IF_ALIKE
    converged = False
    for group in groups:
        group.spread(POINTS)
    for _ in range(ROUNDS):
        found = minimize(
            negative_log_posterior,
            theta,
            args=(groups, beta_precision),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 25},
        )
        moved, theta = np.abs(found.x - theta).max(), found.x
        for group in groups:
            group.approach(theta)
            group.spread(POINTS)
        if moved < SETTLED:
            converged = True
            break
    deviations = _deviations(theta, groups, beta_precision).reshape(-1, 4)
    pairs = {}
    for group in groups:
        group.spread(FINAL_POINTS)
        pairs.update(group.pair_posteriors(theta))
    of_annotator = theta[:-1].reshape(-1, 4)
    return Reliability(
        annotators={
            name: AnnotatorReliability(
                beta=float(value[0]), beta_deviation=float(deviation[0]),
                position=float(value[1]), position_deviation=float(deviation[1]),
                length=float(value[2]), length_deviation=float(deviation[2]),
                tie=float(value[3]), rankings=sum(group.rankings.get(name, 0) for group in groups),
            )
            for name, value, deviation in zip(names, of_annotator, deviations, strict=True)
        },
        shared_length=float(theta[-1]),
        pairs=pairs,
        converged=converged,
    )  # fmt: skip


def negative_log_posterior(
    theta: np.ndarray, groups: "Sequence[Group]", beta_precision: float = 1.0
) -> tuple[float, np.ndarray]:
    """Minus the log posterior of every annotator's (beta, position, length, tie) and of gamma, and its gradient."""
    annotators = len(theta) // 4
    deviation = theta - np.append(np.tile(PRIOR_MEAN, annotators), 0.0)
    precision = np.append(np.tile([beta_precision, 1.0, 1.0, 1.0], annotators), 1.0)
    value, gradient = -0.5 * deviation @ (precision * deviation), -precision * deviation
    for group in groups:
        evidence, slope, _ = group.evidence(theta)
        value, gradient = value + evidence.sum(), gradient + slope
    return -float(value), -gradient


def _deviations(
    theta: np.ndarray, groups: "Sequence[Group]", beta_precision: float, step: float = 1e-3
) -> np.ndarray:
    """The posterior standard deviations of the annotators' parameters: the gradient's differences, inverted."""
    here = negative_log_posterior(theta, groups, beta_precision)[1]
    moves = step * np.eye(len(theta))
    there = [negative_log_posterior(theta + move, groups, beta_precision)[1] for move in moves]
    information = (np.array(there) - here) / step
    covariance = np.linalg.pinv((information + information.T) / 2, hermitian=True)
    return np.sqrt(np.maximum(np.diag(covariance)[:-1], 0))


# --- from records to arrays


def _gather(comparisons: Sequence[Comparison]) -> "tuple[list[str], list[Group]]":
    """The annotators, and the comparisons that someone ranked in groups of equally many responses."""
    by_id = {comparison.id: comparison for comparison in comparisons}
    answers: dict[str, list[Answer]] = {}
    for comparison in comparisons:
        k = len(comparison.responses)
        head, places = comparison, list(range(k))
        original = by_id.get(comparison.duplicate_of or "")
        if original is not None and (same := same_responses(comparison, original)) is not None:
            head, places = original, same
        early = np.zeros(k)
        for place, response in enumerate(comparison.display_order or []):
            early[places[response]] = (k - 1 - place) / (k - 1)

        def answer(
            who: str | None, ranks: list[int], places: list[int] = places, early: Any = early
        ) -> Answer:
            return Answer(who, [rank for _, rank in sorted(zip(places, ranks, strict=True))], early)

        given = [
            answer(None if ranking.adjudicates else ranking.annotator, ranking.ranks)
            for ranking in comparison.rankings
            if ranking.status == "submitted" and ranking.ranks is not None
        ]
        if given and comparison.gold_ranks is not None:
            given.append(answer(None, comparison.gold_ranks))
        if given:
            answers.setdefault(head.id, []).extend(given)
    names = sorted({each.who for given in answers.values() for each in given if each.who is not None})
    logs = {id_: np.log1p([len(response.text) for response in by_id[id_].responses]) for id_ in answers}
    lengths = {id_: values - values.mean() for id_, values in logs.items()}
    scale = np.concatenate(list(lengths.values())).std() if lengths else 1.0
    groups = []
    for k in sorted({len(values) for values in lengths.values()}):
        ids = [id_ for id_, values in lengths.items() if len(values) == k]
        length = np.array([lengths[id_] for id_ in ids]) / (scale or 1.0)
        groups.append(Group(k, names, {id_: answers[id_] for id_ in ids}, length))
    return names, groups


@dataclass(frozen=True)
class Answer:
    """One ranking of a comparison's responses; `who` is None for the truth, `early` 1 at the first place ... 0."""

    who: str | None
    ranks: list[int]
    early: np.ndarray


def _choices(answer: Answer) -> list[tuple[set[int], set[int]]]:
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


class Group:
    """Comparisons of k responses each as arrays, and the points over which their worths are integrated.

    C comparisons, R choices (rows, sorted by comparison), T subsets of responses that may be chosen, P points. Only
    differences of worth matter, so a point z has k - 1 coordinates, standard normal by the prior, and the centred
    worths are z @ basis + gamma x.
    """

    def __init__(
        self, k: int, names: list[str], answers: dict[str, list[Answer]], length: np.ndarray
    ) -> None:
        """Args: `answers` by comparison; `length` the scaled centred log lengths [C, k]."""
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

    def approach(self, theta: np.ndarray) -> None:
        """Move the center of the points to the mean of the posterior, and their spread to `WIDER` times its own."""
        _, _, weights = self.evidence(theta)
        self.center = np.einsum("cp,cpi->ci", weights, self.z)
        centred = self.z - self.center[:, None, :]
        covariance = np.einsum("cp,cpi,cpj->cij", weights, centred, centred, optimize=True)
        self.root = np.linalg.cholesky(WIDER * covariance + 1e-4 * np.eye(self.k - 1))

    def evidence(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The log evidence of each comparison [C], the gradient of their sum, and the points' posterior weights [C, P].

        log evidence = log mean over points of prior(z) likelihood(z) / density(z); its gradient is the mean of the
        log likelihood's gradient under the weights.
        """
        parameters = np.vstack([theta[:-1].reshape(-1, 4), [TRUTH_SLOPE, 0.0, 0.0, -30.0]])
        beta, position, length, tie = parameters[self.who].T
        gamma = theta[-1]
        length_or_worth = length + beta * gamma
        fixed = self.allowed + (
            position[:, None] * self.early
            + length_or_worth[:, None] * self.row_length
            + tie[:, None] * self.extra
        )
        fixed_chosen = (
            position * self.early_chosen + length_or_worth * self.length_chosen + tie * self.chosen_extra
        )
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

    def pair_posteriors(self, theta: np.ndarray) -> dict[str, dict[tuple[int, int], PairPosterior]]:
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
