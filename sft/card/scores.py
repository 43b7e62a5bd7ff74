"""How well a model predicts given tokens: nats, and how many of them are its likeliest."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accord.chat.tokens import common_prefix
from accord.progress import progress

if TYPE_CHECKING:
    from torch import Tensor

TOKENS_PER_PASS = 1024
"""About so many are computed at a time, so that logits stay in proportion to the model."""


@dataclass(frozen=True)
class Row:
    """A sequence, and which of its tokens are scored: those whose label is not -100. The first one cannot be."""

    input_ids: Sequence[int]
    labels: Sequence[int]


@dataclass(frozen=True)
class Score:
    """Of one row: its scored tokens, their negative log-likelihood in nats, and how many are the likeliest ones."""

    tokens: int
    nats: float
    right: int


def score(model: Any, rows: Sequence[Row], what: str = "scoring") -> list[Score]:
    """Teacher forcing, without gradients. What rows begin with alike is computed once, where the model can do so.

    Args:
        model: a causal language model; its attention is the same afterwards.
        rows: in any order.
        what: is shown while it goes on.
    """
    import torch

    model.eval()
    order = sorted(range(len(rows)), key=lambda i: list(rows[i].input_ids))
    found: dict[int, Score] = {}
    with (
        torch.inference_mode(),
        _packed(model, max((len(row.input_ids) for row in rows), default=1)) as packed,
        progress(what, len(rows)) as update,
    ):
        for indices in _passes(order, rows, packed):
            some = [rows[i] for i in indices]
            found |= dict(zip(indices, (_read_packed if packed else _read_padded)(model, some), strict=True))
            update(len(found))
    return [found[i] for i in range(len(rows))]


@contextmanager
def _packed(model: Any, longest: int) -> Iterator[bool]:
    """Have the model compute packed rows for a while; False, and nothing changed, where it does not."""
    from accord.packing import body_of, compute_packed_rows

    adapter = getattr(model, "active_peft_config", None)
    if (
        adapter is not None and adapter.is_prompt_learning
    ):  # whose virtual tokens packed rows have no place for
        yield False
        return
    body = body_of(model)
    before = body.config._attn_implementation
    can = compute_packed_rows(model, longest)
    try:
        yield can
    finally:
        if can:
            body.set_attn_implementation(before)


def _passes(order: Sequence[int], rows: Sequence[Row], packed: bool) -> Iterator[list[int]]:
    """Neighbours in alphabetic order, so that what begins alike is read together; else such as are about as long."""
    if not packed:
        order = sorted(order, key=lambda i: len(rows[i].input_ids))
    some: list[int] = []
    tokens = 0
    for i in order:
        ids = rows[i].input_ids
        new = len(ids) - (common_prefix(ids, rows[some[-1]].input_ids) if packed and some else 0)
        if some and tokens + new > TOKENS_PER_PASS:
            yield some
            some, tokens, new = [], 0, len(ids)
        some.append(i)
        tokens += new
    if some:
        yield some


def _scored(row: Row) -> list[int]:
    return [place for place in range(1, len(row.labels)) if row.labels[place] != -100]


def _read_packed(model: Any, rows: Sequence[Row]) -> list[Score]:
    import torch

    from accord.packing import Packed

    packed = Packed.of([row.input_ids for row in rows], model.device)
    scored = [_scored(row) for row in rows]
    before = [
        packed.places(i, len(row.input_ids))[[place - 1 for place in places]]
        for i, (row, places) in enumerate(zip(rows, scored, strict=True))
    ]
    at, which = torch.cat(before).unique(return_inverse=True)
    logits = model(
        input_ids=packed.input_ids, position_ids=packed.position_ids, packed=packed, use_cache=False,
        logits_to_keep=at,
    ).logits[0].float()  # fmt: skip
    parts = which.split([len(places) for places in scored])
    normalisers, likeliest = logits.logsumexp(dim=-1), logits.argmax(dim=-1)
    return [
        _of(row, places, logits, normalisers, likeliest, part)
        for row, places, part in zip(rows, scored, parts, strict=True)
    ]


def _read_padded(model: Any, rows: Sequence[Row]) -> list[Score]:
    import torch

    width = max(len(row.input_ids) for row in rows)
    ids = [[*row.input_ids, *[0] * (width - len(row.input_ids))] for row in rows]
    seen = [[1] * len(row.input_ids) + [0] * (width - len(row.input_ids)) for row in rows]
    logits = model(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(seen, device=model.device),
        use_cache=False,
    ).logits[:, -width:]  # virtual tokens have logits of their own
    found = []
    for row, of_row in zip(rows, logits, strict=True):
        places = _scored(row)
        own = of_row[[place - 1 for place in places]].float()
        at = torch.arange(len(places), device=own.device)
        found.append(_of(row, places, own, own.logsumexp(dim=-1), own.argmax(dim=-1), at))
    return found


def _of(
    row: Row,
    places: Sequence[int],
    logits: "Tensor",
    normalisers: "Tensor",
    likeliest: "Tensor",
    at: "Tensor",
) -> Score:
    """A row whose scored token number t is predicted by the logits at `at[t]`."""
    import torch

    tokens = torch.tensor([row.input_ids[place] for place in places], dtype=torch.long, device=at.device)
    nats = (normalisers[at] - logits[at, tokens]).double().sum()
    return Score(len(places), float(nats), int((likeliest[at] == tokens).sum()))
