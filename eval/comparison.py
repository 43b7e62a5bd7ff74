"""From the measured rows to every metric's result, over all items and by group. Pure arithmetic."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from accord.errors import UsageError
from eval.config import EvalConfig
from eval.judgement import MetricResult, SliceResult, correct, judge
from eval.metrics import METRICS, PROMPTS
from eval.rows import Sample, ScoredPair
from eval.statistics import PairedDifference, paired_difference, paired_difference_of_distances

SMALLEST_SLICE = 10
"""Clusters that a group needs for an interval, and for a margin; with fewer it is too small to say."""


@dataclass(frozen=True)
class Measured:
    """One metric's values: an item's under either model, its cluster and its group."""

    before: list[float]
    after: list[float]
    clusters: list[str]
    groups: list[str | None]

    def of(self, group: str) -> "Measured":
        """Only the items of one group."""
        rows = zip(self.before, self.after, self.clusters, self.groups, strict=True)
        kept = [row for row in rows if row[3] == group]
        return Measured(*(list(column) for column in zip(*kept, strict=True)))


def compare(samples: Sequence[Sample], bias: Sequence[ScoredPair], config: EvalConfig) -> list[MetricResult]:
    """Every metric's comparison, those with a margin first, and then the groups that have a margin.

    Raises:
        UsageError: a margin is for a group that is not there, or that is too small.
    """
    results, groups = [], []
    alpha = 1 - config.confidence_level
    for name in sorted(METRICS, key=lambda name: name not in config.gate):
        if (values := measured(name, samples, bias)) is None:
            continue
        margin = config.gate.get(name)
        results.append(
            judge(name, _difference(name, values, config, margin.margin if margin else None), margin, alpha)
        )
        if margin is None:
            continue
        check_slices(config, name, values.clusters, values.groups)
        for group, tolerated in margin.slices.items():
            change = _difference(name, values.of(group), config, tolerated)
            groups.append(judge(name, change, margin, alpha, group))
    return correct([*results, *groups], alpha)


def slices(samples: Sequence[Sample], bias: Sequence[ScoredPair], config: EvalConfig) -> list[SliceResult]:
    """Every metric's comparison by group, with an interval where the group has `SMALLEST_SLICE` clusters."""
    results = []
    for name in METRICS:
        if (values := measured(name, samples, bias)) is None:
            continue
        for group in dict.fromkeys(each for each in values.groups if each is not None):
            part = values.of(group)
            count = len(set(part.clusters))
            margin = config.gate.get(name)
            direction = margin.direction if margin else None
            change = _difference(name, part, config, None) if count >= SMALLEST_SLICE else None
            baseline, candidate = (sum(each) / len(each) for each in (part.before, part.after))
            distances = (
                (abs(baseline), abs(candidate)) if direction == "closer_to_zero" else (baseline, candidate)
            )
            results.append(
                SliceResult(
                    name=name, slice=group, items=len(part.before), clusters=count, cluster=METRICS[name].cluster,
                    baseline=baseline, candidate=candidate, difference=distances[1] - distances[0],
                    low=change.low if change else None, high=change.high if change else None, direction=direction,
                )
            )  # fmt: skip
    return results


def measured(name: str, samples: Sequence[Sample], bias: Sequence[ScoredPair]) -> Measured | None:
    """A metric's values; None for the reward where there was no reward model."""
    if METRICS[name].cluster != PROMPTS:
        return Measured(
            [pair_value(name, pair.baseline_gap) for pair in bias],
            [pair_value(name, pair.candidate_gap) for pair in bias],
            [pair.template for pair in bias],
            [pair.group for pair in bias],
        )
    if name == "reward" and samples[0].baseline.reward is None:
        return None
    return Measured(
        [sample.baseline.value(name) for sample in samples],
        [sample.candidate.value(name) for sample in samples],
        [sample.id for sample in samples],
        [sample.group for sample in samples],
    )


def check_slices(
    config: EvalConfig, name: str, clusters: Iterable[str], groups: Iterable[str | None]
) -> None:
    """Refuse margins for groups of a metric's items that are not there or are too small to decide.

    Args:
        config: with the gate.
        name: of the metric.
        clusters: each item's.
        groups: each item's.

    Raises:
        UsageError: with the groups that there are, or how many clusters one has.
    """
    if name not in config.gate or not config.gate[name].slices:
        return
    members: dict[str, set[str]] = {}
    for cluster, group in zip(clusters, groups, strict=True):
        if group is not None:
            members.setdefault(group, set()).add(cluster)
    for group in config.gate[name].slices:
        if group not in members:
            raise UsageError(
                f"the gate has a margin for '{name}' in '{group}', and there is no such group; "
                f"there are: {', '.join(members) or 'none'}"
            )
        if len(members[group]) < SMALLEST_SLICE:
            raise UsageError(
                f"the gate has a margin for '{name}' in '{group}', which has {len(members[group])} "
                f"{METRICS[name].cluster}; a group needs at least {SMALLEST_SLICE} to decide anything"
            )


def check_prompt_slices(config: EvalConfig, prompts: Iterable[str], groups: Mapping[str, str]) -> None:
    """`check_slices` for every metric of answers, before there are any."""
    names = list(prompts)
    for name in config.gate:
        if METRICS[name].cluster == PROMPTS:
            check_slices(config, name, names, [groups.get(each) for each in names])


def _difference(name: str, values: Measured, config: EvalConfig, tolerated: float | None) -> PairedDifference:
    margin = config.gate.get(name)
    closer = margin is not None and margin.direction == "closer_to_zero"
    against = None
    if margin is not None and tolerated is not None:
        against = -tolerated if margin.direction == "higher" else tolerated
    return (paired_difference_of_distances if closer else paired_difference)(
        values.before, values.after, values.clusters, config.confidence_level, config.bootstrap_resamples,
        config.seed, METRICS[name].is_share, against,
    )  # fmt: skip


def pair_value(name: str, gap: float) -> float:
    """A sentence pair's value of a metric, from its gap in nats; a tie leans to neither side."""
    if name == "stereotype_lean":
        return 0.5 if gap > 0 else -0.5 if gap < 0 else 0.0
    return abs(gap) if name == "absolute_gap" else gap
