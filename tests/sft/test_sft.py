import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import encoded_rows, every_trainer_calls, rows_without_times, run_stage
from transformers import PreTrainedTokenizerBase

from accord import bundled
from accord.errors import DataError, UsageError
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model
from accord.records import Demonstration, Message, read_jsonl
from accord.runs import Run, Runs
from accord.text_files import write_jsonl
from sft.config import SFTConfig
from sft.data import files_of, open_data_run, prepare

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = {
    "epochs": 1, "learning_rate": 1e-3, "rows_per_update": 4, "rows_per_pass": 4, "max_sequence_tokens": 400,
    "checkpoint_every_updates": 100, "heldout_fraction": 0.1, "seed": 3,
}  # fmt: skip


def conversation(question: str, answer: str) -> Demonstration:
    return Demonstration(
        messages=[Message(role="user", content=question), Message(role="assistant", content=answer)]
    )


def write(path: Path, *answers: str) -> Path:
    write_jsonl(path, [conversation(f"Q {answer}", answer) for answer in answers])
    return path


def prepared(model: Model, files: list[tuple[Path, float]], folder: Path, **settings: Any) -> Run:
    config = SFTConfig.model_validate(
        {"demonstrations": [{"path": str(path), "weight": weight} for path, weight in files], **settings}
    )
    return prepare(config, Runs(folder), load_tokenizer(model))


def answers(run: Run, part: str = "train") -> Counter[str]:
    if part == "heldout":
        rows = (run.path / "heldout.jsonl").read_text().splitlines()
    else:
        rows = open_data_run(run).rows["row"]
    return Counter(json.loads(row)["messages"][-1]["content"] for row in rows)


# --- data


def test_weights_say_how_often_a_row_is_shown(tiny_model: Model, tmp_path: Path) -> None:
    once = write(tmp_path / "a", *(f"a{i}" for i in range(10)))
    often = write(tmp_path / "b", *(f"b{i}" for i in range(10)))
    rarely = write(tmp_path / "c", *(f"c{i}" for i in range(10)))
    heldout = write(tmp_path / "h", "h")
    files = [(once, 1.0), (often, 2.5), (rarely, 0.3)]
    run = prepared(tiny_model, files, tmp_path / "runs", heldout=str(heldout), seed=0)
    counts = answers(run)
    assert [counts[f"a{i}"] for i in range(10)] == [1] * 10
    assert sorted(counts[f"b{i}"] for i in range(10)) == [2] * 5 + [3] * 5
    assert sorted(counts[f"c{i}"] for i in range(10)) == [0] * 7 + [1] * 3
    shown = [(source["trained"], source["shown_an_epoch"]) for source in files_of(run)]
    assert shown == [(10, 10), (10, 25), (3, 3), (0, 0)]
    again = prepared(tiny_model, files, tmp_path / "again", heldout=str(heldout), seed=0)
    kept = [
        each.record.outputs | {"report.html": ""} for each in (again, run)
    ]  # which says when it was begun
    assert kept[0] == kept[1]
    others = prepared(tiny_model, files, tmp_path / "runs", heldout=str(heldout), seed=1)
    assert answers(others) != counts


def test_no_row_is_in_both_parts_however_it_is_weighted(tiny_model: Model, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", *"abcdefghij"), write(tmp_path / "b", *"klmnopqrst")
    run = prepared(tiny_model, [(a, 3.0), (b, 1.0)], tmp_path / "runs", heldout_fraction=0.15)
    train, heldout = answers(run), answers(run, "heldout")
    assert not train.keys() & heldout.keys()
    assert train.keys() | heldout.keys() == set("abcdefghijklmnopqrst")
    assert sum(heldout.values()) == 4  # ceil(0.15 * 10) of each file
    assert len(heldout.keys() & set("abcdefghij")) == 2


def test_duplicates_are_counted_and_kept_once(tiny_model: Model, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", "x", "y", "x"), write(tmp_path / "b", "y", "z", "h")
    heldout = str(write(tmp_path / "h", "h"))
    run = prepared(tiny_model, [(a, 1.0), (b, 1.0)], tmp_path / "runs", heldout=heldout)
    assert answers(run) == Counter("xyz")
    assert run.record.dropped == {"duplicate": 3, "too_long": 0}  # x, y, and the held-out h


def test_rows_over_the_length_are_counted(tiny_model: Model, tmp_path: Path) -> None:
    rows = [conversation("Q", "short"), conversation("Q", "long" * 50)]
    lengths = [len(row["input_ids"]) for row in encoded_rows(load_tokenizer(tiny_model), rows)]
    assert lengths[1] - lengths[0] == 200 - 5  # one token a byte
    write_jsonl(tmp_path / "rows.jsonl", rows)
    files = [(tmp_path / "rows.jsonl", 1.0)]
    for most, too_long in ((lengths[1], 0), (lengths[1] - 1, 1)):
        run = prepared(tiny_model, files, tmp_path / "runs", max_sequence_tokens=most, heldout_fraction=0)
        assert (len(open_data_run(run).train), run.record.dropped["too_long"]) == (2 - too_long, too_long)
    with pytest.raises(DataError, match=r"all 2 demonstrations are longer than max_sequence_tokens \(8\)"):
        prepared(tiny_model, files, tmp_path / "runs", max_sequence_tokens=8)


def test_nothing_left_to_train_on(tiny_model: Model, tmp_path: Path) -> None:
    data = write(tmp_path / "rows", "only")
    with pytest.raises(DataError, match="no demonstrations are left to train on"):
        run_stage("sft", CONFIG, tiny_model, data, Runs(tmp_path / "runs"))


def test_the_run_counts_what_it_used_and_dropped(tiny_model: Model, tmp_path: Path) -> None:
    data = write(tmp_path / "rows", *(f"{i}" for i in range(18)), "long" * 100, "longer" * 100, "0")
    run = run_stage("sft", {**CONFIG, "seed": 1}, tiny_model, data, Runs(tmp_path / "runs"))
    assert run.record.dropped == {"duplicate": 1, "too_long": 2}
    assert run.metrics["demonstrations"] + run.metrics["heldout_demonstrations"] == 18
    assert run.metrics["updates"] == -(-run.metrics["demonstrations"] // 4)


# --- what the trainer is really given


def batches_of(config: dict[str, Any], base: Model, data: Path, root: Path, look: Callable[..., None]) -> Run:
    with every_trainer_calls("train_begin", look):
        return run_stage("sft", config, base, data, Runs(root))


def turns_in(tokenizer: PreTrainedTokenizerBase, labels: list[int]) -> list[str]:
    spans: list[list[int]] = [[]]
    for label in labels:
        if label != -100:
            spans[-1].append(label)
        elif spans[-1]:
            spans.append([])
    return [tokenizer.decode(span) for span in spans if span]


@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_covers_the_assistants_turns_in_the_batches_of_the_trainer(
    tiny_model: Model, tmp_path: Path, packing: bool
) -> None:
    """The mask test, on twenty shipped demonstrations and the batches that TRL's collator makes of them."""
    shipped = read_jsonl(bundled.data_path("bundled:demo/demonstrations.train.jsonl"), Demonstration)
    rows = [row for row in shipped if len(row.messages) > 2][:12]
    rows += [row for row in shipped if len(row.messages) == 2][: 20 - len(rows)]
    data = tmp_path / "rows.jsonl"
    write_jsonl(data, rows)
    tokenizer = load_tokenizer(tiny_model)
    said: Counter[str] = Counter()
    longest = []

    def look(train_dataloader: Any, **_: Any) -> None:
        for batch in train_dataloader:
            longest.append(batch["input_ids"].shape[1])
            for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
                said.update(turns_in(tokenizer, labels))
                assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))

    config = {**CONFIG, "packing": packing, "max_sequence_tokens": 1024, "heldout_fraction": 0.0}
    batches_of(config, tiny_model, data, tmp_path / "runs", look)
    expected = Counter(
        message.content + "<|im_end|>"
        for row in rows
        for message in row.messages
        if message.role == "assistant"
    )
    assert said == expected
    assert packing == (max(longest) > 512)  # several of them in a row
    assert max(longest) <= 1024


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_conversations_do_not_see_one_another(
    tiny_model: Model, demonstrations: Path, tmp_path: Path, attention: str
) -> None:
    """Each packed conversation has the log-probabilities that it has alone; TRL warns that it needs flash attention
    for this, but transformers makes the block-diagonal mask from the position ids for eager and sdpa too."""
    differences: list[float] = []
    leaks: list[float] = []
    conversations: list[int] = []

    def log_probabilities(model: torch.nn.Module, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        logits = model(input_ids=ids, use_cache=False, **inputs).logits[:, :-1].log_softmax(-1)
        return logits.gather(-1, ids[:, 1:, None])[0, :, 0]

    def look(model: Any, train_dataloader: Any, **_: Any) -> None:
        model.set_attn_implementation(attention)
        model.eval()
        for batch in train_dataloader:
            batch = dict(batch)
            ids, labels = batch.pop("input_ids"), batch.pop("labels")
            assert "attention_mask" not in batch
            with torch.no_grad():
                for row in range(len(ids)):
                    one, positions = ids[row : row + 1], batch["position_ids"][row : row + 1]
                    together = {"position_ids": positions}
                    starts = (positions[0] == 0).nonzero().flatten().tolist()
                    packed = log_probabilities(model, one, **together)
                    leaking = log_probabilities(model, one, attention_mask=torch.ones_like(one), **together)
                    for start, end in zip(starts, [*starts[1:], ids.shape[1]], strict=True):
                        if end - start < 2:  # a pad
                            continue
                        conversations.append(end - start)
                        alone = log_probabilities(model, one[:, start:end])
                        differences.append((packed[start : end - 1] - alone).abs().max().item())
                        gap = (leaking[start : end - 1] - alone).abs().max().item()
                        leaks.append(gap if start else 0.0)
                    assert (labels[row, starts] == -100).all()  # nobody learns to begin after another's end
        model.train()

    batches_of({**CONFIG, "packing": True}, tiny_model, demonstrations, tmp_path / "runs", look)
    assert len(conversations) > 20
    assert max(differences) < 2e-5
    assert max(leaks) > 0.1  # the same batch under a plain causal mask: the test would see a leak


def test_packing_continues_exactly_and_evaluates(
    tiny_model: Model, demonstrations: Path, tmp_path: Path
) -> None:
    config = {**CONFIG, "packing": True, "epochs": 3, "checkpoint_every_updates": 2}
    config |= {"rows_per_update": 1, "rows_per_pass": 1}
    straight = run_stage("sft", config, tiny_model, demonstrations, Runs(tmp_path / "straight"))
    assert [row["step"] for row in straight.metric_rows() if "eval_loss" in row] == [
        0,
        straight.metrics["updates"],
    ]

    def stop(**_: Any) -> None:
        raise KeyboardInterrupt

    with every_trainer_calls("6", stop), pytest.raises(KeyboardInterrupt):
        run_stage("sft", config, tiny_model, demonstrations, Runs(tmp_path / "stopped"))
    continued = run_stage("sft", config, tiny_model, demonstrations, Runs(tmp_path / "stopped"))
    assert rows_without_times(continued) == rows_without_times(straight)
    assert (
        continued.record.outputs["model/model.safetensors"]
        == straight.record.outputs["model/model.safetensors"]
    )


# --- the loss, early stopping


def heldout_loss(model: Model, rows: list[Demonstration]) -> float:
    """The mean negative log-likelihood of the assistant's tokens, one conversation at a time."""
    dataset = encoded_rows(load_tokenizer(model), rows)
    policy, total, count = load_policy(model).eval(), 0.0, 0
    for row in dataset:
        with torch.inference_mode():
            logits = policy(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for position, label in enumerate(row["labels"]):
            if label != -100:
                total -= float(logits[position - 1, label])
                count += 1
    return total / count


@pytest.fixture
def overfitting(tmp_path: Path) -> dict[str, Any]:
    """Training rows that say the opposite of the held-out ones, at a learning rate that gets there."""
    write_jsonl(
        tmp_path / "demonstrations.jsonl", [conversation(f"{i}?", "no no no " + "a" * i) for i in range(8)]
    )
    write_jsonl(tmp_path / "heldout.jsonl", [conversation(f"{i}?", "yes yes " + "z" * i) for i in range(4)])
    return {
        **CONFIG, "heldout": str(tmp_path / "heldout.jsonl"), "epochs": 10, "learning_rate": 1e-3,
        "evaluate_every_updates": 2, "early_stopping_evaluations": 3, "warmup_fraction": 0,
    }  # fmt: skip


def test_early_stopping_stops_and_keeps_the_best(
    tiny_model: Model, overfitting: dict[str, Any], tmp_path: Path
) -> None:
    run = run_stage(
        "sft", overfitting, tiny_model, tmp_path / "demonstrations.jsonl", Runs(tmp_path / "runs")
    )
    losses = {row["step"]: row["eval_loss"] for row in run.metric_rows() if "eval_loss" in row}
    after_start = {step: loss for step, loss in losses.items() if step > 0}
    best = min(after_start, key=lambda step: after_start[step])
    assert run.metrics["updates"] == best + 3 * 2  # three evaluations without a better one
    assert run.metrics["updates"] < 20
    assert run.metrics["heldout_loss"] == after_start[best]
    assert losses[run.metrics["updates"]] > after_start[best] + 0.01
    # and that loss is the saved model's
    rows = read_jsonl(tmp_path / "heldout.jsonl", Demonstration)
    saved = Model("", run.path / "model", "")
    assert heldout_loss(saved, rows) == pytest.approx(after_start[best], abs=1e-4)
    assert heldout_loss(tiny_model, rows) == pytest.approx(losses[0], abs=1e-4)


@pytest.mark.parametrize("when", ["5", "7", "train_end"])
def test_early_stopping_continues_exactly(
    tiny_model: Model, overfitting: dict[str, Any], tmp_path: Path, when: str
) -> None:
    data = tmp_path / "demonstrations.jsonl"
    straight = run_stage("sft", overfitting, tiny_model, data, Runs(tmp_path / "straight"))

    def stop(**_: Any) -> None:
        raise KeyboardInterrupt

    with every_trainer_calls(when, stop), pytest.raises(KeyboardInterrupt):
        run_stage("sft", overfitting, tiny_model, data, Runs(tmp_path / "stopped"))
    continued = run_stage("sft", overfitting, tiny_model, data, Runs(tmp_path / "stopped"))
    assert rows_without_times(continued) == rows_without_times(straight)
    assert continued.metrics == straight.metrics
    assert (
        continued.record.outputs["model/model.safetensors"]
        == straight.record.outputs["model/model.safetensors"]
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"early_stopping_evaluations": 1}, "early_stopping_evaluations needs evaluate_every_updates"),
        (
            {"early_stopping_evaluations": 1, "evaluate_every_updates": 1, "heldout_fraction": 0},
            "early_stopping_evaluations needs held-out rows",
        ),
    ],
)
def test_early_stopping_needs_something_to_look_at(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SFTConfig(demonstrations=[{"path": "x"}], **change)


def test_without_heldout_rows_there_is_no_heldout_loss(
    tiny_model: Model, demonstrations: Path, tmp_path: Path
) -> None:
    run = run_stage(
        "sft", {**CONFIG, "heldout_fraction": 0}, tiny_model, demonstrations, Runs(tmp_path / "runs")
    )
    assert run.metrics["heldout_loss"] is None
    assert run.metrics["heldout_demonstrations"] == 0
    assert run.metrics["demonstrations"] == 30


def test_trainer_arguments_are_checked() -> None:
    from sft.train import check_arguments

    check_arguments({"weight_decay": 0.1})
    for arguments, says in (
        ({"weight_dcay": 0.1}, "did you mean 'weight_decay'"),
        ({"learning_rate": 0.1}, "accord sets this one"),
        ({"packing": True}, "accord sets this one"),
    ):
        with pytest.raises(UsageError, match=says):
            check_arguments(arguments)
