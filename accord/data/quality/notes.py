"""Bytes that are written once, numbered from 0 on, and seldom read again: in a temporary file, not in memory."""

import os
import tempfile
from array import array


class Notes:
    """At 8 bytes of memory each."""

    def __init__(self) -> None:
        """The file is unnamed, lies where TMPDIR says, and goes with the process."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._ends = array("Q", [0])
        self._readable = 0

    def add(self, note: bytes) -> int:
        """Write a note; returns its number."""
        self._file.write(note)
        self._ends.append(self._ends[-1] + len(note))
        return len(self._ends) - 2

    def __getitem__(self, number: int) -> bytes:
        start, end = self._ends[number], self._ends[number + 1]
        if end > self._readable:
            self._file.flush()
            self._readable = self._ends[-1]
        return os.pread(self._file.fileno(), end - start, start)
