"""Base models as they come: without a chat template, without a token for padding, as an adapter."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import peft
import pytest
import tokenizers
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerFast,
)

from accord.chat.tokenizer import PROBE, TEMPLATES
from accord.chat.tokens import answer, encode_conversation, encode_prompt
from accord.config import load_config
from accord.errors import UsageError
from accord.models.base import examine_base, look_at_base, prepare_base
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model, resolve
from accord.preflight import check_round
from accord.records import Message
from accord.round import run_round
from accord.round_config import RoundConfig
from accord.runs import Runs

CONVERSATION = [
    Message(role="system", content="Be brief."), Message(role="user", content="Hello"), *answer("Yes"),
    Message(role="user", content="Bye"), *answer("No\n\nnever"),
]  # fmt: skip


def byte_tokenizer(special: list[str], **tokens: str) -> PreTrainedTokenizerFast:
    """One token a byte, as GPT-2's before merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(
        models.BPE({token: i for i, token in enumerate(special + alphabet)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As GPT-2 and Pythia are: one control token, for everything; no template; a head of its own."""
    folder = tmp_path_factory.mktemp("gpt")
    end = "<|endoftext|>"
    byte_tokenizer([end], bos_token=end, eos_token=end, pad_token=end).save_pretrained(folder)
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=512, initializer_range=0.2, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    GPTNeoXForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def policy_of(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_a_model_that_needs_nothing_stays_itself(tiny_model: Model, runs: Runs) -> None:
    assert prepare_base(str(tiny_model.folder), runs) == tiny_model
    assert not runs.root.exists()


# --- a template


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_model_gets_a_template(gpt: Path, runs: Runs, name: str, caplog: pytest.LogCaptureFixture) -> None:
    examined, _ = examine_base(str(gpt), runs, name)
    assert examined.folder == look_at_base(str(gpt), runs).folder == gpt
    assert not runs.root.exists()
    caplog.set_level("INFO", "accord.models")
    model = prepare_base(str(gpt), runs, name)
    assert f"it has the chat template {name}; new control tokens are " in caplog.text
    assert prepare_base(str(gpt), runs, name) == model  # the finished run
    assert model.run_id is not None and model.run_id.startswith("base-")
    assert runs.load(model.run_id).record.inputs["base"] == resolve(str(gpt), runs).digest

    tokenizer = load_tokenizer(model)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    encoded = encode_conversation(tokenizer, CONVERSATION)
    said = [i for i, m in zip(encoded.input_ids, encoded.assistant_mask, strict=True) if m]
    assert (
        tokenizer.decode(said).replace(" ", "") == f"Yes{tokenizer.eos_token}No\n\nnever{tokenizer.eos_token}"
    )
    for turns in (CONVERSATION[:2], CONVERSATION[:4]):
        prompt = encode_prompt(tokenizer, turns)
        assert encoded.input_ids[: len(prompt)] == prompt
    assert max(encoded.input_ids) > 256  # control tokens, and not their letters
    assert "Be brief." in tokenizer.decode(encoded.input_ids)

    # New rows are at the mean of the old, old ones are what they were.
    before, after = policy_of(gpt), policy_of(model.folder)
    rows = len(tokenizer)
    for old, new in (
        (before.get_input_embeddings().weight, after.get_input_embeddings().weight),
        (before.get_output_embeddings().weight, after.get_output_embeddings().weight),
    ):
        assert new.shape[0] == rows > 257
        assert torch.equal(new[:257], old)
        assert torch.equal(new[257:], old.mean(dim=0).to(torch.bfloat16).float().expand(rows - 257, -1))
    config = json.loads((model.folder / "config.json").read_text())
    assert (config["vocab_size"], config["dtype"]) == (rows, "bfloat16")
    assert (config["eos_token_id"], config["pad_token_id"]) == (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )


def test_a_template_whose_tokens_are_there_already(tiny_model: Model, tmp_path: Path, runs: Runs) -> None:
    """Nothing grows, and no row of the embeddings changes."""
    folder = tmp_path / "no-template"
    shutil.copytree(tiny_model.folder, folder)
    (folder / "chat_template.jinja").unlink()
    model = prepare_base(str(folder), runs, "chatml")
    assert model.run_id is not None and load_tokenizer(model).eos_token == "<|im_end|>"
    before, after = (load_file(each / "model.safetensors") for each in (folder, model.folder))
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_a_template_in_place_of_another(
    tiny_model: Model, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "accord")
    model = prepare_base(tiny_model.reference, runs, "zephyr")
    assert (
        "it has the chat template zephyr in place of its own; new control tokens are <|system|>, "
        in caplog.text
    )
    # A later round starts from what came of it, with the same configuration: nothing is left to do.
    assert prepare_base(model.reference, runs, "zephyr") == model
    tokenizer = load_tokenizer(model)
    for size in (1, 2, 4):
        conversation = [Message(role="user", content="x" * size), *answer("y")]
        assert tokenizer.decode(encode_conversation(tokenizer, conversation).input_ids).endswith(
            "y<|im_end|>"
        )


def test_what_the_templates_write(gpt: Path, runs: Runs) -> None:
    expected = {
        "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
        "llama3": "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYes<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "zephyr": "<|system|>\nBe brief.<|endoftext|>\n<|user|>\nHello<|endoftext|>\n<|assistant|>\nYes<|endoftext|>\n"
        "<|user|>\nBye<|endoftext|>\n<|assistant|>\n",
        "mistral": "[INST] Be brief.\n\nHello[/INST] Yes<|endoftext|>[INST] Bye[/INST]",
        "gemma": "<start_of_turn>user\nBe brief.\n\nHello<end_of_turn>\n<start_of_turn>model\nYes<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    }  # fmt: skip
    for name, text in expected.items():
        tokenizer = load_tokenizer(prepare_base(str(gpt), runs, name))
        assert tokenizer.decode(encode_prompt(tokenizer, CONVERSATION[:4])) == text


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("blocks", [True, False])
def test_our_templates_are_plain_jinja(name: str, blocks: bool) -> None:
    """And write the same whether or not a program trims blocks."""
    import accord.models.chat_templates

    text = (Path(accord.models.chat_templates.__file__).parent / f"{name}.jinja").read_text()
    made = ImmutableSandboxedEnvironment(
        trim_blocks=blocks, lstrip_blocks=blocks, undefined=jinja2.StrictUndefined
    ).from_string(text)
    messages = [{"role": role, "content": content} for role, content in PROBE]
    rendered = made.render(messages=messages, bos_token="<s>", eos_token="</s>", add_generation_prompt=True)
    assert rendered.startswith("<s><") or rendered.startswith("<s>[INST] Answer  briefly.")
    assert rendered == rendered.lstrip()
    assert all(part.strip() in rendered for part in ("Seven.", "Eleven, or\n\nthirteen.", "Not at all."))


def test_bos_begins_a_text_where_it_did_in_pre_training(gpt: Path, tmp_path: Path, runs: Runs) -> None:
    folder = tmp_path / "with-bos"
    shutil.copytree(gpt, folder)
    tokenizer = byte_tokenizer(["<s>", "</s>", "<unk>"], bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    policy = policy_of(gpt)
    policy.resize_token_embeddings(300)  # more rows than tokens, as many models have
    policy.save_pretrained(folder)
    model = prepare_base(str(folder), runs, "chatml")
    tokenizer = load_tokenizer(model)
    prompt = encode_prompt(tokenizer, [Message(role="user", content="Hi")])
    assert tokenizer.decode(prompt) == "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.count(tokenizer.bos_token_id) == 1
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<unk>")
    assert config["vocab_size"] == 257
    # The new tokens have rows that nobody used: no row is added, and the mean is of those that were used.
    after = policy_of(model.folder).get_input_embeddings().weight
    assert after.shape[0] == 300
    assert torch.equal(after[259:261], policy.get_input_embeddings().weight[:259].mean(dim=0).expand(2, -1))


def test_a_template_from_a_file_and_from_a_model(
    gpt: Path, tiny_model: Model, tmp_path: Path, runs: Runs
) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<stop>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer = load_tokenizer(prepare_base(str(gpt), runs, str(file)))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<stop>", "<|endoftext|>")
    assert {"<|user|>", "<|assistant|>", "<|system|>", "<stop>"} <= {
        str(token) for token in tokenizer.added_tokens_decoder.values() if token.special
    }
    tokenizer = load_tokenizer(prepare_base(str(gpt), runs, str(tiny_model.folder)))
    assert tokenizer.chat_template == load_tokenizer(tiny_model).chat_template
    assert tokenizer.eos_token == "<|im_end|>"
    assert len(tokenizer) == 257 + 2  # <|im_start|> and <|im_end|>


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (None, "has no chat template; set `chat_template` to one of chatml, llama3, zephyr, mistral, gemma, to a file"),
        ("chatlm", "'chatlm' is none of chatml, llama3, zephyr, mistral, gemma, no file.jinja, and no model"),
        ("absent.jinja", "absent.jinja: no such file"),
        ("itself", "has no chat template either"),
        ("broken.jinja", "the model's chat template refuses this conversation"),
        ("endless.jinja", "where one control token must end each of them"),
        ("outside.jinja", "the model's chat template refuses this conversation"),
    ],
)  # fmt: skip
def test_a_template_that_is_none(
    gpt: Path, tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch, setting: str | None, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.jinja").write_text("{% for m in messages %}{{ m.content }}")
    Path("endless.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    Path("outside.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(UsageError) as caught:
        examine_base(str(gpt), runs, str(gpt) if setting == "itself" else setting)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_with_several_templates_takes_the_default(
    tiny_model: Model, tmp_path: Path, runs: Runs
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model.folder, folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    marked = "{% generation %}" + tokenizer.chat_template + "{% endgeneration %}"
    tokenizer.chat_template = {"default": marked, "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(folder)
    loaded = load_tokenizer(resolve(str(folder), runs))
    assert encode_prompt(loaded, CONVERSATION[:2]) == encode_prompt(
        load_tokenizer(tiny_model), CONVERSATION[:2]
    )
    templates: Any = loaded.chat_template
    assert templates["tool_use"] == "{{ tools }}"
    assert "generation %}" not in templates["default"].replace("add_generation", "")
    tokenizer.chat_template = {"rag": marked, "tool_use": marked}
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(
        UsageError, match=r"has several chat templates \(.*\) and none of them is called default"
    ):
        load_tokenizer(resolve(str(folder), runs))


# --- padding


def test_a_model_without_a_token_to_spare_gets_one(gpt: Path, tmp_path: Path, runs: Runs) -> None:
    """As a tune of Pythia: ChatML's two tokens, and EOS for padding."""
    folder = tmp_path / "tune"
    tuned = prepare_base(str(gpt), runs, "chatml")
    shutil.copytree(tuned.folder, folder)
    own = byte_tokenizer(
        ["<|im_start|>", "<|im_end|>"],
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        bos_token="<|im_start|>",
    )
    own.chat_template = load_tokenizer(tuned).chat_template
    own.save_pretrained(folder)
    policy = policy_of(gpt)
    policy.resize_token_embeddings(258)
    policy.save_pretrained(folder)
    with pytest.raises(
        UsageError, match="no control token to spare; as `model` of a configuration, it gets one"
    ):
        load_tokenizer(resolve(str(folder), runs))
    model = prepare_base(str(folder), runs)
    tokenizer = load_tokenizer(model)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.pad_token_id) == (
        "<|im_end|>",
        "<|pad|>",
        258,
    )
    assert policy_of(model.folder).get_input_embeddings().weight.shape[0] == 259


# --- adapters


def adapter_of(base: Path, folder: Path, name: str | None = None, **options: Any) -> tuple[Path, Any]:
    torch.manual_seed(3)
    model: Any = peft.get_peft_model(
        policy_of(base),
        peft.LoraConfig(
            r=4, target_modules="all-linear", init_lora_weights=False, **{"task_type": "CAUSAL_LM"} | options
        ),
    )
    model.peft_config["default"].base_model_name_or_path = name or str(base)
    model.save_pretrained(folder)
    return folder, model.eval()


def test_an_adapter_is_merged_with_its_base(tiny_model: Model, tmp_path: Path, runs: Runs) -> None:
    folder, adapted = adapter_of(tiny_model.folder, tmp_path / "adapter")
    with pytest.raises(UsageError, match=r"holds an adapter of .* and no model of its own; as `model` of a"):
        resolve(str(folder), runs)
    assert (
        look_at_base(str(folder), runs).folder
        == examine_base(str(folder), runs)[0].folder
        == tiny_model.folder
    )
    model = prepare_base(str(folder), runs)
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        difference = (load_policy(model)(input_ids=ids).logits - adapted(input_ids=ids).logits).abs().max()
        changed = (
            (policy_of(tiny_model.folder)(input_ids=ids).logits - adapted(input_ids=ids).logits).abs().max()
        )
    assert difference < 1e-3 < changed
    record = runs.load(str(model.run_id)).record
    assert record.inputs["base"] == tiny_model.digest
    assert "adapter" in record.inputs


def test_an_adapter_of_a_run_is_its_child(tiny_model: Model, tmp_path: Path, runs: Runs) -> None:
    from accord.config import Config

    with runs.begin("sft", Config(), {"base": tiny_model}) as run:
        shutil.copytree(tiny_model.folder, run.path / "model")
        run.finish({})
    folder, _ = adapter_of(run.path / "model", tmp_path / "adapter")
    model = prepare_base(str(folder), runs)
    assert [each.id for each in runs.lineage(runs.load(str(model.run_id)))] == [run.id, model.run_id]


def test_an_adapter_s_tokenizer_and_embeddings_win(tiny_model: Model, tmp_path: Path, runs: Runs) -> None:
    wider, folder = tmp_path / "wider", tmp_path / "adapter"
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.add_tokens(["<extra>"])
    policy = policy_of(tiny_model.folder)
    policy.resize_token_embeddings(260)
    policy.save_pretrained(wider)
    # As PEFT does it where the vocabulary grew: the embeddings are in the adapter.
    _, adapted = adapter_of(wider, folder, str(tiny_model.folder), modules_to_save=["embed_tokens"])
    tokenizer.save_pretrained(folder)
    model = prepare_base(str(folder), runs)
    assert load_tokenizer(model).convert_tokens_to_ids("<extra>") == 259
    merged = load_policy(model)
    assert torch.equal(merged.get_input_embeddings().weight, policy.get_input_embeddings().weight)
    ids = torch.arange(5, 260)[None]
    with torch.no_grad():
        assert (merged(input_ids=ids).logits - adapted(input_ids=ids).logits).abs().max() < 1e-3


def test_an_adapter_and_a_template(gpt: Path, tmp_path: Path, runs: Runs) -> None:
    folder, adapted = adapter_of(gpt, tmp_path / "adapter")
    with pytest.raises(UsageError, match="has no chat template; set `chat_template`"):
        examine_base(str(folder), runs)
    model = prepare_base(str(folder), runs, "llama3")
    assert load_tokenizer(model).eos_token == "<|eot_id|>"
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        found, expected = load_policy(model)(input_ids=ids).logits, adapted(input_ids=ids).logits
    assert (found[..., :257] - expected).abs().max() < 0.3  # rounded to bfloat16, as the base is
    assert (policy_of(gpt)(input_ids=ids).logits - expected).abs().max() > 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"task_type": "SEQ_CLS"}, "is an adapter for SEQ_CLS, and a policy is a language model"),
        ({"peft_type": "PREFIX_TUNING"}, "of the kind PREFIX_TUNING, which cannot be merged"),
        ({"base_model_name_or_path": "/no/such/base"}, "is an adapter of /no/such/base, which cannot be had"),
        ({"base_model_name_or_path": None}, "does not say of which model it is an adapter"),
        ({"revision": "v2"}, "was trained on the revision v2 of"),
    ],
)
def test_an_adapter_without_a_use(
    tiny_model: Model, tmp_path: Path, runs: Runs, settings: dict[str, Any], says: str
) -> None:
    folder, _ = adapter_of(tiny_model.folder, tmp_path / "adapter")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    for find in (look_at_base, examine_base, prepare_base):
        with pytest.raises(UsageError) as caught:
            find(str(folder), runs)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_adapter_of_another_model(gpt: Path, tiny_model: Model, tmp_path: Path, runs: Runs) -> None:
    folder, _ = adapter_of(tiny_model.folder, tmp_path / "adapter")
    shutil.copy(tiny_model.folder / "tokenizer.json", folder)
    shutil.copy(tiny_model.folder / "tokenizer_config.json", folder)
    shutil.copy(tiny_model.folder / "chat_template.jinja", folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(gpt)}))
    with pytest.raises(UsageError, match="does not fit its base") as caught:
        prepare_base(str(folder), runs)
    assert "\n" not in str(caught.value)


def test_an_adapter_that_lost_its_weights(tiny_model: Model, tmp_path: Path, runs: Runs) -> None:
    folder, _ = adapter_of(tiny_model.folder, tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: weight for name, weight in weights.items() if "layers.1" not in name}, file)
    with pytest.raises(UsageError, match=r"does not fit its base: 14 of its weights are missing"):
        prepare_base(str(folder), runs)
    file.unlink()
    with pytest.raises(UsageError, match=r"has adapter_config\.json and no adapter_model\.safetensors"):
        prepare_base(str(folder), runs)


# --- in a round


ROOT = Path(__file__).parents[2]


def round_on(model: Path, *overrides: str) -> RoundConfig:
    return load_config(ROOT / "configs" / "tiny.yaml", RoundConfig, [f"model={model}", *overrides])


def test_what_is_wrong_is_said_before_the_start(gpt: Path, tmp_path: Path, runs: Runs) -> None:
    check_round(round_on(gpt, "chat_template=zephyr", "sft.max_sequence_tokens=4000"), runs, "sft")
    assert [run.record.stage for run in runs.all()] == ["data"]
    with pytest.raises(UsageError, match=r"^model .* has no chat template; set `chat_template` to one of"):
        check_round(round_on(gpt), runs, "sft")
    with pytest.raises(UsageError, match=r"^chat_template: 'zephir' is none of chatml"):
        check_round(round_on(gpt, "chat_template=zephir"), runs, "sft")
    folder, _ = adapter_of(gpt, tmp_path / "adapter", "/no/base")
    with pytest.raises(
        UsageError, match=r"2 things are wrong, and nothing was started:\n  model: .* is an adapter of"
    ):
        check_round(round_on(folder, "chat_template=a.jinja"), runs, "sft")
    broken = tmp_path / "broken"
    shutil.copytree(gpt, broken)
    weights = load_file(gpt / "model.safetensors")
    save_file(
        {name: each for name, each in weights.items() if "layers.1" not in name}, broken / "model.safetensors"
    )
    with pytest.raises(
        UsageError, match=r"^model: the weights of .* do not fit its architecture GPTNeoXForCausalLM"
    ):
        check_round(round_on(broken, "chat_template=zephyr"), runs, "sft")


def test_a_round_starts_from_the_prepared_base(gpt: Path, demonstrations: Path, runs: Runs) -> None:
    """By the stage alone; the base belongs to it."""
    config = round_on(
        gpt,
        "chat_template=chatml",
        f"sft.demonstrations=[{{path: {demonstrations}}}]",
        "sft.max_sequence_tokens=400",
    )
    check_round(config, runs, "sft")
    run = run_round(config, Runs(runs.root, only="sft"), "sft", checked=True)
    assert sorted(each.record.stage for each in runs.all()) == ["base", "data", "sft"]
    base, tuned = (each for each in runs.lineage(run) if each.record.stage != "data")
    assert (base.record.stage, tuned.id) == ("base", run.id)
    assert base.record.config["chat_template"] == "chatml"
    assert "<|im_start|>" in base.record.config["template"]
    assert base.metrics == {"new_tokens": 2}
    assert run_round(config, Runs(runs.root, only="sft"), "sft", checked=True).id == run.id


def test_the_gate_looks_at_both_models_first(tiny_model: Model, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model.folder, broken)
    weights = load_file(broken / "model.safetensors")
    save_file(
        {name: each for name, each in weights.items() if "layers.1" not in name}, broken / "model.safetensors"
    )
    (tmp_path / "gate.yaml").write_text(
        "prompts: bundled:demo/prompts.heldout.jsonl\ngate: {response_tokens: {direction: lower, margin: 5}}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "accord", "--runs", str(tmp_path / "runs"), "gate", "--baseline", tiny_model.reference,
         "--candidate", str(broken), "--config", str(tmp_path / "gate.yaml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: the weights of {broken} do not fit its architecture LlamaForCausalLM: 9 of "
    )
    assert done.stderr.count("\n") == 1
