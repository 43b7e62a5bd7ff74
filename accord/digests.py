"""The SHA-256 of files, each read once a process."""

import hashlib
import time
from pathlib import Path

CLOCK_TICK_NS = 20_000_000
"""More than a file system's clock takes from one tick to the next."""
_digests: dict[tuple[str | int, ...], str] = {}


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hex; read once a process for as long as nobody writes to the file.

    What was read is remembered by path, size, inode, and the moments of the last change of content and of metadata. A
    file system's clock ticks every few milliseconds, and two writes within a tick look the same, so a file that was
    written just now is waited for first.
    """
    status = path.stat()
    newest = max(status.st_mtime_ns, status.st_ctime_ns)
    if 0 <= (age := time.time_ns() - newest) < CLOCK_TICK_NS:
        time.sleep((CLOCK_TICK_NS - age) / 1e9)
        status = path.stat()
    key = (str(path.resolve()), status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]
