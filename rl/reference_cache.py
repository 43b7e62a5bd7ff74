"""The reference's log-probabilities of pairs, kept in a file so that the next run on the same ones reads them.

    {"id": "5f0c...", "log_probabilities": [[-41.25, -38.5], ...], "sha256": "9a41..."}

A pair is [chosen, rejected], in nats. The id hashes all that the numbers depend on: reference, precision, pairs.
"""

import json
from pathlib import Path

from accord.records import content_id, write_atomically


def read(path: Path, identity: str, pairs: int) -> list[tuple[float, float]] | None:
    """What `write` wrote; None where there is no such file, or it is not whole, or is about something else."""
    try:
        content = json.loads(path.read_bytes())
        found = content["log_probabilities"]
        is_whole = content["sha256"] == content_id([content["id"], found], 64)
        if not is_whole or content["id"] != identity or len(found) != pairs:
            return None
        return [(chosen, rejected) for chosen, rejected in found]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(path: Path, identity: str, log_probabilities: list[tuple[float, float]]) -> None:
    """Keep them, with a hash of their own by which damage is noticed."""
    found = [list(pair) for pair in log_probabilities]
    content = {"id": identity, "log_probabilities": found, "sha256": content_id([identity, found], 64)}
    write_atomically(path, json.dumps(content) + "\n")
