"""An index of runs: what `accord runs list` says of each, without reading every record again.

    listed(Path("runs"))        # [ListedRun(id="sft-0123456789ab", status="done", started_at="2026-11-28T...")]

`.index.json` beside the runs holds for each the state of its record.json (size, inode, and the moments of its last
changes) and what was read then; a record in another state is read again. So the index can be deleted, damaged or old,
and two processes can write it at once: whoever reads it checks each of its lines. Nothing but lists is made from it.
What is verified, promoted or built upon is read from the records.
"""

import contextlib
import time
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from accord.digests import CLOCK_TICK_NS
from accord.errors import TamperedError
from accord.run_record import read_record
from accord.runs import run_folders
from accord.text_files import write_atomically

INDEX = ".index.json"


class ListedRun(NamedTuple):
    """One run in a list."""

    id: str
    status: str
    started_at: str


class _Entry(NamedTuple):
    state: tuple[int, int, int, int]
    run: ListedRun


_ENTRIES = TypeAdapter(dict[str, _Entry])


def listed(root: Path) -> list[ListedRun]:
    """Every run below a folder, oldest first; behind them those whose record cannot be read, as `broken`."""
    known = _read(root / INDEX)
    found: dict[str, _Entry] = {}
    settled: dict[str, _Entry] = {}
    broken: list[ListedRun] = []
    for folder in run_folders(root):
        try:
            status = (folder / "record.json").stat()
        except OSError:
            continue
        state = (status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        entry = known.get(folder.name)
        if entry is None or entry.state != state:
            try:
                record = read_record(folder)
            except TamperedError:
                broken.append(ListedRun(folder.name, "broken", "`accord runs verify` says what is wrong"))
                continue
            entry = _Entry(state, ListedRun(record.id, record.status, record.started_at))
        found[folder.name] = entry
        # two writes within a tick of the file system's clock may look the same
        if time.time_ns() - max(state[2:]) > CLOCK_TICK_NS:
            settled[folder.name] = entry
    if settled != known:
        with contextlib.suppress(
            OSError
        ):  # a folder of somebody else's, or a full disk: a list needs no index
            write_atomically(root / INDEX, _ENTRIES.dump_json(settled))
    return [*sorted((entry.run for entry in found.values()), key=lambda run: run.started_at), *broken]


def _read(path: Path) -> dict[str, _Entry]:
    try:
        return _ENTRIES.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return {}
