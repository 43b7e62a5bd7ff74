"""PPO that samples the next update's answers while it learns: by which weights, how they count, and exact resume."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_helpers import (
    Job,
    make_prompts,
    make_reward_model,
    run_ppo,
    run_ppo_and_be_killed,
    run_ppo_in_processes,
)
from training_helpers import assert_same

from accord.errors import SamplerGoneError, SyncError
from accord.models.references import Model
from accord.runs import Run, Runs
from accord.sampling import Completion, SamplingConfig
from accord.sampling.transformers_sampler import TransformersSampler
from accord.sampling.verify import FLOAT32_BOUND
from rl.policy_gradient.rollout import PolicySampler, check_sampler

pytestmark = pytest.mark.usefixtures("one_thread")

# 16 steps: 4 updates of 2 epochs with one minibatch, policy and critic each
CONFIG = {
    "overlap_updates": 1, "updates": 4, "prompts_per_update": 6, "epochs_per_update": 2, "max_response_tokens": 8,
    "max_sequence_tokens": 300, "learning_rate": 1e-3, "missing_eos": "subtract", "missing_eos_penalty": 0.1,
    "kl_target_nats": 0.5, "kl_horizon_answers": 20, "evaluate_every_updates": 2, "seed": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def reward_model(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_reward_model(tiny_model, tmp_path_factory.mktemp("reward-model"))


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    return {**CONFIG, "prompts": str(make_prompts(tmp_path / "prompts.jsonl"))}


def rows_of(run: Run) -> list[dict[str, Any]]:
    return [row for row in run.metric_rows() if "policy_loss" in row]


def test_answers_are_by_the_policy_of_one_update_before_and_are_weighted(
    tiny_model: Model, reward_model: Model, preferences: Path, config: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The rollouts of updates 1 and 2 are what the untrained policy answers."""
    drawn: list[tuple[Any, int, list[Completion]]] = []
    real = TransformersSampler.sample

    def sample(self: TransformersSampler, prompts: Any, seeds: Sequence[int], *more: Any) -> list[Completion]:
        answers = real(self, prompts, seeds, *more)
        drawn.append(((prompts, list(seeds), *more), self.sync_count, answers))
        return answers

    monkeypatch.setattr(TransformersSampler, "sample", sample)
    run = run_ppo(config, tiny_model, reward_model, preferences, Runs(tmp_path / "overlapping"))
    rollouts = [each for each in drawn if len(each[0][0]) == 6 and each[0][2] == 8]
    assert len(rollouts) == 4
    syncs = [count for _, count, _ in rollouts]
    assert syncs == [syncs[0], *range(syncs[0], syncs[0] + 3)], "update n + 1 is sampled before n is learned"

    untrained = TransformersSampler(
        tiny_model.folder, 2, SamplingConfig(engine="transformers", max_sequence_tokens=300)
    )
    for request, _, answers in rollouts[:2]:
        expected = real(untrained, *request)
        assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
    rows = rows_of(run)
    assert len(rows) == 4
    assert rows[0]["mean_importance_weight"] == pytest.approx(1, abs=1e-5)
    assert all(abs(row["mean_importance_weight"] - 1) > 1e-3 for row in rows[1:]), (
        "the policies are as good as equal, so nothing was tested"
    )
    # the sampler had the policy's weights all the same, in the version that was in force
    assert all(row["sampler_largest_difference"] < 1e-4 for row in rows)

    plain = run_ppo(
        {**config, "overlap_updates": 0}, tiny_model, reward_model, preferences, Runs(tmp_path / "p")
    )
    assert [row["mean_importance_weight"] for row in rows_of(plain)] == pytest.approx([1] * 4, abs=1e-5)
    assert rows_of(plain)[0]["policy_loss"] == rows[0]["policy_loss"]


@pytest.mark.parametrize(
    ("more", "first_kill", "second_kill"),
    # 6: in the middle of the second update; 9 more: while the last one learns
    [({}, "6", "9"), ({"checkpoint_every_updates": 2}, "13", "finish")],
    ids=["every update", "every second"],
)
def test_killed_and_continued_equals_uninterrupted(
    tiny_model: Model, reward_model: Model, preferences: Path, config: dict[str, Any], tmp_path: Path,
    more: dict[str, Any], first_kill: str, second_kill: str,
) -> None:  # fmt: skip
    config |= more
    straight = run_ppo(config, tiny_model, reward_model, preferences, Runs(tmp_path / "straight"))
    killed = Runs(tmp_path / "killed")
    run_ppo_and_be_killed(config, tiny_model, reward_model, preferences, killed, first_kill)
    run_ppo_and_be_killed(config, tiny_model, reward_model, preferences, killed, second_kill)
    continued = run_ppo(config, tiny_model, reward_model, preferences, killed)
    assert len(continued.record.continued_at) == 2
    assert_same(continued, straight)


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_two_processes_learn_the_same_from_answers_ahead(
    tiny_model: Model,
    reward_model: Model,
    preferences: Path,
    config: dict[str, Any],
    tmp_path: Path,
    sharding: Any,
) -> None:
    one = run_ppo(config, tiny_model, reward_model, preferences, Runs(tmp_path / "one"))
    both = Runs(tmp_path / "two")
    job = Job(config, tiny_model, reward_model, preferences, both.root, sharding)
    assert run_ppo_in_processes([job]) == [0, 0]
    digests = {(both.root / f"weights-{rank}.txt").read_text() for rank in range(2)}
    assert len(digests) == 1
    (two,) = both.all()
    for row, other in zip(rows_of(one), rows_of(two), strict=True):
        for name in ("score", "policy_loss", "mean_importance_weight", "kl_k1_nats"):
            assert row[name] == pytest.approx(other[name], abs=5e-4), name


def test_a_sampler_with_stale_weights_ends_the_run_although_answers_are_old(
    tiny_model: Model, reward_model: Model, preferences: Path, config: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    real, calls = TransformersSampler.sync, []

    def sync(self: TransformersSampler, policy: Any) -> None:
        calls.append(1)
        if len(calls) == 2:  # after the first update
            self.sync_count += 1
        else:
            real(self, policy)

    monkeypatch.setattr(TransformersSampler, "sync", sync)
    with pytest.raises(SyncError, match="the sampler does not have the trainer's weights"):
        run_ppo(config, tiny_model, reward_model, preferences, Runs(tmp_path / "runs"))
    assert len(calls) == 2


def test_a_sampler_that_ends_while_the_policy_learns_is_started_again(
    tiny_model: Model, reward_model: Model, preferences: Path, config: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    real, begin = TransformersSampler.sample, PolicySampler.begin
    gone: list[int] = []

    def sample(self: TransformersSampler, *request: Any) -> list[Completion]:
        if gone == [1]:
            gone.append(2)
            raise SamplerGoneError("it ended")
        return real(self, *request)

    def begin_and_lose(self: PolicySampler, *request: Any) -> Any:
        if not gone:
            gone.append(1)
        return begin(self, *request)

    monkeypatch.setattr(TransformersSampler, "sample", sample)
    monkeypatch.setattr(PolicySampler, "begin", begin_and_lose)
    run = run_ppo(config, tiny_model, reward_model, preferences, Runs(tmp_path / "runs"))
    rows = rows_of(run)
    assert run.metrics["updates"] == 4 and run.metrics["sampler_restarts"] == 1
    # its answers are by the policy of update 1 after all, and so on-policy
    assert rows[1]["mean_importance_weight"] == pytest.approx(1, abs=1e-5)
    assert abs(rows[2]["mean_importance_weight"] - 1) > 1e-3


def test_the_engine_with_other_weights_is_named() -> None:
    trainer = torch.zeros(6, 3)
    mask = torch.ones(6, 3, dtype=torch.bool)
    found = trainer.clone()
    found[1::3] = 2e-4  # rounding, for all that the mean over all answers says
    check_sampler(trainer, torch.zeros(6, 3), mask, FLOAT32_BOUND, ["a", "b", "c"])
    with pytest.raises(SyncError, match=r"^b does not have the trainer's weights: over 6 tokens"):
        check_sampler(trainer, found, mask, FLOAT32_BOUND, ["a", "b", "c"])
    with pytest.raises(SyncError, match=r"^the sampler does not have"):
        check_sampler(trainer, found * 10, mask, FLOAT32_BOUND)
