"""`accord reward score`, and that `accord reward CONFIG` trains as before."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from ppo_helpers import make_reward_model

from accord.chat.tokens import answer
from accord.cli.main import main
from accord.config import Config
from accord.models.references import Model
from accord.records import Demonstration, Message, Preference, read_jsonl
from accord.runs import Runs
from accord.text_files import write_jsonl
from reward.judge import judge_of
from reward.score import score
from reward.scorers import scorer_of

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = Path(__file__).parents[2] / "configs" / "tiny.yaml"


@pytest.fixture(scope="module")
def reward_model(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_reward_model(tiny_model, tmp_path_factory.mktemp("reward-model"))


@pytest.fixture
def letters(tmp_path: Path) -> str:
    """A scorer whose scores can be told by heart: the number of letters."""
    path = tmp_path / "letters.py"
    path.write_text("def count(completions, **_):\n    return [len(c[0]['content']) for c in completions]\n")
    return f"{path}:count"


def accord(runs: Runs, *arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["--runs", str(runs.root), *map(str, arguments)])


def refused(result: Result, exit_code: int) -> str:
    assert result.exit_code == exit_code, (result.output, result.exception)
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def figures_of(result: Result) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in result.stderr.splitlines() if ": " in line)  # type: ignore[misc]


def test_conversations_get_scores(
    demonstrations: Path, reward_model: Model, runs: Runs, tmp_path: Path
) -> None:
    with runs.begin("reward", Config(), {}) as run:
        shutil.copytree(reward_model.folder, run.path / "model")
        run.finish({})
    scored = tmp_path / "scored.jsonl"
    result = accord(
        runs,
        "reward",
        "score",
        demonstrations,
        "--model",
        f"run:{run.id}",
        "--output",
        scored,
        "--batch-size",
        "3",
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    before, after = read_jsonl(demonstrations, Demonstration), read_jsonl(scored, Demonstration)
    assert [row.messages for row in after] == [row.messages for row in before]
    expected = score(reward_model, [row.messages for row in before])
    found = [row["score"] for row in rows_of(scored.read_text())]
    assert found == pytest.approx(expected, abs=1e-5)
    figures = figures_of(result)
    assert figures["rows"] == "30" and figures["scorer"] == f"run:{run.id}"
    assert float(figures["mean_score"]) == pytest.approx(sum(expected) / 30, abs=1e-3)
    assert float(figures["highest_score"]) == pytest.approx(max(expected), abs=1e-3)
    assert scorer_of(f"run:{run.id}", runs).run_id == run.id

    printed = accord(runs, "reward", "score", demonstrations, "--model", reward_model.reference)
    assert [row["score"] for row in rows_of(printed.stdout)] == pytest.approx(expected, abs=1e-5)


def test_preferences_get_two_scores_and_an_accuracy(letters: str, runs: Runs, tmp_path: Path) -> None:
    prompt = [Message(role="user", content="Why?")]
    rows = [
        Preference(prompt=prompt, chosen=answer("aaa"), rejected=answer("a"), weight=0.5, topic="letters"),
        Preference(prompt=prompt, chosen=answer("aa"), rejected=answer("bb")),
        Preference(prompt=prompt, chosen=answer("a"), rejected=answer("bbbb")),
        Preference(prompt=prompt, chosen=answer("aa"), rejected=answer("b")),
    ]
    file = tmp_path / "preferences.jsonl"
    write_jsonl(file, rows)
    result = accord(runs, "reward", "score", file, "--model", letters)
    assert result.exit_code == 0, result.output
    scored = rows_of(result.stdout)
    assert [(row["chosen_score"], row["rejected_score"]) for row in scored] == [
        (3, 1),
        (2, 2),
        (1, 4),
        (2, 1),
    ]
    assert (scored[0]["weight"], scored[0]["topic"]) == (0.5, "letters")  # other columns stay
    figures = figures_of(result)
    assert (figures["ordered_as_preferred"], figures["ties"], figures["accuracy"]) == ("2", "1", "0.5")
    assert float(figures["mean_margin"]) == (2 + 0 - 3 + 1) / 4
    assert float(figures["mean_score"]) == (3 + 1 + 2 + 2 + 1 + 4 + 2 + 1) / 8
    # Wilson's interval of 2 in 4: (2 + z²/2 ± z √(1 + z²/4)) / (4 + z²)
    z2 = 1.959964**2
    low = (2 + z2 / 2 - (z2 * (1 + z2 / 4)) ** 0.5) / (4 + z2)
    assert float(figures["accuracy_low"]) == pytest.approx(low, abs=1e-4)

    as_json = json.loads(accord(runs, "reward", "score", file, "--model", letters, "--json").stdout)
    assert as_json.pop("scored") == scored
    assert as_json["accuracy"] == 0.5 and as_json["rows"] == 4
    to_file = accord(
        runs, "reward", "score", file, "--model", letters, "--json", "--output", tmp_path / "out"
    )
    assert json.loads(to_file.stdout) == as_json
    assert rows_of((tmp_path / "out").read_text()) == scored
    assert refused(accord(runs, "reward", "score", tmp_path / "out", "--model", letters), 1).endswith(
        "row 1 has a column 'chosen_score' already, which would be replaced; rename or remove it"
    )


def test_a_judge_compares_the_answers(preferences: Path, tiny_model: Model, runs: Runs, letters: str) -> None:
    arguments = ("reward", "score", preferences, "--pairwise", "--json", "--model")
    result = accord(runs, *arguments, f"judge:{tiny_model.reference}")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    rows = read_jsonl(preferences, Preference)
    expected = judge_of(f"judge:{tiny_model.reference}", runs).compare(
        [row.prompt for row in rows], [row.chosen for row in rows], [row.rejected for row in rows]
    )
    probabilities = [row["chosen_is_better"] for row in found["scored"]]
    assert probabilities == pytest.approx([each.first_is_better for each in expected], abs=1e-5)
    assert found["ordered_as_preferred"] == sum(p > 0.5 for p in probabilities)
    assert found["unparsed_rate"] == 0 and 0 <= found["position_bias"] <= 1
    assert "only a judge compares" in refused(accord(runs, *arguments, letters), 2)


def test_files_that_cannot_be_scored(demonstrations: Path, letters: str, runs: Runs, tmp_path: Path) -> None:
    user, said = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
    for text, problem in {
        '{"prompt_": [], "response": "x"}': ":1: its columns (prompt_, response) are in no convention",
        '{"messages": [{"role": "user"': ":1: not valid JSON",
        "[1, 2]": ": row 1: a row is an object of columns, found 1",
        "": "holds no rows",
        json.dumps({"prompt": [user]}): "holds prompts, but a row to score is a conversation",
        json.dumps({"messages": [said, user]}): "holds prompts, but a row to score is",
        json.dumps({"messages": [user, said]}) + "\n" + json.dumps({"prompt": [user], "chosen": [said]}): (
            ":2: is in another convention than the rows before it"
        ),
        json.dumps({"prompt": [user], "chosen": [said]}): "holds prompts, but a row to score is",
        json.dumps({"prompt": [user], "chosen": [said], "rejected": [user]}): (
            ":1: rejected: must begin and end with the assistant"
        ),
    }.items():
        file = tmp_path / "rows.jsonl"
        file.write_text(text)
        error = refused(accord(runs, "reward", "score", file, "--model", letters), 1)
        assert f"error: {file}" in error and problem in error
    assert "no such file" in refused(
        accord(runs, "reward", "score", tmp_path / "gone", "--model", letters), 1
    )
    pairwise = accord(runs, "reward", "score", demonstrations, "--model", "judge:http://x/v1#m", "--pairwise")
    assert "give preferences" in refused(pairwise, 2)
    assert "no run in" in refused(
        accord(runs, "reward", "score", demonstrations, "--model", "run:reward-1"), 2
    )
    assert accord(runs, "reward", "score", demonstrations).exit_code == 2  # no --model


def test_the_first_word_may_be_the_configuration(runs: Runs, tmp_path: Path) -> None:
    for words in (("reward",), ("reward", "train")):
        error = refused(accord(runs, *words, TINY, "reward.heldout_fracton=0.5"), 2)
        assert "unknown key 'reward.heldout_fracton'; did you mean 'heldout_fraction'?" in error
        assert "is not finished" in refused(accord(runs, *words, TINY), 2)
        assert "gone.yaml: cannot be read" in refused(accord(runs, *words, tmp_path / "gone.yaml"), 2)
    plain = tmp_path / "no-suffix"
    plain.write_text(TINY.read_text())
    assert "is not finished" in refused(accord(runs, "reward", plain), 2)
    typo = accord(runs, "reward", "scroe", plain)
    assert typo.exit_code == 2 and "No such command 'scroe'" in typo.stderr
    usage = accord(runs, "reward", "--help").output
    assert "CONFIG" in usage and "score" in usage and "train" in usage


@pytest.mark.slow
def test_as_a_command_of_its_own(demonstrations: Path, reward_model: Model, tmp_path: Path) -> None:
    """Through the installed program, which restarts itself with faster libraries; rows alone are on standard output."""
    done = subprocess.run(
        [Path(sys.executable).with_name("accord"), "--runs", tmp_path, "reward", "score", demonstrations,
         "--model", reward_model.reference],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(rows_of(done.stdout)) == 30
    assert "rows: 30" in done.stderr
