"""RLOO and GRPO in several processes, at once or one after the other: they do what one process would have done."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from accord import parallel
from accord.compute.checkpoints import Checkpoints


class Together(Checkpoints):
    """For TRL's online trainers; in one process, which does it all, nothing changes.

    A process that continues has the prompts in the order in which an epoch of another one would have had them.

    All processes sample all answers, from the first one's random numbers, which moves on as it would in one process: a
    process that holds a part of the weights has to compute with the others anyway. What is held out is computed by all
    of them, too.
    """

    use_vllm: Any
    state: Any
    _to_shuffle: tuple[torch.Tensor, int] | None = None

    def _get_train_sampler(self, dataset: Any = None) -> Any:  # type: ignore[override]
        theirs: Any = super()._get_train_sampler(dataset)
        return _OrderOfEpoch(theirs, lambda: int(self.state.epoch or 0)) if theirs.shuffle else theirs

    def _get_dataloader(self, **arguments: Any) -> Any:  # type: ignore[override]
        loader = super()._get_dataloader(**arguments)
        if parallel.count() > 1 and not arguments.get("is_training"):
            # accelerate's would deal out prompts, and fill up with some of them
            shard: Any = loader.batch_sampler
            shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
        return loader

    def _generate_single_turn(self, prompt_ids: Any, *arguments: Any, **options: Any) -> Any:
        theirs: Any = super()
        sample = theirs._generate_single_turn
        if parallel.count() == 1 or self.use_vllm:
            return sample(prompt_ids, *arguments, **options)
        _follow_first()
        model: Any = self.model
        if not model.training:
            return sample(prompt_ids, *arguments, **options)
        of_all = parallel.gather(prompt_ids)
        found = sample([ids for part in of_all for ids in part], *arguments, **options)
        self._to_shuffle = (torch.get_rng_state(), sum(map(len, of_all)))
        first = sum(map(len, of_all[: parallel.rank()]))
        mine = slice(first, first + len(prompt_ids))
        if isinstance(found, tuple):
            return tuple(part[mine] if isinstance(part, list) else part for part in found)
        return found[mine]

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        self._to_shuffle = None
        inputs = super()._prepare_inputs(generation_batch)
        if self._to_shuffle:  # TRL shuffled the part of this process; one process shuffles all
            state, answers = self._to_shuffle
            torch.set_rng_state(state)
            torch.randperm(answers)
        return inputs


class _OrderOfEpoch(Sampler[int]):
    """TRL's sampler, which draws an order at the beginning of every epoch: the epochs before drew theirs, too."""

    def __init__(self, sampler: Any, epoch: Callable[[], int]):
        self.sampler, self.epoch = sampler, epoch

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator.manual_seed(self.sampler.seed)
        for _ in range(self.epoch()):
            torch.randperm(self.sampler.num_samples, generator=self.sampler.generator)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


def heldout_once(reward: Callable[..., Any], training_rows: int) -> Callable[..., Any]:
    """The reward function, asked by one process alone about held-out answers, which all processes have.

    Args:
        reward: of answers to rows of a data set.
        training_rows: how many rows are not held out; they come first.
    """

    @functools.wraps(reward)
    def ask(row: list[int], **given: Any) -> Any:
        if row[0] < training_rows:
            return reward(row=row, **given)
        return parallel.from_first(lambda: reward(row=row, **given))

    return ask


def _follow_first() -> None:
    """Draw what the first process draws."""
    torch.set_rng_state(parallel.broadcast(torch.get_rng_state()))
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(parallel.broadcast(torch.cuda.get_rng_state()))
