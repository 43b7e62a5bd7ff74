"""Settings of policy optimisation."""

from typing import Literal, Self

from pydantic import Field, model_validator

from accord.config import Config, LoraConfig
from accord.training_config import TrainingConfig


class DPOConfig(TrainingConfig):
    """Direct preference optimisation (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290); a row is a pair."""

    algorithm: Literal["dpo"] = "dpo"
    learning_rate: float = Field(default=1e-6, gt=0)
    kl_coefficient: float = Field(default=0.1, gt=0)
    """The paper's beta: how dearly the policy pays for leaving the reference."""
    heldout_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the prompts whose pairs are held out, for the curves; the reward model's choice by default."""


class PPOConfig(Config):
    """Proximal policy optimisation (Schulman et al. 2017) of the reward model's score, as in Huang et al. 2024.

    In an update the policy answers `prompts_per_update` prompts once each, and learns from these answers
    `epochs_per_update` times.
    """

    algorithm: Literal["ppo"]
    prompts: str
    """A file of prompts; those whose preferences are held out are taken out of it."""
    updates: int = Field(default=100, ge=1)
    """How often answers are sampled and learned from."""
    prompts_per_update: int = Field(default=64, ge=1)
    """How many prompts are answered for an update, once each."""
    epochs_per_update: int = Field(default=4, ge=1)
    """How often an update learns from its answers."""
    minibatches_per_epoch: int = Field(default=1, ge=1)
    """Optimiser steps an epoch; each takes an equal part of the answers."""
    max_response_tokens: int = Field(default=128, ge=1)
    """The longest answer."""
    max_sequence_tokens: int = Field(default=1024, ge=2)
    """The longest prompt and answer together; longer prompts are dropped, and counted."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling; the logits of policy and reference are divided by it everywhere."""
    learning_rate: float = Field(default=3e-6, gt=0)
    """Of policy and critic at the first update; it falls linearly to zero. LoRA wants ten to a hundred times that."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients of policy and critic are each cut to this norm."""
    kl_coefficient: float = Field(default=0.05, ge=0)
    """What a nat of distance from the reference costs, in the reward model's units."""
    kl_target_nats: float | None = Field(default=None, gt=0)
    """Move the coefficient so that an answer's KL from the reference comes near this (Ziegler et al. 2019)."""
    kl_horizon_answers: int = Field(default=10_000, ge=1)
    """How slowly it moves: after about so many answers it has followed."""
    discount: float = Field(default=1.0, gt=0, le=1)
    """Gamma: what a reward is worth one token earlier."""
    trace: float = Field(default=0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation; 0 trusts the critic wholly, 1 not at all."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """How far a token's probability may move, relatively, before its gradient ends."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bounds the loss of unlikely tokens whose probability grew, as a multiple of their advantage (Ye et al. 2020)."""
    value_clip: float = Field(default=0.2, gt=0)
    """How far the critic's prediction may move in an update, in the reward model's units."""
    value_coefficient: float = Field(default=0.1, gt=0)
    """Weight of the critic's loss."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the mean entropy, which keeps the policy exploring."""
    importance_weight_cap: float = Field(default=2.0, ge=1)
    """Tokens are weighted by how much likelier the trainer finds them than the sampler did, at most so much."""
    whiten_rewards: bool = False
    """Scale the rewards of an update's tokens to unit variance."""
    score_clip: float | None = Field(default=None, gt=0)
    """Scores are cut to plus or minus this."""
    demonstrations: str | None = None
    """A file of demonstrations: scores are shifted so that these score 0 on average."""
    missing_eos: Literal["replace", "subtract"] = "replace"
    """An answer without EOS gets minus the penalty as its score, or the penalty subtracted from it."""
    missing_eos_penalty: float = Field(default=1.0, ge=0)
    """In the reward model's units."""
    length_penalty_per_token: float = 0.0
    """Subtracted from the score for every token of an answer."""
    heldout_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the prompts whose preferences are held out for evaluation; the reward model's choice by default."""
    evaluate_every_updates: int | None = Field(default=None, ge=1)
    """How often the policy is evaluated on held-out prompts and preferences; the best of these policies is the result.
    Left out: once, after the last update, whose policy is the result."""
    stop_at_kl_nats: float = Field(default=100.0, gt=0)
    """Stop after an update whose answers are farther from the reference than this, on average."""
    stop_at_length_factor: float = Field(default=4.0, gt=1)
    """Stop after an update whose answers are so many times longer than the first update's, on average."""
    stop_after_worse_evaluations: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations in a row with a higher held-out score and a worse held-out preference loss than
    the best one's: the sign that the policy exploits the reward model."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """As for the other training stages."""
    lora: LoraConfig | None = None
    """Train adapters of policy and critic instead of all weights; the reference is then the policy without its own."""
    shared_base: bool = False
    """With lora: policy, critic and reward model are adapters of one base. The reward model must have been trained from
    this policy, with lora."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    tokens_per_pass: int = Field(default=1024, ge=1)
    """How many tokens, padding included, are computed at a time; a GPU is faster with more, memory permitting."""
    checkpoint_every_updates: int = Field(default=1, ge=1)
    """A kill costs at most so many updates."""
    seed: int = 0
    """Of the order of the prompts, the answers and new weights."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.prompts_per_update % self.minibatches_per_epoch:
            raise ValueError("prompts_per_update must be a multiple of minibatches_per_epoch")
        if self.max_response_tokens >= self.max_sequence_tokens:
            raise ValueError("max_sequence_tokens must leave room for a prompt beside max_response_tokens")
        if self.lora and self.lora.dropout:
            raise ValueError("lora.dropout must be 0 for PPO, whose ratios compare the policy with itself")
        if self.lora and self.lora.quantize_base:
            raise ValueError(
                "lora.quantize_base does not work with PPO, whose sampler takes the merged weights"
            )
        if self.shared_base and not self.lora:
            raise ValueError("shared_base needs lora")
        if self.stop_after_worse_evaluations and not self.evaluate_every_updates:
            raise ValueError("stop_after_worse_evaluations needs evaluate_every_updates")
        return self
