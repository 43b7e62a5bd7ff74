"""The rows that a reward run writes about what it held out: heldout.jsonl and heldout_comparisons.jsonl."""

from typing import Literal

from pydantic import Field

from accord.records import Comparison, Preference


class ScoredPair(Preference):
    """One held-out pair with the score of either answer; columns that the pair came with are kept."""

    chosen_scores: list[float] = Field(min_length=1)
    """One for each head of the ensemble; their mean is the score."""
    rejected_scores: list[float] = Field(min_length=1)
    chosen_tokens: int
    """Of the answer, its EOS included."""
    rejected_tokens: int
    shown_first: Literal["chosen", "rejected"] | None = None
    """Which answer stood before the other on the annotators' page; None where that is not known."""
    previous_chosen_score: float | None = None
    """By the reward model that this one is compared with; None without one, and where it was trained on the prompt."""
    previous_rejected_score: float | None = None


class ScoredComparison(Comparison):
    """One held-out comparison with the scores of its responses."""

    scores: list[list[float]]
    """[responses, heads]"""
    tokens: list[int]
    """Of each response, its EOS included."""
