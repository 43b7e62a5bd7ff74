"""From the measured rows to every metric's result, over all items and by group. Pure arithmetic."""

from collections.abc import Mapping
from typing import NamedTuple

from accord.errors import UsageError
from eval.config import Rules
from eval.measuring.values import Measured, linear
from eval.statistics.paired import (
    PairedDifference,
    difference_interval,
    paired_difference,
    paired_difference_of_distances,
)
from eval.suites.metrics import Direction
from eval.verdict.floors import FloorResult, conclude_floors, level_of_candidate
from eval.verdict.margins import SMALLEST_SLICE, check_slices
from eval.verdict.rule import MetricResult, SliceResult, conclude_metric, correct


class Comparison(NamedTuple):
    """What the numbers say of every metric."""

    metrics: list[MetricResult]
    """Those with a margin first, and last the groups that have a margin."""
    floors: list[FloorResult]


def compare(measured: Mapping[str, Measured], rules: Rules) -> Comparison:
    """Every metric's comparison, and the candidate's own value against every floor.

    Args:
        measured: the values by the metric's name. One that is not gated and has a single cluster is left out, as there
            is nothing to compute an interval from.
        rules: what decides.

    Raises:
        UsageError: a gated metric was not measured or has a single cluster; a margin is for a group that is not there,
            or that is too small.
    """
    results, groups, floors = [], [], []
    alpha = 1 - rules.confidence_level
    for name in rules.gate:
        if name not in measured or len(set(measured[name].clusters)) < 2:
            raise UsageError(
                f"the gate has a {rules.gate[name].kind} for '{name}', of which there are fewer than two independent "
                "items; take more of its suite's items, or take it out of the gate"
            )
    for name in sorted(measured, key=lambda name: name not in rules.gate):
        values, margin = measured[name], rules.gate.get(name)
        if len(set(values.clusters)) < 2:
            continue
        change = _tested(name, values, rules, margin.margin if margin else None)
        own, _ = level_of_candidate(rules.metrics[name], values, rules)
        found = conclude_metric(rules.metrics[name], change, margin, alpha)
        results.append(found.model_copy(update={"candidate_low": own.low, "candidate_high": own.high}))
        if margin is None:
            continue
        floors += conclude_floors(rules.metrics[name], values, margin, rules)
        check_slices(rules, name, values.clusters, values.groups)
        for group, tolerated in margin.slices.items():
            change = _tested(name, values.of(group), rules, tolerated)
            groups.append(conclude_metric(rules.metrics[name], change, margin, alpha, group))
    every = correct([*results, *groups, *floors], alpha)
    return Comparison(
        [each for each in every if isinstance(each, MetricResult)],
        [each for each in every if isinstance(each, FloorResult)],
    )


def slices(measured: Mapping[str, Measured], rules: Rules) -> list[SliceResult]:
    """Every metric's comparison by group, with an interval where the group has `SMALLEST_SLICE` clusters."""
    results = []
    for name, values in measured.items():
        metric, direction = rules.metrics[name], _direction(name, rules)
        closer = direction == "closer_to_zero"
        for group in dict.fromkeys(each for each in values.groups if each is not None):
            part = values.of(group)
            count = len(set(part.clusters))
            before, after = _numbers(name, part, rules)
            change = None
            if count >= SMALLEST_SLICE:
                change = difference_interval(
                    before, after, part.clusters, rules.confidence_level, metric.is_share, closer
                )
            baseline, candidate = (sum(each) / len(each) for each in (before, after))
            distances = (abs(baseline), abs(candidate)) if closer else (baseline, candidate)
            results.append(
                SliceResult(
                    name=name, title=metric.label, unit=metric.unit, slice=group, items=len(part.before),
                    clusters=count, cluster=metric.cluster, baseline=baseline, candidate=candidate,
                    difference=distances[1] - distances[0], low=change.low if change else None,
                    high=change.high if change else None, direction=direction,
                )
            )  # fmt: skip
    return results


def _direction(name: str, rules: Rules) -> Direction | None:
    margin = rules.gate.get(name)
    return margin.direction if margin else rules.metrics[name].direction


def _numbers(name: str, values: Measured, rules: Rules) -> tuple[list[float], list[float]]:
    """The values whose means are compared, under either model."""
    before, after = linear(values.before), linear(values.after)
    ends = rules.metrics[name].ends
    if ends and (odd := {*before, *after} - set(ends)):
        raise ValueError(f"{name} is a share, and an item has the value {odd.pop()}, not one of {ends}")
    return before, after


def _tested(name: str, values: Measured, rules: Rules, tolerated: float | None) -> PairedDifference:
    direction = _direction(name, rules)
    against = None
    if tolerated is not None:
        against = -tolerated if direction == "higher" else tolerated
    before, after = _numbers(name, values, rules)
    closer = direction == "closer_to_zero"
    return (paired_difference_of_distances if closer else paired_difference)(
        before, after, values.clusters, rules.confidence_level, rules.resamples, rules.seed,
        rules.metrics[name].is_share, against,
    )  # fmt: skip
