"""Drift: what many small changes add up to over the rounds before this one.

"Not worse than the last one by more than a margin" can be true in every round, and the model of today may still be
far worse than the one of a year ago. So the page follows the baseline back: to the evaluation in which it was the
candidate, to that one's baseline, and so on, and adds up what each round changed.

Figures are comparable only where they were measured on the same things: the same items of a suite, the same prompts,
the same reward model or judge. Where that changed, the line breaks, and the sum starts anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from accord.errors import AccordError
from accord.run_record import RunRecord
from accord.runs import Run, Runs
from eval.rows import SUITE
from eval.suites.metrics import METRICS, Direction
from eval.verdict.gate import Subject, Verdict, read_verdict
from eval.verdict.rule import MetricResult

NOT_SUMMED = ("judge_unparsed",)
"""Says something of the judge, and is no change from one model to the next."""


@dataclass(frozen=True)
class Chain:
    """The evaluations of a model, of its baseline, and so on: the oldest first, this one last."""

    runs: list[Run]
    verdicts: list[Verdict]
    left_out: str = ""
    """Why an earlier evaluation could not be used, if so."""


@dataclass(frozen=True)
class Step:
    """What one evaluation says of a metric: its value for both models, and the plausible values of the candidate.

    Values are distances from zero for a metric that should be "closer_to_zero".
    """

    round: int
    """Counted from 1, for the oldest evaluation of the chain."""
    before: float
    after: float
    low: float
    high: float
    worsening: float
    """Positive is worse."""
    starts_anew: str = ""
    """Why it cannot be compared with the step before; empty where it can, and for the first."""


@dataclass(frozen=True)
class Drift:
    """A gated metric over the rounds."""

    metric: MetricResult
    """As this evaluation has it."""
    margin: float
    steps: list[Step]
    """Of the rounds that measured it, oldest first."""

    @property
    def comparable(self) -> list[Step]:
        """The steps since the line last broke."""
        breaks = [i for i, step in enumerate(self.steps) if step.starts_anew]
        return self.steps[breaks[-1] if breaks else 0 :]

    @property
    def total(self) -> float:
        """The sum of the worsenings since the line last broke, in the metric's units; negative is better."""
        return sum(step.worsening for step in self.comparable)

    @property
    def is_beyond_margin(self) -> bool:
        """Whether several rounds together got worse by more than one round is allowed to."""
        return len(self.comparable) > 1 and self.total > self.margin * (1 + 1e-9)


def chain(run: Run, runs: Runs) -> Chain:
    """This evaluation and those that led to its baseline.

    Of several evaluations of one model the newest counts, of those that were finished when the one after them began:
    so the chain is the same whenever the page is built again.
    """
    found, verdicts, left_out = [run], [read_verdict(run)], ""
    evaluations = [each for each in runs.all("eval") if each.is_done]
    while True:
        after = found[-1]
        wanted = _digest(after.record, "baseline")
        earlier = [
            each
            for each in evaluations
            if _digest(each.record, "candidate") == wanted
            and (each.record.ended_at or "") <= after.record.started_at
            and each.id not in {one.id for one in found}
        ]
        if not earlier:
            break
        before = max(earlier, key=lambda each: (each.record.ended_at or "", each.id))
        try:
            before.check_outputs()
            verdicts.append(read_verdict(before))
        except AccordError:
            left_out = before.id
            break
        found.append(before)
    return Chain(found[::-1], verdicts[::-1], left_out)


def _digest(record: RunRecord, role: str) -> str | None:
    """What identifies one of an evaluation's models."""
    return record.parent_digests.get(role) or record.inputs.get(role)


def drifts(verdicts: Sequence[Verdict]) -> list[Drift]:
    """Every metric that the last verdict gates, over all of them.

    Args:
        verdicts: a chain's, oldest first; each one's baseline is the candidate of the one before.
    """
    return [
        Drift(metric, metric.margin, _steps(metric, verdicts))
        for metric in verdicts[-1].metrics
        if metric.margin is not None and metric.name not in NOT_SUMMED
    ]


def _steps(metric: MetricResult, verdicts: Sequence[Verdict]) -> list[Step]:
    steps: list[Step] = []
    before: tuple[Verdict, MetricResult] | None = None
    skipped = False
    for number, verdict in enumerate(verdicts, start=1):
        result = next(
            (each for each in verdict.metrics if (each.name, each.slice) == (metric.name, metric.slice)), None
        )
        if result is None or result.direction not in (None, metric.direction):
            skipped = bool(steps)
            continue
        why = _what_changed(metric.name, *before, verdict, result) if before else ""
        if skipped:
            why, skipped = "a round in between did not measure it", False
        steps.append(_step(result, metric.direction, number, why))
        before = verdict, result
    return steps


def _step(result: MetricResult, direction: Direction | None, number: int, why: str) -> Step:
    before, after = result.baseline, result.candidate
    if direction == "closer_to_zero":
        before, after = abs(before), abs(after)
    worsening = before - after if direction == "higher" else after - before
    low, high = before + result.low, before + result.high
    if direction == "closer_to_zero":
        low = max(low, 0.0)
    return Step(number, before, after, low, high, worsening, why)


def _what_changed(
    name: str, before: Verdict, old: MetricResult, after: Verdict, new: MetricResult
) -> str:  # fmt: skip
    """Why figures of two evaluations cannot be compared; empty if they can."""
    then, now = before.files_behind(name), after.files_behind(name)
    if name in METRICS:
        if then != now:
            return "the prompts changed"
    elif _logged(name, now) or _logged(name, then):
        if _logged(name, then).get("candidate") != _logged(name, now).get("baseline"):
            return "the baseline's logged samples are not those that it had as the candidate"
    elif then != now:
        return "the suite's items changed"
    if name.startswith(("reward", "win_rate")) and _other(before.reward_model, after.reward_model):
        return "another reward model scored the answers"
    if name.startswith("judge") and _other(before.judge, after.judge):
        return "another judge compared the answers"
    if (old.items, old.clusters) != (new.items, new.clusters):
        return "more or fewer items were taken"
    return ""


def _logged(name: str, files: Mapping[str, str]) -> dict[str, str]:
    """The digests of what lm-eval logged elsewhere of either model; empty where the metric's items are files here.

    Such a file has a model's own values in it, so that of the next round's candidate is another one in any case.
    """
    task = f"{SUITE}{name.split('/')[0]}/"
    logged = {role: files[task + role] for role in ("baseline", "candidate") if task + role in files}
    return logged if len(logged) == len(files) else {}


def _other(one: Subject | None, two: Subject | None) -> bool:
    return (one and one.digest) != (two and two.digest)
