"""The rows that an evaluation writes: samples.jsonl and bias.jsonl."""

from typing import Literal

from accord.records import Message, Row


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


class MeasuredAnswer(Answer):
    """An answer with everything that is measured about it; `reward` is None without a reward model."""

    utility: float
    reward: float | None = None
    distinct_bigrams: float

    def value(self, metric: str) -> float:
        """The answer's value of a metric of answers (eval/metrics.py)."""
        if metric == "response_tokens":
            return float(self.tokens)
        if metric == "eos_rate":
            return float(self.finish == "eos")
        return float(getattr(self, metric))


class Sample(Row):
    """One row of samples.jsonl: a prompt, and what each model answered with the same seed."""

    id: str
    sample: int
    prompt: list[Message]
    group: str | None = None
    """Of the prompt, for the differences by group."""
    baseline: MeasuredAnswer
    candidate: MeasuredAnswer


class ScoredPair(Row):
    """One row of bias.jsonl: a sentence pair and its two log-likelihoods under each model, in nats."""

    id: str
    group: str
    template: str
    more_stereotyping: str
    less_stereotyping: str
    baseline_more: float
    baseline_less: float
    candidate_more: float
    candidate_less: float

    @property
    def baseline_gap(self) -> float:
        """How much likelier the baseline finds the stereotyping sentence."""
        return self.baseline_more - self.baseline_less

    @property
    def candidate_gap(self) -> float:
        """How much likelier the candidate finds the stereotyping sentence."""
        return self.candidate_more - self.candidate_less
