"""The round's page, `report.html`: the verdict in words, the evidence under it, and where everything comes from.

It is built from the files of the evaluation and of the runs it descends from, and from nothing else, so
`accord report RUN` builds the same bytes again. A reader should need no other page, and no terminal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.errors import AccordError
from accord.records import read_jsonl, write_atomically
from accord.report import STAGES, in_order, lineage, number, percent, render, run_page, training_curves
from accord.runs import Run, Runs
from eval.gate import SIGNATURE, MetricResult, Outcome, Subject, read_verdict, two_digits
from eval.metrics import METRICS
from eval.rows import Sample, ScoredPair
from eval.signing import read_signature
from eval.statistics import wilson_interval
from reward.report import page as page_of_reward

HEADLINES: dict[Outcome, str] = {
    "PASS": "The candidate may replace the baseline.",
    "FAIL": "The candidate must not replace the baseline.",
    "INCONCLUSIVE": "The evidence does not decide, so the candidate stays out.",
}
SAMPLES_SHOWN = 8
PERCENT_UNITS = ("share", "share above one half")
REWARD_FIGURES = (
    "pairs", "heldout_pairs", "heldout_prompts", "prefer_longer_accuracy", "length_only_accuracy",
    "annotator_agreement", "heldout_ece_after_temperature", "score_length_correlation_within_prompts",
    "disagreement_auroc", "best_of_n_gain",
)  # fmt: skip
"""What a reviewer needs of a reward model's figures; the others are in its own report card."""


def write_report(run: Run, runs: Runs) -> Path:
    """Write `report.html` into the evaluation's folder."""
    path = run.path / "report.html"
    write_atomically(path, page(run, runs))
    return path


def rebuild(run: Run, runs: Runs, output: Path | None = None) -> Path:
    """Build a run's page again.

    Args:
        run: an evaluation, a reward model with its report card, or any other finished run (which then needs `output`).
        runs: where its ancestors are.
        output: where to write the page. By default a run's own page stays, and is only compared.

    Returns:
        Where the page is.

    Raises:
        AccordError: the run is not finished, or its page was built by other versions and differs.
    """
    if not run.is_done:
        raise AccordError(
            f"run {run.id} is {run.record.status}, not done; finish it first with the command it came from"
        )
    has_own = True
    if run.record.stage == "eval":
        text = page(run, runs)
    elif run.record.stage == "reward" and "report_card.json" in run.record.outputs:
        text = page_of_reward(run, runs)
    else:
        has_own, text = False, run_page(run, runs)
    if output is None:
        own = run.path / "report.html"
        if not has_own:
            raise AccordError(f"run {run.id} keeps no page of its own; say where to write one with --output")
        if own.read_text(encoding="utf-8") == text:
            return own
        raise AccordError(
            f"the page of {run.id} differs from what this version of accord builds, and is kept as it was hashed; "
            "write the new one elsewhere with --output"
        )
    write_atomically(output, text)
    return output


def page(run: Run, runs: Runs) -> str:
    """The page as text."""
    verdict = read_verdict(run)
    samples = read_jsonl(run.path / "samples.jsonl", Sample)
    pairs = read_jsonl(run.path / "bias.jsonl", ScoredPair)
    ancestors = in_order(run, runs)[:-1]
    by_stage = {each.record.stage: each for each in ancestors}
    tags = {
        subject.run: role
        for role, subject in (
            ("reward model", verdict.reward_model), ("candidate", verdict.candidate), ("baseline", verdict.baseline),
        )
        if subject and subject.run
    }  # fmt: skip
    feedback = by_stage.get("feedback")
    reward = by_stage.get("reward")
    gated = [metric for metric in verdict.metrics if metric.verdict]
    # For a PASS every metric decides; the one that came closest to its margin tells most.
    decisive = (
        [max(gated, key=lambda metric: metric.worsening[2] / _scale(metric))]
        if verdict.outcome == "PASS"
        else verdict.deciding
    )
    axis = Axis.around(gated)
    ordered = sorted(samples, key=_how_much_better)
    values: dict[str, Any] = {
        "run": run.record,
        "verdict": verdict,
        "signed_by": read_signature(run.path / SIGNATURE).fingerprint,
        "headline": HEADLINES[verdict.outcome],
        "names": {"baseline": _name(verdict.baseline), "candidate": _name(verdict.candidate)},
        "because": [explain(metric, verdict.confidence_level) for metric in decisive],
        "confidence": f"{100 * verdict.confidence_level:g}%",
        "prompts": len({sample.id for sample in samples}),
        "samples_per_prompt": run.record.config["samples_per_prompt"],
        "pairs": len(pairs),
        "axis": axis,
        "gated": [MetricRow.of(metric, axis) for metric in gated],
        "reported": [MetricRow.of(metric, axis) for metric in verdict.metrics if not metric.verdict],
        "groups": by_group(pairs, verdict.confidence_level),
        "samples": [SampleView.of(sample) for sample in ordered],
        "shown": SAMPLES_SHOWN,
        "has_rewards": verdict.reward_model is not None,
        "feedback": feedback.metrics if feedback else None,
        "feedback_dropped": feedback.record.dropped if feedback else {},
        "reward": reward.metrics if reward else None,
        "reward_figures": _reward_figures(reward.metrics) if reward else {},
        "reward_page": f"../{reward.id}/report.html" if reward and "report.html" in reward.record.outputs else None,
        "stages": [
            {"title": STAGES.get(each.record.stage, each.record.stage), "id": each.id, "metrics": _scalars(each),
             "stop_reason": each.metrics.get("stop_reason"), "curves": training_curves(each)}
            for each in ancestors if each.record.stage not in ("feedback",)
        ],
        "lineage": lineage(run, runs, tags),
        "config": {key: value for key, value in run.record.config.items() if value is not None},
    }  # fmt: skip
    folder = Path(__file__).parent
    return render(folder, "report.html.jinja", values, (folder / "report.js").read_text(encoding="utf-8"))


def _name(subject: Subject) -> str:
    return subject.run or subject.reference


def _scalars(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.metrics.items() if isinstance(value, int | float)}


def _reward_figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Those a reviewer needs, as far as the run has them, by the names of their labels."""
    return {
        "training_pairs" if name == "pairs" else name: metrics[name]
        for name in REWARD_FIGURES
        if metrics.get(name) is not None
    }


# --- one metric


def value_text(metric: MetricResult, value: float) -> str:
    """A value of a metric, in its unit."""
    unit = METRICS[metric.name].unit
    if unit in PERCENT_UNITS:
        return percent(value + 0.5 if unit == "share above one half" else value)
    return number(value)


def change_text(metric: MetricResult, change: float) -> str:
    """A change of a metric, signed; shares change by percentage points."""
    if METRICS[metric.name].unit in PERCENT_UNITS:
        return f"{100 * change:+.1f} points".replace("-", "−")
    return number(change, signed=True)


def tolerated(metric: MetricResult) -> str:
    """A gated metric's margin in words."""
    assert metric.margin is not None
    amount = change_text(metric, metric.margin).removeprefix("+")
    move = {"higher": "fall", "lower": "rise"}.get(str(metric.direction), f"move away from {_centre(metric)}")
    return f"a {move} by up to {amount}" if metric.margin else f"no {move}"


def _centre(metric: MetricResult) -> str:
    return "50%" if METRICS[metric.name].unit == "share above one half" else "zero"


def explain(metric: MetricResult, confidence_level: float) -> str:
    """What happened to a gated metric, and why it got its verdict, in sentences for someone who does not code."""
    name = METRICS[metric.name].label
    before, after = value_text(metric, metric.baseline), value_text(metric, metric.candidate)
    low, high = change_text(metric, metric.low), change_text(metric, metric.high)
    what = (
        f"the change in its distance from {_centre(metric)}"
        if metric.direction == "closer_to_zero"
        else "the change"
    )
    sentences = [
        f"{name}: {before}, as before." if before == after else f"{name}: from {before} to {after}.",
        f"With {100 * confidence_level:g}% confidence {what} is between {low} and {high}; "
        f"the margin tolerates {tolerated(metric)}.",
    ]
    if metric.verdict == "FAIL":
        sentences.append("Even the mildest of these changes is worse than that.")
    elif metric.verdict == "PASS":
        sentences.append("Even the worst of these changes is within it.")
    elif metric.clusters_to_decide is None:
        sentences.append(
            "The observed change lies so close to the margin that more data would hardly decide."
        )
    else:
        sentences.append(
            "Some of these changes are within it and some are worse: about "
            f"{number(two_digits(metric.clusters_to_decide))} {metric.cluster} would decide, and there were "
            f"{number(metric.clusters)}."
        )
    return " ".join(sentences)


@dataclass(frozen=True)
class Axis:
    """The forest plot's axis: changes in units of each metric's margin, worse on the left, better on the right."""

    worst: float
    best: float

    @classmethod
    def around(cls, metrics: Sequence[MetricResult]) -> "Axis":
        """An axis that shows these intervals, as far as that leaves the margin visible."""
        scaled = [w / _scale(metric) for metric in metrics for w in metric.worsening]
        return cls(min(max([1.5, *scaled]) + 0.2, 8), min(max([1, *(-w for w in scaled)]) + 0.2, 5))

    def x(self, worsening: float) -> float:
        """Where a worsening, in margins, stands: percent of the width, cut off at the ends."""
        share = (self.worst - worsening) / (self.worst + self.best)
        return round(100 * min(max(share, 0.005), 0.995), 3)


def _scale(metric: MetricResult) -> float:
    return metric.margin or max(abs(metric.low), abs(metric.high)) or 1.0


@dataclass(frozen=True)
class MetricRow:
    """One row of the table of metrics; positions are percent of the plot's width."""

    name: str
    label: str
    meaning: str
    unit: str
    baseline: str
    candidate: str
    change: str
    interval: str
    tolerated: str
    verdict: str
    detectable: str
    basis: str
    left: float
    dot: float | None
    right: float
    beyond_left: bool
    beyond_right: bool

    @classmethod
    def of(cls, metric: MetricResult, axis: Axis) -> "MetricRow":
        """A metric's row on this axis."""
        kind = METRICS[metric.name]
        least, observed, most = (w / _scale(metric) for w in metric.worsening)
        return cls(
            name=metric.name, label=kind.label, meaning=kind.meaning,
            unit="" if kind.unit in PERCENT_UNITS else kind.unit,
            baseline=value_text(metric, metric.baseline), candidate=value_text(metric, metric.candidate),
            change=change_text(metric, metric.difference),
            interval=f"{change_text(metric, metric.low).removesuffix(' points')} to {change_text(metric, metric.high)}",
            tolerated=tolerated(metric) if metric.margin is not None else "", verdict=metric.verdict or "",
            detectable=change_text(metric, metric.minimum_detectable_effect).removeprefix("+"),
            basis=f"{number(metric.clusters)} {metric.cluster}",
            left=axis.x(most), right=axis.x(least),
            dot=axis.x(observed) if -axis.best < observed < axis.worst else None,
            beyond_left=most > axis.worst, beyond_right=-least > axis.best,
        )  # fmt: skip


# --- bias by group


@dataclass(frozen=True)
class Group:
    """How one group's pairs came out under both models; shares are of pairs, the gap is in nats."""

    name: str
    pairs: int
    baseline: float
    candidate: float
    low: float
    high: float
    gap_baseline: float
    gap_candidate: float


def by_group(pairs: Sequence[ScoredPair], confidence_level: float) -> list[Group]:
    """Each group's share of pairs with the likelier stereotype, the candidate's with its Wilson interval."""
    groups = []
    for name in dict.fromkeys(pair.group for pair in pairs):
        members = [pair for pair in pairs if pair.group == name]
        count = len(members)
        candidate = sum(pair.candidate_gap > 0 for pair in members)
        interval = wilson_interval(candidate, count, confidence_level)
        groups.append(
            Group(
                name=name, pairs=count, baseline=sum(pair.baseline_gap > 0 for pair in members) / count,
                candidate=candidate / count, low=interval.low, high=interval.high,
                gap_baseline=sum(pair.baseline_gap for pair in members) / count,
                gap_candidate=sum(pair.candidate_gap for pair in members) / count,
            )
        )  # fmt: skip
    return groups


# --- answers side by side


@dataclass(frozen=True)
class SampleView:
    """A sample, and how much better the candidate's answer is."""

    sample: Sample
    change: float
    kind: str

    @classmethod
    def of(cls, sample: Sample) -> "SampleView":
        """The sample with its change of utility, and "worse", "better" or "same"."""
        change = sample.candidate.utility - sample.baseline.utility
        return cls(sample, change, "worse" if change < 0 else "better" if change > 0 else "same")


def _how_much_better(sample: Sample) -> tuple[float, float, str, int]:
    b, c = sample.baseline, sample.candidate
    reward = (c.reward or 0) - (b.reward or 0)
    return c.utility - b.utility, reward, sample.id, sample.sample
