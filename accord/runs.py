"""Runs: what every stage leaves behind, and what a later stage may rely on.

A run is a folder `runs/<stage>-<12 hex digits>/`. The digits are a hash of the stage, its resolved configuration
and everything it reads, so the same work has the same id: a finished run is reused, a killed one is continued.

    record.json     what made the run, and the SHA-256 of every file it made
    metrics.jsonl   one row a step          metrics.json   the final figures
    checkpoints/    while it runs           model/ ...     what the stage makes

    with runs.begin("sft", config, {"demonstrations": DataFile(path)}) as run:
        if not run.is_done:
            ...
            run.finish(metrics={"loss": 1.2}, dropped={"too_long": 3})
"""

import errno
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from accord import parallel
from accord.config import Config
from accord.digests import file_digest
from accord.errors import AccordError, DataError, TamperedError, UsageError, WaitingForAnnotatorsError
from accord.records import content_id, read_origin
from accord.run_record import SCHEMA_VERSION, RunRecord, code_version, hardware, package_versions, read_record
from accord.text_files import TEMPORARY, write_atomically
from accord.tree import entries_below

MATCHES_NAMED = 20
RUN_ID = re.compile(r"[^./][^/]*-[^/]{12}")
SIGN_OFFS, SIGNED_PAGE = "sign-offs", "report.signed.html"
"""Of an evaluation: what reviewers signed of its verdict after it was finished, and the page that shows it."""
NOT_OUTPUTS = ("record.json", ".lock", "checkpoints", "trackers", SIGN_OFFS, SIGNED_PAGE)


class Source(Protocol):
    """Something a run reads: another run, a model, or a file."""

    @property
    def run_id(self) -> str | None:
        """The id of the run that made it, or None for what came from outside."""
        ...

    @property
    def digest(self) -> str:
        """What identifies its content."""
        ...


@dataclass(frozen=True)
class DataFile:
    """A file from outside that a run reads."""

    path: Path
    run_id: None = None

    @property
    def origin(self) -> dict[str, str]:
        """What the file was made from, if a reader made it: the `reader` and the `file`, each with its SHA-256."""
        return read_origin(self.path)

    @property
    def digest(self) -> str:
        """The SHA-256 of the file's bytes.

        Raises:
            DataError: there is no such file.
        """
        try:
            return file_digest(self.path)
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be read ({error.strerror}); check the path, which is relative to the working "
                "folder"
            ) from None


def file_of(source: "Run | DataFile", output: str) -> Path:
    """The file to read: what a run made under that name, or the file itself.

    Raises:
        UsageError: the run is not finished, or made nothing of that name.
    """
    return source.output(output) if isinstance(source, Run) else source.path


class Run:
    """One run's folder and record. Open it with `Runs.begin` (to write) or `Runs.load` (to read)."""

    def __init__(self, path: Path, record: RunRecord):
        self.path = path
        self.record = record

    @property
    def id(self) -> str:
        """`<stage>-<12 hex digits>`."""
        return self.record.id

    @property
    def run_id(self) -> str:
        """The same, as a `Source`."""
        return self.record.id

    @property
    def digest(self) -> str:
        """The hash over the hashes of all its outputs."""
        return content_id(self.record.outputs, 64)

    @property
    def is_done(self) -> bool:
        """Whether the stage finished; a finished run is never written again."""
        return self.record.status == "done"

    @property
    def metrics(self) -> dict[str, Any]:
        """The final figures (metrics.json).

        Raises:
            TamperedError: the file is gone or damaged.
        """
        try:
            return dict(json.loads((self.path / "metrics.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise self._damaged("metrics.json") from None

    def metric_rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, one a logged step; empty where the stage logs none.

        Raises:
            TamperedError: the file is damaged.
        """
        path = self.path / "metrics.jsonl"
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            return [json.loads(line) for line in text.splitlines()]
        except ValueError:
            raise self._damaged("metrics.jsonl") from None

    def _damaged(self, name: str) -> TamperedError:
        return TamperedError(
            f"run {self.id}: the file {name} is gone or damaged; delete {self.path} and run the stage again"
        )

    def output(self, name: str) -> Path:
        """The path of a file or folder this finished run made.

        Raises:
            UsageError: the run is not finished, or made nothing of that name.
        """
        if not self.is_done:
            raise UsageError(
                f"run {self.id} is {self.record.status}, not done; finish it first with the command it came from"
            )
        if not any(file == name or file.startswith(f"{name}/") for file in self.record.outputs):
            raise UsageError(
                f"run {self.id} holds no '{name}'; `accord runs show {self.id}` lists what it holds"
            )
        return self.path / name

    def finish(self, metrics: Mapping[str, Any], dropped: Mapping[str, int] | None = None) -> None:
        """Write metrics.json, hash every file, mark the run as done, and only then remove the checkpoints."""
        if parallel.is_first():
            write_atomically(self.path / "metrics.json", json.dumps(dict(metrics), indent=2) + "\n")
            self.record.outputs = {name: file_digest(self.path / name) for name in self._files()}
            self.record.dropped = dict(dropped or {})
            self.record.status = "done"
            self.record.error = None
            self.record.ended_at = _now()
            self.save()
            self.remove_checkpoints()
        self.record = parallel.broadcast(self.record)

    def remove_checkpoints(self) -> None:
        """Free the space of what only an unfinished run needs."""
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def save(self) -> None:
        """Write record.json."""
        write_atomically(self.path / "record.json", self._written_record())

    def _written_record(self) -> str:
        return self.record.model_dump_json(indent=2) + "\n"

    def check_record(self) -> None:
        """Compare record.json with what `save` writes of it, byte for byte.

        Raises:
            TamperedError: it was edited.
        """
        if (self.path / "record.json").read_text(encoding="utf-8") != self._written_record():
            raise TamperedError(f"run {self.id}: its record.json was edited; restore it from a copy")

    def _files(self) -> list[str]:
        """The names of all files that count as made by the run.

        Raises:
            TamperedError: there is a symbolic link, or something else that is neither file nor folder.
        """
        files, others = (
            [name for name in found if name.split("/")[0] not in NOT_OUTPUTS]
            for found in entries_below(self.path)
        )
        if others:
            raise TamperedError(
                f"run {self.id}: {others[0]} is a symbolic link or no file at all, and no stage makes such; remove it "
                "to use the run"
            )
        return files

    def check_outputs(self) -> None:
        """Compare every output with its recorded hash.

        Raises:
            TamperedError: a file was changed, removed or added since the run finished, or a link put there; names it.
        """
        present = set(self._files())
        for name in sorted(present - self.record.outputs.keys()):
            raise TamperedError(
                f"run {self.id}: the file {name} was added after it finished; remove it to use the run"
            )
        for name, expected in self.record.outputs.items():
            if name not in present:
                raise TamperedError(
                    f"run {self.id}: the file {name} is missing; delete {self.path} and run the stage again"
                )
            if file_digest(self.path / name) != expected:
                raise TamperedError(
                    f"run {self.id}: the file {name} was changed after it finished; delete {self.path} and run the "
                    "stage again"
                )


class Store(Protocol):
    """Where finished runs are, besides the folder (`accord.run_store`)."""

    def push(self, run: Run) -> bool:
        """Give it a finished run."""
        ...

    def pull(self, run_id: str, root: Path) -> Run | None:
        """Fetch a run into a folder of runs, if there is such a run."""
        ...


PREPARES = ("base", "data")
"""Stages that belong to whichever one needs what they make."""


class Runs:
    """All runs below one folder."""

    def __init__(self, root: Path | str = "runs", only: str | None = None, store: "Store | None" = None):
        """Args: root: the folder. only: the one stage that may do work; the others must be finished already.

        The preparation of a base model (`accord.models.base`) and of data belongs to each of them. What the `store` has
        is fetched instead of made or missed, and it gets what is finished.
        """
        self.root = Path(root)
        self.only = only
        self.store = store
        self.launch: Callable[[str], bool] | None = None
        """Asked by `begin` to do the work of a stage in processes of its own; returns whether it did."""
        self._checked: set[str] = set()
        self._given: set[str] = set()

    def run_id_for(self, stage: str, config: Config, sources: Mapping[str, Source]) -> str:
        """The id that the work has, whether or not it was done yet."""
        parents, inputs = _split(sources)
        settings = config.model_dump(mode="json", exclude=set(config.not_identity))
        return f"{stage}-{content_id([SCHEMA_VERSION, stage, settings, parents, inputs])}"

    @contextmanager
    def begin(
        self, stage: str, config: Config, sources: Mapping[str, Source], shared: bool = False
    ) -> Iterator[Run]:
        """Open the run for this work: a new one, one to continue, or a finished one to reuse (`run.is_done`).

        Inside the `with`, the run is locked against other processes. Leaving it by an exception marks the run as
        failed, or as waiting for `WaitingForAnnotatorsError`; a killed process leaves it as running. All three
        are continued by the next `begin` with the same arguments.

        Where several processes share the work (`accord.parallel`), the first one has the run. The others are told its
        record and write nothing; a stage that is not `shared` must be finished.

        Raises:
            AccordError: another process holds the run.
            UsageError: it would need work that this `Runs` may not do (`only`), or that several processes cannot.
            TamperedError: the finished run's files are not the recorded ones, or a parent was made anew since.
        """
        if not parallel.is_first():
            told: Any = parallel.broadcast(None)
            yield Run(self.root / told.id, told)
            return
        parents, inputs = _split(sources)
        run_id = self.run_id_for(stage, config, sources)
        path = self.root / run_id
        self._fetch(run_id)
        if self.only not in (None, stage) and stage not in PREPARES and not self._is_done(path):
            raise UsageError(
                f"the {stage} stage that this builds on is not finished; run `{_command(stage)}` first, or all stages "
                f"with `accord round CONFIG` (its run will be {run_id})"
            )
        if parallel.count() > 1 and not shared and not self._is_done(path):
            raise UsageError(
                f"the {stage} stage works in one process; run `{_command(stage)}` without `accelerate launch`"
            )
        if self.launch and not self._is_done(path) and self.launch(stage) and not self._is_done(path):
            raise AccordError(
                f"the processes that were started for {stage} did other work than {run_id}; did a file change "
                "meanwhile? Run the same command again"
            )
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise AccordError(
                f"run {run_id} is being written by another process; wait for it or end it"
            ) from None
        try:
            if (path / "record.json").exists():
                run = Run(path, read_record(path))
                for role, digest in run.record.parent_digests.items():
                    if sources[role].digest != digest:
                        raise TamperedError(
                            f"run {run_id} was made from an earlier {parents[role]}, which has other content now; "
                            f"delete {path} and run the stage again"
                        )
                if run.is_done:
                    self.check(run)
                    run.remove_checkpoints()
                    parallel.broadcast(run.record)
                    self._give(run)
                    yield run
                    return
                for leftover in path.rglob(f".*{TEMPORARY}"):
                    leftover.unlink()
                run.record.continued_at.append(_now())
                run.record.status = "running"
            else:
                record = RunRecord(
                    id=run_id, stage=stage, status="running", config=config.model_dump(mode="json"), parents=parents,
                    parent_digests={role: sources[role].digest for role in parents}, inputs=inputs,
                    input_paths={
                        role: str(source.path) for role, source in sources.items() if isinstance(source, DataFile)
                    },
                    code=code_version(), packages=package_versions(), hardware=hardware(),
                    seed=getattr(config, "seed", None), started_at=_now(),
                )  # fmt: skip
                run = Run(path, record)
            run.save()
            try:
                parallel.broadcast(run.record)
                yield run
            except WaitingForAnnotatorsError:
                run.record.status = "waiting"
                run.save()
                raise
            except Exception as error:
                if _is_disk_full(error):
                    raise AccordError(
                        f"the disk that holds {self.root} is full; free some space and run the same command again"
                    ) from error
                run.record.status = "failed"
                run.record.error = f"{type(error).__name__}: {error}"
                run.save()
                raise
            if not run.is_done:
                raise RuntimeError(f"stage {stage} left its run without finishing it")
            self._give(run)
        finally:
            lock.release()

    def check(self, run: Run) -> None:
        """`Run.check_outputs`, at most once a process for each run."""
        if run.id not in self._checked:
            run.check_outputs()
            self._checked.add(run.id)

    def load(self, reference: str) -> Run:
        """The run with this id, or the only one whose id or hex digits start so; `run:` may stand before it.

        Raises:
            UsageError: none or several match.
        """
        wanted = reference.removeprefix("run:")
        self._fetch(wanted)
        if RUN_ID.fullmatch(wanted) and (self.root / wanted / "record.json").exists():
            return Run(self.root / wanted, read_record(self.root / wanted))
        matches = [
            path
            for path in run_folders(self.root)
            if wanted and (path.name.startswith(wanted) or path.name.split("-")[-1].startswith(wanted))
        ]
        if not matches:
            raise UsageError(f"no run in {self.root} matches '{wanted}'; `accord runs list` shows them all")
        if len(matches) > 1:
            names = ", ".join(p.name for p in matches[:MATCHES_NAMED])
            names += f", and {len(matches) - MATCHES_NAMED} more" if len(matches) > MATCHES_NAMED else ""
            raise UsageError(f"'{wanted}' matches {len(matches)} runs ({names}); write more of the id")
        return Run(matches[0], read_record(matches[0]))

    def all(self, stage: str | None = None) -> list[Run]:
        """Every run, or every run of a stage, oldest first."""
        found = [
            Run(path, read_record(path))
            for path in run_folders(self.root)
            if stage in (None, path.name.rpartition("-")[0])
        ]
        return sorted(found, key=lambda run: run.record.started_at)

    def readable(self) -> tuple[list[Run], dict[str, str]]:
        """Every run whose record can be read, oldest first, and what is wrong with the others, by their folders."""
        found, broken = [], {}
        for path in run_folders(self.root):
            try:
                found.append(Run(path, read_record(path)))
            except TamperedError as error:
                broken[path.name] = str(error)
        return sorted(found, key=lambda run: run.record.started_at), broken

    def lineage(self, run: Run) -> list[Run]:
        """The run and everything it descends from, each once, parents before children."""
        ordered: dict[str, Run] = {}
        open_runs = [(run, iter(run.record.parents.values()))]
        while open_runs:
            current, parents = open_runs[-1]
            parent = next((each for each in parents if each not in ordered), None)
            if parent is None:
                ordered[current.id] = current
                open_runs.pop()
            else:
                loaded = self.load(parent)
                open_runs.append((loaded, iter(loaded.record.parents.values())))
        return list(ordered.values())

    def _fetch(self, run_id: str) -> None:
        """Get a run from the store, if it has it and the folder has not."""
        if self.store and not (self.root / run_id / "record.json").exists():
            self.store.pull(run_id, self.root)

    def _give(self, run: Run) -> None:
        if self.store and run.id not in self._given:
            self.store.push(run)
            self._given.add(run.id)

    def _is_done(self, path: Path) -> bool:
        return (path / "record.json").exists() and read_record(path).status == "done"


def run_folders(root: Path) -> list[Path]:
    """The folders below one that are named like runs and have a record, by name."""
    if not root.is_dir():
        return []
    named = (path for path in root.iterdir() if RUN_ID.fullmatch(path.name))
    return sorted(path for path in named if (path / "record.json").exists())


def _command(stage: str) -> str:
    """The command that does a stage's work alone."""
    return "accord feedback pull CONFIG" if stage == "feedback" else f"accord {stage} CONFIG"


def _is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # safetensors and torch.save report it in words of their own.
    return "No space left on device" in str(error) or "inline_container.cc" in str(error)


def _split(sources: Mapping[str, Source]) -> tuple[dict[str, str], dict[str, str]]:
    parents = {role: source.run_id for role, source in sources.items() if source.run_id is not None}
    inputs = {role: source.digest for role, source in sources.items() if source.run_id is None}
    for role, source in sources.items():
        if isinstance(source, DataFile):
            inputs |= {f"{role}/{part}": made_from for part, made_from in source.origin.items()}
    return parents, inputs


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
