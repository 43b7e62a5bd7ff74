"""Settings of policy optimisation."""

from typing import Literal

from pydantic import Field

from accord.training_config import TrainingConfig


class DPOConfig(TrainingConfig):
    """Direct preference optimisation (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290); a row is a pair."""

    algorithm: Literal["dpo"] = "dpo"
    learning_rate: float = Field(default=1e-6, gt=0)
    kl_coefficient: float = Field(default=0.1, gt=0)
    """The paper's beta: how dearly the policy pays for leaving the reference."""
    heldout_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the prompts whose pairs are held out, for the curves; the reward model's choice by default."""
