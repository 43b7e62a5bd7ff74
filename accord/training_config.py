"""The settings that all training stages share."""

from typing import Any, Literal

from pydantic import Field

from accord.config import Config, LoraConfig, Seed
from accord.errors import UsageError
from accord.optimizers import OptimizerName

SaveDtype = Literal["auto", "float32", "bfloat16", "float16"]


class TrainingConfig(Config):
    """Optimisation, checkpoints and precision; each stage's configuration adds its data and its loss.

    An update is one optimiser step. `rows_per_update` rows make one update, computed `rows_per_pass` at a time. A row
    is a conversation for SFT, or a packed sequence with packing; a prompt with all its answers for reward models; a
    pair for DPO. The result does not depend on `rows_per_pass`, but for an epoch's last update where its rows are
    fewer and divide unevenly.
    """

    epochs: float = Field(default=1.0, ge=0.001, le=10_000)
    """How often every row is seen."""
    learning_rate: float = Field(default=2e-5, gt=0, le=10)
    """The highest one, after warm-up; it falls linearly to zero. LoRA wants about ten times that of full training."""
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the updates over which the learning rate rises."""
    rows_per_update: int = Field(default=8, ge=1, le=10_000_000)
    """Rows that make one optimiser step."""
    rows_per_pass: int = Field(default=8, ge=1, le=10_000_000)
    """Rows computed at a time; lower it where memory is short, the result stays the same."""
    max_sequence_tokens: int = Field(default=1024, ge=8, le=10_000_000)
    """Longer rows are dropped, and counted."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """What is computed in; weights that are trained stay float32. auto: bfloat16 on a GPU that
    has it and on CPUs with AMX, float32 elsewhere, where it is the faster one."""
    optimizer: OptimizerName = "adamw"
    """adamw_8bit keeps AdamW's two moments in 2 bytes a weight instead of 8 (bitsandbytes), for about a rounding more
    noise in each step; it needs whole weights, so no `compute.sharding`, and is slow on a CPU."""
    save_dtype: SaveDtype = "auto"
    """Of the saved model's weights; auto: as the weights that it started from have on disk. Adapters are kept in
    float32 in any case. In bfloat16, what changed by less than a part in 256 of a weight may be lost."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights; the saved model is the merged one."""
    checkpoint_every_updates: int = Field(default=1, ge=1)
    """A kill costs at most so many updates; a checkpoint of all weights takes three times the model's size."""
    evaluate_every_updates: int | None = Field(default=None, ge=1)
    """How often the held-out loss is taken; left out, after the last update."""
    seed: Seed = 0
    """Of the order of the rows and of new weights."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Further arguments for TRL's trainer, checked against its fields."""

    def rows_at_a_time(self, processes: int) -> int:
        """How many rows each of several processes computes at a time: no more than its share of an update."""
        return max(1, min(self.rows_per_pass, self.rows_per_update // processes))

    def passes_per_update(self, processes: int) -> int:
        """How many passes of each of several processes make an update.

        Raises:
            UsageError: they do not divide it evenly.
        """
        rows_per_pass = self.rows_at_a_time(processes)
        passes, rest = divmod(self.rows_per_update, rows_per_pass * processes)
        if rest or passes == 0:
            raise UsageError(
                f"rows_per_update ({self.rows_per_update}) must be a multiple of rows_per_pass ({rows_per_pass}) times "
                f"the number of processes ({processes})"
            )
        return passes
