"""Answers of the policy to an update's prompts, and what they look like as text.

Which prompts an update sees, and with which seeds its answers are drawn, follows from the seed and the number of the
update alone: a run that continues needs no saved position in the data.
"""

import hashlib
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from accord import parallel
from accord.errors import SamplerGoneError, SyncError
from accord.models.references import Model
from accord.sampling.protocol import Completion, Sampler
from accord.sampling.shared import SharedSampler
from accord.sampling.verify import Bound
from rl.maths.advantages import truncate_at_eos

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rollout:
    """Prompts with one answer each, as token ids; an answer that ended by itself has its EOS."""

    prompts: list[list[int]]
    responses: list[list[int]]
    sampler_log_probabilities: list[list[float]]
    ended: list[bool]

    @property
    def sequence_lengths(self) -> list[int]:
        """Tokens of prompt and answer together."""
        return [len(p) + len(r) for p, r in zip(self.prompts, self.responses, strict=True)]


def prompts_of_update(update: int, prompts: int, prompts_per_update: int, seed: int) -> list[int]:
    """Indices of the prompts of an update (counted from 1): every prompt once, in random order, before one comes again.

    Args:
        update: from 1.
        prompts: how many there are.
        prompts_per_update: how many to return.
        seed: of the order.
    """
    first = (update - 1) * prompts_per_update
    places = range(first, first + prompts_per_update)
    orders = {
        number: _order(prompts, f"{seed}/{number}") for number in {place // prompts for place in places}
    }
    return [orders[place // prompts][place % prompts] for place in places]


def _order(prompts: int, seed: str) -> list[int]:
    """The indices of all prompts, shuffled: the order of one pass through them."""
    order = list(range(prompts))
    random.Random(seed).shuffle(order)
    return order


def seeds_of_update(update: int, answers: int, seed: int) -> list[int]:
    """A seed for each answer of an update; no two answers of a run share one, but by chance."""
    return [
        int.from_bytes(hashlib.sha256(f"{seed}/{update}/{index}".encode()).digest()[:4], "big") >> 1
        for index in range(answers)
    ]


def make_rollout(
    prompts: Sequence[Sequence[int]], completions: Sequence[Completion], eos_token_id: int
) -> Rollout:
    """Completions as a rollout, each cut after its first EOS."""
    responses = [truncate_at_eos(completion.token_ids, eos_token_id) for completion in completions]
    return Rollout(
        [list(prompt) for prompt in prompts],
        responses,
        [c.log_probabilities[: len(r)] for c, r in zip(completions, responses, strict=True)],
        [response[-1] == eos_token_id for response in responses],
    )


class PolicySampler:
    """The round's sampler, which the first process has, with the weights of a policy that is being trained.

    All processes call it, for each may hold a part of the weights.
    """

    def __init__(
        self,
        shared: SharedSampler,
        model: Model,
        whole_policy: Callable[[], AbstractContextManager[Any]],
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Args:
        shared: the round's.
        model: what the policy was loaded from.
        whole_policy: gives the policy as it is trained, in the first process with all of its weights.
        tokenizer: the model's, where it is loaded already.
        """
        self._shared, self._model, self._whole_policy = shared, model, whole_policy
        self._tokenizer = tokenizer
        self._sampler: Sampler | None = None
        self._has_weights = False
        self.restarts = 0
        """How often the sampler's process had to be started again."""

    @property
    def bound(self) -> Bound:
        """How far its log-probabilities may be from the trainer's in float32."""
        return self._shared.bound

    def sync(self) -> None:
        """Take over the policy's weights; the next rollout's log-probabilities tell whether that worked.

        Raises:
            SamplerGoneError: the sampler's process ended, and ended again after a restart.
        """
        with self._whole_policy() as policy:
            if parallel.is_first():
                self._sampler = self._sampler or self._shared.use(self._model, self._tokenizer)
                try:
                    self._sampler.sync(policy)
                except SamplerGoneError:
                    self._restart(policy)
        self._has_weights = True

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_response_tokens: int,
        temperature: float,
    ) -> list[Completion]:
        """One answer a prompt. A sampler whose process ended is started again, once, and verified.

        Raises:
            SamplerGoneError: it ended again.
        """
        if not self._has_weights:
            self.sync()

        def answers() -> list[Completion]:
            assert self._sampler is not None
            return self._sampler.sample(prompts, seeds, max_response_tokens, temperature)

        def answers_or_none() -> list[Completion] | None:
            try:
                return answers()
            except SamplerGoneError:
                return None

        completions = parallel.from_first(answers_or_none)
        if completions is None:
            with self._whole_policy() as policy:
                if parallel.is_first():
                    self._restart(policy)
            completions = parallel.from_first(answers)
        return completions

    def _restart(self, policy: Any) -> None:
        if self.restarts:
            raise SamplerGoneError(
                "the sampler's process ended a second time; run the same command again to continue, with "
                "sampling.engine=transformers if this repeats"
            )
        self.restarts += 1
        logger.info("the sampler's process ended; it is started again")
        self._shared.close()
        self._sampler = self._shared.use(
            self._model, self._tokenizer
        )  # verifies the weights that it starts with
        self._sampler.sync(policy)


@dataclass(frozen=True)
class Mismatch:
    """|sampler's - trainer's log-probability| over the tokens of a rollout."""

    largest: float
    mean: float


def check_sampler(trainer: torch.Tensor, sampler: torch.Tensor, mask: torch.Tensor, bound: Bound) -> Mismatch:
    """Compare log-probabilities [A, S] of a rollout: are the sampler's weights the trainer's?

    Raises:
        SyncError: they differ by more than rounding explains.
    """
    difference = (trainer - sampler)[mask].abs()
    found = Mismatch(difference.max().item(), difference.mean().item())
    # Written so that a NaN fails.
    if not (found.largest <= bound.max_difference and found.mean <= bound.mean_difference):
        raise SyncError(
            f"the sampler does not have the trainer's weights: over {difference.numel()} tokens of a rollout their "
            f"log-probabilities differ by up to {found.largest:.2g} and by {found.mean:.2g} on average, where rounding "
            f"explains {bound.max_difference:g} and {bound.mean_difference:g}; run the same command again to continue, "
            "with sampling.dtype=float32 and sampling.engine=transformers if this repeats"
        )
    return found
