"""One way to name what scores: reward models, judges and functions, in the score call, in PPO and at the gate."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ppo_helpers import make_prompts, make_reward_model, run_ppo

from accord.chat.tokens import answer
from accord.errors import AccordError, DataError, UsageError
from accord.models.loading import load_tokenizer
from accord.models.references import Model
from accord.records import Message, read_jsonl
from accord.runs import Runs
from accord.sampling import Completion
from accord.text_files import write_jsonl
from eval.config import EvalConfig
from eval.evaluate import evaluate
from eval.promotion import check_verdict
from eval.rows import Sample
from eval.verdict.gate import read_verdict
from reward.judge import judge_of
from reward.score import score
from reward.score_file import read_rows, score_rows
from reward.scorers import scorer_of, scorer_of_model

pytestmark = pytest.mark.usefixtures("one_thread")

CODE = """
def length(prompts, completions, **_):
    return [len(p) + len(completion[0]["content"]) / 100 for p, completion in zip(prompts, completions)]

def other(completions, **_):
    return [0.0 for _ in completions]

def wants_ids(completion_ids, **_):
    return [0.0 for _ in completion_ids]
"""


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    path = tmp_path / "rewards_of_scorers.py"
    path.write_text(CODE)
    return path


@pytest.fixture(scope="module")
def reward_model(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_reward_model(tiny_model, tmp_path_factory.mktemp("reward-model"))


def conversations(count: int = 20) -> list[list[Message]]:
    return [
        [Message(role="user", content=f"Ask {i}"), *answer("please " * (i * i % 17) + f"{i}")]
        for i in range(count)
    ]


def test_a_reward_model_scores_as_ever(reward_model: Model, runs: Runs) -> None:
    expected = score(reward_model, conversations(150))
    for batch in (1, 7, 200):
        scorer = scorer_of(reward_model.reference, runs, batch)
        assert scorer.score(conversations(150)) == pytest.approx(expected, abs=1e-5)
    assert (scorer.reference, scorer.digest, scorer.run_id) == (
        reward_model.reference,
        reward_model.digest,
        None,
    )
    assert scorer.function is None and scorer.judge is None
    assert scorer.score([]) == []
    too_long = [*conversations(2), [Message(role="user", content="x" * 2000), *answer("y")]]
    with pytest.raises(DataError, match=r"conversation 3 has \d+ tokens and the reward model reads 1024"):
        scorer.score(too_long)


def test_a_score_that_is_no_number_is_an_error(reward_model: Model, tmp_path: Path, runs: Runs) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    for file in reward_model.folder.iterdir():
        if file.is_file():
            (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["score.weight"] += math.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(AccordError, match="gave nan for conversation 1"):
        scorer_of(str(broken), runs).score(conversations(2))


def test_a_chat_model_is_no_reward_model(
    tiny_model: Model, reward_model: Model, runs: Runs, tmp_path: Path
) -> None:
    with pytest.raises(
        UsageError, match=r"is no reward model \(its architecture is LlamaForCausalLM\); write judge:"
    ):
        scorer_of(tiny_model.reference, runs)
    two = tmp_path / "two-labels"
    two.mkdir()
    for file in reward_model.folder.iterdir():
        if file.is_file():
            (two / file.name).write_bytes(file.read_bytes())
    config = json.loads((two / "config.json").read_text())
    (two / "config.json").write_text(json.dumps(config | {"id2label": {"0": "bad", "1": "good"}}))
    with pytest.raises(UsageError, match="has 2 labels, and a reward model has one"):
        scorer_of(str(two), runs)


def test_a_function_scores_and_its_name_and_file_identify_it(rewards: Path, runs: Runs) -> None:
    scorer = scorer_of(f"{rewards}:length", runs)
    talk = [
        Message(role="user", content="Hi"),
        *answer("Ho"),
        Message(role="user", content="Why?"),
        *answer("12345"),
    ]
    assert scorer.score([talk, talk[:2]]) == [3.05, 1.02]
    assert scorer.run_id is None and scorer.function is not None
    assert scorer.digest != scorer_of(f"{rewards}:other", runs).digest
    before = scorer.digest
    rewards.write_text(rewards.read_text().replace("100", "10"))
    assert scorer_of(f"{rewards}:length", runs).digest != before
    with pytest.raises(AccordError, match="missing 1 required positional argument: 'completion_ids'"):
        scorer_of(f"{rewards}:wants_ids", runs).score([talk])
    assert scorer_of("trl.rewards:think_format_reward", runs).score([talk]) == [0.0]


def test_a_function_gets_columns_and_may_have_no_opinion(tmp_path: Path, runs: Runs) -> None:
    (tmp_path / "verify.py").write_text(
        "def right(completions, solution, **_):\n"
        "    return [float(c[0]['content'] == s) if s else None for c, s in zip(completions, solution)]\n"
        "def silent(completions, **_):\n    return [None for c in completions]\n"
    )
    scorer = scorer_of(f"{tmp_path}/verify.py:right", runs)
    talk = [[Message(role="user", content="1 + 1?"), *answer(text)] for text in ("2", "3", "2")]
    assert scorer.opinions(talk, {"solution": ["2", "2", None]}) == [1.0, 0.0, None]
    with pytest.raises(AccordError, match="missing 1 required positional argument: 'solution'"):
        scorer.score(talk)
    with pytest.raises(
        AccordError, match="silent has no opinion on conversation 1 of 3, and a score is needed of each"
    ):
        scorer_of(f"{tmp_path}/verify.py:silent", runs).score(talk)

    rows = [
        {"messages": [m.model_dump() for m in each]} | ({"solution": s} if s else {})
        for each, s in zip(talk, ["2", "2", None], strict=True)
    ]
    file = tmp_path / "rows.jsonl"
    write_jsonl(file, rows)
    scored, figures = score_rows(scorer, read_rows(file))
    assert [row["score"] for row in scored] == [1.0, 0.0, None]
    assert (figures["mean_score"], figures["no_opinion"], figures["rows"]) == (0.5, 1, 3)
    with pytest.raises(AccordError, match="silent has no opinion on any of these rows"):
        score_rows(scorer_of(f"{tmp_path}/verify.py:silent", runs), read_rows(file))

    pairs = [
        {
            "prompt": rows[0]["messages"][:1],
            "chosen": rows[0]["messages"][1:],
            "rejected": rows[1]["messages"][1:],
        }
        | ({"solution": s} if s else {})
        for s in ("2", "3", None, "2")
    ]
    write_jsonl(file, pairs)
    scored, figures = score_rows(scorer, read_rows(file))
    assert [row["chosen_score"] for row in scored] == [1.0, 0.0, None, 1.0]
    assert (figures["ordered_as_preferred"], figures["accuracy"], figures["no_opinion"]) == (2, 2 / 3, 2)
    assert figures["mean_margin"] == pytest.approx(1 / 3)


def test_a_judge_scores(tiny_model: Model, runs: Runs) -> None:
    reference = f"judge:{tiny_model.reference}"
    scorer, judge = scorer_of(reference, runs), judge_of(reference, runs)
    assert scorer.score(conversations(3)) == pytest.approx(judge.score(conversations(3)), abs=1e-6)
    assert (scorer.reference, scorer.digest) == (reference, judge.digest)
    assert scorer.judge is not None


def test_references_that_name_nothing(runs: Runs, rewards: Path, tiny_model: Model) -> None:
    for reference, problem in {
        "run:reward-0": "no run in",
        "bundled:nothing": "is not bundled",
        str(rewards): "names no function; write .*rewards_of_scorers.py:function",
        f"{rewards}:absent": "has no 'absent'",
        "no_such_module:f": "there is no module no_such_module with",
        "judge:": "is no judge",
        "vllm:http://127.0.0.1:8000": "names no reward model; write vllm:http://127.0.0.1:8000#run:<id>",
        "vllm:127.0.0.1:8000#run:reward-0": "is no URL",
        f"vllm:http://127.0.0.1:8000#{tiny_model.reference}": "is no reward model",
        "no/such-model": "there is no folder of this name here",
    }.items():
        with pytest.raises(UsageError, match=problem):
            scorer_of(reference, runs)


# --- PPO


def test_ppo_learns_from_a_judge(
    tiny_model: Model, reward_model: Model, preferences: Path, tmp_path: Path, runs: Runs
) -> None:
    config: dict[str, Any] = {
        "prompts": str(make_prompts(tmp_path / "prompts.jsonl")), "updates": 1, "prompts_per_update": 4,
        "epochs_per_update": 1, "max_response_tokens": 8, "max_sequence_tokens": 300, "missing_eos": "subtract",
        "missing_eos_penalty": 0.0,
    }  # fmt: skip
    reference = f"judge:{tiny_model.reference}"
    run = run_ppo(config | {"reward_function": reference}, tiny_model, reward_model, preferences, runs)
    row = next(row for row in run.metric_rows() if "policy_loss" in row)
    assert 1 <= row["score"] <= 5
    assert row["score"] != row["reward_model_score"]
    assert run.record.inputs["reward_function"] == scorer_of(reference, runs).digest
    plain = run_ppo(config, tiny_model, reward_model, preferences, runs)
    first = next(row for row in plain.metric_rows() if "policy_loss" in row)
    assert row["reward_model_score"] == pytest.approx(first["score"], abs=1e-5)  # the same answers


# --- the gate


class SaysItsSeed:
    """Answers with the seed; every second answer is empty."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def use(self, model: Model) -> "SaysItsSeed":
        return self

    def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], *_: Any) -> list[Completion]:
        answers = [self.tokenizer.encode(f"{seed}" if seed % 2 else "") for seed in seeds]
        return [
            Completion([*ids, self.tokenizer.eos_token_id], [0.0] * (len(ids) + 1), "eos") for ids in answers
        ]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "gate-prompts.jsonl"
    rows = [{"id": f"p{i}", "prompt": [{"role": "user", "content": f"Question {i}?"}]} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_gate_takes_what_scores_from_a_function_or_a_judge(
    tiny_model: Model, reward_model: Model, rewards: Path, prompts: Path, runs: Runs
) -> None:
    sampler: Any = SaysItsSeed(load_tokenizer(tiny_model))
    gate: Any = {"reward": {"direction": "higher", "margin": 0.1}}
    config = EvalConfig(prompts=str(prompts), gate=gate)
    ids = set()
    for scorer in (
        scorer_of(f"{rewards}:length", runs),
        scorer_of(f"{rewards}:other", runs),
        scorer_of(f"judge:{tiny_model.reference}", runs),
        scorer_of_model(reward_model),
    ):
        run = evaluate(config, runs, sampler, tiny_model, tiny_model, scorer, show=lambda line: None)
        ids.add(run.id)
        samples = read_jsonl(run.path / "samples.jsonl", Sample)
        expected = scorer.score([[*each.prompt, *answer(each.candidate.text or " ")] for each in samples])
        assert [each.candidate.reward for each in samples] == pytest.approx(expected, abs=1e-5)
        verdict = read_verdict(run)
        assert verdict.metrics[0].name == "reward"
        assert verdict.outcome in ("PASS", "INCONCLUSIVE"), "a model cannot fail against itself"
        # what scored is found again, and is the same
        assert check_verdict(run, Runs(runs.root), any_outcome=True) == verdict
        assert verdict.reward_model is not None
        assert (verdict.reward_model.reference, verdict.reward_model.digest) == (
            scorer.reference,
            scorer.digest,
        )
        assert run.record.inputs["reward_model"] == scorer.digest
        assert scorer.reference in (run.path / "report.html").read_text()
    assert len(ids) == 4
    # A round gives its reward model as it is.
    plain = evaluate(config, runs, sampler, tiny_model, tiny_model, reward_model, show=lambda line: None)
    assert plain.id in ids
    with pytest.raises(UsageError, match="is no reward model"):
        evaluate(config, runs, sampler, tiny_model, tiny_model, tiny_model)
