"""`accord data score`: losses with and without the prompt, rewards and grades as columns."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from openai_server import completion, serving
from ppo_helpers import make_reward_model

import reward.columns
from accord.chat.tokens import encode_conversation, start_of_text
from accord.cli.main import main
from accord.data.difficulty import difficulties
from accord.data.rows import open_data
from accord.errors import DataError
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model
from accord.records import Demonstration, read_jsonl
from accord.runs import Runs
from reward.columns import ScoreConfig, score_columns
from reward.score import score
from sft.config import SFTConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def accord(runs: Runs, *arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["--runs", str(runs.root), *map(str, arguments)])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def nats(policy: Any, ids: list[int], mask: list[int]) -> float:
    """One sequence alone, without batches: minus the log-probability of each token that counts."""
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -sum(float(logits[i - 1, ids[i]]) for i in range(1, len(ids)) if mask[i])


def test_losses_are_those_of_each_row_alone(tiny_model: Model, demonstrations: Path) -> None:
    policy, tokenizer = load_policy(tiny_model).eval(), load_tokenizer(tiny_model)
    rows = read_jsonl(demonstrations, Demonstration)
    unlearned = rows[4].model_copy(deep=True)
    unlearned.messages[1] = unlearned.messages[1].model_copy(update={"weight": 0})
    rows = [*rows, unlearned]
    for row, found in zip(rows, difficulties(policy, tokenizer, rows), strict=True):
        encoded = encode_conversation(tokenizer, row.messages)
        ids, mask = encoded.input_ids, encoded.assistant_mask
        count = sum(mask)
        assert found.tokens == count
        assert found.loss == pytest.approx(nats(policy, ids, mask) / count, rel=1e-4)
        alone, span = 0.0, [start_of_text(tokenizer)]
        for token, learned in zip([*ids, 0], [*mask, 0], strict=True):
            if learned:
                span.append(token)
            elif len(span) > 1:
                alone += nats(policy, span, [1] * len(span))
                span = span[:1]
        assert found.loss_without_prompt == pytest.approx(alone / count, rel=1e-4)
        assert found.ifd == found.loss / found.loss_without_prompt


def test_a_row_that_cannot_be_measured_is_named(tiny_model: Model, tmp_path: Path) -> None:
    policy, tokenizer = load_policy(tiny_model).eval(), load_tokenizer(tiny_model)
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "a" * 2000},
                                             {"role": "assistant", "content": "b"}]}) + "\n")  # fmt: skip
    with pytest.raises(DataError, match=r"long\.jsonl:1: has 2\d\d\d tokens, and the model reads 1024"):
        difficulties(policy, tokenizer, read_jsonl(path, Demonstration))


def test_columns_by_which_rows_are_dropped(
    tiny_model: Model, demonstrations: Path, runs: Runs, tmp_path: Path
) -> None:
    scorer = make_reward_model(tiny_model, tmp_path / "reward-model")
    output = tmp_path / "scored.jsonl"
    options = ("--model", tiny_model.reference, "--reward-model", scorer.reference, "--output", output)
    result = accord(runs, "data", "score", demonstrations, *options)
    assert result.exit_code == 0, result.output
    rows = lines(output)
    assert [row["messages"] for row in rows] == [row["messages"] for row in lines(demonstrations)]
    assert all(
        {"loss", "loss_without_prompt", "ifd", "answer_tokens", "reward"} <= row.keys() for row in rows
    )
    conversations = [row.messages for row in read_jsonl(demonstrations, Demonstration)]
    assert [row["reward"] for row in rows] == pytest.approx(score(scorer, conversations), abs=1e-5)
    assert "loss: mean" in result.output and "run:scores-" in result.output
    losses = sorted(row["loss"] for row in rows)
    bound = (losses[9] + losses[10]) / 2
    kept = tmp_path / "kept.jsonl"
    done = accord(runs, "data", "convert", output, "--output", kept, "--drop", f"loss>{bound:.6f}")
    assert done.exit_code == 0 and len(lines(kept)) == 10
    # The run is found again, and any setting may name it.
    (run,) = runs.all()
    named = open_data(SFTConfig.model_validate({"demonstrations": [{"path": f"run:{run.id}"}]}), runs)
    assert read_jsonl(Path(named.demonstrations[0].path), Demonstration) == read_jsonl(output, Demonstration)
    again = accord(runs, "data", "score", demonstrations, *options, "--json")
    assert json.loads(again.stdout)["rows"] == 30 and len(runs.all()) == 1
    twice = accord(runs, "data", "score", output, "--model", tiny_model.reference)
    assert twice.exit_code == 1 and f"{output}:1: has a column 'loss' already" in twice.stderr
    assert accord(runs, "data", "score", demonstrations).exit_code == 2


def test_what_was_scored_before_a_kill_is_not_scored_again(
    tiny_model: Model, demonstrations: Path, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward.columns, "ROWS_AT_ONCE", 8)
    (tmp_path / "letters.py").write_text(
        "from pathlib import Path\n"
        f"log = Path({str(tmp_path / 'log')!r})\n"
        "def count(completions, **_):\n"
        "    before = log.read_text() if log.exists() else ''\n"
        "    log.write_text(before + 'x' * len(completions))\n"
        "    if len(before) == 16: raise KeyboardInterrupt\n"
        "    return [len(c[0]['content']) for c in completions]\n"
    )
    config = ScoreConfig(rows=str(demonstrations), reward_model=f"{tmp_path / 'letters.py'}:count")
    with pytest.raises(KeyboardInterrupt):
        score_columns(config, runs)
    run = score_columns(config, runs)
    assert len((tmp_path / "log").read_text()) == 16 + 8 + 14
    rows = lines(run.path / "rows.jsonl")
    assert [row["reward"] for row in rows] == [len(row["messages"][-1]["content"]) for row in rows]
    assert run.metrics["reward"]["mean"] == pytest.approx(sum(row["reward"] for row in rows) / 30)
    assert math.isfinite(run.metrics["reward"]["50%"]) and "loss" not in run.metrics


def test_a_judges_grades(
    demonstrations: Path, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-this-must-stay-secret")
    output = tmp_path / "graded.jsonl"
    with serving() as server:
        server.reply = lambda question, body: completion("5" if "Yes." in question else "2")
        result = accord(
            runs,
            "data",
            "score",
            demonstrations,
            "--judge",
            f"judge:{server.url}#a-model",
            "--output",
            output,
        )
    assert result.exit_code == 0, result.output
    rows = lines(output)
    assert [row["judge"] for row in rows] == [
        5 if any(turn["content"] == "Yes." for turn in row["messages"]) else 2 for row in rows
    ]
    (run,) = runs.all()
    kept = tmp_path / "kept.jsonl"
    assert accord(runs, "data", "convert", output, "--output", kept, "--drop", "judge<=2").exit_code == 0
    assert len(lines(kept)) == sum(row["judge"] == 5 for row in rows)
    twice = accord(runs, "data", "score", f"run:{run.id}", "--judge", f"judge:{server.url}#a-model")
    assert twice.exit_code == 1 and "has a column 'judge' already" in twice.stderr
