"""Every method of fine-tuning: it learns, continues bitwise after a kill, and its saved model is what was trained."""

import copy
import json
import logging
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file
from training_helpers import (
    assert_same,
    every_trainer_calls,
    rows_without_times,
    run_stage,
    run_stage_and_be_killed,
)
from transformers import AutoConfig, AutoModelForCausalLM

from accord.errors import UsageError
from accord.models.base import examine_base, prepare_base
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model, locate, resolve
from accord.runs import Run, Runs
from accord.sampling import SamplingConfig
from accord.sampling.shared import SharedSampler
from sft.adaptation import adapter_config, choose_weights
from sft.config import SFTConfig
from sft.methods import TrainedWeights

pytestmark = pytest.mark.usefixtures("one_thread")

# 1.5 epochs of 27 rows by 4: 11 updates
SFT = {
    "epochs": 1.5, "learning_rate": 1e-2, "rows_per_update": 4, "rows_per_pass": 2, "max_sequence_tokens": 300,
    "checkpoint_every_updates": 2, "heldout_fraction": 0.1, "seed": 3,
}  # fmt: skip
LORA = {"rank": 4, "alpha": 8}
PREFIX = {"adapter": {"method": "prefix", "virtual_tokens": 5}, "learning_rate": 0.1}
PROMPT = {"adapter": {"method": "prompt", "virtual_tokens": 5}, "learning_rate": 0.1}
METHODS: dict[str, dict[str, Any]] = {
    "dora": {"lora": {**LORA, "dora": True, "rank_stabilized": True, "dropout": 0.1}},
    "pissa": {"lora": {**LORA, "start": "pissa"}, "kl_to_base": 0.5, "l2_to_start": 0.01},
    "olora": {"lora": {**LORA, "start": "olora", "rank_stabilized": True}, "learning_rate": 1e-3},
    "ia3": {"adapter": {"method": "ia3"}, "interpolate": [0.5, 1.0]},
    "prefix": PREFIX,
    "prompt": {**PROMPT, "kl_to_base": 0.2},
    "train_only": {"train_only": {"norms": True, "last_layers": 1}, "dropout": 0.1, "neftune_noise_alpha": 5},
    "all weights": {
        "learning_rate": 1e-3, "kl_to_base": 0.5, "l2_to_start": 0.1, "interpolate": [0.5, 1.0],
        "packing": True, "rows_per_update": 1, "rows_per_pass": 1,
    },
    "8 bit": {"optimizer": "adamw_8bit", "learning_rate": 1e-3},
    "dft": {"lora": LORA, "loss": "dft", "neftune_noise_alpha": 5, "learning_rate": 2e-3},
}  # fmt: skip


def fine_tuned(base: Model, data: Path, root: Path, **settings: Any) -> Run:
    return run_stage("sft", {**SFT, **settings}, base, data, Runs(root / "runs"))


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "model" / "model.safetensors")


def probe_ids() -> torch.Tensor:
    return torch.randint(3, 250, (2, 50), generator=torch.Generator().manual_seed(0))


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(probe_ids()).logits
    return found[:, -50:]  # behind virtual tokens


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_and_continues_bitwise_after_a_kill(
    tiny_model: Model, demonstrations: Path, tmp_path: Path, method: str
) -> None:
    config = {**SFT, **METHODS[method]}
    straight = run_stage("sft", config, tiny_model, demonstrations, Runs(tmp_path / "straight"))
    assert straight.metrics["heldout_loss"] < straight.metrics["heldout_loss_before"] - 0.05
    killed = Runs(tmp_path / "killed")
    run_stage_and_be_killed("sft", config, tiny_model, demonstrations, killed, "6")
    run_stage_and_be_killed("sft", config, tiny_model, demonstrations, killed, "finish")
    continued = run_stage("sft", config, tiny_model, demonstrations, Runs(tmp_path / "killed"))
    assert len(continued.record.continued_at) == 2
    assert_same(continued, straight)


@pytest.mark.parametrize(
    "settings",
    [METHODS["dora"], METHODS["pissa"], METHODS["olora"], METHODS["ia3"]],
    ids=["dora", "pissa", "olora", "ia3"],
)
def test_the_merged_model_is_the_base_with_its_adapter(
    tiny_model: Model, demonstrations: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    trained: list[torch.Tensor] = []
    with every_trainer_calls("train_end", lambda model, **_: trained.append(logits(model))):
        run = fine_tuned(tiny_model, demonstrations, tmp_path, **settings | {"interpolate": []})
    base = load_policy(tiny_model)
    before = logits(base)
    adapted = logits(peft.PeftModel.from_pretrained(base, str(run.path / "adapter")))
    ours = logits(load_policy(resolve(run, Runs(tmp_path / "runs"))))
    torch.testing.assert_close(ours, adapted, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours, trained[0], atol=1e-4, rtol=0)
    assert (ours - before).abs().max() > 0.1


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_from_the_weights_changes_nothing_and_fits_any_later_use(
    tiny_model: Model, preferences: Path, tmp_path: Path, start: str
) -> None:
    """The reward model's adapter is an ordinary one of the base, as PPO's shared base needs it."""
    from accord.models.loading import load_reward_model

    config = {
        "learning_rate": 1e-2, "rows_per_update": 8, "max_sequence_tokens": 300, "lora": {**LORA, "start": start},
    }  # fmt: skip
    run = run_stage("reward", config, tiny_model, preferences, Runs(tmp_path / "runs"))
    merged = load_reward_model(Model("", run.path / "model", "")).eval()
    base = load_reward_model(tiny_model, new_head=True)
    adapted: Any = peft.PeftModel.from_pretrained(base, str(run.path / "adapter")).eval()
    settings = json.loads((run.path / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["init_lora_weights"]) == (8, 16, True)
    with torch.inference_mode():
        torch.testing.assert_close(merged(probe_ids()).logits, adapted(probe_ids()).logits, atol=1e-4, rtol=0)
    assert not (run.path / "checkpoints").exists()


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_virtual_tokens_are_saved_sampled_and_scored(
    tiny_model: Model, demonstrations: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    from eval.likelihood.log_likelihood import Item, log_likelihoods

    trained: list[torch.Tensor] = []
    runs = Runs(tmp_path / "runs")
    settings = PREFIX if method == "prefix" else PROMPT
    with every_trainer_calls("train_end", lambda model, **_: trained.append(logits(model))):
        run = fine_tuned(tiny_model, demonstrations, tmp_path, **settings)
    tuned = resolve(run, runs)
    assert prepare_base(f"run:{run.id}", runs) == tuned
    assert examine_base(f"run:{run.id}", runs)[0] == tuned
    assert resolve(str(tuned.folder), runs).digest
    policy = load_policy(tuned)
    torch.testing.assert_close(logits(policy), trained[0], atol=1e-4, rtol=0)
    assert (trained[0] - logits(load_policy(tiny_model))).abs().max() > 0.1
    # the base is kept to the bit, where no other program takes it for the whole
    base = load_file(tuned.folder / "base" / "model.safetensors")
    for name, weight in load_file(tiny_model.folder / "model.safetensors").items():
        assert torch.equal(weight, base[name])
    with pytest.raises(OSError, match="no file named model"):
        AutoModelForCausalLM.from_pretrained(tuned.folder, use_safetensors=True)

    # `use` compares the log-probabilities of answers to prompts of unequal lengths with the trainer's
    caplog.set_level(logging.INFO)
    with SharedSampler(SamplingConfig(engine="vllm", answers_at_once=4)) as sampler:
        sampler.use(tuned)
    assert f"run:{run.id} was tuned by virtual tokens, which vLLM cannot have" in caplog.text

    tokenizer = load_tokenizer(tuned)
    items = [Item("I am", (" not", " here, or there")), Item("I am not", (" you",))]
    scores = log_likelihoods(policy, tokenizer, items)
    alone = tokenizer("<|endoftext|>I am not", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        log_p: Any = torch.log_softmax(policy(torch.tensor([alone])).logits[:, -len(alone) :], dim=-1)
    first = tokenizer("<|endoftext|>I am", add_special_tokens=False)["input_ids"]
    expected = sum(float(log_p[0, place - 1, alone[place]]) for place in range(len(first), len(alone)))
    if tokenizer.bos_token_id == alone[0]:
        assert scores[0][0].nats == pytest.approx(expected, abs=1e-4)
    assert all(score.nats < 0 for item in scores for score in item)


def test_stages_that_train_on_refuse_virtual_tokens(
    tiny_model: Model, demonstrations: Path, preferences: Path, tmp_path: Path
) -> None:
    runs = Runs(tmp_path / "runs")
    tuned = resolve(fine_tuned(tiny_model, demonstrations, tmp_path, **PREFIX), runs)
    for stage, data in (
        ("sft", demonstrations),
        ("dpo", preferences),
        ("kto", preferences),
        ("reward", preferences),
    ):
        with pytest.raises(UsageError, match=r"was tuned by virtual tokens .*in no weights that this stage"):
            run_stage(stage, {"max_sequence_tokens": 300}, tuned, data, runs)
    with pytest.raises(UsageError, match="was tuned by virtual tokens"):
        prepare_base(tuned.reference, runs, chat_template="zephyr")
    folder = tmp_path / "nowhere"
    server = SamplingConfig(engine="server", server_url="http://127.0.0.1:1", server_weights_folder=folder)
    with (
        SharedSampler(server) as sampler,
        pytest.raises(UsageError, match=r"sampling\.engine: .*set it to transformers"),
    ):
        sampler.use(tuned)
    assert locate(str(tuned.folder), runs).folder == tuned.folder


@pytest.mark.parametrize(
    ("chosen", "trained"),
    [
        ({"norms": True}, "norm"),
        ({"names": ["*.v_proj.*", "*.o_proj.weight"]}, ("v_proj", "o_proj")),
        ({"last_layers": 1}, "layers.1."),
    ],
    ids=["norms", "names", "last layers"],
)
def test_frozen_weights_stay_bitwise(
    tiny_model: Model,
    demonstrations: Path,
    tmp_path: Path,
    chosen: dict[str, Any],
    trained: str | tuple[str, ...],
) -> None:
    run = fine_tuned(tiny_model, demonstrations, tmp_path, train_only=chosen)
    before = load_file(tiny_model.folder / "model.safetensors")
    wanted = (trained,) if isinstance(trained, str) else trained
    for name, weight in weights(run).items():
        assert torch.equal(weight, before[name]) != any(part in name for part in wanted), name


def test_biases_are_those_of_a_model_that_has_them(tiny_model: Model) -> None:
    config = AutoConfig.from_pretrained(tiny_model.folder, attention_bias=True)
    model = AutoModelForCausalLM.from_config(config)
    choose_weights(model, TrainedWeights(biases=True), "this")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        f"model.layers.{i}.self_attn.{part}_proj.bias" for i in (0, 1) for part in ("q", "k", "v", "o")
    }


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"train_only": {"names": ["*.w_proj.*"]}}, "sft.train_only.names: no weight of .* has the name"),
        ({"train_only": {"biases": True}}, "sft.train_only.biases: .* has no biases.*set norms"),
        ({"train_only": {"last_layers": 3}}, "sft.train_only.last_layers is 3, and .* has 2 layers"),
        ({"lora": {"rank": 48, "start": "pissa"}}, "lora.rank is 48, and start: pissa .* only 32 wide"),
        ({"trainer": {"neftune_noise_alpha": 5}}, "sft.trainer.neftune_noise_alpha: accord sets this one"),
    ],
)
def test_what_names_nothing_is_refused(
    tiny_model: Model, demonstrations: Path, tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        if "trainer" in settings:
            from sft.train import check_arguments

            check_arguments(settings["trainer"])
        fine_tuned(tiny_model, demonstrations, tmp_path, **settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lora": {}, "adapter": {"method": "ia3"}}, "lora and adapter each say which weights"),
        ({"adapter": {"method": "ia3"}, "train_only": {"norms": True}}, "adapter and train_only each say"),
        ({"train_only": {}}, "names no weights; set names"),
        (
            {"adapter": {"method": "ia3", "virtual_tokens": 5}},
            "virtual_tokens is for the methods prefix and prompt",
        ),
        ({**PREFIX, "packing": True}, "with packing they would stand before the first conversation"),
        ({**PROMPT, "interpolate": [0.5]}, "virtual tokens change none"),
        (
            {**PREFIX, "trainer": {"gradient_checkpointing": True}},
            "gradient_checkpointing loses the virtual tokens",
        ),
        ({"lora": {"dora": True}, "interpolate": [0.5]}, "interpolate scales adapters"),
        ({"lora": {"start": "pissa"}, "interpolate": [0.5]}, "interpolate scales adapters"),
        ({"interpolate": [0.5], "heldout_fraction": 0}, "interpolate chooses by held-out rows"),
        ({"interpolate": [0.0]}, "greater than 0"),
        ({"lora": {"dora": True}, "l2_to_start": 1}, "dora scales rows besides"),
        ({"adapter": {"method": "ia3"}, "l2_to_start": 1}, "l2_to_start is for weights"),
        (
            {"lora": {"dora": True, "start": "pissa"}},
            "does not go with dora; set dora to false or start to zero",
        ),
        ({"lora": {"quantize_base": True, "start": "olora"}}, "does not go with quantize_base"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        SFTConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("section", "name"), [("DPOConfig", "dpo"), ("PPOConfig", "ppo"), ("BestOfNConfig", "best_of_n")]
)
def test_a_policy_with_a_reference_starts_beside_it(section: str, name: str) -> None:
    from rl import config

    with pytest.raises(
        ValidationError, match=r"lora\.start must be zero here: the reference is the policy without"
    ):
        getattr(config, section).model_validate({"algorithm": name, "lora": {"start": "pissa"}})


def test_experts_take_neither_dora_nor_a_start_from_weights(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "mixtral", vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    experts = Model("experts", tmp_path, "")
    for lora in ({"dora": True}, {"start": "pissa"}):
        with pytest.raises(UsageError, match=rf"lora.{next(iter(lora))}: experts has experts"):
            adapter_config(experts, SFTConfig.model_validate({"lora": lora}))
    with pytest.raises(UsageError, match=r"sft\.l2_to_start: experts has experts"):
        adapter_config(experts, SFTConfig.model_validate({"lora": {}, "l2_to_start": 1}))
    assert adapter_config(experts, SFTConfig.model_validate({"lora": {"rank_stabilized": True}})).use_rslora


def test_noise_and_the_weighted_loss_are_for_training_only(
    tiny_model: Model, demonstrations: Path, tmp_path: Path
) -> None:
    plain, noise, weighted = (
        fine_tuned(tiny_model, demonstrations, tmp_path, epochs=0.2, lora=LORA, **settings)
        for settings in ({}, {"neftune_noise_alpha": 20}, {"loss": "dft"})
    )
    before = plain.metrics["heldout_loss_before"]
    assert noise.metrics["heldout_loss_before"] == weighted.metrics["heldout_loss_before"] == before
    first = [next(row for row in run.metric_rows() if "loss" in row) for run in (plain, noise, weighted)]
    assert first[1]["loss"] != first[0]["loss"]
    assert first[2]["loss"] < first[0]["loss"] / 2  # times the probability


def test_dropout_is_for_training_only(tiny_model: Model, demonstrations: Path, tmp_path: Path) -> None:
    plain = fine_tuned(tiny_model, demonstrations, tmp_path, learning_rate=1e-3)
    dropped = fine_tuned(tiny_model, demonstrations, tmp_path, learning_rate=1e-3, dropout=0.3)
    assert rows_without_times(plain)[0] == rows_without_times(dropped)[0]  # the held-out loss before
    assert weights(plain)["model.norm.weight"].ne(weights(dropped)["model.norm.weight"]).any()
    assert AutoConfig.from_pretrained(dropped.path / "model").attention_dropout == 0.0


@pytest.mark.parametrize("method", [{"lora": LORA}, {"adapter": {"method": "ia3"}}, {"learning_rate": 1e-3}])
def test_half_way_is_half_way_in_the_merged_weights(
    tiny_model: Model, demonstrations: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    whole, half = (
        fine_tuned(tiny_model, demonstrations, tmp_path, **method, interpolate=[share])
        for share in (1.0, 0.5)
    )
    before, after = load_file(tiny_model.folder / "model.safetensors"), weights(whole)
    for name, weight in weights(half).items():
        torch.testing.assert_close(weight, (before[name] + after[name]) / 2, atol=1e-6, rtol=1e-5, msg=name)
    assert half.metrics["interpolated"] == 0.5
    assert whole.metrics["heldout_loss"] == pytest.approx(whole.metric_rows()[-1]["eval_loss"], abs=1e-5)


def test_the_share_with_the_lowest_sum_of_losses_is_kept(
    tiny_model: Model, demonstrations: Path, tmp_path: Path
) -> None:
    """What must be retained is what the tuning makes worse, so the tuned model is not the best one."""
    from accord.records import Demonstration, Message
    from accord.text_files import write_jsonl

    rows = [
        Demonstration(messages=[Message(role="user", content="Go"), Message(role="assistant", content=text)])
        for text in ("\x7f~^`@", "#@|~")
    ]
    write_jsonl(tmp_path / "general.jsonl", rows)
    run = fine_tuned(
        tiny_model, demonstrations, tmp_path, lora=LORA, epochs=4, learning_rate=3e-2,
        interpolate=[1, 0.05, 0.5], retention=str(tmp_path / "general.jsonl"),
    )  # fmt: skip
    table = run.metrics["interpolation"]
    assert [row["share"] for row in table] == [0.05, 0.5, 1.0]
    best = min(table, key=lambda row: row["heldout_loss"] + row["retention_loss"])
    assert run.metrics["interpolated"] == best["share"] < 1
    assert run.metrics["heldout_loss"] == best["heldout_loss"]
    assert run.metrics["retention_loss"] == pytest.approx(best["retention_loss"], abs=1e-6)
    assert table[-1]["retention_loss"] > run.metrics["retention_loss_before"]


def test_a_copy_of_the_trained_model_has_all_that_peft_keeps(tiny_model: Model) -> None:
    """Samplers merge a copy; DoRA's lengths must be in it."""
    from accord.models.adapters import peft_config
    from accord.sampling.weights import merged

    lora = SFTConfig.model_validate({"lora": {**LORA, "dora": True}}).lora
    policy: Any = peft.get_peft_model(load_policy(tiny_model), peft_config(tiny_model, lora, "CAUSAL_LM"))
    for name, p in policy.named_parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)))
    kept = copy.deepcopy(policy.state_dict())
    torch.testing.assert_close(logits(merged(policy)), logits(policy), atol=1e-4, rtol=0)
    assert all(torch.equal(p, kept[name]) for name, p in policy.state_dict().items())


def test_the_page_s_examples_are_valid() -> None:
    page = (Path(__file__).parents[2] / "docs/fine-tune.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        SFTConfig.model_validate(yaml.safe_load(example)["sft"])
    for inline in re.findall(r"\| `((?:lora|adapter): \{.*?\})` \|", page):
        SFTConfig.model_validate(yaml.safe_load(inline))
    named = re.findall(
        r"`((?:kl_to_base|l2_to_start|interpolate|dropout|neftune_noise_alpha|loss): [^`]+)`", page
    )
    assert len(named) == 7
    for each in named:
        SFTConfig.model_validate(yaml.safe_load(each))


def test_a_base_in_4_bit_takes_the_methods_that_go_with_it(
    tiny_model: Model, demonstrations: Path, tmp_path: Path
) -> None:
    for options, others in (
        ({"rank_stabilized": True}, {"kl_to_base": 0.2, "l2_to_start": 0.01, "interpolate": [0.5, 1.0]}),
        ({"dora": True}, {"neftune_noise_alpha": 5}),
    ):
        lora = {**LORA, "quantize_base": True, **options}
        try:
            run = fine_tuned(tiny_model, demonstrations, tmp_path, lora=lora, **others)
        except UsageError as error:
            assert str(error).startswith("lora.quantize_base needs a bitsandbytes that works on this machine")
            return
        assert run.metrics["heldout_loss"] < run.metrics["heldout_loss_before"] - 0.5
        adapted = peft.PeftModel.from_pretrained(load_policy(tiny_model), str(run.path / "adapter"))
        merged = load_policy(Model("", run.path / "model", ""))
        torch.testing.assert_close(logits(merged), logits(adapted), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "settings", [PREFIX, {"lora": {**LORA, "start": "pissa"}, "learning_rate": 0.05}], ids=["prefix", "pissa"]
)
def test_early_stopping_keeps_the_best_model(
    tiny_model: Model, demonstrations: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    run = fine_tuned(
        tiny_model, demonstrations, tmp_path, **settings, epochs=6, evaluate_every_updates=3,
        early_stopping_evaluations=2,
    )  # fmt: skip
    best = min(row["eval_loss"] for row in run.metric_rows() if "eval_loss" in row)
    assert run.metrics["heldout_loss"] == best
    if "lora" in settings:  # what is saved can be trained on, and begins with the same loss
        saved = resolve(run, Runs(tmp_path / "runs"))
        again = fine_tuned(saved, demonstrations, tmp_path, epochs=0.1, learning_rate=1e-9)
        assert again.metrics["heldout_loss_before"] == pytest.approx(best, abs=1e-4)
