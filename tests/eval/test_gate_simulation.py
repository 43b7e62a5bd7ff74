"""The simulation of benchmarks/gate_simulation.py, small: a few hundred repetitions and looser bounds."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from gate_simulation import CASES, FLOORS, Case, FloorCase, judge, judge_floor, simulate, simulate_floor

SMALL = (
    "shares, 60 items",
    "shares, 80 clusters of 1 to 8",
    "means, normal, 80 items",
    "distances of means, from 0.3",
)


@pytest.mark.parametrize("case", [each for each in CASES if each.name in SMALL], ids=lambda c: c.name)
def test_promises_hold(case: Case) -> None:
    counts = simulate(case, 300, with_peer=False)
    # three standard errors of a coverage of 0.95 over 300 repetitions are 0.038; of a power, twice that
    assert judge(case, counts, slack=0.03) == []


FEW = ("share, 80 items, at least 90%", "share, 80 items, at most 5%", "mean, skewed, 80 items, at most")


@pytest.mark.parametrize("case", [each for each in FLOORS if each.name in FEW], ids=lambda c: c.name)
def test_promises_of_floors_hold(case: FloorCase) -> None:
    counts = simulate_floor(case, 300, printed=60)
    # three standard errors of a power of 0.8 over 300 repetitions are 0.07
    assert judge_floor(case, counts, slack=0.05) == []
