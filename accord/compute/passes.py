"""An update's passes, dealt out among processes: together they give what one process gives that computes them all.

Of the passes that one process would compute, the first process has the first, the second one the second, and so on. A
pass is what it would be there, its figures among it: they are put together before they are logged, in the order of the
passes. Where an epoch ends and some processes have no pass left, they compute one of a single row that counts nothing,
so that all come by the same sums.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object

from accord import parallel
from accord.compute.checkpoints import Checkpoints

ROWS = "rows_of_pass"
"""The key of a batch's number of rows; of one that counts nothing, it is 0."""


class Passes(Checkpoints):
    """For trainers of TRL with `_metrics`, whose loss is a sum over all passes' tokens, or a mean in each pass."""

    _metrics: Any
    _total_train_tokens: Any

    def _get_dataloader(self, **arguments: Any) -> Any:  # type: ignore[override]
        if parallel.count() == 1:
            return super()._get_dataloader(**arguments)
        collate = self.data_collator
        self.data_collator = _OrIdle(collate, arguments["dataset"])
        try:
            loader = super()._get_dataloader(**arguments)
        finally:
            self.data_collator = collate
        # accelerate's would fill up a last batch with rows of the beginning
        shard: Any = loader.batch_sampler
        shard.batch_sampler = _Dealt(shard.batch_sampler)
        shard.num_processes, shard.process_index, shard.batch_size, shard.even_batches = 1, 0, None, False
        return loader

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """This process's passes of an update; counts those of all."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if parallel.count() > 1:
            passes = torch.tensor(float(sum(batch[ROWS] > 0 for batch in batches)), device=device)
            parallel.sum_tensors([passes])
            self._passes = float(passes)
            self._tokens_before = self._total_train_tokens
        return batches, items

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """A pass with its gradients."""
        if parallel.count() == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        idle = inputs.pop(ROWS) == 0
        # Gradients are averaged over the processes, and a mean loss is divided by this.
        self.current_gradient_accumulation_steps = math.inf if idle else self._passes / parallel.count()
        with self._figures_of_one_pass("train", idle):
            return super().training_step(model, inputs, num_items_in_batch)

    def prediction_step(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        """A pass over held-out rows."""
        if parallel.count() == 1:
            return super().prediction_step(model, inputs, *arguments, **options)
        self._rows_of_pass = inputs.pop(ROWS)
        with self._figures_of_one_pass("eval", idle=self._rows_of_pass == 0):
            return super().prediction_step(model, inputs, *arguments, **options)

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """All passes over held-out rows, and the figures of all processes."""
        if parallel.count() == 1:
            return super().evaluation_loop(*arguments, **options)
        self.gather_function = self._losses_of_all
        output = super().evaluation_loop(*arguments, **options)
        self._put_figures_together("eval")
        return output

    def _maybe_log_save_evaluate(self, *arguments: Any, **options: Any) -> None:
        if parallel.count() > 1 and self.control.should_log:
            self._put_figures_together("train")
        super()._maybe_log_save_evaluate(*arguments, **options)

    @contextlib.contextmanager
    def _figures_of_one_pass(self, mode: str, idle: bool) -> Iterator[None]:
        """Nothing is gathered within a pass; what an idle one leaves behind is forgotten."""
        kept = {name: list(values) for name, values in self._metrics[mode].items()}
        tokens = self._total_train_tokens
        accelerator: Any = self.accelerator
        accelerator.gather = accelerator.gather_for_metrics = lambda found, *_, **__: found
        try:
            yield
        finally:
            del accelerator.gather, accelerator.gather_for_metrics
            if idle:
                self._metrics[mode].clear()
                self._metrics[mode].update(kept)
                self._total_train_tokens = tokens

    def _losses_of_all(self, losses: torch.Tensor) -> torch.Tensor:
        """The loss of each row of a pass of every process."""
        return torch.cat(gather_object([losses[: self._rows_of_pass].cpu()])).to(losses.device)

    def _put_figures_together(self, mode: str) -> None:
        """Give every process the figures of all passes, in their order."""
        mine = dict(self._metrics[mode])
        mine.pop("num_tokens", None)
        tokens = self._total_train_tokens - self._tokens_before if mode == "train" else 0
        everyone = gather_object([(mine, tokens)])
        if mode == "train":
            self._total_train_tokens = self._tokens_before + sum(tokens for _, tokens in everyone)
            self._tokens_before = self._total_train_tokens
        figures = self._metrics[mode]
        figures.clear()
        for name in dict.fromkeys(name for each, _ in everyone for name in each):
            of_passes = itertools.zip_longest(*(each.get(name, []) for each, _ in everyone))
            figures[name] = [value for row in of_passes for value in row if value is not None]
        if figures:
            figures["num_tokens"] = [self._total_train_tokens]


class _Dealt:
    """Every so-manieth batch, as many for each process; those that are wanting have no rows."""

    def __init__(self, batches: Any):
        self.batches = batches
        self.sampler = batches.sampler  # which accelerate tells of the epoch
        self.batch_size = batches.batch_size
        self.drop_last = False

    def __len__(self) -> int:
        return math.ceil(len(self.batches) / parallel.count())

    def __iter__(self) -> Iterator[list[int]]:
        number = -1
        for number, batch in enumerate(self.batches):
            if number % parallel.count() == parallel.rank():
                yield batch
        if parallel.rank() > number % parallel.count():
            yield []


class _OrIdle:
    """Collates rows; where there are none, one that counts nothing."""

    def __init__(self, collate: Callable[[Any], dict[str, Any]], rows: Any):
        self.collate = collate
        self.rows = rows

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        if examples:
            return {**self.collate(examples), ROWS: len(examples)}
        batch = self.collate([self.rows[0]])
        if "labels" in batch:
            batch["labels"] = torch.full_like(batch["labels"], -100)
        return {**batch, ROWS: 0}
