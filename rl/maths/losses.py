"""PPO's losses as pure functions of tensors of answers and slots (see `rl.maths.advantages`).

Each is a sum over a mask divided by `count`, the size of that mask over a whole minibatch: so the losses of
micro-batches add up to the minibatch's, however it was divided.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Scalar = Float[Tensor, ""]
Count = Int[Tensor, ""] | int


class PolicyLoss(NamedTuple):
    """The loss (a scalar with gradient), and figures without: of the ratios, and of the clipping."""

    loss: Scalar
    ratio_sum: Scalar
    ratio_max: Scalar
    ratio_deviation: Scalar
    """The largest |ratio - 1|."""
    clipped: Int[Tensor, ""]
    """How many tokens have no gradient because the ratio left the clip range."""


def policy_loss(
    log_probabilities: Float[Tensor, "answers slots"],
    old_log_probabilities: Float[Tensor, "answers slots"],
    advantages: Float[Tensor, "answers slots"],
    mask: Bool[Tensor, "answers slots"],
    count: Count,
    clip: float = 0.2,
    dual_clip: float | None = None,
    weights: Float[Tensor, "answers slots"] | None = None,
) -> PolicyLoss:
    """-(1 / count) * sum of w * min(ratio * A, clamp(ratio, 1 - clip, 1 + clip) * A), ratio = p_new / p_old.

    Args:
        log_probabilities: under the policy being trained, with gradient.
        old_log_probabilities: under the policy that the update began with, by the trainer.
        advantages: whitened.
        mask: the tokens.
        count: tokens of the minibatch.
        clip: how far the ratio may go before its gradient ends.
        dual_clip: where A < 0 the objective is at least dual_clip * A, which bounds the loss of tokens whose ratio
            grew large (Ye et al. 2020, https://arxiv.org/abs/1912.09729, equation 5); above 1 + clip.
        weights: `truncated_importance_weights`, constants.

    Source: Schulman et al. 2017, https://arxiv.org/abs/1707.06347, equation 7.
    """
    # Outside the mask there may be anything, and 0 * inf would be NaN in the gradient.
    log_ratio = torch.where(
        mask, log_probabilities - old_log_probabilities, torch.zeros_like(log_probabilities)
    )
    ratio = log_ratio.exp()
    unclipped = ratio * advantages
    objective = torch.minimum(unclipped, ratio.clamp(1 - clip, 1 + clip) * advantages)
    inactive = objective < unclipped
    if dual_clip is not None:
        floor = dual_clip * advantages
        bounded = (advantages < 0) & (objective < floor)
        objective = torch.where(bounded, floor, objective)
        inactive = inactive | bounded
    if weights is not None:
        objective = objective * weights
    objective = torch.where(mask, objective, torch.zeros_like(objective))
    ratio = ratio.detach()
    return PolicyLoss(
        -objective.sum() / count,
        (ratio * mask).sum(),
        (ratio * mask).max(),
        ((ratio - 1) * mask).abs().max(),
        (inactive & mask).sum(),
    )


class ValueLoss(NamedTuple):
    """The loss (a scalar with gradient), and in how many slots the clipped error was the larger one."""

    loss: Scalar
    clipped: Int[Tensor, ""]


def value_loss(
    values: Float[Tensor, "answers slots"],
    old_values: Float[Tensor, "answers slots"],
    returns: Float[Tensor, "answers slots"],
    mask: Bool[Tensor, "answers slots"],
    count: Count,
    clip: float = 0.2,
) -> ValueLoss:
    """(1 / count) * sum of 1/2 max((V - R)^2, (clamp(V, V_old - clip, V_old + clip) - R)^2) over the slots.

    Source: the PPO of OpenAI Baselines; "The N+ Implementation Details" (https://arxiv.org/abs/2403.17031).
    """
    zero = torch.zeros_like(values)
    values = torch.where(mask, values, zero)
    clipped_values = values.clamp(old_values - clip, old_values + clip)
    error, clipped_error = (values - returns).square(), (clipped_values - returns).square()
    loss = torch.where(mask, torch.maximum(error, clipped_error), zero)
    return ValueLoss(0.5 * loss.sum() / count, ((clipped_error > error) & mask).sum())


def entropy_loss(
    entropies: Float[Tensor, "answers slots"], mask: Bool[Tensor, "answers slots"], count: Count
) -> Scalar:
    """Minus the mean entropy of the tokens' distributions, in nats: adding it with a weight rewards exploration."""
    return -torch.where(mask, entropies, torch.zeros_like(entropies)).sum() / count


def truncated_importance_weights(
    trainer: Float[Tensor, "*shape"], sampler: Float[Tensor, "*shape"], cap: float
) -> Float[Tensor, "*shape"]:
    """min(p_trainer / p_sampler, cap) for each token, from log-probabilities of the same weights in two programs.

    Sampler and trainer round differently (bfloat16 above all), so the answers come from a policy that is not quite the
    trainer's. Source: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training".
    """
    return (trainer - sampler).exp().clamp(max=cap)


def explained_variance(
    values: Float[Tensor, "answers slots"],
    returns: Float[Tensor, "answers slots"],
    mask: Bool[Tensor, "answers slots"],
) -> float:
    """1 - Var(R - V) / Var(R) over the slots: 1 for a perfect critic, 0 for a constant, negative for a harmful one."""
    variance = returns[mask].double().var(correction=0)
    residual = (returns - values)[mask].double().var(correction=0)
    return float(1 - residual / variance) if variance > 0 else 0.0
