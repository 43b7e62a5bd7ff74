"""Drift as the page shows it: a chart, a row of figures and, where small steps add up to too much, a warning."""

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from accord.page.plots import BLUE, MUTED, plot
from eval.page.drift import Chain, Drift, drifts
from eval.page.metrics import PERCENT_UNITS, change_text, tolerated, value_text

RED = "#a12f2a"


@dataclass(frozen=True)
class DriftRow:
    """A gated metric over the rounds, in words, and its chart where there is more than one round."""

    label: str
    rounds: int
    """That are comparable with each other."""
    start: str
    now: str
    total: str
    tolerated: str
    is_beyond_margin: bool
    warning: str
    breaks: list[str]
    chart: Markup | None


@dataclass(frozen=True)
class Round:
    """One evaluation of the chain."""

    number: int
    id: str
    baseline: str
    candidate: str
    outcome: str
    started_at: str
    link: str | None


@dataclass(frozen=True)
class DriftView:
    """The page's section on the rounds before this one."""

    rounds: list[Round]
    rows: list[DriftRow]
    left_out: str

    @property
    def warnings(self) -> list[str]:
        """One sentence for every metric that drifted beyond its margin."""
        return [row.warning for row in self.rows if row.is_beyond_margin]


def drift_view(chain: Chain) -> DriftView:
    """The section, from the evaluations that led here."""
    names = [
        (v.baseline.run or v.baseline.reference, v.candidate.run or v.candidate.reference)
        for v in chain.verdicts
    ]
    rounds = [
        Round(
            number, run.id, *pair, verdict.outcome, run.record.started_at,
            f"../{run.id}/report.html" if number < len(chain.runs) and "report.html" in run.record.outputs else None,
        )
        for number, (run, verdict, pair) in enumerate(zip(chain.runs, chain.verdicts, names, strict=True), start=1)
    ]  # fmt: skip
    rows = [_row(f"drift-{i}", each, len(rounds)) for i, each in enumerate(drifts(chain.verdicts))]
    return DriftView(rounds, rows, chain.left_out)


def _row(name: str, drift: Drift, rounds: int) -> DriftRow:
    metric, steps = drift.metric, drift.comparable
    total = change_text(metric, (-drift.total if metric.direction == "higher" else drift.total) + 0.0)
    warning = (
        f"{metric.label}: the changes of the last {len(steps)} rounds add up to {total}. One round may have "
        f"{tolerated(metric)}."
    )
    breaks = [
        f"before round {step.round}: {step.starts_anew}" for step in drift.steps if step.starts_anew
    ]  # fmt: skip
    return DriftRow(
        label=metric.label, rounds=len(steps), start=_value(drift, steps[0].before), now=_value(drift, steps[-1].after),
        total=total, tolerated=tolerated(metric), is_beyond_margin=drift.is_beyond_margin,
        warning=warning, breaks=breaks, chart=_chart(name, drift) if rounds > 1 else None,
    )  # fmt: skip


def _value(drift: Drift, value: float) -> str:
    """A value, or a distance from zero (for shares above one half: from 50%)."""
    metric = drift.metric
    if metric.direction != "closer_to_zero":
        return value_text(metric, value)
    text = change_text(metric, value).removeprefix("+")
    return f"{text} off {'50%' if metric.unit == 'share above one half' else 'zero'}"


def _chart(name: str, drift: Drift) -> Markup:
    metric = drift.metric
    in_percent = metric.unit in PERCENT_UNITS
    is_distance = metric.direction == "closer_to_zero"
    shift = 0.5 if metric.unit == "share above one half" and not is_distance else 0.0

    def y(value: float) -> float:
        return 100 * (value + shift) if in_percent else value

    first = drift.comparable[0]
    limit = first.before - drift.margin if metric.direction == "higher" else first.before + drift.margin

    def draw(axes: Any) -> None:
        for step in drift.steps:
            axes.plot(
                [step.round - 1, step.round], [y(step.before), y(step.after)], color=BLUE, linewidth=1.3
            )
            axes.plot([step.round] * 2, [y(step.low), y(step.high)], color=BLUE, linewidth=4, alpha=0.3)
            axes.plot([step.round], [y(step.after)], "o", color=BLUE, markersize=5)
            if step is drift.steps[0] or step.starts_anew:
                axes.plot([step.round - 1], [y(step.before)], "o", color=BLUE, markersize=5, fillstyle="none")
        last = drift.steps[-1].round
        axes.plot([first.round - 1, last], [y(limit)] * 2, color=RED, linewidth=1.2, linestyle=(0, (4, 2)))
        axes.annotate(
            "one margin worse", (last, y(limit)), xytext=(0, 3), textcoords="offset points", ha="right", color=RED,
            fontsize=8,
        )  # fmt: skip
        axes.set_xticks(range(drift.steps[0].round - 1, last + 1))
        axes.set_xlim(drift.steps[0].round - 1.25, last + 0.25)
        axes.set_xlabel("round", color=MUTED)
        if in_percent:
            axes.set_ylabel("points off 50%" if is_distance else "%", color=MUTED)
        elif metric.unit:
            axes.set_ylabel(metric.unit, color=MUTED)

    described = "; ".join(
        f"round {step.round}: from {_value(drift, step.before)} to {_value(drift, step.after)}"
        for step in drift.steps
    )
    return plot(name, f"{metric.label} over the rounds", described, draw)
