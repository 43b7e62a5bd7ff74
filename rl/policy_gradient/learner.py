"""One update of PPO: what the models say about a rollout becomes an experience, and policy and critic learn from it.

Every pass takes sequences of like length together, as many as fit into `tokens_per_pass`; which ones are together
changes the result by rounding only. Policy and critic share no weights and learn one after the other, so that the
gradients of one exist at a time.

Where several processes share the work (`accord.parallel`), each has some of the answers, the same ones in all epochs.
Opinions, gradients and figures are summed over the processes, and then all take the same step. Gradients of models in
shards (`rl.policy_gradient.sharding`) are summed by the backward pass itself.
"""

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from accord import parallel
from accord.errors import AccordError
from reward.score import combine, disagreement
from rl.maths.advantages import generalised_advantages, slot_mask, token_mask, token_rewards, whiten
from rl.maths.losses import (
    entropy_loss,
    explained_variance,
    policy_loss,
    truncated_importance_weights,
    value_loss,
)
from rl.policy_gradient.actors import Actors
from rl.policy_gradient.kl import k1, k3
from rl.policy_gradient.rollout import Rollout
from rl.policy_gradient.rows import Rows, share_passes
from rl.policy_gradient.settings import Estimation, Objective, Passes, Steps


class NotFiniteError(AccordError):
    """A score, a loss or a gradient is NaN or infinite."""


@dataclass(frozen=True)
class Opinions:
    """What the four models say about a rollout of A answers in S slots (see `rl.maths.advantages`), before learning."""

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
    """[A], the reward model's, before the shift, or those of what stands in its place; 0 where that has no opinion."""
    scored: Tensor
    """Bool [A]: whether there is an opinion. Nothing is learned from the other answers."""
    disagreements: Tensor
    """[A], standard deviations of the scores of an ensemble's heads; 0 for a single one."""
    beneath: list[dict[str, Tensor]]
    """For each answer in this process's share what `Actors.beneath` found, [prompt and answer, d]."""

    @property
    def tokens(self) -> Tensor:
        """Bool [A, S]: where the policy chose a token."""
        return token_mask(self.lengths, self.values.shape[1])

    @property
    def slots(self) -> Tensor:
        """Bool [A, S]: where the critic predicts."""
        return slot_mask(self.lengths, self.values.shape[1])

    @property
    def learned_tokens(self) -> Tensor:
        """Bool [A, S]: what the policy learns from."""
        return self.tokens & self.scored[:, None]

    @property
    def learned_slots(self) -> Tensor:
        """Bool [A, S]: what the critic learns from."""
        return self.slots & self.scored[:, None]


@torch.no_grad()
def hear(actors: Actors, rollout: Rollout, passes: Passes) -> Opinions:
    """Let the four models look at a rollout.

    Raises:
        NotFiniteError: a score, a value or a log-probability is NaN or infinite.
    """
    answers, slots = len(rollout.prompts), max(map(len, rollout.responses)) + 1
    device = actors.device
    log_probabilities, entropies, reference, sampler, values = (
        torch.zeros(answers, slots, device=device) for _ in range(5)
    )
    scores = torch.zeros(answers, actors.reward_head.out_features, device=device)
    beneath: list[dict[str, Tensor]] = [{} for _ in range(answers)]
    lengths = rollout.sequence_lengths
    for index, counts in share_passes(lengths, passes.tokens_per_pass):
        rows = actors.beneath(_rows(rollout, index, device))
        for name, states in rows.beneath.items():
            for answer, of_answer in zip(index, rows.split(states), strict=True):
                beneath[answer][name] = of_answer
        policy = actors.policy_statistics(rows, slots, passes.temperature)
        of_reference = actors.reference_statistics(rows, slots, passes.temperature).log_probabilities
        of_critic, of_reward_model = actors.values(rows, slots), actors.scores(rows)
        if counts:
            log_probabilities[index], entropies[index] = policy
            reference[index], values[index], scores[index] = of_reference, of_critic, of_reward_model
    parallel.sum_tensors([log_probabilities, entropies, reference, values, scores])
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
    tokens = torch.tensor([len(response) for response in rollout.responses], device=device)
    return Opinions(
        tokens, log_probabilities, entropies, reference, sampler, values, combine(scores, actors.ensemble),
        torch.ones_like(tokens, dtype=torch.bool), disagreement(scores), beneath,
    )  # fmt: skip


@dataclass(frozen=True)
class Experience:
    """What policy and critic learn from; all tensors [A, S]."""

    opinions: Opinions
    rewards: Tensor
    advantages: Tensor
    """Whitened over the tokens that are learned from."""
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
            "reward_after_kl": self.rewards[opinions.scored].sum().item() / int(opinions.scored.sum()),
            "explained_variance": explained_variance(opinions.values, self.returns, opinions.learned_slots),
        }


def experience(
    opinions: Opinions, scores: Tensor, kl_coefficient: float, estimation: Estimation
) -> Experience:
    """Rewards, advantages and returns, computed once for all epochs of an update; `scores` [A] are shaped."""
    lengths = opinions.lengths
    kl = k1(opinions.log_probabilities, opinions.reference)
    rewards = token_rewards(scores, kl, lengths, kl_coefficient)
    learned = (
        whiten(rewards, opinions.learned_slots, shift_mean=False) if estimation.whiten_rewards else rewards
    )
    estimate = generalised_advantages(
        learned, opinions.values, lengths, estimation.discount, estimation.trace
    )
    return Experience(
        opinions,
        rewards,
        whiten(estimate.advantages, opinions.learned_tokens, shift_mean=True),
        estimate.returns,
        truncated_importance_weights(
            opinions.log_probabilities, opinions.sampler, estimation.importance_weight_cap
        ),
    )


def learn(
    actors: Actors,
    optimiser: torch.optim.Optimizer,
    rollout: Rollout,
    experience: Experience,
    objective: Objective,
    steps: Steps,
    passes: Passes,
    seed: str,
) -> dict[str, float]:
    """Take `epochs * minibatches` optimiser steps; returns figures, means over the steps but for the maxima.

    Losses are means over the tokens (policy) and slots (critic) of a minibatch's answers that have a score; a minibatch
    without any is no step. The gradients of policy and critic are
    cut to `max_gradient_norm` each, for they share no weights. `seed` is of the order in which answers come.

    Raises:
        NotFiniteError: a loss or a gradient is NaN or infinite; the model that it belongs to has not taken that step.
    """
    taken: list[dict[str, float]] = []
    norm = steps.max_gradient_norm
    for epoch in range(steps.epochs):
        order = list(range(len(rollout.prompts)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for part in range(steps.minibatches):
            chosen = sorted(order[part :: steps.minibatches])
            if not experience.opinions.scored[chosen].any():
                continue
            figures = _backward_policy(actors, rollout, experience, chosen, objective, passes)
            _step(optimiser, actors.policy_parameters, "policy", norm, figures, epoch)
            figures |= _backward_critic(actors, rollout, experience, chosen, objective, passes)
            _step(optimiser, actors.critic_parameters, "critic", norm, figures, epoch)
            taken.append(figures)
    first_ratio_deviation = taken[0]["ratio_deviation"]
    means = {
        name: sum(step[name] for step in taken) / len(taken) for name in taken[0] if name != "ratio_deviation"
    }
    return means | {
        "ratio_max": max(step["ratio_max"] for step in taken), "first_ratio_deviation": first_ratio_deviation
    }  # fmt: skip


def _backward_policy(
    actors: Actors, rollout: Rollout, experience: Experience, chosen: list[int], objective: Objective, passes: Passes
) -> dict[str, float]:  # fmt: skip
    """The policy's gradients for a minibatch, one micro-batch after the other; returns its loss and ratios."""
    opinions = experience.opinions
    tokens, slots = opinions.learned_tokens, opinions.values.shape[1]
    count = tokens[chosen].sum()
    loss, ratio, clipped, largest, deviation = torch.zeros(5, device=actors.device)
    for index, rows, counts in _minibatch(rollout, experience, chosen, passes.tokens_per_pass, actors.device):
        mask = tokens[index] & counts
        statistics = actors.policy_statistics(rows, slots, passes.temperature)
        found = policy_loss(
            statistics.log_probabilities, opinions.log_probabilities[index], experience.advantages[index],
            mask, count, objective.clip, objective.dual_clip, experience.weights[index],
        )  # fmt: skip
        total = found.loss
        if objective.entropy_coefficient:
            total = total + objective.entropy_coefficient * entropy_loss(statistics.entropies, mask, count)
        total.backward()
        loss, ratio, clipped = loss + found.loss.detach(), ratio + found.ratio_sum, clipped + found.clipped
        largest = torch.maximum(largest, found.ratio_max)
        deviation = torch.maximum(deviation, found.ratio_deviation)
    sums, maxima = torch.stack([loss, ratio, clipped]), torch.stack([largest, deviation])
    if not parallel.is_sharded():
        parallel.sum_gradients(actors.policy_parameters.values())
    parallel.sum_tensors([sums])
    parallel.take_maximum(maxima)
    return {
        "policy_loss": float(sums[0]),
        "ratio_mean": float(sums[1] / count),
        "ratio_max": float(maxima[0]),
        "ratio_deviation": float(maxima[1]),
        "policy_clip_fraction": float(sums[2] / count),
    }


def _backward_critic(
    actors: Actors, rollout: Rollout, experience: Experience, chosen: list[int], objective: Objective, passes: Passes
) -> dict[str, float]:  # fmt: skip
    """The critic's gradients for a minibatch, one micro-batch after the other; returns its loss."""
    opinions = experience.opinions
    learned, slots = opinions.learned_slots, opinions.values.shape[1]
    count = learned[chosen].sum()
    loss, clipped = torch.zeros(2, device=actors.device)
    for index, rows, counts in _minibatch(rollout, experience, chosen, passes.tokens_per_pass, actors.device):
        with actors.adapter("critic"):
            found = value_loss(
                actors.values(rows, slots), opinions.values[index], experience.returns[index],
                learned[index] & counts, count, objective.value_clip,
            )  # fmt: skip
            (objective.value_coefficient * found.loss).backward()
        loss, clipped = loss + found.loss.detach(), clipped + found.clipped
    sums = torch.stack([loss, clipped])
    if not parallel.is_sharded():
        parallel.sum_gradients(actors.critic_parameters.values())
    parallel.sum_tensors([sums])
    return {"value_loss": float(sums[0]), "value_clip_fraction": float(sums[1] / count)}


def _step(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], name: str, max_gradient_norm: float,
    figures: dict[str, float], epoch: int,
) -> None:  # fmt: skip
    """Cut the gradients of policy or critic, check all `figures` and step; what has no gradient stays as it is."""
    norm = nn.utils.clip_grad_norm_(list(parameters.values()), max_gradient_norm)
    figures[f"{name}_gradient_norm"] = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    for each, value in figures.items():
        if not math.isfinite(value):
            raise NotFiniteError(f"{each} became {value} in epoch {epoch + 1}")
    optimiser.step()
    optimiser.zero_grad()


def _minibatch(
    rollout: Rollout, experience: Experience, chosen: list[int], tokens_per_pass: int, device: torch.device
) -> Iterator[tuple[list[int], Rows, bool]]:
    """Micro-batches of this process's share of a minibatch: the answers they hold, their rows, and if they count."""
    for index, counts in share_passes(rollout.sequence_lengths, tokens_per_pass, among=chosen):
        rows = _rows(rollout, index, device)
        beneath = [experience.opinions.beneath[i] for i in index]
        found = {name: rows.join([each[name] for each in beneath]) for name in beneath[0]}
        yield index, replace(rows, beneath=found), counts


def _rows(rollout: Rollout, index: list[int], device: torch.device) -> Rows:
    return Rows.of([rollout.prompts[i] for i in index], [rollout.responses[i] for i in index], device)
