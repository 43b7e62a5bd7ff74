"""Runs beside one another: every figure and difference is there, and nothing is taken from changed files."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from markupsafe import escape
from synthetic_round import XSS, StageConfig, make_round, stage

from accord.cli.main import main
from accord.config import Config
from accord.errors import TamperedError, UsageError
from accord.runs import Run, Runs
from eval.page.side_by_side import Figure, page, side_by_side
from eval.verdict.gate import read_verdict

GATE = {"utility": {"margin": 0.05}}


class Training(Config):
    """Settings of a stage, some of them in a section."""

    rate: float = 0.1
    section: Any = None
    seed: int = 0


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Run], Runs]:
    """Two of the same candidate, whose gates differ, and of which one asked fewer prompts."""
    root = tmp_path_factory.mktemp("rounds")
    first, runs = make_round(root, 0.1, gate=GATE, suites=())
    gate = {"utility": {"margin": 0.1, "at_least": 0.7}}
    second, _ = make_round(root, -0.2, prompts=30, gate=gate, suites=())
    return [first, second], runs


def test_evaluations(evaluations: tuple[list[Run], Runs]) -> None:
    chosen, runs = evaluations
    compared = side_by_side(chosen, runs)
    utility = next(row for row in compared.figures if row.key == "utility")
    for run, figure in zip(chosen, utility.of, strict=True):
        metric = next(each for each in read_verdict(run).metrics if each.name == "utility")
        assert figure == Figure(metric.candidate, metric.low, metric.high, metric.difference, metric.verdict)
    rows = {row.key: row for row in compared.figures}
    assert rows["outcome"].of == [Figure("PASS"), Figure("FAIL")]
    (floor,) = read_verdict(chosen[1]).floors
    assert rows["utility at_least 0.7"].of == [
        None, Figure(floor.candidate, floor.low, floor.high, verdict="FAIL"),
    ]  # fmt: skip
    differing = {row.key: row.of for row in compared.settings}
    assert differing["gate.utility.margin"] == ["0.05", "0.1"]
    assert differing["gate.utility.at_least"] == [None, "0.7"]
    assert "confidence_level" not in differing
    assert len(compared.answers) == 2 * 30
    assert XSS in compared.answers[0].of
    text = page(compared)
    assert "<script" not in text
    assert str(escape(XSS)) in text


def test_figures_of_stages_have_their_intervals_and_only_what_differs_is_shown(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    figures = {"heldout_accuracy": 0.7, "heldout_accuracy_low": 0.6, "heldout_accuracy_high": 0.8, "low": 3}
    first = stage(runs, "reward", Training(section={"rank": 4}), {}, [], figures)
    second = stage(
        runs, "reward", Training(rate=0.2, section={"rank": 4, "alpha": 8}), {}, [], {"extra": None, "low": 2}
    )
    compared = side_by_side([first, second], runs)
    assert {row.key: row.of for row in compared.figures} == {
        "low": [Figure(3), Figure(2)],
        "heldout_accuracy": [Figure(0.7, 0.6, 0.8), None],
        "extra": [None, Figure(None)],
    }
    assert compared.figures[0].key == "low"
    assert {row.key: row.of for row in compared.settings} == {
        "rate": ["0.1", "0.2"], "section.alpha": [None, "8"],
    }  # fmt: skip
    assert compared.answers == []


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    run = stage(runs, "sft", StageConfig(), {}, [], {})
    with pytest.raises(UsageError, match="two different runs or more"):
        side_by_side([run, run], runs)
    with pytest.raises(RuntimeError), runs.begin("sft", Training(), {}) as failed:
        raise RuntimeError("stop")
    with pytest.raises(UsageError, match="is failed, not done"):
        side_by_side([run, failed], runs)
    other = stage(runs, "reward", StageConfig(), {}, [], {})
    (other.path / "metrics.json").write_text('{"a": 1}')
    with pytest.raises(TamperedError, match=r"metrics\.json was changed"):
        side_by_side([run, other], Runs(tmp_path))


def test_the_command(evaluations: tuple[list[Run], Runs], tmp_path: Path) -> None:
    chosen, runs = evaluations
    names = [run.id for run in chosen]
    command = ["--runs", str(runs.root), "compare", *names]
    shown = CliRunner().invoke(main, [*command, "--output", str(tmp_path / "page.html")])
    assert shown.exit_code == 0, shown.output
    assert names[0] in (tmp_path / "page.html").read_text()
    line = next(line for line in shown.output.splitlines() if line.startswith("gate.utility.margin"))
    assert line.split()[1:] == ["0.05", "0.1"]
    found = json.loads(CliRunner().invoke(main, [*command, "--json"]).output)
    assert found["runs"] == names
    assert len(found["answers"]) == 60
