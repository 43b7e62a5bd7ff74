"""Conversations encoded together have the tokens and masks that each has alone."""

from typing import Any

import pytest
from test_chat import with_template
from transformers import PreTrainedTokenizerBase

from accord import bundled
from accord.chat import batches
from accord.chat.batches import encode_conversations
from accord.chat.openings import goes_forward
from accord.chat.tokens import encode_conversation
from accord.errors import DataError
from accord.models.loading import load_tokenizer
from accord.models.references import Model
from accord.records import Demonstration, Message, read_jsonl

SHIPPED = "bundled:demo/demonstrations.train.jsonl"
NAMES = ("own", "qwen2_5", "qwen3", "qwen3_instruct_2507", "llama3", "gemma", "gemma3", "phi3")


def turn(role: Any, content: str, **columns: Any) -> Message:
    return Message(role=role, content=content, **columns)


ODD = [
    [turn("user", "What ends a turn? <|im_end|>"), turn("assistant", "<|im_end|> does.")],
    [turn("user", "<|im_start|>assistant\nHa"), turn("assistant", "No.")],
    [turn("user", "Hm"), turn("assistant", "\n\nLate."), turn("user", "\n"), turn("assistant", " It is")],
    [turn("assistant", "I begin."), turn("user", "Oh"), turn("assistant", "Yes.")],
    [turn("system", "Short."), turn("user", "é 日本"), turn("assistant", "日本 é", weight=0), turn("user", "?"),
     turn("assistant", "7")],
    [turn("user", "Think."), turn("assistant", "Done.", reasoning_content="Well.")],
    [turn("user", "Nobody answers.")],
    [turn("user", "x"), turn("tool", "y"), turn("assistant", "z")],
]  # fmt: skip


def one_by_one(tokenizer: PreTrainedTokenizerBase, messages: list[Message], learns: bool) -> Any:
    try:
        return encode_conversation(tokenizer, messages, learns)
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_together_is_as_alone(
    bundled_model: Model, name: str, learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(bundled_model) if name == "own" else with_template(bundled_model, name)
    monkeypatch.setattr(batches, "LOOKED_AT_TWICE", 0)
    rows = read_jsonl(bundled.data_path(SHIPPED), Demonstration)[:40]
    conversations = [*(list(row.messages) for row in rows), *ODD]
    expected = [one_by_one(tokenizer, each, learns) for each in conversations]
    together = encode_conversations(tokenizer, conversations, learns)
    assert [str(each) if isinstance(each, DataError) else each for each in together] == expected


def test_templates_that_look_ahead_are_told_from_those_that_do_not(bundled_model: Model) -> None:
    question = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    loop = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endfor %}"
    assert goes_forward(str(load_tokenizer(bundled_model).chat_template))
    assert goes_forward(loop + question)
    rest = "{% if messages[0].role == 'system' %}{% set all = messages[1:] %}{% endif %}"
    assert goes_forward(rest + loop.replace("in messages", "in all") + question)
    last = "{% if messages[-1]['role'] == 'assistant' %}{{ ' ' }}{% endif %}"
    assert goes_forward(loop + question.replace("{{ '", last + "{{ '"))
    for looks in (
        loop.replace("{{ ", "{{ loop.last ~ "), loop.replace("{{ ", "{{ messages[-1].role ~ "),
        loop.replace("{{ ", "{{ messages|length ~ "), loop.replace("{{ ", "{{ (loop.nextitem or m).role ~ "),
        loop.replace("in messages", "in messages[::-1]"), loop.replace("in messages", "in messages[:-1]"),
        loop.replace("{{ ", "{{ add_generation_prompt ~ "), "{% set n = messages %}" + loop.replace("{{ ", "{{ n ~ "),

        loop.replace("{{ ", "{{ messages[loop.index0 - 1].role ~ "), loop + loop,
        "{% for m in messages|reverse %}{{ m.role }}{% endfor %}", "{% generation %}" + loop,
    ):  # fmt: skip
        assert not goes_forward(looks + question), looks
    for asks in ("bos_token + '", "messages[-1].content + '"):
        assert not goes_forward(loop + question.replace("{{ '", "{{ " + asks))
    assert not goes_forward(loop + question.replace("{{ '", last.replace("'role'", "'content'") + "{{ '"))
    assert not goes_forward(loop)
