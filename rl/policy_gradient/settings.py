"""What the parts of PPO are told, each in a small type; `rl.config.PPOConfig` says what the values mean."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from accord.config import LoraConfig


@dataclass(frozen=True)
class Layout:
    """Which of the four models share weights (see `rl.policy_gradient.actors`)."""

    lora: LoraConfig | None = None
    """Adapters for policy and critic; None trains all weights."""
    reward_adapter: Path | None = None
    """With `lora`: the reward model as an adapter of the policy, so that one base serves all."""


@dataclass(frozen=True)
class Computation:
    """In what the models compute, and what they keep for the backward pass."""

    base_dtype: torch.dtype = torch.float32
    """Of frozen weights."""
    bfloat16: bool = False
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class Passes:
    """How the models read answers."""

    temperature: float = 1.0
    tokens_per_pass: int = 1024


@dataclass(frozen=True)
class Sampling:
    """Which prompts an update answers, and how."""

    prompts_per_update: int
    max_response_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Shaping:
    """What becomes of scores (`rl.maths.advantages.shape_scores`)."""

    clip: float | None
    missing_eos: Literal["replace", "subtract"]
    missing_eos_penalty: float
    length_penalty_per_token: float


@dataclass(frozen=True)
class Estimation:
    """How rewards become advantages and returns."""

    discount: float = 1.0
    trace: float = 0.95
    whiten_rewards: bool = False
    importance_weight_cap: float = 2.0


@dataclass(frozen=True)
class Objective:
    """The losses of policy and critic."""

    clip: float = 0.2
    dual_clip: float | None = None
    value_clip: float = 0.2
    value_coefficient: float = 0.1
    entropy_coefficient: float = 0.0


@dataclass(frozen=True)
class Steps:
    """The optimiser's steps in an update."""

    epochs: int = 4
    minibatches: int = 1
    """Of an epoch."""
    max_gradient_norm: float = 1.0


@dataclass(frozen=True)
class KLControl:
    """How the KL's price follows the KL (`rl.policy_gradient.kl.next_kl_coefficient`); None: it stays."""

    target_nats: float | None
    horizon_answers: int


@dataclass(frozen=True)
class StopRules:
    """When to end early (`rl.policy_gradient.watch.stop_reason`)."""

    kl_nats: float
    """The KL budget of an answer."""
    length_factor: float
    """How many times longer answers may become."""
    worse_evaluations: int | None
    """How many evaluations in a row may have a higher score and a worse loss."""


@dataclass(frozen=True)
class Schedule:
    """How long it goes on, and what comes how often."""

    updates: int
    learning_rate: float
    """Of the first update; it falls linearly to zero."""
    evaluate_every_updates: int | None
    checkpoint_every_updates: int
    overlaps: bool = False
    """Whether the next update's answers are sampled during an update."""


@dataclass(frozen=True)
class Settings:
    """All that the loop is told."""

    kl_coefficient: float
    """What a nat from the reference costs, at first."""
    schedule: Schedule
    sampling: Sampling
    passes: Passes
    shaping: Shaping
    estimation: Estimation
    objective: Objective
    steps: Steps
    kl_control: KLControl
    stop_rules: StopRules
