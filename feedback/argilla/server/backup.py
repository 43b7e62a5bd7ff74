"""One file that holds all that the embedded server keeps, and the way back.

The file is a SQLite database: Argilla's tables, and a table `accord_backup` with the contents of `secrets.json`. It is
made through SQLite's online backup, so the server may run meanwhile, and what it holds is one moment's state.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from accord.errors import AccordError
from accord.text_files import write_atomically
from feedback.argilla.server import process


def backup(home: Path, file: Path) -> None:
    """Write the database and the secrets of the server of `home` to a new file that only its owner can read.

    Raises:
        AccordError: there is no server's folder, or the file exists.
    """
    home = home.resolve()
    if not (home / "argilla.db").exists():
        raise AccordError(f"{home} holds no Argilla database to back up")
    if file.exists():
        raise AccordError(f"{file} exists; name another file")
    process.read_secrets(home)
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with (
            closing(sqlite3.connect(home / "argilla.db", timeout=30)) as source,
            closing(sqlite3.connect(unfinished)) as copy,
        ):
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # all in one file
            copy.execute("CREATE TABLE accord_backup (secrets TEXT)")
            copy.execute("INSERT INTO accord_backup VALUES (?)", ((home / "secrets.json").read_text(),))
            copy.commit()
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        os.link(unfinished, file)  # fails if somebody else made the file meanwhile
    except FileExistsError:
        raise AccordError(f"{file} exists; name another file") from None
    finally:
        unfinished.unlink(missing_ok=True)


def restore(file: Path, home: Path, force: bool = False) -> None:
    """Make `home` the folder of a server with what `file` holds.

    Raises:
        AccordError: the file is no whole backup, a server of `home` runs, or `home` holds something and `force` is
            not given.
    """
    home = home.resolve()
    with _checked(file) as source:
        (secrets,) = source.execute("SELECT secrets FROM accord_backup").fetchone()
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o700)
        with process.lock(home):
            if (running := process.recorded_process(home)) is not None:
                raise AccordError(
                    f"the Argilla of {home} is running (process {running.pid}); end it with `accord feedback stop`"
                )
            if not force and any(path.suffix != ".lock" for path in home.iterdir()):
                raise AccordError(f"{home} is not empty; --force replaces what it holds")
            restored = home / "argilla.db.tmp"
            restored.unlink(missing_ok=True)
            os.close(os.open(restored, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            with closing(sqlite3.connect(restored)) as copy:
                source.backup(copy)
                copy.execute("PRAGMA secure_delete = ON")
                copy.execute("DROP TABLE accord_backup")
                copy.commit()
            for name in ("argilla.db-wal", "argilla.db-shm", "server.json"):
                (home / name).unlink(missing_ok=True)
            restored.replace(home / "argilla.db")
            write_atomically(home / "secrets.json", secrets, mode=0o600)


@contextmanager
def _checked(file: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only reads the backup, once it is known to be a whole one."""
    if not file.is_file():
        raise AccordError(f"there is no file {file}")
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as source:
        try:
            (found,) = source.execute("PRAGMA integrity_check(1)").fetchone()
            source.execute("SELECT secrets FROM accord_backup").fetchone()
        except sqlite3.DatabaseError as error:
            found = str(error)
        if found != "ok":
            raise AccordError(f"{file} is no whole backup of accord's Argilla ({found}); nothing was changed")
        yield source
