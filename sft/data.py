"""Demonstrations to token ids. One row of a file:

{"messages": [{"role": "user", "content": "Name a prime."}, {"role": "assistant", "content": "Seven is prime."}]}
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from accord.chat.tokens import EncodedConversation, encode_conversation
from accord.errors import DataError
from accord.records import Demonstration, conversation_id, read_jsonl, said_of, without_reasoning


@dataclass(frozen=True)
class Demonstrations:
    """Rows to train on, rows held out, and how many were dropped for which reason."""

    train: list[Demonstration]
    heldout: list[Demonstration]
    dropped: dict[str, int]


def load_demonstrations(
    files: Sequence[tuple[Path, float]], heldout: Path | None, heldout_fraction: float, seed: int
) -> Demonstrations:
    """Read weighted files; set rows aside before weighting, so that no row is in both parts.

    A row that stands in several places is kept once (the first), and one that is also in the held-out file is
    taken out of the training rows; both are counted.

    Args:
        files: paths and weights; a row of a file with weight w is shown w times an epoch on average.
        heldout: a file of held-out rows, or None to set `heldout_fraction` of each file aside.
        heldout_fraction: ignored where `heldout` is given.
        seed: for the choice of held-out rows and of the rows that a fractional weight repeats.
    """
    chance = random.Random(seed)
    heldout_rows = read_jsonl(heldout, Demonstration) if heldout else []
    seen = {conversation_id(row.messages) for row in heldout_rows}
    dropped = {"duplicate": 0}
    train: list[Demonstration] = []
    for path, weight in files:
        rows = []
        for row in read_jsonl(path, Demonstration):
            if conversation_id(row.messages) in seen:
                dropped["duplicate"] += 1
            else:
                seen.add(conversation_id(row.messages))
                rows.append(row)
        if heldout is None:
            chance.shuffle(rows)
            aside = math.ceil(heldout_fraction * len(rows))
            heldout_rows += rows[:aside]
            rows = rows[aside:]
        train += rows * int(weight) + chance.sample(rows, round((weight % 1) * len(rows)))
    return Demonstrations(train, heldout_rows, dropped)


def encode_demonstrations(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Demonstration],
    max_sequence_tokens: int,
    thinking: Literal["learn", "keep", "cut"] = "learn",
) -> tuple[Dataset, int]:
    """Rows as `input_ids` and `labels` (-100 wherever nothing is learned), and how many were too long.

    Raises:
        DataError: there are no rows, every row is longer than `max_sequence_tokens`, or the chat template refuses one.
    """
    if not rows:
        raise DataError(
            "no demonstrations are left to train on, without the held-out and the duplicate ones; add more rows"
        )
    encoded = []
    for row in rows:
        messages = [without_reasoning(turn) for turn in row.messages] if thinking == "cut" else row.messages
        with said_of(row):
            encoded.append(encode_conversation(tokenizer, messages, learns_thinking=thinking == "learn"))
    kept = [row for row in encoded if len(row.input_ids) <= max_sequence_tokens]
    if not kept:
        raise DataError(
            f"all {len(rows)} demonstrations are longer than max_sequence_tokens ({max_sequence_tokens}); raise it"
        )
    return as_dataset(kept), len(encoded) - len(kept)


def as_dataset(rows: Sequence[EncodedConversation]) -> Dataset:
    """Rows as SFTTrainer takes them: `input_ids`, and `labels` (-100 wherever nothing is learned)."""
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
