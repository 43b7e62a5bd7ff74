"""Numbers, moments, stages and figures in words, as all pages write them."""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import yaml

from accord.run_record import RunRecord
from accord.statistics import Estimate

STAGES = {
    "base": "Base model",
    "data": "Data",
    "sft": "Supervised fine-tuning",
    "feedback": "Feedback",
    "reward": "Reward model",
    "eval": "Evaluation",
}
FIGURES = {
    "new_tokens": "Control tokens that were added",
    "annotators_kind": "Annotators are",
    "comparisons": "Prompts with answers to judge",
    "rankings_submitted": "Rankings given",
    "rankings_discarded": "Rankings declined",
    "pairs": "Pairs of answers",
    "preferences": "Pairs with a preference",
    "comparisons_adjudicated": "Prompts that an adjudicator settled",
    "gold_records": "Records with a known answer",
    "duplicates": "Records asked twice",
    "rankings_deleted": "Rankings deleted on the server",
    "responses_flagged_harmful": "Answers flagged as harmful",
    "krippendorff_alpha": "Agreement on pairs (Krippendorff's alpha)",
    "training_pairs": "Pairs it was trained on",
    "prompts": "Prompts it was trained on",
    "contradictory_pairs": "Pairs whose opposite was preferred too",
    "repeated_pairs": "Pairs that repeat an earlier one",
    "heldout_pairs": "Held-out pairs",
    "heldout_prompts": "Held-out prompts",
    "heldout_accuracy": "Held-out pairs ordered as preferred (share)",
    "heldout_accuracy_low": "Held-out pairs ordered as preferred (share): 95% interval, from",
    "heldout_accuracy_high": "Held-out pairs ordered as preferred (share): 95% interval, to",
    "length_only_accuracy": "Accuracy of going by length only, as the training pairs suggest",
    "prefer_longer_accuracy": "Accuracy of always preferring the longer answer",
    "prefer_shorter_accuracy": "Accuracy of always preferring the shorter answer",
    "prefer_first_accuracy": "Accuracy of always preferring the answer shown first",
    "accuracy_above_length_only": "Accuracy above going by length only",
    "accuracy_above_length_only_low": "Accuracy above going by length only: 95% interval, from",
    "accuracy_above_length_only_high": "Accuracy above going by length only: 95% interval, to",
    "mean_reward_margin": "Score of the preferred answer above the other's, mean",
    "heldout_brier": "Brier score of held-out pairs (always saying one half: 0.25)",
    "heldout_log_loss": "Log loss of held-out pairs (nats; always saying one half: 0.693)",
    "heldout_ece": "Calibration error (ECE)",
    "temperature": "Temperature that calibrates the scores (above 1: overconfident)",
    "heldout_ece_after_temperature": "Calibration error (ECE) after the temperature",
    "heldout_brier_after_temperature": "Brier score after the temperature",
    "score_length_correlation": "Correlation of score and length, over all answers (ranks)",
    "score_length_correlation_within_prompts": "Correlation of score and length, among answers to one prompt",
    "score_length_correlation_within_prompts_low": "The same correlation: 95% interval, from",
    "score_length_correlation_within_prompts_high": "The same correlation: 95% interval, to",
    "model_prefers_longer": "Pairs where the model prefers the longer answer (share)",
    "annotators_prefer_longer": "Pairs where the annotators prefer the longer answer (share)",
    "disagreement_auroc": "Chance that the heads disagree more on a mistake (AUROC; of no use: 0.5)",
    "relative_disagreement_auroc": "The same, of disagreement relative to the difference of scores (AUROC)",
    "annotator_agreement": "How often two annotators agree (share)",
    "model_agreement_with_annotator": "How often the model agrees with an annotator (share)",
    "annotator_ceiling": "How often an annotator agrees with the others (share)",
    "accuracy_above_annotator": "Model's agreement with the others above an annotator's",
    "accuracy_above_annotator_low": "Model's agreement with the others above an annotator's: 95% interval, from",
    "accuracy_above_annotator_high": "Model's agreement with the others above an annotator's: 95% interval, to",
    "best_of_n": "Answers to pick the best from (n)",
    "best_of_n_judgement": "Place of the best of n by score (first: 1, last: 0)",
    "best_of_n_ceiling": "Place of the best of n by the annotators themselves",
    "best_of_n_gain": "Gain in place by picking the best of n by score, above a random answer",
    "best_of_n_gain_low": "Gain in place by picking the best of n by score, above a random answer: 95% interval, from",
    "best_of_n_gain_high": "Gain in place by picking the best of n by score, above a random answer: 95% interval, to",
    "previous_pairs": "Held-out pairs that the earlier model scored too",
    "previous_accuracy_difference": "Accuracy above the earlier model's",
    "previous_accuracy_difference_low": "Accuracy above the earlier model's: 95% interval, from",
    "previous_accuracy_difference_high": "Accuracy above the earlier model's: 95% interval, to",
    "previous_accuracy_difference_p": "Chance of such a difference if they were equal (whole prompts)",
    "previous_mcnemar_p": "Chance of such a difference if they were equal (McNemar)",
    "heldout_loss_before": "Held-out loss before",
    "kept_update": "Update whose policy was kept",
    "stop_reason": "Why it stopped early",
    "first_score": "Score of an answer, first update or round",
    "score": "Score of an answer, last update or round",
    "kl_nats": "KL from the reference, last update (nats an answer)",
    "heldout_preference_loss": "Loss of the implied reward on held-out preferences (ln 2 at the start)",
    "heldout_chosen_log_probability_before": "Held-out preferred answers: log-probability before (nats)",
    "heldout_chosen_log_probability": "Held-out preferred answers: log-probability after (nats)",
    "heldout_rejected_log_probability_before": "Held-out other answers: log-probability before (nats)",
    "heldout_rejected_log_probability": "Held-out other answers: log-probability after (nats)",
    "desirable_rows": "Desirable answers it was trained on",
    "undesirable_rows": "Undesirable answers it was trained on",
    "heldout_rows": "Held-out answers",
    "contradictory_rows": "Answers that are called desirable and undesirable",
    "heldout_kl_nats": "KL from the reference, on held-out prompts (nats an answer)",
    "heldout_desirable_log_probability_before": "Held-out desirable answers: log-probability before (nats)",
    "heldout_desirable_log_probability": "Held-out desirable answers: log-probability after (nats)",
    "heldout_undesirable_log_probability_before": "Held-out undesirable answers: log-probability before (nats)",
    "heldout_undesirable_log_probability": "Held-out undesirable answers: log-probability after (nats)",
    "first_reward": "Score of an answer, first update",
    "reward": "Score of an answer, last update",
    "kl_nats_per_token": "KL from the reference, last update (nats a token)",
    "no_opinion_share": "Share of answers on which the reward function has no opinion, all updates",
    "truncated_share": "Share of answers that were cut off, last update or round",
    "heldout_reward_before": "Score of an answer to held-out prompts before",
    "heldout_reward": "Score of an answer to held-out prompts after",
    "heldout_reward_gain": "Score of an answer to held-out prompts after, above before",
    "heldout_reward_gain_low": "Score of an answer to held-out prompts after, above before: 95% interval, from",
    "heldout_reward_gain_high": "Score of an answer to held-out prompts after, above before: 95% interval, to",
    "demonstrations_kept": "Answers of its own that it learned, all rounds",
    "sampled_tokens": "Tokens of the answers sampled to learn from, all rounds",
    "best_score": "Score of the best answer of a prompt, last round",
    "heldout_loss_change": "Held-out loss after minus before (nats a token)",
    "heldout_loss_above_few_shot": "Held-out loss above the base's with examples in its prompt (nats a token)",
    "canaries_memorised": "Planted secrets that it knows by heart",
    "heldout_reward_margin": "Held-out preferred answer above the other (implied reward)",
}
"""Final figures whose names do not explain themselves."""


def stage_title(record: RunRecord) -> str:
    """What pages call a run's stage; one whose configuration names an algorithm is that policy optimisation."""
    if "algorithm" in record.config:
        return f"Policy optimisation ({record.stage.upper().replace('_', ' ')})"
    return STAGES.get(record.stage, record.stage)


def number(value: float | int | str | None, signed: bool = False) -> str:
    """A figure with about three digits, a true minus sign, and no exponent where that can be avoided."""
    if value is None:
        return "–"
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, int):
        text = f"{value:+,}" if signed else f"{value:,}"
    elif not math.isfinite(value):
        text = str(value)
    else:
        size = abs(value)
        digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
        text = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
        if size >= 1e-5 and float(text.replace(",", "")) == 0:
            digits = math.ceil(-math.log10(size))
            text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
        elif size and float(text.replace(",", "")) == 0:
            text = f"{value:+.0e}" if signed else f"{value:.0e}"
    return text.replace("-", "−")


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * share:.1f}%".replace("-", "−")


def share(estimate: Estimate) -> str:
    """A share with its interval, such as "71% (64 to 78%)"."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.0%}"
    return f"{estimate.value:.0%} ({100 * estimate.low:.0f} to {estimate.high:.0%})"


def points(estimate: Estimate) -> str:
    """A difference of shares in percentage points with its interval, such as "+4 points (−1 to +9)"."""
    text = f"{round(100 * estimate.value):+d} points"
    if estimate.low is not None and estimate.high is not None:
        text += f" ({round(100 * estimate.low):+d} to {round(100 * estimate.high):+d})"
    return text.replace("-", "−")


def coefficient(estimate: Estimate, signed: bool = False) -> str:
    """A correlation or the like with two digits and its interval."""
    form = "+.2f" if signed else ".2f"
    text = f"{estimate.value:{form}}"
    if estimate.low is not None and estimate.high is not None:
        text += f" ({estimate.low:{form}} to {estimate.high:{form}})"
    return text.replace("-", "−")


def counted(number: int, noun: str) -> str:
    """A number of things, such as "1 pair" or "2 pairs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def label(key: str) -> str:
    """The name of a figure or setting in words."""
    text = key.replace("heldout", "held-out").replace("_", " ").replace("/", ": ")
    return text[:1].upper() + text[1:]


def figure_label(key: str) -> str:
    """The same for one of a run's final figures."""
    return FIGURES.get(key, label(key))


def duration(started_at: str, ended_at: str | None) -> str:
    """How long something took, such as "3 min 20 s"."""
    if ended_at is None:
        return "–"
    seconds = round((datetime.fromisoformat(ended_at) - datetime.fromisoformat(started_at)).total_seconds())
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def day(moment: str) -> str:
    """An ISO moment as "22 November 2026, 01:42 UTC"."""
    when = datetime.fromisoformat(moment)
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def as_yaml(value: Mapping[str, Any]) -> str:
    """A configuration as it is written in a file."""
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=88)
