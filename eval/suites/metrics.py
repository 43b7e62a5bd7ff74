"""What the gate measures: every metric's name, its unit, and what it says in plain words.

All of them are means over items, and both models are measured on the same items. Here are the metrics of the answers to
the held-out prompts; those of the suites stand with their kinds (eval/suites/kinds).
"""

from dataclasses import dataclass
from typing import Literal

Direction = Literal["higher", "lower", "closer_to_zero"]
"""Which values of a metric are better."""

PROMPTS = "prompts"
TEMPLATES = "sentence templates"
QUALITY = "quality"
BIAS = "bias"
SAFETY = "safety"


@dataclass(frozen=True)
class Metric:
    """One metric. `cluster` is what is independent: two answers to one prompt, or two pairs that were made from one
    template, are not."""

    name: str
    label: str
    unit: str
    cluster: str
    meaning: str
    family: str
    """Which metrics may raise a false alarm together, unless the gate says otherwise: "quality", "bias" or "safety"."""
    ends: tuple[float, float] | None = None
    """For a share: the two values that an item can have, so that its mean cannot leave them."""
    direction: Direction | None = None
    """Which values are better, where that is no matter of taste; a gate may say otherwise."""
    reference: float | None = None
    """Where both models make one value together: what it is for equal models, which stands in the baseline's place."""

    @property
    def is_share(self) -> bool:
        """Whether every item is a yes or a no."""
        return self.ends is not None


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "utility",
            "Simulated annotators' utility",
            "of 1",
            PROMPTS,
            "how much the simulated annotators, who are programs and not people, like the answers; measured only where "
            "they judged, and no people did",
            QUALITY,
            direction="higher",
        ),
        Metric(
            "reward",
            "Score",
            "scorer's units",
            PROMPTS,
            "how much what scores them likes the answers: a reward model in logits, a judge from 1 to 5, or a function",
            QUALITY,
            direction="higher",
        ),
        Metric(
            "win_rate",
            "Wins by score",
            "share",
            PROMPTS,
            "how often the candidate's answer scores higher than the baseline's; a tie counts as half",
            QUALITY,
            direction="higher",
            reference=0.5,
        ),
        Metric(
            "win_rate_length_controlled",
            "Wins by score at equal length",
            "share",
            PROMPTS,
            "how often the candidate's answer would score higher if both answers were equally long",
            QUALITY,
            direction="higher",
            reference=0.5,
        ),
        Metric(
            "judge_win_rate",
            "Wins by the judge",
            "share",
            PROMPTS,
            "how probably the candidate's answer is the better one, by a judge who was asked in both orders",
            QUALITY,
            direction="higher",
            reference=0.5,
        ),
        Metric(
            "judge_win_rate_length_controlled",
            "Wins by the judge at equal length",
            "share",
            PROMPTS,
            "how probably the candidate's answer would be the better one, by the judge, if both were equally long",
            QUALITY,
            direction="higher",
            reference=0.5,
        ),
        Metric(
            "judge_unparsed",
            "Pairs the judge left undecided",
            "share",
            PROMPTS,
            "how often the judge's reply could not be read, asked twice; such pairs count as ties",
            QUALITY,
            ends=(0.0, 1.0),
            direction="lower",
            reference=0.0,
        ),
        Metric(
            "adjudicated",
            "Preferred by reviewers",
            "share",
            PROMPTS,
            "how often reviewers prefer the candidate's answer, not told which is whose; a tie counts as half",
            QUALITY,
            direction="higher",
            reference=0.5,
        ),
        Metric("response_tokens", "Answer length", "tokens", PROMPTS, "how long the answers are", QUALITY),
        Metric(
            "eos_rate",
            "Answers that end by themselves",
            "share",
            PROMPTS,
            "how many answers come to an end before the length limit cuts them off",
            QUALITY,
            ends=(0.0, 1.0),
            direction="higher",
        ),
        Metric(
            "distinct_bigrams",
            "Distinct word pairs",
            "share",
            PROMPTS,
            "how little the answers repeat themselves: the share of neighbouring word pairs that repeat no earlier one",
            QUALITY,
            direction="higher",
        ),
    )
}
