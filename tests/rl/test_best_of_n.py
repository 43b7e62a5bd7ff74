"""Best of n on the tiny model; at first one answer of its in five ends within 64 tokens."""

import json
import multiprocessing
import os
import signal
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from ppo_helpers import SAMPLING, make_prompts, make_reward_model
from pydantic import ValidationError
from safetensors.torch import load_file
from training_helpers import assert_same, every_trainer_calls, kill_this_process

import rl.answers
from accord.chat.tokens import encode_conversation, encode_prompt
from accord.cli.main import main
from accord.errors import DataError, UsageError
from accord.models.loading import load_policy, load_reward_model, load_tokenizer
from accord.models.references import Model
from accord.page.render import run_page
from accord.preflight import check_round
from accord.records import Demonstration, Message, Preference, read_jsonl
from accord.round_config import RoundConfig
from accord.runs import DataFile, Run, Runs
from accord.sampling.protocol import Completion
from accord.sampling.shared import SharedSampler
from accord.sampling.transformers_sampler import TransformersSampler
from eval.checks.contamination import training_data
from reward.data import split_by_prompt
from rl.answers import reward_model_score
from rl.best_of_n import check_arguments, train_best_of_n
from rl.config import BestOfNConfig
from rl.data import EncodedPrompt
from rl.selection import Answer, choose_best

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = {
    "algorithm": "best_of_n", "epochs": 2, "learning_rate": 3e-3, "rows_per_update": 4, "rows_per_pass": 4,
    "samples_per_prompt": 6, "max_response_tokens": 32, "max_sequence_tokens": 300, "warmup_fraction": 0, "seed": 3,
    "heldout_fraction": 0.25,
}  # fmt: skip
LORA = {"rank": 4, "alpha": 8}
BRIEF = "def brief(completions, **_):\n    return [-float(len(each[0]['content'])) for each in completions]\n"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return make_prompts(tmp_path / "prompts.jsonl", 16)


@pytest.fixture
def brief(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(BRIEF)
    return f"{tmp_path / 'mine.py'}:brief"


def train(
    config: dict[str, Any], policy: Model, runs: Runs, prompts: Path, reward_model: Model | None = None,
    preferences: Path | None = None,
) -> Run:  # fmt: skip
    settings = BestOfNConfig(**{"prompts": str(prompts), **CONFIG, **config})
    judged = None if preferences is None else DataFile(preferences)
    with SharedSampler(SAMPLING) as sampler:
        return train_best_of_n(settings, runs, policy, reward_model, judged, sampler)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


# --- what is chosen


def said(score: float | None, text: str = "words", ended: bool = True, seed: int = 0) -> Answer:
    return Answer([5, 2], seed, ended, text, score)


def test_the_best_whole_answer_of_each_prompt_is_chosen() -> None:
    answers = [
        [said(1.0), said(3.0, seed=7), said(9.0, ended=False), said(8.0, text=" "), said(None), said(0.5)],
        [said(None, ended=False), said(None, ended=False)],
        [said(-4.0), said(None)],
    ]
    best, counts = choose_best(answers, 1.0, None, "0")
    assert [(each.prompt, each.score, each.others) for each in best] == [(0, 3.0, [1.0, 0.5]), (2, -4.0, [])]
    assert best[0].answer is answers[0][1] and best[0].gain == 2.25 and best[1].gain is None
    assert counts == {
        "answers_cut_off": 3, "answers_blank": 1, "answers_without_opinion": 2, "prompts_without_answer": 1,
        "prompts_below_least_gain": 0, "prompts_below_keep_fraction": 0,
    }  # fmt: skip


def test_a_share_of_the_best_is_kept_or_those_far_above_the_others() -> None:
    answers = [[said(float(i)), said(0.0)] for i in range(8)]
    best, counts = choose_best(answers, 0.25, None, "0")
    assert [each.prompt for each in best] == [6, 7] and counts["prompts_below_keep_fraction"] == 6
    best, counts = choose_best(answers, 0.5, 4.0, "0")
    assert [each.prompt for each in best] == [6, 7]
    assert (counts["prompts_below_least_gain"], counts["prompts_below_keep_fraction"]) == (4, 2)
    assert [each.prompt for each in choose_best(answers, 0.01, None, "0")[0]] == [7]  # one at least
    assert choose_best([[said(1.0)]], 1.0, 0.0, "0")[0] == []  # there are no others to be above of


def test_the_seed_decides_between_equals() -> None:
    answers = [[said(1.0, seed=i) for i in range(4)] for _ in range(40)]

    def seeds(seed: str) -> list[int]:
        return [each.answer.seed for each in choose_best(answers, 1.0, None, seed)[0]]

    assert seeds("1") == seeds("1") != seeds("2") and set(seeds("1")) == {0, 1, 2, 3}
    kept = [tuple(e.prompt for e in choose_best(answers, 0.5, None, seed)[0]) for seed in ("1", "1", "2")]
    assert kept[0] == kept[1] != kept[2] and len(kept[0]) == 20


# --- what is learned, and what is left of it


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_policy_learns_exactly_the_best_answers_and_their_end(
    tiny_model: Model, runs: Runs, prompts: Path, brief: str, lora: dict[str, Any] | None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tokenizer = load_tokenizer(tiny_model)
    seen: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()

    def look(train_dataloader: Any, **_: Any) -> None:
        for batch in train_dataloader:
            for ids, labels, mask in zip(
                batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True
            ):
                learned = labels != -100
                assert ids[learned].tolist() == labels[learned].tolist()
                seen.add((tuple(ids[mask & ~learned].tolist()), tuple(labels[learned].tolist())))

    with every_trainer_calls("train_begin", look):
        run = train({"reward_function": brief, "lora": lora}, tiny_model, runs, prompts)

    samples = [row for row in lines(run.path / "samples.jsonl") if "round" in row]
    assert len(samples) == 12 * 6
    expected, cut_off, without = set(), 0, 0
    demonstrations = {each["synthetic"]["seed"]: each for each in lines(run.path / "demonstrations.jsonl")}
    for start in range(0, len(samples), 6):
        group = samples[start : start + 6]
        assert len({json.dumps(each["prompt"]) for each in group}) == 1
        cut_off += sum(each["truncated"] for each in group)
        whole = [
            each for each in group if not each["truncated"] and each["text"] and "\0" not in each["text"]
        ]
        chosen = [each for each in group if each["kept"]]
        if not whole:
            without += 1
            assert not chosen
            continue
        (kept,) = chosen
        assert kept["score"] == max(each["score"] for each in whole) == -len(kept["text"])
        assert kept["token_ids"][-1] == tokenizer.eos_token_id
        prompt = [Message(**turn) for turn in kept["prompt"]]
        expected.add((tuple(encode_prompt(tokenizer, prompt)), tuple(kept["token_ids"])))
        row = demonstrations[kept["seed"]]
        assert row["messages"] == [*kept["prompt"], {"role": "assistant", "content": kept["text"]}]
        others = [each["score"] for each in whole if each is not kept]
        assert row["synthetic"] == {
            "run": run.id, "kind": "best_of_n", "model": tiny_model.reference, "n": 6, "scored_by": brief, "round": 1,
            "score": kept["score"], "seed": kept["seed"], "others": len(others),
            "others_mean": statistics.fmean(others) if others else None,
            "others_deviation": statistics.pstdev(others) if others else None,
        }  # fmt: skip
    assert seen == expected and len(demonstrations) == len(expected) == run.metrics["demonstrations_kept"] > 3
    dropped = run.record.dropped
    assert (dropped["answers_cut_off"], dropped["prompts_without_answer"]) == (cut_off, without)
    assert dropped["prompts_heldout"] == 4 and cut_off > 6
    assert len(read_jsonl(run.path / "demonstrations.jsonl", Demonstration)) == len(expected)
    assert run.metrics["sampled_tokens"] == sum(len(each["token_ids"]) for each in samples)
    assert run.metrics["updates"] == len([row for row in run.metric_rows() if "loss" in row])
    assert run.metrics["train_loss"] < run.metrics["first_loss"]
    assert (run.path / "adapter").exists() == bool(lora)
    told = capsys.readouterr().out
    assert "best_of_n: round 1/1: 12 of 12 prompts answered 6 times" in told
    assert f"round 1/1: {len(expected)} of 12 prompts give a demonstration" in told


def test_the_held_out_score_rises_and_its_figures_are_those_of_the_answers(
    tiny_model: Model, runs: Runs, tmp_path: Path, brief: str
) -> None:
    prompts = make_prompts(tmp_path / "many.jsonl", 48)
    config = {"reward_function": brief, "rounds": 2, "epochs": 3, "keep_fraction": 0.75}
    run = train(config, tiny_model, runs, prompts)
    figures = run.metrics
    assert figures["heldout_reward_gain"] > 15 and figures["heldout_reward_gain_low"] > 0
    assert figures["heldout_truncated_share"] < 0.5 < figures["heldout_reward"] + 32

    heldout = {
        when: [row for row in lines(run.path / "samples.jsonl") if row.get("heldout") == when]
        for when in ("before", "after")
    }
    asked = {json.dumps(row["prompt"]) for row in heldout["before"]}
    learned = {json.dumps(row["messages"][:-1]) for row in lines(run.path / "demonstrations.jsonl")}
    assert len(asked) == figures["heldout_prompts"] == 12 and not asked & learned
    means = {when: statistics.fmean(row["score"] for row in rows) for when, rows in heldout.items()}
    assert figures["heldout_reward_before"] == pytest.approx(means["before"])
    assert figures["heldout_reward"] == pytest.approx(means["after"])
    assert figures["heldout_reward_gain"] == pytest.approx(means["after"] - means["before"])

    # by hand: each token's probability under both
    tokenizer = load_tokenizer(tiny_model)
    policy, reference = load_policy(Model("", run.path / "model", "")).eval(), load_policy(tiny_model).eval()
    ratios = []
    for row in heldout["after"]:
        prompt = encode_prompt(tokenizer, [Message(**turn) for turn in row["prompt"]])
        ids = torch.tensor([prompt + row["token_ids"]])
        with torch.no_grad():
            of = [model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for model in (policy, reference)]
        of = [each.gather(1, ids[0, len(prompt) :, None]).sum().item() for each in of]
        ratios.append(of[0] - of[1])
    assert figures["heldout_kl_nats"] == pytest.approx(statistics.fmean(ratios), rel=1e-3)
    assert figures["heldout_kl_nats"] > 1

    rounds = [row for row in run.metric_rows() if "best_score" in row]
    assert [row["round"] for row in rounds] == [1, 2] and rounds[1]["score"] > rounds[0]["score"]
    steps = [row["step"] for row in run.metric_rows() if "loss" in row]
    assert steps == list(range(1, figures["updates"] + 1))


def test_the_reward_model_chooses_and_held_out_preferences_measure(
    tiny_model: Model, runs: Runs, prompts: Path, preferences: Path, tmp_path: Path
) -> None:
    reward_model = make_reward_model(tiny_model, tmp_path / "reward-model")
    run = train({"epochs": 1}, tiny_model, runs, prompts, reward_model, preferences)
    assert run.record.inputs.keys() | run.record.parents.keys() == {
        "policy", "reward_model", "preferences", "prompts",
    }  # fmt: skip
    heldout = split_by_prompt(read_jsonl(preferences, Preference), 0.25)[1]
    rows = lines(run.path / "samples.jsonl")
    asked = {row["prompt"][-1]["content"] for row in rows if "heldout" in row}
    assert asked == {pair.prompt[-1].content for pair in heldout}

    tokenizer, model = load_tokenizer(tiny_model), load_reward_model(reward_model).eval()
    for row in [row for row in rows if row["score"] is not None][:10]:
        prompt = encode_prompt(tokenizer, [Message(**turn) for turn in row["prompt"]])
        ids = prompt + row["token_ids"] + [tokenizer.eos_token_id] * row["truncated"]
        with torch.inference_mode():
            assert row["score"] == pytest.approx(float(model(torch.tensor([ids])).logits), abs=1e-4)
    assert all(row["score"] is None for row in rows if row["truncated"] and "round" in row)
    assert all(row["score"] is not None for row in rows if "heldout" in row)

    with pytest.raises(UsageError, match=r"max_sequence_tokens \(2000\) is more than the reward model"):
        reward_model_score(tokenizer, tiny_model, reward_model, 2000)
    conversation = [Message(role="user", content="Why?"), Message(role="assistant", content="So.")]
    whole = encode_conversation(tokenizer, conversation).input_ids
    begin = len(encode_prompt(tokenizer, conversation[:1]))
    score = reward_model_score(tokenizer, tiny_model, reward_model, 300)
    one = score([EncodedPrompt(whole[:begin], conversation[:1])] * 2, [whole[begin:], whole[begin:-1]])
    assert one[0] == pytest.approx(one[1], abs=1e-6)


def test_answers_without_an_opinion_are_never_learned(
    tiny_model: Model, runs: Runs, prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "some.py").write_text(
        "def some(completions, **_):\n"
        "    return [len(c[0]['content']) if len(c[0]['content']) % 2 else None for c in completions]\n"
        "def none(completions, **_):\n    return [None] * len(completions)\n"
    )
    run = train({"reward_function": f"{tmp_path / 'some.py'}:some"}, tiny_model, runs, prompts)
    rows = lines(run.path / "demonstrations.jsonl")
    assert rows and all(len(row["messages"][-1]["content"]) % 2 for row in rows)
    assert run.record.dropped["answers_without_opinion"] > 0
    with pytest.raises(DataError) as refused:
        train({"reward_function": f"{tmp_path / 'some.py'}:none"}, tiny_model, runs, prompts)
    assert "none of 12 prompts gives a demonstration; of 72 answers" in str(refused.value)
    assert "raise rl.max_response_tokens or rl.samples_per_prompt" in str(refused.value)


def test_a_prompt_whose_answers_are_all_cut_off_is_left_out(
    tiny_model: Model, runs: Runs, prompts: Path, brief: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sample(self: Any, asked: Any, seeds: Any, limit: int, temperature: float) -> list[Completion]:
        odd = [sum(ids) % 2 for ids in asked]
        found = [[70 + i % 7, 71, 2] if o else [70] * limit for i, o in enumerate(odd)]
        return [Completion(ids, [0.0] * len(ids), "eos" if len(ids) == 3 else "length") for ids in found]

    monkeypatch.setattr(TransformersSampler, "sample", sample)
    monkeypatch.setattr(
        "accord.sampling.shared.verify", lambda *_, **__: type("R", (), {"max_difference": 0, "tokens": 1})()
    )
    run = train({"reward_function": brief}, tiny_model, runs, prompts)
    dropped, kept = run.record.dropped, run.metrics["demonstrations_kept"]
    assert 0 < dropped["prompts_without_answer"] == 12 - kept < 12
    assert dropped["answers_cut_off"] == 6 * dropped["prompts_without_answer"]


# --- killed and continued


def _run_and_die(config: dict[str, Any], policy: Model, prompts: Path, root: Path, kill_at: str) -> None:
    torch.set_num_threads(1)
    rl.answers.ANSWERS_PER_STEP = 24
    if kill_at == "finish":
        Run.finish = kill_this_process  # type: ignore[method-assign]
    if kill_at.startswith("sample"):
        real, calls = TransformersSampler.sample, []

        def sample(self: Any, asked: Any, *arguments: Any) -> Any:
            calls.extend([1] * (len(asked) > 4))  # not the sampler's verification
            if len(calls) == int(kill_at.removeprefix("sample ")):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, asked, *arguments)

        TransformersSampler.sample = sample  # type: ignore[method-assign]
    with every_trainer_calls(kill_at, kill_this_process):
        train(config, policy, Runs(root), prompts)


@pytest.mark.parametrize("lora", [None, {**LORA, "dropout": 0.1}], ids=["full", "lora"])
def test_killed_and_continued_equals_uninterrupted(
    tiny_model: Model, tmp_path: Path, prompts: Path, brief: str, lora: dict[str, Any] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(rl.answers, "ANSWERS_PER_STEP", 24)
    config = {"reward_function": brief, "rounds": 2, "lora": lora}
    straight = train(config, tiny_model, Runs(tmp_path / "straight"), prompts)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rl.best_of_n"])
    # held out: 1 step; a round: 3 steps
    for kill_at, left in (("sample 3", 1), ("train_end", 3), ("sample 2", 3), ("3", 3), ("finish", 3)):
        process = context.Process(
            target=_run_and_die, args=(config, tiny_model, prompts, tmp_path / "killed", kill_at)
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, kill_at
        (run,) = Runs(tmp_path / "killed").all()
        assert len(list((run.path / "checkpoints/round-1/samples").iterdir())) == left, kill_at
    continued = train(config, tiny_model, Runs(tmp_path / "killed"), prompts)
    assert continued.id == straight.id and len(continued.record.continued_at) == 5
    assert not (continued.path / "checkpoints").exists()
    assert_same(continued, straight)
    for name in ("samples.jsonl", "demonstrations.jsonl"):
        assert (continued.path / name).read_bytes() == (straight.path / name).read_bytes()
    if lora:  # the adapter goes onto the policy itself, whatever the number of rounds
        import peft

        base = load_policy(tiny_model)
        merged = peft.PeftModel.from_pretrained(base, str(continued.path / "adapter")).merge_and_unload()
        saved = load_file(continued.path / "model" / "model.safetensors")
        of_adapter = merged.state_dict()
        assert all(torch.allclose(of_adapter[name], weight, atol=1e-5) for name, weight in saved.items())


# --- settings, and in a round


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"samples_per_prompt": 1}, "greater than or equal to 2"),
        ({"max_response_tokens": 300}, "max_sequence_tokens must leave room"),
        ({"evaluate_every_updates": 3}, "evaluate_every_updates is about a held-out loss"),
        ({"keep_fraction": 0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        BestOfNConfig(**{"prompts": "x", **CONFIG, **settings})


def test_what_is_looked_at_before(
    tiny_model: Model, prompts: Path, brief: str, preferences: Path, runs: Runs
) -> None:
    def check(**sections: Any) -> None:
        check_round(
            RoundConfig.model_validate({"model": str(tiny_model.folder), **sections}), runs, "best_of_n"
        )

    rl = {**CONFIG, "prompts": str(prompts)}
    check(rl={**rl, "reward_function": brief, "trainer": {"neftune_noise_alpha": 5}})
    with pytest.raises(
        UsageError, match="no reward section, which `accord best_of_n` needs: its scores choose"
    ):
        check(rl=rl, preferences=str(preferences))
    with pytest.raises(UsageError, match=r"rl.trainer.neftune: SFTConfig has no such argument"):
        check(rl={**rl, "reward_function": brief, "trainer": {"neftune": 5}})
    with pytest.raises(UsageError, match=r"rl.trainer.packing: accord sets this one"):
        check_arguments({"packing": True})


def test_a_round_with_best_of_n_reaches_the_gate(
    tiny_model: Model, prompts: Path, preferences: Path, tmp_path: Path
) -> None:
    held = [{"prompt": [{"role": "user", "content": f"Held out {i}?"}]} for i in range(4)]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    config = {
        "model": str(tiny_model.folder), "sampling": {"engine": "transformers"}, "preferences": str(preferences),
        "reward": {"rows_per_update": 16, "max_sequence_tokens": 300, "minimum_pairs": 4},
        "rl": {**CONFIG, "prompts": str(prompts)},
        "eval": {
            "prompts": str(tmp_path / "eval.jsonl"), "max_response_tokens": 4, "samples_per_prompt": 1,
            "bootstrap_resamples": 999, "suites": [], "gate": {"eos_rate": {"margin": 1.0}},
        },
    }  # fmt: skip
    (tmp_path / "round.yaml").write_text(json.dumps(config))
    where, file = ["--runs", str(tmp_path / "runs")], str(tmp_path / "round.yaml")
    runs = Runs(tmp_path / "runs")
    done = CliRunner().invoke(main, [*where, "round", file], catch_exceptions=False)
    stages = {run.record.stage: run for run in runs.all()}
    assert stages.keys() >= {"reward", "best_of_n", "eval"}, done.output
    assert stages["eval"].is_done and stages["eval"].record.parents["candidate"] == stages["best_of_n"].id
    assert stages["best_of_n"].record.parents == {"reward_model": stages["reward"].id}
    candidate = Model("", stages["best_of_n"].path / "model", "", stages["best_of_n"].id)
    learned = f"{stages['best_of_n'].id}/demonstrations.jsonl"
    assert {learned, str(prompts)} <= {name for name, _ in training_data(candidate, runs).files}
    assert "Policy optimisation (BEST OF N)" in run_page(stages["best_of_n"], runs)
    again = CliRunner().invoke(main, [*where, "best_of_n", file], catch_exceptions=False)
    assert again.exit_code == 0 and stages["best_of_n"].id in again.output
