"""From the measured rows to every metric's result, over all items and by group. Pure arithmetic."""

from collections.abc import Mapping

from accord.errors import UsageError
from eval.config import EvalConfig
from eval.measuring.values import Measured, linear
from eval.statistics.paired import PairedDifference, paired_difference, paired_difference_of_distances
from eval.verdict.margins import SMALLEST_SLICE, check_slices
from eval.verdict.rule import MetricResult, SliceResult, conclude_metric, correct


def compare(measured: Mapping[str, Measured], config: EvalConfig) -> list[MetricResult]:
    """Every metric's comparison, those with a margin first, and then the groups that have a margin.

    Args:
        measured: the values by the metric's name. One that is not gated and has a single cluster is left out, as there
            is nothing to compute an interval from.
        config: with the gate.

    Raises:
        UsageError: a gated metric was not measured or has a single cluster; a margin is for a group that is not there,
            or that is too small.
    """
    results, groups = [], []
    alpha = 1 - config.confidence_level
    for name in config.gate:
        if name not in measured or len(set(measured[name].clusters)) < 2:
            raise UsageError(
                f"the gate has a margin for '{name}', of which there are fewer than two independent items; take more "
                "of its suite's items, or take it out of the gate"
            )
    for name in sorted(measured, key=lambda name: name not in config.gate):
        values, margin = measured[name], config.gate.get(name)
        if len(set(values.clusters)) < 2:
            continue
        change = _difference(name, values, config, margin.margin if margin else None)
        results.append(conclude_metric(config.metrics[name], change, margin, alpha))
        if margin is None:
            continue
        check_slices(config, name, values.clusters, values.groups)
        for group, tolerated in margin.slices.items():
            change = _difference(name, values.of(group), config, tolerated)
            groups.append(conclude_metric(config.metrics[name], change, margin, alpha, group))
    return correct([*results, *groups], alpha)


def slices(measured: Mapping[str, Measured], config: EvalConfig) -> list[SliceResult]:
    """Every metric's comparison by group, with an interval where the group has `SMALLEST_SLICE` clusters."""
    results = []
    for name, values in measured.items():
        metric, margin = config.metrics[name], config.gate.get(name)
        direction = margin.direction if margin else metric.direction
        for group in dict.fromkeys(each for each in values.groups if each is not None):
            part = values.of(group)
            count = len(set(part.clusters))
            change = _difference(name, part, config, None) if count >= SMALLEST_SLICE else None
            baseline, candidate = (sum(linear(each)) / len(each) for each in (part.before, part.after))
            distances = (
                (abs(baseline), abs(candidate)) if direction == "closer_to_zero" else (baseline, candidate)
            )
            results.append(
                SliceResult(
                    name=name, title=metric.label, unit=metric.unit, slice=group, items=len(part.before),
                    clusters=count, cluster=metric.cluster, baseline=baseline, candidate=candidate,
                    difference=distances[1] - distances[0], low=change.low if change else None,
                    high=change.high if change else None, direction=direction,
                )
            )  # fmt: skip
    return results


def _difference(name: str, values: Measured, config: EvalConfig, tolerated: float | None) -> PairedDifference:
    margin, metric = config.gate.get(name), config.metrics[name]
    direction = margin.direction if margin else metric.direction
    against = None
    if margin is not None and tolerated is not None:
        against = -tolerated if direction == "higher" else tolerated
    before, after = linear(values.before), linear(values.after)
    if metric.ends and (odd := {*before, *after} - set(metric.ends)):
        raise ValueError(
            f"{name} is a share, and an item has the value {odd.pop()}, not one of {metric.ends}"
        )
    closer = direction == "closer_to_zero"
    return (paired_difference_of_distances if closer else paired_difference)(
        before, after, values.clusters, config.confidence_level, config.bootstrap_resamples, config.seed,
        metric.is_share, against,
    )  # fmt: skip
