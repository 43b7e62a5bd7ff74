"""Labelled tasks among the held-out rows: sources whose answers are short and few, such as "positive" and "negative".

Both models answer, greedily, and so does the base with demonstrations in its prompt. An answer counts as the label that
it is, but for case, punctuation and articles, or that it names alone of all labels; any other is wrong.
"""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from accord.records import Demonstration
from accord.statistics import Estimate
from accord.text_metrics import ClassMetrics, LabelMetrics, label_metrics, normalised, read_label

FEWEST_ROWS = 20
MOST_LABELS = 20
LONGEST_LABEL = 40
"""Characters."""
ROWS_A_LABEL = 3
"""At least, on average; where nearly every answer differs, it is no label."""


class Labelled(BaseModel):
    """One source's figures, by model: `tuned`, `base`, and `few_shot` where it was asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: str
    rows: int
    labels: int
    accuracy: dict[str, Estimate]
    macro_precision: dict[str, Estimate]
    macro_recall: dict[str, Estimate]
    macro_f1: dict[str, Estimate]
    unread: dict[str, int]
    """Answers that are none of the labels."""
    classes: list[ClassMetrics]
    """Of the tuned model."""


def labelled_sources(rows: Sequence[Demonstration], sources: Sequence[str]) -> dict[str, list[int]]:
    """The sources that are labelled tasks, and which of the rows are theirs."""
    found = {}
    for source in sorted(set(sources)):
        indices = [i for i, each in enumerate(sources) if each == source]
        answers = [rows[i].messages[-1].content.strip() for i in indices]
        labels = {normalised(answer) for answer in answers}
        if (
            len(indices) >= FEWEST_ROWS
            and 2 <= len(labels) <= MOST_LABELS
            and len(indices) >= ROWS_A_LABEL * len(labels)
            and all(len(answer) <= LONGEST_LABEL and "\n" not in answer for answer in answers)
        ):
            found[source] = indices
    return found


def labelled(source: str, truth: Sequence[str], answers: Mapping[str, Sequence[str | None]]) -> Labelled:
    """The figures of one source.

    Args:
        source: its name.
        truth: the demonstrations' answers.
        answers: by model; None for a row that it was not asked.
    """
    right = [normalised(each) for each in truth]
    labels = sorted(set(right))
    found: dict[str, LabelMetrics] = {}
    for model, texts in answers.items():
        asked = [(label, text) for label, text in zip(right, texts, strict=True) if text is not None]
        if asked:
            found[model] = label_metrics(
                [label for label, _ in asked], [read_label(text, labels) for _, text in asked]
            )
    return Labelled(
        source=source, rows=len(truth), labels=len(labels),
        accuracy={model: each.accuracy for model, each in found.items()},
        macro_precision={model: each.macro_precision for model, each in found.items()},
        macro_recall={model: each.macro_recall for model, each in found.items()},
        macro_f1={model: each.macro_f1 for model, each in found.items()},
        unread={model: each.unread for model, each in found.items()},
        classes=found["tuned"].classes,
    )  # fmt: skip
