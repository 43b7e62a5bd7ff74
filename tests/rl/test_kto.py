"""KTO: the paper's loss in closed form, the tokens that are learned, and the rows left out."""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from training_helpers import every_trainer_calls, run_stage

from accord.chat.tokens import answer, encode_conversation, encode_prompt
from accord.errors import DataError, UsageError
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model
from accord.page.render import run_page
from accord.preflight import check_round
from accord.records import Comparison, Message, Preference, Ranking, Response, UnpairedFeedback, read_jsonl
from accord.round import run_round
from accord.round_config import RoundConfig
from accord.runs import DataFile, Run, Runs
from accord.text_files import write_jsonl
from eval.checks.contamination import contamination, training_data
from eval.measuring.annotators import annotators_behind
from eval.promotion import promote
from feedback.belief.labels import desirable_or_not
from reward.data import split_by_prompt
from rl import kto
from rl.config import KTOConfig
from rl.unpaired import contradictory, encode_unpaired, spread_out, unpaired

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = {
    "epochs": 1, "learning_rate": 1e-3, "rows_per_update": 8, "rows_per_pass": 4, "max_sequence_tokens": 300,
    "checkpoint_every_updates": 100, "seed": 3,
}  # fmt: skip


def row(prompt: str, completion: str, label: bool, **columns: Any) -> UnpairedFeedback:
    return UnpairedFeedback(
        prompt=[Message(role="user", content=prompt)], completion=answer(completion), label=label, **columns
    )


def train_on(rows: Sequence[UnpairedFeedback], model: Model, folder: Path, **settings: Any) -> Run:
    write_jsonl(folder / "feedback.jsonl", rows)
    config = KTOConfig(algorithm="kto", feedback=str(folder / "feedback.jsonl"), **{**CONFIG, **settings})
    return kto.train_kto(config, Runs(folder / "runs"), model)


@pytest.fixture
def rows() -> list[UnpairedFeedback]:
    """Thirty answers to twenty prompts; those that say please are desirable."""
    return [
        row(f"Ask {i % 20}", ("please " if i % 3 == 0 else "now ") * (1 + i % 4) + str(i), i % 3 == 0)
        for i in range(30)
    ]


# --- the loss


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8, "dropout": 0.1}])
def test_the_first_loss_is_one_half(
    tiny_model: Model, preferences: Path, runs: Runs, lora: dict[str, Any] | None
) -> None:
    """Before the first update policy and reference are the same: 1 - sigmoid(0), whatever the label."""
    run = run_stage("kto", {**CONFIG, "lora": lora, "warmup_fraction": 0}, tiny_model, preferences, runs)
    losses = [each["loss"] for each in run.metric_rows() if "loss" in each]
    assert run.metrics["first_loss"] == losses[0] == pytest.approx(0.5, abs=1e-6)
    assert losses[1] != pytest.approx(0.5, abs=1e-4)
    assert run.metrics["heldout_loss"] < 0.5 and run.metrics["heldout_reward_margin"] > 0


def log_probability(model: torch.nn.Module, prompt: list[int], response: list[int]) -> float:
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return sum(float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(response))


def test_the_heldout_loss_is_that_of_the_paper(
    tiny_model: Model, rows: list[UnpairedFeedback], tmp_path: Path
) -> None:
    """Equations 7 and 8 of Ethayarajh et al. from the saved model, with ids made by hand; three rows a pass."""
    run = train_on(
        rows, tiny_model, tmp_path, kl_coefficient=0.3, rows_per_update=3, rows_per_pass=3, desirable_weight=1.5,
        undesirable_weight=0.8, heldout_fraction=0.2,
    )  # fmt: skip
    policy, reference = load_policy(Model("", run.path / "model", "")).eval(), load_policy(tiny_model).eval()
    tokenizer = load_tokenizer(tiny_model)
    _, part = split_by_prompt(rows, 0.2)
    heldout = spread_out(part, 3)
    assert len(heldout) == run.metrics["heldout_rows"] and len(heldout) % 3 != 0

    def log_ratio(question: UnpairedFeedback, said: UnpairedFeedback) -> float:
        prompt = tokenizer(
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            f"<|im_start|>user\n{question.prompt[0].content}<|im_end|>\n<|im_start|>assistant\n"
        )["input_ids"]
        ids = tokenizer(said.completion[0].content + "<|im_end|>")["input_ids"]
        return log_probability(policy, prompt, ids) - log_probability(reference, prompt, ids)

    losses, rewards = [], {True: [], False: []}
    for start in range(0, len(heldout), 3):
        batch = heldout[start : start + 3]
        before = [heldout[start - 1]] if len(batch) == 1 else [batch[-1], *batch[:-1]]
        z = max(0.0, sum(log_ratio(a, b) for a, b in zip(batch, before, strict=True)) / len(batch))
        for each in batch:
            h = log_ratio(each, each)
            value = 0.3 * (h - z if each.label else z - h)
            losses.append((1.5 if each.label else 0.8) * (1 - 1 / (1 + math.exp(-value))))
            rewards[each.label].append(0.3 * h)
    assert run.metrics["heldout_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    margin = sum(rewards[True]) / len(rewards[True]) - sum(rewards[False]) / len(rewards[False])
    assert run.metrics["heldout_reward_margin"] == pytest.approx(margin, abs=1e-4)
    assert margin > 0.1  # it learned


# --- what is learned


def test_the_trainer_sees_the_tokens_of_accord_chat(
    tiny_model: Model, rows: list[UnpairedFeedback], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny_model)
    seen, others = set(), []

    def look(train_dataloader: Any, **_: Any) -> None:
        for batch in train_dataloader:
            for kind, found in (("", seen), ("KL_", others)):
                for ids, mask, completion, label in zip(
                    batch[f"{kind}input_ids"], batch[f"{kind}attention_mask"].bool(),
                    batch[f"{kind}completion_mask"].bool(), batch["label"].tolist(), strict=True,
                ):  # fmt: skip
                    each = (tuple(ids[mask & ~completion].tolist()), tuple(ids[completion].tolist()), label)
                    found.add(each) if isinstance(found, set) else found.append(each)

    with every_trainer_calls("train_begin", look):
        train_on(rows, tiny_model, tmp_path, rows_per_update=5, rows_per_pass=5)
    train, _ = split_by_prompt(rows, 0.2)
    expected = set()
    for each in train:
        prompt = encode_prompt(tokenizer, each.prompt)
        whole = encode_conversation(tokenizer, [*each.prompt, *each.completion]).input_ids
        assert whole[: len(prompt)] == prompt and whole[-1] == tokenizer.eos_token_id
        expected.add((tuple(prompt), tuple(whole[len(prompt) :]), each.label))
    assert seen == expected and len(seen) == len(train)
    # for the KL: the same answers, each to a prompt that it does not answer
    assert sorted(answer for _, answer, _ in others) == sorted(answer for _, answer, _ in seen)
    assert not {(prompt, answer) for prompt, answer, _ in others} & {(p, a) for p, a, _ in seen}


def test_a_cut_off_answer_has_no_end_and_a_single_row_borrows_an_answer(tiny_model: Model) -> None:
    tokenizer = load_tokenizer(tiny_model)
    given = [row("a", "one", True), row("b", "two and", False, truncated=True), row("c", "three", True)]
    encoded = list(encode_unpaired(tokenizer, given, 2))
    texts = [tokenizer.decode(each["completion_ids"]) for each in encoded]
    assert texts == ["one<|im_end|>", "two and", "three<|im_end|>"]
    assert [tokenizer.decode(each["KL_completion_ids"]) for each in encoded] == [
        "two and", "one<|im_end|>", "two and",
    ]  # fmt: skip


def test_answers_to_one_prompt_stand_apart() -> None:
    given = [row(f"Ask {i // 2}", str(i), i % 2 == 0) for i in range(40)]
    order = spread_out(given, 0)
    assert sorted(each.completion[0].content for each in order) == sorted(str(i) for i in range(40))
    assert all(a.prompt != b.prompt for a, b in pairwise(order))
    assert 5 < sum(each.label for each in order[:20]) < 15  # neither kind comes first
    assert spread_out(given, 0) == order != spread_out(given, 1)


def test_rows_over_the_length_are_counted_or_all_refused(tiny_model: Model, tmp_path: Path) -> None:
    given = [row(f"Ask {i}", "a" * (1 + 20 * i), i % 2 == 0) for i in range(10)]
    tokenizer = load_tokenizer(tiny_model)
    longest = len(encode_conversation(tokenizer, [*given[6].prompt, *given[6].completion]).input_ids)
    run = train_on(given, tiny_model, tmp_path, max_sequence_tokens=longest, heldout_fraction=0.3)
    assert run.record.dropped == {"too_long": 3}
    with pytest.raises(DataError, match=r"leaves 0 answers to train on and 0 held out, .* 10 were longer"):
        train_on(given, tiny_model, tmp_path, max_sequence_tokens=8)


# --- where the labels come from


def test_the_round_s_pairs_are_used_where_no_file_is_named(
    tiny_model: Model, preferences: Path, runs: Runs
) -> None:
    run = run_stage("kto", CONFIG, tiny_model, preferences, runs)
    dpo = run_stage("dpo", CONFIG, tiny_model, preferences, runs)
    assert run.metrics["desirable_rows"] == run.metrics["undesirable_rows"] == dpo.metrics["pairs"] == 32
    assert run.metrics["heldout_rows"] == 16 and run.metrics["contradictory_rows"] == 0
    pair = read_jsonl(preferences, Preference)[0]
    assert [(each.completion, each.label) for each in unpaired(pair)] == [
        (pair.chosen, True), (pair.rejected, False),
    ]  # fmt: skip


def rated(*ratings: int, harmful: list[int] | None = None, **columns: Any) -> Ranking:
    return Ranking(
        annotator=str(columns.pop("annotator", "ann")), ranks=[1] * len(ratings), harmful=harmful,
        ratings=[{"helpful": value, "true": value} for value in ratings], **columns,
    )  # fmt: skip


def comparison(id_: str, rankings: list[Ranking], **columns: Any) -> Comparison:
    return Comparison(
        id=id_, prompt=[Message(role="user", content=f"Ask {id_}")], rankings=rankings,
        responses=[Response(text=f"{id_} {i}", run="r", seed=i, truncated=i == 1) for i in range(3)], **columns,
    )  # fmt: skip


def test_ratings_and_harm_flags_become_labels() -> None:
    rows, counts = desirable_or_not(
        [
            comparison("means", [rated(5, 1, 3), rated(3, 3, 3, annotator="bob")], topic="x"),
            comparison("harm", [rated(5, 5, 5, harmful=[0, 1]), rated(5, 5, 5, harmful=[0], annotator="bob")]),
            comparison("settled", [rated(1, 1, 1), rated(5, 2, 3, annotator="eve", adjudicates=True)]),
            comparison("unasked", [Ranking(annotator="ann", ranks=[1, 2, 3])]),
            comparison("drafts", [rated(5, 5, 5, status="draft")]),
            comparison("gold", [rated(5, 5, 5)], gold_ranks=[1, 2, 3]),
        ]
    )  # fmt: skip
    assert {each.id: each.label for each in rows} == {
        "means:0": True, "means:1": False, "harm:0": False, "harm:1": True, "harm:2": True, "settled:0": True,
        "settled:1": False,
    }  # fmt: skip
    assert counts == {
        "desirable": 4, "undesirable": 3, "middling": 2, "unrated": 6, "empty": 0, "probe": 3,
    }  # fmt: skip
    assert rows[0].model_extra == {"topic": "x"} and [each.truncated for each in rows[:2]] == [False, True]


def test_kto_learns_from_a_feedback_run_s_ratings(tiny_model: Model, runs: Runs, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "c.jsonl", [comparison(str(i), [rated(5, 1, 3)]) for i in range(10)])
    config = KTOConfig(algorithm="kto", labels="ratings", **CONFIG)
    run = kto.train_kto(config, runs, tiny_model, DataFile(tmp_path / "c.jsonl"))
    assert run.metrics["desirable_rows"] == run.metrics["undesirable_rows"] == 8
    assert run.record.dropped == {"middling": 10, "unrated": 0, "empty": 0, "probe": 0, "too_long": 0}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([row("a", "b", True)], "has no undesirable answer \\(1 of the other kind\\); KTO learns from both"),
        ([row("a", "b", False)], "has no desirable answer"),
    ],
)
def test_one_kind_alone_is_refused(
    given: list[UnpairedFeedback], says: str, tiny_model: Model, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=says):
        train_on(given, tiny_model, tmp_path)


def test_an_answer_that_is_called_both_is_counted() -> None:
    assert contradictory([row("a", "b", True), row("a", "b", False), row("a", "c", True)]) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": "perhaps"}, "label: Input should be a valid boolean"),
        (
            {"completion": [{"role": "user", "content": "x"}]},
            "completion: must begin and end with the assis",
        ),
        ({"labl": True, "label": None}, "unknown column 'labl'; did you mean 'label'"),
    ],
)
def test_a_bad_row_is_named(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    values = {
        "prompt": [{"role": "user", "content": "?"}],
        "completion": [{"role": "assistant", "content": "!"}],
    }
    given = {name: value for name, value in {**values, "label": True, **change}.items() if value is not None}
    write_jsonl(tmp_path / "f.jsonl", [given])
    with pytest.raises(DataError, match=r"f.jsonl:1: ") as refused:
        read_jsonl(tmp_path / "f.jsonl", UnpairedFeedback)
    assert says in str(refused.value) or "label: Field required" in str(refused.value)


# --- settings


@pytest.mark.parametrize(
    ("desirable", "undesirable", "weights", "says"),
    [
        (30, 30, (1, 1), None),
        (40, 30, (1, 1), None),
        (30, 90, (3, 1), None),
        (41, 30, (1, 1), "weigh 1.37 : 1, .*desirable_weight between 0.73 and 0.98"),
        (30, 90, (1, 1), "weigh 0.33 : 1, .*desirable_weight between 3.00 and 4.00"),
        (30, 30, (1, 2), "weigh 0.50 : 1, .*desirable_weight between 2.00 and 2.67"),
    ],
)
def test_advice_on_the_balance(
    desirable: int, undesirable: int, weights: tuple[float, float], says: str | None
) -> None:
    config = KTOConfig(algorithm="kto", desirable_weight=weights[0], undesirable_weight=weights[1])
    said = kto.balance_advice(desirable, undesirable, config)
    if says is None:
        assert said is None
    else:
        assert said and re.search(says, said)


def test_the_advice_is_printed(
    tiny_model: Model, rows: list[UnpairedFeedback], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_on(rows, tiny_model, tmp_path)
    assert "undesirable answers weigh" in capsys.readouterr().out


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ValidationError, match="labels: ratings is about the round's preferences"):
        KTOConfig(algorithm="kto", feedback="x", labels="ratings")
    with pytest.raises(ValidationError, match="rows_per_pass"):
        KTOConfig(algorithm="kto", rows_per_pass=1)
    with pytest.raises(UsageError, match=r"rl.trainer.beta: accord sets this one"):
        kto.check_arguments({"beta": 1})


def test_what_is_looked_at_before(
    tiny_model: Model, rows: list[UnpairedFeedback], preferences: Path, runs: Runs, tmp_path: Path
) -> None:
    def check(**sections: Any) -> None:
        check_round(RoundConfig.model_validate({"model": str(tiny_model.folder), **sections}), runs, "kto")

    write_jsonl(tmp_path / "feedback.jsonl", rows)
    check(rl={"algorithm": "kto", "feedback": str(tmp_path / "feedback.jsonl")})
    check(rl={"algorithm": "kto"}, preferences=str(preferences))
    with pytest.raises(DataError, match=r"^rl.feedback: .*preferences.jsonl:1: "):
        check(rl={"algorithm": "kto", "feedback": str(preferences)})
    with pytest.raises(DataError, match=r"holds pairs, and rl.labels: ratings reads comparisons"):
        check(rl={"algorithm": "kto", "labels": "ratings"}, preferences=str(preferences))
    with pytest.raises(UsageError, match="`accord kto` needs preferences"):
        check(rl={"algorithm": "kto"})
    write_jsonl(tmp_path / "good.jsonl", [each for each in rows if each.label])
    with pytest.raises(DataError, match=r"^rl.feedback: .*good.jsonl: has no undesirable answer"):
        check(rl={"algorithm": "kto", "feedback": str(tmp_path / "good.jsonl")})
    asked = {"prompts": "bundled:demo/prompts.train.jsonl", "task": "ranking"}
    with pytest.raises(UsageError, match=r"rl.labels: is ratings, and feedback.task: ranking asks for none"):
        check(rl={"algorithm": "kto", "labels": "ratings"}, feedback=asked)
    write_jsonl(tmp_path / "c.jsonl", [comparison(str(i), [rated(5, 1, 3)]) for i in range(4)])
    check(rl={"algorithm": "kto", "labels": "ratings"}, preferences=str(tmp_path / "c.jsonl"))
    with pytest.raises(DataError, match="holds comparisons"):
        check(rl={"algorithm": "kto"}, preferences=str(tmp_path / "c.jsonl"))


# --- in a round


def test_a_round_with_kto_is_judged_reported_and_promoted(
    tiny_model: Model, rows: list[UnpairedFeedback], runs: Runs, tmp_path: Path
) -> None:
    """Without a reward model, and with the labels' file among what the candidate was trained on."""
    write_jsonl(tmp_path / "feedback.jsonl", rows)
    asked = [{"prompt": [{"role": "user", "content": f"Held out {i}?"}]} for i in range(4)]
    write_jsonl(tmp_path / "prompts.jsonl", asked)
    config = RoundConfig.model_validate(
        {
            "model": str(tiny_model.folder), "sampling": {"engine": "transformers"},
            "rl": {"algorithm": "kto", "feedback": str(tmp_path / "feedback.jsonl"), **CONFIG},
            "eval": {
                "prompts": str(tmp_path / "prompts.jsonl"), "max_response_tokens": 4, "samples_per_prompt": 1,
                "bootstrap_resamples": 999, "suites": [], "gate": {"eos_rate": {"margin": 1.0}},
            },
        }
    )  # fmt: skip
    verdict = run_round(config, runs)
    (trained,) = [run for run in runs.all() if run.record.stage == "kto"]
    assert verdict.record.parents == {"candidate": trained.id}
    assert "Policy optimisation (KTO)" in run_page(trained, runs)
    assert "Held-out desirable answers: log-probability after" in run_page(trained, runs)
    candidate = Model("", trained.path / "model", "", trained.id)
    assert [name for name, _ in training_data(candidate, runs).files] == [str(tmp_path / "feedback.jsonl")]
    told = contamination(candidate, runs, {"mine": [("x", rows[3].completion[0].content)]})
    assert told.suites[0].exact == 1
    assert annotators_behind([trained.id], runs) == {"unknown"}
    assert promote(verdict, runs, override="nothing but a test of it").model.startswith(f"run:{trained.id}")
