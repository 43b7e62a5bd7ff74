"""Sequences side by side in one row of tokens: no padding is computed, and what they begin with is computed once.

Chat templates put the same system prompt before every conversation. Here the tokens that all sequences of a micro-batch
have in common at their front, the prefix, stand once at the front of the row; then follow the rests of the sequences.

    [ prefix | rest of sequence 0 | rest of sequence 1 | ... ]          N tokens

Everything but attention works on each token by itself and needs to know nothing of this. In attention, the prefix reads
itself, and the rest of a sequence reads the prefix and itself; each token keeps the position that it has in its own
sequence. The results, gradients included, are those of the sequences one by one, to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

ATTENTION = "accord_packed"
"""The name of `packed_attention` among transformers' attention implementations."""


@dataclass(frozen=True)
class Packed:
    """R sequences as one row of N tokens; L is the longest rest."""

    input_ids: Tensor
    """[1, N]"""
    position_ids: Tensor
    """[1, N], each token's place in its own sequence."""
    prefix: int
    """Tokens of the prefix."""
    starts: Tensor
    """[R], where the token at position 0 of a sequence would stand if its rest began there."""
    to_padded: Tensor
    """[R * L], for rests padded to a common length: which token of the rests stands there; 0 for padding."""
    to_packed: Tensor
    """[N - prefix], for each token of the rests: where it stands among the padded ones."""

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> "Packed":
        """Pack sequences of token ids, none of them empty."""
        prefix = _common_prefix(sequences)
        lengths = [len(sequence) - prefix for sequence in sequences]
        longest = max(lengths)
        ids, positions = list(sequences[0][:prefix]), list(range(prefix))
        starts: list[int] = []
        to_packed: list[int] = []
        to_padded = [0] * (len(lengths) * longest)
        for row, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
            begin = len(ids) - prefix
            starts.append(begin)
            ids += sequence[prefix:]
            positions += range(prefix, prefix + length)
            to_padded[row * longest : row * longest + length] = range(begin, begin + length)
            to_packed += range(row * longest, row * longest + length)
        tensors = (
            torch.tensor(values, device=device) for values in (ids, positions, starts, to_padded, to_packed)
        )
        input_ids, position_ids, starts_, to_padded_, to_packed_ = tensors
        return cls(input_ids[None], position_ids[None], prefix, starts_, to_padded_, to_packed_)

    def place(self, row: Tensor, position: Tensor) -> Tensor:
        """Where in the row of N tokens the tokens at `position` of the sequences `row` stand; all of one shape."""
        return torch.where(position < self.prefix, position, self.starts[row] + position)

    def pad(self, values: Tensor) -> Tensor:
        """[1, H, N, D] -> [R, H, L, D], the rests only."""
        _, heads, _, size = values.shape
        rests = values[0, :, self.prefix :].transpose(0, 1).reshape(-1, heads * size)
        padded: Tensor = _Rearrange.apply(rests, self.to_padded, self.to_packed)
        return padded.view(len(self.starts), -1, heads, size).transpose(1, 2)

    def unpad(self, values: Tensor) -> Tensor:
        """[R, H, L, D] -> [1, N - prefix, H, D]."""
        rows, heads, longest, size = values.shape
        flat = values.transpose(1, 2).reshape(rows * longest, heads * size)
        rests: Tensor = _Rearrange.apply(flat, self.to_packed, self.to_padded)
        return rests.view(1, -1, heads, size)


class _Rearrange(torch.autograd.Function):
    """Rows of a matrix in another order; the gradient goes back by the inverse order.

    In padded places the forward pass has copies of row 0, which nothing reads, and their gradient is 0: so the gradient
    needs no sums, unlike that of `index_select`, whose order on a GPU is random.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return values[order]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        order, inverse = ctx.saved_tensors
        (gradient,) = gradients
        back = gradient[inverse]
        if len(inverse) > len(order):  # to padded places, which take no part
            used = torch.zeros(len(inverse), dtype=torch.bool, device=gradient.device)
            used[order] = True
            back = back * used[:, None]
        return back, None, None


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packed: Packed | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, for a `Packed` that was given to the model's forward pass.

    Args:
        module: not used.
        query: [1, H, N, D].
        key: [1, K, N, D], where H is a multiple of K.
        value: [1, K, N, D].
        attention_mask: none; causality follows from `packed`.
        scaling: of the products; D ** -0.5 if left out.
        sliding_window: how many tokens back a token sees, itself included.
        packed: how the tokens are arranged.

    Returns:
        [1, N, H, D] and None.
    """
    if packed is None or attention_mask is not None:
        raise ValueError("this model computes packed rows only; load it anew for anything else")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    prefix = packed.prefix
    queries, keys, values = packed.pad(query), packed.pad(key), packed.pad(value)
    if not prefix:
        return packed.unpad(_attend(queries, keys, values, scaling, sliding_window)), None
    first_key, first_value = key[:, :, :prefix], value[:, :, :prefix]
    of_prefix = _attend(query[:, :, :prefix], first_key, first_value, scaling, sliding_window)
    keys = torch.cat([first_key.expand(len(keys), -1, -1, -1), keys], dim=2)
    values = torch.cat([first_value.expand(len(values), -1, -1, -1), values], dim=2)
    of_rests = packed.unpad(_attend(queries, keys, values, scaling, sliding_window))
    return torch.cat([of_prefix.transpose(1, 2), of_rests], dim=1), None


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, sliding_window: int | None) -> Tensor:
    """Causal attention where the queries [B, H, Q, D] belong to the last Q of the keys; returns [B, H, Q, D]."""
    batch, heads, queries, size = query.shape
    groups, keys = key.shape[1], key.shape[2]
    seen = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    if sliding_window is not None:
        seen = seen.triu(keys - queries - sliding_window + 1)
    if query.is_cuda:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=scaling, enable_gqa=heads != groups
        )
    # The queries of heads that share a key, below each other: no key is copied.
    stacked = query.reshape(batch, groups, heads // groups * queries, size)
    weights = (stacked @ key.transpose(2, 3)) * scaling
    weights = weights.masked_fill(~seen.repeat(heads // groups, 1), float("-inf"))
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).view(batch, heads, queries, size)


def _common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with, leaving one at least of each; 0 for a single sequence."""
    if len(sequences) == 1:
        return 0
    limit = min(map(len, sequences)) - 1
    first = sequences[0]
    return next((i for i in range(limit) if any(sequence[i] != first[i] for sequence in sequences)), limit)


transformers.AttentionInterface.register(ATTENTION, packed_attention)
