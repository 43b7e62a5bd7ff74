"""Scores from a reward model: `score(reward_model, conversations)`; `score_ids` for answers that are token ids already.

A score depends on its own conversation only: not on the batch size, nor on what else is in the batch.

A reward model's folder holds a model with one output, which transformers and vLLM load. If it is an ensemble, that
output is the mean of its heads, whose weights are in `ensemble/heads.safetensors` beside it. `reward_shift` in its
config.json is subtracted from what the model computes: it makes demonstrations score 0 on average.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from accord.chat.tokens import encode_conversation
from accord.errors import DataError
from accord.models.families import context_length
from accord.models.loading import load_reward_model, load_tokenizer
from accord.models.references import Model
from accord.packing import body_of
from accord.progress import progress
from accord.records import Message

HEADS_FILE = "ensemble/heads.safetensors"
Ensemble = Literal["mean", "minimum", "mean_minus_deviation"]
"""What is made of the scores of an ensemble's heads."""


def score(
    reward_model: Model,
    conversations: Sequence[Sequence[Message]],
    conversations_per_batch: int = 16,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[float]:
    """The reward of each conversation's last assistant turn, in the reward model's own (logit) units.

    Computed in float32, right-padded, at the EOS of the last turn; conversations of like length share a batch. An
    ensemble's is the mean of its heads'.

    Args:
        reward_model: that scores.
        conversations: whose last turn is the assistant's.
        conversations_per_batch: how many are computed at a time.
        tokenizer: the reward model's, where it is loaded already.

    Raises:
        DataError: a conversation is longer than the reward model's context.
    """
    return [
        sum(of_heads) / len(of_heads)
        for of_heads in score_by_head(reward_model, conversations, conversations_per_batch, tokenizer)
    ]


def score_by_head(
    reward_model: Model,
    conversations: Sequence[Sequence[Message]],
    conversations_per_batch: int = 16,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[list[float]]:
    """The same by every head of an ensemble [conversations, heads]; a model that is none has one."""
    if tokenizer is None:
        tokenizer = load_tokenizer(reward_model)
    model = load_scorer(reward_model)
    rows = encode_to_score(tokenizer, conversations, context_length(model.config))
    with progress("scoring", len(rows)) as update:
        return score_ids_by_head(model, tokenizer, rows, conversations_per_batch, show=update)


def encode_to_score(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]], limit: float
) -> list[list[int]]:
    """Conversations as token ids.

    Raises:
        DataError: one has more tokens than `limit`, which the reward model reads.
    """
    rows = [encode_conversation(tokenizer, messages).input_ids for messages in conversations]
    for number, row in enumerate(rows, start=1):
        if len(row) > limit:
            raise DataError(
                f"conversation {number} has {len(row)} tokens and the reward model reads {limit}; shorten it"
            )
    return rows


def load_scorer(reward_model: Model) -> Any:
    """The reward model in float32, with all heads of an ensemble, on the device where scores are computed."""
    model: Any = load_reward_model(reward_model)
    weight = load_heads(reward_model)
    if weight is not None:
        set_heads(model, weight)
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
    return [
        sum(of_heads) / len(of_heads)
        for of_heads in score_ids_by_head(model, tokenizer, rows, rows_per_batch)
    ]


def score_ids_by_head(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    rows_per_batch: int = 16,
    show: Callable[[int], None] = lambda done: None,
) -> list[list[float]]:
    """The same by every head [rows, heads]; `show` is told how many rows are done.

    Rows are padded behind their ends, where nothing sees it, and read at their last token, whatever the model's own
    classifier takes for padding: EOS, with some tokenizers.
    """
    scores: list[list[float]] = [[]] * len(rows)
    shift = reward_shift(model)
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(by_length), rows_per_batch):
        chosen = by_length[start : start + rows_per_batch]
        batch = tokenizer.pad(
            {"input_ids": [rows[i] for i in chosen]}, padding_side="right", return_tensors="pt"
        ).to(model.device)
        last = batch["attention_mask"].sum(dim=1) - 1
        with torch.inference_mode():
            states = body_of(model)(**batch, use_cache=False).last_hidden_state
            scored = model.score(states)[torch.arange(len(last), device=last.device), last] - shift
        for i, values in zip(chosen, scored.tolist(), strict=True):
            scores[i] = values
        show(start + len(chosen))
    return scores


def combine(scores: torch.Tensor, ensemble: Ensemble) -> torch.Tensor:
    """One score [rows] of those of the heads [rows, heads].

    The minimum and the mean minus a standard deviation trust an answer only as far as the heads agree on it, which
    takes longer to exploit (Coste et al. 2023, https://arxiv.org/abs/2310.02743). A single head is what it is.
    """
    if ensemble == "minimum":
        return scores.min(dim=1).values
    mean = scores.mean(dim=1)
    return mean - disagreement(scores) if ensemble == "mean_minus_deviation" else mean


def disagreement(scores: torch.Tensor) -> torch.Tensor:
    """The standard deviation [rows] over heads of their scores [rows, heads]; 0 for a single one."""
    return scores.std(dim=1) if scores.shape[1] > 1 else torch.zeros_like(scores[:, 0])


def reward_shift(model: Any) -> float:
    """What is subtracted from a reward model's output, so that demonstrations score 0 on average."""
    return float(getattr(model.config, "reward_shift", 0.0))


def load_heads(reward_model: Model) -> torch.Tensor | None:
    """The heads' weights [heads, d] in float32; None for a reward model that is no ensemble."""
    path = reward_model.folder / HEADS_FILE
    return load_file(path)["weight"] if path.exists() else None


def save_heads(folder: Path, weight: torch.Tensor) -> None:
    """Write an ensemble's heads [heads, d] into a reward model's folder."""
    (folder / HEADS_FILE).parent.mkdir()
    save_file({"weight": weight.float().contiguous()}, folder / HEADS_FILE)


def set_heads(model: Any, weight: torch.Tensor) -> None:
    """Give a sequence classifier the heads [heads, d], one output each."""
    head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    head.weight = torch.nn.Parameter(weight.to(model.score.weight))
    model.score = head
