"""Backup and restore of the embedded server: while it runs, of damaged files, and over what is there."""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from feedback_helpers import comparison, free_port

from accord.cli.main import main
from accord.errors import AccordError
from feedback.argilla.client import Client, connect
from feedback.argilla.collect import push
from feedback.argilla.server.backup import backup, restore
from feedback.argilla.server.process import Server, start, stop

pytestmark = pytest.mark.slow


def test_a_running_server_comes_back_elsewhere(server: Server, client: Client, tmp_path: Path) -> None:
    push(client, "backed-up", [comparison(i, ["One.", "Two."]) for i in range(5)], min_submitted=1)
    file = tmp_path / "argilla.backup"
    backup(server.home, file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]
    home = tmp_path / "elsewhere"
    restore(file, home)
    assert home.stat().st_mode & 0o777 == 0o700
    for name in ("argilla.db", "secrets.json"):
        assert (home / name).stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(home / "argilla.db")) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    assert "accord_backup" not in tables
    again = start(home, free_port())
    try:
        assert (again.api_key, again.password) == (server.api_key, server.password)
        restored = connect(again.url, again.api_key)
        dataset = restored.existing_dataset("backed-up")
        expected = list(client.records(client.existing_dataset("backed-up")["id"]))
        assert list(restored.records(dataset["id"])) == expected
        path = f"datasets/{dataset['id']}/records/search"
        found = restored.request("POST", path, json={"query": {"text": {"q": '"asked for the 3th"'}}})
        assert found["total"] == 1
        with pytest.raises(AccordError, match="is running"):
            restore(file, home, force=True)
    finally:
        stop(home)
    with pytest.raises(AccordError, match="not empty"):
        restore(file, home)
    (home / "argilla.db-wal").write_bytes(b"left by a server that was killed")
    restore(file, home, force=True)
    assert not (home / "argilla.db-wal").exists()


def test_a_backup_is_one_moments_state(server: Server, client: Client, tmp_path: Path) -> None:
    """Records that are pushed meanwhile are all in a backup or none of a batch is, and the index agrees."""
    stopping = threading.Event()

    def keep_pushing() -> None:
        for number in range(1000):
            if stopping.is_set():
                return
            push(
                client,
                f"meanwhile-{number}",
                [comparison(i, ["A.", "B."]) for i in range(7)],
                min_submitted=1,
            )

    pushing = threading.Thread(target=keep_pushing)
    pushing.start()
    try:
        for number in range(5):
            file = tmp_path / f"{number}.backup"
            backup(server.home, file)
            with closing(sqlite3.connect(file)) as copy:
                assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                counts = copy.execute(
                    "SELECT count(*) FROM records JOIN datasets ON datasets.id = dataset_id "
                    "WHERE datasets.name LIKE 'meanwhile-%' GROUP BY dataset_id"
                ).fetchall()
                assert {count for (count,) in counts} <= {7}
                (unindexed,) = copy.execute(
                    "SELECT count(*) FROM records WHERE id NOT IN (SELECT record FROM accord_fields)"
                ).fetchone()
                assert unindexed == 0
    finally:
        stopping.set()
        pushing.join()


def test_a_damaged_file_is_refused_and_nothing_is_changed(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "argilla.backup"
    backup(server.home, file)
    home = tmp_path / "home"
    whole = file.read_bytes()
    middle = len(whole) // 8192 * 4096
    damaged = {
        "cut": whole[: len(whole) // 2],
        "overwritten": whole[:middle] + b"\xff" * 8192 + whole[middle + 8192 :],
        "other": b"no database at all, but long enough to look at" * 100,
        "empty": b"",
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AccordError, match="is no whole backup"):
            restore(tmp_path / name, home)
        assert not home.exists()
    with pytest.raises(AccordError, match="no file"):
        restore(tmp_path / "nothing", home)
    with pytest.raises(AccordError, match="exists"):
        backup(server.home, file)
    with pytest.raises(AccordError, match="holds no Argilla database"):
        backup(tmp_path, tmp_path / "new")


def test_the_commands(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "argilla.backup"
    runs = server.home.parent / "as-runs"
    runs.mkdir()
    (runs / "argilla").symlink_to(server.home)
    wrote = CliRunner().invoke(main, ["--runs", str(runs), "feedback", "backup", str(file)])
    assert wrote.exit_code == 0, wrote.output
    other = tmp_path / "runs"
    read = CliRunner().invoke(main, ["--runs", str(other), "feedback", "restore", str(file)])
    assert read.exit_code == 0, read.output
    assert (other / "argilla" / "argilla.db").exists()
