"""The report card of a training that is just over: measured, written into its run, and shown on its page."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accord.models.references import Model
from accord.records import Demonstration, read_jsonl
from accord.runs import Run, Runs
from accord.text_files import write_atomically, write_jsonl
from sft.card.canaries import Canary, merged
from sft.card.data import data_card
from sft.card.measure import Material
from sft.config import SFTConfig
from sft.data import Data, files_of
from sft.report_card import examine

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def write_card(
    config: SFTConfig,
    run: Run,
    runs: Runs,
    base: Model,
    tokenizer: "PreTrainedTokenizerBase",
    given: Material,
) -> dict[str, Any]:
    """Write report_card.json, samples.jsonl and report.html into the run; returns the figures for metrics.json.

    A run that is killed here continues from its last checkpoint, which is the trained model.
    """
    import torch

    from accord.training import base_dtype
    from sft.page.report import write_report

    assert config.card is not None
    run.record.config["card"] = config.card.model_dump(mode="json")  # another one may have begun the run
    # On a CPU in float32: rounding to bfloat16 moves single log-probabilities by 0.1. A GPU may have no room for that.
    whole = not torch.cuda.is_available() or base_dtype(config) == torch.float32
    tuned = Model("the tuned model", run.path / "model", "")
    card, samples = examine(
        config.card, base, tuned, tokenizer, given, config.seed, "float32" if whole else "bfloat16"
    )
    write_atomically(run.path / "report_card.json", card.model_dump_json(indent=2) + "\n")
    if samples:
        write_jsonl(run.path / "samples.jsonl", samples)
    write_report(run, runs)
    return card.metrics()


def material(config: SFTConfig, data: Data, prepared: Run, retention: "Dataset | None" = None) -> Material:
    """What the card is made from: nothing is read into memory but what is asked for.

    Args:
        config: of the fine-tuning.
        data: what it learns from.
        prepared: the run that holds it.
        retention: encoded rows of what the model should not forget.

    Raises:
        DataError: the column `canary` of a training row is no part of its answer.
    """
    figures = files_of(prepared)
    conversations, documents = _by_kind(data.heldout_rows, figures)
    canaries = prepared.output("canaries.jsonl")
    return Material(
        heldout=_Demonstrations(conversations, data.sources),
        examples=_Demonstrations(_by_kind(data.different, figures)[0], data.sources),
        train=data.different,
        documents=documents if len(documents) else None,
        retention=retention,
        canaries=merged(read_jsonl(canaries, Canary)) if canaries.stat().st_size else (),
        data=data_card(
            data.rows,
            prepared.record.dropped,
            data.sources,
            {each["file"]: each["weight"] for each in figures},
            {each["file"]: each["synthetic"] / each["rows"] for each in figures if each["rows"]},
        )
        if config.card
        else None,
        sources=data.sources,
        thinking=config.thinking,
        max_sequence_tokens=config.max_sequence_tokens,
    )


def _by_kind(rows: "Dataset", figures: Sequence[Mapping[str, Any]]) -> tuple["Dataset", "Dataset"]:
    """The conversations among some rows, and the documents."""
    import numpy as np

    if not len(rows):
        return rows, rows
    kinds = np.array([each["kind"] == "documents" for each in figures])
    is_document = kinds[rows.select_columns("source").with_format("numpy")[:]["source"]]
    return rows.select(np.flatnonzero(~is_document)), rows.select(np.flatnonzero(is_document))


class _Demonstrations(Sequence[Demonstration]):
    """Encoded rows as the conversations that they are, with their file in the column `source`, one when asked for."""

    def __init__(self, rows: "Dataset", sources: Sequence[str]) -> None:
        self.rows, self.sources = rows, sources

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:
        row = self.rows[number]
        return Demonstration.model_validate(json.loads(row["row"]) | {"source": self.sources[row["source"]]})
