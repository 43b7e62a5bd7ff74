"""The feedback stage's configuration."""

from typing import Literal

from pydantic import Field

from accord.config import Config


class FeedbackConfig(Config):
    """Which answers are sampled, who ranks them, and where."""

    prompts: str
    """JSON Lines file of prompts that the policy answers."""
    max_prompts: int | None = Field(default=None, ge=1)
    """Use only so many prompts, the first ones of the file."""
    responses_per_prompt: int = Field(default=3, ge=2, le=8)
    """Answers in one record, which are ranked against each other."""
    max_response_tokens: int = Field(default=96, ge=1)
    """Longer answers are cut off here."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling; 1 is the policy's own distribution."""
    annotators: Literal["simulated", "human"] = "simulated"
    """Programs that are named simulated_..., or people in the browser."""
    human_annotators: tuple[str, ...] = ("annotator",)
    """Names of the accounts that are made for people, where `annotators` is human."""
    annotators_per_record: int = Field(default=4, ge=1)
    """A record is done when so many have answered it."""
    argilla_url: str | None = None
    """An Argilla 2.8 to use instead of the embedded one; its owner's key is read from ARGILLA_API_KEY."""
    port: int = Field(default=6900, ge=1, le=65535)
    """Port of the embedded Argilla on the loopback interface."""
    seed: int = 0
    """Of the sampled answers and of the simulated annotators."""
