"""Scores from a reward model: `score(reward_model, conversations)`; `score_ids` for answers that are token ids already.

A score depends on its own conversation only: not on the batch size, nor on what else is in the batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from accord.chat import encode_conversation
from accord.errors import DataError
from accord.models import Model, load_reward_model, load_tokenizer
from accord.records import Message


def score(
    reward_model: Model, conversations: Sequence[Sequence[Message]], conversations_per_batch: int = 16
) -> list[float]:
    """The reward of each conversation's last assistant turn, in the reward model's own (logit) units.

    Computed in float32, right-padded, at the EOS of the last turn; conversations of like length share a batch.

    Raises:
        DataError: a conversation is longer than the reward model's context.
    """
    tokenizer = load_tokenizer(reward_model)
    model = load_scorer(reward_model)
    encoded = [encode_conversation(tokenizer, messages).input_ids for messages in conversations]
    limit = model.config.max_position_embeddings
    if too_long := [i for i, ids in enumerate(encoded) if len(ids) > limit]:
        raise DataError(
            f"conversation {too_long[0]} has {len(encoded[too_long[0]])} tokens and the reward model reads {limit}; "
            "shorten it"
        )
    return score_ids(model, tokenizer, encoded, conversations_per_batch)


def load_scorer(reward_model: Model) -> Any:
    """The reward model in float32, on the device where scores are computed."""
    model: Any = load_reward_model(reward_model)
    return model.to(torch.accelerator.current_accelerator() or torch.device("cpu")).eval()


def score_ids(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]], rows_per_batch: int = 16
) -> list[float]:
    """The reward of each row of token ids, read at its last token, as `score` reads it.

    Args:
        model: from `load_scorer`.
        tokenizer: the reward model's, which pads.
        rows: prompt and answer, which ends with EOS.
        rows_per_batch: how many are computed at a time.
    """
    scores = [0.0] * len(rows)
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(by_length), rows_per_batch):
        chosen = by_length[start : start + rows_per_batch]
        batch = tokenizer.pad(
            {"input_ids": [rows[i] for i in chosen]}, padding_side="right", return_tensors="pt"
        )
        with torch.inference_mode():
            logits = model(**batch.to(model.device)).logits[:, 0]
        for i, value in zip(chosen, logits.tolist(), strict=True):
            scores[i] = value
    return scores
