"""Micro-batches of prompts with their answers, as the four models of PPO read them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from accord import parallel
from accord.packing import Packed


@dataclass(frozen=True)
class Rows:
    """A micro-batch: `rows` prompts with their answers, side by side in one row of `tokens`."""

    packed: Packed
    prompt_lengths: Int[Tensor, " rows"]
    response_lengths: Int[Tensor, " rows"]
    beneath: Mapping[str, Float[Tensor, "1 tokens size"]] = field(default_factory=dict)
    """What goes into the first trained layer of the model of a name (see `Actors.beneath`)."""

    @classmethod
    def of(
        cls,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        device: torch.device | str = "cpu",
    ) -> "Rows":
        """Rows from token ids."""
        sequences = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
        of_prompts, of_responses = (
            torch.tensor([len(ids) for ids in part], device=device) for part in (prompts, responses)
        )
        return cls(Packed.of(sequences, device), of_prompts, of_responses)

    def states(
        self, extra: int
    ) -> tuple[Int[Tensor, " states"], Int[Tensor, " states"], Int[Tensor, " states"]]:
        """Where the states before each answer token stand, and `extra` more after them: row, slot and position."""
        lengths = self.response_lengths + extra
        row = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        first = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        slot = torch.arange(len(row), device=lengths.device) - first
        return row, slot, self.prompt_lengths[row] - 1 + slot

    def split(self, values: Float[Tensor, "1 tokens size"]) -> list[Float[Tensor, "_ size"]]:
        """One tensor for each sequence, prompt and answer."""
        lengths = (self.prompt_lengths + self.response_lengths).tolist()
        return [values[0, self.packed.places(row, length)] for row, length in enumerate(lengths)]

    def join(self, values: Sequence[Float[Tensor, "_ size"]]) -> Float[Tensor, "1 tokens size"]:
        """The inverse of `split`."""
        parts: list[Tensor] = []
        for group in self.packed.groups:
            parts += [
                values[group.rows[0]][: group.prefix],
                *(values[row][group.prefix :] for row in group.rows),
            ]
        return torch.cat(parts)[None]


def micro_batches(
    lengths: Sequence[int], tokens_per_pass: int, of: Sequence[int] | None = None
) -> list[list[int]]:
    """Indices of sequences of like length, as many together as have at most `tokens_per_pass` tokens.

    A sequence that is longer than that is alone. `of` are the indices to take; all, if left out.
    """
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)) if of is None else of, key=lambda index: lengths[index]):
        room -= lengths[index]
        if batches and room >= 0:
            batches[-1].append(index)
        else:
            batches.append([index])
            room = tokens_per_pass - lengths[index]
    return batches


def share_passes(
    lengths: Sequence[int], tokens_per_pass: int, among: Sequence[int] | None = None
) -> list[tuple[list[int], bool]]:
    """Micro-batches of this process's share of sequences, and whether each counts.

    Where models are in shards, every process must compute as often as the others. One that has fewer micro-batches
    reads a short sequence of its share again (or, if it has none, the first of all), which then does not count.

    Args:
        lengths: of all sequences of which each process has a share.
        tokens_per_pass: see `micro_batches`.
        among: the indices of those that are to be read; all, if left out.
    """
    chosen = set(range(len(lengths)) if among is None else among)
    shares = [parallel.share(lengths, process) for process in range(parallel.count())]
    batches = [micro_batches(lengths, tokens_per_pass, of=sorted(chosen.intersection(s))) for s in shares]
    mine, share = batches[parallel.rank()], shares[parallel.rank()] or [0]
    again = max(map(len, batches)) - len(mine) if parallel.is_sharded() else 0
    return [
        *((index, True) for index in mine),
        *[([min(share, key=lambda index: lengths[index])], False)] * again,
    ]
