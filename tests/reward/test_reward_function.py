"""A Python function as a reward: in PPO it decides the scores, sees the texts, and is part of what identifies a run."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
from ppo_helpers import make_prompts, make_reward_model, run_ppo

from accord.errors import AccordError, UsageError
from accord.models.references import Model
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
        f"{rewards}": "write file.py:name or module:name",
        f"{rewards}:absent": "has no 'absent'",
        "no_such_file.py:f": "cannot be loaded",
        "no_such_module:f": "there is no module no_such_module with",
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


def test_columns_and_no_opinion(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def right(completions, solution, log_metric, margin=0, *, tests, **kwargs):\n"
        "    return [float(c[0]['content'] == s) if t else None for c, s, t in zip(completions, solution, tests)]\n"
        "def taken(prompts, completions, **kwargs):\n"
        "    return [float(len(kwargs)), float(prompts[0][0]['content'] == 'Why?')]\n"
        "class Callable:\n"
        "    def __call__(self, completions, solution, **_): return [1.0 for _ in completions]\n"
        "instance = Callable()\n"
    )
    prompts = [[Message(role="user", content="Why?")]] * 2
    right = load_reward_function(f"{tmp_path}/mine.py:right")
    assert right.needs == {"solution", "tests"}
    columns = {"solution": ["a", "b"], "tests": [[1], []], "topic": [None, "x"]}
    assert right(prompts, ["a", "b"], columns, log_metric=print) == [1.0, None]
    with pytest.raises(AccordError, match="missing 1 required positional argument: 'solution'"):
        right(prompts, ["a", "b"], {"tests": [[1], [1]]}, log_metric=print)
    # A column cannot take the place of what the caller says.
    taken = load_reward_function(f"{tmp_path}/mine.py:taken")
    assert taken(prompts, ["a", "b"], {"prompts": ["x", "y"], "topic": [1, 2]}) == [1.0, 1.0]
    assert taken.needs == frozenset()
    instance = load_reward_function(f"{tmp_path}/mine.py:instance")
    assert instance.needs == {"solution"} and instance(prompts, ["a", "b"], columns) == [1.0, 1.0]


def test_a_package_that_a_function_uses_is_asked_for_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lacks.py").write_text("def f(completions, **_):\n    import no_such_package\n")
    prompts = [[Message(role="user", content="Why?")]]
    with pytest.raises(UsageError, match=r"uses a package that is not installed \(No module named"):
        load_reward_function(f"{tmp_path}/lacks.py:f")(prompts, ["Because."])
    load_reward_function("trl.rewards:accuracy_reward")  # TRL looks once, when it is imported
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "math_verify" else found(name, *rest)
    )
    with pytest.raises(UsageError, match=r"needs the package math-verify; install it with pip install"):
        load_reward_function("trl.rewards:accuracy_reward")
    load_reward_function("trl.rewards:think_format_reward")


def test_a_function_of_trl_works() -> None:
    accuracy = load_reward_function("trl.rewards:accuracy_reward")
    assert accuracy.needs == {"solution"}
    ask = [[Message(role="user", content="1 + 1?")]] * 3
    answers = [r"It is \boxed{2}.", r"It is \boxed{3}.", "Who knows?"]
    assert accuracy(ask, answers, {"solution": ["$2$", "$2$", "no idea"]}) == [1.0, 0.0, None]

    reward = load_reward_function("trl.rewards:think_format_reward")
    prompts = [[Message(role="user", content="Why?")]] * 2
    assert reward(prompts, ["<think>x</think>y", "y"]) == [1.0, 0.0]
