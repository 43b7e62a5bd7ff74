"""What accelerate leaves out on CPUs, put in."""

import importlib
from typing import Any


def let_accelerate_shard() -> None:
    """Make accelerate's FSDP2 and DeepSpeed work in processes on CPUs, as they can.

    accelerate 1.15 takes both for a matter of GPUs: `AcceleratorState` looks at their plugins only where the processes
    are of a kind that has a device, and leaves processes on CPUs as they are, each with all weights, without a word.
    This says afterwards what it says for GPUs. It can go as soon as accelerate does so itself, of which
    tests/invariants/test_stages_sharded.py tells.
    """
    from accelerate.state import AcceleratorState, DistributedType, PartialState

    if getattr(AcceleratorState.__init__, "is_ours", False):
        return
    theirs = AcceleratorState.__init__

    def initialise(
        self: Any, *arguments: Any, fsdp_plugin: Any = None, deepspeed_plugin: Any = None, **options: Any
    ) -> None:
        theirs(self, *arguments, fsdp_plugin=fsdp_plugin, deepspeed_plugin=deepspeed_plugin, **options)
        if self.distributed_type != DistributedType.MULTI_CPU:
            return
        if deepspeed_plugin is not None:
            deepspeed_plugin.set_mixed_precision(self._mixed_precision)
            deepspeed_plugin.select(_from_accelerator_state=True)
            self._mixed_precision, self.deepspeed_plugins = "no", deepspeed_plugin
            self.distributed_type = DistributedType.DEEPSPEED
        elif fsdp_plugin is not None:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = self.distributed_type

    initialise.is_ours = True  # type: ignore[attr-defined]
    AcceleratorState.__init__ = initialise  # type: ignore[method-assign]


def let_deepspeed_start() -> None:
    """Keep DeepSpeed from compiling, at its first start on CPUs, a sum over shared memory that only inference uses.

    That takes minutes and a compiler, and one that is interrupted leaves a lock on which all later starts wait.
    """
    backend: Any = importlib.import_module("deepspeed.comm.torch")
    backend.build_shm_op = lambda: None
