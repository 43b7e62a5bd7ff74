"""Folders as people have them; each of the refused ones is one accident."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification

from accord.errors import UsageError
from accord.models.loading import load_policy, load_reward_model, load_tokenizer
from accord.models.references import Model, locate, resolve
from accord.models.weights import check_fit, stored_dtype
from accord.runs import Runs

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def good(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a head of its own."""
    folder = tmp_path_factory.mktemp("models") / "good"
    shutil.copytree(tiny_model.folder, folder)
    config = AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = False
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def changed(good: Path, tmp_path: Path, change: Callable[[Weights], Weights]) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def in_shards(good: Path, folder: Path) -> Path:
    shutil.copytree(good, folder)
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(good).save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def message_of(find: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        find()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what does not fit the architecture


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda w: {k.replace("_proj.weight", "_proj.base_layer.weight"): v for k, v in w.items()},
            ["14 of its weights are missing (model.layers.0.mlp.down_proj.weight, ", "14 in the folder", "wrapper"],
        ),
        (
            lambda w: {f"base_model.model.{k}": v for k, v in w.items()},
            ["21 of its weights are missing (lm_head.weight, model.embed_tokens.weight, ", ", ...)", "wrapper"],
        ),
        (lambda w: {k: w[k] for k in w if "lm_head" not in k}, ["1 of its weights are missing (lm_head.weight)"]),
        (lambda w: {k: w[k] for k in w if ".layers.1." not in k}, ["9 of its weights are missing (model.layers.1."]),
        (lambda w: w | {"v_head.weight": torch.zeros(1, 64)}, ["1 in the folder are none of its (v_head.weight)"]),
        (
            lambda w: w | {"model.norm.weight": torch.zeros(32)},
            ["1 have another shape than config.json says (model.norm.weight)"],
        ),
    ],
    ids=["unmerged", "wrapped", "no head", "a layer lost", "left over", "shape"],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(
    good: Path, tmp_path: Path, runs: Runs, change: Callable[[Weights], Weights], says: list[str]
) -> None:
    model = resolve(str(changed(good, tmp_path, change)), runs)
    for find in (lambda: load_policy(model), lambda: check_fit(model.reference, model.folder)):
        message = message_of(find)
        assert message.startswith(
            f"the weights of {model.reference} do not fit its architecture LlamaForCausalLM: "
        )
        assert [each for each in says if each not in message] == []


def test_weights_that_fit(good: Path, tiny_model: Model, tmp_path: Path, runs: Runs) -> None:
    """A tied head is in no file; old files hold the rotary frequencies, too; shards are as good as one file."""
    old = changed(
        good, tmp_path, lambda w: w | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    )
    for folder in (good, tiny_model.folder, old, in_shards(good, tmp_path / "shards")):
        check_fit(str(folder), folder)
        assert load_policy(resolve(str(folder), runs)).config.vocab_size == 259
    one, several = (load_policy(Model("", each, "")) for each in (good, tmp_path / "shards"))
    assert all(map(torch.equal, one.state_dict().values(), several.state_dict().values()))


def test_a_head_that_is_said_to_be_tied_and_is_not(tiny_model: Model, tmp_path: Path, runs: Runs) -> None:
    head = torch.ones(259, 64)
    folder = changed(tiny_model.folder, tmp_path, lambda w: w | {"lm_head.weight": head})
    assert "two different ones; set tie_word_embeddings to false" in message_of(
        lambda: load_policy(resolve(str(folder), runs))
    )
    same = changed(
        tiny_model.folder, tmp_path / "same", lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"].clone()}
    )  # fmt: skip
    load_policy(resolve(str(same), runs))


def test_a_reward_model_is_no_policy_and_a_policy_no_reward_model(
    good: Path, tmp_path: Path, runs: Runs
) -> None:
    folder = tmp_path / "reward-model"
    shutil.copytree(good, folder)
    config = LlamaConfig.from_pretrained(folder)
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(folder)
    model, policy = resolve(str(folder), runs), resolve(str(good), runs)
    assert load_reward_model(model).score.weight.shape == (1, 64)
    assert "is a reward model (its architecture ends in" in message_of(lambda: load_policy(model))
    assert "1 of its weights are missing (score.weight)" in message_of(lambda: load_reward_model(policy))
    # A policy gets a head where one is asked for; its own is left out. Its body must be whole nevertheless.
    assert load_reward_model(policy, new_head=True).score.weight.shape == (1, 64)
    broken = resolve(
        str(changed(good, tmp_path, lambda w: {k: v for k, v in w.items() if ".1." not in k})), runs
    )
    assert "9 of its weights are missing" in message_of(lambda: load_reward_model(broken, new_head=True))


# --- what the files say before anything is loaded


def both(find_in: Path, runs: Runs) -> str:
    found, located = (message_of(lambda find=find: find(str(find_in), runs)) for find in (resolve, locate))  # type: ignore[misc]
    assert found == located
    return found


def test_an_index_whose_file_is_not_there(good: Path, tmp_path: Path, runs: Runs) -> None:
    folder = in_shards(good, tmp_path / "model")
    shards = sorted(file.name for file in folder.glob("model-*"))
    (folder / shards[0]).unlink()
    assert (
        f"lacks 1 of the {len(shards)} files that model.safetensors.index.json names ({shards[0]})"
        in both(folder, runs)
    )
    (folder / "model.safetensors.index.json").unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in both(folder, runs)


def test_an_old_file_beside_new_shards(good: Path, tmp_path: Path, runs: Runs) -> None:
    folder = in_shards(good, tmp_path / "model")
    shutil.copy(good / "model.safetensors", folder)
    assert "holds two sets of weights, model.safetensors and those that" in both(folder, runs)


def test_an_index_that_names_other_weights(good: Path, tmp_path: Path, runs: Runs) -> None:
    folder = in_shards(good, tmp_path / "model")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.layers.7.w"] = next(iter(index["weight_map"].values()))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names 1 weights that are not in their files (model.layers.7.w)" in both(folder, runs)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: content[:-100], "so it was cut off or damaged"),
        (lambda content: content[:1000], "is damaged and no safetensors file"),
        (lambda content: content[:4], "is damaged and no safetensors file"),
        (lambda content: b"", "is damaged and no safetensors file"),
        (lambda content: struct.pack("<Q", 2**60) + content[8:], "its header is longer than the file"),
        (lambda content: content[:8] + b"\xff" + content[9:], "is damaged and no safetensors file"),
        (lambda content: struct.pack("<Q", 2) + b"[]", "is damaged and no safetensors file"),
        (lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run `git lfs pull`"),
    ],
)  # fmt: skip
def test_a_damaged_file(
    good: Path, tmp_path: Path, runs: Runs, damage: Callable[[bytes], bytes], says: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert says in both(folder, runs)


@pytest.mark.parametrize("content", ["{", "[]", '"llama"', b"\xff\xfe"])
def test_a_config_that_is_none(good: Path, tmp_path: Path, runs: Runs, content: str | bytes) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "put the file that came with the model there" in both(folder, runs)


def test_pickled_weights_come_with_the_way_out(good: Path, tmp_path: Path, runs: Runs) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    message = both(folder, runs)
    assert "has no safetensors weights but pytorch_model.bin" in message
    command = message.split('python -c "')[1].rstrip('"')
    exec(command)
    for name, weight in load_policy(resolve(str(folder), runs)).state_dict().items():
        assert torch.equal(weight, load_policy(Model("", good, "")).state_dict()[name])


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", None])
def test_quantised_weights_are_refused_before_they_are_loaded(
    good: Path, tmp_path: Path, runs: Runs, method: str | None
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4} if method else {"bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    message = both(folder, runs)
    assert f"holds quantised weights ({method or 'quantization_config in its config.json'})" in message
    assert "name the model that it was made from" in message


def test_an_adapter_beside_whole_weights(good: Path, tmp_path: Path, runs: Runs) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    policy = AutoModelForCausalLM.from_pretrained(good)
    peft.get_peft_model(policy, peft.LoraConfig(target_modules="all-linear")).save_pretrained(folder)
    assert "holds both a whole model and an adapter" in both(folder, runs)


# --- tokens and their rows


def test_every_token_that_may_be_read_has_a_row(good: Path, tmp_path: Path, runs: Runs) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    model = resolve(str(folder), runs)
    tokenizer = load_tokenizer(model)
    tokenizer.add_tokens(["<image>"], special_tokens=True)  # as Gemma 3's, which is never read
    tokenizer.save_pretrained(folder)
    load_tokenizer(model)
    tokenizer.add_tokens(["<tool>"])  # no control token: stands in a text as soon as somebody writes it
    tokenizer.save_pretrained(folder)
    message = message_of(lambda: load_tokenizer(model))
    assert "has 261 tokens and its embeddings have 259 rows, so 1 of its tokens have none (<tool>)" in message
    tokenizer.pad_token = "<image>"
    tokenizer.save_pretrained(folder)
    assert "(<image>, <tool>)" in message_of(lambda: load_tokenizer(model))


def test_eos_is_learned_though_the_configuration_takes_it_for_padding(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 2}))
    policy = load_policy(Model("", folder, ""))
    policy(input_ids=torch.tensor([[5, 2, 6]])).logits[0, 2].sum().backward()
    assert policy.get_input_embeddings().weight.grad[2].abs().max() > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_on_disk(good: Path, tmp_path: Path, dtype: str) -> None:
    folder = changed(good, tmp_path, lambda w: {k: v.to(getattr(torch, dtype)) for k, v in w.items()})
    assert stored_dtype(folder) == dtype
