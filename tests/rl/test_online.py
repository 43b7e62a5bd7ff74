"""RLOO and GRPO on the tiny model; at first one answer of its in five ends within 64 tokens."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_helpers import make_prompts, make_reward_model
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from training_helpers import assert_same, every_trainer_calls, rows_without_times
from transformers import PreTrainedTokenizerFast

import rl.online
from accord.chat.tokens import encode_conversation, encode_prompt
from accord.errors import AccordError, DataError, UsageError
from accord.models.loading import load_reward_model, load_tokenizer
from accord.models.references import Model, resolve
from accord.records import Message, Preference, Prompt, read_jsonl
from accord.runs import DataFile, Run, Runs
from accord.text_files import write_jsonl
from reward.data import split_by_prompt
from reward.score import score
from rl.config import OnlineConfig
from rl.online import check_arguments, reward_model_function, train_online

pytestmark = pytest.mark.usefixtures("one_thread")

# 12 prompts by 4 an update: 3 updates an epoch
CONFIG = {
    "epochs": 1, "learning_rate": 1e-3, "rows_per_update": 8, "rows_per_pass": 4, "num_generations": 2,
    "max_response_tokens": 64, "max_sequence_tokens": 300, "warmup_fraction": 0, "seed": 3,
    "missing_eos_penalty": 4.0,
}  # fmt: skip
LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def reward_model(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_reward_model(tiny_model, tmp_path_factory.mktemp("reward-model"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return make_prompts(tmp_path / "prompts.jsonl", 12)


def train(
    config: dict[str, Any], policy: Model, reward_model: Model, preferences: Path, prompts: Path, runs: Runs
) -> Run:
    settings = OnlineConfig(**{"algorithm": "rloo", "prompts": str(prompts), **CONFIG, **config})
    return train_online(settings, runs, policy, reward_model, DataFile(preferences))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the reward function was asked and answered, batch by batch."""
    batches: list[dict[str, Any]] = []
    original = rl.online.reward_model_function

    def recording(*arguments: Any) -> Any:
        reward = original(*arguments)

        def reward_model_score(**asked: Any) -> list[float]:
            batches.append({**asked, "scores": reward(**asked)})
            return batches[-1]["scores"]

        return reward_model_score

    monkeypatch.setattr(rl.online, "reward_model_function", recording)
    return batches


@pytest.mark.parametrize(("algorithm", "lora"), [("rloo", None), ("grpo", LORA)], ids=["rloo", "grpo-lora"])
def test_a_run_learns_from_scores_of_the_tokens_it_sampled(
    tiny_model: Model, reward_model: Model, preferences: Path, tmp_path: Path, runs: Runs,
    scored: list[dict[str, Any]], algorithm: str, lora: dict[str, Any] | None,
) -> None:  # fmt: skip
    tokenizer = load_tokenizer(tiny_model)
    heldout = split_by_prompt(read_jsonl(preferences, Preference), 0.2)[1]
    asked = [row.prompt for row in read_jsonl(make_prompts(tmp_path / "all.jsonl", 12), Prompt)]
    write_jsonl(tmp_path / "prompts.jsonl", [Prompt(prompt=p) for p in [*asked, heldout[0].prompt]])
    config = {"algorithm": algorithm, "lora": lora}
    run = train(config, tiny_model, reward_model, preferences, tmp_path / "prompts.jsonl", runs)

    allowed = [encode_prompt(tokenizer, prompt) for prompt in asked]
    aside = [
        encode_prompt(tokenizer, prompt)
        for prompt in {row.prompt[0].content: row.prompt for row in heldout}.values()
    ]
    training = [batch for batch in scored if len(batch["prompts"]) == 8]
    evaluation = [batch for batch in scored if len(batch["prompts"]) == 4]
    assert (len(training), len(evaluation)) == (3, 2)
    seen = [prompt for batch in training for prompt in batch["prompts"]]
    assert sorted(seen) == sorted(allowed * 2)  # each of them for two answers, and none that is held out
    assert seen[::2] == seen[1::2]
    assert all(sorted(batch["prompts"]) == sorted(aside) for batch in evaluation)

    model = load_reward_model(reward_model).eval()
    ended = 0
    for batch in scored:
        for prompt, answer, given in zip(
            batch["prompts"], batch["completion_ids"], batch["scores"], strict=True
        ):
            assert tokenizer.eos_token_id not in answer[:-1] and len(answer) <= 64
            if answer[-1] != tokenizer.eos_token_id:
                assert len(answer) == 64 and given == -4.0
                continue
            ended += 1
            with torch.inference_mode():
                assert given == pytest.approx(float(model(torch.tensor([prompt + answer])).logits), abs=1e-4)
    assert ended >= 3

    def mean(batch: dict[str, Any]) -> float:
        return sum(batch["scores"]) / len(batch["scores"])

    rows = [row for row in run.metric_rows() if "loss" in row]
    assert [row["reward"] for row in rows] == pytest.approx([mean(batch) for batch in training], abs=1e-5)
    figures = run.metrics
    assert (figures["updates"], figures["prompts"], figures["heldout_prompts"]) == (3, 12, 4)
    assert run.record.dropped["prompts_heldout"] == 1
    assert figures["first_reward"] == rows[0]["reward"] and figures["reward"] == rows[-1]["reward"]
    assert figures["heldout_reward_before"] == pytest.approx(mean(evaluation[0]), abs=1e-5)
    assert figures["heldout_reward"] == pytest.approx(mean(evaluation[1]), abs=1e-5)
    lengths = [len(answer) for answer in training[-1]["completion_ids"]]
    assert figures["response_tokens"] == pytest.approx(sum(lengths) / 8)
    assert figures["truncated_share"] == training[-1]["scores"].count(-4.0) / 8
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6) and figures["heldout_kl_nats_per_token"] != 0

    weights = load_file(run.path / "model" / "model.safetensors")
    base = load_file(tiny_model.folder / "model.safetensors")
    assert any(not torch.equal(weight, base[name]) for name, weight in weights.items())
    assert (run.path / "adapter").exists() == bool(lora)
    saved = json.loads((run.path / "model" / "generation_config.json").read_text())
    assert saved.pop("transformers_version")
    assert saved == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (run.path / "model" / file).read_bytes() == (tiny_model.folder / file).read_bytes()
    resolve(f"run:{run.id}", runs)


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_answers_learn_to_end_where_that_is_what_scores(
    tiny_model: Model, reward_model: Model, preferences: Path, prompts: Path, runs: Runs, algorithm: str
) -> None:
    config = {
        "algorithm": algorithm, "epochs": 3, "rows_per_update": 16, "rows_per_pass": 16, "num_generations": 8,
        "learning_rate": 3e-3, "max_response_tokens": 32, "missing_eos_penalty": 20.0, "checkpoint_every_updates": 100,
    }  # fmt: skip
    run = train(config, tiny_model, reward_model, preferences, prompts, runs)
    for r in run.metric_rows():
        print(r.get("reward"), r.get("kl"), r.get("completions/mean_length"))
    print(run.metrics)
    assert run.metrics["heldout_reward"] > run.metrics["heldout_reward_before"] + 5


@pytest.mark.parametrize(("algorithm", "lora"), [("rloo", LORA), ("grpo", None)], ids=["rloo-lora", "grpo"])
def test_interrupted_and_continued_equals_uninterrupted(
    tiny_model: Model, reward_model: Model, preferences: Path, prompts: Path, tmp_path: Path,
    algorithm: str, lora: dict[str, Any] | None,
) -> None:  # fmt: skip
    config = {
        "algorithm": algorithm,
        "lora": lora,
        "epochs": 2,
        "evaluate_every_updates": 4,
        "checkpoint_every_updates": 2,
    }
    parts = (tiny_model, reward_model, preferences, prompts)
    straight = train(config, *parts, Runs(tmp_path / "straight"))
    assert straight.metrics["updates"] == 6

    def interrupt(**_: Any) -> None:
        raise KeyboardInterrupt

    for when in (
        "4",
        "6",
        "train_end",
    ):  # an epoch has 3 updates; the second time it goes on within the second epoch
        with every_trainer_calls(when, interrupt), pytest.raises(KeyboardInterrupt):
            train(config, *parts, Runs(tmp_path / "stopped"))
    continued = train(config, *parts, Runs(tmp_path / "stopped"))
    assert continued.id == straight.id and len(continued.record.continued_at) == 3
    assert_same(continued, straight)
    assert [row["step"] for row in rows_without_times(continued) if "eval_reward" in row] == [0, 4, 6]


def test_scores_are_those_of_reward_score(tiny_model: Model, reward_model: Model) -> None:
    tokenizer = load_tokenizer(tiny_model)
    prompts = [[Message(role="user", content=text)] for text in ("Why?", "Say 7", "A longer question")]
    answers = [
        [Message(role="assistant", content=text)] for text in ("Because.", "7", "An answer of some length")
    ]
    conversations = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    whole = [encode_conversation(tokenizer, each).input_ids for each in conversations]
    completions = [ids[len(prompt) :] for prompt, ids in zip(encoded, whole, strict=True)]
    reward = reward_model_function(load_tokenizer(tiny_model), tiny_model, reward_model, 300, 4.0)
    expected = score(reward_model, conversations)
    assert len({round(each, 3) for each in expected}) == 3
    assert reward(prompts=encoded, completion_ids=completions) == pytest.approx(expected, abs=1e-5)
    completions[1] = completions[1][:-1]  # without its EOS
    assert reward(prompts=encoded, completion_ids=completions) == pytest.approx(
        [expected[0], -4.0, expected[2]], abs=1e-5
    )


def test_a_score_that_is_no_number_stops_the_run(
    tiny_model: Model, reward_model: Model, tmp_path: Path
) -> None:
    """TRL would take such an answer for one that cannot be scored, and go on."""
    shutil.copytree(reward_model.folder, tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["score.weight"][:] = math.nan
    save_file(weights, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    reward = reward_model_function(
        load_tokenizer(tiny_model), tiny_model, Model("broken", tmp_path / "broken", "x"), 300, 1.0
    )
    assert reward(prompts=[[5]], completion_ids=[[6]]) == [-1.0]
    with pytest.raises(AccordError, match="the reward model broken gave a score that is no number"):
        reward(prompts=[[5]], completion_ids=[[6, 2]])


def test_models_that_do_not_fit_together_are_refused(
    tiny_model: Model, reward_model: Model, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"max_sequence_tokens \(2000\) is more than the reward model"):
        reward_model_function(load_tokenizer(tiny_model), tiny_model, reward_model, 2000, 1.0)
    shutil.copytree(reward_model.folder, tmp_path / "other")
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(tmp_path / "other")
    tokenizer.add_tokens(["please"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match="other has another tokenizer or chat template than the policy"):
        reward_model_function(
            load_tokenizer(tiny_model), tiny_model, Model("other", tmp_path / "other", "x"), 300, 1.0
        )


def test_too_few_prompts_are_refused(
    tiny_model: Model, reward_model: Model, preferences: Path, prompts: Path, runs: Runs
) -> None:
    """TRL would train for no update at all."""
    with pytest.raises(DataError, match=r"leaves 12 prompts, and an update takes 13; add prompts"):
        train(
            {"rows_per_update": 26, "rows_per_pass": 26}, tiny_model, reward_model, preferences, prompts, runs
        )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rows_per_update": 9}, "rows_per_update must be a multiple of num_generations"),
        ({"num_generations": 1}, "greater than or equal to 2"),
        ({"max_response_tokens": 300}, "max_sequence_tokens must leave room"),
        ({"lora": {"dropout": 0.1}}, "lora.dropout must be 0 for rloo and grpo"),
        ({"algorithm": "reinforce"}, "'rloo' or 'grpo'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        OnlineConfig(**{"algorithm": "rloo", "prompts": "x", **CONFIG, **settings})


def test_the_trainer_s_arguments_are_checked_against_the_algorithm_s() -> None:
    def config(algorithm: str, **trainer: Any) -> OnlineConfig:
        return OnlineConfig(**{"algorithm": algorithm, "prompts": "x", **CONFIG, "trainer": trainer})

    check_arguments(config("grpo", scale_rewards="none"))
    with pytest.raises(UsageError, match=r"rl.trainer.scale_rewards: RLOOConfig has no such argument"):
        check_arguments(config("rloo", scale_rewards="none"))
    for argument in (
        "temperature",
        "top_p",
        "beta",
        "num_iterations",
        "max_completion_length",
        "sync_ref_model",
    ):
        with pytest.raises(UsageError, match=f"rl.trainer.{argument}: accord sets this one"):
            check_arguments(config("rloo", **{argument: 1}))


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_a_round_runs_the_algorithm_that_its_configuration_names(
    tiny_model: Model, preferences: Path, prompts: Path, runs: Runs, algorithm: Any
) -> None:
    from accord.round import run_round
    from accord.round_config import RoundConfig

    config = RoundConfig.model_validate(
        {
            "model": str(tiny_model.folder), "preferences": str(preferences), "sft": None, "feedback": None,
            "sampling": {"engine": "transformers"},
            "eval": {"prompts": "x", "gate": {"eos_rate": {"direction": "higher", "margin": 0.5}}},
            "reward": {"rows_per_update": 16, "max_sequence_tokens": 300, "minimum_pairs": 4},
            "rl": {"algorithm": algorithm, "prompts": str(prompts), **CONFIG, "max_response_tokens": 8},
        }
    )  # fmt: skip
    run = run_round(config, runs, until=algorithm)
    (reward_run,) = [each for each in runs.all() if each.record.stage == "reward"]
    assert run.record.stage == algorithm and run.metrics["updates"] == 3
    assert run.record.parents == {"reward_model": reward_run.id}
    assert run.record.inputs.keys() == {"policy", "preferences", "prompts"}


def test_a_reward_function_needs_no_preferences(tiny_model: Model, runs: Runs, tmp_path: Path) -> None:
    """A round of nothing but prompts and a function; a fifth of the prompts is held out."""
    from accord.round import run_round
    from accord.round_config import RoundConfig

    prompts = make_prompts(tmp_path / "prompts.jsonl", 15)
    (tmp_path / "mine.py").write_text(
        "def brief(completions, **_):\n    return [-float(len(each[0]['content'])) for each in completions]\n"
    )
    rl = {
        "algorithm": "grpo", "prompts": str(prompts), "reward_function": f"{tmp_path / 'mine.py'}:brief", **CONFIG,
        "max_response_tokens": 8,
    }  # fmt: skip
    config = RoundConfig.model_validate({"model": str(tiny_model.folder), "rl": rl})
    run = run_round(config, runs)
    assert run.metrics["prompts"] == 12 and run.metrics["heldout_prompts"] == 3
    assert run.record.dropped["prompts_heldout"] == 3
    assert run.record.inputs.keys() == {"policy", "prompts", "reward_function"}
    with pytest.raises(DataError, match="leaves 12 prompts, and an update takes 20"):
        run_round(config.model_copy(update={"rl": OnlineConfig(**{**rl, "rows_per_update": 40})}), runs)
