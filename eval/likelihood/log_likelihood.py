"""log p(continuation | prefix) of many continuations, exactly, with what they have in common computed once.

    item = Item("The nurse was late because", (" she had overslept.", " the bus had broken down."))
    scores = log_likelihoods(policy, tokenizer, [item])          # scores[0][1].nats: the second continuation's

Nothing is sampled and nothing is estimated: each score is the sum of the model's own token log-probabilities. Only what
is read more than once is saved. A text's last token is predicted but never read, so it is cut off; texts that are
equal then, or begin with each other, are one sequence ("Answer: A", "Answer: B" and "Answer: C" are); the sequences are
sorted, so that those that begin alike stand in one row, a tree in which what any of them have in common is computed
once (eval.likelihood.token_trees); the output layer sees scored places only, each of them once.

How exact. Products of matrices sum in an order that depends on their shapes, so what else is in a row changes a score
by rounding. Promised, in float32 and for one number of threads: the same items in any order, to the last bit; with
other items beside them, or with other `tokens_per_row`, within 2e-5 nats a token (docs/decisions/0012). So a decision
between two continuations that are further apart than that times their tokens never flips.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from accord.chat.tokens import common_prefix, start_of_text
from accord.errors import DataError
from eval.likelihood.token_trees import States, read_padded, read_tree, reads_trees

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LIKELIHOOD_VERSION = 2
"""Raise it with every change to what a score is: kept scores are named by it."""
TOKENS_PER_ROW = 384
PLACES_PER_CHUNK = {"cpu": 128, "cuda": 1024}
"""At how many places the logits exist at a time; few enough on a CPU that they stay in its cache."""


@dataclass(frozen=True)
class Item:
    """A prefix and what may follow it.

    A prefix of text stands at the start of a document, after `start_of_text`; the empty one is only that token. Token
    ids stand as they are, for conversations (`chat.encode_prompt`), and the continuations are encoded by themselves.
    """

    prefix: str | tuple[int, ...]
    continuations: tuple[str, ...]


class LogLikelihood(BaseModel):
    """One continuation's score."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    nats: float
    """The sum of log p of its tokens."""
    tokens: int
    """How many were scored."""
    greedy: bool
    """Whether no other token is likelier than it at any of its places."""
    moved: int = 0
    """How many of the prefix's last tokens are scored too, as the text merges them with the continuation."""


@dataclass(frozen=True)
class Encoded:
    """An item as token ids."""

    wholes: list[tuple[int, ...]]
    """Prefix and continuation, for each continuation."""
    scored_from: int
    """The first place that is scored, the same for all continuations."""
    moved: int
    """How far that is before the prefix's end."""


def log_likelihoods(
    policy: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    items: Sequence[Item],
    tokens_per_row: int = TOKENS_PER_ROW,
) -> list[list[LogLikelihood]]:
    """The scores of every item's continuations under a model.

    Where a token spans the end of a prefix ("The " and "end" are "The", " end"), the boundary moves before it, and all
    of the item's continuations are scored from there: `moved` says so, and the sums stay comparable.

    Args:
        policy: with its head, in the dtype to score in; its attention is the same afterwards.
        tokenizer: the policy's.
        items: what to score.
        tokens_per_row: about how many tokens are computed at a time. Models that take no mask compute padded rows of
            so many tokens.

    Raises:
        DataError: a continuation has no token of its own, or is too long for the model.
        UsageError: the tokenizer has no token that starts a document.
    """
    import torch

    encoded = encode(tokenizer, items)
    config = policy.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or 10**9
    scored_from: dict[tuple[int, ...], int] = {}
    for item, its in zip(items, encoded, strict=True):
        for text, whole in zip(item.continuations, its.wholes, strict=True):
            if len(whole) - 1 > longest:
                raise DataError(
                    f"'{text[:60]}' and its prefix are {len(whole)} tokens, and the model reads {longest}; shorten it"
                )
            scored_from[whole] = min(its.scored_from, scored_from.get(whole, its.scored_from))
    sequences, served = _sequences(scored_from)
    found: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
    with torch.inference_mode(), reads_trees(policy, max(map(len, sequences), default=0)) as trees:
        read = read_tree if trees else read_padded
        for row in _rows(sequences, tokens_per_row, shared=trees):
            states = read(policy, sequences[row.start : row.stop])
            wholes = [(whole, states.paths[i - row.start]) for i in row for whole in served[i]]
            places = [path[p - 1] for whole, path in wholes for p in range(scored_from[whole], len(whole))]
            tokens = [token for whole, _ in wholes for token in whole[scored_from[whole] :]]
            each = _score(states, places, tokens)
            lengths = [len(whole) - scored_from[whole] for whole, _ in wholes]
            parts = zip(*(values.cpu().split(lengths) for values in each), strict=True)
            found |= {whole: part for (whole, _), part in zip(wholes, parts, strict=True)}

    def score(whole: tuple[int, ...], its: Encoded) -> LogLikelihood:
        log_p, likeliest = (values[its.scored_from - scored_from[whole] :] for values in found[whole])
        return LogLikelihood(
            nats=float(log_p.sum()), tokens=len(log_p), greedy=bool(likeliest.all()), moved=its.moved
        )

    return [[score(whole, its) for whole in its.wholes] for its in encoded]


def encode(tokenizer: "PreTrainedTokenizerBase", items: Sequence[Item]) -> list[Encoded]:
    """Items as token ids, and the place from which each is scored: where the tokens still are the prefix's own.

    Raises:
        DataError: a prefix of no token ids, or a continuation that adds no token.
        UsageError: the tokenizer has no token that starts a document.
    """
    texts = [text for item in items for text in _texts(item)]
    all_ids: Any = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    ids = iter(all_ids)
    start = start_of_text(tokenizer) if any(isinstance(item.prefix, str) for item in items) else None
    found = []
    for item in items:
        if isinstance(item.prefix, str):
            prefix = (start, *next(ids))
            wholes = [(start, *next(ids)) for _ in item.continuations]
        else:
            prefix = item.prefix
            wholes = [(*prefix, *next(ids)) for _ in item.continuations]
        boundary = min([len(prefix), *(common_prefix(prefix, whole) for whole in wholes)])
        for text, whole in zip(item.continuations, wholes, strict=True):
            if not 0 < boundary < len(whole):
                raise DataError(
                    f"the continuation '{text[:60]}' adds no token to its prefix; give it some text"
                )
        found.append(Encoded(wholes, boundary, len(prefix) - boundary))
    return found


def _texts(item: Item) -> list[str]:
    if isinstance(item.prefix, str):
        return [item.prefix, *(item.prefix + text for text in item.continuations)]
    return list(item.continuations)


def _sequences(
    wholes: "dict[tuple[int, ...], int]",
) -> tuple[list[tuple[int, ...]], list[list[tuple[int, ...]]]]:
    """What has to be read to predict the last tokens of all wholes, sorted; and which wholes each sequence serves.

    In alphabetic order, a sequence that another one begins with stands right before one of those, and is left out.
    """
    read = sorted({whole[:-1] for whole in wholes})
    sequences = [
        ids for ids, after in itertools.zip_longest(read, read[1:], fillvalue=()) if after[: len(ids)] != ids
    ]
    served: list[list[tuple[int, ...]]] = [[] for _ in sequences]
    for whole in sorted(wholes):
        served[bisect.bisect_left(sequences, whole[:-1])].append(whole)
    return sequences, served


def _rows(sequences: Sequence[tuple[int, ...]], tokens_per_row: int, shared: bool) -> Iterator[range]:
    """Cut sorted sequences into rows, in the last quarter of each where neighbours have the least in common.

    A row that begins with a long sequence may be twice as long, for those that share a long front with it.
    """
    common = [0, *(common_prefix(a, b) if shared else 0 for a, b in itertools.pairwise(sequences))]
    begin = 0
    while begin < len(sequences):
        end, tokens = begin + 1, len(sequences[begin])
        most = max(tokens_per_row, 2 * tokens)
        while end < len(sequences) and (tokens := tokens + len(sequences[end]) - common[end]) <= most:
            end += 1
        if end < len(sequences):
            end = min(range(end - (end - begin) // 4, end + 1), key=lambda cut: (common[cut], -cut))
        yield range(begin, end)
        begin = end


def _score(states: States, at: Sequence[int], tokens: Sequence[int]) -> "tuple[Tensor, Tensor]":
    """log p of T tokens predicted by the states at T places, float64, and whether none is likelier.

    log p_y = (z_y - max z) - log sum exp(z - max z): with the largest logit taken off first, float32 loses nothing
    that the logits have, and the sums over tokens are float64's.
    """
    import torch

    device = states.values.device
    targets = torch.tensor(tokens, device=device)
    places, which = torch.tensor(at, device=device).unique(return_inverse=True)
    log_p = torch.empty(len(tokens), dtype=torch.float64, device=device)
    likeliest = torch.empty(len(tokens), dtype=torch.bool, device=device)
    size = PLACES_PER_CHUNK.get(device.type, 256)
    for begin in range(0, len(places), size):
        logits = states.head(states.values[places[begin : begin + size]]).float()  # PV
        logits -= logits.amax(dim=-1, keepdim=True)
        here = (which // size == begin // size).nonzero().squeeze(1)
        own = logits[which[here] - begin, targets[here]]
        normaliser = logits.exp_().sum(dim=-1).double().log()
        log_p[here] = own.double() - normaliser[which[here] - begin]
        likeliest[here] = own == 0
    return log_p, likeliest
