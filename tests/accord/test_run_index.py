"""The index of runs: never wrong, whatever became of it or of the runs, and lists are quick with it."""

import hashlib
import json
import os
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from accord.cli.main import main
from accord.errors import TamperedError, UsageError
from accord.run_index import INDEX, listed
from accord.run_record import RunRecord
from accord.runs import Runs

MANY = 5_000


def name(number: int, stage: str = "sft") -> str:
    return f"{stage}-{hashlib.sha256(str(number).encode()).hexdigest()[:12]}"


def write(
    root: Path, number: int, stage: str = "sft", status: str = "done", parent: str | None = None
) -> str:
    record = {
        "id": name(number, stage), "stage": stage, "status": status, "config": {"seed": number},
        "parents": {"policy": parent} if parent else {}, "inputs": {}, "code": {}, "packages": {}, "hardware": {},
        "seed": number, "started_at": f"2026-01-01T00:00:00+00:{number:06}", "outputs": {"rows.jsonl": "0" * 64},
    }  # fmt: skip
    path = root / record["id"]
    path.mkdir(parents=True, exist_ok=True)
    (path / "record.json").write_text(json.dumps(record))
    return str(record["id"])


def settle(root: Path) -> None:
    """The records are old enough for the clock of a file system."""
    time.sleep(0.03)
    listed(root)
    assert len(json.loads((root / INDEX).read_text())) == len(listed(root))


def seconds(work: object) -> float:
    started = time.process_time()
    assert callable(work)
    work()
    return time.process_time() - started


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("many") / "runs"
    parent = None
    for number in range(MANY):
        made = write(root, number, ("sft", "dpo")[number % 2], parent=parent)
        parent = made if number < 1_500 else parent
    settle(root)
    return root


def test_five_thousand_runs_are_listed_in_under_a_second(many: Path) -> None:
    assert len(listed(many)) == MANY
    assert min(seconds(lambda: listed(many)) for _ in range(3)) < 0.5
    done = CliRunner().invoke(main, ["--runs", str(many), "runs", "list"])
    lines = done.output.splitlines()
    assert len(lines) == MANY and lines[0].split() == [
        name(0),
        "done",
        "2026-01-01T00:00:00+00:000000",
    ]
    assert [line.split()[2] for line in lines] == sorted(line.split()[2] for line in lines)


def test_one_run_and_its_lineage_are_found_among_thousands(many: Path) -> None:
    runs = Runs(many)
    wanted = name(MANY - 1, "dpo")
    prefix = f"run:{wanted.removeprefix('dpo-')[:-1]}"
    last = runs.load(prefix)
    assert last.id == wanted
    with pytest.raises(UsageError, match=r"matches 2500 runs \(.*, and 2480 more\)"):
        runs.load("sft-")
    found = runs.lineage(last)  # 1,500 runs, each the parent of the next: too deep for recursion
    assert len(found) == 1_501 and found[-1].id == last.id
    assert min(seconds(lambda: runs.load(prefix)) for _ in range(3)) < 0.2
    assert min(seconds(lambda: runs.lineage(last)) for _ in range(3)) < 1.5
    assert {run.record.stage for run in runs.all("dpo")} == {"dpo"} and len(runs.all("dpo")) == MANY // 2


def test_the_index_follows_every_change_of_a_run(tmp_path: Path) -> None:
    one, other = write(tmp_path, 1, status="running"), write(tmp_path, 2)
    settle(tmp_path)
    write(tmp_path, 1, status="failed")
    assert [run.status for run in listed(tmp_path)] == ["failed", "done"]
    settle(tmp_path)
    # the same size, and the same moment of the last change of content
    path = tmp_path / one / "record.json"
    before = path.stat()
    path.write_text(path.read_text().replace('"failed"', '"done"  '))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns
    assert [run.status for run in listed(tmp_path)] == ["done", "done"]
    path.unlink()
    assert [run.id for run in listed(tmp_path)] == [other]
    write(tmp_path, 3)
    assert [run.id for run in listed(tmp_path)] == [other, name(3)]


def test_two_changes_within_a_tick_of_the_clock_are_both_seen(tmp_path: Path) -> None:
    for number in range(30):
        write(tmp_path, 1, status=("running", "waiting")[number % 2])  # equally long
        assert [run.status for run in listed(tmp_path)] == [("running", "waiting")[number % 2]]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"sft-000000000001": 3}', b'{"sft-000000000001": [[1, 2], ["x"]]}'],
)
def test_a_damaged_or_deleted_index_is_made_again(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, 1)
    settle(tmp_path)
    good = (tmp_path / INDEX).read_bytes()
    (tmp_path / INDEX).write_bytes(content)
    assert [run.id for run in listed(tmp_path)] == [name(1)]
    assert (tmp_path / INDEX).read_bytes() == good
    (tmp_path / INDEX).unlink()
    assert [run.id for run in listed(tmp_path)] == [name(1)]
    assert (tmp_path / INDEX).read_bytes() == good


def test_an_index_that_lies_deceives_nobody_but_a_list(tmp_path: Path) -> None:
    run = write(tmp_path, 1, status="failed")
    write(tmp_path, 2)
    settle(tmp_path)
    (tmp_path / INDEX).write_text((tmp_path / INDEX).read_text().replace('"failed"', '"done"'))
    assert [each.status for each in listed(tmp_path)] == ["done", "done"]
    runs = Runs(tmp_path)
    assert runs.load(run).record.status == "failed" and not runs.load(run).is_done
    assert [each.record.status for each in runs.all()] == ["failed", "done"]
    checked = CliRunner().invoke(main, ["--runs", str(tmp_path), "runs", "verify", "--json"])
    told = json.loads(checked.output[: checked.output.rindex("}") + 1])
    assert told["checked"] == [name(2)]  # whose rows are missing, which the index has no word in
    assert isinstance(checked.exception, TamperedError) or checked.exit_code != 0


def test_a_record_that_is_not_ours_is_listed_last_as_broken(tmp_path: Path) -> None:
    broken = write(tmp_path, 1)
    sound = write(tmp_path, 2)
    (tmp_path / broken / "record.json").write_text("{}")
    for _ in range(2):
        assert [(each.id, each.status) for each in listed(tmp_path)] == [(sound, "done"), (broken, "broken")]


def test_a_folder_that_cannot_be_written_to_is_listed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write(tmp_path, 1)
    time.sleep(0.03)
    monkeypatch.setattr("accord.run_index.write_atomically", full)
    assert len(listed(tmp_path)) == 1 and not (tmp_path / INDEX).exists()
    assert listed(tmp_path / "nothing") == [] and not (tmp_path / "nothing").exists()


def test_many_may_list_and_change_runs_at_once(tmp_path: Path) -> None:
    for number in range(40):
        write(tmp_path, number, status="running")
    failures: list[BaseException] = []

    def change(first: int) -> None:
        try:
            for number in range(first, 40, 4):
                record = RunRecord.model_validate_json((tmp_path / name(number) / "record.json").read_bytes())
                record.status = "done"
                partial = tmp_path / name(number) / "new"
                partial.write_text(record.model_dump_json())
                partial.replace(partial.parent / "record.json")
                statuses = {run.id: run.status for run in listed(tmp_path)}
                assert statuses[record.id] == "done" and len(statuses) == 40
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=change, args=(first,)) for first in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failures == []
    assert {run.status for run in listed(tmp_path)} == {"done"}
    assert not list(tmp_path.glob("*.tmp"))
