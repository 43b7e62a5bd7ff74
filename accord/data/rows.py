"""Rows that are not in a file of accord's own form: of other conventions, from Python, or from a user's reader.

    sft: {demonstrations: chats.parquet}                                # in any convention that accord.data knows
    fine_tune(config, runs, base, demonstrations=[{"messages": [{"role": "user", "content": "Name a prime."}, ...]}])
    sft: {demonstrations: [{path: "readers.py:chats(export.xml)"}]}     # chats(Path("export.xml")) gives the rows

A stage reads JSON Lines of accord's own form, and nothing else. So all other rows are checked and kept as such a file
beside the runs, named by what it holds, `runs/rows/<12 hex>.jsonl`, and the setting names that file: ids, records,
resuming and the checks of contamination and of tampering are those of any file, and equal rows are the same work.
Where they come from a file, `<12 hex>.jsonl.origin` beside them says which one, and in which convention it is or what
read it; both are inputs of the run (`runs.DataFile`).
"""

import functools
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from accord.bundled import PREFIX, data_path
from accord.config import Config
from accord.data.config import DataConfig
from accord.data.files import chunks
from accord.data.reading import OWN, Reading, RowReader
from accord.digests import file_digest
from accord.errors import AccordError, DataError, UsageError
from accord.records import ORIGIN, Comparison, Demonstration, Preference, Prompt, Row
from accord.runs import DataFile, Run, Runs
from accord.text_files import TEMPORARY, describe, jsonl, write_atomically
from accord.user_code import load, locate

logger = logging.getLogger("accord.data")

Rows = Iterable[Mapping[str, Any] | Row]
"""A list of dicts, a `datasets.Dataset`, rows as `accord.records` defines them, or a generator of any of these."""
Judgements = Run | DataFile | Rows | str
"""Preferences, or comparisons from which they follow: of a feedback run, in a file, as rows, or by reference, as
`preferences:` has it in a round's configuration."""

RUN = "run:"
"""Before the id of a run that made rows: `accord data generate`, `accord data score`, best of n."""
FOLDER = "rows"
"""Below that of the runs."""
ROWS_AT_A_TIME = 1_000
READER = re.compile(r"(?P<reader>.+\.py:\w+|[\w.]+:\w+)\((?P<file>.+)\)")
ConfigT = TypeVar("ConfigT", bound=Config)


def open_data(
    config: ConfigT,
    runs: Runs,
    data: DataConfig | None = None,
    keep_fault: Callable[[str, AccordError], None] | None = None,
    **rows: Rows | None,
) -> ConfigT:
    """The configuration with every setting that names rows naming a file of accord's own form.

    Args:
        config: of a stage, or of a round, whose sections are then opened, too.
        runs: rows are kept beside them.
        data: how files are read; that of a round's configuration by default.
        keep_fault: called with the setting and what is wrong with what it names, in place of raising it.
        rows: by setting, what stands in the place of its file; None: the setting names it.

    Raises:
        UsageError: a setting that is needed has neither file nor rows, one has both, or a reader cannot be loaded.
        DataError: a row is not what the setting wants; the message names it.
    """
    data = getattr(config, "data", data)
    changed: dict[str, Any] = {}
    for name, section in config:
        if isinstance(section, Config):
            below = functools.partial(_below, name, keep_fault) if keep_fault else None
            if (opened := open_data(section, runs, data, below)) is not section:
                changed[name] = opened
    for name, row_type in type(config).row_files.items():
        value, given = getattr(config, name), rows.get(name)
        if given is None:
            try:
                opened = _opened(value, row_type, runs, data, type(config).reads_files_itself)
            except AccordError as error:
                if keep_fault is None:
                    raise
                keep_fault(name, error)
                continue
            if opened != value:
                changed[name] = opened
        elif name in config.model_fields_set and value:
            raise UsageError(
                f"{name}: the configuration names a file, and rows were passed, too; leave one out"
            )
        else:
            kept = str(keep_rows(given, row_type, runs, name))
            changed[name] = [{"path": kept}] if isinstance(value, list) else kept
        if (
            name in type(config).needed_files
            and given is None
            and config.lacks(name, lambda each: getattr(config, each))
        ):
            raise UsageError(f"{name}: is needed; name a file in the configuration, or pass {name}=rows")
    if not changed:
        return config
    return type(config).model_validate(
        {name: getattr(config, name) for name in config.model_fields_set} | changed
    )


def _below(
    section: str, keep_fault: Callable[[str, AccordError], None], name: str, error: AccordError
) -> None:
    keep_fault(f"{section}.{name}", error)


def open_judgements(judgements: Judgements, runs: Runs) -> Run | DataFile:
    """What a stage learns preferences from, as a run or as a file of accord's own form.

    Raises:
        UsageError: there is no such run, or a reader cannot be loaded.
        DataError: a row is neither a preference nor a comparison.
    """
    if isinstance(judgements, Run | DataFile):
        return judgements
    if isinstance(judgements, str):
        if judgements.startswith("run:"):
            return runs.load(judgements)
        return DataFile(data_path(_opened(judgements, Preference, runs)))
    return DataFile(keep_rows(judgements, Preference, runs, "preferences"))


def keep_rows(rows: Rows, row_type: type[Row], runs: Runs, name: str = "rows") -> Path:
    """Check rows and keep them beside the runs; returns the file, which any setting may name.

    Args:
        rows: what is kept. A column that `row_type` does not know is kept as it is; one of its own that is None is
            left out, since a `datasets.Dataset` has every column in every row.
        row_type: what a row must be. For `Preference`, rows with a column `responses` are comparisons.
        runs: beside which the file is kept; the same rows give the same file.
        name: of the rows, for the messages.

    Raises:
        UsageError: it is a text, which names rows rather than being some.
        DataError: there are no rows, or one is not a `row_type`, or holds what JSON cannot.
    """
    return _kept([_checked(rows, row_type, name)], runs)


def check_reader(reference: str) -> bool:
    """Whether a reference is to a reader and its file; both are there, and the reader can be loaded.

    Raises:
        UsageError: the reader cannot be loaded.
        DataError: there is no such file.
    """
    match = READER.fullmatch(reference)
    if match:
        load(locate(match["reader"], "reader"), "reader")
        _ = DataFile(data_path(match["file"])).digest
    return match is not None


def _opened(
    value: Any, row_type: type[Row], runs: Runs, data: DataConfig | None = None, as_it_is: bool = False
) -> Any:
    """A setting's value with accord's own form of its rows in the place of what is in another, or a reader's.

    Args:
        value: one file, a list of files, or none.
        row_type: what the rows are.
        runs: where rows are kept.
        data: how files are read.
        as_it_is: leave files as they are; only what is none, such as a data set of the hub, becomes one.
    """
    if isinstance(value, list):
        files = [
            file.model_copy(update={"path": _opened(file.path, row_type, runs, data, as_it_is)})
            for file in value
        ]
        return value if files == value else files
    if value and value.startswith(RUN) and issubclass(row_type, Demonstration | Prompt):
        return _of_run(value, row_type, runs)
    if as_it_is and value and data_path(value).is_file():
        return value
    if not value or value.startswith(RUN) or (value.startswith(PREFIX) and data in (None, DataConfig())):
        return value
    match = READER.fullmatch(value)
    if match is None:
        return _converted(value, row_type, runs, data or DataConfig())
    place = locate(match["reader"], "reader")
    read = load(place, "reader")
    file = DataFile(data_path(match["file"]))
    origin = {
        "reader": f"{place.module}:{place.digest}", "file": f"{match['file']}@sha256:{file.digest}"
    }  # fmt: skip
    try:
        text = _checked(read(file.path), row_type, value)
    except AccordError:
        raise
    except Exception as error:
        raise DataError(
            f"{value}: the reader failed ({type(error).__name__}: {error}); it gets the file's path and must return "
            "rows"
        ) from error
    return str(_kept([text], runs, origin))


def _of_run(reference: str, row_type: type[Row], runs: Runs) -> str:
    """The file of a finished run that made rows."""
    run = runs.load(reference)
    names = ["rows.jsonl", *(["demonstrations.jsonl"] if row_type is Demonstration else [])]
    for name in names:
        if name in run.record.outputs:
            runs.check(run)
            return str(run.output(name))
    raise UsageError(
        f"{reference}: this run made no rows to be read as {row_type.__name__.lower()}s; `accord runs show "
        f"{run.id}` lists what it holds"
    )


def _converted(file: str, row_type: type[Row], runs: Runs, data: DataConfig) -> str:
    """The file itself, or where its rows are kept in accord's own form."""
    arguments = (file, row_type, data.model_dump_json(), _state(file), runs)
    found = _own_form(*arguments)
    if not Path(data_path(found)).exists():  # it was removed since
        _own_form.cache_clear()
        found = _own_form(*arguments)
    return found


@functools.lru_cache(maxsize=256)
def _own_form(file: str, row_type: type[Row], data: str, state: object, runs: Runs) -> str:
    """Reads a file once, however many stages look at it; `state` changes with the file."""
    read = DataConfig.model_validate_json(data)
    reader = RowReader(file, row_type, read)
    held = Reading(file, row_type)
    count = sum(len(rows) for rows in _rows_of(reader, held))
    if held.faults or not count:
        held.check()
    if reader.convention_of_file() == OWN:
        return file
    path = data_path(file)
    named = f"{file}@sha256:{DataFile(path).digest}" if path.is_file() else file
    convention = reader.convention_of_file()
    texts = (jsonl(rows) for rows in _rows_of(RowReader(file, row_type, read), held))
    kept = _kept(texts, runs, {"convention": convention, "file": named})
    logger.info(f"{file}: {count} rows, {convention}; kept as {kept}")
    return str(kept)


def _rows_of(reader: RowReader, held: Reading) -> Iterator[list[Row]]:
    """The good rows of a file, a chunk at a time; the faulty ones go to `held`."""
    for chunk in chunks(reader.reading.name, ROWS_AT_A_TIME):
        for raw in chunk.rows():
            reader.take(raw)
        taken = reader.taken()
        held.faulty += taken.faulty
        yield taken.rows


def _state(file: str) -> object:
    path = data_path(file)
    files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
    return tuple(
        (str(each), status.st_size, status.st_mtime_ns, status.st_ino)
        for each in files
        for status in [each.stat()]
    )


def _checked(rows: Rows, row_type: type[Row], name: str) -> str:
    """Rows as the text of a JSON Lines file."""
    if isinstance(rows, str | Path):
        raise UsageError(f"{name}: '{rows}' is no list of rows; name a file in the configuration")
    checked: list[Row] = []
    for index, row in enumerate(rows):
        if not index and row_type is Preference and _is_comparison(row):
            row_type = Comparison
        try:
            checked.append(row_type.model_validate(row))
        except ValidationError as error:
            raise DataError(f"{name}[{index}]: {describe(error)}") from None
    if not checked:
        raise DataError(f"{name}: there are no rows; at least one {row_type.__name__.lower()} is needed")
    try:
        return jsonl(checked, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{name}: a column holds something that JSON does not know ({error}); leave it out, or turn it into text "
            "or a number"
        ) from None


def _is_comparison(row: Mapping[str, Any] | Row) -> bool:
    return isinstance(row, Comparison) or (isinstance(row, Mapping) and "responses" in row)


def _kept(texts: Iterable[str], runs: Runs, origin: Mapping[str, str] | None = None) -> Path:
    """Write texts one behind the other to a file that is named by them, and what they are from beside it."""
    folder = runs.root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    named = hashlib.sha256((json.dumps(origin) if origin else "").encode())
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".rows.", suffix=TEMPORARY)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for text in texts:
                named.update(text.encode())
                file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        path = folder / f"{named.hexdigest()[:12]}.jsonl"
        if not path.exists() or file_digest(path) != file_digest(Path(temporary)):
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    if origin:
        beside, content = Path(f"{path}{ORIGIN}"), json.dumps(origin) + "\n"
        if not beside.exists() or beside.read_text(encoding="utf-8") != content:
            write_atomically(beside, content)
    return path
