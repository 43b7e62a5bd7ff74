import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import every_trainer_calls, run_stage

from accord.chat.tokens import answer, encode_conversation, encode_prompt
from accord.errors import DataError
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model
from accord.records import Message, Preference, read_jsonl
from accord.runs import Runs
from accord.text_files import write_jsonl
from reward.data import split_by_prompt
from rl.pairs import encode_pairs

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = {
    "epochs": 2, "learning_rate": 1e-3, "rows_per_update": 8, "rows_per_pass": 4, "max_sequence_tokens": 300,
    "checkpoint_every_updates": 100, "seed": 3,
}  # fmt: skip


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8, "dropout": 0.1}])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_first_loss_is_ln_2(
    tiny_model: Model, preferences: Path, runs: Runs, lora: dict[str, Any] | None, precision: str
) -> None:
    """Before the first update policy and reference are the same: -log sigmoid(0) = ln 2, and every margin is 0."""
    config = {**CONFIG, "lora": lora, "precision": precision, "warmup_fraction": 0}
    run = run_stage("dpo", config, tiny_model, preferences, runs)
    rows = [row for row in run.metric_rows() if "loss" in row]
    assert run.metrics["first_loss"] == rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert rows[1]["loss"] != pytest.approx(math.log(2), abs=1e-4)
    assert run.metrics["heldout_loss"] < math.log(2)


def log_probability(model: torch.nn.Module, prompt: list[int], response: list[int]) -> float:
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return sum(float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(response))


def test_the_heldout_loss_is_that_of_the_paper(tiny_model: Model, preferences: Path, runs: Runs) -> None:
    """-log sigmoid(beta (log pi(c)/ref(c) - log pi(r)/ref(r))) from the saved model, with ids made by hand."""
    config = {**CONFIG, "kl_coefficient": 0.3, "rows_per_pass": 8}
    run = run_stage("dpo", config, tiny_model, preferences, runs)
    policy, reference = load_policy(Model("", run.path / "model", "")).eval(), load_policy(tiny_model).eval()
    tokenizer = load_tokenizer(tiny_model)
    _, heldout = split_by_prompt(read_jsonl(preferences, Preference), 0.2)
    assert len(heldout) == run.metrics["heldout_pairs"] == 8
    losses, margins = [], []
    for row in heldout:
        prompt = tokenizer(
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            f"<|im_start|>user\n{row.prompt[0].content}<|im_end|>\n<|im_start|>assistant\n"
        )["input_ids"]
        ratios = []
        for messages in (row.chosen, row.rejected):
            response = tokenizer(messages[0].content + "<|im_end|>")["input_ids"]
            ratios.append(
                log_probability(policy, prompt, response) - log_probability(reference, prompt, response)
            )
        margins.append(0.3 * (ratios[0] - ratios[1]))
        losses.append(math.log1p(math.exp(-margins[-1])))
    assert run.metrics["heldout_loss"] == pytest.approx(sum(losses) / 8, abs=1e-4)
    assert run.metrics["heldout_reward_margin"] == pytest.approx(sum(margins) / 8, abs=1e-4)
    assert run.metrics["heldout_accuracy"] == sum(m > 0 for m in margins) / 8
    assert sum(margins) / 8 > 0.1  # it learned


def test_the_trainer_sees_the_tokens_of_accord_chat(
    tiny_model: Model, preferences: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny_model)
    seen = set()

    def look(train_dataloader: Any, **_: Any) -> None:
        for batch in train_dataloader:
            for ids, mask, completion in zip(
                batch["input_ids"],
                batch["attention_mask"].bool(),
                batch["completion_mask"].bool(),
                strict=True,
            ):
                seen.add((tuple(ids[mask & ~completion].tolist()), tuple(ids[completion].tolist())))

    with every_trainer_calls("train_begin", look):
        run_stage("dpo", CONFIG, tiny_model, preferences, Runs(tmp_path / "runs"))
    train, _ = split_by_prompt(read_jsonl(preferences, Preference), 0.2)
    expected = set()
    for row in train:
        prompt = encode_prompt(tokenizer, row.prompt)
        for messages in (row.chosen, row.rejected):
            whole = encode_conversation(tokenizer, [*row.prompt, *messages]).input_ids
            assert whole[: len(prompt)] == prompt
            assert whole[-1] == tokenizer.eos_token_id
            expected.add((tuple(prompt), tuple(whole[len(prompt) :])))
    assert seen == expected


def test_an_answer_does_not_merge_with_the_prompt_s_end(bundled_model: Model) -> None:
    """SmolLM2 has tokens for several line breaks, and the prompt ends with one, which is sampled after as it is."""
    tokenizer = load_tokenizer(bundled_model)
    row = Preference(
        prompt=[Message(role="user", content="List")], chosen=answer("\n\nOne."), rejected=answer("Two.")
    )
    (encoded,) = encode_pairs(tokenizer, [row])
    assert tokenizer.decode(encoded["prompt_ids"]).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(encoded["chosen_ids"]) == "\n\nOne.<|im_end|>"
    assert tokenizer.decode(encoded["rejected_ids"]) == "Two.<|im_end|>"


def test_the_split_is_the_reward_model_s(tiny_model: Model, preferences: Path, runs: Runs) -> None:
    dpo = run_stage("dpo", CONFIG, tiny_model, preferences, runs)
    reward = run_stage("reward", CONFIG, tiny_model, preferences, runs)
    assert (dpo.metrics["pairs"], dpo.metrics["heldout_pairs"]) == (32, 8)
    assert (reward.metrics["pairs"], reward.metrics["heldout_pairs"]) == (32, 8)


def test_pairs_over_the_length_are_counted_or_all_refused(tiny_model: Model, tmp_path: Path) -> None:
    rows = [
        Preference(
            prompt=[Message(role="user", content=f"Ask {i}")],
            chosen=answer("a" * (1 + i * 20)),
            rejected=answer("b"),
        )
        for i in range(10)
    ]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    tokenizer = load_tokenizer(tiny_model)
    lengths = [len(encode_conversation(tokenizer, [*row.prompt, *row.chosen]).input_ids) for row in rows]
    config = {**CONFIG, "max_sequence_tokens": lengths[6]}
    run = run_stage("dpo", config, tiny_model, tmp_path / "pairs.jsonl", Runs(tmp_path / "runs"))
    assert run.record.dropped == {"too_long": 3, "equal_once_encoded": 0, "weight_zero": 0}
    with pytest.raises(DataError, match=r"leaves 0 pairs to train on and 0 held out, of 10 \(10 too_long, "):
        run_stage(
            "dpo",
            {**CONFIG, "max_sequence_tokens": 8},
            tiny_model,
            tmp_path / "pairs.jsonl",
            Runs(tmp_path / "runs"),
        )


def test_an_answer_that_was_cut_off_is_learned_without_an_end(tiny_model: Model) -> None:
    """Ended answers keep their EOS; a truncated one has exactly the tokens of its text."""
    tokenizer = load_tokenizer(tiny_model)
    question, long, short = "Why?", "Because it goes on and", "Because."
    row = Preference(
        prompt=[Message(role="user", content=question)],
        chosen=[Message(role="assistant", content=short)],
        rejected=[Message(role="assistant", content=long)],
        rejected_truncated=True,
    )
    (encoded,) = encode_pairs(tokenizer, [row])
    assert encoded["rejected_ids"] == tokenizer(long).input_ids
    assert encoded["chosen_ids"] == [*tokenizer(short).input_ids, tokenizer.eos_token_id]
    (ended,) = encode_pairs(tokenizer, [row.model_copy(update={"rejected_truncated": None})])
    assert ended["rejected_ids"] == [*tokenizer(long).input_ids, tokenizer.eos_token_id]
