"""How much a fine-tuning's report card measures."""

from pydantic import Field

from accord.config import Config


class CardConfig(Config):
    """The report card of the fine-tuned model: what it gained, what it keeps, and what it knows by heart."""

    heldout_rows: int = Field(default=100, ge=1)
    """At most so many held-out rows are measured, drawn by the seed; all of them, where there are fewer."""
    few_shot: int = Field(default=4, ge=0)
    """The base is measured with so many demonstrations in its prompt, too; 0 leaves that out."""
    samples: int = Field(default=16, ge=0)
    """To so many held-out prompts, the base and the tuned model answer; 0 leaves that out."""
    max_response_tokens: int = Field(default=128, ge=1, le=1_000_000)
    """Where an answer is cut off."""
    copied_tokens: int = Field(default=50, ge=8)
    """An answer with a run of so many tokens that stands in a training row, too, counts as copied."""
    canary_alternatives: int = Field(default=500, ge=100)
    """The secret of a canary is ranked among so many random ones, and among 200 a canary at least."""
