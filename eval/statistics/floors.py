"""One model's own mean with its interval, and what a model must truly reach to be seen above a floor.

- Shares of yes and no: Clopper and Pearson's exact interval (1934, Biometrika 26), which misses with at most its
  nominal chance however near the share is to 0 or 1. Where items share clusters, it is that of as many independent
  items as say as much (Korn and Graubard 1998, Survey Methodology 24).
- Other means: Student's with the corrections of eval/statistics/means.py, as for differences.

Wilson's interval is shorter, but one of its limits misses rare values too often: a single yes in 80 has a lower limit
of 0.2%, and where that is the truth, one evaluation in six finds a yes. benchmarks/gate_simulation.py counts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from eval.statistics import means
from eval.statistics.contrasts import Interval, p_values
from eval.statistics.means import FEWEST_TO_KNOW_SIZE
from eval.statistics.paired import clusters_of, detectable
from eval.statistics.planning import ALPHA, MOST_CLUSTERS, POWER, minimum_detectable_effect


@dataclass(frozen=True)
class Level:
    """One model's mean in the metric's units."""

    value: float
    low: float
    high: float
    items: int
    clusters: int
    independent: float | None
    """Of a share: how many independent items say as much. None for another mean."""
    is_constant: bool
    """Whether nothing shows how far other items could lie from these; the interval has no width then."""
    limits: Callable[[float], Interval]
    """Of the chance in each tail."""
    distance: Callable[[int, float], float]
    """Of a mean that is no share, by a side (1 for a floor below it, -1 for one above) and the chance in a tail: how
    far from the floor the truth has to be for the limit to clear it in 8 of 10 evaluations like this one."""


@dataclass(frozen=True)
class Clearance:
    """How a level stands to a floor."""

    p_above: float
    """One-sided, that the true value is the floor or less."""
    p_below: float
    """One-sided, that the true value is the floor or more."""
    needed: float | None
    """The true value that would be seen to meet the floor in 8 of 10 evaluations like this; None if there is none."""
    deviation: float
    """Of clusters, as Student's formula would need it for that; 0 for a share."""


def level(
    values: Sequence[float] | np.ndarray, clusters: Sequence[str], confidence_level: float = 0.95,
    ends: tuple[float, float] | None = None, range_of: Sequence[float] | np.ndarray = (), seed: int = 0,
) -> Level:  # fmt: skip
    """The mean of these values, with its interval.

    Args:
        values: one for each item.
        clusters: for each item, the key of its cluster.
        confidence_level: of the two-sided interval.
        ends: of a share: the two values that an item can have.
        range_of: further values that items like these have had, which show how far one can lie from the others.
        seed: of the simulated evaluations.

    Raises:
        ValueError: fewer than two clusters, or lists of different lengths.
    """
    x = np.asarray(values, float)
    index, sizes = clusters_of(x, x, clusters)
    tail = (1 - confidence_level) / 2
    if ends is None:
        return _of_mean(x, index, sizes, np.asarray(range_of, float), tail, seed)
    start, width = ends[0], ends[1] - ends[0]
    share = (x - start) / width
    independent = _independent(share, index, sizes)
    count, items = len(sizes), len(x)

    def limits(tail: float) -> Interval:
        found = share_limits(float(share.mean()), _adjusted(independent, items, count, tail), tail)
        return Interval(start + width * found.low, start + width * found.high)

    shown, adjusted = limits(tail), _adjusted(independent, items, count, tail)
    return Level(
        float(x.mean()), shown.low, shown.high, items, count, adjusted, False, limits, lambda sign, tail: 0.0
    )  # fmt: skip


def clearance(
    found: Level, bound: float, sign: int, alpha: float = ALPHA, ends: tuple[float, float] | None = None
) -> Clearance:
    """How a level stands to a floor, and what a model must truly reach to be seen above it.

    Args:
        found: of `level`, with the same `ends`.
        bound: the floor, in the metric's units.
        sign: 1 where values from the floor upwards are good, -1 where those downwards are.
        alpha: 1 minus the confidence level of the two-sided interval.
        ends: of a share: the two values that an item can have.
    """
    p_above, p_below = (1.0, 1.0) if found.is_constant else p_values(found.limits, bound)
    if found.independent is not None:
        assert ends is not None
        start, width = ends[0], ends[1] - ends[0]
        needed = _needed_of_clusters((bound - start) / width, found, sign, alpha)
        return Clearance(p_above, p_below, None if needed is None else start + width * needed, 0.0)
    if found.is_constant:
        return Clearance(p_above, p_below, None, 0.0)
    distance = found.distance(sign, alpha / 2)
    deviation = distance / minimum_detectable_effect(1.0, found.clusters, alpha)
    return Clearance(p_above, p_below, bound + sign * distance, deviation)


# --- shares


def share_limits(share: float, items: float, tail: float) -> Interval:
    """Clopper and Pearson's limits; the number of items need not be whole."""
    yes, no = share * items, (1 - share) * items
    low = float(stats.beta.ppf(tail, yes, no + 1)) if yes > 0 else 0.0
    high = float(stats.beta.isf(tail, yes + 1, no)) if no > 0 else 1.0
    return Interval(low, high)


def share_needed(
    bound: float, items: float, sign: int, alpha: float = ALPHA, power: float = POWER
) -> float | None:
    """The true share whose interval is on the good side of the floor with this power, by summing over all outcomes.

    Args:
        bound: the floor, from 0 to 1.
        items: how many independent ones there are; rounded.
        sign: 1 where shares from the floor upwards are good, -1 where those downwards are.
        alpha: 1 minus the confidence level of the two-sided interval.
        power: the wanted chance.

    Returns:
        The share, or None where even items that are all good would not do.
    """
    if sign < 0:
        mirrored = share_needed(1 - bound, items, 1, alpha, power)
        return None if mirrored is None else 1 - mirrored
    count = max(round(items), 1)
    fewest = _fewest_good(bound, count, alpha)
    return None if fewest > count else float(stats.beta.ppf(power, fewest, count - fewest + 1))


def _needed_of_clusters(bound: float, found: Level, sign: int, alpha: float) -> float | None:
    """`share_needed` with as many independent items as there would be where the share is what it needs to be."""
    assert found.independent is not None
    needed = share_needed(bound, found.independent, sign, alpha)
    if needed is None or found.independent <= found.clusters:
        return needed
    if min(needed, 1 - needed) * found.independent >= FEWEST_TO_KNOW_SIZE:
        return needed
    return share_needed(bound, found.clusters, sign, alpha)


def items_to_decide(
    share: float, bound: float, sign: int, alpha: float = ALPHA, power: float = POWER
) -> int | None:
    """How many independent items decide on a floor with this power, if the share stays as it is; None: too many."""
    if sign < 0:
        share, bound = 1 - share, 1 - bound
    if share < bound:  # to be seen below the floor
        share, bound = 1 - share, 1 - bound

    def decides(count: int) -> bool:
        return float(stats.binom.sf(_fewest_good(bound, count, alpha) - 1, count, share)) >= power

    if share == bound or not decides(MOST_CLUSTERS):
        return None
    low, high = 0, 1
    while not decides(high):
        low, high = high, min(2 * high, MOST_CLUSTERS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def fewest_items(bound: float, sign: int, alpha: float = ALPHA) -> int:
    """How many items a floor needs to be met when all of them are good."""
    bound = bound if sign > 0 else 1 - bound
    return max(math.ceil(math.log(alpha / 2) / math.log(bound) - 1e-9), 1)


def _fewest_good(bound: float, count: int, alpha: float) -> int:
    """The smallest number of good items of `count` whose lower limit is the floor or more; `count` + 1 if none.

    The lower limit of k good items is at least `bound` where P(k or more of them | bound) <= alpha / 2.
    """
    found = int(stats.binom.isf(alpha / 2, count, bound)) + 1
    while found > 0 and stats.binom.sf(found - 2, count, bound) <= alpha / 2:
        found -= 1
    while found <= count and stats.binom.sf(found - 1, count, bound) > alpha / 2:
        found += 1
    return found


def _independent(share: np.ndarray, index: np.ndarray, sizes: np.ndarray) -> float:
    """How many independent items say as much as these: their number over the design effect of the clusters.

    Where fewer than `FEWEST_TO_KNOW_SIZE` clusters hold an item that is not as most are, they do not show how much the
    items of a cluster are alike, and only as many items as clusters are sure to be independent.
    """
    items, count = len(share), len(sizes)
    if items == count:
        return float(items)
    mean = float(share.mean())
    rarer = share if mean <= 0.5 else 1 - share
    if np.count_nonzero(np.bincount(index, weights=rarer)) < FEWEST_TO_KNOW_SIZE:
        return float(count)
    residuals = np.bincount(index, weights=share) - mean * sizes
    variance = count / (count - 1) * float((residuals**2).sum()) / items**2
    return items / max(variance * items / (mean * (1 - mean)), 1.0)


def _adjusted(independent: float, items: int, clusters: int, tail: float) -> float:
    """Fewer items still, as the design effect is itself estimated from these clusters (Korn and Graubard)."""
    if items == clusters or independent <= clusters:
        return independent
    ratio = stats.t.isf(tail, items - 1) / stats.t.isf(tail, clusters - 1)
    return max(independent * float(ratio) ** 2, float(clusters))


# --- other means


def _of_mean(
    x: np.ndarray, index: np.ndarray, sizes: np.ndarray, others: np.ndarray, tail: float, seed: int
) -> Level:
    sums, count = np.bincount(index, weights=x), len(sizes)
    spread = float(np.ptp(np.concatenate([x, others])))
    moved = np.abs(sums / sizes - np.median(sums / sizes)) > 1e-12 * max(spread, 1e-300)
    known = means.fit(sums, sizes, moved)

    def limits(tail: float) -> Interval:
        low, high = means.limits(known, count, spread, tail)
        return Interval(float(low), float(high))

    def distance(sign: int, tail: float) -> float:
        once, twice = (
            means.limits(each, count, spread, tail) for each in means.simulate(sums, sizes, moved, seed)
        )
        return detectable(-once[0], -twice[0]) if sign > 0 else detectable(once[1], twice[1])

    shown = limits(tail)
    return Level(
        float(known.mean), shown.low, shown.high, len(x), count, None, spread == 0, limits, distance
    )  # fmt: skip
