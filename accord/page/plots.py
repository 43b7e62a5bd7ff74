"""Plots as inline SVG: the same points give the same bytes."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from accord.page.words import label, number
from accord.runs import Run

LABELS = {
    "reward": "Score of an answer",
    "kl": "Distance from the reference (KL of a token, nats)",
    "completions/mean_length": "Length of an answer (tokens)",
    "loss": "Loss",
    "accuracy": "Share of pairs ordered as the annotators did",
    "margin": "Preferred answer above the other (score)",
    "rewards/margins": "Preferred answer above the other (implied reward)",
    "logps/chosen": "Log-probability of a preferred answer (nats)",
    "rewards/accuracies": "Share of pairs ordered as preferred",
    "mean_token_accuracy": "Share of tokens predicted exactly",
    "score": "Score of an answer",
    "kl_k1_nats": "Distance from the reference (KL of an answer, nats)",
    "response_tokens": "Length of an answer (tokens)",
    "preference_loss": "Loss of the implied reward on held-out preferences",
}
"""Curves that are worth drawing, most telling first, and their titles."""
CURVES_PER_STAGE = 4
NOT_CURVES = ("epoch", "step", "learning_rate", "grad_norm", "num_tokens", "runtime", "per_second")


INK, MUTED, GRID, BLUE, ORANGE = "#1c2430", "#5b6675", "#e6e4dd", "#2b5c8a", "#b9541f"


@dataclass(frozen=True)
class Curve:
    """One picture of a training run: an SVG, and the same in a sentence."""

    title: str
    svg: Markup
    description: str


def training_curves(run: Run) -> list[Curve]:
    """The most telling curves in a run's metric rows, held-out values beside training's; none, for a stage without."""
    rows = run.metric_rows()
    logged = {key for row in rows for key, value in row.items() if isinstance(value, int | float)}
    keys = [key for key in LABELS if key in logged or f"eval_{key}" in logged]
    if not keys:
        keys = sorted(
            key
            for key in logged
            if not key.startswith("eval_") and not any(word in key for word in NOT_CURVES)
        )
    curves = []
    for key in keys[:CURVES_PER_STAGE]:
        series = {
            name: [
                (float(row.get("step", i)), float(row[logged_key]))
                for i, row in enumerate(rows)
                if isinstance(row.get(logged_key), int | float) and math.isfinite(row[logged_key])
            ]
            for name, logged_key in (("training", key), ("held out", f"eval_{key}"))
        }
        series = {name: points for name, points in series.items() if points}
        if not series:
            continue
        title = LABELS.get(key, label(key))
        description = "; ".join(
            f"{name}: {number(points[0][1])} at update {points[0][0]:.0f}, "
            f"{number(points[-1][1])} at update {points[-1][0]:.0f}"
            for name, points in series.items()
        )
        name = f"{run.id}-{re.sub(r'[^a-z0-9]+', '-', key.lower())}"
        curves.append(Curve(title, line_plot(name, title, description, series), description))
    return [*curves, *_frontier(run.id, rows)]


def _frontier(name: str, rows: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """PPO: what score was had at what distance from the reference, update by update; none for other stages.

    Held-out points that fall while training's rise are a policy that exploits its reward model.
    """
    series = {
        title: [
            (float(row[f"{prefix}kl_k1_nats"]), float(row[f"{prefix}score"]))
            for row in rows
            if f"{prefix}kl_k1_nats" in row and f"{prefix}score" in row
        ]
        for title, prefix in (("training", ""), ("held out", "eval_"))
    }
    series = {title: points for title, points in series.items() if len(points) > 1}
    if not series:
        return []
    description = "; ".join(
        f"{title}: from a score of {number(points[0][1])} at {number(points[0][0])} nats to {number(points[-1][1])} at "
        f"{number(points[-1][0])} nats"
        for title, points in series.items()
    )
    title = "Score against distance from the reference"
    drawn = line_plot(f"{name}-frontier", title, description, series, x_label="KL of an answer (nats)")
    return [Curve(title, drawn, description)]


def line_plot(
    name: str,
    title: str,
    description: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str = "update",
) -> Markup:
    """A small line plot as inline SVG with real text; `name` must be unique in the page.

    The first series is drawn as a thin line, further ones as a strong line with dots. The same points give the same
    bytes (fixed hash salt, no date).
    """
    from matplotlib.ticker import MaxNLocator

    def draw(axes: Any) -> None:
        for i, (series_name, points) in enumerate(series.items()):
            x, y = zip(*points, strict=True)
            is_only = len(series) == 1
            style: dict[str, Any] = (
                {"color": BLUE, "linewidth": 1.3, "alpha": 1 if is_only else 0.75}
                if i == 0 and series_name == "training"
                else {
                    "color": ORANGE,
                    "linewidth": 1.2,
                    "linestyle": (0, (2, 2)),
                    "marker": "o",
                    "markersize": 5,
                }
            )
            axes.plot(x, y, label=series_name, **style)
        axes.set_xlabel(x_label, color=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=x_label == "update"))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))

    return plot(name, title, description, draw)


def plot(
    name: str,
    title: str,
    description: str,
    draw: Callable[[Any], None],
    height: float = 2.0,
    legend: Mapping[str, Any] | None = None,
) -> Markup:
    """Whatever `draw` draws on matplotlib's axes, as inline SVG in the pages' style.

    Args:
        name: unique in the page.
        title: for readers who do not see the plot.
        description: what is to be seen, for the same readers.
        draw: takes the axes.
        height: in inches.
        legend: further arguments of the legend, which is there for more than one label.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9, "path.simplify": False}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(3.7, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.tick_params(colors=MUTED, length=0)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(GRID)
        draw(axes)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(
                **{"frameon": False, "labelcolor": INK, "handlelength": 1.4, "loc": "best", **(legend or {})}
            )
        file = io.StringIO()
        FigureCanvasSVG(figure).print_svg(
            file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return _inline(file.getvalue(), name, title, description)


def _inline(svg: str, name: str, title: str, description: str) -> Markup:
    """matplotlib's file as part of a page: no prolog, ids of its own, a title and a description."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}.', svg)
    svg = re.sub(r"url\(#", f"url(#{name}.", svg)
    svg = re.sub(r'xlink:href="#', f'href="#{name}.', svg)
    view = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index(">") + 1 :]
    head = (
        f'<svg class="plot" {view.group(0) if view else ""} role="img" aria-labelledby="{name}.title {name}.desc">'
        f'<title id="{name}.title">{escape(title)}</title><desc id="{name}.desc">{escape(description)}</desc>'
    )
    return Markup(head + body.strip())
