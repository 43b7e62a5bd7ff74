"""Scores that do not follow length: what a model's own states know of an answer's length is taken out of its heads.

A head reads a score from the last state of an answer, and length can be read there by a linear probe as well. The
probe's direction is subtracted, as much of it as makes score and log length uncorrelated within prompts. That is the
least change of the states, in mean square, after which no head could read length from them (LEACE: Belrose et al. 2023,
https://arxiv.org/abs/2306.03819), folded into the heads: the model stays what others load, and needs no length.
"""

import torch
from torch import Tensor

RIDGE = 1e-3
"""Of the probe, in mean squares of a state's coordinate: states have more coordinates than some data have answers."""


def without_length(heads: Tensor, states: Tensor, log_lengths: Tensor, prompts: Tensor) -> Tensor:
    """The heads whose scores have no covariance with log length, among answers to one prompt.

    Args:
        heads: [heads, d].
        states: [A, d], the answers' last states.
        log_lengths: [A].
        prompts: [A], the number of each answer's prompt; a prompt with one answer says nothing.

    Returns:
        [heads, d]; the heads as they are, where no two answers to a prompt differ in length.
    """
    x, length = (_centred(values.double(), prompts) for values in (states, log_lengths[:, None]))
    covariance = (x.T @ length)[:, 0] / len(x)
    if not covariance.any():
        return heads
    variances = x.T @ x / len(x)
    ridge = RIDGE * variances.diagonal().mean() * torch.eye(len(variances), dtype=x.dtype, device=x.device)
    probe = torch.linalg.solve(variances + ridge, covariance)
    followed = heads.double() @ covariance / (probe @ covariance)
    return (heads.double() - followed[:, None] * probe).to(heads)


def _centred(values: Tensor, groups: Tensor) -> Tensor:
    """Minus the mean over the rows of the same group."""
    count = int(groups.max()) + 1
    sums = values.new_zeros(count, values.shape[1]).index_add_(0, groups, values)
    sizes = torch.bincount(groups, minlength=count).clamp(min=1)
    return values - (sums / sizes[:, None])[groups]
