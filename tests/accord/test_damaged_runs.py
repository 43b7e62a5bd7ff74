"""Damaged runs: each says what is wrong with it, and none keeps the others from being listed."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from accord.cli.main import main
from accord.config import Config
from accord.errors import TamperedError
from accord.models.references import Model
from accord.runs import Run, Runs


class Anything(Config):
    """Stands for a stage's settings."""

    seed: int = 0


@pytest.fixture
def made(tmp_path: Path) -> tuple[list[Run], Runs]:
    runs = Runs(tmp_path / "runs")
    found = []
    for seed in range(3):
        with runs.begin("sft", Anything(seed=seed), {}) as run:
            (run.path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
            run.finish({"loss": 2.0})
        found.append(run)
    return sorted(found, key=lambda run: (run.record.started_at, run.id)), runs


def accord(runs: Runs, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--runs", str(runs.root), *arguments])


@pytest.mark.parametrize("damage", ["{}", "", "[]", "{", '{"id": "sft-000000000000"}'])
def test_one_broken_record_does_not_hide_the_others(made: tuple[list[Run], Runs], damage: str) -> None:
    (broken, *sound), runs = made
    (broken.path / "record.json").write_text(damage)
    for _ in range(2):  # the second time, from the index
        listed = accord(runs, "runs", "list")
        assert listed.exit_code == 0
        lines = listed.stdout.splitlines()
        assert [line.split()[:2] for line in lines] == [
            *([run.id, "done"] for run in sound),
            [broken.id, "broken"],
        ]
    as_json = json.loads(accord(runs, "runs", "list", "--json").stdout)
    assert [(each["id"], each["status"]) for each in as_json][-1] == (broken.id, "broken") and len(
        as_json
    ) == 3
    verified = accord(runs, "runs", "verify")
    assert verified.exit_code == 1 and f"{broken.path / 'record.json'}: " in verified.stderr
    assert verified.stdout.splitlines() == [f"{broken.id:<28} BROKEN", *(f"{run.id:<28} ok" for run in sound)]
    assert accord(runs, "runs", "show", sound[0].id).exit_code == 0
    with pytest.raises(TamperedError):
        runs.load(broken.id)


@pytest.mark.parametrize(("name", "left"), [("metrics.json", 5), ("metrics.json", 0), ("metrics.jsonl", 9)])
def test_damaged_figures_are_told(made: tuple[list[Run], Runs], name: str, left: int) -> None:
    (run, *_), runs = made
    (run.path / name).write_bytes((run.path / name).read_bytes()[:left])
    with pytest.raises(TamperedError, match=f"the file {name} is gone or damaged"):
        _ = run.metrics, run.metric_rows()
    told = accord(runs, "report", run.id, "--output", str(runs.root / "page.html"))
    assert told.exit_code == 1 and f"the file {name} was changed after it finished" in told.stderr
    if name == "metrics.json":
        told = accord(runs, "runs", "show", run.id)
        assert told.exit_code == 1 and told.stderr.startswith("error: ") and "metrics.json" in told.stderr


def test_a_page_is_not_built_of_changed_files(made: tuple[list[Run], Runs]) -> None:
    (run, *_), runs = made
    page = runs.root / "page.html"
    assert accord(runs, "report", run.id, "--output", str(page)).exit_code == 0
    page.unlink()
    (run.path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    told = accord(runs, "report", run.id, "--output", str(page))
    assert told.exit_code == 1 and "metrics.jsonl was changed after it finished" in told.stderr
    assert not page.exists()


@pytest.mark.parametrize("output", ["/proc/nothing/page", "a-folder", "a-file/page", "n" * 5000])
@pytest.mark.parametrize("command", ["data convert rows.jsonl --output", "data check rows.jsonl --page"])
def test_a_file_that_cannot_be_written(
    demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_text("")
    Path("a-folder").mkdir()
    demonstrations.rename("rows.jsonl")
    told = CliRunner().invoke(main, ["--runs", "runs", *command.split(), output])
    assert told.exit_code in (1, 2) and isinstance(told.exception, SystemExit)
    assert (
        told.stderr.startswith("error: ")
        and output.removesuffix("/page")[:20] in told.stderr
        and told.stderr.count("\n") == 1
    )
    assert not [file for file in tmp_path.iterdir() if file.name.endswith(".tmp")]


@pytest.mark.parametrize("root", ["a-file", "a-file/below", "/proc/nothing", "/sys/nothing"])
def test_a_folder_that_cannot_hold_runs(
    tiny_model: Model, demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_text("")
    sft = {"demonstrations": str(demonstrations), "epochs": 1, "max_sequence_tokens": 512}
    Path("round.yaml").write_text(json.dumps({"model": str(tiny_model.folder), "sft": sft}))
    told = CliRunner().invoke(main, ["--runs", root, "sft", "round.yaml"])
    assert (
        told.exit_code == 1 and "name a folder for runs that can, with --runs or ACCORD_RUNS" in told.stderr
    ), told
    assert "Traceback" not in told.output
