"""How answers compare with known ones: words in common, exact matches, and labels by class.

    token_f1("red red blue dog", "red red red blue cat cow")        # 0.6
    labels = label_metrics(["yes", "no", "yes"], ["yes", "yes", None])
    labels.accuracy.value, labels.classes[0].recall

`normalised`, `exact_match` and `token_f1` are SQuAD's (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250): lower
case, ASCII punctuation and the articles a, an, the left out. BLEU and ROUGE are those of sacrebleu and rouge-score.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from accord.errors import UsageError
from accord.statistics import Bootstrap, Estimate

ROUGES = ("rouge1", "rouge2", "rougeL")


def normalised(text: str) -> str:
    """A text as SQuAD compares it: lower case, without ASCII punctuation, articles and surplus white space."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(answer: str, references: Sequence[str]) -> bool:
    """Whether it is one of the references, both normalised. Nothing left on both sides is a match, as in SQuAD 2."""
    return normalised(answer) in map(normalised, references)


def token_f1(answer: str, reference: str) -> float:
    """SQuAD's F1, 0 to 1: 2 P R / (P + R) over the words of both, each counted as often as it occurs."""
    given, right = normalised(answer).split(), normalised(reference).split()
    if not given or not right:
        return float(given == right)
    common = sum((Counter(given) & Counter(right)).values())
    return 2 * common / (len(given) + len(right))


def read_label(answer: str, labels: Collection[str]) -> str | None:
    """The label that an answer is or, alone of all labels, names as whole words; None for any other answer.

    Args:
        answer: as it was given.
        labels: `normalised`.
    """
    text = normalised(answer)
    if text in labels:
        return text
    named = [label for label in labels if label and f" {label} " in f" {text} "]
    longest = [label for label in named if not any(label != other and label in other for other in named)]
    return longest[0] if len(longest) == 1 else None


@cache
def overlap_scorers() -> tuple[Any, Any]:
    """sacrebleu's sentence BLEU, and rouge-score's scorer of ROUGE-1, -2 and -L.

    Raises:
        UsageError: they are not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise UsageError(
            f"BLEU and ROUGE cannot be computed ({error}); run: pip install sacrebleu rouge-score"
        ) from None
    return BLEU(effective_order=True), RougeScorer(list(ROUGES))


def bleu_and_rouge(answer: str, references: Sequence[str]) -> dict[str, float]:
    """`bleu`, 0 to 100, and the F measures `rouge_1`, `rouge_2` and `rouge_l`, the best reference's each.

    Raises:
        UsageError: sacrebleu or rouge-score is not installed.
    """
    bleu, rouge = overlap_scorers()
    found = {"bleu": float(bleu.sentence_score(answer, references).score)}
    overlaps = rouge.score_multi(references, answer)
    return found | {f"rouge_{name[-1].lower()}": float(overlaps[name].fmeasure) for name in ROUGES}


@dataclass(frozen=True)
class ClassMetrics:
    """One label's figures; None where nothing is divided by (no item of the class, or it was never given)."""

    label: str
    items: int
    """That have it."""
    given: int
    """How often it was given."""
    precision: Estimate | None
    recall: Estimate | None
    f1: Estimate | None


@dataclass(frozen=True)
class LabelMetrics:
    """Of a classification. Macro figures are means over the classes, each counting once; None counts as 0 in them."""

    items: int
    unread: int
    """Answers that are none of the labels: they are wrong."""
    accuracy: Estimate
    macro_precision: Estimate
    macro_recall: Estimate
    macro_f1: Estimate
    classes: list[ClassMetrics]


def label_metrics(
    truth: Sequence[str], given: Sequence[str | None], clusters: Sequence[str] | None = None
) -> LabelMetrics:
    """Accuracy, and precision, recall and F1 by class and as means over classes, with bootstrap intervals over items.

    Args:
        truth: the right labels; at least one. They say which classes there are.
        given: the labels that were given; None, or one of no item, for an answer that is no label.
        clusters: items of one cluster are resampled together; each item is its own where this is left out.
    """
    labels = sorted(set(truth))
    column = {label: i for i, label in enumerate(labels)}
    order: dict[str, int] = {}
    at = [order.setdefault(each, len(order)) for each in clusters] if clusters else list(range(len(truth)))
    k = len(labels)
    sums = np.zeros((max(at) + 1, 3 * k + 2))
    for row, right, answer in zip(at, truth, given, strict=True):
        sums[row, 3 * k] += right == answer
        sums[row, 3 * k + 1] += 1
        sums[row, 2 * k + column[right]] += 1
        if answer in column:
            sums[row, k + column[answer]] += 1
            sums[row, column[answer]] += right == answer
    bootstrap = Bootstrap(len(sums))

    def figure(statistic: Callable[[np.ndarray], np.ndarray], items: int = len(truth)) -> Estimate | None:
        return bootstrap.estimate(sums, statistic, items)

    def by_class(kind: str, s: np.ndarray) -> np.ndarray:
        hits, answered, there = s[..., :k], s[..., k : 2 * k], s[..., 2 * k : 3 * k]
        below = {"precision": answered, "recall": there, "f1": (answered + there) / 2}[kind]
        return np.where(below > 0, hits / np.where(below > 0, below, 1), np.nan)

    def macro(kind: str) -> Estimate:
        found = figure(lambda s: np.nan_to_num(by_class(kind, s)).mean(axis=-1))
        assert found is not None
        return found

    def of_class(kind: str, i: int) -> Estimate | None:
        return figure(lambda s: by_class(kind, s)[..., i], int(total[2 * k + i]))

    total = sums.sum(axis=0)
    classes = [
        ClassMetrics(
            label=label, items=int(total[2 * k + i]), given=int(total[k + i]),
            precision=of_class("precision", i), recall=of_class("recall", i), f1=of_class("f1", i),
        )
        for i, label in enumerate(labels)
    ]  # fmt: skip
    accuracy = figure(lambda s: s[..., 3 * k] / s[..., 3 * k + 1])
    assert accuracy is not None
    return LabelMetrics(
        items=len(truth), unread=sum(answer not in column for answer in given), accuracy=accuracy,
        macro_precision=macro("precision"), macro_recall=macro("recall"), macro_f1=macro("f1"), classes=classes,
    )  # fmt: skip
