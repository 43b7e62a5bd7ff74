"""The rows that an evaluation writes, samples.jsonl and suites.jsonl, and how its suites are named."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from accord.records import Message, Row, content_id
from eval.likelihood.log_likelihood import LogLikelihood
from eval.suites.kind import Ratio, Reply
from eval.suites.risks import Risk

SUITE = "suite:"
"""Before a suite's name, where files are named by their part in an evaluation."""


class Answer(Row):
    """One model's answer, as sampled; `tokens` counts it without its EOS."""

    prompt_id: str
    sample: int
    seed: int
    text: str
    tokens: int
    finish: Literal["eos", "length"]


class Reward(Row):
    """The reward model's score of one answer."""

    reward: float
    disagreement: float | None = None
    """The standard deviation over an ensemble's heads."""


class MeasuredAnswer(Answer):
    """An answer with everything that is measured about it; `reward` is None without a reward model."""

    utility: float | None = None
    """By the simulated annotators' formula; None where people judged, or nobody (eval/measuring/annotators.py)."""
    reward: float | None = None
    disagreement: float | None = None
    distinct_bigrams: float

    def value(self, metric: str) -> float:
        """The answer's value of a metric of answers (eval/suites/metrics.py)."""
        if metric == "response_tokens":
            return float(self.tokens)
        if metric == "eos_rate":
            return float(self.finish == "eos")
        return float(getattr(self, metric))


class Judgement(Row):
    """What the judge says of the two answers to one prompt."""

    candidate_is_better: float | None = None
    """The probability, averaged over both orders; None if a reply could not be read."""


class Sample(Row):
    """One row of samples.jsonl: a prompt, and what each model answered with the same seed."""

    id: str
    sample: int
    prompt: list[Message]
    group: str | None = None
    """Of the prompt, for the differences by group."""
    baseline: MeasuredAnswer
    candidate: MeasuredAnswer
    judgement: Judgement | None = None
    """None without a judge."""


class Outcome(Row):
    """What one item of a suite came to under one model: either scores or replies, and the values by metric."""

    id: str
    scores: list[list[LogLikelihood]] | None = None
    """Of the continuations of the item's texts."""
    replies: list[Reply] | None = None
    values: dict[str, float | Ratio | list[Ratio]]
    """By the metric's name in the kind, without the suite's."""


class SuiteItem(Row):
    """One row of suites.jsonl: an item of a suite, and what it came to under both models."""

    suite: str
    id: str
    template: str | None = None
    group: str | None = None
    item: dict[str, Any]
    """The item's other columns."""
    baseline: Outcome
    candidate: Outcome


class SuiteSubject(BaseModel):
    """A suite as its page described it; its items' digest is among the verdict's files."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    title: str
    family: str
    risk: Risk | None = None
    """What its items are about, where that is known."""
    license: str
    source: str
    measures: str
    items: int


def seed_for(seed: int, prompt_id: str, sample: int) -> int:
    """The sampling seed of one answer: the same for both models, and whatever other prompts there are."""
    return int(content_id([seed, prompt_id, sample], 7), 16)
