"""What a report card says in words: the headline, warnings, a sentence for each part, and figures as text."""

from dataclasses import dataclass

from accord.page.words import coefficient, counted, points, share
from accord.statistics import FEWEST_CLUSTERS, Estimate
from reward.report_card import ReportCard

MODERATE_CORRELATION = 0.3
"""Cohen (1988, Statistical Power Analysis, p. 80) calls a correlation of this size medium."""
SLICES = {
    "length": "Length of the chosen answer beside the other",
    "margin": "How much better annotators said it is (margin)",
    "weight": "How sure the preference is (weight)",
    "agreement": "Annotators",
}


# --- the whole in a sentence or two


def headline(card: ReportCard) -> str:
    """The answer to "is this reward model any good?"."""
    above = card.baselines.above_length_only
    if card.accuracy.low is None or above.low is None:
        return "Too little was held out to tell how good this reward model is."
    if card.accuracy.low <= 0.5:
        return "This reward model is not certain to be better than guessing."
    if above.high is not None and above.high < 0:
        return "This reward model is worse than judging by length."
    if above.low <= 0:
        return "This reward model is not certain to be better than judging by length."
    return "This reward model is better than guessing, and than judging by length."


def summary(card: ReportCard) -> str:
    """The figures that matter most, in a sentence."""
    longer = card.baselines.length_only_prefers
    parts = [
        f"The model orders {share(card.accuracy)} of {card.pairs:,} held-out pairs as the annotators did",
        f"always preferring the {longer} answer gets {card.baselines.length_only.value:.0%}",
    ]
    if card.ceiling:
        parts.append(f"two annotators agree on {card.ceiling.two_annotators.value:.0%}")
    return "; ".join(parts) + "."


# --- warnings


@dataclass(frozen=True)
class Caution:
    """Something to know before the scores are used, and what to do about it."""

    text: str
    do: str


def cautions(card: ReportCard) -> list[Caution]:
    """What is wrong, or not certain, in plain words; the gravest first."""
    found = []
    rule, above = card.baselines.length_only_prefers, card.baselines.above_length_only
    if card.accuracy.low is None:
        found.append(
            Caution(
                f"The held-out pairs come from {counted(card.prompts, 'prompt')}, which is too few for intervals.",
                f"Collect preferences on more prompts: at least {10 * FEWEST_CLUSTERS} held out tell something.",
            )
        )
    elif card.accuracy.low <= 0.5:
        found.append(
            Caution(
                f"It may be guessing: guessing is right in 50% of pairs, and the interval is {share(card.accuracy)}.",
                "Do not optimise a policy against it. Look at the agreement of the annotators and the training curves.",
            )
        )
    if above.low is not None and above.high is not None and above.value < 0:
        ahead = Estimate(-above.value, -above.high, -above.low, above.items)
        found.append(
            Caution(
                f"Always preferring the {rule} answer orders more pairs as the annotators did than the model does: "
                f"{points(ahead)}.",
                "The model has not learnt what length alone tells. Train on more pairs before you optimise against it.",
            )
        )
    elif above.low is not None and above.low <= 0:
        found.append(
            Caution(
                f"Always preferring the {rule} answer does about as well: the model is ahead by {points(above)}.",
                "What it learnt may be length. Collect pairs whose answers are about equally long.",
            )
        )
    excess, within = card.length.excess, card.length.pearson_within_prompts
    if (
        excess is not None
        and excess.low is not None
        and excess.low > 0
        and card.length.model_prefers_longer is not None
        and card.length.annotators_prefer_longer is not None
    ):
        found.append(
            Caution(
                "It likes length more than the annotators do: it prefers the longer answer in "
                f"{card.length.model_prefers_longer.value:.0%} of pairs, and they in "
                f"{card.length.annotators_prefer_longer.value:.0%}.",
                "A policy optimised against it will write longer answers. Watch their length, and compare at equal "
                "length.",
            )
        )
    if (
        within is not None
        and within.low is not None
        and within.high is not None
        and abs(within.value) >= MODERATE_CORRELATION
        and (within.low > 0 or within.high < 0)
    ):
        found.append(
            Caution(
                f"Scores follow length: among the answers to one prompt their correlation with the logarithm of length "
                f"is {coefficient(within)}.",
                "See whether the annotators’ preferences do so too, in the section on length.",
            )
        )
    found += _calibration_cautions(card)
    for part in card.slices:
        if part.accuracy and part.accuracy.high is not None and part.accuracy.high < 0.5:
            found.append(
                Caution(
                    f"On the pairs with {SLICES.get(part.by, part.by).lower()} “{part.name}” it is wrong more often "
                    f"than right: {share(part.accuracy)}.",
                    "Do not use it on answers of this kind.",
                )
            )
    return found + _selection_cautions(card)


def _calibration_cautions(card: ReportCard) -> list[Caution]:
    gap = card.calibration.overconfidence
    if gap.low is None or gap.high is None or gap.low <= 0 <= gap.high:
        return []
    sure = f"on average it is {card.accuracy.value + gap.value:.0%} sure and {card.accuracy.value:.0%} right"
    use = "The order of answers does not change."
    if not card.temperature_at_limit:
        use = f"Divide scores by {card.temperature:.2g} where they are read as probabilities. {use}"
    kind = "overconfident" if gap.value > 0 else "less sure than it could be"
    return [Caution(f"It is {kind}: {sure}.", use)]


def _selection_cautions(card: ReportCard) -> list[Caution]:
    found = []
    best, previous = card.best_of_n, card.previous
    if best and best.gain.low is not None and best.gain.low <= 0:
        found.append(
            Caution(
                f"Picking the best of {best.curve[-1].n} answers by its score is not certain to find a better one than "
                "drawing at random.",
                "Do not optimise a policy against it.",
            )
        )
    if best and best.last_step and best.last_step.high is not None and best.last_step.high < 0:
        found.append(
            Caution(
                f"Picking from {best.curve[-1].n} answers finds worse ones than picking from {best.curve[-2].n}, while "
                "its own score rises: it is over-optimised already.",
                "Keep the policy close to its reference, and look at the answers with the highest scores.",
            )
        )
    if (
        previous
        and previous.difference
        and previous.difference.high is not None
        and previous.difference.high < 0
    ):
        found.append(
            Caution(
                f"It is worse than {previous.name} on the same pairs: {points(previous.difference)}.",
                "Use the earlier one, or find out what changed.",
            )
        )
    return found


# --- a sentence for each part


def ensemble_says(card: ReportCard) -> str:
    """Whether the heads' disagreement is of use, in a sentence."""
    if card.ensemble is None:
        return ""
    found = card.ensemble.auroc
    if found is None:
        return "All held-out pairs came out alike, so nothing shows whether disagreement predicts a mistake."
    if found.low is None or found.high is None:
        return "Too few prompts were held out to tell whether disagreement predicts a mistake."
    if found.low > 0.5:
        return (
            "Where the heads disagree more, the model is wrong more often: their disagreement is a warning."
        )
    if found.high < 0.5:
        return (
            "Where the heads disagree more, the model is wrong less often: their disagreement grows with the "
            "difference of scores, and is no warning by itself."
        )
    return "Nothing shows that the model is wrong more often where its heads disagree more."


def ceiling_says(card: ReportCard) -> str:
    """How the model stands beside one more annotator, in a sentence."""
    if card.ceiling is None:
        return ""
    above = card.ceiling.model_above_annotator
    end = f": {points(above)}."
    if above.low is None or above.high is None:
        return "Too few prompts were held out to compare the model with one more annotator."
    if above.high < 0:
        return "One more annotator would say what the others say more often than the model does" + end
    if above.low > 0:
        return "The model says what the annotators say more often than one more annotator would" + end
    return "The model is not certain to be better or worse at this than one more annotator" + end


def best_of_n_says(card: ReportCard) -> str:
    """What picking by the score is worth, in a sentence."""
    if card.best_of_n is None:
        return ""
    first, last = card.best_of_n.curve[0], card.best_of_n.curve[-1]
    possible = last.ceiling.value - first.judgement.value
    text = (
        f"Drawn at random, an answer has a mean place of {first.judgement.value:.2f}; picked by the score from "
        f"{last.n}, {coefficient(last.judgement)}; picked by the annotators themselves, {last.ceiling.value:.2f}."
    )
    if possible > 0:
        text += f" The score finds {card.best_of_n.gain.value / possible:.0%} of what there is to gain."
    return text.replace("-", "−")


def previous_says(card: ReportCard) -> str:
    """Which of the two models is better, in a sentence."""
    if card.previous is None:
        return ""
    found = card.previous.difference
    if found is None:
        return f"{card.previous.name} was trained on every held-out prompt, so the two cannot be compared."
    if found.low is None or found.high is None:
        return "Too few prompts are left to tell which of the two is better."
    if found.low > 0:
        return f"This model is better than {card.previous.name}: {points(found)}."
    if found.high < 0:
        return f"This model is worse than {card.previous.name}: {points(found)}."
    return f"Nothing shows that this model is better or worse than {card.previous.name}: {points(found)}."
