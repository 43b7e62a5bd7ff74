"""Rewards that a program verifies, for PPO, RLOO and GRPO alike: columns go to it, and it may have no opinion."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_helpers import SAMPLING, make_reward_model
from trl import GRPOTrainer, RLOOTrainer

from accord.errors import AccordError, DataError
from accord.models.loading import load_tokenizer
from accord.models.references import Model
from accord.records import Preference, read_jsonl
from accord.runs import DataFile, Run, Runs
from accord.sampling.shared import SharedSampler
from accord.text_files import write_jsonl
from reward.data import split_by_prompt
from reward.scorers import scorer_of
from rl.config import OnlineConfig, PPOConfig
from rl.data import load_data
from rl.online import train_online
from rl.policy_gradient.layouts import load_actors
from rl.policy_gradient.learner import Opinions, experience, hear, learn
from rl.policy_gradient.rollout import Rollout
from rl.policy_gradient.settings import Computation, Estimation, Objective, Passes, Steps
from rl.ppo import train_ppo

pytestmark = pytest.mark.usefixtures("one_thread")
ALGORITHMS = ("ppo", "rloo", "grpo")

CODE = """
import json

def record(prompts, completions, completion_ids, **columns):
    known = {name: columns[name] for name in ("solution", "tests") if name in columns}
    with open({log!r}, "a") as file:
        for i, (prompt, completion, ids) in enumerate(zip(prompts, completions, completion_ids, strict=True)):
            row = {name: values[i] for name, values in known.items()}
            file.write(json.dumps([prompt, completion, ids, row]) + "\\n")

def wants_solution(prompts, completions, completion_ids, solution, **columns):
    record(prompts, completions, completion_ids, solution=solution, **columns)
    return [0.5 * len(ids) for ids in completion_ids]

def sometimes(prompts, completions, completion_ids, **_):
    return [None if len(ids) % 3 == 0 else 1.0 * len(ids) for ids in completion_ids]

def of_even(prompts, completion_ids, **_):
    odd = [int(prompt[-1]["content"].split()[0]) % 2 for prompt in prompts]
    return [None if is_odd else 1.0 * len(ids) for is_odd, ids in zip(odd, completion_ids)]

def never(completions, **_):
    return [None for _ in completions]
"""


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    path = tmp_path / "verifiers.py"
    path.write_text(CODE.replace("{log!r}", repr(str(tmp_path / "calls.jsonl"))))
    return path


@pytest.fixture(scope="module")
def reward_model(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_reward_model(tiny_model, tmp_path_factory.mktemp("reward-model"))


def make_tasks(path: Path, **columns: list[Any]) -> Path:
    """Twelve prompts; a column whose value is None is left out of the row."""
    rows = []
    for i in range(12):
        row: dict[str, Any] = {"prompt": [{"role": "user", "content": f"{i} + {i}?"}]}
        row |= {name: values[i] for name, values in columns.items() if values[i] is not None}
        rows.append(row)
    write_jsonl(path, rows)
    return path


def train(
    algorithm: str, prompts: Path, reward: str, policy: Model, reward_model: Model, preferences: Path, runs: Runs,
    **settings: Any,
) -> Run:  # fmt: skip
    common: dict[str, Any] = {
        "algorithm": algorithm, "prompts": str(prompts), "reward_function": reward, "max_sequence_tokens": 300,
        "max_response_tokens": 8, "learning_rate": 1e-3, "missing_eos_penalty": 0.0,
    }  # fmt: skip
    if algorithm == "ppo":
        ppo = {"updates": 2, "prompts_per_update": 6, "epochs_per_update": 2, "missing_eos": "subtract"}
        config = PPOConfig(**common | ppo | settings)
        with SharedSampler(SAMPLING) as sampler:
            return train_ppo(config, runs, policy, reward_model, DataFile(preferences), sampler)
    online = {"rows_per_update": 8, "rows_per_pass": 8, "num_generations": 2}
    return train_online(OnlineConfig(**common | online | settings), runs, policy, None, DataFile(preferences))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_trl_s_accuracy_reward_runs_unchanged(
    tiny_model: Model, reward_model: Model, preferences: Path, tmp_path: Path, runs: Runs, algorithm: str
) -> None:
    """A third of the solutions are no mathematics, of which it has no opinion."""
    solutions = [f"${2 * i}$" if i % 3 else "no idea" for i in range(12)]
    prompts = make_tasks(tmp_path / "tasks.jsonl", solution=solutions)
    run = train(
        algorithm, prompts, "trl.rewards:accuracy_reward", tiny_model, reward_model, preferences, runs
    )
    assert run.is_done and 0 < run.metrics["no_opinion_share"] < 1
    # The preferences are about other things and have no solutions: a fifth of the tasks is held out instead.
    assert run.record.dropped["heldout_prompts_without_columns"] == 4
    assert run.record.dropped["prompts_heldout"] == 3
    score = "score" if algorithm == "ppo" else "reward"
    rows = [row for row in run.metric_rows() if row.get(score) is not None and "loss" in str(row)]
    assert rows and all(row[score] == 0 for row in rows)  # a random model writes no LaTeX
    assert ("reward_model" in run.record.inputs) == (algorithm == "ppo")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_function_gets_the_other_columns_of_each_prompt(
    tiny_model: Model, reward_model: Model, preferences: Path, tmp_path: Path, runs: Runs, rewards: Path,
    algorithm: str,
) -> None:  # fmt: skip
    solutions = [str(2 * i) if i else None for i in range(12)]
    tests: list[Any] = [{"in": [i], "out": {"sum": 2 * i}} if i % 2 else ["a", 1, None] for i in range(12)]
    prompts = make_tasks(tmp_path / "tasks.jsonl", solution=solutions, tests=tests)
    reference = f"{rewards}:wants_solution"
    run = train(algorithm, prompts, reference, tiny_model, reward_model, preferences, runs)
    tokenizer = load_tokenizer(tiny_model)
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert len({call[0][-1]["content"] for call in calls}) > 8
    for prompt, completion, ids, row in calls:
        i = int(prompt[-1]["content"].split()[0])
        assert i > 0 and row == {"solution": str(2 * i), "tests": tests[i]}
        (message,) = completion
        assert message["role"] == "assistant"
        assert message["content"] == tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert run.record.dropped["prompts_without_columns"] == 1
    assert run.record.inputs["reward_function"] == scorer_of(reference, runs).digest
    assert run.metrics["no_opinion_share"] == 0


def test_held_out_prompts_have_the_columns_of_the_row_that_asks_the_same(
    tiny_model: Model, preferences: Path, tmp_path: Path
) -> None:
    heldout = list(
        {
            row.prompt[0].content: row for row in split_by_prompt(read_jsonl(preferences, Preference), 0.2)[1]
        }.values()
    )
    rows = [{"prompt": [{"role": "user", "content": f"Say {i}"}], "solution": i} for i in range(4)]
    rows.append({"prompt": [m.model_dump() for m in heldout[0].prompt], "solution": 99})
    write_jsonl(tmp_path / "prompts.jsonl", rows)
    tokenizer = load_tokenizer(tiny_model)

    def load(*needed: str) -> Any:
        return load_data(tokenizer, tmp_path / "prompts.jsonl", preferences, 0.2, 300, 8, needed)

    assert [prompt.columns for prompt in load().heldout_prompts] == [
        {"solution": 99}, *[{"solution": None}] * 3
    ]  # fmt: skip
    data = load("solution")
    assert [prompt.columns for prompt in data.heldout_prompts] == [{"solution": 99}]
    assert data.dropped["heldout_prompts_without_columns"] == 3 and data.dropped["prompts_heldout"] == 1
    assert len(data.prompts) == 4
    with pytest.raises(
        DataError, match="no row has all of answer, solution, which the reward function takes"
    ):
        load("solution", "answer")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_opinion_on_any_answer_is_an_error(
    tiny_model: Model, reward_model: Model, preferences: Path, tmp_path: Path, runs: Runs, rewards: Path,
    algorithm: str,
) -> None:  # fmt: skip
    prompts = make_tasks(tmp_path / "tasks.jsonl")
    with pytest.raises(
        AccordError, match=r"verifiers.py:never has no opinion on any of \d answers, so there is no"
    ):
        train(algorithm, prompts, f"{rewards}:never", tiny_model, reward_model, preferences, runs)


@pytest.mark.parametrize(("algorithm", "trainer"), [("rloo", RLOOTrainer), ("grpo", GRPOTrainer)])
def test_answers_without_an_opinion_move_neither_policy_nor_baseline(
    tiny_model: Model, reward_model: Model, preferences: Path, tmp_path: Path, runs: Runs, rewards: Path,
    monkeypatch: pytest.MonkeyPatch, algorithm: str, trainer: Any,
) -> None:  # fmt: skip
    """A fact about TRL: it compares an answer with those that have a score, and learns nothing from the others."""
    seen: list[tuple[list[int], list[float]]] = []
    plain = trainer._generate_and_score_completions

    def watched(self: Any, inputs: Any) -> Any:
        output = plain(self, inputs)
        if self.model.training:
            lengths = output["completion_mask"].sum(dim=1).tolist()
            seen.append((lengths, output["advantages"].tolist()))
        return output

    monkeypatch.setattr(trainer, "_generate_and_score_completions", watched)
    settings: dict[str, Any] = {"num_generations": 4, "kl_coefficient": 0, "max_response_tokens": 64}
    if algorithm == "grpo":
        settings["trainer"] = {"scale_rewards": "none"}
    prompts = make_tasks(tmp_path / "tasks.jsonl")
    run = train(
        algorithm, prompts, f"{rewards}:sometimes", tiny_model, reward_model, preferences, runs, **settings
    )
    rows = [row for row in run.metric_rows() if "loss" in row]
    assert len(seen) == len(rows) > 2
    some = 0
    for (lengths, advantages), row in zip(seen, rows, strict=True):
        # missing_eos_penalty is 0, so an answer of 64 tokens, which is not a multiple of 3, scores 0.
        scores = [None if n % 3 == 0 else 0.0 if n == 64 else float(n) for n in lengths]
        known = [score for score in scores if score is not None]
        assert row["no_opinion_share"] == pytest.approx(1 - len(known) / 8)
        assert row["reward"] == pytest.approx(sum(known) / len(known), rel=1e-5)
        for group in (slice(0, 4), slice(4, 8)):
            others = [score for score in scores[group] if score is not None]
            for score, advantage in zip(scores[group], advantages[group], strict=True):
                if score is None:
                    some += 1
                    assert advantage == 0
                elif algorithm == "grpo":
                    assert advantage == pytest.approx(score - sum(others) / len(others), abs=1e-4)
                elif len(others) > 1:
                    baseline = (sum(others) - score) / (len(others) - 1)
                    assert advantage == pytest.approx(score - baseline, abs=1e-4)
    assert some > 0


def test_ppo_learns_from_the_other_answers_as_if_those_without_an_opinion_were_not_there(
    tiny_model: Model, reward_model: Model
) -> None:
    prompts, responses = [[5, 6, 7], [8, 9, 10], [13, 14]], [[20, 21, 2], [22, 2], [23, 24, 25, 26, 27]]
    scores = torch.tensor([1.0, -0.5, 0.0])
    tokenizer, passes = load_tokenizer(tiny_model), Passes()

    def learned(answers: list[int], scored: list[bool]) -> dict[str, torch.Tensor]:
        actors = load_actors(
            tokenizer, tiny_model, reward_model, 300, computation=Computation(), seed=1
        )  # fmt: skip
        parameters = {
            **actors.policy_parameters,
            **{f"c.{k}": p for k, p in actors.critic_parameters.items()},
        }
        optimiser = torch.optim.SGD(parameters.values(), lr=0.1)
        rollout = Rollout(
            [prompts[i] for i in answers], [responses[i] for i in answers],
            [[-5.0 - i] * len(responses[i]) for i in answers], [True] * len(answers),
        )  # fmt: skip
        opinions: Opinions = hear(actors, rollout, passes)
        opinions = replace(opinions, scores=scores[answers], scored=torch.tensor(scored))
        found = experience(opinions, scores[answers], 0.05, Estimation(whiten_rewards=True))
        learn(actors, optimiser, rollout, found, Objective(entropy_coefficient=0.1), Steps(2, 1), passes, "s")
        return {name: p.detach().clone() for name, p in parameters.items()}

    among_three = learned([0, 1, 2], [True, True, False])
    of_two = learned([0, 1], [True, True])
    of_three = learned([0, 1, 2], [True, True, True])
    for name, weight in among_three.items():
        torch.testing.assert_close(weight, of_two[name], atol=1e-5, rtol=1e-4)
    assert any(not torch.allclose(among_three[name], of_three[name], atol=1e-3) for name in among_three)


def test_ppo_s_figures_are_of_the_answers_with_an_opinion(
    tiny_model: Model, reward_model: Model, preferences: Path, tmp_path: Path, runs: Runs, rewards: Path
) -> None:
    """With one answer a minibatch, those without an opinion are no steps at all."""
    prompts = make_tasks(tmp_path / "tasks.jsonl")
    # The function reads a number at the front of a prompt.
    preferences.write_text(re.sub(r'"Ask (\d+)"', r'"\1 again"', preferences.read_text()))
    run = train(
        "ppo", prompts, f"{rewards}:of_even", tiny_model, reward_model, preferences, runs,
        minibatches_per_epoch=6, updates=2, prompts_per_update=6,
    )  # fmt: skip
    rows = [row for row in run.metric_rows() if "policy_loss" in row]
    # Both updates together answer each of the twelve once, of which six are odd.
    shares = [row["no_opinion_share"] for row in rows]
    assert sum(shares) == pytest.approx(1) and run.metrics["no_opinion_share"] == pytest.approx(0.5)
    for row in rows:
        assert 6 <= row["score"] <= 8 and row["shaped_score"] == pytest.approx(row["score"])


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_a_judge_is_a_reward_without_a_reward_model(
    tiny_model: Model, reward_model: Model, preferences: Path, tmp_path: Path, runs: Runs, algorithm: str
) -> None:
    reference = f"judge:{tiny_model.reference}"
    prompts = make_tasks(tmp_path / "tasks.jsonl")
    settings = {"max_response_tokens": 64, "missing_eos_penalty": 100.0}
    run = train(algorithm, prompts, reference, tiny_model, reward_model, preferences, runs, **settings)
    assert run.record.inputs["reward_function"] == scorer_of(reference, runs).digest
    assert "reward_model" not in run.record.inputs
    rows = [row for row in run.metric_rows() if "loss" in row]
    for row in rows:  # of the answers that are not cut off the grades, of the others minus the penalty
        cut_off = 8 * row["completions/clipped_ratio"]
        assert cut_off * -100 + (8 - cut_off) <= 8 * row["reward"] <= cut_off * -100 + 5 * (8 - cut_off)
    assert any(row["completions/clipped_ratio"] < 1 for row in rows)
