"""Preferences as token ids, split by prompt. Used by the reward model and by DPO, so that both see one split."""

import hashlib
import math
from collections.abc import Sequence

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from accord.chat import encode_conversation
from accord.records import Message, Preference


def split_by_prompt(
    preferences: Sequence[Preference], heldout_fraction: float
) -> tuple[list[Preference], list[Preference]]:
    """Train and held-out rows; all rows of one prompt are on the same side.

    The prompts with the smallest hashes are held out: at least one, and the same ones in every stage that asks
    for the same fraction of the same rows.
    """
    prompts = sorted({_prompt_hash(row.prompt) for row in preferences})
    heldout = set(prompts[: math.ceil(heldout_fraction * len(prompts))])
    train = [row for row in preferences if _prompt_hash(row.prompt) not in heldout]
    return train, [row for row in preferences if _prompt_hash(row.prompt) in heldout]


def drop_too_long(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Preference], max_sequence_tokens: int
) -> tuple[list[Preference], int]:
    """The rows whose prompt with either answer fits, and how many did not; TRL would filter or cut them silently."""

    def tokens(row: Preference, answer: Sequence[Message]) -> int:
        return len(encode_conversation(tokenizer, [*row.prompt, *answer]).input_ids)

    kept = [
        row for row in rows if max(tokens(row, row.chosen), tokens(row, row.rejected)) <= max_sequence_tokens
    ]
    return kept, len(rows) - len(kept)


def encode_pairs(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Preference]) -> Dataset:
    """Rows as `chosen_ids` and `rejected_ids`, each a whole conversation, as TRL's RewardTrainer takes them.

    `weight` is the row's, 1 where it has none, divided by the mean over the rows: weights say which pairs count more
    than others, and leave the learning rate what it is.
    """
    weights = [1.0 if row.weight is None else row.weight for row in rows]
    mean = sum(weights) / len(weights) or 1.0
    return Dataset.from_list(
        [
            {
                "chosen_ids": encode_conversation(tokenizer, [*row.prompt, *row.chosen]).input_ids,
                "rejected_ids": encode_conversation(tokenizer, [*row.prompt, *row.rejected]).input_ids,
                "weight": weight / mean,
            }
            for row, weight in zip(rows, weights, strict=True)
        ]
    )


def _prompt_hash(prompt: Sequence[Message]) -> str:
    return hashlib.sha256("\n".join(f"{m.role}: {m.content}" for m in prompt).encode()).hexdigest()
