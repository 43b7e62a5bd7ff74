"""Shapes are written where arrays go in and out, and tests refuse wrong ones."""

import importlib

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from shapes import CHECKED, checked

from accord.statistics import Bootstrap
from eval.statistics import contrasts, means, paired, shares
from feedback.belief.coefficients import cohens_kappa, ratio
from feedback.belief.likelihood import LinearChoices
from reward.loss import Choices, choice_losses
from rl.maths.advantages import generalised_advantages, token_rewards
from rl.maths.losses import entropy_loss


def test_the_right_shapes_pass_and_wrong_ones_are_refused() -> None:
    choices = Choices(torch.eye(3)[:1], torch.zeros(1), torch.eye(3)[None], torch.zeros(1, 3))
    assert choice_losses(torch.zeros(3, 2), choices)[0].tolist() == pytest.approx([np.log(3)] * 2)
    with pytest.raises(TypeCheckError, match="scores"):
        choice_losses(torch.zeros(3), choices)  # heads are missing, and @ would not mind
    with pytest.raises(TypeCheckError, match="offsets"):
        Choices(torch.eye(3)[:1], torch.zeros(1), torch.eye(3)[None], torch.zeros(3, 1))
    with pytest.raises(TypeCheckError, match="chosen_fixed"):
        LinearChoices(np.ones((2, 3)), np.ones(3), np.ones((2, 4, 3)), np.ones((2, 4)))

    assert ratio(np.array([[1.0, 2.0]])).tolist() == [0.5]
    with pytest.raises(TypeCheckError, match="sums"):
        ratio(np.ones((2, 3)))
    with pytest.raises(TypeCheckError, match="confusion"):
        cohens_kappa(np.ones((3, 2)))
    with pytest.raises(TypeCheckError, match="contributions"):
        Bootstrap(12).estimate(np.ones(12), ratio, 12)


def test_the_gate_s_statistics_keep_to_their_shapes() -> None:
    chance = np.random.default_rng(0)
    clusters = [str(i // 2) for i in range(60)]
    yes, no = (chance.integers(0, 2, 60).astype(float) for _ in range(2))
    with checked(contrasts, means, shares), pytest.MonkeyPatch.context() as patch:
        for name in ("tango_limits", "pass_chance_of_share", "expected_pass_chance", "design_effect"):
            patch.setattr(contrasts, name, getattr(shares, name))  # as they were imported by name
        patch.setattr(paired, "contrast_of", contrasts.contrast_of)
        for is_share, keys in ((False, clusters), (True, clusters), (True, list(map(str, range(60))))):
            found = paired.paired_difference(yes, no, keys, 0.95, 99, is_share=is_share, against=-0.1)
            assert found.low < found.difference < found.high and found.pass_chance is not None
            paired.paired_difference_of_distances(yes, no, keys, 0.95, 99, is_share=is_share, against=0.1)
        with pytest.raises(TypeCheckError, match="sizes"):
            means.fit(np.ones(4), np.ones(5), np.ones(4, bool))
        with pytest.raises(TypeCheckError, match="lost"):
            shares.tango_limits(np.ones(3), np.ones(4), 10, 1.96)


def test_every_module_that_is_listed_is_checked() -> None:
    for name in CHECKED:
        assert "jaxtyping" in type(importlib.import_module(name).__loader__).__module__, name


def test_ppo_s_shapes_are_refused_where_they_would_broadcast() -> None:
    lengths, mask = torch.tensor([2, 1]), torch.ones(2, 3, dtype=torch.bool)
    token_rewards(torch.zeros(2), torch.zeros(2, 3), lengths, 0.1)
    with pytest.raises(TypeCheckError, match="kl"):
        token_rewards(torch.zeros(2), torch.zeros(3, 2), lengths, 0.1)
    with pytest.raises(TypeCheckError, match="values"):
        generalised_advantages(torch.zeros(2, 3), torch.zeros(2, 1), lengths)
    with pytest.raises(TypeCheckError, match="mask"):
        entropy_loss(torch.zeros(2, 3), mask.float(), 2)
