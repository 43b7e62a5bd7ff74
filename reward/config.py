"""Settings of the reward model."""

from pydantic import Field

from accord.training_config import TrainingConfig


class RewardConfig(TrainingConfig):
    """A reward model on pairs with TRL's RewardTrainer (Bradley-Terry loss); a row is a pair."""

    heldout_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the prompts whose pairs are held out; a prompt is never in both parts."""
    centering_coefficient: float | None = Field(default=0.01, ge=0)
    """Weight of the squared sum of the two rewards, which keeps rewards near zero (Eisenstein et al. 2023)."""
    minimum_pairs: int = Field(default=20, ge=1)
    """Refuse to fit on fewer pairs than this."""
