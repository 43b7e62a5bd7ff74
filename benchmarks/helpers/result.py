"""A benchmark's last line, and how much more of something one program did than another."""

import json
import math
import statistics
from collections.abc import Sequence
from typing import Any, TypedDict

from scipy import stats


class Ratio(TypedDict):
    """How many times the peer's figure ours is, and where it lies with 95% probability."""

    ratio: float
    low: float
    high: float


def mean_ratio(ratios: Sequence[float]) -> Ratio:
    """The geometric mean of the pairs' ratios with its 95% interval (Student's t on logarithms).

    One pair says nothing of its spread: `low` and `high` are then the ratio itself.
    """
    logs = [math.log(ratio) for ratio in ratios]
    mean, half = statistics.fmean(logs), 0.0
    if len(logs) > 1:
        half = stats.t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    ratio, low, high = (round(math.exp(value), 3) for value in (mean, mean - half, mean + half))
    return Ratio(ratio=ratio, low=low, high=high)


def print_result(
    claim: str, peer: str, *, ratio: float, low: float, high: float, goal: float, ok: bool, **figures: Any
) -> None:
    """Print the one JSON object that every benchmark ends with; `figures` are whatever else it measured."""
    head = {"claim": claim, "peer": peer, "ratio": ratio, "low": low, "high": high, "goal": goal, "ok": ok}
    print(json.dumps(head | figures))
