"""How far each annotator follows what the answers are worth, and what the answers are worth given that.

Two models. `fit_reliability` is for rankings: Bradley and Terry's, with an annotator's reliability (Chen et al. 2013,
"Pairwise ranking aggregation in a crowdsourced setting"), a liking for early places and one for long answers.
feedback/belief/dawid_skene.py is for labels.

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
worth, and only what one annotator likes it more than the others is a bias. Places are drawn at random, so a liking
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
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from accord.records import Comparison
from feedback.belief.information import observed_information
from feedback.belief.likelihood import ComparisonBatch, GivenRanking, LinearChoices, PairPosterior
from feedback.belief.rankings import same_responses

FEWEST_ANNOTATORS, FEWEST_GOLD = 3, 10
PRECISION_IF_ALIKE = 100.0
"""With fewer annotators and gold records, nothing says which of two who disagree is wrong: the likelihood is as high
with either as the liar. All are then taken as about equally reliable, by a prior of beta with this precision, so that
what they disagree on stays undecided."""
PRIOR_MEAN = np.array([1.0, 0.0, 0.0, -1.0])
"""Of beta, position, length and tie; each has the standard deviation 1, as has gamma around 0."""
POINTS, FINAL_POINTS = 128, 512
"""Quasi-random points a comparison: while the parameters are sought, and for the probabilities, or where the search did
not settle with the fewer ones."""
PART = 2_000
"""Comparisons whose final points are held at a time."""
ROUNDS = 12
"""At most so many times are the points moved to where the posterior is; it takes 4 to 6."""
SETTLED = 0.05
"""A round that moves no parameter by more is the last; their deviations are several times this."""

LEAST_BETA_ALONE = 0.367
"""The beta with which six pairs in ten are ordered as their worth is."""
UNSETTLED = (
    "the model of the annotators' reliability did not settle, so its figures and the preferences' weights are "
    "rough"
)


@dataclass(frozen=True)
class AnnotatorReliability:
    """One annotator's parameters with their standard deviations; `rankings` is how many of theirs were used."""

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
        """What share of pairs of responses would be ordered as their worth is, were they equally long and placed."""
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

    Gold answers and adjudications enter as answers of an annotator who cannot err,
    with the beta `feedback.belief.likelihood.TRUTH_SLOPE`.
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
    # many responses have worths in many dimensions, of which few points see too little to settle
    for points in (POINTS, FINAL_POINTS):
        for group in groups:
            group.spread(points)
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
                group.spread(points)
            if moved < SETTLED:
                converged = True
                break
        if converged:
            break
    deviations = _deviations(theta, groups, beta_precision).reshape(-1, 4)
    pairs: dict[str, dict[tuple[int, int], PairPosterior]] = {}
    for group in groups:
        for part in group.parts(PART):
            part.spread(FINAL_POINTS)
            pairs.update(part.pair_posteriors(theta))
    of_annotator = theta[:-1].reshape(-1, 4)
    return Reliability(
        annotators={
            name: AnnotatorReliability(
                beta=float(value[0]), beta_deviation=float(deviation[0]),
                position=float(value[1]), position_deviation=float(deviation[1]),
                length=float(value[2]), length_deviation=float(deviation[2]),
                tie=float(value[3]), rankings=sum(group.rankings[name] for group in groups),
            )
            for name, value, deviation in zip(names, of_annotator, deviations, strict=True)
        },
        shared_length=float(theta[-1]),
        pairs=pairs,
        converged=converged,
    )  # fmt: skip


def choices_given(comparisons: Sequence[Comparison], reliability: Reliability) -> dict[str, LinearChoices]:
    """Every ranked comparison's choices as functions of what its responses are worth, for whoever models the worth.

    Where one annotator alone ranked a comparison, his beta is at least `LEAST_BETA_ALONE`: nobody's answer is turned
    round, or counts for nothing, without a second opinion.

    Args:
        comparisons: those that `reliability` was fitted to; a duplicate's rankings count for the original.
        reliability: how far each annotator follows the worth, and what else they follow.
    """
    names, groups = _gather(comparisons)
    of_annotator = [reliability.annotators[name] for name in names]
    theta = np.array([[each.beta, each.position, each.length, each.tie] for each in of_annotator])
    theta = np.append(theta.ravel(), reliability.shared_length)
    believed = theta.copy()
    believed[:-1:4] = np.maximum(believed[:-1:4], LEAST_BETA_ALONE)
    found: dict[str, LinearChoices] = {}
    for group in groups:
        found |= group.linear(theta)
        if (believed != theta).any():
            by_itself = group.linear(believed)
            found |= {id_: by_itself[id_] for id_ in group.ranked_by_one()}
    return found


def negative_log_posterior(
    theta: np.ndarray, groups: "Sequence[ComparisonBatch]", beta_precision: float = 1.0
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


def _deviations(theta: np.ndarray, groups: "Sequence[ComparisonBatch]", beta_precision: float) -> np.ndarray:
    """The posterior standard deviations of the annotators' parameters: the inverse of the posterior's curvature."""
    known = np.diag(np.append(np.tile([beta_precision, 1.0, 1.0, 1.0], len(theta) // 4), 1.0))
    for group in groups:
        known += observed_information(group, theta)
    covariance = np.linalg.pinv(known, hermitian=True)
    return np.sqrt(np.maximum(np.diag(covariance)[:-1], 0))


# --- from records to arrays


def _gather(comparisons: Sequence[Comparison]) -> "tuple[list[str], list[ComparisonBatch]]":
    """The annotators, and the comparisons that someone ranked in groups of equally many responses."""
    by_id = {comparison.id: comparison for comparison in comparisons}
    answers: dict[str, list[GivenRanking]] = {}
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
        ) -> GivenRanking:
            return GivenRanking(who, [rank for _, rank in sorted(zip(places, ranks, strict=True))], early)

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
        groups.append(ComparisonBatch(k, names, {id_: answers[id_] for id_ in ids}, length))
    return names, groups
