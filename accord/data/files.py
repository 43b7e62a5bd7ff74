"""Files as people have them, row by row: JSON Lines, JSON arrays, CSV, Parquet, Arrow folders, data sets of the hub.

JSON and CSV are read here rather than through `datasets`, which infers one type for a column ("007" becomes 7, "NA"
nothing) and says neither file, line nor column of what is wrong (docs/decisions/0016-one-door-for-data.md). All else
goes through `datasets`.
"""

import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import IO, Any, TypeVar

from accord.bundled import data_path
from accord.errors import DataError
from accord.text_files import decode, parse_json

HUB = "hub:"
KINDS = (
    "JSON Lines, a JSON array, CSV, TSV, Parquet, an Arrow folder (`save_to_disk`), or hub:owner/name:split"
)
PACKED = (".gz", ".zst")
ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Fault:
    """What is wrong with one row."""

    place: str
    """Its file and line, or row."""
    kind: str
    """What it has in common with others."""
    message: str


def line_of(place: str) -> int:
    """The number of the line, or row, of a place."""
    return int(place.rpartition(" " if ": row " in place else ":")[2])


@dataclass(frozen=True)
class RawRow:
    """A row as the file has it."""

    place: str
    columns: dict[str, Any]


def raw_rows(reference: str) -> Iterator[RawRow | Fault]:
    """The rows of a file, an Arrow folder (`folder` or `folder:split`) or a data set of the hub.

    Args:
        reference: a path, `bundled:...`, or `hub:owner/name:split` (`hub:owner/name:configuration:split`).

    Raises:
        DataError: there is nothing of this name, or it is in none of these kinds, or not what its name says.
    """
    if reference.startswith(HUB):
        yield from _from_hub(reference)
        return
    path = data_path(reference)
    if path.is_dir() or (":" in path.name and Path(reference.rpartition(":")[0]).is_dir()):
        yield from _from_arrow_folder(reference)
        return
    try:
        kind = kind_of(path)
        if kind == "parquet":
            yield from _from_parquet(path)
        elif kind in ("csv", "tsv"):
            yield from _from_csv(path, reference, "," if kind == "csv" else "\t")
        else:
            yield from _from_json(path, reference)
    except FileNotFoundError:
        raise DataError(
            f"{reference}: no such file; check the path, which is relative to the working folder"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{reference}: cannot be read ({error})") from None


@dataclass(frozen=True)
class Chunk:
    """Some rows of a file, one behind the other."""

    name: str
    """Of the file, for places."""
    number: int
    """Of the chunk in the file, from 0."""
    lines: tuple[tuple[int, bytes], ...] = ()
    """Of a JSON Lines file, with their numbers from 1; whoever takes the chunk parses them."""
    read: tuple[RawRow | Fault, ...] = ()
    """Of all other kinds."""

    def rows(self) -> Iterator[RawRow | Fault]:
        """The rows, in order."""
        yield from self.read
        for number, line in self.lines:
            yield _from_line(line, number, self.name)


def chunks(reference: str, rows: int) -> Iterator[Chunk]:
    """The same rows as `raw_rows`, so many at a time; those of JSON Lines are not parsed yet.

    Raises:
        DataError: as `raw_rows`.
    """
    if is_json_lines(reference):
        with data_path(reference).open("rb") as file:
            utf_8 = file.read(2) not in (b"\xff\xfe", b"\xfe\xff")
            file.seek(0)
            if utf_8:
                lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
                for number, part in enumerate(_batched(lines, rows)):
                    yield Chunk(reference, number, lines=part)
                return
    for number, read in enumerate(_batched(raw_rows(reference), rows)):
        yield Chunk(reference, number, read=read)


def _batched(values: Iterator[ValueT], size: int) -> Iterator[tuple[ValueT, ...]]:
    while part := tuple(itertools.islice(values, size)):
        yield part


def kind_of(path: Path) -> str:
    """json, csv, tsv or parquet, by a file's name."""
    name = path.with_suffix("") if path.suffix in PACKED else path
    return {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}.get(name.suffix.lower(), "json")


def is_json_lines(reference: str) -> bool:
    """Whether a reference is to a file that the stages can read as it is, if its rows are accord's own."""
    path = data_path(reference)
    if reference.startswith(HUB) or not path.is_file() or path.suffix in PACKED or kind_of(path) != "json":
        return False
    with path.open("rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{"


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))  # type: ignore[arg-type]
    return path.open("rb")


def _from_json(path: Path, name: str) -> Iterator[RawRow | Fault]:
    with _open(path) as file:
        beginning = file.peek(512)[:512] if isinstance(file, io.BufferedReader) else _first(file)
        if beginning[:2] in (b"\xff\xfe", b"\xfe\xff"):
            file = io.BytesIO(decode(file.read(), name).encode())
        first = beginning.replace(b"\x00", b"").lstrip(b"\xff\xfe\xef\xbb\xbf \t\r\n")[:1]
        if first == b"[":
            yield from _from_array(decode(file.read(), name), name)
            return
        if first not in (b"{", b""):
            raise DataError(f"{name}:1: is no JSON; a file of rows is {KINDS}")
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _from_line(line, number, name)


def _from_line(line: bytes, number: int, name: str) -> RawRow | Fault:
    place = f"{name}:{number}"
    try:
        value = parse_json(decode(line, name))
        _refuse_nul(line, value)
    except DataError as error:  # of the encoding, which counts the lines of what it was given
        return Fault(place, "not UTF-8", str(error).partition(": ")[2])
    except ValueError as error:
        if number == 1 and line.strip() in (b"{", b"["):
            raise DataError(
                f"{name}: is JSON over several lines; write one object a line, or an array of objects"
            ) from None
        return Fault(place, str(error).partition(" (")[0].partition(" '")[0], str(error))
    return _row(place, value)


def _first(file: IO[bytes]) -> bytes:
    beginning = file.read(512)
    file.seek(0)
    return beginning


def _from_array(text: str, name: str) -> Iterator[RawRow | Fault]:
    try:
        values = parse_json(text)
    except ValueError as error:
        raise DataError(f"{name}: {str(error).partition(';')[0]}") from None
    for number, value in enumerate(values, start=1):
        place = f"{name}: row {number}"
        try:
            _refuse_nul(text, value)
        except ValueError as error:
            yield Fault(place, str(error).partition(" (")[0], str(error))
        else:
            yield _row(place, value)


def _refuse_nul(text: str | bytes, value: Any) -> None:
    """A model may write the character NUL, and what it wrote is kept; no file from outside should hold one.

    Raises:
        ValueError: a text in the value holds it.
    """
    if (text.find(b"\\u0000") if isinstance(text, bytes) else text.find("\\u0000")) < 0:
        return  # JSON can write it only so
    if "\\u0000" in json.dumps(value).replace("\\\\", ""):
        raise ValueError("holds the character NUL (\\u0000), which databases and pages refuse; leave it out")


def _row(place: str, value: Any) -> RawRow | Fault:
    if isinstance(value, dict):
        return RawRow(place, value)
    found = json.dumps(value, ensure_ascii=False, default=str)
    found = found if len(found) <= 60 else found[:57] + "..."
    return Fault(place, "not an object of columns", f"a row is an object of columns, found {found}")


def _from_csv(path: Path, name: str, delimiter: str) -> Iterator[RawRow | Fault]:
    with _open(path) as file:
        text = decode(file.read(), name)
    csv.field_size_limit(2**31 - 1)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(filter(None, lines), [])  # after empty lines, if there are some
        if twice := sorted({column for column in header if header.count(column) > 1}):
            raise DataError(f"{name}:1: the column '{twice[0]}' stands twice; rename one")
        while True:
            place = f"{name}:{lines.line_num + 1}"
            values = next(lines, None)
            if values is None:
                return
            if not values:
                continue
            if len(values) != len(header):
                what = f"has {len(values)} values for {len(header)} columns; quote what holds a {delimiter!r}"
                yield Fault(place, "values and columns differ in number", what)
                continue
            if "\x00" in "".join(values):
                yield Fault(place, "holds the character NUL", "holds the character NUL; leave it out")
                continue
            yield RawRow(
                place, {column: value for column, value in zip(header, values, strict=True) if value}
            )
    except csv.Error as error:
        raise DataError(f"{name}:{lines.line_num}: is no CSV ({error})") from None


def _from_parquet(path: Path) -> Iterator[RawRow | Fault]:
    import datasets
    import pyarrow

    path.open("rb").close()
    try:
        table = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        yield from _from_dataset(table, str(path))
    except (pyarrow.ArrowException, datasets.exceptions.DatasetsError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())[:200]})") from None


def _from_arrow_folder(reference: str) -> Iterator[RawRow | Fault]:
    import datasets

    folder, split = Path(reference), ""
    if not folder.is_dir():
        name, _, split = reference.rpartition(":")
        folder = Path(name)
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # datasets has no one error for this
        raise DataError(
            f"{folder}: is no folder of a data set ({' '.join(str(error).split())[:200]}); give {KINDS}"
        ) from None
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise DataError(
                f"{folder}: has the splits {', '.join(found)}; name one as {folder}:{next(iter(found))}"
            )
        found = found[split]
    elif split:
        raise DataError(f"{reference}: {folder} has no splits; leave ':{split}' out")
    yield from _from_dataset(found, reference)


def _from_hub(reference: str) -> Iterator[RawRow | Fault]:
    import datasets

    name, *parts = reference.removeprefix(HUB).split(":")
    if "/" not in name or len(parts) not in (1, 2) or not all(parts):
        raise DataError(f"{reference}: a data set of the hub is written hub:owner/name:split")
    configuration = parts[0] if len(parts) == 2 else None
    try:
        found = datasets.load_dataset(name, configuration, split=parts[-1], streaming=True)
        yield from _from_dataset(found, reference)
    except DataError:
        raise
    except Exception as error:  # the hub's client and its transport have dozens
        raise DataError(f"{reference}: {_why_not_had(error)}") from error


def _why_not_had(error: Exception) -> str:
    import datasets
    from huggingface_hub import constants

    said = " ".join(str(error).split())[:200]
    if "script" in said:
        return (
            "this data set is a program that would run here, which accord does not do; give a converted copy"
        )
    if "split" in said.lower() or "BuilderConfig" in said:
        return said
    if constants.HF_HUB_OFFLINE or "offline" in said.lower():
        return "HF_HUB_OFFLINE says not to ask the hub, and this was not downloaded before; unset it, or give a file"
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return (
            "the hub has no data set of this name, or it is for those who log in (`hf auth login`), or the hub "
            "cannot be reached; check the spelling and the network"
        )
    return (
        f"it could not be had from the hub ({type(error).__name__}: {said}); run this again, or give a file"
    )


def _from_dataset(rows: Any, name: str) -> Iterator[RawRow | Fault]:
    for number, columns in enumerate(rows, start=1):
        place = f"{name}: row {number}"
        try:
            text = json.dumps(columns, ensure_ascii=False, default=_as_json)
            text.encode()
            row = json.loads(text, object_hook=_without_none)
            _refuse_nul(text, row)
            yield _row(place, row)
        except TypeError as error:
            yield Fault(place, "not text", f"{error}; leave the column out")
        except UnicodeEncodeError:
            yield Fault(
                place, "half of a surrogate pair", "holds half of a surrogate pair, which is no character"
            )
        except ValueError as error:
            yield Fault(place, str(error).partition(" (")[0], str(error))


def _without_none(columns: dict[str, Any]) -> dict[str, Any]:
    """Columnar files give every object the keys of all, None where it has no such key."""
    return {key: value for key, value in columns.items() if value is not None}


def _as_json(value: Any) -> Any:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    raise TypeError(f"a column holds {type(value).__name__}, which is no text")
