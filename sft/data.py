"""What a fine-tuning learns from, as a run of its own: read, checked, encoded and mixed once, on disk.

    run = prepare(config, runs, tokenizer)      # runs/data-<12 hex>, or the one that is there
    data = open_data_run(run)
    data.train                                  # datasets.Dataset: input_ids, labels, source, line, row, ...

The run holds `encoded/`, the rows of all files as Arrow files that are mapped into memory (`accord.data.encoding`),
`train.npy` and `heldout.npy`, the numbers of the rows to train on in their order, with as many repetitions as the
mixing asks for, and of those held out; `packed/`, sequences of several rows, if the fine-tuning packs them;
`heldout.jsonl`, `canaries.jsonl`, `files.json` with the figures of each file, and the page `report.html`. It depends on
the files, the settings of the data, the tokenizer and its chat template, and on nothing else of the model: rounds that
differ in learning rates share it.
"""

import array
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from accord import parallel
from accord.bundled import data_path
from accord.chat.tokens import EncodedConversation
from accord.config import Config
from accord.data.config import DataConfig
from accord.data.documents import plain_files
from accord.data.encoding import Encoder, Facts, Source, encode_files, tokenizer_digest
from accord.errors import DataError, UsageError
from accord.records import write_atomically
from accord.runs import DataFile, Run, Runs
from accord.runs import Source as RunSource
from sft.config import Curriculum, Replay, SFTConfig, WeightedFile
from sft.data_page import write_page

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Raise it with every change to how rows are encoded or mixed: prepared data are found again by it."""
FILES = "files.json"
HELDOUT = "heldout"
REPLAY = "replay"


class DataSettings(Config):
    """All that prepared data depend on, but for the files."""

    demonstrations: list[WeightedFile]
    documents: list[WeightedFile]
    heldout: str | None
    heldout_fraction: float
    thinking: Literal["learn", "keep", "cut"]
    mixing_temperature: float
    replay: Replay | None
    curriculum: Curriculum | None
    packing: bool
    max_sequence_tokens: int
    seed: int
    columns: Mapping[str, Mapping[str, str]]
    system: Literal["keep", "merge_into_user"]
    tokenizer: str
    """What `tokenizer_digest` gives."""
    version: int = VERSION


@dataclass(frozen=True)
class Data:
    """Prepared data, mapped into memory."""

    train: "Dataset"
    """`input_ids` and `labels`, and `seq_lengths` where rows are packed."""
    heldout: "Dataset | None"
    """The same, never packed, with `source`, the number of the file."""
    sources: list[str]
    """The names of the files, by number."""
    rows: "Dataset"
    """The rows to train on, never packed, with all columns of `accord.data.encoding`."""
    different: "Dataset"
    """The same, each once."""
    heldout_rows: "Dataset"
    """The rows that are held out, with all columns."""


def prepare(
    config: SFTConfig, runs: Runs, tokenizer: "PreTrainedTokenizerBase", read: DataConfig | None = None
) -> Run:
    """The data of a fine-tuning as a finished run, which is made if it is not there.

    Args:
        config: of the fine-tuning.
        runs: where the run is kept.
        tokenizer: of the model that learns.
        read: how files are read.

    Raises:
        DataError: a file is missing or faulty, the chat template refuses a row, or no row is left.
        UsageError: a replayed run is not there.
    """
    read = read or DataConfig()
    settings = DataSettings(
        **{name: getattr(config, name) for name in DataSettings.model_fields if hasattr(config, name)},
        columns=read.columns,
        system=read.system,
        tokenizer=tokenizer_digest(tokenizer),
    )
    replayed = _replayed_run(config.replay, runs)
    sources = _files_of(settings, replayed)
    with runs.begin("data", settings, sources, shared=True) as run:
        if run.is_done:
            return run
        metrics: dict[str, Any] = {}
        if parallel.is_first():
            metrics, run.record.dropped = _make(run, settings, tokenizer, read, replayed)
            write_page(run, metrics)
        run.finish(metrics, run.record.dropped)
    return run


def prepare_retention(
    config: SFTConfig, runs: Runs, tokenizer: "PreTrainedTokenizerBase", read: DataConfig | None = None
) -> Run | None:
    """The rows that `retention` names, as a finished run of data; None where it names none.

    Raises:
        DataError: as `prepare`.
    """
    if config.retention is None:
        return None
    rows = SFTConfig(
        demonstrations=[WeightedFile(path=config.retention)], heldout_fraction=0, thinking=config.thinking,
        max_sequence_tokens=config.max_sequence_tokens,
    )  # fmt: skip
    return prepare(rows, runs, tokenizer, read)


def _files_of(settings: DataSettings, replayed: Run | None) -> dict[str, RunSource]:
    found: dict[str, RunSource] = {}
    for i, file in enumerate(settings.demonstrations):
        found[f"demonstrations_{i}"] = DataFile(data_path(file.path))
    for i, file in enumerate(settings.documents):
        for path in plain_files(file.path) or [data_path(file.path)]:
            name = path.name if path == data_path(file.path) else path.relative_to(data_path(file.path))
            found[f"documents_{i}/{name}"] = DataFile(path)
    if settings.heldout:
        found[HELDOUT] = DataFile(data_path(settings.heldout))
    if replayed:
        found[REPLAY] = replayed
    elif settings.replay:
        found[REPLAY] = DataFile(data_path(settings.replay.source))
    return found


def _replayed_run(replay: Replay | None, runs: Runs) -> Run | None:
    """The data run that is replayed; None where a file is, or nothing.

    Raises:
        UsageError: it is not there, or has no data.
    """
    if replay is None or not replay.source.startswith("run:"):
        return None
    run = runs.load(replay.source)
    if run.record.stage != "data":
        parent = run.record.parents.get("data")
        if parent is None:
            raise UsageError(
                f"replay.source: run {run.id} was not trained from prepared data; name a run of sft or data, or a file"
            )
        run = runs.load(f"run:{parent}")
    run.output("train.npy")
    runs.check(run)
    return run


def _make(
    run: Run, settings: DataSettings, tokenizer: "PreTrainedTokenizerBase", read: DataConfig, replayed: Run | None
) -> tuple[dict[str, Any], dict[str, int]]:  # fmt: skip
    """Everything that the run holds; returns its metrics, and the rows that were dropped, by reason."""
    tokenizer.save_pretrained(run.path / "tokenizer")
    column = settings.curriculum.column if settings.curriculum else None
    encoder = Encoder(
        run.path / "tokenizer", settings.tokenizer, settings.max_sequence_tokens, settings.thinking, column
    )
    files = [*settings.demonstrations, *settings.documents]
    sources = [Source(i, file.path, "demonstrations", read) for i, file in enumerate(settings.demonstrations)]
    sources += [
        Source(i, file.path, "documents") for i, file in enumerate(settings.documents, start=len(sources))
    ]
    if settings.heldout:
        sources.append(Source(len(sources), settings.heldout, "demonstrations", read))
    encoded = encode_files(encoder, tokenizer, sources, run.path / "encoded")
    mixing = _Mixing(settings, sources, encoded)
    if settings.replay:
        rows = _rows_to_replay(settings, replayed, len(mixing.train))
        source = Source(len(sources), settings.replay.source, "demonstrations", read, rows)
        sources.append(source)
        encoded += encode_files(encoder, tokenizer, [source], run.path / "encoded")
        mixing.replay(source, encoded)
    _check_something_is_left(settings, mixing, encoded)
    mixing.save(run.path)
    _write_rows(run.path / "heldout.jsonl", mixing.heldout, encoded, sources)
    _write_canaries(run.path / "canaries.jsonl", mixing, encoded)
    if settings.packing:
        _pack(run.path, settings.max_sequence_tokens)
    metrics, of_files = _figures(mixing, encoded, sources, files)
    write_atomically(run.path / FILES, json.dumps(of_files, indent=2, ensure_ascii=False) + "\n")
    return metrics, mixing.dropped


class _Mixing:
    """Which rows are learned, how often and in which order, and which are held out."""

    def __init__(
        self, settings: DataSettings, sources: Sequence[Source], encoded: Sequence[tuple[Source, Path, Facts]]
    ):
        import numpy as np

        self.settings = settings
        self.dropped = {"duplicate": 0, "too_long": sum(facts.too_long for _, _, facts in encoded)}
        chance = random.Random(settings.seed)
        table = _Table(encoded)
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
        table = self.table = _Table(encoded)
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


class _Table:
    """The columns of all encoded rows that take a number a row."""

    def __init__(self, encoded: Sequence[tuple[Source, Path, Facts]]):
        rows = _rows_on_disk([path for _, path, _ in encoded]).with_format("numpy")
        self.digest, self.value, self.line, self.source = (
            rows.data.column(name).to_numpy() for name in ("digest", "value", "line", "source")
        )

    def rows_of(self, source: int) -> Any:
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


def _rows_to_replay(settings: DataSettings, replayed: Run | None, rows: int) -> list[str] | None:
    """The texts of as many training rows of an earlier run as may be needed; None where a file is replayed."""
    if replayed is None:
        return None
    assert settings.replay
    import numpy as np

    earlier = open_data_run(replayed).rows
    wanted = math.ceil(2 * settings.replay.share / (1 - settings.replay.share) * rows)
    numbers = np.unique(np.load(replayed.path / "train.npy"))
    chosen = random.Random(settings.seed).sample(range(len(numbers)), min(wanted, len(numbers)))
    texts = _rows_on_disk(_files_in(replayed.path)).select(numbers[np.array(sorted(chosen))])["row"]
    del earlier
    return [text for text in texts if '"messages"' in text]


def _check_something_is_left(
    settings: DataSettings, mixing: _Mixing, encoded: Sequence[tuple[Source, Path, Facts]]
) -> None:
    if len(mixing.train):
        return
    files = len(settings.demonstrations) + len(settings.documents)
    read = sum(facts.rows for source, _, facts in encoded if source.number < files)
    if read and mixing.dropped["too_long"] >= read:
        raise DataError(
            f"all {read} demonstrations are longer than max_sequence_tokens ({settings.max_sequence_tokens}); raise it"
        )
    raise DataError(
        "no demonstrations are left to train on, without the held-out and the duplicate ones, and those that weights "
        "leave out; add more rows"
    )


def _files_in(folder: Path) -> list[Path]:
    return sorted((folder / "encoded").rglob("*.arrow"))


def _rows_on_disk(files: Sequence[Path]) -> "Dataset":
    import datasets

    if not files:
        raise DataError("there are no rows to learn from; name a file that holds some")
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])


def open_data_run(run: Run) -> Data:
    """The data of a finished run.

    Raises:
        UsageError: the run is not finished, or is no run of data.
    """
    import datasets
    import numpy as np

    run.output("train.npy")
    everything = _rows_on_disk(_files_in(run.path))
    numbers, heldout = (np.load(run.path / name) for name in ("train.npy", "heldout.npy"))
    rows = everything.select(numbers)
    train = rows.select_columns(["input_ids", "labels"])
    if (packed := run.path / "packed" / "train.arrow").exists():
        train = datasets.Dataset.from_file(str(packed))
    return Data(
        train,
        everything.select(heldout).select_columns(["input_ids", "labels", "source"])
        if len(heldout)
        else None,
        sources_of(run),
        rows,
        everything.select(np.unique(numbers)),
        everything.select(heldout),
    )


def sources_of(run: Run) -> list[str]:
    """The names of the files that a finished run of data was made from."""
    return [str(each["file"]) for each in files_of(run)]


def files_of(run: Run) -> list[dict[str, Any]]:
    """The figures of each file that a finished run of data was made from."""
    return list(json.loads((run.path / FILES).read_text(encoding="utf-8")))


def all_rows(run: Run) -> Iterator[tuple[str, int, str]]:
    """The file, the line and the JSON of every row of a finished run, those held out among them, one at a time."""
    names = sources_of(run)
    for file in _files_in(run.path):
        rows = _rows_on_disk([file]).data
        columns = (rows.column(name).to_pylist() for name in ("source", "line", "row"))
        for source, line, row in zip(*columns, strict=True):
            if row:
                yield names[source], line, row


def _pack(folder: Path, max_sequence_tokens: int) -> None:
    """Several rows in one sequence, as TRL's best-fit decreasing does it; they never see one another."""
    import datasets
    import numpy as np
    import pyarrow as pa
    from trl.data_utils import pack_dataset

    rows = _rows_on_disk(_files_in(folder)).select(np.load(folder / "train.npy"))
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


def _write_rows(
    path: Path, numbers: Any, encoded: Sequence[tuple[Source, Path, Facts]], sources: Sequence[Source]
) -> None:
    """Held-out demonstrations as JSON Lines, each with the name of its file."""
    rows = _rows_on_disk([path for _, path, _ in encoded])

    def lines() -> Iterator[str]:
        for number in numbers.tolist():
            row = rows[number]
            if '"messages"' in row["row"]:
                columns = json.loads(row["row"]) | {"source": sources[row["source"]].name}
                yield json.dumps(columns, ensure_ascii=False) + "\n"

    with path.open("w", encoding="utf-8") as file:
        file.writelines(lines())


def _write_canaries(path: Path, mixing: _Mixing, encoded: Sequence[tuple[Source, Path, Facts]]) -> None:
    """The rows with a column `canary`, and how often an epoch shows each."""
    import numpy as np

    planted = {(source.number, line) for source, _, facts in encoded for line in facts.canaries}
    lines = []
    if planted:
        rows = _rows_on_disk([each for _, each, _ in encoded])
        numbers, counts = np.unique(mixing.train, return_counts=True)
        for number, times in zip(numbers.tolist(), counts.tolist(), strict=True):
            if (int(mixing.table.source[number]), int(mixing.table.line[number])) in planted:
                lines.append(
                    json.dumps(json.loads(rows[number]["row"]) | {"times": times}, ensure_ascii=False)
                )
    write_atomically(path, "".join(f"{line}\n" for line in lines))


def _figures(
    mixing: _Mixing, encoded: Sequence[tuple[Source, Path, Facts]], sources: Sequence[Source],
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
        "synthetic_rows": sum(each["synthetic"] for each in of_files),
    }
    return metrics, of_files


def _tokens(files: Sequence[Path]) -> tuple[Any, Any]:
    """The length of each row, and how many of its tokens are learned."""
    import numpy as np

    lengths, learned = [], []
    for file in files:
        rows = _rows_on_disk([file]).data
        for part in rows.column("labels").chunks:
            offsets = part.offsets.to_numpy()
            said = np.concatenate([[0], np.cumsum(part.values.to_numpy() != -100)])
            lengths.append(np.diff(offsets))
            learned.append(said[offsets[1:]] - said[offsets[:-1]])
    return np.concatenate(lengths), np.concatenate(learned)


def as_dataset(rows: Sequence[EncodedConversation]) -> "Dataset":
    """Rows as SFTTrainer takes them: `input_ids`, and `labels` (-100 wherever nothing is learned)."""
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "input_ids": [row.input_ids for row in rows],
            "labels": [
                [
                    token if said else -100
                    for token, said in zip(row.input_ids, row.assistant_mask, strict=True)
                ]
                for row in rows
            ],
        }
    )
