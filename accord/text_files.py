"""Text and JSON in files: read with one sentence on what is wrong, written whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from accord.errors import DataError

TEMPORARY = ".tmp"
"""How the name of a file ends that is not written to its end yet; a killed process may leave one."""

DEEPEST = 100
"""How many levels of lists and objects a row may have."""


def read_text(path: Path) -> str:
    """A whole text file, in UTF-8, or in what its byte-order mark says.

    Raises:
        DataError: the file is missing or unreadable.
    """
    try:
        text = decode(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; check the path, which is relative to the working folder"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        raise DataError(f"{path}:{line}: holds the character NUL, so it is no text; leave it out")
    return text


def decode(data: bytes, name: str) -> str:
    """The text of a file's bytes; a byte-order mark is no part of it.

    Raises:
        DataError: they are not in the encoding; the message names the line.
    """
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    if data[:4] in (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff"):
        encoding = "utf-32"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}:{line}: cannot be read as UTF-8 text (byte 0x{data[error.start]:02X}: {error.reason}); it may be "
            f"in another encoding: `iconv -f WINDOWS-1252 -t UTF-8 {name}` converts one that Windows writes"
        ) from None


def parse_json(text: str) -> Any:
    """One JSON value, strictly: as `json.loads`, without what would be lost or could not be written later.

    Raises:
        ValueError: no JSON, nested too deep, a key that stands twice in one object, or half a surrogate pair; the
            message says which and where.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_twice)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not valid JSON ({error.msg} at column {error.colno}); every line must hold one "
            "complete JSON object, so a half-written last line must be completed or removed"
        ) from None
    except RecursionError:
        value, too_deep = None, True
    else:
        too_deep = text.count("[") + text.count("{") > DEEPEST and is_deeper(value, DEEPEST)
    if too_deep:
        raise ValueError("is nested too deep to be read; a row is an object of columns")
    if "\\u" in text:  # only so can JSON say what is not a character
        try:
            written = json.dumps(value, ensure_ascii=False)
            written.encode()
        except UnicodeEncodeError as error:
            near = written[max(0, error.start - 30) : error.start]
            raise ValueError(
                f"holds half of a surrogate pair (\\u{ord(written[error.start]):04x}) after {near!r}, which is no "
                "character; repair the text or leave the row out"
            ) from None
    return value


def _without_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key '{twice}' stands twice, and only one of them would be read; remove one")
    return found


def is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and mappings are nested in more levels than so many, or without end."""
    level = [value]
    for _ in range(levels + 1):
        parts = [
            each.values() if isinstance(each, dict) else each
            for each in level
            if isinstance(each, dict | list)
        ]
        if not parts:
            return False
        level = list(
            {id(part): part for section in parts for part in section}.values()
        )  # an alias is one object
    return True


def shown(value: Any, longest: int) -> str:
    """The beginning of a value, as JSON writes it; also of one that holds itself, or a million others."""
    text = json.dumps(beginning(value, longest), ensure_ascii=False, default=str)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def beginning(value: Any, most: int) -> Any:
    """As many parts of a value, with those that they hold, as can be written in so many characters."""
    return _part(value, [most], 0)


def _part(value: Any, left: list[int], deep: int) -> Any:
    left[0] -= 1
    if left[0] < 0 or deep > 20:
        return "..."
    if isinstance(value, Mapping):
        return {str(key): _part(each, left, deep + 1) for key, each in value.items() if left[0] > 0}
    if isinstance(value, list | tuple):
        return [_part(each, left, deep + 1) for each in value if left[0] > 0]
    return value


def describe(error: ValidationError) -> str:
    """A pydantic error as one sentence: the field, what is wrong, and what was found there."""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return describe_all(error)[0] + more


def describe_all(error: ValidationError) -> list[str]:
    """Each thing that is wrong, as one sentence."""
    sentences = []
    for each in error.errors():
        field = ".".join(str(part) for part in each["loc"])
        message = each["msg"].removeprefix("Value error, ")
        found = shown(each["input"], 60)
        if field:
            message = f"{field}: {message}{'' if each['type'] == 'missing' else f', found {found}'}"
        sentences.append(message)
    return sentences


def write_jsonl(path: Path, rows: Iterable[BaseModel | Mapping[str, Any]]) -> None:
    """Write rows as JSON Lines, atomically; accord's own columns are left out where they are None."""
    write_atomically(path, jsonl(rows))


def jsonl(rows: Iterable[BaseModel | Mapping[str, Any]], allow_nan: bool = True) -> str:
    """The text of a JSON Lines file.

    Raises:
        TypeError: a column holds something that JSON has no form for.
        ValueError: it is NaN or infinite, and that is not allowed.
    """
    lines = []
    for row in rows:
        if isinstance(row, BaseModel):
            strangers = set(row.model_extra or {})
            row = row.model_dump(exclude_none=True) | row.model_dump(include=strangers)
        lines.append(json.dumps(row, ensure_ascii=False, allow_nan=allow_nan) + "\n")
    return "".join(lines)


def write_atomically(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Replace `path` by `content` so that a reader, or a crash, sees the old file or the new one, never half.

    The bytes reach the disk (fsync) before the rename, and the temporary file is removed on any error.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
