"""A reward model's report card: how far its scores can be relied on, figure by figure, from held-out pairs.

    card = report_card(pairs, comparisons, longer_chosen_share=0.58)
    card.accuracy.value, card.accuracy.low     # share of held-out pairs ordered as preferred, and its 95% interval
    (run.path / "report_card.json").write_text(card.model_dump_json(indent=2))

The score of an answer is the mean over the model's heads. A pair is right where the chosen answer has the higher
score, and half right where the scores are equal. Every pair counts once, whatever its weight. Intervals are 95% and
resample whole prompts (`feedback.statistics.Bootstrap`), because pairs of one prompt are not independent; there is none
for fewer than ten prompts.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.optimize import minimize_scalar
from scipy.special import comb, expit
from scipy.stats import mannwhitneyu, permutation_test, rankdata
from statsmodels.stats.contingency_tables import mcnemar

from accord.records import Message, content_id, messages_as_dicts
from feedback.coefficients import ratio
from feedback.rankings import counts, vote
from feedback.statistics import FEWEST_CLUSTERS, Bootstrap, Estimate, wilson
from reward.rows import ScoredComparison, ScoredPair

FEWEST_PAIRS = 20
"""A slice of fewer pairs, or of fewer prompts than an interval needs, is too small to say anything of."""
ABOUT_EQUAL = 0.1
"""Two answers are about equally long if their tokens differ by at most this share of the longer one's."""
LENGTHS = ("chosen is shorter", "about equally long", "chosen is longer")
MOST_VALUES = 20
"""The most frequent values of a topic column are slices of their own; the rest is pooled."""
POOLED = "all other values"
MOST_BINS, PAIRS_PER_BIN = 10, 10
FOLDS = 5
WORST = 10
AUROC_BINS = 100


# --- what the card holds


@dataclass(frozen=True)
class Slice:
    """Accuracy on a part of the held-out pairs; `accuracy` is None where the part is too small to say."""

    by: str
    """What the parts differ in, such as "length" or the name of a column."""
    name: str
    pairs: int
    prompts: int
    accuracy: Estimate | None


@dataclass(frozen=True)
class Bin:
    """Pairs of like confidence: how sure the model was of its order on average, and how often it was right."""

    pairs: int
    confidence: float
    accuracy: Estimate
    """With Wilson's interval, which takes pairs as independent."""


@dataclass(frozen=True)
class Calibration:
    """Whether the model is right as often as it says; p(chosen is better) = sigmoid(score difference / temperature)."""

    bins: list[Bin]
    """Equally many pairs in each, as far as equal confidences allow; the least confident first."""
    ece: float
    """Expected calibration error: |confidence - accuracy| of a bin, averaged over pairs (Guo et al. 2017,
    https://arxiv.org/abs/1706.04599, with bins of equal mass)."""
    ece_by_chance: float
    """About what a perfectly calibrated model would show on so many independent pairs: sampling noise alone."""
    overconfidence: Estimate
    """Mean confidence minus accuracy: above 0 the model is surer than it should be."""
    brier: Estimate
    """Mean of (1 - p)^2: 0 is perfect, 0.25 is always saying one half (Brier 1950)."""
    log_loss: Estimate
    """Mean of -log p, nats: 0 is perfect, ln 2 = 0.693 is always saying one half."""


@dataclass(frozen=True)
class Baselines:
    """Accuracy of rules that read nothing of the answers, on the same pairs."""

    longer_chosen_share: float | None
    """Of the training pairs of unequal length, those whose chosen answer is the longer: decides
    `length_only_prefers`."""
    length_only_prefers: Literal["longer", "shorter"]
    length_only: Estimate
    longer: Estimate
    shorter: Estimate
    first: Estimate | None
    """Always preferring the answer that stood first on the annotators' page; None where no order is known."""
    above_length_only: Estimate
    """The model's accuracy minus the length-only rule's, pair by pair."""


@dataclass(frozen=True)
class LengthBias:
    """How far the score follows length (log tokens); an answer that is in several pairs counts once."""

    answers: int
    pearson: Estimate | None
    spearman: Estimate | None
    """Its interval holds the ranks fixed."""
    pearson_within_prompts: Estimate | None
    """Of score and log tokens after taking each prompt's means out: long answers against short ones to one question."""
    spearman_within_prompts: Estimate | None
    model_prefers_longer: Estimate | None
    """Share of the pairs of unequal length where the longer answer has the higher score."""
    annotators_prefer_longer: Estimate | None
    """Share of the same pairs where the longer answer was chosen."""
    excess: Estimate | None
    """The difference of the two: above 0, the model likes length more than annotators do."""


@dataclass(frozen=True)
class Ensemble:
    """Whether the heads' disagreement tells which pairs are ordered wrongly.

    Disagreement is the standard deviation over heads of the score difference. An AUROC is the chance that a pair
    ordered wrongly has more of it than one ordered rightly: 1/2 is useless, 1 perfect; pairs of equal scores are left
    out.
    """

    heads: int
    auroc: Estimate | None
    auroc_relative: Estimate | None
    """Of the disagreement divided by the size of the mean difference."""
    auroc_of_difference: Estimate | None
    """Of a small mean difference alone, which one head could tell: what disagreement has to beat."""
    thirds: list[Slice]
    """Accuracy on the pairs with the least, a middling and the most disagreement."""


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


@dataclass(frozen=True)
class PreviousModel:
    """This model beside an earlier one, on the pairs that both scored."""

    name: str
    pairs: int
    left_out: int
    """Pairs without its scores, such as those whose prompt it was trained on."""
    accuracy: Estimate | None
    previous_accuracy: Estimate | None
    difference: Estimate | None
    """This model's accuracy minus the earlier one's, pair by pair."""
    p_value: float | None
    """Two-sided sign-flip permutation test of the difference, which flips whole prompts."""
    mcnemar_p_value: float | None
    """McNemar's exact test, two-sided, which takes pairs as independent."""


class ReportCard(BaseModel):
    """Every figure of a reward model's report card; `model_dump_json` writes it, `model_validate_json` reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    pairs: int
    prompts: int
    accuracy: Estimate
    """Share of the held-out pairs that the scores order as preferred; equal scores count one half."""
    mean_margin: float
    """Score of the chosen answer minus the other's, mean over pairs, in the model's own units."""
    slices: list[Slice]
    annotators: list[Slice]
    """By annotator's name: the share of the strict orders this annotator gave that the scores order the same way."""
    calibration: Calibration
    """With the scores as they are, temperature 1."""
    temperature: float
    """That makes the pairs likeliest: above 1 the scores are too spread out, so overconfident."""
    temperature_at_limit: bool
    """Whether no temperature fits: (nearly) all pairs are right, or no more than by chance."""
    calibrated: Calibration | None
    """After dividing by a temperature fitted on other prompts (cross-fitting); None for fewer than ten prompts."""
    baselines: Baselines
    length: LengthBias
    ensemble: Ensemble | None
    ceiling: Ceiling | None
    best_of_n: BestOfN | None
    mistakes: list[Mistake]
    """The most confident first, ten at most."""
    previous: PreviousModel | None

    def metrics(self) -> dict[str, float | int | None]:
        """The flat figures for metrics.json; a figure that does not exist has no key."""
        found: dict[str, float | int | None] = {
            "heldout_pairs": self.pairs,
            "heldout_prompts": self.prompts,
            **_with_interval("heldout_accuracy", self.accuracy),
            "length_only_accuracy": self.baselines.length_only.value,
            "prefer_longer_accuracy": self.baselines.longer.value,
            "prefer_shorter_accuracy": self.baselines.shorter.value,
            "prefer_first_accuracy": _value(self.baselines.first),
            **_with_interval("accuracy_above_length_only", self.baselines.above_length_only),
            "mean_reward_margin": self.mean_margin,
            "heldout_brier": self.calibration.brier.value,
            "heldout_log_loss": self.calibration.log_loss.value,
            "heldout_ece": self.calibration.ece,
            "temperature": self.temperature,
            "heldout_ece_after_temperature": self.calibrated.ece if self.calibrated else None,
            "heldout_brier_after_temperature": self.calibrated.brier.value if self.calibrated else None,
            "score_length_correlation": _value(self.length.spearman),
            **_with_interval("score_length_correlation_within_prompts", self.length.pearson_within_prompts),
            "model_prefers_longer": _value(self.length.model_prefers_longer),
            "annotators_prefer_longer": _value(self.length.annotators_prefer_longer),
        }
        if self.ensemble:
            found |= {
                "disagreement_auroc": _value(self.ensemble.auroc),
                "relative_disagreement_auroc": _value(self.ensemble.auroc_relative),
            }
        if self.ceiling:
            found |= {
                "annotator_agreement": self.ceiling.two_annotators.value,
                "model_agreement_with_annotator": self.ceiling.model_with_annotator.value,
                "annotator_ceiling": self.ceiling.annotator_with_others.value,
                **_with_interval("accuracy_above_annotator", self.ceiling.model_above_annotator),
            }
        if self.best_of_n:
            last = self.best_of_n.curve[-1]
            found |= {
                "best_of_n": last.n,
                "best_of_n_judgement": last.judgement.value,
                "best_of_n_ceiling": last.ceiling.value,
                **_with_interval("best_of_n_gain", self.best_of_n.gain),
            }
        if self.previous:
            found |= {
                "previous_pairs": self.previous.pairs,
                **_with_interval("previous_accuracy_difference", self.previous.difference),
                "previous_accuracy_difference_p": self.previous.p_value,
                "previous_mcnemar_p": self.previous.mcnemar_p_value,
            }
        return {key: value for key, value in found.items() if value is not None}


def _value(estimate: Estimate | None) -> float | None:
    return estimate.value if estimate else None


def _with_interval(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    if estimate is None:
        return {}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


# --- making it


def report_card(
    pairs: Sequence[ScoredPair],
    comparisons: Sequence[ScoredComparison],
    longer_chosen_share: float,
    slices: Sequence[str] = ("topic",),
    previous: str | None = None,
) -> ReportCard:
    """The card of a reward model that scored these held-out rows.

    Args:
        pairs: at least one, all with the same number of heads.
        comparisons: what the pairs were made from; empty where the preferences came from a file of pairs.
        longer_chosen_share: among training pairs of unequal length (tokens), those whose chosen answer is the longer.
        slices: names of further columns of the pairs, whose values are text.
        previous: what the model whose scores are in `previous_*_score` is called; None without one.
    """
    prompts = Prompts([pair.prompt for pair in pairs])
    chosen = np.array([np.mean(pair.chosen_scores) for pair in pairs])
    rejected = np.array([np.mean(pair.rejected_scores) for pair in pairs])
    differences = chosen - rejected
    right = _right(differences)
    asked = [comparison for comparison in comparisons if not comparison.is_probe]
    of_comparisons = Prompts([comparison.prompt for comparison in asked])
    temperature = fit_temperature(differences)
    return ReportCard(
        pairs=len(pairs),
        prompts=prompts.count,
        accuracy=prompts.share(right),
        mean_margin=float(differences.mean()),
        slices=[
            *_slices("length", [_length_difference(pair) for pair in pairs], right, prompts, LENGTHS),
            *_by_strength(pairs, right, prompts),
            *(part for name in slices for part in _by_column(name, pairs, right, prompts)),
        ],
        annotators=_by_annotator(asked, of_comparisons),
        calibration=calibration(differences, right, prompts),
        temperature=temperature,
        temperature_at_limit=_at_limit(temperature, differences),
        calibrated=_after_temperature(differences, right, prompts),
        baselines=_baselines(pairs, right, longer_chosen_share, prompts),
        length=_length_bias(pairs, chosen, rejected, prompts),
        ensemble=_ensemble(pairs, differences, right, prompts),
        ceiling=_ceiling(pairs, asked, right, prompts),
        best_of_n=_best_of_n(asked, of_comparisons),
        mistakes=_worst_mistakes(pairs, asked, chosen, rejected),
        previous=_against_previous(previous, pairs, right, prompts) if previous is not None else None,
    )


class Prompts:
    """Which prompt each row belongs to, and figures of rows whose intervals resample whole prompts."""

    def __init__(self, prompts: Sequence[Sequence[Message]]) -> None:
        """Number the prompts by their content, so that the order of rows changes nothing."""
        ids = [content_id(messages_as_dicts(prompt)) for prompt in prompts]
        place = {id_: i for i, id_ in enumerate(sorted(set(ids)))}
        self.count = len(place)
        self.of = np.array([place[id_] for id_ in ids], dtype=int)
        """The number of each row's prompt [rows]."""
        self._bootstrap = Bootstrap(self.count)

    def estimate(
        self,
        contributions: np.ndarray,
        statistic: Callable[[np.ndarray], np.ndarray],
        rows: np.ndarray | None = None,
    ) -> Estimate | None:
        """A statistic of sums over rows.

        Args:
            contributions: what each row adds [rows, F].
            statistic: takes sums [..., F] and gives values [...], NaN where it is undefined.
            rows: which rows these are, indices or a mask; None: all.

        Returns:
            The estimate with its interval, or None where the statistic is undefined.
        """
        of = self.of if rows is None else self.of[rows]
        added = np.zeros((max(1, self.count), contributions.shape[1]))
        np.add.at(added, of, contributions)
        return self._bootstrap.estimate(added, statistic, len(contributions))

    def mean(self, values: np.ndarray, rows: np.ndarray | None = None) -> Estimate:
        """The mean of some rows' values [rows]; there must be one at least."""
        found = self.estimate(np.column_stack([values, np.ones(len(values))]), ratio, rows)
        assert found is not None
        return found

    def share(self, right: np.ndarray, rows: np.ndarray | None = None) -> Estimate:
        """The same for values between 0 and 1.

        Where all are 0, or all 1, resampling finds no spread; then the interval is Wilson's, of as many independent
        items as there are prompts.
        """
        found = self.mean(right, rows)
        if found.low is not None and found.low == found.high and found.value in (0.0, 1.0):
            return replace(wilson(found.value, self.among(rows)), items=found.items)
        return found

    def among(self, rows: np.ndarray | None) -> int:
        """How many prompts these rows have."""
        return len(np.unique(self.of if rows is None else self.of[rows]))


def _right(differences: np.ndarray) -> np.ndarray:
    """1 where the difference is positive, 1/2 where it is zero, 0 where it is negative."""
    return (np.sign(differences) + 1) / 2


# --- slices


def _slices(
    by: str, names: Sequence[str | None], right: np.ndarray, prompts: Prompts, order: Sequence[str] = ()
) -> list[Slice]:
    """Accuracy by name, in this order, or the largest part first; None is in no part."""
    sizes = Counter(name for name in names if name is not None)
    parts = []
    for name in order or sorted(sizes, key=lambda name: (name == POOLED, -sizes[name], name)):
        rows = np.array([each == name for each in names])
        if rows.any():
            parts.append(_slice(by, name, right[rows], prompts, rows))
    return parts


def _slice(by: str, name: str, right: np.ndarray, prompts: Prompts, rows: np.ndarray) -> Slice:
    of = prompts.among(rows)
    enough = len(right) >= FEWEST_PAIRS and of >= FEWEST_CLUSTERS
    return Slice(by, name, len(right), of, prompts.share(right, rows) if enough else None)


def _length_difference(pair: ScoredPair) -> str:
    longest = max(pair.chosen_tokens, pair.rejected_tokens)
    if abs(pair.chosen_tokens - pair.rejected_tokens) <= ABOUT_EQUAL * longest:
        return LENGTHS[1]
    return LENGTHS[2] if pair.chosen_tokens > pair.rejected_tokens else LENGTHS[0]


def _thirds(values: np.ndarray) -> np.ndarray:
    """0, 1 or 2 for the lowest, middle and highest third of the values; equal values are in the same third."""
    return np.minimum(3 * (rankdata(values) - 0.5) / len(values), 2).astype(int)


def _by_strength(pairs: Sequence[ScoredPair], right: np.ndarray, prompts: Prompts) -> list[Slice]:
    """By the annotators' margin, or else the weight, in thirds; and by whether they were unanimous."""
    found: list[Slice] = []
    for by in ("margin", "weight"):
        known = [i for i, pair in enumerate(pairs) if getattr(pair, by) is not None]
        if not known or (found and by == "weight"):
            continue
        values = np.array([getattr(pairs[i], by) for i in known])
        third = _thirds(values)
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
        None if pair.agreement is None else "unanimous" if pair.agreement == 1 else "contested"
        for pair in pairs
    ]
    return [*found, *_slices("agreement", unanimous, right, prompts, ("unanimous", "contested"))]


def _by_column(name: str, pairs: Sequence[ScoredPair], right: np.ndarray, prompts: Prompts) -> list[Slice]:
    values = [(pair.model_extra or {}).get(name) for pair in pairs]
    texts = [value if isinstance(value, str) else None for value in values]
    frequent = {value for value, _ in Counter(sorted(t for t in texts if t)).most_common(MOST_VALUES)}
    return _slices(name, [t if t in frequent else POOLED if t else None for t in texts], right, prompts)


def _by_annotator(comparisons: Sequence[ScoredComparison], prompts: Prompts) -> list[Slice]:
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
        parts.append(_slice("annotator", name, right, prompts, rows))
    return parts


def _different(comparison: ScoredComparison) -> list[tuple[int, int]]:
    """The pairs of responses whose texts differ."""
    texts = [response.text for response in comparison.responses]
    return [(i, j) for i, j in combinations(range(len(texts)), 2) if texts[i] != texts[j]]


# --- calibration


def calibration(scaled: np.ndarray, right: np.ndarray, prompts: Prompts) -> Calibration:
    """Whether sigmoid(scaled) is how often the chosen answer is the better one.

    Args:
        scaled: chosen minus rejected score, divided by the temperature [pairs].
        right: 1, 1/2 or 0 [pairs].
        prompts: of the pairs.
    """
    n = len(scaled)
    confidence = expit(np.abs(scaled))
    count = max(1, min(MOST_BINS, n // PAIRS_PER_BIN))
    place = np.minimum(count * (rankdata(confidence) - 0.5) / n, count - 1).astype(int)
    bins, ece, by_chance = [], 0.0, 0.0
    for each in np.unique(place):
        inside = place == each
        size, sure, share = int(inside.sum()), confidence[inside].mean(), right[inside].mean()
        bins.append(Bin(size, float(sure), wilson(float(share), size)))
        ece += size / n * abs(sure - share)
        # a normal variable of variance v has mean absolute value sqrt(2 v / pi)
        variance = (confidence[inside] * (1 - confidence[inside])).mean() / size
        by_chance += size / n * math.sqrt(2 * variance / math.pi)
    return Calibration(
        bins=bins,
        ece=float(ece),
        ece_by_chance=by_chance,
        overconfidence=prompts.mean(confidence - right),
        brier=prompts.mean(expit(-scaled) ** 2),
        log_loss=prompts.mean(np.logaddexp(0, -scaled)),
    )


def fit_temperature(differences: np.ndarray) -> float:
    """The temperature T that minimises the mean of -log sigmoid(difference / T).

    It is looked for between a hundredth and a hundred times the root mean square of the differences; it is at the lower
    end where all are positive, and at the upper end where they are negative on average.
    """
    scale = math.sqrt(float((differences**2).mean()))
    if scale == 0:
        return 1.0
    found = minimize_scalar(
        lambda log_temperature: np.logaddexp(0, -differences / math.exp(log_temperature)).mean(),
        bounds=(math.log(scale / 100), math.log(scale * 100)), method="bounded", options={"xatol": 1e-8},
    )  # fmt: skip
    return math.exp(float(found.x))


def _at_limit(temperature: float, differences: np.ndarray) -> bool:
    scale = math.sqrt(float((differences**2).mean()))
    return scale == 0 or not scale / 95 < temperature < scale * 95


def _after_temperature(differences: np.ndarray, right: np.ndarray, prompts: Prompts) -> Calibration | None:
    """Calibration where each pair's temperature was fitted on the pairs of other prompts."""
    if prompts.count < FEWEST_CLUSTERS:
        return None
    fold, scaled = prompts.of % FOLDS, np.empty_like(differences)
    for each in range(FOLDS):
        scaled[fold == each] = differences[fold == each] / fit_temperature(differences[fold != each])
    return calibration(scaled, right, prompts)


# --- length and place


def _baselines(
    pairs: Sequence[ScoredPair], right: np.ndarray, longer_chosen_share: float, prompts: Prompts
) -> Baselines:
    longer = _right(np.array([pair.chosen_tokens - pair.rejected_tokens for pair in pairs]))
    prefers: Literal["longer", "shorter"] = "shorter" if longer_chosen_share < 0.5 else "longer"
    length_only = longer if prefers == "longer" else 1 - longer
    known = np.array([pair.shown_first is not None for pair in pairs])
    first = np.array([float(pair.shown_first == "chosen") for pair in pairs])
    return Baselines(
        longer_chosen_share=longer_chosen_share if math.isfinite(longer_chosen_share) else None,
        length_only_prefers=prefers,
        length_only=prompts.share(length_only),
        longer=prompts.share(longer),
        shorter=prompts.share(1 - longer),
        first=prompts.share(first[known], known) if known.any() else None,
        above_length_only=prompts.mean(right - length_only),
    )


def _length_bias(
    pairs: Sequence[ScoredPair], chosen: np.ndarray, rejected: np.ndarray, prompts: Prompts
) -> LengthBias:
    # the row of the first pair with each answer tells the answer's prompt
    answers: dict[Any, tuple[int, float, float]] = {}
    for row, pair in enumerate(pairs):
        for text, score, tokens in (
            (pair.chosen, chosen[row], pair.chosen_tokens),
            (pair.rejected, rejected[row], pair.rejected_tokens),
        ):
            key = (prompts.of[row], content_id(messages_as_dicts(text)))
            answers.setdefault(key, (row, float(score), math.log(max(1, tokens))))
    rows = np.array([row for row, _, _ in answers.values()])
    score, length = (np.array([each[i] for each in answers.values()]) for i in (1, 2))
    inner_score, inner_length = (_centred(values, prompts.of[rows]) for values in (score, length))
    gap = np.array([pair.chosen_tokens - pair.rejected_tokens for pair in pairs])
    unequal = gap != 0
    by_model = _right((chosen - rejected) * np.sign(gap))[unequal]
    by_annotators = _right(gap)[unequal]
    return LengthBias(
        answers=len(answers),
        pearson=_correlation(score, length, rows, prompts),
        spearman=_correlation(rankdata(score), rankdata(length), rows, prompts),
        pearson_within_prompts=_correlation(inner_score, inner_length, rows, prompts),
        spearman_within_prompts=_correlation(rankdata(inner_score), rankdata(inner_length), rows, prompts),
        model_prefers_longer=prompts.share(by_model, unequal) if unequal.any() else None,
        annotators_prefer_longer=prompts.share(by_annotators, unequal) if unequal.any() else None,
        excess=prompts.mean(by_model - by_annotators, unequal) if unequal.any() else None,
    )


def _centred(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    sums, sizes = np.bincount(groups, values), np.bincount(groups)
    centred = values - (sums / np.maximum(sizes, 1))[groups]
    return np.where(np.abs(centred) < 1e-9 * max(1.0, float(np.abs(values).max())), 0.0, centred)


def _correlation(x: np.ndarray, y: np.ndarray, rows: np.ndarray, prompts: Prompts) -> Estimate | None:
    """Pearson's correlation, a function of the sums of x, y and their products."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()

    def correlation(sums: np.ndarray) -> np.ndarray:
        n, sx, sy, xx, yy, xy = (sums[..., i] for i in range(6))
        variances = np.maximum(n * xx - sx**2, 0) * np.maximum(n * yy - sy**2, 0)
        return np.clip((n * xy - sx * sy) / np.sqrt(variances), -1, 1)

    return prompts.estimate(np.column_stack([np.ones(len(x)), x, y, x * x, y * y, x * y]), correlation, rows)


# --- the ensemble


def _ensemble(
    pairs: Sequence[ScoredPair], differences: np.ndarray, right: np.ndarray, prompts: Prompts
) -> Ensemble | None:
    heads = len(pairs[0].chosen_scores)
    if heads < 2:
        return None
    by_head = np.array([np.subtract(pair.chosen_scores, pair.rejected_scores) for pair in pairs])
    disagreement = by_head.std(axis=1, ddof=1)
    decided = differences != 0
    wrong, size = right[decided] == 0, np.abs(differences[decided])
    third = _thirds(disagreement)
    return Ensemble(
        heads=heads,
        auroc=auroc(disagreement[decided], wrong, decided, prompts),
        auroc_relative=auroc(disagreement[decided] / size, wrong, decided, prompts),
        auroc_of_difference=auroc(-size, wrong, decided, prompts),
        thirds=[
            _slice("disagreement", name, right[third == each], prompts, third == each)
            for each, name in enumerate(("least", "middling", "most"))
            if (third == each).any()
        ],
    )


def auroc(values: np.ndarray, wrong: np.ndarray, rows: np.ndarray, prompts: Prompts) -> Estimate | None:
    """The chance that a wrong pair has a higher value than a right one, equal values counting half.

    Args:
        values: [pairs].
        wrong: whether the pair was ordered wrongly [pairs].
        rows: which rows these pairs are.
        prompts: of all rows.

    Returns:
        Mann and Whitney's U over its maximum, or None unless there are pairs of both kinds. The interval is of the
        same after putting the values into a hundred bins of equal mass.
    """
    if wrong.all() or not wrong.any():
        return None
    u = mannwhitneyu(values[wrong], values[~wrong], method="asymptotic").statistic
    exact = float(u) / (int(wrong.sum()) * int((~wrong).sum()))
    place = np.minimum(AUROC_BINS * (rankdata(values) - 0.5) / len(values), AUROC_BINS - 1).astype(int)
    contributions = np.zeros((len(values), 2 * AUROC_BINS))
    contributions[np.arange(len(values)), place + AUROC_BINS * wrong] = 1

    def binned(sums: np.ndarray) -> np.ndarray:
        right_ones, wrong_ones = sums[..., :AUROC_BINS], sums[..., AUROC_BINS:]
        below = right_ones.cumsum(axis=-1) - right_ones / 2
        return (wrong_ones * below).sum(axis=-1) / (wrong_ones.sum(axis=-1) * right_ones.sum(axis=-1))

    found = prompts.estimate(contributions, binned, rows)
    return replace(found, value=exact) if found else None


# --- what annotators say


def _votes(pairs: Sequence[ScoredPair], comparisons: Sequence[ScoredComparison]) -> list[list[int] | None]:
    """Each pair's votes: 1 for the chosen answer, -1 for the other, 0 for a tie; None where they are not known.

    A pair's id names its comparison and the places of its answers, as `feedback.preferences` writes it: `c-17:2>0`.
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


def _ceiling(
    pairs: Sequence[ScoredPair], comparisons: Sequence[ScoredComparison], right: np.ndarray, prompts: Prompts
) -> Ceiling | None:
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


def _best_of_n(comparisons: Sequence[ScoredComparison], prompts: Prompts) -> BestOfN | None:
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


def _worst_mistakes(
    pairs: Sequence[ScoredPair],
    comparisons: Sequence[ScoredComparison],
    chosen: np.ndarray,
    rejected: np.ndarray,
) -> list[Mistake]:
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


# --- the earlier model


def _against_previous(
    name: str, pairs: Sequence[ScoredPair], right: np.ndarray, prompts: Prompts
) -> PreviousModel:
    before = [
        None
        if pair.previous_chosen_score is None or pair.previous_rejected_score is None
        else pair.previous_chosen_score - pair.previous_rejected_score
        for pair in pairs
    ]
    both = np.array([difference is not None for difference in before])
    left_out = int((~both).sum())
    if not both.any():
        return PreviousModel(name, 0, left_out, None, None, None, None, None)
    now = right[both]
    then = _right(np.array([difference for difference in before if difference is not None]))
    by_prompt = np.bincount(prompts.of[both], now - then, minlength=prompts.count)
    gained, lost = int((now > then).sum()), int((now < then).sum())
    return PreviousModel(
        name=name,
        pairs=int(both.sum()),
        left_out=left_out,
        accuracy=prompts.share(now, both),
        previous_accuracy=prompts.share(then, both),
        difference=prompts.mean(now - then, both),
        p_value=sign_flip_p_value(by_prompt),
        mcnemar_p_value=float(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue) if gained + lost else 1.0,
    )


def sign_flip_p_value(differences: np.ndarray) -> float:
    """Two-sided: how often a sum as far from 0 comes up when the sign of each of these is drawn at random.

    Exact for up to 13 differences that are not 0, otherwise from 9,999 draws.
    """
    moved = differences[differences != 0]
    if len(moved) < 2:
        return 1.0
    found = permutation_test(
        (moved,), lambda values, axis: values.sum(axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=9_999, batch=500, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(found.pvalue)
