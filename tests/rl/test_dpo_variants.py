"""The losses that `rl.loss` names, by arithmetic on log-probabilities, and the reference's that are computed once."""

import gc
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from training_helpers import assert_same, every_trainer_calls, run_stage
from transformers import LlamaForCausalLM
from trl import DPOTrainer

from accord.errors import UsageError
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model
from accord.records import Preference, read_jsonl
from accord.runs import Runs
from accord.text_files import write_jsonl
from reward.data import split_by_prompt
from rl import reference_cache
from rl.config import DPOConfig
from rl.dpo import check_arguments
from rl.pairs import encode_pairs

pytestmark = pytest.mark.usefixtures("one_thread")

BETA = 0.3
CONFIG = {
    "epochs": 1, "learning_rate": 1e-3, "rows_per_update": 8, "rows_per_pass": 8, "max_sequence_tokens": 300,
    "checkpoint_every_updates": 100, "seed": 3, "kl_coefficient": BETA,
}  # fmt: skip


@pytest.fixture
def heldout(tiny_model: Model, preferences: Path) -> list[dict[str, list[int]]]:
    rows = split_by_prompt(read_jsonl(preferences, Preference), 0.2)[1]
    return list(encode_pairs(load_tokenizer(tiny_model), rows))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many pairs the reference looked at, batch by batch."""
    batches: list[int] = []
    original = DPOTrainer.compute_ref_log_probs

    def count(self: DPOTrainer, model: Any, inputs: dict[str, Any]) -> Any:
        batches.append(len(inputs["input_ids"]) // 2)
        return original(self, model, inputs)

    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", count)
    yield batches


def token_log_probabilities(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> list[float]:
    """One sequence at a time, so that there is no padding."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return [float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(answer)]


def sigmoid(chosen: float, rejected: float, *_: int) -> float:
    return math.log1p(math.exp(-BETA * (chosen - rejected)))


def ipo(chosen: float, rejected: float, chosen_tokens: int, rejected_tokens: int) -> float:
    return (chosen / chosen_tokens - rejected / rejected_tokens - 1 / (2 * BETA)) ** 2


def robust(chosen: float, rejected: float, *_: int) -> float:
    """Unbiased where 0.1 of the labels are flipped: (0.9 * l(pair) - 0.1 * l(flipped pair)) / 0.8."""
    return (0.9 * sigmoid(chosen, rejected) - 0.1 * sigmoid(rejected, chosen)) / 0.8


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({"loss": "ipo"}, ipo),
        ({"loss": "robust", "label_smoothing": 0.1}, robust),
        ({"length_desensitisation": 0.4}, sigmoid),
        ({"loss": "robust", "label_smoothing": 0.1, "length_desensitisation": 0.0}, robust),
    ],
    ids=["ipo", "robust", "sigmoid-ld", "robust-ld"],
)
def test_the_loss_is_that_of_its_paper(
    tiny_model: Model, preferences: Path, heldout: list[dict[str, list[int]]], runs: Runs,
    settings: dict[str, Any], loss: Any,
) -> None:  # fmt: skip
    run = run_stage("dpo", {**CONFIG, **settings}, tiny_model, preferences, runs)
    policy, before = load_policy(Model("", run.path / "model", "")).eval(), load_policy(tiny_model).eval()
    alpha = settings.get("length_desensitisation", 1.0)
    losses, first_losses = [], []
    sums: dict[tuple[bool, str], list[float]] = {}
    for row in heldout:
        both = min(len(row["chosen_ids"]), len(row["rejected_ids"]))
        ratios = []
        for answer in ("chosen", "rejected"):
            log_p = [0.0, 0.0]
            for i, model in enumerate((before, policy)):
                tokens = token_log_probabilities(model, row["prompt_ids"], row[f"{answer}_ids"])
                log_p[i] = sum(tokens[:both]) + alpha * sum(tokens[both:])
                sums.setdefault((i == 0, answer), []).append(log_p[i])
            ratios.append(log_p[1] - log_p[0])
        tokens_of_both = len(row["chosen_ids"]), len(row["rejected_ids"])
        losses.append(loss(*ratios, *tokens_of_both))
        first_losses.append(loss(0, 0, *tokens_of_both))
    figures = run.metrics
    assert figures["heldout_loss"] == pytest.approx(sum(losses) / 8, abs=1e-4)
    assert figures["first_loss"] == pytest.approx(sum(first_losses) / 8, abs=1e-5)
    assert abs(figures["heldout_loss"] - figures["first_loss"]) > 0.01  # it moved
    for (is_before, answer), values in sums.items():
        key = f"heldout_{answer}_log_probability" + ("_before" if is_before else "")
        assert figures[key] == pytest.approx(sum(values) / 8, abs=1e-3), key
    rows = run.metric_rows()
    assert all("logps/chosen" in row and "logps/rejected" in row for row in rows if "loss" in row)
    assert [row["step"] for row in rows if "eval_logps/chosen" in row] == [0, 4]


BRIEF = {**CONFIG, "epochs": 0.25}  # one update, where only the reference matters


def reference_files(runs: Runs) -> list[Path]:
    return sorted((runs.root / reference_cache.FOLDER).iterdir())


def test_the_reference_s_log_probabilities_are_those_without_padding(
    tiny_model: Model, preferences: Path, heldout: list[dict[str, list[int]]], runs: Runs
) -> None:
    run_stage("dpo", BRIEF, tiny_model, preferences, runs)
    files = [json.loads(path.read_text())["log_probabilities"] for path in reference_files(runs)]
    assert sorted(map(len, files)) == [8, 32]
    model = load_policy(tiny_model).eval()
    for row, kept in zip(heldout, min(files, key=len), strict=True):
        expected = [
            sum(token_log_probabilities(model, row["prompt_ids"], row[key]))
            for key in ("chosen_ids", "rejected_ids")
        ]
        assert kept == pytest.approx(expected, abs=1e-4)


def test_another_run_on_the_same_reference_and_pairs_reads_them(
    tiny_model: Model, preferences: Path, runs: Runs, computed: list[int], tmp_path: Path
) -> None:
    run_stage("dpo", CONFIG, tiny_model, preferences, runs)
    assert computed == [8, 8, 8, 8, 8]
    computed.clear()
    changes = {"learning_rate": 5e-4, "seed": 4, "loss": "robust", "label_smoothing": 0.2}
    reader = run_stage("dpo", {**CONFIG, **changes}, tiny_model, preferences, runs)
    assert computed == []
    alone = run_stage("dpo", {**CONFIG, **changes}, tiny_model, preferences, Runs(tmp_path / "alone"))
    assert computed == [8, 8, 8, 8, 8]
    assert_same(reader, alone)  # bitwise


def test_another_reference_other_pairs_and_another_precision_are_computed_anew(
    tiny_model: Model, preferences: Path, runs: Runs, computed: list[int], tmp_path: Path
) -> None:
    run_stage("dpo", BRIEF, tiny_model, preferences, runs)
    other = tmp_path / "other"
    shutil.copytree(tiny_model.folder, other)
    model = LlamaForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.model.norm.weight[0] += 0.01
    model.save_pretrained(other)
    computed.clear()
    run_stage("dpo", BRIEF, Model("other", other, "sha256:other"), preferences, runs)
    assert sum(computed) == 40

    computed.clear()
    run_stage("dpo", {**BRIEF, "precision": "bfloat16"}, tiny_model, preferences, runs)
    assert sum(computed) == 40

    computed.clear()
    run_stage("dpo", {**BRIEF, "length_desensitisation": 0.5}, tiny_model, preferences, runs)
    assert sum(computed) == 40

    rows = read_jsonl(preferences, Preference)
    train = split_by_prompt(rows, 0.2)[0]
    rows[rows.index(train[0])] = train[0].model_copy(update={"chosen": train[1].chosen})
    write_jsonl(tmp_path / "changed.jsonl", rows)
    computed.clear()
    run_stage("dpo", BRIEF, tiny_model, tmp_path / "changed.jsonl", runs)
    assert sum(computed) == 32  # one training pair changed, the held-out ones did not


@pytest.mark.parametrize("damage", ["half", "number", "another", "nothing"])
def test_a_damaged_file_is_never_used(
    tiny_model: Model, preferences: Path, runs: Runs, computed: list[int], damage: str
) -> None:
    run_stage("dpo", BRIEF, tiny_model, preferences, runs)
    files = reference_files(runs)
    good = [path.read_text() for path in files]
    if damage == "another":  # whole, but about other pairs
        for path, text in zip(files, reversed(good), strict=True):
            path.write_text(text)
    for path, text in zip(files, good, strict=True):
        if damage == "half":
            path.write_text(text[: len(text) // 2])
        if damage == "number":
            content = json.loads(text)
            content["log_probabilities"][0][0] += 1e-3
            path.write_text(json.dumps(content))
        if damage == "nothing":
            path.write_text("")
    computed.clear()
    run_stage("dpo", {**BRIEF, "seed": 4}, tiny_model, preferences, runs)
    assert sum(computed) == 40
    assert [path.read_text() for path in files] == good


def test_what_is_written_is_read(tmp_path: Path) -> None:
    pairs = [(-1.25, -2.0), (-0.1, -1e-9)]
    reference_cache.write(tmp_path / "a.json", "me", pairs)
    assert reference_cache.read(tmp_path / "a.json", "me", 2) == pairs
    assert reference_cache.read(tmp_path / "a.json", "you", 2) is None
    assert reference_cache.read(tmp_path / "a.json", "me", 3) is None
    assert reference_cache.read(tmp_path / "b.json", "me", 2) is None


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}])
def test_one_model_is_in_memory(
    tiny_model: Model, preferences: Path, runs: Runs, lora: dict[str, Any] | None
) -> None:
    def living() -> int:
        gc.collect()
        return sum(type(each) is LlamaForCausalLM for each in gc.get_objects())

    seen = []
    before = living()
    with every_trainer_calls("1", lambda **_: seen.append(living() - before)):
        run_stage("dpo", {**BRIEF, "lora": lora}, tiny_model, preferences, runs)
    assert seen == [1]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing acts on loss: robust only, and loss is sigmoid"),
        (
            {"loss": "ipo", "label_smoothing": 0.1},
            "label_smoothing acts on loss: robust only, and loss is ipo",
        ),
        ({"loss": "robust"}, "loss: robust needs a label_smoothing above 0"),
        ({"loss": "robust", "label_smoothing": 0.5}, "less than 0.5"),
        ({"loss": "ipo", "length_desensitisation": 0.5}, "does not go with loss: ipo"),
        ({"length_desensitisation": 1.5}, "less than or equal to 1"),
        ({"loss": "hinge"}, "'sigmoid', 'ipo' or 'robust'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        DPOConfig(**settings)


@pytest.mark.parametrize("argument", ["loss_type", "ld_alpha", "label_smoothing", "sync_ref_model", "beta"])
def test_the_trainer_s_own_names_are_refused(argument: str) -> None:
    with pytest.raises(UsageError, match=f"rl.trainer.{argument}: accord sets this one"):
        check_arguments({argument: 1})
