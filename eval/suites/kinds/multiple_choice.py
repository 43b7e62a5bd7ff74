"""Questions with several answers to choose from: whether the right one is the likeliest.

    {"id": "rc001", "group": "nature", "question": "Which animal lays eggs?",
     "answers": ["a horse", "a hen", "a whale", "a cat"], "label": 1}

The model reads "Question: Which animal lays eggs?\\nAnswer:" as plain text, and each answer is scored as its
continuation (Brown et al. 2020, https://arxiv.org/abs/2005.14165, section 2.4); nothing is sampled. With `prefix` in
place of `question`, the answers go on with that text, as in HellaSwag: {"prefix": "She opened the umbrella because",
"answers": ["it rained.", "it slept."], ...}.

`accuracy` takes the answer of the highest log-likelihood, as lm-evaluation-harness's `acc` does. `accuracy_by_byte`
divides by the answer's length first, because long answers are less likely; `acc_norm` there divides by characters,
which is the same in plain ASCII: of "é" with -2 nats and "ok" with -3, a byte has -1 and -1.5, a character -2 and -1.5,
and the choice differs. `margin` is the right answer's log-likelihood minus the best wrong one's, in nats: it moves
before a choice flips, and so sees small losses sooner.

A tie between the right answer and a wrong one counts as wrong (the harness takes the answer that stands first). An
answer whose tokens begin another one's ("10" and "100", where digits are tokens) is never less likely than that one;
do not let one answer begin another.
"""

from collections.abc import Mapping, Sequence

from pydantic import Field, model_validator

from eval.likelihood.log_likelihood import Item, LogLikelihood
from eval.suites.kind import ByLikelihood, Encode, SuiteRow, Value
from eval.suites.metrics import QUALITY, Metric


class ChoiceRow(SuiteRow):
    """A question or the beginning of a text, the answers, and the place of the right one, counted from 0."""

    question: str | None = Field(default=None, min_length=1)
    prefix: str | None = Field(default=None, min_length=1)
    answers: list[str] = Field(min_length=2)
    label: int = Field(ge=0)

    @model_validator(mode="after")
    def _is_a_choice(self) -> "ChoiceRow":
        if (self.question is None) == (self.prefix is None):
            raise ValueError("question: give either a question or a prefix")
        if self.label >= len(self.answers):
            raise ValueError(f"label: is {self.label}, and the last answer is number {len(self.answers) - 1}")
        if not all(answer.strip() for answer in self.answers):
            raise ValueError("answers: one of them is empty")
        if len(set(self.answers)) < len(self.answers):
            raise ValueError("answers: two of them are equal")
        return self


def _items(row: ChoiceRow, encode: Encode) -> Sequence[Item]:
    prefix = f"Question: {row.question}\nAnswer:" if row.prefix is None else row.prefix
    return [Item(prefix, tuple(f" {answer}" for answer in row.answers))]


def _values(row: ChoiceRow, scores: Sequence[Sequence[LogLikelihood]]) -> Mapping[str, Value]:
    nats = [score.nats for score in scores[0]]
    by_byte = [score / len(answer.encode()) for score, answer in zip(nats, row.answers, strict=True)]
    margin = _margin(nats, row.label)
    return {
        "accuracy": float(margin > 0),
        "accuracy_by_byte": float(_margin(by_byte, row.label) > 0),
        "margin": margin,
    }


def _margin(scores: Sequence[float], label: int) -> float:
    return scores[label] - max(score for i, score in enumerate(scores) if i != label)


KIND = ByLikelihood(
    row=ChoiceRow,
    metrics=(
        Metric(
            "accuracy", "Right answers", "share", "questions",
            "for how many questions the right answer is the likeliest one", QUALITY, ends=(0.0, 1.0),
            direction="higher",
        ),
        Metric(
            "accuracy_by_byte", "Right answers, by byte", "share", "questions",
            "for how many questions the right answer is the likeliest one, by byte, so that long answers have a chance",
            QUALITY, ends=(0.0, 1.0), direction="higher",
        ),
        Metric(
            "margin", "Lead of the right answer", "nats", "questions",
            "how much likelier the right answer is than the best wrong one; below zero, a wrong one is likelier",
            QUALITY, direction="higher",
        ),
    ),
    items=_items,
    values=_values,
)  # fmt: skip
