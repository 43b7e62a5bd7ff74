"""The simulation of benchmarks/gate_simulation.py, small: a few hundred repetitions and looser bounds."""

import runpy
from pathlib import Path

import pytest

SIMULATION = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/gate_simulation.py"))
SMALL = (
    "shares, 60 items",
    "shares, 80 clusters of 1 to 8",
    "means, normal, 80 items",
    "distances of means, from 0.3",
)


@pytest.mark.parametrize(
    "case", [each for each in SIMULATION["CASES"] if each.name in SMALL], ids=lambda c: c.name
)
def test_promises_hold(case: object) -> None:
    counts = SIMULATION["simulate"](case, 300, with_peer=False)
    # three standard errors of a coverage of 0.95 over 300 repetitions are 0.038; of a power, twice that
    assert SIMULATION["judge"](case, counts, slack=0.03) == []
