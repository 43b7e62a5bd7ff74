"""From the rows that an evaluation wrote to every metric's values, item by item. Pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass

from eval.rows import Sample, SuiteItem
from eval.statistics.win_rate import length_controlled, win_values
from eval.suites.kind import Ratio, Value
from eval.suites.metrics import METRICS


@dataclass(frozen=True)
class Measured:
    """One metric's values: an item's under either model, its cluster and its group."""

    before: list[Value]
    after: list[Value]
    clusters: list[str]
    groups: list[str | None]

    def of(self, group: str) -> "Measured":
        """Only the items of one group."""
        rows = zip(self.before, self.after, self.clusters, self.groups, strict=True)
        kept = [row for row in rows if row[3] == group]
        return Measured(*(list(column) for column in zip(*kept, strict=True)))


def measured_answers(samples: Sequence[Sample]) -> dict[str, Measured]:
    """The values of the metrics of answers; those of a formula, a reward model or a judge only where there was one."""
    names = [name for name, metric in METRICS.items() if metric.reference is None]
    found = {
        name: _measured(
            samples, [s.baseline.value(name) for s in samples], [s.candidate.value(name) for s in samples]
        )
        for name in names
        if name not in ("utility", "reward") or getattr(samples[0].baseline, name) is not None
    }
    scores = [(s.baseline.reward, s.candidate.reward) for s in samples]
    rewards = [(before, after) for before, after in scores if before is not None and after is not None]
    if len(rewards) == len(samples):
        wins = win_values(*zip(*rewards, strict=True))
        found |= _win_rates("win_rate", samples, wins)
    judged = [s.judgement.candidate_is_better for s in samples if s.judgement is not None]
    if judged:
        unparsed = [float(better is None) for better in judged]
        found["judge_unparsed"] = _against_reference("judge_unparsed", samples, unparsed)
        # What the judge did not decide counts as a tie; how much that is, `judge_unparsed` says.
        wins = [0.5 if better is None else better for better in judged]
        found |= _win_rates("judge_win_rate", samples, wins)
    return found


def _win_rates(name: str, samples: Sequence[Sample], wins: Sequence[float]) -> dict[str, Measured]:
    """The win rate over these samples, and that at equal length."""
    tokens = [[s.baseline.tokens for s in samples], [s.candidate.tokens for s in samples]]
    controlled = f"{name}_length_controlled"
    return {
        name: _against_reference(name, samples, wins),
        controlled: _against_reference(controlled, samples, length_controlled(wins, *tokens)),
    }


def _against_reference(name: str, samples: Sequence[Sample], values: Sequence[float]) -> Measured:
    reference = METRICS[name].reference
    assert reference is not None
    return _measured(samples, [reference] * len(samples), values)


def _measured(samples: Sequence[Sample], before: Sequence[float], after: Sequence[float]) -> Measured:
    return Measured([*before], [*after], [s.id for s in samples], [s.group for s in samples])


def measured_suites(items: Sequence[SuiteItem]) -> dict[str, Measured]:
    """The values of every suite's metrics by full name; an item without a value of a metric is left out of it."""
    found: dict[str, Measured] = {}
    for item in items:
        for name, before in item.baseline.values.items():
            if name not in item.candidate.values:
                continue
            values = found.setdefault(f"{item.suite}/{name}", Measured([], [], [], []))
            values.before.append(before)
            values.after.append(item.candidate.values[name])
            values.clusters.append(item.template or item.id)
            values.groups.append(item.group)
    return found


def linear(values: Sequence[Value]) -> list[float]:
    """Values whose mean is the metric; those of a quotient of sums are linearised, so that this holds for them, too.

    With R = sum n / sum d, item i becomes R + (n_i - R d_i) / mean(d). These have the mean R, and their variance is the
    first-order variance of R (the delta method; Cochran 1977, Sampling Techniques, 6.3): both numerator and denominator
    count as random. Where nothing is in the denominator, there is nothing to divide, and the metric is 0. A mean of
    quotients is linearised quotient by quotient.
    """
    lists = [value for value in values if isinstance(value, list)]
    if lists:
        columns = [linear(column) for column in zip(*lists, strict=True)]
        return [sum(row) / len(row) for row in zip(*columns, strict=True)]
    if not any(isinstance(value, Ratio) for value in values):
        return [float(value) for value in values if isinstance(value, float | int)]
    pairs = [
        value if isinstance(value, Ratio) else Ratio(value, 1.0)
        for value in values
        if not isinstance(value, list)
    ]
    whole = sum(pair.denominator for pair in pairs)
    if whole == 0:
        return [0.0] * len(pairs)
    ratio = sum(pair.numerator for pair in pairs) / whole
    mean = whole / len(pairs)
    return [ratio + (pair.numerator - ratio * pair.denominator) / mean for pair in pairs]
