"""How hard answers are for a model: its loss on them, with and without what was asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from accord.chat.tokens import encode_conversation, start_of_text
from accord.errors import DataError
from accord.models.families import context_length
from accord.records import Demonstration, said_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS_AT_ONCE = 2048
"""Of a batch, padding included; the logits of 2,048 tokens over a vocabulary of 50,000 take 400 MB."""


@dataclass(frozen=True)
class Difficulty:
    """Of the answers of one conversation that would be learned, in nats a token, their EOS included."""

    loss: float
    """Given all that stands before them."""
    loss_without_prompt: float
    """Given nothing: each answer behind the start of a text."""
    tokens: int
    """Of the answers."""

    @property
    def ifd(self) -> float:
        """`loss` as a share of `loss_without_prompt`: the instruction-following difficulty of Li et al. 2024.

        Near 1, or above, the prompt helps the model little or not at all (https://arxiv.org/abs/2308.12032).
        """
        return self.loss / self.loss_without_prompt


def difficulties(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Demonstration]
) -> list[Difficulty]:
    """The difficulty of each conversation; those of like length share a batch.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        rows: whose chat template is the tokenizer's.

    Raises:
        DataError: the chat template refuses a row, or it is longer than the model's context.
    """
    limit = context_length(model.config)
    first = start_of_text(tokenizer)
    asked: list[list[int]] = []
    answered: list[list[int]] = []
    places: list[tuple[int, list[int]]] = []
    """For each sequence its row, and which of its answer tokens count; of all but a row's first none stand alone."""
    for i, row in enumerate(rows):
        with said_of(row):
            encoded = encode_conversation(tokenizer, row.messages)
            ids, mask = encoded.input_ids, encoded.assistant_mask
            if len(ids) > limit:
                raise DataError(f"has {len(ids)} tokens, and the model reads {limit}; leave the row out")
        begin = mask.index(1)
        asked.append(ids[:begin])
        answered.append(ids[begin:])
        places.append((i, mask[begin:]))
        for start, end in _spans(mask):
            asked.append([first])
            answered.append(ids[start:end])
            places.append((i, []))
    with_prompt, alone, tokens = [0.0] * len(rows), [0.0] * len(rows), [0] * len(rows)
    for (i, mask), losses in zip(places, _losses(model, asked, answered), strict=True):
        if mask:
            with_prompt[i] = sum(loss for loss, counts in zip(losses, mask, strict=True) if counts)
            tokens[i] = sum(mask)
        else:
            alone[i] += sum(losses)
    return [
        Difficulty(one / count, other / count, count)
        for one, other, count in zip(with_prompt, alone, tokens, strict=True)
    ]


def _losses(
    model: "PreTrainedModel", asked: Sequence[list[int]], answered: Sequence[list[int]]
) -> list[list[float]]:
    from accord.sampling.log_probabilities import token_log_probabilities

    lengths = [len(one) + len(other) for one, other in zip(asked, answered, strict=True)]
    losses: list[list[float]] = [[]] * len(asked)
    batch: list[int] = []

    def compute() -> None:
        scored = token_log_probabilities(
            model, [asked[i] for i in batch], [answered[i] for i in batch], sequences_at_once=len(batch)
        )
        for i, each in zip(batch, scored, strict=True):
            losses[i] = (-each.double()).tolist()
        batch.clear()

    for i in sorted(range(len(asked)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[i] > TOKENS_AT_ONCE:
            compute()
        batch.append(i)
    if batch:
        compute()
    return losses


def _spans(mask: Sequence[int]) -> list[tuple[int, int]]:
    edges = [
        i for i in range(len(mask) + 1) if (mask[i - 1] if i else 0) != (mask[i] if i < len(mask) else 0)
    ]
    return list(zip(edges[::2], edges[1::2], strict=True))
