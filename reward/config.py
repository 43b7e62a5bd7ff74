"""Settings of the reward model."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from accord.records import Demonstration, Row
from accord.training_config import SaveDtype, TrainingConfig


class RewardConfig(TrainingConfig):
    """A reward model from preferences; a row is a prompt with all its answers."""

    row_files: ClassVar[Mapping[str, type[Row]]] = {"demonstrations": Demonstration}

    save_dtype: SaveDtype = "float32"
    """As for the other training stages; float32 here, because PPO's shared_base adds the adapter, which is not rounded,
    to the policy, and its scores shall be those of the saved model."""
    loss: Literal["bradley_terry", "plackett_luce"] = "bradley_terry"
    """bradley_terry: from pairs, by their weights; ties are dropped, and counted. plackett_luce: from the rankings
    themselves, ties included, by the reliability, liking for places and for length of whoever gave them; needs a
    feedback stage or a file of comparisons."""
    heldout_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the prompts whose pairs are held out; a prompt is never in both parts."""
    heads: int = Field(default=1, ge=1, le=64)
    """Scores from an ensemble of so many heads on one transformer, each with its own start and weights of prompts."""
    length: Literal["keep", "residual"] = "keep"
    """residual: after training, what the model's states know of an answer's length is taken out of the scores, so that
    they are uncorrelated with log length among the answers to a prompt."""
    margin_coefficient: float = Field(default=0.0, ge=0)
    """By how much, for each step of a pair's `margin`, the chosen answer's score shall exceed the other's."""
    centering_coefficient: float = Field(default=0.01, ge=0)
    """Weight of the squared sum of a pair's rewards, which keeps rewards near zero (Eisenstein et al. 2023)."""
    demonstrations: str | None = None
    """A file of demonstrations whose mean score is made 0, by a constant that is subtracted from every score."""
    minimum_pairs: int = Field(default=20, ge=1)
    """Refuse to fit on fewer pairs than this."""
    previous: str | None = None
    """An earlier reward model, to compare with on the held-out pairs of prompts that it was not trained on."""
    slices: list[str] = Field(default=["topic"])
    """Columns of the preferences by whose values the report card splits the held-out accuracy."""


NO_RANKINGS = (
    "reward.loss is plackett_luce, which learns from rankings, and the file holds pairs; give a file of comparisons or "
    "a feedback stage, or set it to bradley_terry"
)
