"""The terms that hold a model to its base, against plain arithmetic on whole logits and whole weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from training_helpers import run_stage
from transformers import AutoConfig, AutoModelForCausalLM
from trl import SFTConfig as TrlSFTConfig

from accord.errors import UsageError
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model
from accord.runs import Runs
from sft import trainer as module
from sft.adaptation import model_and_penalties
from sft.config import SFTConfig, WeightedFile
from sft.data import open_data_run, prepare
from sft.packed import PackedRows
from sft.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

LORA = {"rank": 4, "alpha": 8}
METHODS = {
    "lora": {"lora": LORA},
    "rank-stabilised lora": {"lora": {**LORA, "rank_stabilized": True}},
    "pissa": {"lora": {**LORA, "start": "pissa"}},
    "all weights": {},
    "some weights": {"train_only": {"last_layers": 1}},
}
AND_OTHERS = METHODS | {
    "dora": {"lora": {**LORA, "dora": True}},
    "ia3": {"adapter": {"method": "ia3"}},
    "prefix": {"adapter": {"method": "prefix", "virtual_tokens": 3}},
    "prompt": {"adapter": {"method": "prompt", "virtual_tokens": 3}},
}


def made(base: Model, data: Path, folder: Path, packed: bool = False, **settings: Any) -> Trainer:
    """A trainer whose model has already moved a little."""
    config = SFTConfig.model_validate(settings)
    tokenizer = load_tokenizer(base)
    rows = prepare(SFTConfig(demonstrations=[WeightedFile(path=str(data))]), Runs(folder / "data"), tokenizer)
    arguments = TrlSFTConfig(
        output_dir=str(folder), max_length=None, use_cpu=True, bf16=False, report_to="none",
        gradient_checkpointing=False, dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    found = Trainer(
        **model_and_penalties(config, base),
        args=arguments,
        train_dataset=open_data_run(rows).train,
        data_collator=PackedRows(int(tokenizer.pad_token_id)) if packed else None,
        processing_class=tokenizer,
    )
    own: Any = found.model
    for number, p in enumerate(own.parameters()):
        if p.requires_grad:
            noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
            p.data += 0.05 * noise
    own.train()
    found.current_gradient_accumulation_steps = 1
    return found


def batch_of(trainer: Trainer, rows: int = 6) -> dict[str, torch.Tensor]:
    """Rows as a batch: packed, the first four are one row and the last two another."""
    found: Any = trainer.train_dataset
    batch: list[dict[str, list[int]]] = [
        {key: found[i][key] for key in ("input_ids", "labels")} for i in range(rows)
    ]
    if isinstance(trainer.data_collator, PackedRows):
        batch = [
            {
                "input_ids": [token for row in part for token in row["input_ids"]],
                "labels": [token for row in part for token in row["labels"]],
                "seq_lengths": [len(row["input_ids"]) for row in part],
            }
            for part in (batch[:4], batch[4:])
        ]
    inputs: dict[str, torch.Tensor] = trainer.data_collator(batch)
    return inputs


def gradients(trainer: Trainer, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    own: Any = trainer.model
    own.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in own.named_parameters() if p.grad is not None}


def assert_equal_gradients(found: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert found.keys() == right.keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in right.values())
    for name, gradient in right.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-5, rtol=2e-4, msg=name)


def plain_kl(trainer: Trainer, base: Model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean over the learned tokens of sum_v p_base (log p_base - log p), from all logits."""
    own: Any = trainer.model
    theirs: Any = load_policy(base).eval()
    ids, mask, labels = (inputs[key] for key in ("input_ids", "attention_mask", "labels"))
    with torch.no_grad():
        p = torch.log_softmax(theirs(input_ids=ids, attention_mask=mask).logits, dim=-1)
    logits = own(input_ids=ids, attention_mask=mask).logits[:, -ids.shape[1] :]
    q = torch.log_softmax(logits, dim=-1)
    kl = (p.exp() * (p - q)).sum(-1)[:, :-1]
    return kl[labels[:, 1:] != -100].mean()


@pytest.mark.parametrize("method", AND_OTHERS)
def test_kl_and_its_gradient(
    tiny_model: Model, demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(module, "CHUNK", 7)  # several chunks, the last one smaller
    trainer = made(tiny_model, demonstrations, tmp_path, kl_to_base=0.7, **AND_OTHERS[method])
    inputs = batch_of(trainer)
    found = trainer.compute_loss(trainer.model, dict(inputs))
    (logged,) = trainer._metrics["train"]["kl_to_base"]
    with_kl = gradients(trainer, found)
    trainer._kl_to_base = 0.0
    without = trainer.compute_loss(trainer.model, dict(inputs))
    kl = plain_kl(trainer, tiny_model, inputs)
    assert kl > 0.01
    assert logged == pytest.approx(kl.item(), rel=1e-4)
    assert found.item() == pytest.approx(without.item() + 0.7 * kl.item(), rel=1e-5)
    assert_equal_gradients(with_kl, gradients(trainer, without + 0.7 * kl))


@pytest.mark.parametrize("method", METHODS)
def test_distance_from_the_start_and_its_gradient(
    tiny_model: Model, demonstrations: Path, tmp_path: Path, method: str
) -> None:
    trainer = made(tiny_model, demonstrations, tmp_path, l2_to_start=0.3, **METHODS[method])
    inputs = batch_of(trainer)
    found = trainer.compute_loss(trainer.model, dict(inputs))
    with_distance = gradients(trainer, found)
    trainer._l2_to_start = 0.0
    without = trainer.compute_loss(trainer.model, dict(inputs))
    own: Any = trainer.model
    before = dict(load_policy(tiny_model).named_parameters())
    distance = torch.zeros(())
    if isinstance(own, PeftModel):
        for name, layer in own.get_base_model().named_modules():
            if hasattr(layer, "lora_A"):
                merged = layer.base_layer.weight + layer.get_delta_weight("default")
                distance = distance + (merged - before[f"{name}.weight"]).square().sum()
    else:
        for name, p in own.named_parameters():
            distance = distance + (p - before[name]).square().sum()
    assert distance > 0.1
    assert found.item() == pytest.approx(without.item() + 0.15 * distance.item(), rel=1e-4)
    assert_equal_gradients(with_distance, gradients(trainer, without + 0.15 * distance))


@pytest.mark.parametrize("method", ["lora", "dora", "pissa", "ia3", "all weights", "some weights"])
def test_packed_as_padded(tiny_model: Model, demonstrations: Path, tmp_path: Path, method: str) -> None:
    terms = {"kl_to_base": 0.5} | ({} if method in ("dora", "ia3") else {"l2_to_start": 0.1})
    results = []
    for packed in (False, True):
        trainer = made(tiny_model, demonstrations, tmp_path, packed=packed, **terms, **AND_OTHERS[method])
        inputs = batch_of(trainer)
        assert len(inputs["input_ids"]) == (2 if packed else 6)
        loss = trainer.compute_loss(trainer.model, inputs)
        results.append((loss.item(), gradients(trainer, loss)))
    (padded_loss, padded), (packed_loss, packed_gradients) = results
    assert packed_loss == pytest.approx(padded_loss, rel=1e-5)
    assert_equal_gradients(packed_gradients, padded)


@pytest.mark.parametrize("settings", [{"learning_rate": 1e-3}, {"lora": LORA, "learning_rate": 1e-2}])
def test_the_terms_do_not_depend_on_the_rows_of_a_pass(
    tiny_model: Model, demonstrations: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Passes hold unequal numbers of tokens, and the distance counts once an update."""
    config = {
        "epochs": 0.5, "rows_per_update": 4, "max_sequence_tokens": 300, "checkpoint_every_updates": 100,
        "kl_to_base": 0.5, "l2_to_start": 0.2, "heldout_fraction": 0.1,
    } | settings  # fmt: skip
    runs = [
        run_stage(
            "sft", {**config, "rows_per_pass": rows}, tiny_model, demonstrations, Runs(tmp_path / "runs")
        )
        for rows in (1, 4)
    ]
    one, four = ([row for row in run.metric_rows() if "loss" in row] for run in runs)
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in four], abs=2e-5)
    distances = [row["squared_distance_from_start"] for row in one]
    assert distances == pytest.approx([row["squared_distance_from_start"] for row in four], rel=1e-2)
    assert distances[-1] > distances[2] > distances[0] == 0
    assert one[0]["kl_to_base"] == pytest.approx(0, abs=1e-6)


def test_they_hold_the_model_back(tiny_model: Model, demonstrations: Path, tmp_path: Path) -> None:
    config = {
        "epochs": 2, "rows_per_update": 4, "max_sequence_tokens": 300, "checkpoint_every_updates": 100,
        "learning_rate": 1e-2, "lora": LORA, "heldout_fraction": 0.1,
    }  # fmt: skip

    def last(key: str, **terms: float) -> float:
        run = run_stage("sft", {**config, **terms}, tiny_model, demonstrations, Runs(tmp_path / "runs"))
        return float([row for row in run.metric_rows() if key in row][-1][key])

    assert last("kl_to_base", kl_to_base=3.0) < last("kl_to_base", kl_to_base=1e-6) / 2
    distance = "squared_distance_from_start"
    assert last(distance, l2_to_start=3.0) < last(distance, l2_to_start=1e-6) / 2


def test_logits_that_are_changed_after_the_output_layer_are_refused() -> None:
    config = AutoConfig.for_model(
        "gemma2", vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=0.5, initializer_range=0.5,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"sft\.kl_to_base .* Gemma2ForCausalLM changes them after it"):
        module.check_logits(AutoModelForCausalLM.from_config(config))
