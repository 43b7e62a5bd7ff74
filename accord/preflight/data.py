"""What the fine-tuning learns from: first the beginning of each file, then every row, by preparing it."""

from typing import TYPE_CHECKING

from accord.data.config import DataConfig
from accord.data.encoding import Source
from accord.data.reading import RowReader
from accord.errors import DataError
from accord.preflight.shared import Faults
from accord.records import Demonstration
from accord.round_against import held_out_by
from accord.runs import Runs
from sft.config import SFTConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def look_at_files(config: SFTConfig, read: DataConfig, faults: Faults) -> None:
    """Whether the files are there, and their first rows are what they should be."""
    demonstrations = [("sft.demonstrations", file.path) for file in config.demonstrations]
    if config.heldout:
        demonstrations.append(("sft.heldout", config.heldout))
    if config.retention:
        demonstrations.append(("sft.retention", config.retention))
    if config.replay and not config.replay.source.startswith("run:"):
        demonstrations.append(("sft.replay.source", config.replay.source))
    for key, name in demonstrations:
        with faults.of(key):
            reader = RowReader(name, Demonstration, read)
            for chunk in Source(0, name).chunks():
                for raw in chunk.rows():
                    reader.take(raw)
                break
            reader.reading.check()
    for file in config.documents:
        with faults.of("sft.documents"):
            if next(Source(0, file.path, "documents").chunks(), None) is None:
                raise DataError(f"{file.path}: holds no rows; it must hold at least one document")


def look_at_data(
    config: SFTConfig, runs: Runs, tokenizer: "PreTrainedTokenizerBase", read: DataConfig, faults: Faults
) -> None:
    """Prepare the data, which is how the stage will have them."""
    from sft.data import prepare, prepare_retention

    held_out = None
    if read.against:
        with faults.of("data.against"):
            held_out = held_out_by(read.against, runs)
        if held_out is None:
            return
    with faults.of("sft.demonstrations" if config.demonstrations else "sft.documents"):
        prepare(config, runs, tokenizer, read, held_out)
    with faults.of("sft.retention"):
        prepare_retention(config, runs, tokenizer, read)
