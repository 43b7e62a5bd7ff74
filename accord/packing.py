"""Sequences side by side in one row of tokens: no padding is computed, and what they begin with is computed once.

Chat templates put the same system prompt before every conversation. Sequences that begin alike are a group: what they
have in common at their front, the prefix, stands once, and then follow the rests of the sequences.

    [ prefix | rest | rest | rest ] [ prefix | rest | rest ] [ whole sequence | whole sequence ]          N tokens

Everything but attention works on each token by itself and needs to know nothing of this. In attention, a prefix reads
itself, and the rest of a sequence reads its prefix and itself; each token keeps the position that it has in its own
sequence. The results, gradients included, are those of the sequences one by one, to rounding.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from accord.chat.tokens import common_prefix

ATTENTION = "accord_packed"
"""The name of `packed_attention` among transformers' attention implementations."""
NO_EFFECT = {
    "dropout", "is_causal", "position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states",
    "output_router_logits", "past_key_values", "position_embeddings",
}  # fmt: skip
"""What models hand to their attention that changes nothing in packed rows."""


@dataclass(frozen=True)
class PrefixGroup:
    """Sequences with a common prefix. What is packed has `rests` tokens, what is padded `longest` for each sequence."""

    rows: list[int]
    """Which sequences, in the order in which their rests stand."""
    prefix: int
    """Tokens of the prefix."""
    tokens: int
    """Of prefix and rests."""
    to_padded: Int[Tensor, " padded"]
    """For rests padded to a common length: which token of the rests stands there; 0 for padding."""
    to_packed: Int[Tensor, " rests"]
    """For each token of the rests: where it stands among the padded ones."""

    def pad(
        self, values: Float[Tensor, "1 heads rests size"]
    ) -> Float[Tensor, "sequences heads longest size"]:
        """Rests to a common length."""
        _, heads, _, size = values.shape
        rests = values[0].transpose(0, 1).reshape(-1, heads * size)
        padded: Tensor = _Rearrange.apply(rests, self.to_padded, self.to_packed)
        return padded.view(len(self.rows), -1, heads, size).transpose(1, 2)

    def unpad(
        self, values: Float[Tensor, "sequences heads longest size"]
    ) -> Float[Tensor, "1 rests heads size"]:
        """The inverse, with tokens before heads."""
        rows, heads, longest, size = values.shape
        flat = values.transpose(1, 2).reshape(rows * longest, heads * size)
        rests: Tensor = _Rearrange.apply(flat, self.to_packed, self.to_padded)
        return rests.view(1, -1, heads, size)


@dataclass(frozen=True)
class Packed:
    """`rows` sequences as one row of `tokens`."""

    input_ids: Int[Tensor, "1 tokens"]
    position_ids: Int[Tensor, "1 tokens"]
    """Each token's place in its own sequence."""
    groups: list[PrefixGroup]
    prefixes: Int[Tensor, " rows"]
    """Tokens of the prefix of each sequence's group."""
    prefix_starts: Int[Tensor, " rows"]
    """Where that prefix begins."""
    starts: Int[Tensor, " rows"]
    """Where the token at position 0 of a sequence would stand if its rest began there."""

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> "Packed":
        """Pack sequences of token ids, none of them empty."""
        tensor = functools.partial(torch.tensor, device=device)
        ids: list[int] = []
        positions: list[int] = []
        groups = []
        prefixes, prefix_starts, starts = ([0] * len(sequences) for _ in range(3))
        for prefix, rows in _groups(sequences):
            begin, longest = len(ids), max(len(sequences[row]) for row in rows) - prefix
            ids += sequences[rows[0]][:prefix]
            positions += range(prefix)
            to_padded = [0] * (len(rows) * longest)
            to_packed: list[int] = []
            for place, row in enumerate(rows):
                rest = len(sequences[row]) - prefix
                prefixes[row], prefix_starts[row], starts[row] = prefix, begin, len(ids) - prefix
                offset = len(ids) - begin - prefix
                ids += sequences[row][prefix:]
                positions += range(prefix, prefix + rest)
                to_padded[place * longest : place * longest + rest] = range(offset, offset + rest)
                to_packed += range(place * longest, place * longest + rest)
            groups.append(PrefixGroup(rows, prefix, len(ids) - begin, tensor(to_padded), tensor(to_packed)))
        return cls(
            tensor([ids]), tensor([positions]), groups, tensor(prefixes), tensor(prefix_starts), tensor(starts)
        )  # fmt: skip

    def place(self, row: Int[Tensor, "*#shape"], position: Int[Tensor, "*#shape"]) -> Int[Tensor, "*_"]:
        """Where in the row of all tokens the tokens at `position` of the sequences `row` stand; all of one shape."""
        in_prefix = position < self.prefixes[row]
        return position + torch.where(in_prefix, self.prefix_starts[row], self.starts[row])

    def places(self, row: int, length: int) -> Int[Tensor, " {length}"]:
        """Where the first `length` tokens of one sequence stand."""
        device = self.starts.device
        return self.place(torch.tensor(row, device=device), torch.arange(length, device=device))


@torch.no_grad()
def compute_packed_rows(model: Any, longest: int = 64) -> bool:
    """From now on, compute packed rows only; False, and nothing changed, for a model whose attention is another kind.

    A model computes a `Packed` when it is called with its `input_ids`, its `position_ids` and the `Packed` itself as
    `packed`. Whether it does so rightly is tried out on sequences that begin alike.

    Args:
        model: in the dtype to compute in.
        longest: of the sequences that it will read: beyond a sliding window, the sequences that are tried are, too.
    """
    body = body_of(model)
    before = body.config._attn_implementation
    if before == ATTENTION:
        return True
    body.eval()
    sequences = probe(body.config, longest)
    longer, shorter = sequences
    padded = [
        longer,
        shorter + [0] * (len(longer) - len(shorter)),
    ]  # causal: padding is seen by nothing before it
    plain = body(input_ids=torch.tensor(padded, device=body.device), use_cache=False).last_hidden_state
    alone = body(input_ids=torch.tensor([longer], device=body.device), use_cache=False).last_hidden_state[0]
    try:
        body.set_attn_implementation(ATTENTION)
        packed = Packed.of(sequences, body.device)
        states = hidden_states(body, packed)
        if all(
            is_rounding(states[packed.places(row, len(ids))], plain[row, : len(ids)], (plain[0], alone))
            for row, ids in enumerate(sequences)
        ):
            return True
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError):
        pass  # this model's code takes no packed rows
    body.set_attn_implementation(before)
    return False


def probe(config: Any, longest: int) -> list[list[int]]:
    """Two sequences of token ids that begin alike, to try a way of computing on.

    They are as long as what will be read, as far as that decides anything: a few tokens beyond a sliding window.
    """
    settings = config.get_text_config()
    windows = (getattr(settings, name, None) for name in ("sliding_window", "attention_chunk_size"))
    length = max([48, *(window + 16 for window in windows if window)])
    length = max(4, min(length, longest))
    common = length // 2
    first = [(5 + 7 * i) % settings.vocab_size for i in range(length)]
    other = [(11 + 5 * i) % settings.vocab_size for i in range(common, length - 1)]
    return [first, first[:common] + other]


ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far off a state may be by rounding, as a part of its length; in float32 a wrong mask is off by 1e-2 or more."""


def is_rounding(
    found: Float[Tensor, "tokens size"],
    right: Float[Tensor, "tokens size"],
    equivalents: tuple[Tensor, Tensor] | None = None,
) -> bool:
    """Whether no token's state differs from the right one by more than rounding explains.

    `equivalents` are two results of the same computation in two ways that are both right: rounding explains ten times
    what they differ by, up to a tenth of a percent (ten percent in half precision).
    """
    bound = ROUNDING.get(right.dtype, 5e-2)
    if equivalents is not None:
        bound = max(bound, min(10 * distance(*equivalents), 10 * bound))
    return distance(found, right) <= bound


def distance(found: Float[Tensor, "tokens size"], right: Float[Tensor, "tokens size"]) -> float:
    """By how much the states of tokens differ, the furthest of them, as a part of its length."""
    found, right = found.detach().double(), right.detach().double()
    return float(((found - right).norm(dim=-1) / right.norm(dim=-1).clamp(min=1e-30)).max())


def hidden_states(body: Any, packed: Packed) -> Float[Tensor, "tokens size"]:
    """The last hidden states of a packed row, after the final norm."""
    output = body(
        input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False, packed=packed
    )
    found: Tensor = output.last_hidden_state[0]
    return found


def body_of(model: Any) -> Any:
    """The transformer of a model, without its head and without PEFT's wrapping."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(whole, whole.base_model_prefix, whole)


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
    query: Float[Tensor, "1 heads tokens size"],
    key: Float[Tensor, "1 groups tokens size"],
    value: Float[Tensor, "1 groups tokens value_size"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed: Packed | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "1 tokens heads value_size"], None]:
    """Attention as transformers calls it, for a `Packed` that was given to the model's forward pass.

    Args:
        module: not used.
        query: of every token.
        key: of as many heads, or of fewer that several queries share.
        value: the same, of a size of its own.
        attention_mask: none; causality follows from `packed`.
        scaling: of the products; size ** -0.5 if left out.
        sliding_window: how many tokens back a token sees, itself included.
        softcap: what the products are bounded by, with tanh.
        packed: how the tokens are arranged.
        others: what changes nothing here.

    Raises:
        ValueError: no packed row is given, or the model asks for something that is not done here, such as sinks.
    """
    if packed is None or attention_mask is not None:
        raise ValueError("this model computes packed rows only; load it anew for anything else")
    unknown = sorted(name for name, value in others.items() if value is not None and name not in NO_EFFECT)
    if unknown:
        raise ValueError(f"packed attention knows no {unknown[0]}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    outputs = []
    begin = 0
    for group in packed.groups:
        first, rests = slice(begin, begin + group.prefix), slice(begin + group.prefix, begin + group.tokens)
        queries, keys, values = (group.pad(each[:, :, rests]) for each in (query, key, value))
        if group.prefix:
            q, k, v = (each[:, :, first] for each in (query, key, value))
            outputs.append(_attend(q, k, v, scaling, sliding_window, softcap).transpose(1, 2))
            keys = torch.cat([k.expand(len(keys), -1, -1, -1), keys], dim=2)
            values = torch.cat([v.expand(len(values), -1, -1, -1), values], dim=2)
        outputs.append(group.unpad(_attend(queries, keys, values, scaling, sliding_window, softcap)))
        begin += group.tokens
    return torch.cat(outputs, dim=1), None


def _attend(
    query: Float[Tensor, "batch heads queries size"],
    key: Float[Tensor, "batch groups keys size"],
    value: Float[Tensor, "batch groups keys value_size"],
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
) -> Float[Tensor, "batch heads queries value_size"]:
    """Causal attention where the queries belong to the last of the keys."""
    batch, heads, queries, size = query.shape
    groups, keys = key.shape[1], key.shape[2]
    seen = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    if sliding_window is not None:
        seen = seen.triu(keys - queries - sliding_window + 1)
    if query.is_cuda and softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=scaling, enable_gqa=heads != groups
        )
    # The queries of heads that share a key, below each other: no key is copied.
    stacked = query.reshape(batch, groups, heads // groups * queries, size)
    weights = (stacked @ key.transpose(2, 3)) * scaling
    if softcap is not None:
        weights = softcap * (weights / softcap).tanh()
    weights = weights.masked_fill(~seen.repeat(heads // groups, 1), float("-inf"))
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).view(batch, heads, queries, value.shape[-1])


def _groups(sequences: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
    """Prefix and members of the groups that save the most tokens; those that share nothing are one without prefix.

    In alphabetic order, sequences that begin alike are neighbours, and what several have in common is what all pairs of
    neighbours have; the best way to cut this order into groups follows from the best ways to cut its beginnings.
    """
    order = sorted(range(len(sequences)), key=lambda row: list(sequences[row]))
    saved, prefixes, begins = (
        [0],
        [0],
        [0],
    )  # of the best way to cut the first so many; the last group's prefix and begin
    for end in range(1, len(order) + 1):
        best = (saved[-1], 0, end - 1)
        prefix = len(sequences[order[end - 1]]) - 1  # leaves a token of each
        for begin in range(end - 2, -1, -1):
            neighbours = (sequences[order[begin]], sequences[order[begin + 1]])
            prefix = min(prefix, len(neighbours[0]) - 1, common_prefix(*neighbours))
            if not prefix:
                break
            best = max(best, (saved[begin] + prefix * (end - 1 - begin), prefix, begin))
        for values, value in zip((saved, prefixes, begins), best, strict=True):
            values.append(value)
    groups, alone = [], []
    end = len(order)
    while end:
        prefix, begin = prefixes[end], begins[end]
        if prefix:
            groups.append((prefix, order[begin:end]))
        else:
            alone += order[begin:end]
        end = begin
    return [*groups, (0, alone)] if alone else groups


transformers.AttentionInterface.register(ATTENTION, packed_attention)
