"""Rows of files to token ids on disk: read, checked and encoded in parallel, in memory that does not grow with them.

    encode_files(Encoder(tokenizer_folder, digest, max_sequence_tokens=1024), tokenizer, sources, folder)

Each chunk of a file becomes one Arrow file, `<source>/<chunk>.arrow`, which is written whole or not at all: after a
kill, what is there is kept. Its columns:

- `input_ids`, and `labels`, which are -100 wherever nothing is learned;
- `source`: the number of the file; `line`: where in it the row stands;
- `row`: the row as JSON, in accord's own form (of a document that fills several rows, with the first one);
- `digest`: the first 8 bytes of the BLAKE2b hash of its tokens, by which equal rows are found;
- `value`: of the column that a curriculum goes by, if there is one.

What is known of the chunk as a whole stands in the file's schema. joblib starts the processes: unlike those of
`multiprocessing`, they need no `if __name__ == "__main__"` in a user's script, and do not fork this one's threads.
"""

import dataclasses
import functools
import gc
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from accord.bundled import data_path
from accord.data.config import DataConfig
from accord.data.documents import document_chunks, encode_documents
from accord.data.files import Chunk, Fault, RawRow, chunks, line_of
from accord.data.reading import RowReader
from accord.errors import DataError
from accord.progress import progress
from accord.records import Demonstration, without_reasoning
from accord.text_files import TEMPORARY, jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_A_CHUNK = 2_000
FEW_CHUNKS = 2
"""So many chunks are encoded sooner than other processes have started."""
IDLE_SECONDS = 10
"""After which a process without work ends, also where this one was killed."""
FACTS = b"accord"
"""The key of a chunk's facts in the schema of its file."""


@dataclass(frozen=True)
class Source:
    """A file of rows."""

    number: int
    name: str
    """As the configuration has it."""
    kind: Literal["demonstrations", "documents"] = "demonstrations"
    read: DataConfig = field(default_factory=DataConfig)
    given: Callable[[], Iterator[Chunk]] | None = None
    """What gives the rows in place of the file, in accord's own form."""

    def chunks(self) -> Iterator[Chunk]:
        """Its rows.

        Raises:
            DataError: there is no such file, or it is none of rows.
        """
        if self.given:
            return self.given()
        if self.kind == "documents":
            return document_chunks(self.name, ROWS_A_CHUNK)
        return chunks(self.name, ROWS_A_CHUNK)


def chunks_of(name: str, rows: Sequence[str]) -> Iterator[Chunk]:
    """Rows as JSON, in accord's own form, as chunks of a file."""
    for number, begin in enumerate(range(0, len(rows), ROWS_A_CHUNK)):
        part = rows[begin : begin + ROWS_A_CHUNK]
        yield Chunk(
            name, number, lines=tuple((begin + i, row.encode()) for i, row in enumerate(part, start=1))
        )


@dataclass(frozen=True)
class Encoder:
    """How rows become tokens."""

    tokenizer: Path
    """A folder."""
    tokenizer_digest: str
    max_sequence_tokens: int
    thinking: Literal["learn", "keep", "cut"] = "learn"
    column: str | None = None
    """Whose numbers are kept as `value`."""


@dataclass
class Facts:
    """What is known of a chunk besides its rows."""

    rows: int = 0
    """As read."""
    too_long: int = 0
    split: int = 0
    """Documents that fill several rows."""
    synthetic: int = 0
    canaries: list[int] = field(default_factory=list)
    """The rows of the file that have a column `canary`."""
    convention: str = ""
    fault: str = ""
    """What is wrong with the first faulty row, and how many more there are in the chunk."""


def encode_files(
    encoder: Encoder, tokenizer: "PreTrainedTokenizerBase", sources: Sequence[Source], folder: Path
) -> list[tuple[Source, Path, Facts]]:
    """Encode all rows; returns the files of all chunks in the order of their names, whatever that of the sources.

    Args:
        encoder: how.
        tokenizer: that of `encoder.tokenizer`.
        sources: the files.
        folder: where the chunks go.

    Raises:
        DataError: a file is missing or faulty, or the chat template refuses a row.
    """
    import joblib

    work = _work(sources)
    first = [each for _, each in zip(range(FEW_CHUNKS + 1), work, strict=False)]
    done: list[tuple[Source, Path, Facts]] = []
    total = sum(_bytes(source) for source in sources)
    seen = 0
    with progress("data: MB of files encoded", max(1, total // 2**20)) as update:

        def take(source: Source, chunk: Chunk, facts: Facts) -> None:
            nonlocal seen
            if facts.fault:
                raise DataError(facts.fault)
            done.append((source, _shard(folder, source, chunk.number), facts))
            seen += sum(len(line) for _, line in chunk.lines)
            update(seen / 2**20)

        if len(first) <= FEW_CHUNKS:
            for source, chunk, opening in first:
                take(source, chunk, encode_chunk(encoder, source, chunk, opening, folder, tokenizer))
            return sorted(done, key=lambda each: each[1])
        processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        pool = joblib.Parallel(
            n_jobs=processes, return_as="generator", pre_dispatch="n_jobs + 1",
            idle_worker_timeout=IDLE_SECONDS,
        )  # fmt: skip
        sent: list[tuple[Source, Chunk]] = []

        def jobs() -> Iterator[Any]:
            for source, chunk, opening in itertools.chain(first, work):
                sent.append((source, chunk))
                bare = dataclasses.replace(source, given=None)
                yield joblib.delayed(encode_chunk)(encoder, bare, chunk, opening, folder)

        for facts in pool(jobs()):
            take(*sent.pop(0), facts)
    return sorted(done, key=lambda each: each[1])


def _work(sources: Sequence[Source]) -> Iterator[tuple[Source, Chunk, RawRow | Fault | None]]:
    """All chunks, each with the first row of its file, from which the file's convention follows."""
    for source in sources:
        opening = None
        for chunk in source.chunks():
            opening = opening or next(chunk.rows(), None)
            yield source, chunk, opening


def _bytes(source: Source) -> int:
    path = data_path(source.name)
    return path.stat().st_size if path.is_file() else 0


def _shard(folder: Path, source: Source, chunk: int) -> Path:
    return folder / f"{source.number:03d}" / f"{chunk:06d}.arrow"


def encode_chunk(
    encoder: Encoder,
    source: Source,
    chunk: Chunk,
    opening: RawRow | Fault | None,
    folder: Path,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> Facts:
    """Encode the rows of a chunk, unless its file is there already; a chunk with faults leaves none.

    Args:
        encoder: how.
        source: the file.
        chunk: the rows.
        opening: the first row of the file.
        folder: where the chunks go.
        tokenizer: the encoder's; None: it is loaded, once a process.

    Raises:
        DataError, UsageError: the file is not one of rows.
    """
    path = _shard(folder, source, chunk.number)
    if path.exists():
        return facts_of(path)
    if tokenizer is None:
        tokenizer = _tokenizer(encoder.tokenizer, encoder.tokenizer_digest)
        gc.collect()  # what the chunk before left
    facts, columns = Facts(), _Columns()
    if source.kind == "documents":
        encode_documents(tokenizer, chunk, encoder.max_sequence_tokens, columns.add, facts)
    else:
        _encode_demonstrations(encoder, tokenizer, source, chunk, opening, columns, facts)
    if not facts.fault:
        _write(path, columns, source, facts)
    return facts


class _Columns:
    """Rows that were encoded."""

    def __init__(self) -> None:
        self.ids: list[Sequence[int]] = []
        self.masks: list[Sequence[int]] = []
        self.lines: list[int] = []
        self.rows: list[str] = []
        self.values: list[float] = []

    def add(self, ids: Sequence[int], mask: Sequence[int], line: int, row: str, value: float = 0.0) -> None:
        self.ids.append(ids)
        self.masks.append(mask)
        self.lines.append(line)
        self.rows.append(row)
        self.values.append(value)


def _encode_demonstrations(
    encoder: Encoder, tokenizer: "PreTrainedTokenizerBase", source: Source, chunk: Chunk,
    opening: RawRow | Fault | None, columns: _Columns, facts: Facts,
) -> None:  # fmt: skip
    from accord.chat.batches import encode_conversations

    reader = RowReader(source.name, Demonstration, source.read)
    if chunk.number and opening:
        reader.take(opening)
        reader.taken()
    for raw in chunk.rows():
        reader.take(raw)
    reading = reader.taken()
    facts.rows = len(reading.rows) + len(reading.faulty)
    facts.convention = reader.convention_of_file()
    if reading.faults:
        facts.fault = reading.fault()
        return
    rows: list[Any] = reading.rows
    as_they_are = not (reader.convention or reader.changed)
    written = dict(chunk.lines) if as_they_are else {}
    conversations = [
        [without_reasoning(turn) for turn in row.messages] if encoder.thinking == "cut" else row.messages
        for row in rows
    ]
    encoded = encode_conversations(tokenizer, conversations, encoder.thinking == "learn")
    for row, place, each in zip(rows, reading.places, encoded, strict=True):
        if isinstance(each, DataError):
            refused = sum(isinstance(other, DataError) for other in encoded)
            facts.fault = f"{place}: {each}" + (f" (and {refused - 1} more rows)" if refused > 1 else "")
            return
        line = line_of(place)
        if len(each.input_ids) > encoder.max_sequence_tokens:
            facts.too_long += 1
            continue
        extra = row.model_extra or {}
        facts.synthetic += "synthetic" in extra
        if "canary" in extra:
            facts.canaries.append(line)
        value = _value(extra, encoder.column, place) if encoder.column else 0.0
        text = written[line].decode("utf-8-sig").strip() if line in written else jsonl([row]).strip()
        columns.add(each.input_ids, each.assistant_mask, line, text, value)


def _value(extra: dict[str, Any], column: str, place: str) -> float:
    value = extra.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float):
        found = "has none" if value is None else f"holds {value!r}"
        raise DataError(f"{place}: the column '{column}' must be a number in every row, and this row {found}")
    return float(value)


def _write(path: Path, columns: _Columns, source: Source, facts: Facts) -> None:
    import numpy as np
    import pyarrow as pa

    lengths = np.array([len(ids) for ids in columns.ids], dtype=np.int32)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    ids = _flat(columns.ids)
    labels = np.where(_flat(columns.masks) == 0, np.int32(-100), ids)
    digests = [hashlib.blake2b(part.tobytes(), digest_size=8).digest() for part in _parts(ids, lengths)]
    table = pa.table(
        {
            "input_ids": pa.ListArray.from_arrays(offsets, pa.array(ids)),
            "labels": pa.ListArray.from_arrays(offsets, pa.array(labels)),
            "source": pa.array(np.full(len(lengths), source.number, dtype=np.int32)),
            "line": pa.array(columns.lines, type=pa.int64()),
            "row": pa.array(columns.rows, type=pa.large_string()),
            "digest": pa.array(np.frombuffer(b"".join(digests), dtype="<u8")),
            "value": pa.array(columns.values, type=pa.float64()),
        }
    ).replace_schema_metadata({FACTS: json.dumps(asdict(facts))})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _flat(lists: Sequence[Sequence[int]]) -> Any:
    import numpy as np

    return np.fromiter(itertools.chain.from_iterable(lists), dtype=np.int32)


def _parts(values: Any, lengths: Any) -> Iterator[Any]:
    begin = 0
    for length in lengths.tolist():
        yield values[begin : begin + length]
        begin += length


def facts_of(path: Path) -> Facts:
    """What is known of a chunk as a whole."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        return Facts(**json.loads(pa.ipc.open_stream(file).schema.metadata[FACTS]))


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What identifies the tokens that a tokenizer and its chat template make of a conversation."""
    backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    said = [backend.to_str(), str(tokenizer.chat_template), tokenizer.eos_token]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: Path, digest: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder, without torch if that goes: it takes five seconds and 600 MB a process."""
    from transformers import PreTrainedTokenizerFast

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each core
    gc.disable()  # looking for circles all the time takes a tenth of it; once a chunk is enough
    gc.freeze()
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder)
    if tokenizer_digest(tokenizer) != digest:
        from accord.models.loading import read_tokenizer

        tokenizer = read_tokenizer(folder)
    return tokenizer
