"""What a fine-tuning's report card says in words: the headline, a few sentences, warnings."""

from dataclasses import dataclass

from accord.page.words import coefficient, counted, share
from accord.statistics import FEWEST_CLUSTERS, Estimate
from sft.report_card import ReportCard

ENDS = 0.9
"""Where fewer answers come to an end than this share of those that could, it is a warning."""
TO = "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}"
"""An interval is not broken over two lines."""
MODELS = {"tuned": "Fine-tuned", "base": "Base", "few_shot": "Base, with examples in its prompt"}


def nats(estimate: Estimate) -> str:
    """A loss with its interval, such as "1.90 (1.85 to 1.96)"."""
    return coefficient(estimate).replace(" to ", TO)


def difference(estimate: Estimate) -> str:
    """A difference of losses with its interval, such as "−0.41 (−0.46 to −0.36)"."""
    return coefficient(estimate, signed=True).replace(" to ", TO)


# --- the whole in a sentence or two


def headline(card: ReportCard) -> str:
    """The answer to "was this fine-tuning worth it?"."""
    if not card.parts:
        return "Nothing was held out, so what fine-tuning gained is not known."
    change, above = card.parts[0].change, card.parts[0].above_few_shot
    if change.low is None or change.high is None:
        return "Too little was held out to tell what fine-tuning gained."
    if change.low > 0:
        return "Fine-tuning made the model worse at held-out rows."
    if change.high >= 0:
        return "Nothing shows that fine-tuning made the model better at held-out rows."
    if above is None or above.low is None or above.high is None:
        return "Fine-tuning made the model better at held-out rows."
    if above.high < 0:
        return "Fine-tuning was worth it: it beats the base, also with examples in its prompt."
    if above.low > 0:
        return "Examples in the base’s prompt do better than fine-tuning."
    return "Fine-tuning helped, but not certainly more than examples in the base’s prompt."


def summary(card: ReportCard) -> list[str]:
    """The figures that matter most, a sentence each."""
    found = []
    if card.parts:
        whole = card.parts[0]
        before, after, change = whole.loss["base"], whole.loss["tuned"], whole.change
        verb = "lowered" if change.value < 0 else "raised"
        interval = (
            f" (95%: {_signed(change.low)} to {_signed(change.high)})"
            if change.low is not None and change.high is not None
            else ""
        )
        text = (
            f"Fine-tuning {verb} the held-out loss from {before.value:.2f} to {after.value:.2f} nats a token"
            f"{interval and ', by ' + _signed(change.value)}{interval}"
        )
        if card.few_shot and "few_shot" in whole.loss:
            text += (
                f"; {counted(card.few_shot.examples, 'example')} in the base’s prompt "
                f"give{'s' if card.few_shot.examples == 1 else ''} {whole.loss['few_shot'].value:.2f}"
            )
        found.append(
            f"{text}. It predicts {share(whole.accuracy['tuned'])} of the tokens exactly, and the base "
            f"{share(whole.accuracy['base'])}."
        )
    if card.answers:
        text = (
            f"{share(card.answers.tuned.ended)} of its answers end by themselves within "
            f"{counted(card.answers.limit, 'token')}; of the base’s it is {share(card.answers.base.ended)}."
        )
        found.append(text)
    if card.canaries:
        known, there = len(card.memorised), counted(len(card.canaries), "planted secret")
        found.append(
            f"Of {there.replace('canarys', 'canaries')} it knows {known if known else 'none'} by heart."
        )
    return found


def _signed(value: float | None) -> str:
    return f"{value:+.2f}".replace("-", "−") if value is not None else "–"


# --- warnings


@dataclass(frozen=True)
class Caution:
    """Something to know before the model is used, and what to do about it."""

    text: str
    do: str


def cautions(card: ReportCard) -> list[Caution]:
    """What is wrong, or not certain, in plain words; the gravest first."""
    return [*_of_memory(card), *_of_gain(card), *_of_answers(card), *_of_retention(card)]


def _of_memory(card: ReportCard) -> list[Caution]:
    found = [
        Caution(
            f"It knows a planted secret by heart, “{each.canary}”, which was in {counted(each.times, 'training row')}: "
            f"of {each.tuned.alternatives:,} random ones of its form, {_likelier(each.tuned.rank - 1)} likelier to it.",
            "It will know real secrets that stand in the data as often. Remove or redact them, drop duplicates, train "
            "fewer epochs.",
        )
        for each in card.memorised
        if each.tuned
    ]
    answers = card.answers
    if answers and answers.quotes:
        longest = answers.quotes[0].tokens
        found.append(
            Caution(
                f"{share(answers.tuned.copied)} of its answers repeat {answers.copied_tokens} tokens or more of a "
                f"training row word for word, up to {longest}; of the base’s it is {share(answers.base.copied)}.",
                "Read the quoted runs below. Where they are no set phrases, train fewer epochs and drop duplicates.",
            )
        )
    return found


def _likelier(number: int) -> str:
    return "none is" if number == 0 else "one is" if number == 1 else f"{number} are"


def _of_gain(card: ReportCard) -> list[Caution]:
    found: list[Caution] = []
    if not card.parts:
        return [
            Caution(
                "Nothing was held out.", "Set `heldout` or `heldout_fraction`, or this page can say little."
            )
        ]
    whole = card.parts[0]
    if whole.change.low is None or whole.change.high is None:
        found.append(
            Caution(
                f"{counted(whole.rows, 'held-out row')} {'is' if whole.rows == 1 else 'are'} too few for intervals.",
                f"Hold out more: at least {10 * FEWEST_CLUSTERS} tell something.",
            )
        )
    for each in card.parts:
        where = "held-out rows" if each is whole else f"held-out rows of {each.source}"
        if each.change.low is not None and each.change.low > 0:
            found.append(
                Caution(
                    f"The loss on {where} rose by {difference(each.change)} nats a token.",
                    "Look at the curves: fewer epochs, a lower learning rate or early stopping may help.",
                )
            )
        if each.above_few_shot and each.above_few_shot.low is not None and each.above_few_shot.low > 0:
            found.append(
                Caution(
                    f"On {where} the base with examples in its prompt is better by "
                    f"{each.above_few_shot.value:.2f} nats a token.",
                    "Prompting may do instead of fine-tuning. Otherwise train longer, or on more rows.",
                )
            )
    for task in card.tasks:
        few, tuned = task.accuracy.get("few_shot"), task.accuracy["tuned"]
        if few and tuned.high is not None and few.value > tuned.high:
            found.append(
                Caution(
                    f"At the labels of {task.source} the base with examples in its prompt is right in {share(few)}, "
                    f"and the tuned model in {share(tuned)}.",
                    "Prompting may do instead of fine-tuning.",
                )
            )
        if unread := task.unread["tuned"]:
            found.append(
                Caution(
                    f"{counted(unread, 'answer')} to {task.source} {'is' if unread == 1 else 'are'} none of its "
                    f"{task.labels} labels.",
                    "Whoever reads them needs a rule for such answers.",
                )
            )
    return found


def _of_answers(card: ReportCard) -> list[Caution]:
    answers = card.answers
    if answers is None:
        return []
    found = []
    could = 1 - answers.demonstrations_over_limit
    if answers.tuned.ended.value < ENDS * could:
        found.append(
            Caution(
                f"Only {share(answers.tuned.ended)} of its answers end within {counted(answers.limit, 'token')}; "
                f"{could:.0%} of the demonstrations do.",
                "See that the demonstrations end as they should, and train longer.",
            )
        )
    if answers.tuned.empty.value > 0:
        found.append(
            Caution(f"{share(answers.tuned.empty)} of its answers are empty.", "Read the samples below.")
        )
    if answers.tuned.repeating.value > answers.base.repeating.value:
        found.append(
            Caution(
                f"{share(answers.tuned.repeating)} of its answers repeat themselves, more than the base’s "
                f"({share(answers.base.repeating)}).",
                "A lower learning rate or fewer epochs may help. Answers are greedy here, which repeats more.",
            )
        )
    return found


def _of_retention(card: ReportCard) -> list[Caution]:
    kept = card.retention
    if kept is None or kept.change.low is None or kept.change.low <= 0:
        return []
    return [
        Caution(
            f"It forgets: the loss on what it should keep rose by {difference(kept.change)} nats a token.",
            "Mix in such rows (replay), lower the learning rate, or hold the model closer to its base.",
        )
    ]
