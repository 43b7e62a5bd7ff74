"""A reward model's report card: how far its scores can be relied on, figure by figure, from held-out pairs.

    card = report_card(pairs, comparisons, longer_chosen_share=0.58)
    card.accuracy.value, card.accuracy.low     # share of held-out pairs ordered as preferred, and its 95% interval
    (run.path / "report_card.json").write_text(card.model_dump_json(indent=2))

The score of an answer is the mean over the model's heads. A pair is right where the chosen answer has the higher
score, and half right where the scores are equal. Every pair counts once, whatever its weight. Intervals are 95% and
resample whole prompts (`accord.statistics.Bootstrap`), because pairs of one prompt are not independent; there is none
for fewer than ten prompts. What each part's figures are, and how they are made, stands in `reward/card/`.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from accord.statistics import Estimate
from reward.card.calibration import Calibration, after_temperature, at_limit, calibration, fit_temperature
from reward.card.ensemble import Ensemble, ensemble
from reward.card.length import Baselines, LengthBias, baselines, length_bias
from reward.card.people import BestOfN, Ceiling, Mistake, best_of_n, ceiling, worst_mistakes
from reward.card.previous import PreviousModel, against_previous
from reward.card.prompts import Prompts, rightness
from reward.card.slices import Slice, by_annotator, by_column, by_length, by_strength
from reward.rows import ScoredComparison, ScoredPair


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
    right = rightness(differences)
    asked = [comparison for comparison in comparisons if not comparison.is_probe]
    of_comparisons = Prompts([comparison.prompt for comparison in asked])
    temperature = fit_temperature(differences)
    return ReportCard(
        pairs=len(pairs),
        prompts=prompts.count,
        accuracy=prompts.share(right),
        mean_margin=float(differences.mean()),
        slices=[
            *by_length(pairs, right, prompts),
            *by_strength(pairs, right, prompts),
            *(part for name in slices for part in by_column(name, pairs, right, prompts)),
        ],
        annotators=by_annotator(asked, of_comparisons),
        calibration=calibration(differences, right, prompts),
        temperature=temperature,
        temperature_at_limit=at_limit(temperature, differences),
        calibrated=after_temperature(differences, right, prompts),
        baselines=baselines(pairs, right, longer_chosen_share, prompts),
        length=length_bias(pairs, chosen, rejected, prompts),
        ensemble=ensemble(pairs, differences, right, prompts),
        ceiling=ceiling(pairs, asked, right, prompts),
        best_of_n=best_of_n(asked, of_comparisons),
        mistakes=worst_mistakes(pairs, asked, chosen, rejected),
        previous=against_previous(previous, pairs, right, prompts) if previous is not None else None,
    )
