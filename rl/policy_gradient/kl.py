"""How far the policy is from the reference, and what a nat of that costs."""

from jaxtyping import Float
from torch import Tensor


def k1(
    log_probabilities: Float[Tensor, "*shape"], reference: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """log p - log q of each sampled token: an unbiased estimate of KL(p || q), which may be negative.

    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html.
    """
    return log_probabilities - reference


def k3(
    log_probabilities: Float[Tensor, "*shape"], reference: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """(q/p - 1) - log(q/p) of each sampled token: unbiased too, never negative, and less noisy (same source)."""
    log_ratio = reference - log_probabilities
    return log_ratio.expm1() - log_ratio


def next_kl_coefficient(
    kl_coefficient: float, kl_nats: float, target_nats: float, answers: int, horizon_answers: int
) -> float:
    """The adaptive controller: the coefficient rises while the KL is above its target, and falls below it.

    coefficient * (1 + clip(KL / target - 1, -0.2, 0.2) * answers / horizon)

    Args:
        kl_coefficient: the present one.
        kl_nats: mean KL of an answer of this update.
        target_nats: what it should be.
        answers: how many this update sampled.
        horizon_answers: after about so many answers the coefficient follows; larger is slower.

    Source: Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, section 2.2.
    """
    error = min(max(kl_nats / target_nats - 1, -0.2), 0.2)
    return kl_coefficient * (1 + error * answers / horizon_answers)
