"""Reading sequences of token ids with what they have in common at their fronts read once.

Sorted sequences are one row of tokens, a tree in depth-first order. Each token sees those on its own path, by a mask
that the model's attention takes, and keeps the position that it has in its sequence.

    a b c       row   a b c d x y       path of a b d:  0 1 3
    a b d             . . . . . .
    x y               a b | | . .       c and d both see a and b, and not each other

Everything but attention works on each token by itself. Attention computes N * N products for a row of N tokens,
needed or not; up to about 400 tokens that costs less than what a row's matrix products gain by its length.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accord.chat.tokens import common_prefix
from accord.models.adapters import adds_tokens

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class States:
    """What a model made of some sequences."""

    values: "Tensor"
    """[N, d]; logits [N, V] where there is no `head`."""
    paths: Sequence[Sequence[int]]
    """For each sequence: where among the N the states after its tokens stand."""
    head: "Callable[[Tensor], Tensor]"
    """From [T, d] to logits [T, V]."""


@contextmanager
def reads_trees(policy: "PreTrainedModel", longest: int) -> Iterator[bool]:
    """Have the model compute trees for a while; False, and nothing changed, where it does not do so rightly.

    Tried out: the states must be those of the sequences one by one, and the logits those of the output layer alone,
    which some models change afterwards.

    Args:
        policy: with its head; its attention is the same afterwards.
        longest: of the sequences that will be read. The mask leaves no room for a sliding window, so only a window
            that these fit into is right.
    """
    from accord.packing import body_of

    policy.eval()
    if adds_tokens(policy):  # which are no part of its body
        yield False
        return
    body = body_of(policy)
    before = body.config._attn_implementation
    window = getattr(policy.config.get_text_config(), "sliding_window", None)
    right = False
    try:
        if window is None or longest <= window:
            try:
                right = _tried_out(policy, body, longest)
            except (AttributeError, IndexError, TypeError, ValueError, RuntimeError):
                right = False  # this model's code takes no such mask
        if not right:
            body.set_attn_implementation(before)
        yield right
    finally:
        if right:
            body.set_attn_implementation(before)


def _tried_out(policy: "PreTrainedModel", body: Any, longest: int) -> bool:
    """Two passes over some tokens: each reads all weights, which is most of their time. Leaves attention at sdpa."""
    import torch

    from accord.packing import is_rounding, probe

    first, other = map(tuple, probe(policy.config, min(longest, 24)))
    branch = (*other[: len(other) // 2 + 2], *first[-2:])  # leaves the other later than the first does
    sequences = sorted({first, other, branch})
    width = max(map(len, sequences))
    rows = torch.tensor([[*each, *[0] * (width - len(each))] for each in sequences], device=body.device)
    read: list[Tensor] = []
    hook = body.register_forward_hook(lambda *call: read.append(call[-1].last_hidden_state))
    try:
        logits = policy(rows, use_cache=False).logits
    finally:
        hook.remove()
    if not read:  # its head reads a part of the body
        return False
    if not is_rounding(policy.get_output_embeddings()(read[0]).flatten(0, 1), logits.flatten(0, 1)):
        return False
    body.set_attn_implementation("sdpa")  # flash attention takes no mask, and "eager" copies keys and values
    tree = read_tree(policy, sequences)
    return all(
        is_rounding(tree.values[path], alone[: len(path)])
        for path, alone in zip(tree.paths, read[0], strict=True)
    )


def read_tree(policy: "PreTrainedModel", sequences: Sequence[tuple[int, ...]]) -> States:
    """The last hidden states of sorted sequences, by a model that `reads_trees`."""
    import torch

    from accord.packing import body_of

    body = body_of(policy)
    ids: list[int] = []
    positions: list[int] = []
    paths: list[list[int]] = []
    begins: list[int] = []
    for sequence in sequences:
        common = common_prefix(sequence, [ids[i] for i in paths[-1]]) if paths else 0
        begins.append(len(ids))
        paths.append(
            [*(paths[-1][:common] if paths else ()), *range(len(ids), len(ids) + len(sequence) - common)]
        )
        ids += sequence[common:]
        positions += range(common, len(sequence))
    seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    for path, begin in zip(paths, begins, strict=True):
        own = sum(i >= begin for i in path)
        seen[begin : begin + own, :begin] = False
        seen[begin : begin + own, path[:-own]] = True
    output = body(
        input_ids=torch.tensor([ids], device=body.device),
        position_ids=torch.tensor([positions], device=body.device),
        attention_mask=seen.to(body.device)[None, None],
        use_cache=False,
    )
    return States(output.last_hidden_state[0], paths, policy.get_output_embeddings())


def read_padded(policy: "PreTrainedModel", sequences: Sequence[tuple[int, ...]]) -> States:
    """The logits of sequences one by one. Padding stands on the right, where causal attention cannot see it."""
    import torch

    width = max(map(len, sequences))
    ids = torch.tensor([[*each, *[0] * (width - len(each))] for each in sequences], device=policy.device)
    lengths = torch.tensor([len(each) for each in sequences], device=policy.device)
    attended = (torch.arange(width, device=policy.device) < lengths[:, None]).long()  # BL
    logits = policy(ids, attention_mask=attended, use_cache=False).logits
    logits = logits[:, -width:]  # virtual tokens stand before the others
    paths = [range(row * width, row * width + len(each)) for row, each in enumerate(sequences)]
    return States(logits.flatten(0, 1), paths, lambda these: these)
