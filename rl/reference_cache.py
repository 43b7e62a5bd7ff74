"""The reference's log-probabilities of rows, kept in a file so that the next run on the same ones reads them.

    {"id": "5f0c...", "log_probabilities": [[-41.25, -38.5], ...], "sha256": "9a41..."}

Each row has two, in nats: of the chosen and the rejected answer for DPO, of the row's own answer and of the one that
KTO gives its prompt for the KL. The id hashes all that the numbers depend on: reference, precision, rows.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accord import parallel
from accord.progress import progress
from accord.records import content_id
from accord.text_files import write_atomically

FOLDER = "reference-log-probabilities"
"""Below that of the runs; it may be deleted at any time."""


def kept_or_computed(
    folder: Path, made_by: Sequence[Any], rows: Sequence[Any], batch_size: int, label: str,
    compute: Callable[[Sequence[Any]], tuple[list[float], list[float]]],
) -> list[tuple[float, float]]:  # fmt: skip
    """The two log-probabilities of every row, computed `batch_size` rows at a time unless they are kept already.

    Args:
        folder: where they are kept.
        made_by: what they depend on besides the rows.
        rows: as the trainer's data set has them, token ids included.
        batch_size: rows at a time, on which the numbers depend by rounding.
        label: for the progress.
        compute: both log-probabilities of a batch of rows, in nats.
    """
    identity = content_id([*made_by, batch_size, rows], 64)
    path = folder / f"{identity[:12]}.json"
    found = parallel.from_first(lambda: read(path, identity, len(rows)))
    if found is None:
        starts = range(0, len(rows), batch_size)
        mine = []
        with progress(label, len(rows)) as update:
            for start in starts[parallel.rank() :: parallel.count()]:
                mine.append(list(zip(*compute(rows[start : start + batch_size]), strict=True)))
                update(min(start + batch_size, len(rows)))
        of_all = parallel.gather(mine)
        found = [
            row
            for number in range(len(starts))
            for row in of_all[number % len(of_all)][number // len(of_all)]
        ]
        if parallel.is_first():
            write(path, identity, found)
    return found


def read(path: Path, identity: str, rows: int) -> list[tuple[float, float]] | None:
    """What `write` wrote; None where there is no such file, or it is not whole, or is about something else."""
    try:
        content = json.loads(path.read_bytes())
        found = content["log_probabilities"]
        is_whole = content["sha256"] == content_id([content["id"], found], 64)
        if not is_whole or content["id"] != identity or len(found) != rows:
            return None
        return [(chosen, rejected) for chosen, rejected in found]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(path: Path, identity: str, log_probabilities: list[tuple[float, float]]) -> None:
    """Keep them, with a hash of their own by which damage is noticed."""
    found = [list(pair) for pair in log_probabilities]
    content = {"id": identity, "log_probabilities": found, "sha256": content_id([identity, found], 64)}
    write_atomically(path, json.dumps(content) + "\n")
