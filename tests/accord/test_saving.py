"""What leaves accord: a folder that others load and serve as it was evaluated."""

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors.torch import load_file
from test_base import byte_tokenizer, policy_of
from training_helpers import run_stage
from transformers import AutoModelForCausalLM, AutoTokenizer

from accord.chat.tokens import answer, encode_conversation, encode_prompt
from accord.models.base import prepare_base
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model, resolve
from accord.records import Demonstration, Message, Preference
from accord.runs import Run, Runs
from accord.text_files import write_jsonl
from reward.score import load_scorer, score, score_ids

pytestmark = pytest.mark.usefixtures("one_thread")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}\n"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{%- endgeneration %}\n{{ '\n' }}{% else %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ANSWERS = {"Sea?": "Salt.", "Sky?": "Blue.", "Sun?": "Warm."}
SETTINGS: dict[str, Any] = {
    "epochs": 40, "learning_rate": 1e-2, "rows_per_update": 3, "rows_per_pass": 3, "max_sequence_tokens": 200,
    "heldout_fraction": 0, "checkpoint_every_updates": 100,
}  # fmt: skip


@pytest.fixture
def base(tiny_model: Model, tmp_path: Path) -> Path:
    """As hubs have it: in bfloat16, with marks in the template, and settings that cut the distribution."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_model.folder, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHATML)
    (folder / "generation_config.json").write_text(
        json.dumps({
            "do_sample": True, "temperature": 0.3, "top_p": 0.5, "repetition_penalty": 1.3, "eos_token_id": [2, 0],
            "max_length": 20,
        })
    )  # fmt: skip
    return folder


@pytest.fixture
def taught(tmp_path: Path) -> Path:
    rows = [
        Demonstration(messages=[Message(role="user", content=question), *answer(text)])
        for question, text in ANSWERS.items()
    ]
    write_jsonl(tmp_path / "taught.jsonl", rows)
    return tmp_path / "taught.jsonl"


def fine_tuned(base: Path, taught: Path, runs: Runs, **settings: Any) -> Run:
    return run_stage("sft", SETTINGS | settings, resolve(str(base), runs), taught, runs)


def test_it_answers_the_same_elsewhere(base: Path, taught: Path, runs: Runs) -> None:
    """Loaded as anybody would, as it is, in float32 and in bfloat16, with a template that any Jinja reads."""
    folder = fine_tuned(base, taught, runs).path / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
        (folder / "chat_template.jinja").read_text()
    )
    for options in ({}, {"dtype": torch.float32}, {"dtype": torch.bfloat16}):
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
        for question, text in ANSWERS.items():
            messages = [{"role": "user", "content": question}]
            prompt = template.render(messages=messages, add_generation_prompt=True)
            ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
            ours = encode_prompt(
                load_tokenizer(Model("", folder, "")), [Message(role="user", content=question)]
            )
            assert ids["input_ids"][0].tolist() == ours
            said = model.generate(**ids, max_new_tokens=20)[0, len(ours) :]
            assert tokenizer.decode(said) == text + "<|im_end|>"  # by its own generation_config.json: it ends


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}])
@pytest.mark.parametrize(
    ("setting", "saved"), [("auto", "bfloat16"), ("float32", "float32"), ("float16", "float16")]
)
def test_what_is_in_the_folder(
    base: Path, taught: Path, runs: Runs, lora: dict[str, int] | None, setting: str, saved: str
) -> None:
    run = fine_tuned(base, taught, runs, epochs=1, save_dtype=setting, lora=lora)
    folder = run.path / "model"
    weights = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {getattr(torch, saved)}
    config = json.loads((folder / "config.json").read_text())
    assert (config["dtype"], config["eos_token_id"], config["pad_token_id"]) == (saved, 2, 0)
    generation = json.loads((folder / "generation_config.json").read_text())
    del generation["transformers_version"]
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

    # The tokenizer is what it was, but for marks that only transformers reads.
    assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    mine, theirs = (json.loads((each / "tokenizer_config.json").read_text()) for each in (folder, base))
    assert mine == theirs
    template = (folder / "chat_template.jinja").read_text()
    assert "generation %}" not in template.replace("add_generation", "")
    assert template == CHATML.replace("{% generation %}", "{% if true %}").replace("endgeneration", "endif")

    mode = stat.S_IMODE((folder / "config.json").stat().st_mode)
    files = [file for place in ("model", "adapter") for file in (run.path / place).glob("*")]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files if file.is_file()} == {mode}
    if lora:
        adapter = load_file(run.path / "adapter" / "adapter_model.safetensors")
        assert {weight.dtype for weight in adapter.values()} == {torch.float32}


def test_the_next_stage_starts_from_what_was_saved(base: Path, taught: Path, runs: Runs) -> None:
    run = fine_tuned(base, taught, runs, epochs=1)
    model = load_policy(resolve(run, runs))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    stored = load_file(run.path / "model" / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], weight.float()) for name, weight in stored.items())


def test_a_reward_model_is_not_rounded(base: Path, preferences: Path, runs: Runs) -> None:
    """Its adapter on its base scores as the saved model does: PPO's shared_base relies on it."""
    import peft

    from accord.models.loading import load_reward_model
    from reward.score import reward_shift

    found = resolve(str(base), runs)
    settings = {key: value for key, value in SETTINGS.items() if key != "heldout_fraction"}
    run = run_stage(
        "reward", settings | {"epochs": 1, "lora": {"rank": 4, "alpha": 8}}, found, preferences, runs
    )
    model, rows = resolve(run, runs), [[5, 6, 7, 2], [8, 9, 2]]
    saved: Any = load_scorer(model)
    tokenizer = load_tokenizer(model)
    adapted: Any = peft.PeftModel.from_pretrained(
        load_reward_model(found, new_head=True), str(run.path / "adapter")
    ).eval()
    adapted.config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        adapted = [adapted(torch.tensor([row])).logits.item() - reward_shift(saved) for row in rows]
    assert adapted == pytest.approx(score_ids(saved, tokenizer, rows), abs=1e-5)


# --- a tokenizer whose only control token is its end: it goes through every stage


@pytest.fixture
def without_padding(tiny_model: Model, tmp_path: Path, runs: Runs) -> Model:
    folder = tmp_path / "without-padding"
    tokenizer = byte_tokenizer(["<|end|>"], eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    tokenizer.save_pretrained(folder)
    policy = policy_of(tiny_model.folder)
    policy.resize_token_embeddings(257)
    policy.config.pad_token_id = policy.config.eos_token_id = 0
    policy.save_pretrained(folder)
    return prepare_base(str(folder), runs)


def test_a_model_without_a_token_to_spare_goes_through_all_stages(
    without_padding: Model, taught: Path, preferences: Path, preference_rows: list[Preference], runs: Runs
) -> None:
    tokenizer = load_tokenizer(without_padding)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 257)
    policy = resolve(run_stage("sft", SETTINGS, without_padding, taught, runs), runs)
    model = AutoModelForCausalLM.from_pretrained(policy.folder)
    for question, text in ANSWERS.items():
        prompt = encode_prompt(tokenizer, [Message(role="user", content=question)])
        said = model.generate(torch.tensor([prompt]), max_new_tokens=20)[0, len(prompt) :].tolist()
        assert tokenizer.decode(said) == text + "<|end|>"  # the end was learned: it was not taken for padding

    settings = {key: value for key, value in SETTINGS.items() if key != "heldout_fraction"} | {"epochs": 1}
    reward_model = resolve(run_stage("reward", settings, policy, preferences, runs), runs)
    conversations = [[*row.prompt, *row.chosen] for row in preference_rows[:12]]
    together = score(reward_model, conversations, 12)
    assert score(reward_model, conversations, 1) == pytest.approx(together, abs=1e-5)
    scorer = load_scorer(reward_model)
    ids = [encode_conversation(tokenizer, each).input_ids for each in conversations]
    with torch.no_grad():  # by hand, at the last token, which is the end
        by_hand = [
            scorer.score(scorer.model(torch.tensor([row])).last_hidden_state[0, -1]).item() for row in ids
        ]
    assert together == pytest.approx(by_hand, abs=1e-5)

    run = run_stage("dpo", settings | {"warmup_fraction": 0}, policy, preferences, runs)
    assert run.metrics["first_loss"] == pytest.approx(0.693147, abs=1e-5)
    assert run.metrics["heldout_loss"] < 0.69
    for each in (reward_model.folder, run.path / "model"):
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            assert (each / file).read_bytes() == (without_padding.folder / file).read_bytes(), file


def test_a_reward_model_whose_configuration_takes_eos_for_padding(
    without_padding: Model, preferences: Path, preference_rows: list[Preference], runs: Runs
) -> None:
    """Scores are read at the end of a row all the same, whatever else is in the batch."""
    settings = {key: value for key, value in SETTINGS.items() if key != "heldout_fraction"} | {"epochs": 1}
    reward_model = resolve(run_stage("reward", settings, without_padding, preferences, runs), runs)
    conversations = [[*row.prompt, *row.chosen] for row in preference_rows[:12]]
    expected = score(reward_model, conversations)
    outside = reward_model.folder.parent.parent / "outside"
    shutil.copytree(reward_model.folder, outside)
    config = json.loads((outside / "config.json").read_text())
    (outside / "config.json").write_text(json.dumps(config | {"pad_token_id": config["eos_token_id"]}))
    assert score(resolve(str(outside), runs), conversations) == pytest.approx(expected, abs=1e-5)
