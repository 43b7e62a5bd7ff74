"""How much more of something one program did than another, from runs in pairs."""

import math
import statistics
from collections.abc import Sequence

from scipy import stats


def mean_ratio(ratios: Sequence[float]) -> dict[str, float]:
    """The geometric mean of the pairs' ratios with its 95% interval (Student's t on logarithms), for the result line.

    One pair says nothing of its spread: `low` and `high` are then the ratio itself.
    """
    logs = [math.log(ratio) for ratio in ratios]
    mean, half = statistics.fmean(logs), 0.0
    if len(logs) > 1:
        half = stats.t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    ends = {"ratio": mean, "low": mean - half, "high": mean + half}
    return {name: round(math.exp(value), 3) for name, value in ends.items()}
