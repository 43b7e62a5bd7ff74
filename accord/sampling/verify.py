"""Does the sampler have the trainer's weights? A few answers are sampled, and scored again by the trainer's model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from accord.errors import SyncError
from accord.sampling.log_probabilities import token_log_probabilities
from accord.sampling.protocol import Sampler
from accord.sampling.replicas import parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS_PER_ANSWER = 24


@dataclass(frozen=True)
class Bound:
    """The largest |sampler's minus trainer's log-probability| that rounding explains."""

    max_difference: float
    mean_difference: float
    answers_per_prompt: int
    """How many answers are compared: where rounding is coarse, only a mean over many tokens is steady."""


FLOAT32_BOUND = Bound(max_difference=1e-3, mean_difference=1e-4, answers_per_prompt=1)
"""Measured on SmolLM2-135M: at most 3e-5, 3e-6 on average, and above the bound as soon as any part is stale."""

BFLOAT16_BOUND = Bound(max_difference=1.0, mean_difference=0.045, answers_per_prompt=8)
"""Coarse: it finds another model's weights, or a stale head after a change of 1% or more, and nothing finer.

Measured on SmolLM2-135M over 1,000 tokens, mean |difference| (the maximum says nothing, it is 0.2 to 0.6 always):
0.033 to 0.036 with the right weights; with a stale output head 0.034 after a change of 0.3% of the weights' spread,
0.051 after 1%. Scoring with weights rounded to bfloat16, or wholly in bfloat16, separates them no better.
"""

BOUNDS = {"float32": FLOAT32_BOUND, "bfloat16": BFLOAT16_BOUND}


@dataclass(frozen=True)
class SyncReport:
    """How far the sampler's log-probabilities are from the trainer's, over `tokens` sampled tokens."""

    tokens: int
    max_difference: float
    mean_difference: float


def verify(
    sampler: Sampler,
    policy: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    bound: Bound,
    cause: str = "{name} does not have the trainer's weights",
) -> SyncReport:
    """Compare log-probabilities of every engine of the sampler with those of `policy` (in float32) on answers to
    `prompts`.

    `cause` is what a difference means, with {name} for the engine's.

    Raises:
        SyncError: a difference is above the bound; says of which engine.
    """
    prompts = [prompt for prompt in prompts for _ in range(bound.answers_per_prompt)]
    reports = [
        _verify_one(each, policy, prompts, bound, cause.format(name=name)) for name, each in parts(sampler)
    ]
    if len(reports) == 1:
        return reports[0]
    tokens = sum(report.tokens for report in reports)
    return SyncReport(
        tokens,
        max(report.max_difference for report in reports),
        sum(report.mean_difference * report.tokens for report in reports) / tokens,
    )


def _verify_one(
    sampler: Sampler, policy: "PreTrainedModel", prompts: Sequence[Sequence[int]], bound: Bound, cause: str
) -> SyncReport:
    completions = sampler.sample(prompts, range(len(prompts)), TOKENS_PER_ANSWER)
    was_training = policy.training
    policy.eval()
    try:
        scored = token_log_probabilities(policy, prompts, [answer.token_ids for answer in completions])
    finally:
        policy.train(was_training)
    sampled = torch.tensor([value for answer in completions for value in answer.log_probabilities])
    difference = (sampled - torch.cat(scored)).abs()
    report = SyncReport(len(sampled), difference.max().item(), difference.mean().item())
    # Written so that a NaN fails.
    if not (
        report.max_difference <= bound.max_difference and report.mean_difference <= bound.mean_difference
    ):
        raise SyncError(
            f"{cause}: over {report.tokens} sampled tokens their "
            f"log-probabilities differ by up to {report.max_difference:.2g} and by {report.mean_difference:.2g} on "
            f"average, where rounding explains {bound.max_difference:g} and {bound.mean_difference:g}; run the same "
            "command again to continue, with sampling.dtype=float32 and sampling.engine=transformers if this repeats"
        )
    return report
