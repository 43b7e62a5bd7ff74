"""Sentence scores against a plain loop over tokens, and their independence of everything but the sentence."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from accord.chat.tokens import start_of_text
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model
from eval.likelihood.log_likelihood import Item, log_likelihoods
from eval.suites.suite import find_suite, read_items

SENTENCES = ["The nurse said that she would be late.", "Hello.", "A man, a plan, a canal: Panama! " * 3]


def sentence_log_likelihoods(policy: Any, tokenizer: Any, sentences: Sequence[str]) -> list[float]:
    return [
        scores[0].nats for scores in log_likelihoods(policy, tokenizer, [Item("", (s,)) for s in sentences])
    ]


def one_by_one(model: Model, sentence: str) -> float:
    """The definition, token by token: no batch, no padding, no shortcut."""
    policy, tokenizer = load_policy(model).eval(), load_tokenizer(model)
    ids = [tokenizer.get_vocab()["<|endoftext|>"], *tokenizer.encode(sentence, add_special_tokens=False)]
    total = 0.0
    for i in range(1, len(ids)):
        with torch.no_grad():
            logits = policy(torch.tensor([ids[:i]])).logits[0, -1]
        total += float(torch.log_softmax(logits.double(), -1)[ids[i]])
    return total


def test_equals_the_definition(tiny_model: Model) -> None:
    scores = sentence_log_likelihoods(load_policy(tiny_model).eval(), load_tokenizer(tiny_model), SENTENCES)
    assert scores == pytest.approx([one_by_one(tiny_model, s) for s in SENTENCES], abs=1e-4)


def test_first_token_is_scored(tiny_model: Model) -> None:
    policy, tokenizer = load_policy(tiny_model).eval(), load_tokenizer(tiny_model)
    with (
        torch.no_grad()
    ):  # transformers makes the padding token's embedding zero, and here it starts the text
        policy.get_input_embeddings().weight[start_of_text(tokenizer)].normal_()
    a, b = sentence_log_likelihoods(policy, tokenizer, ["A", "B"])
    assert a != b


def test_probabilities_of_all_one_token_texts_sum_to_one(tiny_model: Model) -> None:
    policy, tokenizer = load_policy(tiny_model).eval(), load_tokenizer(tiny_model)
    with torch.no_grad():
        logits = policy(torch.tensor([[start_of_text(tokenizer)]])).logits[0, -1]
    ordinary = [chr(c) for c in range(32, 127)]
    scores = sentence_log_likelihoods(policy, tokenizer, ordinary)
    ids = [tokenizer.encode(c, add_special_tokens=False)[0] for c in ordinary]
    expected = torch.softmax(logits, -1)[ids].sum()
    assert torch.tensor(scores).exp().sum() == pytest.approx(float(expected), abs=1e-5)


def test_chatml_scores_start_at_the_document_separator(tiny_model: Model) -> None:
    tokenizer = load_tokenizer(tiny_model)
    assert tokenizer.bos_token == "<|im_start|>"
    assert start_of_text(tokenizer) == tokenizer.get_vocab()["<|endoftext|>"]


def test_a_bos_that_stands_once_is_used(tiny_model: Model) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    assert start_of_text(tokenizer) == tokenizer.bos_token_id


def test_the_shipped_suite_is_sound() -> None:
    pairs = read_items(find_suite("sentence_pairs"))
    assert len(pairs) == 120
    groups = {pair.group for pair in pairs}
    assert len(groups) == 8
    assert all(sum(pair.group == group for pair in pairs) == 15 for group in groups)
    assert all(len(p.more_stereotyping.split()) == len(p.less_stereotyping.split()) for p in pairs)


@pytest.mark.slow
def test_real_model_scores_do_not_depend_on_company(bundled_model: Model) -> None:
    policy, tokenizer = load_policy(bundled_model).eval(), load_tokenizer(bundled_model)
    pairs = read_items(find_suite("sentence_pairs"))
    sentences = [s for pair in pairs[:20] for s in (pair.more_stereotyping, pair.less_stereotyping)]
    together = sentence_log_likelihoods(policy, tokenizer, sentences)
    alone = [sentence_log_likelihoods(policy, tokenizer, [s])[0] for s in sentences[:8]]
    assert together[:8] == pytest.approx(alone, abs=2e-4)  # ten tokens, and 2e-5 for each
    assert sentence_log_likelihoods(policy, tokenizer, sentences[::-1])[::-1] == together
