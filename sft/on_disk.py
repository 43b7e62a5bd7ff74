"""The files of a run of data: rows that are mapped into memory, packed rows, and what is written of them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.data.encoding import Facts, Source
from accord.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


def encoded_in(folder: Path) -> list[Path]:
    """The files of encoded rows in the folder of a run, in their order."""
    return sorted((folder / "encoded").rglob("*.arrow"))


def rows_on_disk(files: Sequence[Path]) -> "Dataset":
    """The rows of such files, mapped into memory.

    Raises:
        DataError: there are none.
    """
    import datasets

    if not files:
        raise DataError("there are no rows to learn from; name a file that holds some")
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])


def pack(folder: Path, max_sequence_tokens: int) -> None:
    """Several rows in one sequence, as TRL's best-fit decreasing does it; they never see one another."""
    import datasets
    import numpy as np
    import pyarrow as pa
    from trl.data_utils import pack_dataset

    rows = rows_on_disk(encoded_in(folder)).select(np.load(folder / "train.npy"))
    written, packed = folder / "packed" / "train.arrow", folder / "packed" / "new.arrow"
    written.parent.mkdir(exist_ok=True)
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        where = {"cache_file_name": str(packed), "load_from_cache_file": False}
        pack_dataset(rows.select_columns(["input_ids", "labels"]), max_sequence_tokens, "bfd", where)
    finally:
        if not bars:
            datasets.enable_progress_bars()
    # Written again without what `datasets` adds to the schema, which depends on the folder.
    with pa.memory_map(str(packed)) as file:
        stream = pa.ipc.open_stream(file)
        schema = stream.schema.remove_metadata()
        with pa.OSFile(str(written), "wb") as target, pa.ipc.new_stream(target, schema) as again:
            for batch in stream:
                again.write_batch(batch.replace_schema_metadata(None))
    packed.unlink()


def write_rows(
    path: Path, numbers: Any, encoded: Sequence[tuple[Source, Path, Facts]], sources: Sequence[Source]
) -> None:
    """Held-out demonstrations as JSON Lines, each with the name of its file."""
    rows = rows_on_disk([path for _, path, _ in encoded]).select(numbers).select_columns(["row", "source"])

    def lines() -> Iterator[str]:
        for batch in rows.iter(1000) if len(rows) else ():
            for row, source in zip(batch["row"], batch["source"], strict=True):
                if '"messages"' in row:
                    columns = json.loads(row) | {"source": sources[source].name}
                    yield json.dumps(columns, ensure_ascii=False) + "\n"

    with path.open("w", encoding="utf-8") as file:
        file.writelines(lines())
