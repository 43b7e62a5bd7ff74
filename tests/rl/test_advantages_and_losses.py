"""Advantages, losses and KL estimators against arithmetic in view and an independent NumPy oracle."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ppo_oracle as oracle
import pytest
import torch

from rl.maths.advantages import (
    generalised_advantages,
    shape_scores,
    slot_mask,
    token_mask,
    token_rewards,
    truncate_at_eos,
    whiten,
)
from rl.maths.losses import (
    entropy_loss,
    explained_variance,
    policy_loss,
    truncated_importance_weights,
    value_loss,
)
from rl.policy_gradient.kl import k1, k3, next_kl_coefficient


@dataclass
class Batch:
    """Ragged rows as the oracle takes them; `padded` makes the tensors that rl/ takes, with rubbish in the padding."""

    lengths: list[int]
    ended: list[bool]
    scores: list[float]
    old: list[np.ndarray]
    new: list[np.ndarray]
    reference: list[np.ndarray]
    sampler: list[np.ndarray]
    values: list[np.ndarray]
    new_values: list[np.ndarray]

    def padded(self, rows: Sequence[np.ndarray]) -> torch.Tensor:
        width = max(self.lengths) + 1
        out = np.full((len(rows), width), 7.25)
        for i, row in enumerate(rows):
            out[i, : len(row)] = row
        return torch.tensor(out, dtype=torch.float64)

    @property
    def length_tensor(self) -> torch.Tensor:
        return torch.tensor(self.lengths)


def random_batch(seed: int) -> Batch:
    chance = np.random.default_rng(seed)
    lengths = [1, *chance.integers(1, 12, size=6).tolist()]  # one answer is nothing but EOS
    old = [-chance.exponential(2.0, n) for n in lengths]
    return Batch(
        lengths=lengths,
        ended=[bool(x) for x in chance.integers(0, 2, size=7)],
        scores=(3 * chance.normal(size=7)).tolist(),
        old=old,
        new=[row + 0.4 * chance.normal(size=len(row)) for row in old],
        reference=[row + 0.3 * chance.normal(size=len(row)) for row in old],
        sampler=[row + 0.5 * chance.normal(size=len(row)) for row in old],
        values=[chance.normal(size=n + 1) for n in lengths],
        new_values=[chance.normal(size=n + 1) for n in lengths],
    )


def assert_rows(actual: torch.Tensor, expected: Sequence[np.ndarray]) -> None:
    for row, right in zip(actual.numpy(), expected, strict=True):
        np.testing.assert_allclose(row[: len(right)], right, atol=1e-6, rtol=0)
        assert not row[len(right) :].any(), "something stands outside the mask"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("whiten_rewards", [False, True])
@pytest.mark.parametrize("missing_eos", ["replace", "subtract"])
def test_rewards_advantages_and_returns_are_the_oracle_s(
    seed: int, whiten_rewards: bool, missing_eos: str
) -> None:
    batch = random_batch(seed)
    rules = {"shift": 0.4, "clip": 2.5, "penalty": 1.5, "per_token": 0.03}
    scores = oracle.shaped_scores(batch.scores, batch.lengths, batch.ended, missing_eos=missing_eos, **rules)
    rewards = oracle.rewards(scores, batch.old, batch.reference, coefficient=0.07)
    if whiten_rewards:
        rewards = oracle.whitened(rewards, shift_mean=False)
    advantages = oracle.advantages(rewards, batch.values, discount=0.98, trace=0.9)

    lengths = batch.length_tensor
    shaped = shape_scores(
        torch.tensor(batch.scores, dtype=torch.float64), lengths, torch.tensor(batch.ended), shift=0.4, clip=2.5,
        missing_eos=missing_eos, missing_eos_penalty=1.5, length_penalty_per_token=0.03,
    )  # type: ignore[arg-type] # fmt: skip
    np.testing.assert_allclose(shaped.scores, scores, atol=1e-12)
    np.testing.assert_allclose(shaped.length_penalties, 0.03 * np.array(batch.lengths), atol=1e-12)
    kl = k1(batch.padded(batch.old), batch.padded(batch.reference))
    ours = token_rewards(shaped.scores, kl, lengths, kl_coefficient=0.07)
    slots = slot_mask(lengths, ours.shape[1])
    if whiten_rewards:
        ours = whiten(ours, slots, shift_mean=False)
    assert_rows(ours, rewards)
    estimate = generalised_advantages(ours, batch.padded(batch.values), lengths, discount=0.98, trace=0.9)
    assert_rows(estimate.advantages, advantages)
    assert_rows(estimate.returns, [a + v for a, v in zip(advantages, batch.values, strict=True)])
    tokens = token_mask(lengths, ours.shape[1])
    assert_rows(
        whiten(estimate.advantages, tokens, shift_mean=True),
        oracle.whitened([row[:-1] for row in advantages], shift_mean=True),
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dual_clip", [None, 1.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_policy_s_loss_and_gradient_are_the_oracle_s(
    seed: int, dual_clip: float | None, weighted: bool
) -> None:
    batch = random_batch(seed)
    advantages = [row[:-1] for row in batch.values]
    weights = [np.minimum(np.exp(o - s), 1.2) for o, s in zip(batch.old, batch.sampler, strict=True)]
    chosen = weights if weighted else None
    new = batch.padded(batch.new).requires_grad_()
    mask = token_mask(batch.length_tensor, new.shape[1])
    ours = policy_loss(
        new, batch.padded(batch.old), batch.padded(advantages), mask, mask.sum(), clip=0.2, dual_clip=dual_clip,
        weights=truncated_importance_weights(batch.padded(batch.old), batch.padded(batch.sampler), cap=1.2)
        if weighted else None,
    )  # fmt: skip
    ours.loss.backward()
    assert ours.loss.item() == pytest.approx(
        oracle.policy_loss(batch.new, batch.old, advantages, 0.2, dual_clip, chosen), abs=1e-6
    )
    gradient = oracle.policy_gradient(batch.new, batch.old, advantages, 0.2, dual_clip, chosen)
    assert new.grad is not None
    assert_rows(new.grad, gradient)
    every = np.concatenate(gradient)
    assert ours.clipped.item() == (every == 0).sum() > 0
    ratios = np.exp(np.concatenate(batch.new) - np.concatenate(batch.old))
    assert ours.ratio_max.item() == pytest.approx(ratios.max())
    assert ours.ratio_sum.item() == pytest.approx(ratios.sum())


@pytest.mark.parametrize("seed", range(5))
def test_the_critic_s_loss_and_gradient_are_the_oracle_s(seed: int) -> None:
    batch = random_batch(seed)
    returns = [2 * row + 0.3 for row in batch.values]
    new = batch.padded(batch.new_values).requires_grad_()
    mask = slot_mask(batch.length_tensor, new.shape[1])
    ours = value_loss(new, batch.padded(batch.values), batch.padded(returns), mask, mask.sum(), clip=0.2)
    ours.loss.backward()
    assert ours.loss.item() == pytest.approx(
        oracle.value_loss(batch.new_values, batch.values, returns, 0.2), abs=1e-6
    )
    gradient = oracle.value_gradient(batch.new_values, batch.values, returns, 0.2)
    assert new.grad is not None
    assert_rows(new.grad, gradient)
    assert ours.clipped.item() == (np.concatenate(gradient) == 0).sum() > 0


@pytest.mark.parametrize("seed", range(2))
def test_the_oracle_s_gradients_are_those_of_finite_differences(seed: int) -> None:
    batch = random_batch(seed)
    advantages = [row[:-1] for row in batch.values]
    returns = [row + 0.3 for row in batch.values]

    def difference(rows: list[np.ndarray], i: int, t: int, loss: object, h: float = 1e-6) -> float:
        ends = []
        for sign in (1, -1):
            moved = [row.copy() for row in rows]
            moved[i][t] += sign * h
            ends.append(loss(moved))  # type: ignore[operator]
        return float((ends[0] - ends[1]) / (2 * h))

    def policy(new: list[np.ndarray]) -> float:
        return oracle.policy_loss(new, batch.old, advantages, 0.2, 1.3, None)

    def value(new: list[np.ndarray]) -> float:
        return oracle.value_loss(new, batch.values, returns, 0.2)

    for loss, rows, gradient in (
        (policy, batch.new, oracle.policy_gradient(batch.new, batch.old, advantages, 0.2, 1.3, None)),
        (value, batch.new_values, oracle.value_gradient(batch.new_values, batch.values, returns, 0.2)),
    ):
        for i, row in enumerate(rows):
            for t in range(len(row)):
                assert difference(rows, i, t, loss) == pytest.approx(gradient[i][t], abs=1e-6)


def test_an_answer_s_numbers_do_not_depend_on_the_others_lengths() -> None:
    batch = random_batch(3)
    shortest = batch.lengths.index(min(batch.lengths))
    kl, values = batch.padded(batch.old), batch.padded(batch.values)
    scores = torch.tensor(batch.scores, dtype=torch.float64)

    def rows(index: list[int], width: int) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = batch.length_tensor[index]
        rewards = token_rewards(scores[index], kl[index, :width], lengths, 0.1)
        return rewards, generalised_advantages(rewards, values[index, :width], lengths).advantages

    width = batch.lengths[shortest] + 1
    for together, alone in zip(
        rows(list(range(7)), max(batch.lengths) + 1), rows([shortest], width), strict=True
    ):
        torch.testing.assert_close(together[shortest, :width], alone[0], rtol=0, atol=1e-15)


def test_the_two_masks() -> None:
    """An answer of two tokens: the policy acts twice, the critic looks once more, after the EOS."""
    assert token_mask(torch.tensor([2, 3]), 4).tolist() == [[True, True, False, False], [True] * 3 + [False]]
    assert slot_mask(torch.tensor([2, 3]), 4).tolist() == [[True, True, True, False], [True] * 4]


def test_advantages_by_hand() -> None:
    """Two tokens, gamma 1, lambda 0.5, no KL, score 1: d = (0.5 - 0.2, 0.6 - 0.5, 1 - 0.6)."""
    rewards = token_rewards(torch.tensor([1.0]), torch.zeros(1, 3), torch.tensor([2]), 0.1)
    assert rewards.tolist() == [[0, 0, 1]]
    estimate = generalised_advantages(rewards, torch.tensor([[0.2, 0.5, 0.6]]), torch.tensor([2]), 1.0, 0.5)
    # 0.4; 0.1 + 0.5 * 0.4 = 0.3; 0.3 + 0.5 * 0.3 = 0.45
    assert estimate.advantages[0].tolist() == pytest.approx([0.45, 0.3, 0.4])
    assert estimate.returns[0].tolist() == pytest.approx([0.65, 0.8, 1.0])


def test_micro_batches_add_up_to_the_minibatch() -> None:
    batch = random_batch(4)
    new, old = batch.padded(batch.new), batch.padded(batch.old)
    mask = token_mask(batch.length_tensor, new.shape[1])
    whole = policy_loss(new, old, new, mask, mask.sum()).loss
    parts = [
        policy_loss(new[i], old[i], new[i], mask[i], mask.sum()).loss for i in ([0, 1, 2], [3], [4, 5, 6])
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-12)  # type: ignore[union-attr]


def test_truncation_at_the_first_eos() -> None:
    assert truncate_at_eos([5, 2, 7, 2], eos_token_id=2) == [5, 2]
    assert truncate_at_eos([5, 7], eos_token_id=2) == [5, 7]
    assert truncate_at_eos([2], eos_token_id=2) == [2]


def test_estimates_of_the_kl() -> None:
    """p = 1/2, q = 1/4: k1 = ln 2, k3 = (1/2 - 1) + ln 2. Their means under p are the true KL."""
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    true = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert k1(p, q)[0].item() == pytest.approx(math.log(2))
    assert k3(p, q)[0].item() == pytest.approx(math.log(2) - 0.5)
    assert (p.exp() * k1(p, q)).sum().item() == pytest.approx(true)
    assert (p.exp() * k3(p, q)).sum().item() == pytest.approx(true)
    assert (k3(p, q) >= 0).all() and (k1(p, q) < 0).any()


def test_the_adaptive_coefficient() -> None:
    """Target 6 nats, horizon 1000 answers, 100 an update: at most 2% up or down."""
    assert next_kl_coefficient(0.05, 6.6, 6, 100, 1000) == pytest.approx(0.05 * (1 + 0.1 * 0.1))
    assert next_kl_coefficient(0.05, 60, 6, 100, 1000) == pytest.approx(0.05 * 1.02)
    assert next_kl_coefficient(0.05, 0, 6, 100, 1000) == pytest.approx(0.05 * 0.98)


def test_importance_weights_are_cut_above_only() -> None:
    weights = truncated_importance_weights(torch.tensor([0.0, -1.0]), torch.tensor([-1.0, 0.0]), cap=2.0)
    assert weights.tolist() == pytest.approx([2.0, math.exp(-1)])


def test_entropy_and_explained_variance() -> None:
    mask = torch.tensor([[True, True, False]])
    assert entropy_loss(torch.tensor([[1.0, 2.0, 100.0]]), mask, 2).item() == -1.5
    returns = torch.tensor([[1.0, 3.0, 50.0]])
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(torch.full((1, 3), 2.0), returns, mask) == 0
    # the returns deviate by 1 from their mean, the predictions by 2 from the returns
    assert explained_variance(torch.tensor([[3.0, 1.0, 0.0]]), returns, mask) == 1 - 4 / 1


def test_one_token_in_the_whole_batch_is_whitened_to_zero() -> None:
    assert whiten(torch.tensor([[3.0, 9.0]]), torch.tensor([[True, False]]), shift_mean=True).tolist() == [
        [0, 0]
    ]


@pytest.mark.parametrize("whiten_rewards", [False, True])
def test_the_numbers_are_those_of_trl_1_12(whiten_rewards: bool) -> None:
    """tests/rl/make_trl_numbers.py ran the lines of its PPOTrainer; the missing-EOS rule there is "subtract"."""
    numbers = json.loads((Path(__file__).parent / "trl_1_12_ppo.json").read_text())
    given, settings = numbers["inputs"], numbers["settings"]
    theirs = numbers["outputs"]["whitened_rewards" if whiten_rewards else "plain_rewards"]

    def tensor(name: str) -> torch.Tensor:
        return torch.tensor(given[name], dtype=torch.float64)

    lengths, ended = torch.tensor(given["lengths"]), torch.tensor(given["ended"])
    old, values = tensor("logprobs"), tensor("values")
    scores = shape_scores(
        tensor("scores"), lengths, ended, missing_eos="subtract", missing_eos_penalty=settings["missing_eos_penalty"]
    ).scores  # fmt: skip
    rewards = token_rewards(scores, k1(old, tensor("ref_logprobs")), lengths, settings["kl_coef"])
    tokens, slots = token_mask(lengths, old.shape[1]), slot_mask(lengths, old.shape[1])
    if whiten_rewards:
        rewards = whiten(rewards, slots, shift_mean=False)
    estimate = generalised_advantages(rewards, values, lengths, settings["gamma"], settings["lam"])
    advantages = whiten(estimate.advantages, tokens, shift_mean=True)
    new, new_values = tensor("new_logprobs").requires_grad_(), tensor("new_values").requires_grad_()
    policy = policy_loss(new, old, advantages, tokens, tokens.sum(), settings["cliprange"])
    critic = value_loss(new_values, values, estimate.returns, slots, slots.sum(), settings["cliprange_value"])
    (policy.loss + settings["vf_coef"] * critic.loss).backward()
    for actual, name in (
        (rewards, "rewards"), (advantages, "advantages"), (estimate.returns * slots, "returns"),
        (policy.loss, "pg_loss"), (critic.loss, "vf_loss"), (new.grad, "policy_gradient"),
        (new_values.grad, "value_gradient"),
    ):  # fmt: skip
        assert actual is not None
        np.testing.assert_allclose(actual.detach(), theirs[name], atol=1e-7, rtol=0, err_msg=name)
