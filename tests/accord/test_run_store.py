"""Finished runs in a store: brought whole, fetched whole or not at all, and made once for all who share it."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner

from accord.cli.main import main
from accord.config import Config
from accord.errors import AccordError, TamperedError, UsageError
from accord.run_store import RunStore
from accord.runs import Run, Runs

MEMORY = fsspec.filesystem("memory")


class Settings(Config):
    size: int = 1
    seed: int = 0


@pytest.fixture
def url() -> Iterator[str]:
    """A place of an object store's kind: without folders, each object written whole."""
    root = f"memory://{uuid.uuid4().hex}/runs"
    yield root
    if MEMORY.exists(root):
        MEMORY.rm(root, recursive=True)


def work(runs: Runs, stage: str = "sft", parent: Run | None = None, done: list[str] | None = None) -> Run:
    with runs.begin(stage, Settings(), {"parent": parent} if parent else {}) as run:
        if not run.is_done:
            if done is not None:
                done.append(stage)
            (run.path / "model" / "deep").mkdir(parents=True)
            (run.path / "model" / "weights.bin").write_bytes(bytes(range(256)) * 100)
            (run.path / "model" / "deep" / "config.json").write_text('{"a": 1}')
            (run.path / "checkpoints").mkdir()
            run.finish({"loss": 1.0})
    return run


def contents(run: Run) -> dict[str, bytes]:
    return {name: (run.path / name).read_bytes() for name in [*run.record.outputs, "record.json"]}


def test_a_run_comes_back_as_it_went(url: str, tmp_path: Path) -> None:
    store, run = RunStore(url), work(Runs(tmp_path / "a"))
    assert store.ids() == []
    assert store.pull(run.id, tmp_path / "b") is None
    assert store.push(run)
    assert not store.push(run)
    assert store.ids() == [run.id]
    fetched = store.pull(run.id, tmp_path / "b")
    assert fetched is not None
    assert contents(fetched) == contents(run)
    assert [path.name for path in (tmp_path / "b").iterdir()] == [run.id]
    Runs(tmp_path / "b").load(run.id).check_outputs()


def test_who_shares_a_store_works_once(url: str, tmp_path: Path) -> None:
    done: list[str] = []
    first = Runs(tmp_path / "a", store=RunStore(url))
    made = work(first, "ppo", work(first, done=done), done)
    second = Runs(tmp_path / "b", store=RunStore(url))
    again = work(second, "ppo", work(second, done=done), done)
    assert done == ["sft", "ppo"]
    assert contents(again) == contents(made)
    third = Runs(tmp_path / "c", store=RunStore(url))
    assert [run.id for run in third.lineage(third.load(made.id))] == [again.record.parents["parent"], made.id]


def test_only_finished_and_intact_runs_go_in(url: str, tmp_path: Path) -> None:
    runs, store = Runs(tmp_path), RunStore(url)
    with pytest.raises(RuntimeError, match="stop"), runs.begin("sft", Settings(size=2), {}) as begun:
        raise RuntimeError("stop")
    with pytest.raises(UsageError, match="is failed, not done"):
        store.push(begun)
    run = work(runs)
    (run.path / "model" / "weights.bin").write_bytes(b"other")
    with pytest.raises(TamperedError, match=r"weights\.bin was changed"):
        store.push(run)
    assert store.ids() == []


def test_an_interrupted_push_is_invisible_and_continues(url: str, tmp_path: Path) -> None:
    store, run = RunStore(url), work(Runs(tmp_path / "a"))
    store.push(run)
    MEMORY.rm(f"{url}/{run.id}/record.json")
    MEMORY.pipe(f"{url}/{run.id}/model/weights.bin", b"half")
    assert store.ids() == []
    assert store.pull(run.id, tmp_path / "b") is None
    assert store.push(run)
    fetched = store.pull(run.id, tmp_path / "b")
    assert fetched is not None
    assert contents(fetched) == contents(run)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model/weights.bin", b"x", r"memory://.*weights\.bin was changed"),
        ("model/weights.bin", None, r"weights\.bin is missing"),
        ("record.json", b"{}", r"the run cannot be trusted"),
    ],
)
def test_a_damaged_run_is_not_fetched(
    url: str, tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    store, run = RunStore(url), work(Runs(tmp_path / "a"))
    store.push(run)
    MEMORY.pipe(f"{url}/{run.id}/{file}", content) if content else MEMORY.rm(f"{url}/{run.id}/{file}")
    with pytest.raises(TamperedError, match=message):
        store.pull(run.id, tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "model/../../outside"])
def test_nothing_is_written_outside(url: str, tmp_path: Path, name: str) -> None:
    store, run = RunStore(url), work(Runs(tmp_path / "a"))
    store.push(run)
    record = json.loads(MEMORY.cat(f"{url}/{run.id}/record.json"))
    record["outputs"][name] = "0" * 64
    MEMORY.pipe(f"{url}/{run.id}/record.json", json.dumps(record).encode())
    with pytest.raises(TamperedError, match="not that of a finished run"):
        store.pull(run.id, tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []


def test_two_different_runs_of_one_id_are_told(url: str, tmp_path: Path) -> None:
    run = work(Runs(tmp_path / "a"))
    RunStore(url).push(run)
    record = json.loads(MEMORY.cat(f"{url}/{run.id}/record.json"))
    record["outputs"]["model/weights.bin"] = "0" * 64
    MEMORY.pipe(f"{url}/{run.id}/record.json", json.dumps(record).encode())
    with pytest.raises(TamperedError, match="holds another run"):
        RunStore(url).push(run)


def test_a_store_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the store nothing://a cannot be opened"):
        RunStore("nothing://a")
    (tmp_path / "file").write_text("")
    with pytest.raises(AccordError, match=r"the store .*file/below cannot be used"):
        RunStore(str(tmp_path / "file" / "below")).push(work(Runs(tmp_path / "runs")))


def test_commands(tmp_path: Path) -> None:
    made = Runs(tmp_path / "a")
    last = work(made, "ppo", work(made))
    other = work(made, "reward")

    def accord(root: str, *words: str) -> str:
        store = ["--store", str(tmp_path / "store")]
        result = CliRunner().invoke(main, ["--runs", str(tmp_path / root), *store, *words])
        assert result.exit_code == 0, result.output
        return result.output

    assert accord("a", "runs", "push", last.id).count("brought") == 2
    pushed = accord("a", "runs", "push")
    assert pushed.count("is there") == 2
    assert f"{other.id:<28} brought" in pushed
    assert accord("b", "runs", "pull", last.id).count("fetched") == 2
    assert accord("b", "runs", "pull").count("fetched") == 1
    assert accord("b", "runs", "verify").count(" ok") == 3
    assert f"{last.id}" in accord("c", "runs", "show", last.id)
    without = CliRunner().invoke(main, ["--runs", str(tmp_path / "a"), "runs", "push"])
    assert without.exit_code == 2
    assert "--store or ACCORD_STORE" in without.output
