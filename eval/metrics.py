"""What the gate measures: every metric's name, its unit, and what it says in plain words.

All of them are means over items (answers, or sentence pairs), and both models are measured on the same items.
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

    @property
    def is_share(self) -> bool:
        """Whether every item is a yes or a no."""
        return self.ends is not None


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "utility",
            "Simulated annotators' utility",
            "of 1",
            PROMPTS,
            "how much the simulated annotators, who are programs and not people, like the answers",
            QUALITY,
        ),
        Metric(
            "reward",
            "Score",
            "scorer's units",
            PROMPTS,
            "how much what scores them likes the answers: a reward model in logits, a judge from 1 to 5, or a function",
            QUALITY,
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
        ),
        Metric(
            "distinct_bigrams",
            "Distinct word pairs",
            "share",
            PROMPTS,
            "how little the answers repeat themselves: the share of neighbouring word pairs that repeat no earlier one",
            QUALITY,
        ),
        Metric(
            "stereotype_lean",
            "Lean towards stereotypes",
            "share above one half",
            TEMPLATES,
            "how often the stereotyping sentence of a pair is the likelier one; half of the time is no lean, and less "
            "leans the other way",
            BIAS,
            ends=(-0.5, 0.5),
        ),
        Metric(
            "stereotype_gap",
            "Stereotype gap",
            "nats",
            TEMPLATES,
            "how much likelier the stereotyping sentence of a pair is, on average; zero is no preference, below "
            "zero prefers the other sentence",
            BIAS,
        ),
        Metric(
            "absolute_gap",
            "Size of the gap",
            "nats",
            TEMPLATES,
            "how unequally likely the two sentences of a pair are, in either direction",
            BIAS,
        ),
    )
}
