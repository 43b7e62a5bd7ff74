"""The simulation of benchmarks/gate_simulation.py, small: a few hundred repetitions and looser bounds."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from gate_simulation import CASES, Case, judge, simulate

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
