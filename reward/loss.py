"""The loss of a reward model: pairs and rankings as choices, each of them a multinomial logit.

A choice is of one alternative among T. The logit of an alternative is linear in the scores of the k answers to the
prompt: coefficients @ scores + offset.

    Bradley and Terry (1952): the pair (i, j) is a choice between r_i and r_j
    Plackett (1975), Luce (1959): a ranking is a choice of the best of k, then of the best of the others, and so on
    Davidson and Luce (Firth, Kosmidis and Turner 2019): a set of tied answers is an alternative like a single one

What they have in common is all that is computed here; `reward.choices` makes choices from pairs and rankings.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Choices:
    """C choices among T alternatives each, of the k answers to one prompt."""

    chosen: Float[Tensor, "C k"]
    """The coefficients of what was chosen."""
    chosen_offsets: Float[Tensor, " C"]
    alternatives: Float[Tensor, "C T k"]
    """The coefficients of every alternative, the chosen one among them."""
    offsets: Float[Tensor, "C T"]
    """Minus infinity where there is no such alternative."""


def choice_losses(scores: Float[Tensor, "k heads"], choices: Choices) -> Float[Tensor, "C heads"]:
    """Minus the log-probability of every choice, in nats.

    Args:
        scores: of the answers to one prompt.
        choices: of these answers.
    """
    chosen, alternatives = _logits(scores, choices)
    return alternatives.logsumexp(dim=1) - chosen


@torch.no_grad()
def choice_margins(scores: Float[Tensor, "k heads"], choices: Choices) -> Float[Tensor, "C heads"]:
    """The log-odds of every choice against all other alternatives: of a pair, the difference of scores."""
    chosen, alternatives = _logits(scores, choices)
    same = (choices.alternatives == choices.chosen[:, None]).all(dim=2, keepdim=True)
    return chosen - alternatives.masked_fill(same, float("-inf")).logsumexp(dim=1)


def _logits(scores: Tensor, choices: Choices) -> tuple[Tensor, Tensor]:
    """Of what was chosen [C, heads], and of all alternatives [C, T, heads]."""
    chosen = choices.chosen @ scores + choices.chosen_offsets[:, None]
    return chosen, choices.alternatives @ scores + choices.offsets[..., None]


def centering_penalty(scores: Float[Tensor, "k heads"]) -> Float[Tensor, " heads"]:
    """The square of twice the mean score of the answers to one prompt, which is (r_i + r_j)^2 for two of them.

    It keeps the level of the scores near zero, which no choice depends on (Eisenstein et al. 2023,
    https://arxiv.org/abs/2312.09244).
    """
    return (2 * scores.mean(dim=0)) ** 2
