"""A report card's pictures: calibration, and what picking the best of n is worth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from accord.page.plots import BLUE, MUTED, ORANGE, plot
from accord.statistics import Estimate
from reward.report_card import ReportCard


@dataclass(frozen=True)
class Picture:
    """An SVG with its title, and the same in a sentence."""

    title: str
    svg: Markup
    description: str


def reliability_diagram(name: str, card: ReportCard) -> Picture:
    """How often the model was right against how sure it was, bin by bin, before and after the temperature."""
    series = {"scores as they are": (card.calibration.bins, {"color": BLUE, "marker": "o"})}
    if card.calibrated:
        series["after temperature"] = (card.calibrated.bins, {"color": ORANGE, "marker": "s"})

    def draw(axes: Any) -> None:
        axes.plot(
            [0.5, 1], [0.5, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 2)), label="as sure as right"
        )
        for label, (bins, style) in series.items():
            x, y = [each.confidence for each in bins], [each.accuracy for each in bins]
            _error_bars(axes, x, y, label=label, **style)
        axes.set_xlabel("how sure the model was", color=MUTED)
        axes.set_ylabel("how often it was right", color=MUTED)
        axes.set_xlim(0.48, 1.02)

    title = "How sure, and how often right"
    description = "; ".join(
        f"{label}: "
        + ", ".join(f"{each.confidence:.0%} sure, {each.accuracy.value:.0%} right" for each in bins)
        for label, (bins, _) in series.items()
    )
    return _picture(name, title, description, draw, legend="lower right")


def best_of_n_plots(name: str, card: ReportCard) -> list[Picture]:
    """What annotators think, and what the model thinks, of the answer that its score picks from n."""
    if card.best_of_n is None:
        return []
    curve = card.best_of_n.curve
    by_score, by_annotators = {"color": BLUE, "marker": "o"}, {"color": ORANGE, "marker": "s"}
    judged = {
        "picked by the score": ([each.judgement for each in curve], by_score),
        "picked by the annotators": ([each.ceiling for each in curve], by_annotators),
    }
    own = {"picked by the score": ([each.score for each in curve], by_score)}
    return [
        _by_n(f"{name}-judgement", "Annotators’ judgement of the answer picked", judged),
        _by_n(f"{name}-score", "The model’s own score of the answer picked", own),
    ]


def _by_n(name: str, title: str, lines: Mapping[str, tuple[Sequence[Estimate], dict[str, Any]]]) -> Picture:
    """Figures for n = 1, 2, ... answers."""

    def draw(axes: Any) -> None:
        for label, (estimates, style) in lines.items():
            _error_bars(axes, range(1, len(estimates) + 1), estimates, label=label, **style)
            axes.set_xticks(range(1, len(estimates) + 1))
        axes.set_xlabel("answers to pick from", color=MUTED)

    description = "; ".join(
        f"{label}: " + ", ".join(f"{each.value:.2f} from {n}" for n, each in enumerate(estimates, start=1))
        for label, (estimates, _) in lines.items()
    )
    return _picture(name, title, description.replace("-", "−"), draw)


def _picture(
    name: str, title: str, description: str, draw: Callable[[Any], None], legend: Any = "upper left"
) -> Picture:
    svg = plot(name, title, description, draw, height=2.7, legend={"handlelength": 1.6, "loc": legend})
    return Picture(title, svg, description)


def _error_bars(axes: Any, x: Sequence[float], estimates: Sequence[Estimate], **style: Any) -> None:
    """Points with their intervals; a resampled interval may, barely, miss the point itself."""
    y = [each.value for each in estimates]
    below = [max(0.0, each.value - each.low) if each.low is not None else 0.0 for each in estimates]
    above = [max(0.0, each.high - each.value) if each.high is not None else 0.0 for each in estimates]
    axes.errorbar(x, y, yerr=[below, above], linewidth=1.3, markersize=4.5, elinewidth=1, **style)
