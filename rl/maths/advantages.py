"""From scores to advantages: what an answer earns at each of its tokens.

All functions are pure, and take answers padded on the right to a common width. An answer of L tokens (its EOS included,
where it ended by itself) has L + 1 slots: in slot t < L the policy chose token t, and slot L is the state after the
last token, where the score arrives. So there are two masks:

    tokens    t < L     where the policy acts: policy loss, KL, advantages
    slots     t <= L    where the critic predicts: rewards, values, returns

Shapes: `answers`, and `slots` = longest answer + 1; `lengths` holds each L. The numbers of one answer never depend on
how long the others are. The details follow "The N+ Implementation Details of RLHF with PPO" (Huang et al. 2024,
https://arxiv.org/abs/2403.17031).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def token_mask(lengths: Int[Tensor, " answers"], slots: int) -> Bool[Tensor, "answers {slots}"]:
    """Where the policy chose a token."""
    return torch.arange(slots, device=lengths.device) < lengths[:, None]


def slot_mask(lengths: Int[Tensor, " answers"], slots: int) -> Bool[Tensor, "answers {slots}"]:
    """Where the critic predicts; one slot more than `token_mask`."""
    return torch.arange(slots, device=lengths.device) <= lengths[:, None]


def truncate_at_eos(token_ids: Sequence[int], eos_token_id: int) -> list[int]:
    """The tokens up to and including the first EOS; all of them where there is none."""
    ids = list(token_ids)
    return ids[: ids.index(eos_token_id) + 1] if eos_token_id in ids else ids


class ShapedScores(NamedTuple):
    """What becomes of the reward model's scores; in the reward model's units."""

    scores: Float[Tensor, " answers"]
    length_penalties: Float[Tensor, " answers"]


def shape_scores(
    scores: Float[Tensor, " answers"],
    lengths: Int[Tensor, " answers"],
    ended: Bool[Tensor, " answers"],
    shift: float = 0.0,
    clip: float | None = None,
    missing_eos: Literal["replace", "subtract"] = "replace",
    missing_eos_penalty: float = 1.0,
    length_penalty_per_token: float = 0.0,
) -> ShapedScores:
    """Scores after, in this order: shift, clipping, the missing-EOS rule, the length penalty.

    Args:
        scores: from the reward model.
        lengths: tokens.
        ended: whether the answer ended with EOS.
        shift: the mean score of demonstrations, which is subtracted: they score 0 on average.
        clip: scores are cut to [-clip, clip].
        missing_eos: for answers without EOS, "replace" the score by -penalty (the paper) or "subtract" it (TRL 1.12).
        missing_eos_penalty: in the reward model's units, after the shift.
        length_penalty_per_token: subtracted for every token.
    """
    shaped = scores - shift
    if clip is not None:
        shaped = shaped.clamp(-clip, clip)
    without_eos = (
        torch.full_like(shaped, -missing_eos_penalty)
        if missing_eos == "replace"
        else shaped - missing_eos_penalty
    )
    penalties = length_penalty_per_token * lengths.to(shaped.dtype)
    return ShapedScores(torch.where(ended, shaped, without_eos) - penalties, penalties)


def token_rewards(
    scores: Float[Tensor, " answers"],
    kl: Float[Tensor, "answers slots"],
    lengths: Int[Tensor, " answers"],
    kl_coefficient: float,
) -> Float[Tensor, "answers slots"]:
    """Rewards: -kl_coefficient * kl at every token, and the score in the slot after the last one.

    Args:
        scores: shaped.
        kl: a per-token estimate of the KL in nats; k1 keeps the sum's expectation the true KL.
        lengths: tokens.
        kl_coefficient: the price of a nat, in the score's units.

    Source: Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, equation 2.
    """
    rewards = torch.where(token_mask(lengths, kl.shape[1]), -kl_coefficient * kl, torch.zeros_like(kl))
    return rewards.scatter_add(1, lengths[:, None], scores[:, None].to(kl.dtype))


def whiten(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], shift_mean: bool
) -> Float[Tensor, "*shape"]:
    """(x - mean) / sqrt(variance + 1e-8) over the mask, 0 elsewhere; the mean is added back unless `shift_mean`.

    The variance is the unbiased one. Where the mask holds one element only, its variance counts as 0.
    """
    count = mask.sum()
    zero = torch.zeros_like(values)
    mean = torch.where(mask, values, zero).sum() / count
    centred = torch.where(mask, values - mean, zero)
    variance = centred.square().sum() / (count - 1).clamp(min=1)
    whitened = centred * torch.rsqrt(variance + 1e-8)
    return whitened if shift_mean else torch.where(mask, whitened + mean, zero)


class Advantages(NamedTuple):
    """Both 0 outside the slots; whitening, where wanted, comes after."""

    advantages: Float[Tensor, "answers slots"]
    returns: Float[Tensor, "answers slots"]


def generalised_advantages(
    rewards: Float[Tensor, "answers slots"],
    values: Float[Tensor, "answers slots"],
    lengths: Int[Tensor, " answers"],
    discount: float = 1.0,
    trace: float = 0.95,
) -> Advantages:
    """Generalised advantage estimation, A_t = d_t + discount * trace * A_(t+1) with d_t = r_t + discount V_(t+1) - V_t.

    After the last slot there is nothing: V and A are 0 there. The returns, which the critic learns, are A + V.

    Args:
        rewards: of `token_rewards`.
        values: the critic's predictions when the answers were sampled; whatever is beyond the slots is ignored.
        lengths: tokens.
        discount: gamma.
        trace: lambda; 0 trusts the critic wholly, 1 not at all.

    Source: Schulman et al. 2015, https://arxiv.org/abs/1506.02438, equation 16.
    """
    mask = slot_mask(lengths, rewards.shape[1])
    values = torch.where(mask, values, torch.zeros_like(values))
    rewards = torch.where(mask, rewards, torch.zeros_like(rewards))
    advantages = torch.zeros_like(rewards)
    later_advantage = later_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + discount * later_value - values[:, t]
        later_advantage = delta + discount * trace * later_advantage
        later_value = values[:, t]
        advantages[:, t] = later_advantage
    return Advantages(advantages, advantages + values)
