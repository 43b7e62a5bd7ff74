"""PPO that samples with vLLM and is killed: continued, it draws the answers that it would have drawn, token by token.

Each of the three runs has an engine of its own, started from the base model's weights: what an engine sampled before,
and how often its weights were replaced, must not show.
"""

import json
import multiprocessing
import signal
from pathlib import Path
from typing import Any

import ppo_helpers
import pytest
from ppo_helpers import make_prompts, make_reward_model, run_ppo
from training_helpers import assert_same

from accord.models.references import Model
from accord.runs import Runs
from accord.sampling import Completion, SamplingConfig
from accord.sampling.vllm_engine import VLLMSampler, vllm_is_installed
from accord.training import last_whole_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not vllm_is_installed(), reason="vLLM is not installed"),
    pytest.mark.usefixtures("one_thread"),
]

SAMPLING = SamplingConfig(engine="vllm", max_sequence_tokens=300, kv_cache_gib=0.1)
# 24 optimiser steps: 4 updates of 3 epochs with one minibatch, policy and critic each
CONFIG = {
    "updates": 4, "prompts_per_update": 12, "epochs_per_update": 3, "max_response_tokens": 24,
    "max_sequence_tokens": 300, "learning_rate": 1e-3, "missing_eos": "subtract", "missing_eos_penalty": 0.1,
    "evaluate_every_updates": 2, "checkpoint_every_updates": 1, "seed": 3,
}  # fmt: skip
KILLED_AT_STEP = 9
"""In the middle of the second update, when its answers have been drawn and half learned from."""


def test_a_run_with_vllm_that_was_killed_goes_on_token_by_token(
    small_model: Model, preferences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppo_helpers, "SAMPLING", SAMPLING)
    config = {**CONFIG, "prompts": str(make_prompts(tmp_path / "prompts.jsonl", 30))}
    reward_model = make_reward_model(small_model, tmp_path / "reward-model")

    with monkeypatch.context() as patch:
        _record_answers(tmp_path / "straight.jsonl", patch)
        straight = run_ppo(config, small_model, reward_model, preferences, Runs(tmp_path / "straight"))

    killed = Runs(tmp_path / "killed")
    process = multiprocessing.get_context("forkserver").Process(
        target=_run_and_die,
        args=(config, small_model, reward_model, preferences, killed.root, tmp_path / "killed.jsonl"),
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (run,) = killed.all()
    assert run.record.status == "running"
    whole = last_whole_checkpoint(run.path / "checkpoints")
    assert whole is not None and whole.name.endswith("-1")

    with monkeypatch.context() as patch:
        _record_answers(tmp_path / "continued.jsonl", patch)
        continued = run_ppo(config, small_model, reward_model, preferences, Runs(tmp_path / "killed"))
    assert len(continued.record.continued_at) == 1

    drawn, before, after = (
        _drawn(tmp_path / f"{name}.jsonl") for name in ("straight", "killed", "continued")
    )
    # evaluation, updates 1 and 2, evaluation, updates 3 and 4, evaluation; the second update was killed, so it is drawn
    # once more
    assert (len(drawn), len(before), len(after)) == (7, 3, 5)
    assert before == drawn[:3]
    assert after == drawn[2:]
    lengths = {len(tokens) for batch in drawn for tokens in batch["tokens"]}
    assert len(lengths) > 3, "all answers were of one length, so batches never shrank and little was tested"
    assert_same(continued, straight)


def _record_answers(path: Path, patch: pytest.MonkeyPatch) -> None:
    """Every answer that vLLM gives is also written to a file."""
    sample = VLLMSampler.sample

    def recording(
        self: VLLMSampler, prompts: Any, seeds: Any, max_response_tokens: int, temperature: float = 1.0
    ) -> list[Completion]:
        answers = sample(self, prompts, seeds, max_response_tokens, temperature)
        row = {
            "prompts": prompts, "seeds": list(seeds), "tokens": [answer.token_ids for answer in answers],
            "log_probabilities": [answer.log_probabilities for answer in answers],
        }  # fmt: skip
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return answers

    patch.setattr(VLLMSampler, "sample", recording)


def _drawn(path: Path) -> list[dict[str, Any]]:
    """What was recorded, but for the verification of a new engine, whose seeds count from 0."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if row["seeds"] != list(range(len(row["seeds"])))]


def _run_and_die(
    config: dict[str, Any],
    small_model: Model,
    reward_model: Model,
    preferences: Path,
    root: Path,
    answers: Path,
) -> None:
    ppo_helpers.SAMPLING = SAMPLING
    _record_answers(answers, pytest.MonkeyPatch())
    ppo_helpers._run_and_die(config, small_model, reward_model, preferences, root, str(KILLED_AT_STEP))
