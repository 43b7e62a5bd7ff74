"""The report card of a training that is just over: measured, written into its run, and shown on its page."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from accord.models.references import Model
from accord.records import Demonstration, write_atomically, write_jsonl
from accord.runs import Run, Runs
from sft.card.canaries import canaries_among
from sft.card.data import data_card
from sft.card.measure import Material
from sft.config import SFTConfig
from sft.data import Demonstrations
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


def material(
    config: SFTConfig, rows: Demonstrations, train: "Dataset", dropped: Mapping[str, int]
) -> Material:
    """What the card is made from, of rows in memory."""
    return Material(
        heldout=[_with_source(row) for row in rows.heldout],
        examples=rows.train,
        train=train,
        canaries=canaries_among(rows.train),
        data=data_card(train, dropped),
        thinking=config.thinking,
        max_sequence_tokens=config.max_sequence_tokens,
    )


def _with_source(row: Demonstration) -> Demonstration:
    """With the file that it is from in the column `source`."""
    if "source" in (row.model_extra or {}):
        return row
    return row.model_copy(update={"source": row.place.rpartition(":")[0] or "demonstrations"})
