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

import json
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord import parallel
from accord.bundled import data_path
from accord.chat.tokens import EncodedConversation
from accord.data.config import DataConfig
from accord.data.documents import plain_files
from accord.data.encoding import Encoder, Facts, Source, chunks_of, encode_files, tokenizer_digest
from accord.errors import DataError, UsageError
from accord.runs import DataFile, Run, Runs
from accord.runs import Source as RunSource
from accord.text_files import write_atomically
from sft.config import DataSettings, Replay, SFTConfig, WeightedFile
from sft.data_figures import figures, write_canaries
from sft.mixing import Mixing
from sft.on_disk import encoded_in, pack, rows_on_disk, write_rows
from sft.page.data import write_page

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from accord.data.quality.held_out import HeldOut
    from sft.filters import Filters

DROPPED = "dropped.jsonl"
FILES = "files.json"
HELDOUT = "heldout"
REPLAY = "replay"


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
    config: SFTConfig,
    runs: Runs,
    tokenizer: "PreTrainedTokenizerBase",
    read: DataConfig | None = None,
    held_out: "HeldOut | None" = None,
) -> Run:
    """The data of a fine-tuning as a finished run, which is made if it is not there.

    Args:
        config: of the fine-tuning.
        runs: where the run is kept.
        tokenizer: of the model that learns.
        read: how files are read, and what is left out, redacted and repaired.
        held_out: what must not be learned; `accord.round_against` has it from `read.against`.

    Raises:
        DataError: a file is missing or faulty, the chat template refuses a row, or no row is left.
        UsageError: a replayed run is not there, or a filter does not exist or lacks what it needs.
    """
    read = read or DataConfig()
    if read.against and held_out is None:
        raise UsageError("data.against: is resolved by the commands; from Python, pass held_out")
    settings = DataSettings(
        **{name: getattr(config, name) for name in DataSettings.model_fields if hasattr(config, name)},
        columns=read.columns,
        system=read.system,
        drop=read.drop,
        redact=read.redact,
        repair=read.repair,
        against=held_out.digest if held_out else None,
        tokenizer=tokenizer_digest(tokenizer),
    )
    replayed = _replayed_run(config.replay, runs)
    sources = _files_of(settings, replayed, runs)
    with runs.begin("data", settings, sources, shared=True) as run:
        if run.is_done:
            return run
        metrics: dict[str, Any] = {}
        if parallel.is_first():
            metrics, run.record.dropped = _make(run, settings, tokenizer, read, replayed, held_out)
            write_page(run, metrics)
        run.finish(metrics, run.record.dropped)
    return run


def prepare_retention(
    config: SFTConfig, runs: Runs, tokenizer: "PreTrainedTokenizerBase", read: DataConfig | None = None
) -> Run | None:
    """The rows that `retention` names, unfiltered, as a finished run of data; None where it names none.

    Raises:
        DataError: as `prepare`.
    """
    if config.retention is None:
        return None
    rows = SFTConfig(
        demonstrations=[WeightedFile(path=config.retention)], heldout_fraction=0, thinking=config.thinking,
        max_sequence_tokens=config.max_sequence_tokens,
    )  # fmt: skip
    as_it_is = DataConfig(columns=read.columns, system=read.system) if read else None
    return prepare(rows, runs, tokenizer, as_it_is)


def _files_of(settings: DataSettings, replayed: Run | None, runs: Runs) -> dict[str, RunSource]:
    found: dict[str, RunSource] = {}
    for i, file in enumerate(settings.demonstrations):
        path = data_path(file.path)
        made_by = path.parent
        is_of_run = made_by.parent.resolve() == runs.root.resolve() and (made_by / "record.json").exists()
        found[f"demonstrations_{i}"] = runs.load(f"run:{made_by.name}") if is_of_run else DataFile(path)
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
    run: Run, settings: DataSettings, tokenizer: "PreTrainedTokenizerBase", read: DataConfig, replayed: Run | None,
    held_out: "HeldOut | None",
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
    with _filters(read, held_out, run.path / DROPPED) as filters:
        sources = _filtered(sources, filters)
        held_out_first = sorted(sources, key=lambda each: each.number < len(files))
        encoded = encode_files(encoder, tokenizer, held_out_first, run.path / "encoded")
        mixing = Mixing(settings, sources, encoded)
        if settings.replay:
            source = Source(len(sources), settings.replay.source, "demonstrations", read)
            if replayed:
                rows = _rows_to_replay(settings.replay.share, settings.seed, replayed, len(mixing.train))
                source = replace(source, given=partial(chunks_of, source.name, rows), read=DataConfig())
            else:
                (source,) = _filtered([source], filters)
            sources.append(source)
            encoded += encode_files(encoder, tokenizer, [source], run.path / "encoded")
            mixing.replay(source, encoded)
    if not len(mixing.train):
        raise DataError(_nothing_left(settings, mixing.dropped["too_long"], encoded))
    mixing.save(run.path)
    write_rows(run.path / "heldout.jsonl", mixing.heldout, encoded, sources)
    write_canaries(run.path / "canaries.jsonl", mixing, encoded)
    if settings.packing:
        pack(run.path, settings.max_sequence_tokens)
    metrics, of_files = figures(mixing, encoded, sources, files)
    if filters:
        mixing.dropped["filtered"] = filters.cleaner.dropped
        metrics["filtered"] = dict(filters.cleaner.reasons)
        metrics |= {"redacted_rows": filters.cleaner.redacted, "repaired_rows": filters.cleaner.repaired}
    write_atomically(run.path / FILES, json.dumps(of_files, indent=2, ensure_ascii=False) + "\n")
    return metrics, mixing.dropped


def _filters(
    read: DataConfig, held_out: "HeldOut | None", path: Path
) -> "AbstractContextManager[Filters | None]":
    """What the demonstrations go through, if anything is asked for."""
    if not (read.drop or read.redact or read.repair):
        return nullcontext()
    from sft.filters import Filters

    return Filters(read, held_out, path)


def _filtered(sources: list[Source], filters: "Filters | None") -> list[Source]:
    if filters is None:
        return sources
    filters.look([source for source in sources if source.kind == "demonstrations"])
    return [
        replace(source, given=partial(filters.chunks, source), read=DataConfig())
        if source.kind == "demonstrations"
        else source
        for source in sources
    ]


def _rows_to_replay(share: float, seed: int, replayed: Run, rows: int) -> list[str]:
    """The texts of as many training rows of an earlier run as may be needed."""
    import numpy as np

    wanted = math.ceil(2 * share / (1 - share) * rows)
    numbers = np.unique(np.load(replayed.path / "train.npy"))
    chosen = random.Random(seed).sample(range(len(numbers)), min(wanted, len(numbers)))
    texts = rows_on_disk(encoded_in(replayed.path)).select(numbers[np.array(sorted(chosen), dtype=int)])[
        "row"
    ]
    return [text for text in texts if '"messages"' in text]


def _nothing_left(
    settings: DataSettings, too_long: int, encoded: Sequence[tuple[Source, Path, Facts]]
) -> str:
    files = len(settings.demonstrations) + len(settings.documents)
    read = sum(facts.rows for source, _, facts in encoded if source.number < files)
    if read and too_long >= read:
        longest = f"max_sequence_tokens ({settings.max_sequence_tokens})"
        return f"all {read} demonstrations are longer than {longest}; raise it"
    return (
        "no demonstrations are left to train on, without the held-out and the duplicate ones, and those that weights "
        "leave out; add more rows"
    )


def open_data_run(run: Run) -> Data:
    """The data of a finished run.

    Raises:
        UsageError: the run is not finished, or is no run of data.
    """
    import datasets
    import numpy as np

    run.output("train.npy")
    everything = rows_on_disk(encoded_in(run.path))
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
    for file in encoded_in(run.path):
        rows = rows_on_disk([file]).data
        columns = (rows.column(name).to_pylist() for name in ("source", "line", "row"))
        for source, line, row in zip(*columns, strict=True):
            if row:
                yield names[source], line, row


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
