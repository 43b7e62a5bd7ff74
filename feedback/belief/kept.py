"""The reliability of a set of comparisons, fitted once: kept in a file, and read by whoever needs it for the same ones.

    reliability = fitted(run.path / RELIABILITY, comparisons)     # fits them now, or did before

What is read is what was fitted, bit for bit: JSON holds a float by the shortest digits that no other float has.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple
from pathlib import Path

from accord.records import Comparison, content_id
from accord.text_files import write_atomically
from feedback.belief.likelihood import PairPosterior
from feedback.belief.reliability import AnnotatorReliability, Reliability, fit_reliability

RELIABILITY = "reliability.json"
"""The file's name in a feedback run."""


def fitted(path: Path, comparisons: Sequence[Comparison]) -> Reliability:
    """The reliability of these comparisons: the one that `path` keeps, or a new one, which it keeps from now on."""
    kept = read_reliability(path, comparisons)
    if kept is None:
        kept = fit_reliability(comparisons)
        write_reliability(path, kept, comparisons)
    return kept


def write_reliability(path: Path, reliability: Reliability, comparisons: Sequence[Comparison]) -> None:
    """Keep all of what was fitted to these comparisons."""
    content = {
        "comparisons": _digest(comparisons),
        "annotators": {name: asdict(each) for name, each in reliability.annotators.items()},
        "shared_length": reliability.shared_length,
        "converged": reliability.converged,
        "pairs": {
            id_: [[*pair, *astuple(posterior)] for pair, posterior in of_comparison.items()]
            for id_, of_comparison in reliability.pairs.items()
        },
    }
    write_atomically(path, json.dumps(content, ensure_ascii=False) + "\n")


def read_reliability(path: Path, comparisons: Sequence[Comparison]) -> Reliability | None:
    """What was fitted to these very comparisons, rankings included; None where the file is not there or of others."""
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["comparisons"] != _digest(comparisons):
        return None
    return Reliability(
        annotators={name: AnnotatorReliability(**each) for name, each in content["annotators"].items()},
        shared_length=content["shared_length"],
        pairs={
            id_: {(first, second): PairPosterior(*values) for first, second, *values in rows}
            for id_, rows in content["pairs"].items()
        },
        converged=content["converged"],
    )


def settled(path: Path) -> bool:
    """Whether the search for what `path` keeps came to an end."""
    return bool(json.loads(path.read_text(encoding="utf-8"))["converged"])


def _digest(comparisons: Sequence[Comparison]) -> str:
    return content_id([comparison.model_dump() for comparison in comparisons], 64)
