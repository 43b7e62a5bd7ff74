"""What a round may compute on. It decides how fast and in how much memory, never which run: ids do not depend on it."""

from pydantic import Field, model_validator

from accord.config import Config
from accord.parallel import Sharding


class ComputeConfig(Config):
    """The devices of a round's training stages; with one, nothing is launched."""

    devices: int = Field(1, ge=1, le=1024)
    """Processes on each machine, each of which has a GPU or, where there is none, a share of the cores."""

    machines: int = Field(1, ge=1, le=10_000)
    """That share a folder of runs; the same command is run on each of them."""

    rendezvous: str | None = Field(None, pattern=r"^[^\s:/]+:\d{1,5}$")
    """With several machines: the first one's address and a free port of it, as in `node-1:29400`."""

    sharding: Sharding = "none"
    """none: each process holds all weights. fsdp2: torch's fully_shard. zero2, zero3: DeepSpeed (`pip install
    'accord[zero]'`), not for PPO."""

    offload: bool = False
    """With sharding: weights and the optimiser's state wait in the host's memory."""

    restarts: int = Field(3, ge=0, le=1000)
    """How often a stage is started again by itself after one of its processes was lost."""

    @model_validator(mode="after")
    def _fits_together(self) -> "ComputeConfig":
        if self.offload and self.sharding == "none":
            raise ValueError("offload: needs sharding: fsdp2, zero2 or zero3")
        if self.sharding != "none" and self.processes == 1:
            raise ValueError(
                f"sharding: {self.sharding} is over two devices or more; set devices, or sharding: none"
            )
        if self.machines > 1 and self.rendezvous is None:
            raise ValueError(
                "machines: needs rendezvous, the first machine's address and a free port of it, as in node-1:29400"
            )
        return self

    @property
    def processes(self) -> int:
        """Over all machines."""
        return self.devices * self.machines
