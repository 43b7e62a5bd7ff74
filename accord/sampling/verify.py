"""Does the sampler have the trainer's weights? A few answers are sampled, and scored again by the trainer's model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from accord.errors import SyncError
from accord.sampling.log_probabilities import token_log_probabilities
from accord.sampling.protocol import Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS_PER_ANSWER = 24


@dataclass(frozen=True)
class Bound:
    """The largest |sampler's minus trainer's log-probability| that rounding explains."""

    max_difference: float
    mean_difference: float


FLOAT32_BOUND = Bound(max_difference=1e-3, mean_difference=1e-3)
BFLOAT16_BOUND = Bound(max_difference=1.0, mean_difference=0.05)
BOUNDS = {"float32": FLOAT32_BOUND, "bfloat16": BFLOAT16_BOUND}


@dataclass(frozen=True)
class SyncReport:
    """How far the sampler's log-probabilities are from the trainer's, over `tokens` sampled tokens."""

    tokens: int
    max_difference: float
    mean_difference: float


def verify(
    sampler: Sampler, policy: "PreTrainedModel", prompts: Sequence[Sequence[int]], bound: Bound
) -> SyncReport:
    """Compare the sampler's log-probabilities with those of `policy` (in float32) on answers to `prompts`.

    Raises:
        SyncError: a difference is above the bound.
    """
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
            f"the sampler does not have the trainer's weights: over {report.tokens} sampled tokens their "
            f"log-probabilities differ by up to {report.max_difference:.2g} and by {report.mean_difference:.2g} on "
            f"average, where rounding explains {bound.max_difference:g} and {bound.mean_difference:g}; run the same "
            "command again to continue, with sampling.engine=transformers if this repeats"
        )
    return report
