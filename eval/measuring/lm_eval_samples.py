"""Results of lm-evaluation-harness, compared document by document: one file of its samples for each model.

    lm_eval run --model hf --model_args pretrained=... --tasks TASK --log_samples --output_path DIR

writes DIR/<model>/samples_TASK_<time>.jsonl, a row for each document and filter, with the document's hash and its value
of each metric. Both models must have been asked about the same documents. What the harness makes of those values, a
mean over all documents, is what the gate compares with paired tests; metrics that it computes from all documents at
once (corpus BLEU, perplexity, BBQ's bias scores) have lists there in place of numbers and are left out.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from accord.errors import DataError
from accord.records import Row, read_jsonl

NO_FILTER = "none"


class _Sample(Row):
    """The columns that are read; a value of each metric stands beside them, under the metric's name."""

    doc_id: int = Field(strict=True)
    doc_hash: str = Field(min_length=1)
    filter: str = NO_FILTER
    metrics: list[str]


@dataclass(frozen=True)
class LoggedSample:
    """One document's values by metric; a filter other than "none" is part of the name, as in "exact_match,strict"."""

    doc_hash: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Paired:
    """One metric of both models, in the order of the documents' ids."""

    ids: list[str]
    before: list[float]
    after: list[float]


def read_samples(path: Path) -> dict[int, LoggedSample]:
    """The samples of one file by document id.

    Raises:
        DataError: a bad row, a document that occurs twice, or no metric with numbers.
    """
    return samples_of((row.model_dump() for row in read_jsonl(path, _Sample)), str(path))


def samples_of(rows: Iterable[Mapping[str, object]], where: str) -> dict[int, LoggedSample]:
    """Rows of lm-eval's samples by document id; `where` they come from is named in errors.

    Raises:
        DataError: as `read_samples`.
    """
    found: dict[int, LoggedSample] = {}
    seen: set[tuple[int, str]] = set()
    for given in rows:
        row = _Sample.model_validate(given)
        if (row.doc_id, row.filter) in seen:
            raise DataError(
                f"{where}: doc_id {row.doc_id} occurs twice; give the file of one run of one task"
            )
        seen.add((row.doc_id, row.filter))
        before = found.get(row.doc_id, LoggedSample(row.doc_hash, {}))
        if before.doc_hash != row.doc_hash:
            raise DataError(f"{where}: doc_id {row.doc_id} has two hashes; give the file of one run")
        values = dict(before.values)
        for name in row.metrics:
            value = (row.model_extra or {}).get(name)
            if value is None:
                raise DataError(f"{where}: doc_id {row.doc_id} has no value of its metric '{name}'")
            if isinstance(value, int | float):
                if not math.isfinite(value):
                    raise DataError(f"{where}: doc_id {row.doc_id}: '{name}' is {value}, not a finite number")
                values[name if row.filter == NO_FILTER else f"{name},{row.filter}"] = float(value)
        found[row.doc_id] = LoggedSample(row.doc_hash, values)
    if not any(sample.values for sample in found.values()):
        raise DataError(
            f"{where}: no metric has a number for each document; this task's scores are made of all documents at once"
        )
    return found


def pair_samples(
    before: Mapping[int, LoggedSample],
    after: Mapping[int, LoggedSample],
    names: tuple[str, str] = ("baseline", "candidate"),
) -> dict[str, Paired]:
    """Each metric's values under both models.

    Args:
        before: the baseline's samples.
        after: the candidate's.
        names: of the two, for errors.

    Raises:
        DataError: the two are not about the same documents, or have not the same metrics; the first document is named.
    """
    for doc_id in sorted(before.keys() | after.keys()):
        for name, samples in zip(names, (before, after), strict=True):
            if doc_id not in samples:
                raise DataError(
                    f"{name}: has no doc_id {doc_id}, which the other has; run both on the same documents"
                )
        if before[doc_id].doc_hash != after[doc_id].doc_hash:
            raise DataError(
                f"doc_id {doc_id} is another document in {names[0]} than in {names[1]}; run both on the same data"
            )
        if differing := before[doc_id].values.keys() ^ after[doc_id].values.keys():
            metric = min(differing)
            lacks, has = names if metric in after[doc_id].values else reversed(names)
            raise DataError(
                f"doc_id {doc_id}: {lacks} has no number as its value of '{metric}', and {has} has"
            )
    found: dict[str, Paired] = {}
    for doc_id in sorted(before):
        for metric, value in before[doc_id].values.items():
            paired = found.setdefault(metric, Paired([], [], []))
            paired.ids.append(str(doc_id))
            paired.before.append(value)
            paired.after.append(after[doc_id].values[metric])
    return found
