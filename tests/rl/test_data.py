"""What PPO, RLOO and GRPO read: what is dropped and counted, and that nothing is encoded twice."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import rl.data
from accord.chat.tokens import answer, encode_prompt
from accord.models.loading import load_tokenizer
from accord.models.references import Model
from accord.records import Message, Preference, Prompt, conversation_id, read_jsonl
from accord.text_files import write_jsonl
from reward.data import split_by_prompt
from rl.data import load_data


def ask(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def test_every_prompt_that_is_not_used_is_counted(tiny_model: Model, tmp_path: Path) -> None:
    """A byte is a token. Held-out prompts of 150 letters fit a pair into 400 tokens, but leave no room for 150."""
    tokenizer = load_tokenizer(tiny_model)
    pairs = [
        Preference(
            prompt=ask(f"Ask {i} " + "x" * 150 * (i % 2)), chosen=answer("please"), rejected=answer("no")
        )
        for i in range(20)
    ]
    write_jsonl(tmp_path / "preferences.jsonl", pairs)
    heldout = [row.prompt for row in split_by_prompt(pairs, 0.5)[1]]
    long = [prompt for prompt in heldout if len(prompt[0].content) > 150]
    assert 0 < len(long) < len(heldout) == 10
    asked = [*(ask(f"Say {i}") for i in range(5)), ask("y" * 200), heldout[0]]
    write_jsonl(tmp_path / "prompts.jsonl", [Prompt(prompt=prompt) for prompt in asked])
    data = load_data(
        tokenizer,
        tmp_path / "prompts.jsonl",
        tmp_path / "preferences.jsonl",
        0.5,
        400,
        max_response_tokens=150,
    )
    assert data.dropped == {
        "prompts_heldout": 1, "prompts_too_long": 1, "heldout_prompts_too_long": len(long), "pairs_too_long": 0,
        "pairs_equal_once_encoded": 0, "pairs_weight_zero": 0,
    }  # fmt: skip
    assert [prompt.messages for prompt in data.prompts] == asked[:5]
    assert [prompt.ids for prompt in data.prompts] == [encode_prompt(tokenizer, each) for each in asked[:5]]
    assert [prompt.messages for prompt in data.heldout_prompts] == [
        each for each in heldout if each not in long
    ]


def test_a_prompt_is_encoded_once(
    tiny_model: Model, tmp_path: Path, preferences: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", [Prompt(prompt=ask(f"Say {i}")) for i in range(5)])
    encoded: Counter[str] = Counter()

    def counted(tokenizer: Any, prompt: Sequence[Message]) -> list[int]:
        encoded[conversation_id(prompt)] += 1
        return encode_prompt(tokenizer, prompt)

    monkeypatch.setattr(rl.data, "encode_prompt", counted)
    load_data(load_tokenizer(tiny_model), tmp_path / "prompts.jsonl", preferences, 0.2, 300, 20)
    heldout = split_by_prompt(read_jsonl(preferences, Preference), 0.2)[1]
    assert encoded == Counter({conversation_id(ask(f"Say {i}")) for i in range(5)}) + Counter(
        {conversation_id(row.prompt) for row in heldout}
    )
