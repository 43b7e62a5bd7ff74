"""Batches of packed rows: each row stays a row, and what was packed into it sees itself only.

TRL lays all rows of a batch end to end in one sequence, which is right for FlashAttention's kernels. With any other
attention the work grows with the square of that length, so four rows of 512 tokens cost four times as much as need be.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class PackedRows:
    """Rows as a batch: `input_ids`, `labels` and `position_ids`, each [rows, longest row].

    There is no attention mask, so transformers makes one from the positions, in which every 0 begins a sequence. A pad
    has position 0: it is a sequence by itself. No token learns to begin a sequence.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Args: rows: `input_ids`, `labels` and, where several were packed, `seq_lengths` of each."""
        positions = [
            torch.cat([torch.arange(length) for length in row.get("seq_lengths") or [len(row["input_ids"])]])
            for row in rows
        ]
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        labels = [
            torch.tensor(row["labels"]).masked_fill(at == 0, -100)
            for row, at in zip(rows, positions, strict=True)
        ]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
            "position_ids": pad_sequence(positions, batch_first=True, padding_value=0),
        }
