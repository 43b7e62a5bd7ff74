"""What a round may compute on. It decides how fast and in how much memory, never which run: ids do not depend on it."""

from pydantic import Field, model_validator

from accord.config import Config
from accord.parallel import Sharding


class ComputeConfig(Config):
    """The devices of a round's training stages; with one, nothing is launched."""

    devices: int = Field(1, ge=1)
    """Processes on each machine, each of which has a GPU or, where there is none, a share of the cores."""

    machines: int = Field(1, ge=1)
    """That share a folder of runs."""

    sharding: Sharding = "none"
    """none: each process holds all weights. fsdp2: torch's fully_shard. zero2, zero3: DeepSpeed, if it is installed."""

    offload: bool = False
    """With sharding: weights and the optimiser's state wait in the host's memory."""

    restarts: int = Field(3, ge=0)
    """How often a stage is started again by itself after a process was lost."""

    @model_validator(mode="after")
    def _offload_needs_sharding(self) -> "ComputeConfig":
        if self.offload and self.sharding == "none":
            raise ValueError("offload: needs sharding: fsdp2, zero2 or zero3")
        return self

    @property
    def processes(self) -> int:
        """Over all machines."""
        return self.devices * self.machines
