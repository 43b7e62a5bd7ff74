"""The examples of docs/extend.md, run as they stand there."""

import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from accord import user_code
from accord.cli.main import main
from accord.data.rows import open_data
from accord.errors import UsageError
from accord.models.loading import load_tokenizer
from accord.models.references import Model, resolve
from accord.records import Demonstration, Prompt, read_jsonl
from accord.round_config import RoundConfig
from accord.runs import DataFile, Runs
from eval.suites.kind import Reply
from eval.suites.suite import _suite, find_suite, read_items
from reward.function import load_reward_function
from rl.algorithms import Inputs, algorithm_named
from sft.config import SFTConfig

PAGE = Path(__file__).parents[1] / "docs/extend.md"
FILE = re.compile(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SETTINGS = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The page's files, in the working folder."""
    monkeypatch.chdir(tmp_path)
    found = FILE.findall(PAGE.read_text())
    for name, text in found:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    return [name for name, _ in found]


def settings(section: str) -> dict[str, Any]:
    """The page's example of a section."""
    (found,) = (
        example
        for example in map(yaml.safe_load, SETTINGS.findall(PAGE.read_text()))
        if section in str(example)
    )
    return dict(found)


def test_the_page_has_an_example_of_each(files: list[str]) -> None:
    assert {name for name in files if name.endswith(".py")} == {
        "valid_json/valid_json.py", "rewards.py", "imitation.py", "readers.py"
    }  # fmt: skip


def test_the_kind() -> None:
    suite = find_suite("./valid_json")
    rows = read_items(suite)
    kind: Any = suite.kind
    asked = kind.prompts(rows[0])[0][0].content
    assert asked == "Name three planets. Answer with JSON only."
    replies = {'["Mars", "Venus", "Earth"]': 1.0, 'Sure! ["Mars"]': 0.0}
    for text, value in replies.items():
        assert kind.values(rows[0], [Reply(text=text, tokens=9, finish="eos")]) == {"is_json": value}
    assert suite.metrics["valid_json/is_json"].is_share
    assert suite.measures.startswith("Whether a model")


def test_the_reward_function() -> None:
    example = settings("rewards.py")["rl"]
    function = load_reward_function(example["reward_function"]).function
    rows = read_jsonl(Path(example["prompts"]), Prompt)
    columns = {"solution": [(row.model_extra or {})["solution"] for row in rows]}
    for answers, rewards in (
        (["3 and 4 make 7.", "Fine."], [1.0, None]),
        (["Is it 7, or 8?", "7"], [0.0, None]),
        (["No idea", ""], [0.0, None]),
    ):
        completions = [[{"role": "assistant", "content": answer}] for answer in answers]
        assert function(prompts=[row.prompt for row in rows], completions=completions, **columns) == rewards


@pytest.mark.usefixtures("one_thread")
def test_the_algorithm(tiny_model: Model, preferences: Path, runs: Runs) -> None:
    tiny = yaml.safe_load((PAGE.parents[1] / "configs/tiny.yaml").read_text())
    config = RoundConfig.model_validate(tiny | settings("imitation.py")).rl
    algorithm = algorithm_named(config.algorithm)
    inputs = Inputs(runs, tiny_model, tiny_model, DataFile(preferences), sampler=None)
    run = algorithm.train(config, inputs)
    assert run.metrics["pairs"] == 40 and run.metrics["train_loss"] < run.metrics["first_loss"]
    assert run.record.inputs["algorithm"] == DataFile(Path("imitation.py")).digest
    load_tokenizer(resolve(run, runs))


def test_the_reader(runs: Runs) -> None:
    config = open_data(SFTConfig.model_validate(settings("readers.py")["sft"]), runs)
    rows = read_jsonl(Path(config.demonstrations[0].path), Demonstration)
    assert [row.messages[1].content for row in rows] == ["Yes, within 30 days.", "Until six."]
    assert [row.model_extra for row in rows] == [{"topic": "returns"}, {"topic": "hours"}]


def test_all_of_them_can_be_forbidden(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(user_code, "_said", set())
    with caplog.at_level(logging.INFO, "accord.user_code"):
        load_reward_function("rewards.py:right_number")
        load_reward_function("rewards.py:right_number")
    assert caplog.messages == [
        "reward function rewards.py:right_number: this code of yours runs now, with your rights"
    ]
    monkeypatch.setenv(user_code.FORBIDDEN, "1")
    _suite.cache_clear()  # a kind that has run in this process already is not run again
    reader = settings("readers.py")
    for attempt in (
        lambda: find_suite("./valid_json"),
        lambda: load_reward_function("rewards.py:right_number"),
        lambda: algorithm_named(settings("imitation")["rl"]["algorithm"]),
        lambda: open_data(SFTConfig.model_validate(reader.get("sft", reader)), runs),
    ):
        with pytest.raises(UsageError, match="is code that the configuration brings, and --no-code"):
            attempt()


def test_a_round_refuses_code_before_anything(tmp_path: Path) -> None:
    config = {"model": "bundled:smollm2-135m-instruct", "rl": {"algorithm": "imitation.py:IMITATION"}}
    (tmp_path / "round.yaml").write_text(yaml.safe_dump(config))
    try:
        done = CliRunner().invoke(main, ["--runs", "runs", "round", "round.yaml", "--no-code"])
    finally:
        del os.environ[user_code.FORBIDDEN]
    assert done.exit_code == 2 and "--no-code" in done.stderr and not Path("runs").exists()
