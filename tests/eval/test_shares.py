"""Tango's interval and McNemar's test against closed forms, a direct maximisation, and exact enumeration."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import optimize, stats

from eval.statistics.shares import (
    design_effect,
    expected_pass_chance,
    mcnemar_p,
    pass_chance_of_share,
    tango_limits,
    tango_statistic,
)

Z = float(stats.norm.isf(0.025))


@pytest.mark.parametrize(
    ("gained", "lost", "items", "tested"),
    [(3, 7, 60, 0.05), (0, 5, 40, -0.1), (9, 2, 30, 0.0), (4, 0, 20, 0.4)],
)
def test_the_statistic_by_maximising_the_likelihood(
    gained: int, lost: int, items: int, tested: float
) -> None:
    """The variance under the tested difference, with the multinomial likelihood maximised numerically."""

    def minus_log_likelihood(
        q: float,
    ) -> float:  # q is the share of lost items, q + tested that of gained ones
        cells = ((gained, q + tested), (lost, q), (items - gained - lost, 1 - 2 * q - tested))
        return -sum(count * math.log(max(share, 1e-300)) for count, share in cells if count)

    bounds = (max(0, -tested), (1 - tested) / 2)
    q = optimize.minimize_scalar(
        minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-11}
    ).x
    expected = (gained - lost - items * tested) / math.sqrt(items * (2 * q + tested - tested**2))
    assert tango_statistic(gained, lost, items, tested) == pytest.approx(expected, abs=1e-4)


def test_at_no_difference_it_is_mcnemars_statistic() -> None:
    # (b - c) / sqrt(b + c) = 6 / sqrt(14)
    assert tango_statistic(10, 4, 100, 0.0) == pytest.approx(6 / math.sqrt(14))


def test_limits_turn_the_statistic_around() -> None:
    for gained, lost, items in (
        (1, 5, 60),
        (0, 0, 30),
        (30, 0, 30),
        (0, 7, 50),
        (14, 12, 262),
        (2.5, 0.7, 21.3),
    ):
        low, high = tango_limits(gained, lost, items, Z)
        assert -1 <= low <= (gained - lost) / items <= high <= 1
        for limit, target in ((low, Z), (high, -Z)):
            if abs(limit) < 1:
                assert tango_statistic(gained, lost, items, limit) == pytest.approx(target, abs=1e-5)
        mirrored = tango_limits(lost, gained, items, Z)
        assert mirrored == pytest.approx((-high, -low), abs=1e-9)
    # nothing differs: n t / sqrt(n t (1 - t)) = z where t = z^2 / (n + z^2)
    assert tango_limits(0, 0, 30, Z)[1] == pytest.approx(Z**2 / (30 + Z**2))


def test_coverage_by_enumerating_every_outcome() -> None:
    """The exact coverage over all outcomes of 40 items, at several true shares of gained and lost items."""
    items = 40
    intervals = {(b, c): tango_limits(b, c, items, Z) for b in range(items + 1) for c in range(items + 1 - b)}
    for gained, lost in ((0.05, 0.05), (0.05, 0.15), (0.2, 0.1)):
        truth, covered = gained - lost, 0.0
        for (b, c), (low, high) in intervals.items():
            if low <= truth <= high:
                covered += stats.multinomial.pmf(
                    [b, c, items - b - c], items, [gained, lost, 1 - gained - lost]
                )
        assert 0.93 <= covered <= 0.97


def test_mcnemar_by_counting_coins() -> None:
    # 1 or fewer, or 7 or more, heads in 8 tosses: 2 * (1 + 8) / 256
    assert mcnemar_p(7, 1) == mcnemar_p(1, 7) == pytest.approx(18 / 256)
    assert mcnemar_p(0, 0) == 1.0
    heads = [sum(toss) for toss in product((0, 1), repeat=8)]
    assert mcnemar_p(7, 1) == pytest.approx(sum(h <= 1 or h >= 7 for h in heads) / len(heads))


def test_pass_chance_by_simulation_and_at_its_ends() -> None:
    chance = np.random.default_rng(0)
    counts = chance.multinomial(60, [0.05, 0.05, 0.9], 4_000)
    passes = [tango_limits(int(b), int(c), 60, Z)[1] <= 0.1 for b, c, _ in counts]
    assert pass_chance_of_share(0.1, 60, 0.1, 0.025) == pytest.approx(np.mean(passes), abs=0.02)
    assert pass_chance_of_share(0.1, 60, 0.0, 0.025) == 0.0
    assert pass_chance_of_share(0.1, 60, 1.0, 0.025) == 1.0
    assert pass_chance_of_share(0.1, 1508, 0.1, 0.025) == pytest.approx(1.0)


def test_expected_pass_chance_is_nearer_the_truth_on_average() -> None:
    """All outcomes of 60 items of which 10% differ: the mean of what they would print, against the true chance."""
    differing = np.arange(61)
    weights = stats.binom.pmf(differing, 60, 0.1)
    kept = weights > 1e-4
    means = [
        sum(
            w * chance(max(d, 1) / 60, 60, 0.09, 0.025)
            for w, d in zip(weights[kept], differing[kept], strict=True)
        )
        for chance in (pass_chance_of_share, expected_pass_chance)
    ]
    truth = pass_chance_of_share(0.1, 60, 0.09, 0.025)
    assert means[0] > truth + 0.02
    assert means[1] == pytest.approx(truth, abs=0.01)


def test_design_effect_by_hand() -> None:
    # 10 gained and 10 lost of 100: each item's variance is 0.2, so that of the mean is 0.002
    assert design_effect(0.002, 10, 10, 100) == pytest.approx(1)
    assert design_effect(0.006, 10, 10, 100) == pytest.approx(3)
    assert design_effect(0.001, 10, 10, 100) == 1
    assert design_effect(0.0, 0, 0, 100) == 1
