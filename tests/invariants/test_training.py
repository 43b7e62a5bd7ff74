"""What all training stages share: exact resume, checkpoints, one result for every division into passes, errors."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_helpers import (
    assert_same,
    every_trainer_calls,
    run_stage,
    run_stage_and_be_killed,
)

from accord.errors import AccordError, UsageError
from accord.models.references import Model
from accord.runs import Runs
from accord.training import last_whole_checkpoint
from sft.config import SFTConfig
from sft.train import fine_tune

pytestmark = pytest.mark.usefixtures("one_thread")

# 1.5 epochs of 27 rows by 4 an update: 7 updates an epoch, 11 in all, the last of the first epoch with 3 rows
SFT = {
    "epochs": 1.5, "learning_rate": 1e-3, "rows_per_update": 4, "rows_per_pass": 2, "max_sequence_tokens": 300,
    "checkpoint_every_updates": 2, "evaluate_every_updates": 3, "heldout_fraction": 0.1, "seed": 3,
}  # fmt: skip
LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}
# 32 rows by 8: 4 updates an epoch, 6 in all
PAIRS = {
    "epochs": 1.5, "learning_rate": 1e-3, "rows_per_update": 8, "rows_per_pass": 4, "max_sequence_tokens": 300,
    "checkpoint_every_updates": 2, "evaluate_every_updates": 4, "seed": 3,
}  # fmt: skip
# 16 prompts of two pairs each by 4: as many updates
PROMPTS = {**PAIRS, "rows_per_update": 4, "rows_per_pass": 2}


@pytest.mark.parametrize(
    ("stage", "config", "first_kill", "second_kill", "updates"),
    [
        ("sft", SFT, "4", "train_end", 11),
        ("sft", {**SFT, "lora": LORA}, "9", "finish", 11),
        ("dpo", PAIRS, "6", "finish", 6),
        ("reward", {**PROMPTS, "lora": LORA}, "4", "train_end", 6),
        # 64 answers by 8
        ("kto", PAIRS, "6", "finish", 12),
    ],
    ids=["sft", "sft-lora", "dpo", "reward-lora", "kto"],
)
def test_killed_and_continued_equals_uninterrupted(
    tiny_model: Model, tmp_path: Path, request: pytest.FixtureRequest,
    stage: str, config: dict[str, Any], first_kill: str, second_kill: str, updates: int,
) -> None:  # fmt: skip
    data = request.getfixturevalue("demonstrations" if stage == "sft" else "preferences")
    straight = run_stage(stage, config, tiny_model, data, Runs(tmp_path / "straight"))
    assert straight.metrics["updates"] == updates

    killed = Runs(tmp_path / "killed")
    run_stage_and_be_killed(stage, config, tiny_model, data, killed, first_kill)
    (run,) = [each for each in killed.all() if each.record.stage == stage]
    assert run.record.status == "running"
    whole = last_whole_checkpoint(run.path / "checkpoints")
    assert whole is not None
    assert whole.name == f"checkpoint-{(int(first_kill) - 1) // 2 * 2}"
    # as if the kill had hit while the next checkpoint was written
    half = whole.with_name("checkpoint-1000")
    shutil.copytree(whole, half)
    (half / "trainer_state.json").unlink()

    run_stage_and_be_killed(stage, config, tiny_model, data, killed, second_kill)
    assert not half.exists()
    assert killed.load(run.id).record.status == "running"

    continued = run_stage(stage, config, tiny_model, data, Runs(tmp_path / "killed"))
    assert continued.id == straight.id
    assert len(continued.record.continued_at) == 2
    assert not (continued.path / "checkpoints").exists()
    assert_same(continued, straight)


def test_the_same_configuration_gives_the_same_bytes_and_another_seed_others(
    tiny_model: Model, demonstrations: Path, tmp_path: Path
) -> None:
    config = {**SFT, "lora": LORA, "epochs": 0.3}
    one, two = (
        run_stage("sft", config, tiny_model, demonstrations, Runs(tmp_path / name)) for name in ("one", "two")
    )
    assert_same(one, two)
    other = run_stage("sft", {**config, "seed": 4}, tiny_model, demonstrations, Runs(tmp_path / "one"))
    assert other.record.outputs["model/model.safetensors"] != one.record.outputs["model/model.safetensors"]


def test_a_half_written_checkpoint_is_removed(tmp_path: Path) -> None:
    for name, state in (("checkpoint-9", "{}"), ("checkpoint-10", '{"half'), ("checkpoint-11", None)):
        (tmp_path / name).mkdir()
        if state is not None:
            (tmp_path / name / "trainer_state.json").write_text(state)
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-9"]
    assert last_whole_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize(("stage", "lora"), [("sft", None), ("sft", LORA), ("reward", None), ("dpo", None)])
def test_eight_passes_of_one_row_equal_one_pass_of_eight(
    tiny_model: Model, tmp_path: Path, request: pytest.FixtureRequest, stage: str, lora: dict[str, Any] | None
) -> None:
    data = request.getfixturevalue("demonstrations" if stage == "sft" else "preferences")
    base = {**(SFT if stage == "sft" else PAIRS), "rows_per_update": 8, "epochs": 2, "learning_rate": 1e-3}
    base["epochs"] = 4 if stage == "reward" else 2  # its rows are 16 prompts
    if lora:
        base["lora"] = {**lora, "dropout": 0.0}
    losses, weights = [], []
    for rows_per_pass in (1, 8):
        config = {**base, "rows_per_pass": rows_per_pass}
        run = run_stage(stage, config, tiny_model, data, Runs(tmp_path / "runs"))
        losses.append([row["loss"] for row in run.metric_rows() if "loss" in row])
        weights.append(load_file(run.path / "model" / "model.safetensors"))
    assert len(losses[0]) == 8
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)
    assert losses[0][-1] < losses[0][0] - 0.01  # they moved, and together
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=2e-4, rtol=0, msg=name)


def test_rows_are_one_an_update_with_evaluations_between(
    tiny_model: Model, demonstrations: Path, tmp_path: Path
) -> None:
    run = run_stage("sft", SFT, tiny_model, demonstrations, Runs(tmp_path / "runs"))
    rows = run.metric_rows()
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 12))
    # before the first update, every third, and after the last
    assert [row["step"] for row in rows if "eval_loss" in row] == [0, 3, 6, 9, 11]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert run.metrics["train_loss"] == pytest.approx(sum(losses) / 11)
    assert run.metrics["heldout_loss_before"] == rows[0]["eval_loss"]
    assert run.metrics["heldout_loss"] == rows[-1]["eval_loss"]
    # ceil(0.1 * 11) = 2 updates of warm-up, then linearly to 0
    rates = [row["learning_rate"] for row in rows if "loss" in row]
    assert rates == pytest.approx([0, 5e-4, *(1e-3 * (11 - step) / 9 for step in range(2, 11))])


def test_a_gradient_that_is_no_number_stops_the_run(
    tiny_model: Model, demonstrations: Path, tmp_path: Path
) -> None:
    runs = Runs(tmp_path / "runs")
    config = SFTConfig(demonstrations=[{"path": str(demonstrations)}], **SFT, warmup_fraction=0)
    config = config.model_copy(update={"learning_rate": 1e30})  # higher than a configuration may have it
    with pytest.raises(AccordError, match=r"^sft: grad_norm became nan at update 2; lower the learning rate"):
        fine_tune(config, runs, tiny_model)
    (run,) = [run for run in runs.all() if run.record.stage != "data"]
    assert run.record.status == "failed"
    assert math.isnan(run.metric_rows()[-1]["grad_norm"])
    assert (
        last_whole_checkpoint(run.path / "checkpoints") is None
    )  # the next one would have been after update 2


def test_a_loss_that_is_no_number_stops_the_run(
    tiny_model: Model, demonstrations: Path, tmp_path: Path
) -> None:
    """The trainer's own log would show an average of earlier losses in its place."""
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model.folder, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(AccordError, match=r"^sft: loss became nan at update 1; lower the learning rate"):
        run_stage(
            "sft",
            {**SFT, "heldout_fraction": 0},
            Model("broken", broken, "x"),
            demonstrations,
            Runs(tmp_path / "runs"),
        )


@pytest.mark.parametrize(
    ("stage", "change", "says"),
    [
        (
            "sft",
            {"rows_per_update": 8, "rows_per_pass": 3},
            "rows_per_update (8) must be a multiple of rows_",
        ),
        ("sft", {"trainer": {"optim": "adamm"}}, "sft.trainer: "),
        ("dpo", {"trainer": {"optim": "adamm"}}, "rl.trainer: "),
        ("reward", {"trainer": {"lr_scheduler_type": "zigzag"}}, "reward.trainer: "),
    ],
)
def test_bad_settings_are_usage_errors(
    tiny_model: Model,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    stage: str,
    change: dict[str, Any],
    says: str,
) -> None:
    data = request.getfixturevalue("demonstrations" if stage == "sft" else "preferences")
    config = {**(SFT if stage == "sft" else PAIRS), **change}
    with pytest.raises(UsageError) as caught:
        run_stage(stage, config, tiny_model, data, Runs(tmp_path / "runs"))
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward"])
def test_the_merged_model_equals_the_base_with_its_adapter(
    tiny_model: Model, tmp_path: Path, request: pytest.FixtureRequest, stage: str
) -> None:
    import peft

    from accord.models.loading import load_policy, load_reward_model

    data = request.getfixturevalue("demonstrations" if stage == "sft" else "preferences")
    config = {**(SFT if stage == "sft" else PAIRS), "lora": {"rank": 4, "alpha": 8}, "learning_rate": 1e-2}
    run = run_stage(stage, config, tiny_model, data, Runs(tmp_path / "runs"))
    saved = Model("", run.path / "model", "")
    if stage == "reward":
        base, merged = load_reward_model(tiny_model, new_head=True).eval(), load_reward_model(saved).eval()
    else:
        base, merged = load_policy(tiny_model).eval(), load_policy(saved).eval()
    ids = torch.randint(3, 250, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = base(ids).logits
        adapted = peft.PeftModel.from_pretrained(base, str(run.path / "adapter")).eval()(ids).logits
        ours = merged(ids).logits
    torch.testing.assert_close(ours, adapted, atol=1e-4, rtol=0)
    assert (ours - before).abs().max() > 0.1  # the adapter does something
    assert {weight.dtype for weight in load_file(run.path / "model" / "model.safetensors").values()} == {
        torch.float32
    }


def test_bfloat16_training_keeps_float32_weights(
    tiny_model: Model, demonstrations: Path, tmp_path: Path
) -> None:
    for lora in (None, LORA):
        config = {**SFT, "precision": "bfloat16", "lora": lora}
        run = run_stage("sft", config, tiny_model, demonstrations, Runs(tmp_path / "runs"))
        base = load_file(tiny_model.folder / "model.safetensors")
        for name, weight in load_file(run.path / "model" / "model.safetensors").items():
            assert weight.dtype == torch.float32, name
            if lora and ("norm" in name or "embed" in name):
                assert torch.equal(weight, base[name]), name  # LoRA's base is not rounded on the way


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_qlora_trains_here_or_says_what_it_needs(
    tiny_model: Model, tmp_path: Path, request: pytest.FixtureRequest, stage: str
) -> None:
    data = request.getfixturevalue("demonstrations" if stage == "sft" else "preferences")
    lora = {"rank": 4, "alpha": 8, "quantize_base": True}
    settings = {"sft": SFT, "reward": PROMPTS, "dpo": PAIRS}[stage]
    config = {**settings, "lora": lora, "learning_rate": 1e-2}
    try:
        run = run_stage(stage, config, tiny_model, data, Runs(tmp_path / "runs"))
    except UsageError as error:
        assert str(error).startswith("lora.quantize_base needs a bitsandbytes that works on this machine")
        return
    evaluations = [row["eval_loss"] for row in run.metric_rows() if "eval_loss" in row]
    assert evaluations[-1] < evaluations[0]
    base = load_file(tiny_model.folder / "model.safetensors")
    trained = load_file(run.path / "model" / "model.safetensors")
    assert torch.equal(trained["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    change = trained["model.layers.0.mlp.up_proj.weight"] - base["model.layers.0.mlp.up_proj.weight"]
    # exactly the adapter of rank 4, merged onto the base as it was before it was rounded to 4 bit
    assert torch.linalg.matrix_rank(change, atol=1e-5) == 4


def test_a_full_disk_leaves_no_half_written_checkpoint(
    tiny_model: Model, demonstrations: Path, tmp_path: Path
) -> None:
    """The third checkpoint meets a full disk, then the run continues and ends as if nothing had been."""
    config = {**SFT, "checkpoint_every_updates": 1, "epochs": 1}
    straight = run_stage("sft", config, tiny_model, demonstrations, Runs(tmp_path / "straight"))
    runs = Runs(tmp_path / "runs")
    real = torch.save

    def full(value: Any, file: Any, *arguments: Any, **options: Any) -> None:
        if "checkpoint-3" in str(file):
            Path(file).write_bytes(b"half")
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
        real(value, file, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(AccordError, match="is full; free some space and run the same command again"):
            run_stage("sft", config, tiny_model, demonstrations, runs)
    (run,) = [run for run in runs.all() if run.record.stage != "data"]
    names = sorted(path.name for path in (run.path / "checkpoints").glob("checkpoint-*"))
    assert names == ["checkpoint-1", "checkpoint-2"]
    assert_same(run_stage("sft", config, tiny_model, demonstrations, Runs(runs.root)), straight)


def test_an_interrupted_evaluation_row_is_not_written_twice(
    tiny_model: Model, demonstrations: Path, tmp_path: Path
) -> None:
    runs = Runs(tmp_path / "runs")

    def fail(**_: Any) -> None:
        raise KeyboardInterrupt

    with every_trainer_calls("6", fail), pytest.raises(KeyboardInterrupt):
        run_stage("sft", SFT, tiny_model, demonstrations, runs)
    (run,) = [run for run in runs.all() if run.record.stage != "data"]
    assert run.record.status == "running"
    run = run_stage("sft", SFT, tiny_model, demonstrations, Runs(runs.root))
    rows = run.metric_rows()
    assert [row["step"] for row in rows if "eval_loss" in row] == [0, 3, 6, 9, 11]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 12))
    assert json.dumps(rows)
