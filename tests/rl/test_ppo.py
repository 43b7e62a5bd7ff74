"""The stage `ppo`: what it reads and drops, what it keeps, when it stops, and what it says about bad input."""

import json
import math
import os
import random
import shutil
import signal
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_helpers import SAMPLING, make_prompts, make_reward_model, run_ppo
from safetensors.torch import load_file, save_file
from torch.optim.optimizer import register_optimizer_step_post_hook
from training_helpers import run_stage
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from accord.errors import AccordError, DataError, SamplerGoneError, SyncError, UsageError
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model, resolve
from accord.records import Demonstration, Message, Preference, Prompt, read_jsonl
from accord.runs import DataFile, Run, Runs
from accord.sampling.config import SamplingConfig
from accord.sampling.log_probabilities import token_log_probabilities
from accord.sampling.protocol import Completion
from accord.sampling.shared import SharedSampler
from accord.sampling.verify import FLOAT32_BOUND
from accord.sampling.vllm_engine import VLLMSampler, vllm_is_installed
from accord.text_files import write_jsonl
from reward.data import split_by_prompt
from reward.score import score
from rl.config import OnlineConfig, PPOConfig
from rl.online import train_online
from rl.pairs import encode_pairs
from rl.policy_gradient.rollout import (
    Rollout,
    check_sampler,
    make_rollout,
    prompts_of_update,
    seeds_of_update,
)
from rl.policy_gradient.settings import StopRules
from rl.policy_gradient.watch import Evaluation, answer_figures, correlation, stop_reason
from rl.ppo import train_ppo

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = {
    "updates": 3, "prompts_per_update": 6, "epochs_per_update": 2, "max_response_tokens": 8, "max_sequence_tokens": 300,
    "learning_rate": 1e-3, "missing_eos": "subtract", "missing_eos_penalty": 0.1, "checkpoint_every_updates": 100,
}  # fmt: skip


@pytest.fixture(scope="module")
def reward_model(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_reward_model(tiny_model, tmp_path_factory.mktemp("reward-model"))


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    return {**CONFIG, "prompts": str(make_prompts(tmp_path / "prompts.jsonl"))}


def updates(run: Run) -> list[dict[str, Any]]:
    return [row for row in run.metric_rows() if "policy_loss" in row]


def log_p(model: Model, pairs: list[Any], side: str) -> list[float]:
    scored = token_log_probabilities(
        load_policy(model).eval(), [p["prompt_ids"] for p in pairs], [p[side] for p in pairs]
    )
    return [float(each.sum()) for each in scored]


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}])
def test_the_kept_policy_is_the_one_whose_implied_reward_fits_held_out_preferences_best(
    tiny_model: Model, reward_model: Model, preferences: Path, config: dict[str, Any], runs: Runs,
    lora: dict[str, Any] | None,
) -> None:  # fmt: skip
    """Its loss, from the saved model by hand, is the lowest of the evaluations after training began."""
    # A learning rate at which the last policy is no longer the best.
    config |= {
        "evaluate_every_updates": 1,
        "lora": lora,
        "kl_coefficient": 0.2,
        "learning_rate": 3e-3,
        "seed": 1,
    }
    run = run_ppo(config, tiny_model, reward_model, preferences, runs)
    evaluated = {row["step"]: row for row in run.metric_rows() if "eval_score" in row}
    assert list(evaluated) == [0, 1, 2, 3]
    assert evaluated[0]["eval_preference_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert evaluated[0]["eval_kl_k1_nats"] == 0
    losses = {step: row["eval_preference_loss"] for step, row in evaluated.items() if step}
    kept = run.metrics["kept_update"]
    assert losses[kept] == min(losses.values()) == run.metrics["heldout_preference_loss"]
    assert len(set(losses.values())) == 3 and kept < 3, "nothing was chosen"

    _, heldout = split_by_prompt(read_jsonl(preferences, Preference), 0.2)
    pairs: Any = list(encode_pairs(load_tokenizer(tiny_model), heldout))
    new = Model("", run.path / "model", "")
    ratios = [
        [p - q for p, q in zip(log_p(new, pairs, side), log_p(tiny_model, pairs, side), strict=True)]
        for side in ("chosen_ids", "rejected_ids")
    ]
    by_hand = statistics.fmean(math.log1p(math.exp(-0.2 * (c - r))) for c, r in zip(*ratios, strict=True))
    assert by_hand == pytest.approx(losses[kept], abs=1e-4)
    assert any(abs(by_hand - loss) > 1e-3 for loss in losses.values())  # it could not be any of them
    assert (run.path / "adapter").exists() == (lora is not None)


def test_the_first_update_s_figures_are_those_of_the_answers(
    tiny_model: Model,
    reward_model: Model,
    preferences: Path,
    config: dict[str, Any],
    runs: Runs,
    demonstrations: Path,
) -> None:
    """The same answers sampled here, scored by the reward stage, shifted by what demonstrations score there."""
    config |= {
        "demonstrations": str(demonstrations),
        "length_penalty_per_token": 0.01,
        "score_clip": 0.5,
        "seed": 2,
    }
    row = updates(run_ppo(config, tiny_model, reward_model, preferences, runs))[0]
    tokenizer = load_tokenizer(tiny_model)
    prompts = [r.prompt for r in read_jsonl(Path(config["prompts"]), Prompt)]
    chosen = prompts_of_update(1, len(prompts), 6, seed=2)
    ids = [
        tokenizer.apply_chat_template(
            [m.model_dump() for m in prompts[i]], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for i in chosen
    ]  # fmt: skip
    with SharedSampler(SAMPLING) as sampler:
        answers = sampler.use(tiny_model).sample(ids, seeds_of_update(1, 6, seed=2), 8)
    shift = statistics.fmean(
        score(reward_model, [r.messages for r in read_jsonl(demonstrations, Demonstration)])
    )
    assert abs(shift) > 0.01
    from accord.models.loading import load_reward_model

    scorer: Any = load_reward_model(reward_model).eval()
    raw = []
    for prompt, completion in zip(ids, answers, strict=True):
        with torch.no_grad():
            states = scorer.model(torch.tensor([prompt + completion.token_ids])).last_hidden_state
            raw.append(scorer.score(states)[0, -1, 0].item() - shift)
    lengths = [len(completion.token_ids) for completion in answers]
    shaped = [
        max(-0.5, min(0.5, value)) - 0.01 * n - (0 if completion.finish == "eos" else 0.1)
        for value, n, completion in zip(raw, lengths, answers, strict=True)
    ]
    assert row["score"] == pytest.approx(statistics.fmean(raw), abs=1e-4)
    assert row["shaped_score"] == pytest.approx(statistics.fmean(shaped), abs=1e-4)
    assert row["reward_after_kl"] == pytest.approx(statistics.fmean(shaped), abs=1e-4)  # the KL is 0 yet
    assert row["length_penalty"] == pytest.approx(0.01 * statistics.fmean(lengths))
    assert row["response_tokens"] == statistics.fmean(lengths)
    assert row["kl_k1_nats"] == row["kl_k3_nats"] == row["first_ratio_deviation"] == 0
    entropy = -statistics.fmean(p for completion in answers for p in completion.log_probabilities)
    assert row["entropy_nats"] == pytest.approx(entropy, abs=1.0)  # the same in expectation
    assert row["sampler_largest_difference"] < 1e-4


def test_prompts_of_held_out_preferences_and_long_ones_are_taken_out_and_counted(
    tiny_model: Model,
    reward_model: Model,
    preferences: Path,
    config: dict[str, Any],
    runs: Runs,
    tmp_path: Path,
) -> None:
    _, heldout = split_by_prompt(read_jsonl(preferences, Preference), 0.2)
    rows = [Prompt(prompt=row.prompt) for row in heldout[:3]]
    rows += [Prompt(prompt=[Message(role="user", content=text)]) for text in ("short", "long " * 60)]
    write_jsonl(tmp_path / "mixed.jsonl", rows)
    config |= {"prompts": str(tmp_path / "mixed.jsonl"), "updates": 1}
    run = run_ppo(config, tiny_model, reward_model, preferences, runs)
    unique = len({row.prompt[0].content for row in heldout[:3]})
    assert unique <= 3
    assert run.record.dropped == {
        "prompts_heldout": 3, "prompts_too_long": 1, "heldout_prompts_too_long": 0, "pairs_too_long": 0,
        "pairs_equal_once_encoded": 0, "pairs_weight_zero": 0,
    }  # fmt: skip

    write_jsonl(tmp_path / "mixed.jsonl", rows[:3] + rows[4:])
    with pytest.raises(
        DataError, match=r"no prompt is left, 3 are held out and 1 leave no room for 8 tokens of answer"
    ):
        run_ppo(config, tiny_model, reward_model, preferences, Runs(tmp_path / "other"))


def test_a_finished_run_is_reused(
    tiny_model: Model, reward_model: Model, preferences: Path, config: dict[str, Any], runs: Runs
) -> None:
    config |= {"updates": 1}
    run = run_ppo(config, tiny_model, reward_model, preferences, runs)
    again = run_ppo(config, tiny_model, reward_model, preferences, Runs(runs.root))
    assert again.id == run.id and again.record == run.record


def test_an_epoch_takes_a_step_for_each_minibatch_and_rates_fall_linearly(
    tiny_model: Model, reward_model: Model, preferences: Path, config: dict[str, Any], runs: Runs
) -> None:
    """3 updates of 2 epochs of 3 minibatches: 18 steps of each model; rates are 3/3, 2/3 and 1/3 of the first."""
    rates: list[float] = []
    hook = register_optimizer_step_post_hook(
        lambda optimiser, *_: rates.append(optimiser.param_groups[0]["lr"])
    )
    try:
        run = run_ppo({**config, "minibatches_per_epoch": 3}, tiny_model, reward_model, preferences, runs)
    finally:
        hook.remove()
    assert rates == pytest.approx([1e-3] * 12 + [2e-3 / 3] * 12 + [1e-3 / 3] * 12)
    assert [row["learning_rate"] for row in updates(run)] == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])
    assert all(row["first_ratio_deviation"] < 1e-5 for row in updates(run))


def test_a_stop_rule_ends_the_run_with_its_reason(
    tiny_model: Model, reward_model: Model, preferences: Path, config: dict[str, Any], runs: Runs
) -> None:
    run = run_ppo(
        {**config, "updates": 50, "stop_at_kl_nats": 0.5, "learning_rate": 3e-3}, tiny_model, reward_model,
        preferences, runs,
    )  # fmt: skip
    kl = [row["kl_k1_nats"] for row in updates(run)]
    assert kl[-1] > 0.5 and max(kl[:-1]) <= 0.5 and len(kl) < 50
    assert run.metrics["updates"] == run.metrics["kept_update"] == len(kl)
    assert run.metrics["stop_reason"] == (
        f"the answers' KL from the reference, {kl[-1]:.1f} nats, went over its budget of 0.5 (stop_at_kl_nats)"
    )
    assert json.loads((run.path / "metrics.json").read_text())["stop_reason"]


def test_stop_rules() -> None:
    def reason(kl: float, tokens: float, evaluations: list[Evaluation]) -> str:
        return stop_reason(kl, tokens, 10.0, evaluations, StopRules(5.0, 2.0, 2)) or "none"

    assert reason(5, 20, []) == "none"
    assert "stop_at_kl_nats" in reason(5.1, 20, [])
    assert reason(0, 21, []) == (
        "answers grew from 10 to 21 tokens, more than 2 times (stop_at_length_factor)"
    )
    best = Evaluation(2, score=1.0, preference_loss=0.6)
    worse, higher = (
        Evaluation(4, score=0.9, preference_loss=0.7),
        Evaluation(6, score=1.2, preference_loss=0.65),
    )
    assert reason(0, 10, [best, higher]) == "none"  # one evaluation only
    assert reason(0, 10, [best, worse, higher]) == "none"  # not in a row
    assert "worse than after update 2" in reason(0, 10, [best, higher, higher])


def test_a_score_that_is_no_number_stops_the_run_and_keeps_the_batch(
    tiny_model: Model,
    reward_model: Model,
    preferences: Path,
    config: dict[str, Any],
    runs: Runs,
    tmp_path: Path,
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(reward_model.folder, broken)
    weights = load_file(broken / "model.safetensors")
    weights["score.weight"][0, 0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    model = resolve(str(broken), runs)
    with pytest.raises(
        AccordError, match=r"^ppo: the score of answer 1 is NaN or infinite at update 1; look at the "
    ):
        run_ppo(config, tiny_model, model, preferences, runs)
    (run,) = runs.all()
    assert run.record.status == "failed"
    rows = [json.loads(line) for line in (run.path / "not-finite.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == [1, 2, 3, 4, 5, 6]
    tokenizer = load_tokenizer(tiny_model)
    for row in rows:
        assert "<|im_start|>user\n" in row["prompt"] and row["prompt"] == tokenizer.decode(row["prompt_ids"])
        assert len(row["response_ids"]) == len(row["sampler_log_probabilities"])


def test_a_loss_that_is_no_number_stops_the_run(
    tiny_model: Model, reward_model: Model, preferences: Path, config: dict[str, Any], runs: Runs
) -> None:
    with pytest.raises(
        AccordError,
        match=r"^ppo: (policy_gradient_norm|(policy|value)_loss) became nan in epoch 2 at update 1; .* learning rate",
    ):
        run_ppo(config, tiny_model, reward_model, preferences, runs, learning_rate=1e30)
    assert (runs.all()[0].path / "not-finite.jsonl").exists()


def test_a_shared_base_needs_a_reward_model_from_this_policy(
    tiny_model: Model, reward_model: Model, preferences: Path, config: dict[str, Any], runs: Runs
) -> None:
    config |= {"lora": {"rank": 4, "alpha": 8}, "shared_base": True, "ensemble": "mean_minus_deviation"}
    with pytest.raises(UsageError, match="needs a reward model that was trained from the policy"):
        run_ppo(config, tiny_model, reward_model, preferences, runs)
    rewards = {
        "lora": {"rank": 2, "alpha": 4},
        "heads": 3,
        "learning_rate": 1e-3,
        "max_sequence_tokens": 300,
        "minimum_pairs": 4,
    }
    trained = run_stage("reward", rewards, tiny_model, preferences, runs)
    model = resolve(f"run:{trained.id}", runs)
    one = run_ppo(config, tiny_model, model, preferences, runs)
    two = run_ppo({**config, "shared_base": False}, tiny_model, model, preferences, runs)
    # One base or two: the same answers and scores, but for rounding. (New adapters are drawn in another order.)
    for name in ("score", "shaped_score", "entropy_nats", "explained_variance", "reward_disagreement"):
        assert updates(one)[0][name] == pytest.approx(updates(two)[0][name], abs=2e-3), name
    assert updates(one)[1]["kl_k3_nats"] > 0
    assert updates(one)[0]["reward_disagreement"] > 0.01


@pytest.mark.slow
@pytest.mark.skipif(not vllm_is_installed(), reason="vLLM is not installed")
@pytest.mark.timeout(900)
def test_vllm_s_process_is_started_again_once(
    tiny_model: Model,
    preferences: Path,
    config: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed before the second rollout the run goes on with equal answers; killed again before the third, it ends."""
    # vLLM's CPU attention wants heads of 32 or more.
    settings = LlamaConfig.from_pretrained(
        tiny_model.folder, num_attention_heads=2, num_key_value_heads=1, head_dim=32
    )
    torch.manual_seed(0)
    LlamaForCausalLM(settings).save_pretrained(tmp_path / "policy")
    load_tokenizer(tiny_model).save_pretrained(tmp_path / "policy")
    policy = resolve(str(tmp_path / "policy"), Runs(tmp_path))
    reward_model = make_reward_model(policy, tmp_path / "reward-model")
    sampling = SamplingConfig(engine="vllm", max_sequence_tokens=300, kv_cache_gib=0.1)
    calls: list[int] = []
    kill_at: set[int] = set()
    real = VLLMSampler.sample

    def sample(self: VLLMSampler, prompts: Any, seeds: Any, longest: int, temperature: float = 1.0) -> Any:
        if len(prompts) == 6:  # a rollout, no verification
            calls.append(1)
            if len(calls) in kill_at:
                os.kill(self.process.pid, signal.SIGKILL)
                self.process.wait()
        return real(self, prompts, seeds, longest, temperature)

    monkeypatch.setattr(VLLMSampler, "sample", sample)
    results = []
    with SharedSampler(sampling, tmp_path / "vllm.log") as sampler:
        for kills in (set(), {2}, {2, 4}):
            calls.clear()
            kill_at = kills
            runs = Runs(tmp_path / f"runs-{len(kills)}")
            try:
                run = train_ppo(
                    PPOConfig(algorithm="ppo", **config), runs, policy, reward_model, DataFile(preferences), sampler
                )  # fmt: skip
                results.append(run)
            except SamplerGoneError as error:
                assert len(kills) == 2 and "a second time" in str(error)
    straight, restarted = results
    assert [row["sampler_restarts"] for row in updates(restarted)] == [0, 1, 0]
    for row, other in zip(updates(straight), updates(restarted), strict=True):
        assert row["score"] == pytest.approx(other["score"], abs=1e-4)
        assert row["response_tokens"] == other["response_tokens"]


def test_tokenizers_are_loaded_once(
    tiny_model: Model,
    reward_model: Model,
    preferences: Path,
    config: dict[str, Any],
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The policy's, and the reward model's to see that it is the same one."""
    loaded: list[Path] = []
    plain = AutoTokenizer.from_pretrained

    def counted(folder: Path, *arguments: Any, **options: Any) -> Any:
        loaded.append(folder)
        return plain(folder, *arguments, **options)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", counted)
    run_ppo({**config, "updates": 1}, tiny_model, reward_model, preferences, runs)
    assert loaded == [tiny_model.folder, reward_model.folder]
    loaded.clear()
    online = OnlineConfig(
        algorithm="rloo", prompts=config["prompts"], rows_per_update=4, num_generations=2, max_response_tokens=8,
        max_sequence_tokens=300,
    )  # fmt: skip
    train_online(online, runs, tiny_model, reward_model, DataFile(preferences))
    assert loaded == [tiny_model.folder, reward_model.folder]


# --- rollouts and figures


def test_every_prompt_comes_once_before_one_comes_again() -> None:
    seen = [i for update in range(1, 8) for i in prompts_of_update(update, 10, 3, seed=5)]
    assert sorted(seen[:10]) == sorted(seen[10:20]) == list(range(10))
    assert seen[:10] != seen[10:20] and seen[:10] != list(range(10))
    assert prompts_of_update(2, 10, 3, seed=6) != seen[3:6]
    assert len(prompts_of_update(1, 2, 5, seed=0)) == 5  # fewer prompts than an update wants
    assert len({s for update in range(50) for s in seeds_of_update(update, 20, 0)}) == 1000


def test_the_order_of_the_prompts_is_drawn_once_for_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the order that shuffling anew for every prompt gave, so a run that was killed before goes on alike."""

    def as_before(update: int, prompts: int, prompts_per_update: int, seed: int) -> list[int]:
        first = (update - 1) * prompts_per_update
        chosen = []
        for place in range(first, first + prompts_per_update):
            order = list(range(prompts))
            random.Random(f"{seed}/{place // prompts}").shuffle(order)
            chosen.append(order[place % prompts])
        return chosen

    for arguments in [(1, 20, 6, 0), (4, 20, 6, 0), (7, 20, 6, 3), (2, 3, 8, 1), (5, 1, 2, 0)]:
        assert prompts_of_update(*arguments) == as_before(*arguments)
    drawn: list[str] = []
    plain = random.Random

    def counted(seed: str) -> random.Random:
        drawn.append(seed)
        return plain(seed)

    monkeypatch.setattr(random, "Random", counted)
    prompts_of_update(4, 20, 6, seed=0)  # 18 to 23: the end of one pass and the beginning of the next
    assert sorted(drawn) == ["0/0", "0/1"]


def test_a_rollout_ends_at_the_first_eos() -> None:
    completions = [
        Completion([7, 2, 9], [-1.0, -2.0, -3.0], "length"), Completion([8], [-0.5], "length"),
        Completion([2], [-0.1], "eos"),
    ]  # fmt: skip
    rollout = make_rollout([[1], [1, 1], [1]], completions, eos_token_id=2)
    assert rollout.responses == [[7, 2], [8], [2]]
    assert rollout.sampler_log_probabilities == [[-1.0, -2.0], [-0.5], [-0.1]]
    assert rollout.ended == [True, False, True]
    assert rollout.sequence_lengths == [3, 3, 2]


def test_figures_of_answers() -> None:
    """Bigrams 5-6, 6-5, 5-6: one of three was there before. The bare EOS is an empty answer."""
    responses = [[5, 6, 5, 6], [2], [7, 2], [9]]
    rollout = Rollout([[1]] * 4, responses, [[0.0] * len(r) for r in responses], [False, True, True, False])
    assert answer_figures(rollout) == {
        "response_tokens": 2.0, "eos_rate": 0.5, "repetition": pytest.approx((1 / 3 + 0) / 2), "empty_share": 0.25
    }  # fmt: skip
    assert correlation([1, 2, 3], [2, 4, 6]) == 1 and correlation([1, 2], [3, 3]) == 0


def test_a_sampler_with_other_weights_is_noticed() -> None:
    mask = torch.tensor([[True, True, False]])
    trainer = torch.tensor([[-1.0, -2.0, 0.0]])
    found = check_sampler(trainer, trainer + torch.tensor([[1e-5, 0.0, 9.0]]), mask, FLOAT32_BOUND)
    assert found.largest == pytest.approx(1e-5, abs=1e-6) and found.mean == pytest.approx(5e-6, abs=1e-6)
    for off in (0.002, float("nan")):
        with pytest.raises(
            SyncError, match="does not have the trainer's weights: over 2 tokens of a rollout"
        ):
            check_sampler(trainer, trainer + torch.tensor([[off, 0.0, 0.0]]), mask, FLOAT32_BOUND)
