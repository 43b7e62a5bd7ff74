"""A conversation in the terminal: the model's own tokens, turn after turn, and what commands do with it."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from accord.chat.tokens import encode_prompt
from accord.cli.main import main
from accord.errors import UsageError
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model
from accord.records import Message
from accord.sampling.talk import Talk
from accord.terminal import printable


def greedy(model: Model, messages: list[Message], tokens: int) -> str:
    """The likeliest answer, a token at a time, without a cache."""
    tokenizer, policy = load_tokenizer(model), load_policy(model).eval()
    ids = encode_prompt(tokenizer, messages)
    begin = len(ids)
    with torch.no_grad():
        for _ in range(tokens):
            ids.append(int(policy(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    return str(tokenizer.decode(ids[begin:], skip_special_tokens=True))


def test_turns_follow_one_another(tiny_model: Model) -> None:
    talk = Talk(tiny_model, system="Be short.")
    first = "".join(talk.answer("Name a prime.", temperature=0, max_response_tokens=6))
    asked = [Message(role="system", content="Be short."), Message(role="user", content="Name a prime.")]
    assert first == greedy(tiny_model, asked, 6)
    second = "".join(talk.answer("Another?", temperature=0, max_response_tokens=6))
    asked += [Message(role="assistant", content=first), Message(role="user", content="Another?")]
    assert second == greedy(tiny_model, asked, 6)
    assert talk.messages == [*asked, Message(role="assistant", content=second)]
    talk.begin()
    assert talk.messages == asked[:1]


def test_seeds_decide_and_an_answer_can_be_cut(tiny_model: Model) -> None:
    def said(seed: int) -> str:
        return "".join(Talk(tiny_model, seed=seed).answer("Hello", temperature=1, max_response_tokens=200))

    assert said(1) == said(1)
    assert said(1) != said(2)
    talk = Talk(tiny_model, seed=1)
    pieces = talk.answer("Hello", temperature=1, max_response_tokens=200)
    first = next(piece for piece in pieces if piece.strip())
    pieces.close()  # type: ignore[attr-defined]
    assert talk.messages[-1].role == "assistant"
    assert talk.messages[-1].content.endswith(first)
    assert len(talk.messages[-1].content) < len(said(1))


def test_a_conversation_that_is_too_long_is_told(tiny_model: Model) -> None:
    talk = Talk(tiny_model)
    with pytest.raises(UsageError, match="begin a new one"):
        list(talk.answer("word " * 10_000))
    assert talk.messages == []


def accord(tmp_path: Path, model: Model, lines: list[str], *options: str) -> Result:
    command = ["--runs", str(tmp_path / "runs"), "chat", str(model.folder), "--temperature", "0", *options]
    return CliRunner().invoke(main, command, input="\n".join(lines) + "\n")


def test_the_command(tiny_model: Model, tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    lines = ["Hi", "", f"/save {kept}", "/new", "/system Be kind.", "Hi again", f"/save {kept}", "/nonsense"]
    found = accord(tmp_path, tiny_model, [*lines, "/quit", "never read"], "--max-tokens", "4")
    assert found.exit_code == 0, found.output
    rows = [json.loads(line)["messages"] for line in kept.read_text().splitlines()]
    assert [[message["role"] for message in row] for row in rows] == [
        ["user", "assistant"], ["system", "user", "assistant"],
    ]  # fmt: skip
    assert printable(rows[0][1]["content"]) in found.output
    assert rows[1][0]["content"] == "Be kind."
    assert "/save FILE" in found.output


def test_what_is_no_model_is_one_sentence(tiny_model: Model, tmp_path: Path) -> None:
    for name, message in (("promoted", "no model was promoted"), ("sft-1", "no run in"), ("./none", "none")):
        found = CliRunner().invoke(main, ["--runs", str(tmp_path), "chat", name], input="Hi\n")
        assert found.exit_code == 2, found.output
        assert message in found.output
        assert found.output.count("\n") == 1
