"""A Python function as a reward: in PPO it decides the scores, sees the texts, and is part of what identifies a run."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from ppo_helpers import make_prompts, make_reward_model, run_ppo

from accord.errors import AccordError, UsageError
from accord.models import Model
from accord.records import Message
from accord.runs import Runs
from reward.function import load_reward_function

pytestmark = pytest.mark.usefixtures("one_thread")

CODE = """
import json

def tokens(prompts, completions, completion_ids, **_):
    with open({log!r}, "a") as file:
        for prompt, completion in zip(prompts, completions):
            file.write(json.dumps([prompt, completion]) + "\\n")
    return [0.5 * len(ids) for ids in completion_ids]

def short(prompts, **_):
    return [1.0]

def broken(completions, **_):
    return [float("nan") for _ in completions]

def raises(completions, **_):
    raise KeyError("no such key")
"""


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    path = tmp_path / "my_rewards.py"
    path.write_text(CODE.replace("{log!r}", repr(str(tmp_path / "calls.jsonl"))))
    return path


@pytest.fixture(scope="module")
def reward_model(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_reward_model(tiny_model, tmp_path_factory.mktemp("reward-model"))


def test_scores_are_the_function_s_and_the_reward_model_s_are_logged(
    tiny_model: Model, reward_model: Model, preferences: Path, tmp_path: Path, rewards: Path
) -> None:
    config: dict[str, Any] = {
        "prompts": str(make_prompts(tmp_path / "prompts.jsonl")), "updates": 2, "prompts_per_update": 4,
        "epochs_per_update": 1, "max_response_tokens": 8, "max_sequence_tokens": 300, "missing_eos": "subtract",
        "missing_eos_penalty": 0.0,
    }  # fmt: skip
    runs = Runs(tmp_path / "runs")
    plain = run_ppo(config, tiny_model, reward_model, preferences, runs)
    ours = run_ppo(
        config | {"reward_function": f"{rewards}:tokens"}, tiny_model, reward_model, preferences, runs
    )
    first, last = (row for row in ours.metric_rows() if "policy_loss" in row)
    first_plain = next(row for row in plain.metric_rows() if "policy_loss" in row)
    assert first["score"] == pytest.approx(0.5 * first["response_tokens"])
    assert last["score"] == pytest.approx(0.5 * last["response_tokens"])
    # The same first answers, so the reward model says the same of them.
    assert first["reward_model_score"] == pytest.approx(first_plain["score"], abs=1e-5)
    assert first_plain["reward_model_score"] == first_plain["score"]
    evaluated = next(row for row in ours.metric_rows() if "eval_score" in row)
    assert evaluated["eval_score"] == pytest.approx(0.5 * evaluated["eval_response_tokens"])
    assert math.isfinite(evaluated["eval_score_standard_error"])
    # The critic's head is new: it predicts 0 before it learns, so all that is unexplained is the return itself.
    assert first["explained_variance"] == pytest.approx(0.0, abs=1e-6)

    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    prompt, completion = calls[0]
    assert prompt[0]["role"] == "user" and prompt[0]["content"].startswith("Say ")
    assert completion[0]["role"] == "assistant" and isinstance(completion[0]["content"], str)

    before = ours.id
    rewards.write_text(rewards.read_text().replace("0.5 *", "0.25 *"))
    assert run_ppo(
        config | {"reward_function": f"{rewards}:tokens"}, tiny_model, reward_model, preferences, runs
    ).id != before  # fmt: skip


def test_bad_functions_are_named(rewards: Path) -> None:
    for reference, problem in {
        f"{rewards}": "is no function; write file.py:function",
        f"{rewards}:absent": "has no function 'absent'",
        "no_such_file.py:f": "cannot be loaded",
        "no_such_module:f": "cannot be loaded .*No module named",
    }.items():
        with pytest.raises(UsageError, match=problem):
            load_reward_function(reference)
    prompts = [[Message(role="user", content="Why?")]] * 2
    for name, problem in {
        "short": "gave 1 rewards for 2 answers",
        "broken": "gave nan for the answer 'Because.'",
        "raises": "failed: KeyError: 'no such key'; it must take prompts and completions",
    }.items():
        with pytest.raises(AccordError, match=problem):
            load_reward_function(f"{rewards}:{name}")(prompts, ["Because."] * 2, completion_ids=[[1]] * 2)


def test_a_function_of_trl_works() -> None:
    reward = load_reward_function("trl.rewards:think_format_reward")
    prompts = [[Message(role="user", content="Why?")]] * 2
    assert reward(prompts, ["<think>x</think>y", "y"]) == [1.0, 0.0]
