"""Suites whose answers are one of a few labels: accuracy, and precision, recall and F1 by label and over all of them.

Such a suite is of the kind `labelled`, and its page's head names the labels:

    ---
    pretty_name: What a customer writes about
    license: ours
    accord: {kind: labelled, family: quality, source: our support team, labels: [refund, delivery, other]}
    ---

An answer counts as the label that it is, but for case, punctuation and articles, or that it names alone of all labels
(`accord.text_metrics.read_label`); any other is `unread` and wrong. Precision, recall and F1 of a label are quotients
of sums over items, macro figures the means of these quotients over the labels; where there is nothing to divide by, 0
counts, as scikit-learn has it. An answer that is no label counts against recall alone: of 3 items of a label, 2
answered rightly and one by nothing readable, recall is 2/3, and precision 1.
"""

import functools
import re
from collections.abc import Mapping, Sequence

from pydantic import model_validator

from accord.text_metrics import normalised, read_label
from eval.suites.kind import Answered, Ratio, Reply, Value
from eval.suites.kinds.labelled import KIND, LabelledRow
from eval.suites.metrics import PROMPTS, QUALITY, Metric

MEANINGS = {
    "precision": "of the answers that are {}, how many should be",
    "recall": "of the items that are {}, how many are answered so",
    "f1": "the harmonic mean of precision and recall of {}",
}


@functools.cache
def kind_of(labels: tuple[str, ...]) -> Answered[LabelledRow]:
    """The kind of a suite with these labels.

    Raises:
        ValueError: fewer than two labels, or two that read alike.
    """
    names = {normalised(label): re.sub(r"\W+", "_", normalised(label)).strip("_") for label in labels}
    if len(labels) < 2 or len(set(names.values()) - {""}) < len(labels):
        raise ValueError("labels: must be two at least, and no two may differ in case and punctuation only")
    known = list(names)

    class LabelRow(LabelledRow):
        """One prompt and its label."""

        @model_validator(mode="after")
        def _has_a_label(self) -> "LabelRow":
            if not isinstance(self.reference, str) or normalised(self.reference) not in names:
                raise ValueError(f"reference: must be one of the page's labels: {', '.join(labels)}")
            return self

    def values(row: LabelledRow, replies: Sequence[Reply]) -> Mapping[str, Value]:
        right, answered = normalised(row.references[0]), read_label(replies[0].text, known)
        parts: dict[str, list[Ratio]] = {kind: [] for kind in MEANINGS}
        for label in known:
            given, there = float(label == answered), float(label == right)
            parts["precision"].append(Ratio(given * there, given))
            parts["recall"].append(Ratio(given * there, there))
            parts["f1"].append(Ratio(2 * given * there, given + there))
        found: dict[str, Value] = {"accuracy": float(answered == right), "unread": float(answered is None)}
        found |= {f"macro_{kind}": ratios for kind, ratios in parts.items()}
        return found | {
            f"{kind}_{name}": ratio
            for kind, ratios in parts.items()
            for name, ratio in zip(names.values(), ratios, strict=True)
        }

    return Answered(
        row=LabelRow, metrics=_metrics(labels, list(names.values())), prompts=KIND.prompts, values=values
    )


def _metrics(labels: Sequence[str], names: Sequence[str]) -> tuple[Metric, ...]:
    whole = [
        Metric(
            "accuracy", "Right labels", "share", PROMPTS, "how many of the answers are the right label", QUALITY,
            ends=(0.0, 1.0), direction="higher",
        ),
        Metric(
            "unread", "Answers that are no label", "share", PROMPTS,
            "how many of the answers are none of the labels, or several", QUALITY, ends=(0.0, 1.0),
            direction="lower",
        ),
    ]  # fmt: skip
    whole += [
        Metric(
            f"macro_{kind}", f"{kind.capitalize()}, mean over labels", "0 to 1", PROMPTS,
            f"{meaning.format('a label')}; each label counts once, however rare", QUALITY, direction="higher",
        )
        for kind, meaning in MEANINGS.items()
    ]  # fmt: skip
    by_label = [
        Metric(
            f"{kind}_{name}", f"{kind.capitalize()} of “{label}”", "0 to 1", PROMPTS,
            meaning.format(f"“{label}”"), QUALITY, direction="higher",
        )
        for label, name in zip(labels, names, strict=True)
        for kind, meaning in MEANINGS.items()
    ]  # fmt: skip
    return (*whole, *by_label)
