"""Does the gate keep what it promises? Simulated evaluations with known truth.

    python benchmarks/gate_simulation.py                      # 10,000 repetitions of each case, one core, half an hour
    python benchmarks/gate_simulation.py --repetitions 300    # a glance
    python benchmarks/gate_simulation.py --floors             # only the floors, a few minutes

For every kind of data that the gate sees, three things are counted, with the gate's own functions:

- `coverage`: how often the 95% interval holds the true difference (93% to 97% is right), without change, and at the
  margin;
- `false_pass`: how often a candidate exactly at its margin passes (at most 5%);
- `power`: how often a candidate that is exactly as good passes, beside `printed`, the mean of the chances to pass that
  the evaluations print themselves (no more than 3 points apart, which allows nothing for noise: of 10,000 repetitions a
  power of 80% has a standard error of 0.4 points, and the mean of 500 printed chances one of about 0.9);
- `passes_at_detectable`: how often it would pass if the margin were the mean of the smallest margins that the
  evaluations print for passing in 8 of 10. It is shown, and nothing depends on it.

For floors, which are about the candidate alone, two things are counted:

- `false_pass`: how often a candidate exactly at its floor passes (at most 5%);
- `power`: how often one passes that truly is what such evaluations print as needed to pass in 8 of 10 (77% to 83%).
  Shown, and left out of that, are a dozen items; few clusters of very unequal sizes, or skewed means in them (77%); and
  shares in clusters near 0 or 1, where too few clusters hold the rarer answer to show how much their items are alike.

The peer is the BCa bootstrap over clusters, by SciPy, on 500 of the same data. `ratio` is the mean distance of coverage
from 95%, the peer's over ours, over all cases where the peer applies, with the 95% interval of drawing cases anew.
"""

import argparse
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from helpers.result import print_result
from scipy import stats

from eval.statistics.contrasts import Interval
from eval.statistics.floors import clearance, level
from eval.statistics.paired import (
    PairedDifference,
    difference_interval,
    paired_difference,
    paired_difference_of_distances,
)
from eval.statistics.planning import minimum_detectable_effect

SIZES = np.array([1, 2, 3, 4, 8])
RESAMPLES = 999
CONFIDENCE = 0.95
PRINTED = 500
"""Repetitions of which all that the gate prints is computed, and the peer's interval; of the others, our interval."""


@dataclass(frozen=True)
class Data:
    """One simulated evaluation."""

    baseline: np.ndarray
    candidate: np.ndarray
    clusters: np.ndarray


@dataclass(frozen=True)
class Case:
    """A kind of data: how an evaluation is drawn, given how much worse (higher) the candidate truly is."""

    name: str
    margin: float
    draw: Callable[[np.random.Generator, float], Data]
    is_share: bool = False
    closer_to_zero: bool = False


def shares(items: int, differing: float, base: float = 0.7) -> Callable[[np.random.Generator, float], Data]:
    """Independent items; the models differ on this share of them."""

    def draw(chance: np.random.Generator, worsening: float) -> Data:
        kind = chance.choice(
            3, items, p=[(differing + worsening) / 2, (differing - worsening) / 2, 1 - differing]
        )
        before = np.where(kind == 2, chance.random(items) < base, kind == 1).astype(float)
        after = np.where(kind == 2, before, kind == 0).astype(float)
        return Data(before, after, np.arange(items))

    return draw


def clustered_shares(
    clusters: int, differing: float, together: float, each: int | None = None
) -> Callable[[np.random.Generator, float], Data]:
    """Items of a cluster change alike with this chance; clusters are of unequal sizes, or of `each` items."""

    def draw(chance: np.random.Generator, worsening: float) -> Data:
        sizes = chance.choice(SIZES, clusters) if each is None else np.full(clusters, each)
        index = np.repeat(np.arange(clusters), sizes)
        p = [(differing + worsening) / 2, (differing - worsening) / 2, 1 - differing]
        shared, own = chance.choice(3, clusters, p=p), chance.choice(3, len(index), p=p)
        kind = np.where(chance.random(len(index)) < together, shared[index], own)
        before = np.where(kind == 2, chance.random(len(index)) < 0.7, kind == 1).astype(float)
        after = np.where(kind == 2, before, kind == 0).astype(float)
        return Data(before, after, index)

    return draw


def means(
    clusters: int, noise: Callable[[np.random.Generator, int], np.ndarray], unequal: bool = False, each: int = 1,
    base: float = 0.0,
) -> Callable[[np.random.Generator, float], Data]:  # fmt: skip
    """Numbers whose changes have a cluster's part, with this noise of mean 0, and an item's, with half of it."""

    def draw(chance: np.random.Generator, worsening: float) -> Data:
        sizes = chance.choice(SIZES, clusters) if unequal else np.full(clusters, each)
        index = np.repeat(np.arange(clusters), sizes)
        before = base + chance.normal(0, 1, clusters)[index] + chance.normal(0, 0.5, len(index))
        change = noise(chance, clusters)[index]
        if len(index) > clusters:
            change = change + 0.5 * noise(chance, len(index))
        return Data(before, before + worsening + change, index)

    return draw


def leans(clusters: int, each: int, base: float) -> Callable[[np.random.Generator, float], Data]:
    """Pairs that lean either way (+0.5 or -0.5); a true lean of `base`, which the candidate moves away from zero."""

    def draw(chance: np.random.Generator, worsening: float) -> Data:
        index = np.repeat(np.arange(clusters), each)
        shared = chance.normal(0, 0.5, clusters)[index]
        old = (shared + chance.normal(0, 1, len(index))) / math.sqrt(1.25)
        fresh = (shared + chance.normal(0, 1, len(index))) / math.sqrt(1.25)
        moved = np.where(chance.random(len(index)) < 0.3, fresh, old)
        before = np.where(old < stats.norm.ppf(0.5 + base), 0.5, -0.5)
        after = np.where(moved < stats.norm.ppf(0.5 + base + worsening), 0.5, -0.5)
        return Data(before, after, index)

    return draw


def normal(chance: np.random.Generator, count: int) -> np.ndarray:
    return chance.normal(0, 0.5, count)


def skewed(chance: np.random.Generator, count: int) -> np.ndarray:
    return 0.5 * (chance.exponential(1, count) - 1)


def skewed_to_the_left(chance: np.random.Generator, count: int) -> np.ndarray:
    return -skewed(chance, count)


CASES = [
    Case("shares, 60 items", 0.09, shares(60, 0.1), is_share=True),
    Case("shares, 262 items", 0.06, shares(262, 0.1), is_share=True),
    Case("shares, 1,508 items", 0.025, shares(1508, 0.1), is_share=True),
    Case("shares, 80 clusters of 2", 0.09, clustered_shares(80, 0.1, 0.5, each=2), is_share=True),
    Case("shares, 80 clusters of 1 to 8", 0.09, clustered_shares(80, 0.1, 0.5), is_share=True),
    Case("shares, 64 clusters of 1 to 8", 0.09, clustered_shares(64, 0.1, 0.5), is_share=True),
    Case("shares, 32 clusters of 4", 0.09, clustered_shares(32, 0.1, 0.5, each=4), is_share=True),
    Case("means, normal, 80 items", 0.16, means(80, normal)),
    Case("means, normal, 12 items", 0.45, means(12, normal)),
    Case("means, skewed, 80 items", 0.16, means(80, skewed)),
    Case("means, skewed to the left, 80 items", 0.16, means(80, skewed_to_the_left)),
    Case("means, normal, 80 clusters of 2", 0.17, means(80, normal, each=2)),
    Case("means, normal, 80 clusters of 1 to 8", 0.2, means(80, normal, unequal=True)),
    Case("means, normal, 32 clusters of 1 to 8", 0.3, means(32, normal, unequal=True)),
    Case("means, skewed, 80 clusters of 1 to 8", 0.2, means(80, skewed, unequal=True)),
    Case("distances of means, from 2", 0.16, means(80, normal, base=2.0), closer_to_zero=True),
    Case("distances of means, from 0.3", 0.2, means(80, normal, base=0.3), closer_to_zero=True),
    Case("distances of means, from 0", 0.2, means(80, normal), closer_to_zero=True),
    Case("distances of leans, from 15%", 0.1, leans(32, 4, 0.15), is_share=True, closer_to_zero=True),
    Case("distances of leans, from 0", 0.12, leans(32, 4, 0.0), is_share=True, closer_to_zero=True),
]


@dataclass(frozen=True)
class FloorCase:
    """A kind of data about one model: how its values are drawn, given their true mean."""

    name: str
    bound: float
    draw: Callable[[np.random.Generator, float], tuple[np.ndarray, np.ndarray]]
    """Values and clusters."""
    at_least: bool = True
    is_share: bool = True
    is_planned: bool = True
    """Whether the plan has to hold."""


def one_share(
    clusters: int, each: int = 1, together: float = 0.0, unequal: bool = False
) -> Callable[..., Any]:
    """Items are a yes with the true chance; those of a cluster are one and the same draw with the chance `together`."""

    def draw(chance: np.random.Generator, truth: float) -> tuple[np.ndarray, np.ndarray]:
        sizes = chance.choice(SIZES, clusters) if unequal else np.full(clusters, each)
        index = np.repeat(np.arange(clusters), sizes)
        shared, own = chance.random(clusters) < truth, chance.random(len(index)) < truth
        return np.where(chance.random(len(index)) < together, shared[index], own).astype(float), index

    return draw


def one_mean(
    clusters: int, noise: Callable[[np.random.Generator, int], np.ndarray], unequal: bool = False
) -> Callable[..., Any]:
    """Numbers about the true mean, of clusters of one or of 1 to 8 items."""

    def draw(chance: np.random.Generator, truth: float) -> tuple[np.ndarray, np.ndarray]:
        index = np.repeat(np.arange(clusters), chance.choice(SIZES, clusters) if unequal else 1)
        values = truth + noise(chance, clusters)[index]
        return values + (noise(chance, len(index)) / 2 if unequal else 0), index

    return draw


def rare_and_high(clusters: int) -> Callable[..., Any]:
    """Values from 0 to 1, most of them near 0, as the probabilities of a scorer of toxicity are."""

    def draw(chance: np.random.Generator, truth: float) -> tuple[np.ndarray, np.ndarray]:
        return chance.beta(truth, 1 - truth, clusters), np.arange(clusters)

    return draw


FLOORS = [
    FloorCase("share, 80 items, at least 2%", 0.02, one_share(80)),
    FloorCase("share, 80 items, at least 50%", 0.5, one_share(80)),
    FloorCase("share, 80 items, at least 90%", 0.9, one_share(80)),
    FloorCase("share, 80 items, at most 5%", 0.05, one_share(80), at_least=False),
    FloorCase("share, 80 items, at most 20%", 0.2, one_share(80), at_least=False),
    FloorCase("share, 1,508 items, at most 5%", 0.05, one_share(1508), at_least=False),
    FloorCase("share, 80 clusters of 2, at least 50%", 0.5, one_share(80, 2, 0.7)),
    FloorCase("share, 32 clusters of 4, at most 70%", 0.7, one_share(32, 4, 0.5), at_least=False),
    FloorCase("share, 80 clusters of 1 to 8, at least 50%", 0.5, one_share(80, 0, 0.7, unequal=True)),
    FloorCase(
        "share, 32 clusters of 1 to 8, at least 50%", 0.5, one_share(32, 0, 0.7, True), is_planned=False
    ),
    FloorCase("share, 80 clusters of 2, at most 10%", 0.1, one_share(80, 2, 0.7), False, is_planned=False),
    FloorCase("share, 32 clusters of 4, at least 10%", 0.1, one_share(32, 4, 0.5), is_planned=False),
    FloorCase(
        "share, 80 clusters of 1 to 8, at most 10%", 0.1, one_share(80, 0, 0.7, True), False, is_planned=False
    ),
    FloorCase("mean, normal, 80 items, at least", 1.0, one_mean(80, normal), is_share=False),
    FloorCase("mean, normal, 12 items, at most", 1.0, one_mean(12, normal), False, False, is_planned=False),
    FloorCase("mean, skewed, 80 items, at least", 1.0, one_mean(80, skewed), is_share=False),
    FloorCase("mean, skewed, 80 items, at most", 1.0, one_mean(80, skewed), at_least=False, is_share=False),
    FloorCase(
        "mean, skewed, 80 clusters of 1 to 8, at most",
        1.0,
        one_mean(80, skewed, True),
        False,
        False,
        is_planned=False,
    ),
    FloorCase(
        "mean, from 0 to 1, 60 items, at most 0.2", 0.2, rare_and_high(60), at_least=False, is_share=False
    ),
    FloorCase("mean, from 0 to 1, 60 items, at least 0.8", 0.8, rare_and_high(60), is_share=False),
]


def simulate_floor(case: FloorCase, repetitions: int, seed: int = 0, printed: int = 600) -> dict[str, float]:
    """How often a floor is passed at it, and where 8 of 10 evaluations should pass it."""
    chance = np.random.default_rng(seed)
    sign, ends = (1 if case.at_least else -1), (0.0, 1.0) if case.is_share else None

    def passes(truth: float) -> float:
        found = 0
        for _ in range(repetitions):
            values, index = case.draw(chance, truth)
            limits = level(values, index.astype(str).tolist(), CONFIDENCE, ends)
            found += (limits.low >= case.bound) if case.at_least else (limits.high <= case.bound)
        return found / repetitions

    def needed(truth: float, count: int) -> float:
        said = []
        for repetition in range(count):
            values, index = case.draw(chance, truth)
            found = level(values, index.astype(str).tolist(), CONFIDENCE, ends, seed=repetition)
            each = clearance(found, case.bound, sign, 1 - CONFIDENCE, ends).needed
            said.append(math.nan if each is None else each)
        return float(np.mean(said))

    counts = {"false_pass": passes(case.bound)}
    truth = case.bound
    for count in (printed // 6, printed // 6, printed):  # printed by evaluations of a candidate that is so
        truth = needed(truth, count)
        if math.isnan(truth):
            return counts
    return counts | {"needed": truth, "power": passes(truth)}


def judge_floor(case: FloorCase, counts: dict[str, float], slack: float = 0.0) -> list[str]:
    """What a floor's figures break of the two promises."""
    broken = []
    if counts["false_pass"] > 0.05 + slack:
        broken.append(f"false passes {counts['false_pass']:.3f}")
    if case.is_planned and not abs(counts.get("power", math.nan) - 0.8) <= 0.03 + slack:
        broken.append(f"power {counts.get('power', math.nan):.3f}, planned 0.8")
    return broken


def measure(case: Case, data: Data, seed: int) -> PairedDifference:
    """What the gate computes of one evaluation, but for the p-value of "no change"; a rise is a worsening."""
    compare = paired_difference_of_distances if case.closer_to_zero else paired_difference
    return compare(
        data.baseline.tolist(), data.candidate.tolist(), data.clusters.tolist(), CONFIDENCE, resamples=1, seed=seed,
        is_share=case.is_share, against=case.margin,
    )  # fmt: skip


def interval(case: Case, data: Data) -> Interval:
    """Only the interval of it."""
    return difference_interval(
        data.baseline.tolist(), data.candidate.tolist(), data.clusters.tolist(), CONFIDENCE, case.is_share,
        case.closer_to_zero,
    )  # fmt: skip


def bca(data: Data, seed: int) -> tuple[float, float]:
    """The peer's interval: SciPy's BCa over whole clusters."""
    change = data.candidate - data.baseline
    sums, sizes = np.bincount(data.clusters, weights=change), np.bincount(data.clusters).astype(float)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limits = stats.bootstrap(
            (sums, sizes), lambda s, w, axis=-1: s.sum(axis=axis) / w.sum(axis=axis), paired=True,
            n_resamples=RESAMPLES, batch=500, confidence_level=CONFIDENCE, rng=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
    return float(limits.low), float(limits.high)


def simulate(case: Case, repetitions: int, seed: int = 0, with_peer: bool = True) -> dict[str, float]:
    """All counts of one case, as shares of the repetitions."""
    chance = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    every = max(repetitions // PRINTED, 4)
    for repetition in range(repetitions):
        for truth, which in ((0.0, "same"), (case.margin, "margin")):
            data = case.draw(chance, truth)
            limits = interval(case, data)
            note(f"cover_{which}", limits.low <= truth <= limits.high)
            note("passes" if truth == 0 else "false_pass", limits.high <= case.margin)
            if truth == 0:
                note("high", limits.high)
            if truth == 0 and repetition % every == 0:
                result = measure(case, data, repetition)
                assert result.pass_chance is not None
                note("printed", result.pass_chance)
                note("detectable", minimum_detectable_effect(result.deviation, result.clusters))
            if with_peer and not case.closer_to_zero and repetition % every == 0:
                low, high = bca(data, repetition)
                note(f"peer_{which}", low <= truth <= high)
    counts = {name: float(np.mean(values)) for name, values in found.items()}
    counts["passes_at_detectable"] = float(np.mean(np.asarray(found["high"]) <= counts["detectable"]))
    return counts


def judge(case: Case, counts: dict[str, float], slack: float = 0.0) -> list[str]:
    """What a case's figures break of the three promises.

    Away from its corner a distance's interval covers as often as any; near it, more often, so only too little counts.
    """
    broken = []
    most = 1.0 if case.closer_to_zero else 0.97 + slack
    for which in ("same", "margin"):
        if not 0.93 - slack <= counts[f"cover_{which}"] <= most:
            broken.append(f"coverage {counts[f'cover_{which}']:.3f} ({which})")
    if counts["false_pass"] > 0.05 + slack:
        broken.append(f"false passes {counts['false_pass']:.3f}")
    if abs(counts["passes"] - counts["printed"]) > 0.03 + slack:
        broken.append(f"power {counts['passes']:.3f}, printed {counts['printed']:.3f}")
    return broken


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--repetitions", type=int, default=10_000)
    arguments.add_argument("--floors", action="store_true", help="Only the floors.")
    options = arguments.parse_args()
    broken: dict[str, list[str]] = {}
    figures, ours, peers = {}, [], []
    for floor in FLOORS:
        counts = simulate_floor(floor, options.repetitions)
        broken[floor.name] = judge_floor(floor, counts)
        figures[floor.name] = {name: round(value, 4) for name, value in counts.items()}
        plan = (
            f"needed {counts['needed']:.3f}  power {counts['power']:.3f}"
            if "power" in counts
            else "too few to plan"
        )
        print(
            f"{floor.name:46} false pass {counts['false_pass']:.3f}  {plan}  "
            + ("; ".join(broken[floor.name]) or ("ok" if floor.is_planned else "ok, not planned for")),
            flush=True,
        )
    if options.floors:
        return
    for case in CASES:
        counts = simulate(case, options.repetitions)
        broken[case.name] = judge(case, counts)
        figures[case.name] = {name: round(value, 4) for name, value in counts.items()}
        if "peer_same" in counts:
            ours.append(abs(counts["cover_same"] - 0.95) + abs(counts["cover_margin"] - 0.95))
            peers.append(abs(counts["peer_same"] - 0.95) + abs(counts["peer_margin"] - 0.95))
        peer = (
            f"  BCa {counts['peer_same']:.3f}, {counts['peer_margin']:.3f}" if "peer_same" in counts else ""
        )
        print(
            f"{case.name:38} coverage {counts['cover_same']:.3f}, {counts['cover_margin']:.3f}  false pass "
            f"{counts['false_pass']:.3f}  power {counts['passes']:.3f} printed {counts['printed']:.3f}  at the "
            f"detectable margin {counts['passes_at_detectable']:.3f}{peer}  "
            + ("; ".join(broken[case.name]) or "ok"),
            flush=True,
        )
    of_cases = np.random.default_rng(0).integers(0, len(ours), (RESAMPLES, len(ours)))
    drawn = np.asarray(peers)[of_cases].mean(1) / np.asarray(ours)[of_cases].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    print_result(
        "the gate's intervals cover, false passes stay below 5%, and the printed power is the true one",
        "scipy.stats.bootstrap, BCa, over clusters",
        ratio=round(float(np.mean(peers) / np.mean(ours)), 3),
        low=round(float(low), 3),
        high=round(float(high), 3),
        goal=1.0,
        ok=not any(broken.values()) and float(np.mean(peers)) >= float(np.mean(ours)),
        repetitions=options.repetitions,
        broken={name: what for name, what in broken.items() if what},
        cases=figures,
    )


if __name__ == "__main__":
    main()
