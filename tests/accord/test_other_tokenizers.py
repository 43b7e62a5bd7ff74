"""Tokenizers of other kinds than the bundled one's go through SFT and DPO; only answers and their end are learned."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from training_helpers import run_stage
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from accord.chat.tokens import answer, encode_conversation, encode_prompt
from accord.models.base import prepare_base
from accord.models.loading import load_tokenizer
from accord.models.references import resolve
from accord.records import Demonstration, Message, Preference
from accord.runs import Runs
from accord.text_files import write_jsonl

pytestmark = pytest.mark.usefixtures("one_thread")

TAUGHT = {
    "What is salt?": "It is the sea.",
    "What is blue?": "It is the sky, mostly.",
    "Is it warm?": "No.\n\nOr yes.",
}
CORPUS = [text for pair in TAUGHT.items() for text in pair] * 20
SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
}
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-2, "rows_per_update": 3, "rows_per_pass": 3, "max_sequence_tokens": 200,
    "checkpoint_every_updates": 100,
}  # fmt: skip


def sentencepiece_llama(folder: Path) -> str:
    """As Llama 2 and Mistral were first published: tokenizer.model alone, byte fallback, no padding token."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=320, model_type="bpe", byte_fallback=True,
        hard_vocab_limit=False, character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
                "add_bos_token": True, "add_eos_token": False, "legacy": False}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    vocabulary = len(AutoTokenizer.from_pretrained(folder))
    LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **SIZES)).save_pretrained(folder)
    return "zephyr"


def byte_level_neox(folder: Path) -> str:
    """As GPT-NeoX's: byte-level, one control token, no padding token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(folder)
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=len(tokenizer), **SIZES)).save_pretrained(folder)
    return "llama3"


def characters_with_eos_for_padding(folder: Path) -> str:
    """Words of characters with a mark for blanks, and EOS for padding, unknown words and beginnings alike."""
    backend = Tokenizer(models.BPE(unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    letters = sorted({letter for text in CORPUS for letter in text} | set("uservisantm:\n"))
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=120, special_tokens=["<end>"], initial_alphabet=letters)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<end>' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), tie_word_embeddings=True, pad_token_id=0, eos_token_id=0, **SIZES
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return ""


@pytest.mark.parametrize("make", [sentencepiece_llama, byte_level_neox, characters_with_eos_for_padding])
def test_a_tokenizer_of_another_kind(make: Callable[[Path], str], tmp_path: Path, runs: Runs) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "base"
    folder.mkdir()
    base = prepare_base(str(folder), runs, make(folder) or None)
    tokenizer = load_tokenizer(base)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    turns = [
        Message(role="user", content=" Is it warm? "),
        *answer("No.\n\nOr yes."),
        Message(role="user", content="Hm."),
    ]
    turns += answer("It is the sea.")
    encoded = encode_conversation(tokenizer, turns)
    said = [i for i, learned in zip(encoded.input_ids, encoded.assistant_mask, strict=True) if learned]
    eos = tokenizer.eos_token
    assert tokenizer.decode(said).replace("  ", " ") == f"No.\n\nOr yes.{eos}It is the sea.{eos}"
    for length in (1, 3):
        prompt = encode_prompt(tokenizer, turns[:length])
        assert encoded.input_ids[: len(prompt)] == prompt

    asked = {question: [Message(role="user", content=question)] for question in TAUGHT}
    rows = [Demonstration(messages=[*asked[question], *answer(text)]) for question, text in TAUGHT.items()]
    write_jsonl(tmp_path / "taught.jsonl", rows)
    sft = run_stage(
        "sft", SETTINGS | {"epochs": 40, "heldout_fraction": 0}, base, tmp_path / "taught.jsonl", runs
    )
    policy = resolve(sft, runs)
    model = AutoModelForCausalLM.from_pretrained(policy.folder)
    tokenizer = AutoTokenizer.from_pretrained(policy.folder)
    for question, text in TAUGHT.items():
        prompt = encode_prompt(tokenizer, asked[question])
        words = model.generate(torch.tensor([prompt]), max_new_tokens=40)[0, len(prompt) :]
        assert tokenizer.decode(words).strip() == text + tokenizer.eos_token  # and no more: it learned to end

    pairs = [
        Preference(prompt=asked[question], chosen=answer(text), rejected=answer(other))
        for question, text in TAUGHT.items() for other in TAUGHT.values() if other != text
    ]  # fmt: skip
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    settings = SETTINGS | {"epochs": 2, "learning_rate": 1e-3, "warmup_fraction": 0, "heldout_fraction": 0.3}
    run = run_stage("dpo", settings, policy, tmp_path / "pairs.jsonl", runs)
    assert run.metrics["first_loss"] == pytest.approx(0.693147, abs=1e-5)
    assert run.metrics["train_loss"] < 0.6931
