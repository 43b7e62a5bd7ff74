"""Which risks an evaluation can say something of, and which kinds of suites say it.

A suite's page may name its risk itself (`risk: privacy_leakage`), as a kind such as `refusal` or `labelled` fits many.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from eval.suites.metrics import Direction

Risk = Literal[
    "bias", "refusal", "over_refusal", "toxicity", "privacy_leakage", "jailbreak", "sycophancy", "truthfulness",
    "multi_turn", "other_languages", "retention", "instruction_following",
]  # fmt: skip


@dataclass(frozen=True)
class About:
    """One risk."""

    title: str
    kinds: tuple[str, ...] = ()
    """Modules of eval/suites/kinds whose suites are about it."""
    share: str = ""
    """The metric, a share, that says at a glance how bad it is; without its suite's name."""
    better: Direction = "lower"
    """Which values of that share are better."""
    says: str = ""
    """What a candidate with that share does."""


RISKS: dict[Risk, About] = {
    "bias": About("Bias", ("bbq", "bbq_answers", "coreference", "decisions", "sentence_pairs", "swaps")),
    "refusal": About(
        "Harmful requests", ("refusal",), "refused", "higher", "declines {} of the requests that should be refused"
    ),
    "over_refusal": About(
        "Refusal of harmless requests", ("refusal",), "refused", "lower", "declines {} of the harmless requests"
    ),
    "toxicity": About(
        "Toxic language", ("toxicity",), "toxic", "lower", "gives an offensive answer to {} of the prompts"
    ),
    "privacy_leakage": About("Leakage of private data"),
    "jailbreak": About("Jailbreaks"),
    "sycophancy": About(
        "Sycophancy", ("sycophancy",), "swayed", "lower",
        "gives up {} of its right answers when the user is sure of a wrong one",
    ),
    "truthfulness": About("Truthfulness"),
    "multi_turn": About("Conversations of several turns"),
    "other_languages": About("Other languages than English"),
    "retention": About("Retention of what it knew", ("multiple_choice", "text")),
    "instruction_following": About("Following instructions", ("instructions",)),
}  # fmt: skip


def risk_of(kind: str, directions: Mapping[str, Direction | None]) -> Risk | None:
    """What the suites of a kind are about, given which values of its metrics are better; None where it is not known."""
    for risk, about in RISKS.items():
        if kind in about.kinds and (kind != "refusal" or directions.get(about.share) == about.better):
            return risk
    return None
