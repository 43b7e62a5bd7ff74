"""AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) with moments in float32, or in 8 bit.

In 8 bit (Dettmers et al. 2022, https://arxiv.org/abs/2110.02861) the two moments of a weight take 2 bytes in place of
8, each block of 256 with a scale of its own. As the paper has it, embeddings keep moments in float32, and so does what
has fewer than 4,096 weights. bitsandbytes computes it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from accord import parallel
from accord.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

OptimizerName = Literal["adamw", "adamw_8bit"]


def check_optimizer(name: OptimizerName) -> None:
    """Refuse an optimiser that does not work here.

    Raises:
        UsageError: bitsandbytes is missing or does not load, or weights are in shards.
    """
    if name == "adamw":
        return
    if parallel.sharding() != "none":
        raise UsageError(
            "optimizer: adamw_8bit takes whole weights, and compute.sharding keeps them and their moments in shards, "
            "which saves more; set one of them to adamw or none"
        )
    try:
        import bitsandbytes  # noqa: F401
    except Exception as error:  # what a library of the machine's own lacks, too
        raise UsageError(
            f"optimizer: adamw_8bit needs a bitsandbytes that works on this machine ({type(error).__name__}: {error}); "
            "`accord doctor` says more, or set it to adamw"
        ) from None


def build_optimizer(
    name: OptimizerName,
    parameters: Sequence["nn.Parameter"],
    models: Iterable["nn.Module"],
    learning_rate: float,
    epsilon: float,
) -> "torch.optim.Optimizer":
    """AdamW of these parameters, without weight decay.

    Args:
        name: which one.
        parameters: what is trained.
        models: whose parameters they are; their embeddings' moments stay in float32.
        learning_rate: at the first step.
        epsilon: what is added to the root of the second moment.
    """
    import torch
    from torch import nn

    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, eps=epsilon, weight_decay=0.0, fused=True)
    import bitsandbytes

    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
        parameters, lr=learning_rate, eps=epsilon, weight_decay=0.0
    )
    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                manager.override_config(module.weight, "optim_bits", 32)
    return optimizer


def make_room(optimizer: "torch.optim.Optimizer", chosen: Iterable["nn.Parameter"]) -> None:
    """Give parameters the moments that they have before a first step, for a checkpoint's to be read into."""
    import torch

    wanted = set(chosen)
    for group_number, group in enumerate(optimizer.param_groups):
        for number, p in enumerate(group["params"]):
            if p not in wanted:
                continue
            if isinstance(optimizer, torch.optim.AdamW):
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                moments = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
                optimizer.state[p] = {"step": step, **moments}
            else:
                optimizer.init_state(group, p, group_number, number)  # type: ignore[attr-defined]


def moments(optimizer: "torch.optim.Optimizer", p: "nn.Parameter") -> dict[str, "torch.Tensor"]:
    """What a checkpoint keeps of a parameter's state; of 8 bit, without the values that they stand for."""
    import torch

    return {
        key: value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for key, value in optimizer.state[p].items()
        if not key.startswith("qmap")
    }


def set_moments(
    optimizer: "torch.optim.Optimizer", p: "nn.Parameter", kept: Mapping[str, "torch.Tensor"]
) -> None:
    """Give a parameter the state of a checkpoint, once `make_room` was called."""
    import torch

    state = optimizer.state[p]
    for key, value in kept.items():
        state[key] = value if isinstance(state[key], torch.Tensor) else value.item()
