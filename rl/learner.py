"""One update of PPO: what the models say about a rollout becomes an experience, and policy and critic learn from it.

Every pass takes sequences of like length together, as many as fit into `tokens_per_pass`; which ones are together
changes the result by rounding only.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from accord.errors import AccordError
from rl.actors import Actors, Rows, micro_batches
from rl.advantages import generalised_advantages, slot_mask, token_mask, token_rewards, whiten
from rl.kl import k1, k3
from rl.losses import (
    entropy_loss,
    explained_variance,
    policy_loss,
    truncated_importance_weights,
    value_loss,
)
from rl.rollout import Rollout


class NotFiniteError(AccordError):
    """A score, a loss or a gradient is NaN or infinite."""


@dataclass(frozen=True)
class Opinions:
    """What the four models say about a rollout of A answers in S slots (see `rl.advantages`), before any learning."""

    lengths: Tensor
    """[A], tokens of each answer."""
    log_probabilities: Tensor
    """[A, S], under the policy."""
    entropies: Tensor
    """[A, S], in nats."""
    reference: Tensor
    """[A, S], log-probabilities."""
    sampler: Tensor
    """[A, S], log-probabilities."""
    values: Tensor
    """[A, S], the critic's."""
    scores: Tensor
    """[A], the reward model's, before the shift."""

    @property
    def tokens(self) -> Tensor:
        """Bool [A, S]: where the policy chose a token."""
        return token_mask(self.lengths, self.values.shape[1])

    @property
    def slots(self) -> Tensor:
        """Bool [A, S]: where the critic predicts."""
        return slot_mask(self.lengths, self.values.shape[1])


@torch.no_grad()
def hear(actors: Actors, rollout: Rollout, temperature: float, tokens_per_pass: int) -> Opinions:
    """Let the four models look at a rollout.

    Raises:
        NotFiniteError: a score, a value or a log-probability is NaN or infinite.
    """
    answers, slots = len(rollout.prompts), max(map(len, rollout.responses)) + 1
    device = actors.device
    log_probabilities, entropies, reference, sampler, values = (
        torch.zeros(answers, slots, device=device) for _ in range(5)
    )
    scores = torch.zeros(answers, device=device)
    for index in micro_batches(rollout.sequence_lengths, tokens_per_pass):
        rows = _rows(rollout, index, device)
        policy = actors.policy_statistics(rows, slots, temperature)
        log_probabilities[index], entropies[index] = policy
        reference[index] = actors.reference_statistics(rows, slots, temperature).log_probabilities
        values[index] = actors.values(rows, slots)
        scores[index] = actors.scores(rows)
    for i, row in enumerate(rollout.sampler_log_probabilities):
        sampler[i, : len(row)] = torch.tensor(row)
    found = {
        "score": scores, "value": values, "log-probability": log_probabilities,
        "log-probability of the reference": reference,
    }  # fmt: skip
    for name, tensor in found.items():
        if not tensor.isfinite().all():
            answer = int((~tensor.isfinite()).nonzero()[0, 0])
            raise NotFiniteError(f"the {name} of answer {answer + 1} is NaN or infinite")
    lengths = torch.tensor([len(response) for response in rollout.responses], device=device)
    return Opinions(lengths, log_probabilities, entropies, reference, sampler, values, scores)


@dataclass(frozen=True)
class Experience:
    """What policy and critic learn from; all tensors [A, S]."""

    opinions: Opinions
    rewards: Tensor
    advantages: Tensor
    """Whitened over the tokens."""
    returns: Tensor
    weights: Tensor
    """Truncated importance weights of the sampler's mismatch."""

    def figures(self) -> dict[str, float]:
        """KL and entropy of the answers, their reward after the KL's price, and how well the critic predicted."""
        opinions = self.opinions
        tokens, count = opinions.tokens, len(opinions.lengths)
        log_p, reference = opinions.log_probabilities, opinions.reference
        return {
            "kl_k1_nats": (k1(log_p, reference) * tokens).sum().item() / count,
            "kl_k3_nats": (k3(log_p, reference) * tokens).sum().item() / count,
            "entropy_nats": opinions.entropies[tokens].mean().item(),
            "reward": self.rewards.sum().item() / count,
            "explained_variance": explained_variance(opinions.values, self.returns, opinions.slots),
        }


def experience(
    opinions: Opinions,
    scores: Tensor,
    kl_coefficient: float,
    discount: float,
    trace: float,
    whiten_rewards: bool,
    importance_weight_cap: float,
) -> Experience:
    """Rewards, advantages and returns, computed once for all epochs of an update; `scores` [A] are shaped."""
    lengths = opinions.lengths
    kl = k1(opinions.log_probabilities, opinions.reference)
    rewards = token_rewards(scores, kl, lengths, kl_coefficient)
    learned = whiten(rewards, opinions.slots, shift_mean=False) if whiten_rewards else rewards
    estimate = generalised_advantages(learned, opinions.values, lengths, discount, trace)
    return Experience(
        opinions,
        rewards,
        whiten(estimate.advantages, opinions.tokens, shift_mean=True),
        estimate.returns,
        truncated_importance_weights(opinions.log_probabilities, opinions.sampler, importance_weight_cap),
    )


def learn(
    actors: Actors,
    optimiser: torch.optim.Optimizer,
    rollout: Rollout,
    experience: Experience,
    *,
    epochs: int,
    minibatches: int,
    clip: float,
    value_clip: float,
    value_coefficient: float,
    entropy_coefficient: float,
    dual_clip: float | None,
    max_gradient_norm: float,
    temperature: float,
    tokens_per_pass: int,
    seed: str,
) -> dict[str, float]:
    """Take `epochs * minibatches` optimiser steps; returns figures, means over the steps but for the maxima.

    Losses are means over the tokens (policy) and slots (critic) of a minibatch. The gradients of policy and critic are
    cut to `max_gradient_norm` each, for they share no weights.

    Raises:
        NotFiniteError: a loss or a gradient is NaN or infinite; the optimiser has not taken that step.
    """
    steps: list[dict[str, float]] = []
    for epoch in range(epochs):
        order = list(range(len(rollout.prompts)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for part in range(minibatches):
            chosen = sorted(order[part::minibatches])
            optimiser.zero_grad()
            figures = _backward(
                actors, rollout, experience, chosen, clip=clip, value_clip=value_clip, dual_clip=dual_clip,
                value_coefficient=value_coefficient, entropy_coefficient=entropy_coefficient,
                temperature=temperature, tokens_per_pass=tokens_per_pass,
            )  # fmt: skip
            figures |= _cut_gradients(actors.policy_parameters, "policy_gradient_norm", max_gradient_norm)
            figures |= _cut_gradients(actors.critic_parameters, "critic_gradient_norm", max_gradient_norm)
            for name, value in figures.items():
                if not math.isfinite(value):
                    raise NotFiniteError(f"{name} became {value} in epoch {epoch + 1}")
            optimiser.step()
            steps.append(figures)
    optimiser.zero_grad()
    first_ratio_deviation = steps[0]["ratio_deviation"]
    means = {
        name: sum(step[name] for step in steps) / len(steps) for name in steps[0] if name != "ratio_deviation"
    }
    return means | {
        "ratio_max": max(step["ratio_max"] for step in steps), "first_ratio_deviation": first_ratio_deviation
    }  # fmt: skip


def _backward(
    actors: Actors, rollout: Rollout, experience: Experience, chosen: list[int], *, clip: float, value_clip: float,
    dual_clip: float | None, value_coefficient: float, entropy_coefficient: float, temperature: float,
    tokens_per_pass: int,
) -> dict[str, float]:  # fmt: skip
    """Gradients of a minibatch, one micro-batch after the other; returns its losses and ratios."""
    opinions = experience.opinions
    slots = opinions.values.shape[1]
    tokens, critic_slots = opinions.tokens, opinions.slots
    token_count, slot_count = tokens[chosen].sum(), critic_slots[chosen].sum()
    totals: dict[str, Any] = dict.fromkeys(
        ("policy_loss", "value_loss", "ratio", "policy_clip", "value_clip"), 0.0
    )
    largest, deviation = torch.zeros(2, device=actors.device)
    lengths = rollout.sequence_lengths
    for places in micro_batches([lengths[i] for i in chosen], tokens_per_pass):
        index = [chosen[place] for place in places]
        rows = _rows(rollout, index, actors.device)
        statistics = actors.policy_statistics(rows, slots, temperature)
        policy = policy_loss(
            statistics.log_probabilities, opinions.log_probabilities[index], experience.advantages[index],
            tokens[index], token_count, clip, dual_clip, experience.weights[index],
        )  # fmt: skip
        loss = policy.loss
        if entropy_coefficient:
            loss = loss + entropy_coefficient * entropy_loss(statistics.entropies, tokens[index], token_count)
        loss.backward()
        with actors.adapter("critic"):
            values = actors.values(rows, slots)
            critic = value_loss(
                values, opinions.values[index], experience.returns[index], critic_slots[index], slot_count, value_clip
            )  # fmt: skip
            (value_coefficient * critic.loss).backward()
        totals["policy_loss"] += policy.loss.detach()
        totals["value_loss"] += critic.loss.detach()
        totals["ratio"] += policy.ratio_sum / token_count
        totals["policy_clip"] += policy.clipped / token_count
        totals["value_clip"] += critic.clipped / slot_count
        largest = torch.maximum(largest, policy.ratio_max)
        deviation = torch.maximum(deviation, policy.ratio_deviation)
    return {
        "policy_loss": float(totals["policy_loss"]),
        "value_loss": float(totals["value_loss"]),
        "ratio_mean": float(totals["ratio"]),
        "ratio_max": float(largest),
        "ratio_deviation": float(deviation),
        "policy_clip_fraction": float(totals["policy_clip"]),
        "value_clip_fraction": float(totals["value_clip"]),
    }


def _cut_gradients(parameters: Mapping[str, nn.Parameter], name: str, max_norm: float) -> dict[str, float]:
    return {name: float(nn.utils.clip_grad_norm_(list(parameters.values()), max_norm))}


def _rows(rollout: Rollout, index: list[int], device: torch.device) -> Rows:
    return Rows.of([rollout.prompts[i] for i in index], [rollout.responses[i] for i in index]).to(device)
