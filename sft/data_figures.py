"""Figures of a run of data, whole and by file, and the secrets that were planted in it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accord.data.encoding import Facts, Source
from accord.text_files import write_atomically
from sft.config import WeightedFile
from sft.mixing import Mixing
from sft.on_disk import rows_on_disk


def write_canaries(path: Path, mixing: Mixing, encoded: Sequence[tuple[Source, Path, Facts]]) -> None:
    """The rows with a column `canary`, and how often an epoch shows each."""
    import numpy as np

    planted = {(source.number, line) for source, _, facts in encoded for line in facts.canaries}
    lines = []
    if planted:
        rows = rows_on_disk([each for _, each, _ in encoded])
        numbers, counts = np.unique(mixing.train, return_counts=True)
        for number, times in zip(numbers.tolist(), counts.tolist(), strict=True):
            if (int(mixing.table.source[number]), int(mixing.table.line[number])) in planted:
                lines.append(
                    json.dumps(json.loads(rows[number]["row"]) | {"times": times}, ensure_ascii=False)
                )
    write_atomically(path, "".join(f"{line}\n" for line in lines))


def figures(
    mixing: Mixing, encoded: Sequence[tuple[Source, Path, Facts]], sources: Sequence[Source],
    files: Sequence[WeightedFile],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """Figures of the data, and of each file."""
    import numpy as np

    lengths, learned = _tokens([path for _, path, _ in encoded])
    train, heldout = mixing.train, mixing.heldout
    shown = np.bincount(mixing.table.source[train], minlength=len(sources))
    aside = np.bincount(mixing.table.source[heldout], minlength=len(sources))
    of_files = []
    for source in sources:
        facts = [each for other, _, each in encoded if other.number == source.number]
        mine = train[mixing.table.source[train] == source.number]
        different = len(np.unique(mine))
        of_files.append(
            {
                "file": source.name,
                "kind": source.kind,
                "convention": next((each.convention for each in facts if each.convention), None),
                "rows": sum(each.rows for each in facts),
                "too_long": sum(each.too_long for each in facts),
                "split_documents": sum(each.split for each in facts),
                "synthetic": sum(each.synthetic for each in facts),
                "weight": files[source.number].weight if source.number < len(files) else None,
                "heldout": int(aside[source.number]),
                "trained": different,
                "shown_an_epoch": int(shown[source.number]),
                "times_each": round(len(mine) / different, 4) if different else 0.0,
                "tokens": int(lengths[mine].sum()),
                "learned_tokens": int(learned[mine].sum()),
            }
        )
    metrics = {
        "rows_an_epoch": len(train),
        "heldout_rows": len(heldout),
        "tokens_an_epoch": int(lengths[train].sum()),
        "learned_tokens_an_epoch": int(learned[train].sum()),
        "median_tokens": float(np.median(lengths[train])),
        "longest_tokens": int(lengths[train].max(initial=0)),
        "synthetic_rows": sum(facts.synthetic for _, _, facts in encoded),
    }
    return metrics, of_files


def _tokens(files: Sequence[Path]) -> tuple[Any, Any]:
    """The length of each row, and how many of its tokens are learned."""
    import numpy as np

    lengths, learned = [], []
    for file in files:
        rows = rows_on_disk([file]).data
        for part in rows.column("labels").chunks:
            offsets = part.offsets.to_numpy()
            said = np.concatenate([[0], np.cumsum(part.values.to_numpy() != -100)])
            lengths.append(np.diff(offsets))
            learned.append(said[offsets[1:]] - said[offsets[:-1]])
    return np.concatenate(lengths), np.concatenate(learned)
