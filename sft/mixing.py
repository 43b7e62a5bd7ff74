"""Which rows of prepared data are learned, how often and in which order, and which are held out."""

import array
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.data.encoding import Facts, Source
from accord.text_files import write_atomically
from sft.config import DataSettings, WeightedFile
from sft.on_disk import rows_on_disk

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Mixing:
    """Which rows are learned, how often and in which order, and which are held out."""

    def __init__(
        self, settings: DataSettings, sources: Sequence[Source], encoded: Sequence[tuple[Source, Path, Facts]]
    ):
        import numpy as np

        self.settings = settings
        self.dropped = {"duplicate": 0, "too_long": sum(facts.too_long for _, _, facts in encoded)}
        chance = random.Random(settings.seed)
        table = Table(encoded)
        self.table = table
        files = [*settings.demonstrations, *settings.documents]
        held_out = sources[len(files)].number if settings.heldout else None
        heldout_rows = [table.rows_of(held_out)] if held_out is not None else []
        known = table.digest[heldout_rows[0]] if heldout_rows else np.empty(0, dtype=np.uint64)
        kept = []
        for source, file in zip(sources, files, strict=False):
            rows = table.rows_of(source.number)
            _, first = np.unique(table.digest[rows], return_index=True)
            new = np.sort(first)
            new = new[~np.isin(table.digest[rows][new], known)]
            self.dropped["duplicate"] += len(rows) - len(new)
            rows = rows[new]
            known = np.concatenate([known, table.digest[rows]])
            if settings.heldout is None or source.kind == "documents":
                order = _shuffled(rows, chance)
                aside = math.ceil(settings.heldout_fraction * len(order))
                heldout_rows.append(order[:aside])
                rows = order[aside:]
            if file.at_most is not None and file.at_most < len(rows):
                rows = rows[np.array(sorted(chance.sample(range(len(rows)), file.at_most)), dtype=np.int64)]
            kept.append(rows)
        self.heldout: NDArray[np.int64] = (
            np.concatenate(heldout_rows) if heldout_rows else np.empty(0, dtype=np.int64)
        )
        self.times = _times([len(rows) for rows in kept], files, settings.mixing_temperature)
        train = [_repeated(rows, times, chance) for rows, times in zip(kept, self.times, strict=True)]
        self.train: NDArray[np.int64] = np.concatenate(train) if train else np.empty(0, dtype=np.int64)
        if settings.curriculum:
            values = table.value[self.train]
            ascending = settings.curriculum.order == "ascending"
            self.train = self.train[np.argsort(values if ascending else -values, kind="stable")]

    def replay(self, source: Source, encoded: Sequence[tuple[Source, Path, Facts]]) -> None:
        """Add the replayed rows, without those that are held out or learned in any case."""
        import numpy as np

        assert self.settings.replay
        share = self.settings.replay.share
        wanted = round(share / (1 - share) * len(self.train))
        self.dropped["too_long"] += sum(facts.too_long for each, _, facts in encoded if each == source)
        table = self.table = Table(encoded)
        rows = table.rows_of(source.number)
        rows = rows[~np.isin(table.digest[rows], table.digest[np.concatenate([self.heldout, self.train])])]
        if len(rows):
            chance = random.Random(self.settings.seed + 1)
            self.train = np.concatenate([self.train, _repeated(rows, wanted / len(rows), chance)])

    def save(self, folder: Path) -> None:
        """Write the numbers of the rows."""
        import io

        import numpy as np

        for name, numbers in (("train.npy", self.train), ("heldout.npy", self.heldout)):
            written = io.BytesIO()
            np.save(written, numbers.astype(np.int64))
            write_atomically(folder / name, written.getvalue())


class Table:
    """The columns of all encoded rows that take a number a row."""

    def __init__(self, encoded: Sequence[tuple[Source, Path, Facts]]):
        rows = rows_on_disk([path for _, path, _ in encoded]).with_format("numpy")
        self.digest, self.value, self.line, self.source = (
            rows.data.column(name).to_numpy() for name in ("digest", "value", "line", "source")
        )

    def rows_of(self, source: int) -> Any:
        """The numbers of a file's rows."""
        import numpy as np

        return np.flatnonzero(self.source == source)


def _shuffled(rows: Any, chance: random.Random) -> Any:
    import numpy as np

    order = array.array("q", rows)
    chance.shuffle(order)
    return np.array(order, dtype=np.int64)


def _repeated(rows: Any, times: float, chance: random.Random) -> Any:
    import numpy as np

    rest = chance.sample(range(len(rows)), round((times % 1) * len(rows)))
    return np.concatenate([np.tile(rows, int(times)), rows[np.array(rest, dtype=np.int64)]])


def _times(rows: Sequence[int], files: Sequence[WeightedFile], temperature: float) -> list[float]:
    """How often each row of each file is shown an epoch.

    With temperature T, a file's share of the rows is in proportion to n^(1/T) (Arivazhagan et al. 2019), times its
    weight; the sum of the rows, without weights, stays what it was.
    """
    total, flattened = sum(rows), [n ** (1 / temperature) for n in rows]
    return [
        file.weight * (total * flat / sum(flattened) / n if n else 0.0)
        for n, flat, file in zip(rows, flattened, files, strict=True)
    ]
