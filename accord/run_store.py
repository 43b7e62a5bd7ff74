"""A store of finished runs on other machines' side: an object store, or any place that fsspec knows.

    store = RunStore("s3://team/runs")
    store.push(run)                        # every file, and record.json last
    store.pull("sft-0123456789ab", root)   # whole and with the recorded hashes, or not at all

`Runs(root, store=...)` asks the store for a finished run before it does the work itself, and gives it what it finishes,
so that machines which share a store and nothing else share their work. A run in a store is never changed. There is no
lock: two machines that do the same work at once give equal files, and where they do not, the second one is told.
Runs that are not finished stay where they are; to continue them elsewhere, share the folder of runs.
"""

import json
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accord.errors import AccordError, TamperedError, UsageError
from accord.progress import progress
from accord.run_record import read_record
from accord.runs import RUN_ID, Run

RECORD = "record.json"


class RunStore:
    """Finished runs below a URL, as `<url>/<run>/<file>`."""

    def __init__(self, url: str):
        """Args: url: as fsspec has it: `s3://bucket/folder`, `gs://...`, `sftp://host/folder`, or a folder.

        Raises:
            UsageError: nothing that is installed can read such a URL.
        """
        import fsspec

        self.url = url.rstrip("/")
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"the store {url} cannot be opened: {error}") from None
        self._files.use_listings_cache = False

    def ids(self) -> list[str]:
        """The runs in the store, by name."""
        with self._plain_errors():
            try:
                found = self._files.ls(self._root, detail=False, refresh=True)
            except (FileNotFoundError, TypeError):
                found = self._files.ls(self._root, detail=False) if self._files.exists(self._root) else []
            names = (posixpath.basename(path.rstrip("/")) for path in found)
            return sorted(name for name in names if RUN_ID.fullmatch(name) and self.holds(name))

    def holds(self, run_id: str) -> bool:
        """Whether the store has a run, whole."""
        with self._plain_errors():
            return bool(self._files.exists(self._path(run_id, RECORD)))

    def push(self, run: Run) -> bool:
        """Give the store a finished run; returns False where it has it already.

        What an earlier attempt has written is not written again.

        Raises:
            UsageError: the run is not finished.
            TamperedError: its files are not the recorded ones, or the store has other content under its id.
            AccordError: the store cannot be written.
        """
        if not run.is_done:
            raise UsageError(
                f"run {run.id} is {run.record.status}, not done; only finished runs go into a store"
            )
        run.check_outputs()
        with self._plain_errors():
            if self.holds(run.id):
                there = json.loads(self._files.cat_file(self._path(run.id, RECORD)))
                if there.get("outputs") != run.record.outputs:
                    raise TamperedError(
                        f"{self.url} holds another run {run.id}, with other files; one of the two was not made by the "
                        "work that its id stands for: verify both, and delete the wrong one"
                    )
                return False
            sizes = {name: (run.path / name).stat().st_size for name in run.record.outputs}
            there = self._sizes(run.id)
            with progress(f"{run.id}: MB to the store", max(1, sum(sizes.values()) // 2**20)) as update:
                done = 0
                for name in [*run.record.outputs, RECORD]:
                    if name == RECORD or there.get(name) != sizes[name]:
                        target = self._path(run.id, name)
                        self._files.makedirs(posixpath.dirname(target), exist_ok=True)
                        self._files.put_file(str(run.path / name), target)
                    done += sizes.get(name, 0)
                    update(done / 2**20)
        return True

    def pull(self, run_id: str, root: Path) -> Run | None:
        """Fetch a run into a folder of runs that has it not; None where the store does not have it either.

        Raises:
            TamperedError: what the store has is not what the record says.
            AccordError: the store cannot be read.
        """
        if not RUN_ID.fullmatch(run_id) or not self.holds(run_id):
            return None
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pulled-", dir=root) as name:
            folder = Path(name) / run_id
            folder.mkdir()
            with self._plain_errors():
                self._files.get_file(self._path(run_id, RECORD), str(folder / RECORD))
                record = read_record(folder)
                outside = [name for name in record.outputs if not _stays_below(name)]
                if record.status != "done" or outside:
                    raise TamperedError(f"{self.url}/{run_id}: its record.json is not that of a finished run")
                sizes = self._sizes(run_id)
                with progress(f"{run_id}: MB from the store", max(1, sum(sizes.values()) // 2**20)) as update:
                    done = 0
                    for name in record.outputs:
                        if name not in sizes:
                            raise TamperedError(f"{self.url}/{run_id}: the file {name} is missing")
                        (folder / name).parent.mkdir(parents=True, exist_ok=True)
                        self._files.get_file(self._path(run_id, name), str(folder / name))
                        done += sizes[name]
                        update(done / 2**20)
            run = Run(folder, record)
            try:
                run.check_outputs()
            except TamperedError as error:
                raise TamperedError(f"{self.url}: {error}") from None
            shutil.move(folder, root / run_id)
        return Run(root / run_id, record)

    def _path(self, *parts: str) -> str:
        return posixpath.join(self._root, *parts)

    def _sizes(self, run_id: str) -> dict[str, int]:
        """The sizes of a run's files in the store, by their names."""
        found: dict[str, Any] = self._files.find(self._path(run_id), detail=True)
        begin = len(self._path(run_id)) + 1
        return {path[begin:]: details["size"] for path, details in found.items()}

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except AccordError:
            raise
        except Exception as error:  # each kind of store raises its own
            said = " ".join(str(error).split()) or type(error).__name__
            raise AccordError(f"the store {self.url} cannot be used: {said}") from error


def _stays_below(name: str) -> bool:
    return not posixpath.isabs(name) and posixpath.normpath(name) == name and not name.startswith("..")
