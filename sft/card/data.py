"""What a model was trained on: the data card."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from datasets import Dataset

ROWS_AT_ONCE = 1_000


class SourceData(BaseModel):
    """The training rows of one source."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: str
    rows: int
    """As they are shown in an epoch, repeated ones as often as they are."""
    tokens: int
    learned_tokens: int
    """Those that the loss covers."""
    shortest: int
    median: int
    longest: int
    """Tokens of a row."""
    weight: float | None = None
    synthetic: float | None = None
    """Share of its rows that a model wrote."""


class DataCard(BaseModel):
    """The training rows by source, and what was dropped."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sources: list[SourceData]
    dropped: dict[str, int]


def data_card(
    train: "Dataset",
    dropped: Mapping[str, int],
    sources: Sequence[str] | None = None,
    weights: Mapping[str, float | None] | None = None,
    synthetic: Mapping[str, float] | None = None,
) -> DataCard:
    """The card of encoded rows; one pass, a batch at a time, that keeps one number a row.

    Args:
        train: with `input_ids`, `labels` and, where there are several sources, `source`.
        dropped: rows by reason.
        sources: names, where `source` is their number.
        weights: of the sources.
        synthetic: shares of synthetic rows of the sources.
    """
    lengths: dict[Any, list[np.ndarray]] = {}
    learned: dict[Any, int] = {}
    columns = [name for name in ("input_ids", "labels", "source") if name in train.column_names]
    for batch in train.select_columns(columns).with_format("arrow").iter(ROWS_AT_ONCE):
        ids = batch.column("input_ids").combine_chunks()
        of_row = ids.value_lengths().to_numpy(zero_copy_only=False)
        labels = batch.column("labels").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        counts = np.add.reduceat(labels != -100, np.cumsum(of_row) - of_row) if len(of_row) else of_row
        names = np.array(batch.column("source").to_pylist() if "source" in columns else [""] * len(of_row))
        for name in np.unique(names).tolist():
            own = names == name
            lengths.setdefault(name, []).append(of_row[own].astype(np.int32))
            learned[name] = learned.get(name, 0) + int(counts[own].sum())
    found = []
    for key, chunks in sorted(lengths.items()):
        every = np.concatenate(chunks)
        name = sources[key] if sources else str(key)
        found.append(
            SourceData(
                source=name, rows=len(every), tokens=int(every.sum()), learned_tokens=learned[key],
                shortest=int(every.min()), median=int(np.median(every)), longest=int(every.max()),
                weight=(weights or {}).get(name), synthetic=(synthetic or {}).get(name),
            )
        )  # fmt: skip
    return DataCard(sources=found, dropped=dict(dropped))
