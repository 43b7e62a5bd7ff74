"""Scores from a reward model: `score(reward_model, conversations)`, for the gate, for PPO, and for a file.

A score depends on its own conversation only: not on the batch size, nor on what else is in the batch.
"""

from collections.abc import Sequence
from typing import Any

import torch

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
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    model: Any = load_reward_model(reward_model)
    model.to(device).eval()
    encoded = [encode_conversation(tokenizer, messages).input_ids for messages in conversations]
    limit = model.config.max_position_embeddings
    if too_long := [i for i, ids in enumerate(encoded) if len(ids) > limit]:
        raise DataError(
            f"conversation {too_long[0]} has {len(encoded[too_long[0]])} tokens and the reward model reads {limit}; "
            "shorten it"
        )
    scores = [0.0] * len(encoded)
    by_length = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    for start in range(0, len(by_length), conversations_per_batch):
        chosen = by_length[start : start + conversations_per_batch]
        batch = tokenizer.pad(
            {"input_ids": [encoded[i] for i in chosen]}, padding_side="right", return_tensors="pt"
        )
        with torch.inference_mode():
            logits = model(**batch.to(device)).logits[:, 0]
        for i, value in zip(chosen, logits.tolist(), strict=True):
            scores[i] = value
    return scores
