"""What accelerate leaves out on CPUs, put in."""

from typing import Any


def let_accelerate_shard() -> None:
    """Make accelerate's FSDP2 work in processes on CPUs, which torch's `fully_shard` does.

    accelerate 1.15 takes FSDP for a matter of GPUs: `AcceleratorState` looks at its plugin only where the processes are
    of a kind that has a device, and leaves processes on CPUs as they are, each with all weights, without a word. This
    says afterwards what it says for GPUs. It can go as soon as accelerate does so itself, of which
    tests/invariants/test_stages_sharded.py tells.
    """
    from accelerate.state import AcceleratorState, DistributedType, PartialState

    if getattr(AcceleratorState.__init__, "is_ours", False):
        return
    theirs = AcceleratorState.__init__

    def initialise(self: Any, *arguments: Any, fsdp_plugin: Any = None, **options: Any) -> None:
        theirs(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    initialise.is_ours = True  # type: ignore[attr-defined]
    AcceleratorState.__init__ = initialise  # type: ignore[method-assign]
