import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import every_trainer_calls, run_stage
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from accord.chat.tokens import answer, encode_conversation
from accord.errors import DataError
from accord.models.loading import load_tokenizer
from accord.models.references import Model, resolve
from accord.packing import Packed, hidden_states
from accord.records import Message, Preference, question_id, read_jsonl
from accord.runs import Run, Runs
from accord.text_files import write_jsonl
from reward.choices import repeated_pairs
from reward.data import split_by_prompt, usable_pairs
from reward.score import load_scorer, score, score_ids_by_head
from reward.trainer import initialise_heads

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = {
    "epochs": 1, "learning_rate": 1e-3, "rows_per_update": 8, "rows_per_pass": 8, "max_sequence_tokens": 300,
    "checkpoint_every_updates": 100, "seed": 3,
}  # fmt: skip


def pair(prompt: str, chosen: str = "good", rejected: str = "bad") -> Preference:
    return Preference(
        prompt=[Message(role="user", content=prompt)], chosen=answer(chosen), rejected=answer(rejected)
    )


@pytest.fixture(scope="module")
def trained(
    tiny_model: Model, preference_rows: list[Preference], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    folder = tmp_path_factory.mktemp("trained")
    write_jsonl(folder / "preferences.jsonl", preference_rows)
    config = {**CONFIG, "epochs": 4}
    return run_stage("reward", config, tiny_model, folder / "preferences.jsonl", Runs(folder / "runs"))


@pytest.fixture(scope="module")
def trained_model(trained: Run) -> Model:
    return resolve(f"run:{trained.id}", Runs(trained.path.parent))


# --- scores


def conversations() -> list[list[Message]]:
    """Sixteen of very different lengths."""
    return [
        [Message(role="user", content=f"Ask {i}"), *answer("please " * (i * i % 17) + f"{i}")]
        for i in range(16)
    ]


def test_a_score_depends_on_its_own_conversation_only(trained_model: Model) -> None:
    model = trained_model
    together = score(model, conversations(), conversations_per_batch=16)
    assert score(model, conversations(), conversations_per_batch=1) == pytest.approx(together, abs=1e-5)
    assert score(model, conversations()[::-1], conversations_per_batch=5) == pytest.approx(
        together[::-1], abs=1e-5
    )
    assert max(together) - min(together) > 0.1  # they do differ


@pytest.mark.parametrize("rows_per_batch", [1, 16])
def test_padding_changes_no_score(trained_model: Model, rows_per_batch: int) -> None:
    model = trained_model
    tokenizer = load_tokenizer(model)
    rows = [encode_conversation(tokenizer, messages).input_ids for messages in conversations()]
    padded = score_ids_by_head(load_scorer(model), tokenizer, rows, rows_per_batch)
    assert [of_heads[0] for of_heads in padded] == pytest.approx(score(model, conversations()), abs=1e-5)


def test_a_score_is_read_at_the_last_token_also_where_that_is_what_pads(trained_model: Model) -> None:
    """As it is where a tokenizer pads with EOS: transformers' own classifier would read the token before."""
    tokenizer = load_tokenizer(trained_model)
    tokenizer.pad_token = tokenizer.eos_token
    scorer = load_scorer(trained_model)
    rows = [encode_conversation(tokenizer, messages).input_ids for messages in conversations()]
    right = score(trained_model, conversations())
    scorer.config.pad_token_id = tokenizer.pad_token_id
    assert [of_heads[0] for of_heads in score_ids_by_head(scorer, tokenizer, rows)] == pytest.approx(
        right, abs=1e-5
    )
    scorer.config.pad_token_id = None
    assert [of_heads[0] for of_heads in score_ids_by_head(scorer, tokenizer, rows)] == pytest.approx(
        right, abs=1e-5
    )


def test_a_score_is_the_head_at_the_last_turn_s_eos(trained_model: Model) -> None:
    """By hand: the last hidden state at the EOS, times the head's weights."""
    model = trained_model
    head = load_file(model.folder / "model.safetensors")["score.weight"][0]
    body = AutoModel.from_pretrained(model.folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    for messages, value in zip(conversations(), score(model, conversations()), strict=True):
        text = (
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            f"<|im_start|>user\n{messages[0].content}<|im_end|>\n<|im_start|>assistant\n{messages[1].content}<|im_end|>"
        )
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        assert ids[0, -1] == tokenizer.eos_token_id
        with torch.inference_mode():
            by_hand = body(ids).last_hidden_state[0, -1] @ head
        assert value == pytest.approx(float(by_hand), abs=1e-5)


def test_a_conversation_beyond_the_context_is_refused(trained_model: Model) -> None:
    model = trained_model
    long = [Message(role="user", content="x" * 1000), *answer("y")]
    with pytest.raises(DataError, match="conversation 2 has 1099 tokens and the reward model reads 1024"):
        score(model, [conversations()[0], long])


def test_nothing_to_score(trained_model: Model) -> None:
    assert score(trained_model, []) == []


# --- the split


def test_a_prompt_is_never_on_both_sides() -> None:
    rows = [pair(f"prompt {i % 20}", chosen=f"good {i}") for i in range(100)]
    train, heldout = split_by_prompt(rows, 0.25)
    of = lambda rows: {row.prompt[0].content for row in rows}  # noqa: E731
    assert not of(train) & of(heldout)
    assert len(of(heldout)) == 5  # 0.25 * 20
    assert len(train) + len(heldout) == 100
    assert len(heldout) == 25


def test_the_split_does_not_depend_on_order_or_process() -> None:
    rows = [pair(f"prompt {i}") for i in range(40)]
    of = lambda rows: sorted(row.prompt[0].content for row in rows)  # noqa: E731
    _, heldout = split_by_prompt(rows, 0.1)
    _, again = split_by_prompt(rows[::-1], 0.1)
    assert of(heldout) == of(again)
    import hashlib

    smallest = sorted(
        rows, key=lambda row: hashlib.sha256(f"user: {row.prompt[0].content}".encode()).hexdigest()
    )
    assert of(heldout) == of(smallest[:4])


def test_prompts_that_ask_the_same_are_on_one_side() -> None:
    """Other case, white space or system message make no other question; other words do."""
    spellings = ["Why is it  so?", "why is it so?", " Why is it so?\n", "WHY IS IT SO?"]
    for others in ([f"Other {i}?" for i in range(12)], [f"Another {i}?" for i in range(12)]):
        rows = [pair(text) for text in (*spellings, *others)]
        system = Message(role="system", content="Be brief.")
        rows.append(
            Preference(prompt=[system, *rows[0].prompt], chosen=rows[0].chosen, rejected=rows[0].rejected)
        )
        train, heldout = split_by_prompt(rows, 0.5)
        same = {id(rows[i]) for i in (0, 1, 2, 3, -1)}
        assert len({id(row) for row in train} & same) in (0, 5)
        assert len({question_id(row.prompt) for row in heldout}) == 7 and len(train) + len(heldout) == 17
    turns = [Message(role="user", content="a"), *answer("b"), Message(role="user", content="c")]
    assert question_id(turns) != question_id(turns[2:]) != question_id([Message(role="user", content="c?")])


def test_pairs_that_teach_nothing_are_counted(tiny_model: Model) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = str(tokenizer.chat_template).replace("['content']", "['content'].strip()")
    same = pair("p", chosen="Yes", rejected="no").model_copy(update={"rejected": answer("Yes ")})
    rows = [pair("p"), same, pair("p").model_copy(update={"weight": 0.0}), pair("p", chosen="long" * 30)]
    kept, dropped = usable_pairs(tokenizer, rows, 150)
    assert kept == rows[:1] and dropped == {"too_long": 1, "equal_once_encoded": 1, "weight_zero": 1}
    assert repeated_pairs([*rows, rows[0]]) == 2  # weights do not make another pair


def test_pairs_over_the_length_are_counted(tiny_model: Model, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    rows = [pair("p"), pair("p", chosen="long" * 30), pair("p", rejected="long" * 30)]
    both = [[*row.prompt, *turn] for row in rows for turn in (row.chosen, row.rejected)]
    lengths = [len(encode_conversation(tokenizer, messages).input_ids) for messages in both]
    none = {"too_long": 0, "equal_once_encoded": 0, "weight_zero": 0}
    assert usable_pairs(tokenizer, rows, max(lengths)) == (rows, none)
    assert usable_pairs(tokenizer, rows, max(lengths) - 1) == (rows[:1], none | {"too_long": 2})
    rows = [pair(f"prompt {i}", f"good {i}") for i in range(30)] + [pair("prompt 3", chosen="long" * 30)]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    config = {**CONFIG, "max_sequence_tokens": 200}
    run = run_stage("reward", config, tiny_model, tmp_path / "pairs.jsonl", Runs(tmp_path / "runs"))
    assert {reason: count for reason, count in run.record.dropped.items() if count} == {"too_long": 1}
    assert run.metrics["pairs"] + run.metrics["heldout_pairs"] == 30


def test_too_few_pairs(tiny_model: Model, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", [pair(f"prompt {i}") for i in range(10)])
    with pytest.raises(
        DataError,
        match=r"pairs\.jsonl: leaves 8 pairs to train on and 2 held out; at least 20 and 1 are needed, so collect at "
        r"least 25 in all. Of an accuracy of 70%, it takes 405 pairs for 95% intervals of 10 points either way and "
        r"1,615 pairs",
    ):
        run_stage("reward", CONFIG, tiny_model, tmp_path / "pairs.jsonl", Runs(tmp_path / "runs"))


# --- the head and the training


def test_the_head_starts_with_variance_one_over_d_plus_one() -> None:
    head = torch.nn.Linear(40_000, 1, bias=False)
    initialise_heads(head, seed=0)
    first = head.weight.detach().clone()
    assert float(first.var()) == pytest.approx(
        1 / 40_001, rel=0.03
    )  # relative error of a variance: sqrt(2 / 40000)
    assert abs(float(first.mean())) < 4 / 200 / 200  # four standard errors
    initialise_heads(head, seed=0)
    assert torch.equal(head.weight, first)
    initialise_heads(head, seed=1)
    assert not torch.equal(head.weight, first)


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}])
def test_the_trained_head_is_that_head(
    tiny_model: Model, preferences: Path, runs: Runs, lora: dict[str, Any] | None
) -> None:
    """At a learning rate of nearly zero the saved head is the initial one; at a real one it has moved."""
    expected = torch.nn.Linear(64, 1, bias=False)
    initialise_heads(expected, seed=3)
    heads = []
    for rate in (1e-12, 1e-2):
        run = run_stage(
            "reward", {**CONFIG, "lora": lora, "learning_rate": rate}, tiny_model, preferences, runs
        )
        heads.append(load_file(run.path / "model" / "model.safetensors")["score.weight"])
    torch.testing.assert_close(heads[0], expected.weight.detach(), atol=1e-7, rtol=0)
    assert (heads[1] - heads[0]).abs().max() > 1e-3


def test_it_learns_what_is_preferred(
    trained: Run, trained_model: Model, preference_rows: list[Preference]
) -> None:
    figures = trained.metrics
    assert figures["heldout_accuracy"] >= 0.9
    _, heldout = split_by_prompt(preference_rows, 0.2)
    assert figures["heldout_pairs"] == len(heldout) == 8  # 4 of 20 prompts, two pairs each
    # the figures again, from single scores
    model = trained_model
    margins = [
        score(model, [[*r.prompt, *r.chosen]])[0] - score(model, [[*r.prompt, *r.rejected]])[0]
        for r in heldout
    ]
    assert figures["mean_reward_margin"] == pytest.approx(sum(margins) / 8, abs=1e-4)
    assert figures["heldout_accuracy"] == sum(m > 0 for m in margins) / 8
    longer = [len(r.chosen[0].content) > len(r.rejected[0].content) for r in heldout]
    assert figures["prefer_longer_accuracy"] == sum(longer) / 8


def rewards_of(model: Any, answers: list[list[int]]) -> list[float]:
    """The scores of a model in training, by hand: one sequence at a time, head times state at the last token."""
    body = model.model
    with torch.no_grad():
        states = [hidden_states(body, Packed.of([ids]))[-1] for ids in answers]
        return [float(model.score(state)[0]) for state in states]


def test_the_first_loss_is_bradley_terry_with_centering(
    tiny_model: Model, preferences: Path, tmp_path: Path
) -> None:
    """Of the first update's 8 prompts, two pairs each: the mean of -log sigmoid(c - r) over the pairs, and 0.01 times
    the mean over prompts of (2 mean score)^2."""
    tokenizer = load_tokenizer(tiny_model)
    expected = []

    def look(train_dataloader: Any, model: Any, **_: Any) -> None:
        state = torch.get_rng_state()
        batch = next(iter(train_dataloader))
        torch.set_rng_state(state)
        losses, penalties = [], []
        for answers in batch["answers"]:
            a, b, c, d = rewards_of(model, [ids.tolist() for ids in answers])
            losses += [math.log1p(math.exp(b - a)), math.log1p(math.exp(d - c))]
            penalties.append((2 * (a + b + c + d) / 4) ** 2)
            texts.append([tokenizer.decode(ids) for ids in answers])
        expected.append(sum(losses) / 16 + 0.01 * sum(penalties) / 8)

    texts: list[list[str]] = []
    with every_trainer_calls("train_begin", look):
        run = run_stage("reward", CONFIG, tiny_model, preferences, Runs(tmp_path / "runs"))
    first = next(row for row in run.metric_rows() if "loss" in row)
    assert first["loss"] == pytest.approx(expected[0], abs=1e-5)
    # and a row holds whole conversations as `accord.chat` encodes them, each chosen answer before the other
    for first_chosen, first_rejected, second_chosen, second_rejected in texts:
        assert "please" in first_chosen and "please please" in second_chosen
        assert "now" in first_rejected and "now" in second_rejected
        assert len({text.split("<|im_start|>assistant")[0] for text in (first_chosen, second_rejected)}) == 1


def test_the_first_loss_weighs_pairs_by_their_share_of_the_mean_weight(
    tiny_model: Model, preferences: Path, tmp_path: Path
) -> None:
    """One batch with weights from 1/8 to 8/8: pairs count by their share of the mean, centring does not."""
    rows = read_jsonl(preferences, Preference)[:10]
    weighted = [row.model_copy(update={"weight": (1 + i % 8) / 8}) for i, row in enumerate(rows)]
    train, _ = split_by_prompt(weighted, 0.2)
    mean = sum(row.weight or 0 for row in train) / len(train)
    write_jsonl(tmp_path / "weighted.jsonl", weighted)
    tokenizer = load_tokenizer(tiny_model)
    losses = []

    def look(model: Any, **_: Any) -> None:
        for row in train:
            sides = [[*row.prompt, *side] for side in (row.chosen, row.rejected)]
            c, r = rewards_of(model, [encode_conversation(tokenizer, side).input_ids for side in sides])
            losses.append((row.weight or 0) / mean * math.log1p(math.exp(r - c)) + 0.01 * (c + r) ** 2)

    config = {
        **CONFIG,
        "rows_per_update": len(train),
        "rows_per_pass": len(train),
        "heldout_fraction": 0.2,
        "minimum_pairs": 1,
    }
    with every_trainer_calls("train_begin", look):
        run = run_stage("reward", config, tiny_model, tmp_path / "weighted.jsonl", Runs(tmp_path / "runs"))
    first = next(row for row in run.metric_rows() if "loss" in row)
    assert first["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def contradicted(preferences: Path, weight: float, path: Path) -> list[Preference]:
    """Every pair, and its opposite with this weight, to 1 in all."""
    rows = read_jsonl(preferences, Preference)
    doubted = [row.model_copy(update={"weight": 1 - weight}) for row in rows]
    turned = [
        row.model_copy(update={"weight": weight, "chosen": row.rejected, "rejected": row.chosen})
        for row in rows
    ]
    write_jsonl(path, [*doubted, *turned])
    return rows


def test_of_contradicting_pairs_the_heavier_is_learned(
    tiny_model: Model, preferences: Path, tmp_path: Path
) -> None:
    rows = contradicted(preferences, 0.1, tmp_path / "pairs.jsonl")
    runs = Runs(tmp_path / "runs")
    run = run_stage("reward", {**CONFIG, "epochs": 6}, tiny_model, tmp_path / "pairs.jsonl", runs)
    assert run.metrics["contradictory_pairs"] == 80
    model = resolve(f"run:{run.id}", runs)
    chosen = score(model, [[*row.prompt, *row.chosen] for row in rows])
    rejected = score(model, [[*row.prompt, *row.rejected] for row in rows])
    assert sum(c - r for c, r in zip(chosen, rejected, strict=True)) / len(rows) > 0.5


def test_pairs_of_one_answer_against_one_other_are_refused(
    tiny_model: Model, tmp_path: Path, runs: Runs
) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", [pair(f"prompt {i}") for i in range(40)])
    with pytest.raises(
        DataError, match="all 32 pairs to train on choose the same answer over the same other one"
    ):
        run_stage("reward", CONFIG, tiny_model, tmp_path / "pairs.jsonl", runs)


def test_pairs_that_all_contradict_each_other_are_refused(
    tiny_model: Model, preferences: Path, tmp_path: Path
) -> None:
    contradicted(preferences, 0.5, tmp_path / "pairs.jsonl")
    with pytest.raises(
        DataError, match="each of the 64 pairs to train on has its opposite with the same weight"
    ):
        run_stage("reward", CONFIG, tiny_model, tmp_path / "pairs.jsonl", Runs(tmp_path / "runs"))


def test_the_saved_model_loads_with_transformers_alone(trained_model: Model) -> None:
    folder = trained_model.folder
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == tokenizer.pad_token_id
    texts = [
        tokenizer.apply_chat_template([m.model_dump() for m in messages], tokenize=False)
        for messages in conversations()
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    with torch.inference_mode():
        values = (
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].tolist()
        )
    assert values == pytest.approx(score(trained_model, conversations()), abs=1e-5)
    assert not list(folder.glob("*.bin"))
