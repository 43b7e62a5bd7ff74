"""Demonstrations repaired, redacted and left out before they are encoded, a chunk at a time.

Held-out rows go first, so that what is nearly one of them is left out of those to train on, and not the other way
round. What is left out goes to `dropped.jsonl` with the reasons.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from accord.data.config import DataConfig
from accord.data.encoding import Source
from accord.data.files import Chunk, line_of
from accord.data.quality.clean import Cleaner, Wishes
from accord.data.quality.held_out import HeldOut
from accord.data.reading import Reading, RowReader
from accord.errors import DataError
from accord.records import Demonstration
from accord.text_files import TEMPORARY, jsonl


class Filters:
    """Used as a context, after which `dropped.jsonl` is there."""

    def __init__(self, read: DataConfig, held_out: HeldOut | None, path: Path):
        """Args: how files are read and filtered, what must not be learned, and where the dropped rows go.

        Raises:
            UsageError: there is no such filter, or it needs `held_out`, or a library is missing.
        """
        self._read = read
        wishes = Wishes.of(read.drop, read.redact, read.repair, against=held_out is not None)
        self.cleaner = Cleaner(wishes, held_out)
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")

    def __enter__(self) -> Self:
        self._file = self._temporary.open("w", encoding="utf-8")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        if error is None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink(missing_ok=True)

    def look(self, sources: Sequence[Source]) -> None:
        """Read all rows once, where a filter must know what is usual among them.

        Raises:
            DataError: a row is faulty.
        """
        if self.cleaner.looks_first:
            for source in sources:
                for _, reading in self._readings(source):
                    self.cleaner.look(reading.rows)

    def chunks(self, source: Source) -> Iterator[Chunk]:
        """The rows of a file that stay, in accord's own form, with the lines that they had.

        Raises:
            DataError: a row is faulty, or none stays.
        """
        before = self.cleaner.kept
        for chunk, reading in self._readings(source):
            part = self.cleaner.take(reading.rows, reading.places)
            for each in part.dropped:
                self._file.write(json.dumps(each, ensure_ascii=False) + "\n")
            lines = tuple(
                (line_of(place), jsonl([row]).encode())
                for row, place in zip(part.rows, part.places, strict=True)
            )
            yield Chunk(source.name, chunk.number, lines=lines)
        self.cleaner.check_left(source.name, before)

    def _readings(self, source: Source) -> Iterator[tuple[Chunk, Reading]]:
        reader = RowReader(source.name, Demonstration, self._read)
        for chunk in source.chunks():
            for raw in chunk.rows():
                reader.take(raw)
            reading = reader.taken()
            if reading.faults:
                raise DataError(reading.fault())
            yield chunk, reading
