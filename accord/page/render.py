"""What every run's page is made of: one self-contained HTML file, the same bytes whenever it is built again.

A page asks nothing of the network: style, pictures and the one script stand in it, and its content security policy
forbids all else. Whatever a model or a person wrote is escaped by Jinja. Nothing in a page depends on when it is
built, so `accord report` can rebuild one and compare.

    render(Path("eval"), "report.html.jinja", {...}, script="...")
"""

import base64
import functools
import hashlib
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from accord.runs import Run, Runs

TEMPLATES = Path(__file__).parent

STAGES = {
    "sft": "Supervised fine-tuning",
    "feedback": "Feedback",
    "reward": "Reward model",
    "ppo": "Policy optimisation (PPO)",
    "dpo": "Policy optimisation (DPO)",
    "rloo": "Policy optimisation (RLOO)",
    "grpo": "Policy optimisation (GRPO)",
    "eval": "Evaluation",
}
LABELS = {
    "reward": "Reward model's score",
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
FIGURES = {
    "annotators_kind": "Annotators are",
    "comparisons": "Prompts with answers to judge",
    "rankings_submitted": "Rankings given",
    "rankings_discarded": "Rankings declined",
    "pairs": "Pairs of answers",
    "preferences": "Pairs with a preference",
    "comparisons_adjudicated": "Prompts that an adjudicator settled",
    "gold_records": "Records with a known answer",
    "duplicates": "Records asked twice",
    "rankings_deleted": "Rankings deleted on the server",
    "responses_flagged_harmful": "Answers flagged as harmful",
    "krippendorff_alpha": "Agreement on pairs (Krippendorff's alpha)",
    "training_pairs": "Pairs it was trained on",
    "prompts": "Prompts it was trained on",
    "contradictory_pairs": "Pairs whose opposite was preferred too",
    "heldout_pairs": "Held-out pairs",
    "heldout_prompts": "Held-out prompts",
    "heldout_accuracy": "Held-out pairs ordered as preferred (share)",
    "heldout_accuracy_low": "Held-out pairs ordered as preferred (share): 95% interval, from",
    "heldout_accuracy_high": "Held-out pairs ordered as preferred (share): 95% interval, to",
    "length_only_accuracy": "Accuracy of going by length only, as the training pairs suggest",
    "prefer_longer_accuracy": "Accuracy of always preferring the longer answer",
    "prefer_shorter_accuracy": "Accuracy of always preferring the shorter answer",
    "prefer_first_accuracy": "Accuracy of always preferring the answer shown first",
    "accuracy_above_length_only": "Accuracy above going by length only",
    "accuracy_above_length_only_low": "Accuracy above going by length only: 95% interval, from",
    "accuracy_above_length_only_high": "Accuracy above going by length only: 95% interval, to",
    "mean_reward_margin": "Score of the preferred answer above the other's, mean",
    "heldout_brier": "Brier score of held-out pairs (always saying one half: 0.25)",
    "heldout_log_loss": "Log loss of held-out pairs (nats; always saying one half: 0.693)",
    "heldout_ece": "Calibration error (ECE)",
    "temperature": "Temperature that calibrates the scores (above 1: overconfident)",
    "heldout_ece_after_temperature": "Calibration error (ECE) after the temperature",
    "heldout_brier_after_temperature": "Brier score after the temperature",
    "score_length_correlation": "Correlation of score and length, over all answers (ranks)",
    "score_length_correlation_within_prompts": "Correlation of score and length, among answers to one prompt",
    "score_length_correlation_within_prompts_low": "The same correlation: 95% interval, from",
    "score_length_correlation_within_prompts_high": "The same correlation: 95% interval, to",
    "model_prefers_longer": "Pairs where the model prefers the longer answer (share)",
    "annotators_prefer_longer": "Pairs where the annotators prefer the longer answer (share)",
    "disagreement_auroc": "Chance that the heads disagree more on a mistake (AUROC; of no use: 0.5)",
    "relative_disagreement_auroc": "The same, of disagreement relative to the difference of scores (AUROC)",
    "annotator_agreement": "How often two annotators agree (share)",
    "model_agreement_with_annotator": "How often the model agrees with an annotator (share)",
    "annotator_ceiling": "How often an annotator agrees with the others (share)",
    "accuracy_above_annotator": "Model's agreement with the others above an annotator's",
    "accuracy_above_annotator_low": "Model's agreement with the others above an annotator's: 95% interval, from",
    "accuracy_above_annotator_high": "Model's agreement with the others above an annotator's: 95% interval, to",
    "best_of_n": "Answers to pick the best from (n)",
    "best_of_n_judgement": "Place of the best of n by score (first: 1, last: 0)",
    "best_of_n_ceiling": "Place of the best of n by the annotators themselves",
    "best_of_n_gain": "Gain in place by picking the best of n by score, above a random answer",
    "best_of_n_gain_low": "Gain in place by picking the best of n by score, above a random answer: 95% interval, from",
    "best_of_n_gain_high": "Gain in place by picking the best of n by score, above a random answer: 95% interval, to",
    "previous_pairs": "Held-out pairs that the earlier model scored too",
    "previous_accuracy_difference": "Accuracy above the earlier model's",
    "previous_accuracy_difference_low": "Accuracy above the earlier model's: 95% interval, from",
    "previous_accuracy_difference_high": "Accuracy above the earlier model's: 95% interval, to",
    "previous_accuracy_difference_p": "Chance of such a difference if they were equal (whole prompts)",
    "previous_mcnemar_p": "Chance of such a difference if they were equal (McNemar)",
    "heldout_loss_before": "Held-out loss before",
    "kept_update": "Update whose policy was kept",
    "stop_reason": "Why it stopped early",
    "first_score": "Score of an answer, first update",
    "score": "Score of an answer, last update",
    "kl_nats": "KL from the reference, last update (nats an answer)",
    "heldout_preference_loss": "Loss of the implied reward on held-out preferences (ln 2 at the start)",
    "heldout_chosen_log_probability_before": "Held-out preferred answers: log-probability before (nats)",
    "heldout_chosen_log_probability": "Held-out preferred answers: log-probability after (nats)",
    "heldout_rejected_log_probability_before": "Held-out other answers: log-probability before (nats)",
    "heldout_rejected_log_probability": "Held-out other answers: log-probability after (nats)",
    "first_reward": "Reward model's score, first update",
    "reward": "Reward model's score, last update",
    "kl_nats_per_token": "KL from the reference, last update (nats a token)",
    "truncated_share": "Share of answers that were cut off, last update",
    "heldout_reward_before": "Reward model's score on held-out prompts before",
    "heldout_reward": "Reward model's score on held-out prompts after",
    "heldout_reward_margin": "Held-out preferred answer above the other (implied reward)",
}
"""Final figures whose names do not explain themselves."""
NOT_CURVES = ("epoch", "step", "learning_rate", "grad_norm", "num_tokens", "runtime", "per_second")

INK, MUTED, GRID, BLUE, ORANGE = "#1c2430", "#5b6675", "#e6e4dd", "#2b5c8a", "#b9541f"


# --- numbers and names


def number(value: float | int | str | None, signed: bool = False) -> str:
    """A figure with about three digits, a true minus sign, and no exponent where that can be avoided."""
    if value is None:
        return "–"
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, int):
        text = f"{value:+,}" if signed else f"{value:,}"
    elif not math.isfinite(value):
        text = str(value)
    else:
        size = abs(value)
        digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
        text = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
        if size >= 1e-5 and float(text.replace(",", "")) == 0:
            digits = math.ceil(-math.log10(size))
            text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
        elif size and float(text.replace(",", "")) == 0:
            text = f"{value:+.0e}" if signed else f"{value:.0e}"
    return text.replace("-", "−")


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * share:.1f}%".replace("-", "−")


def label(key: str) -> str:
    """The name of a figure or setting in words."""
    text = key.replace("heldout", "held-out").replace("_", " ").replace("/", ": ")
    return text[:1].upper() + text[1:]


def figure_label(key: str) -> str:
    """The same for one of a run's final figures."""
    return FIGURES.get(key, label(key))


def duration(started_at: str, ended_at: str | None) -> str:
    """How long something took, such as "3 min 20 s"."""
    if ended_at is None:
        return "–"
    seconds = round((datetime.fromisoformat(ended_at) - datetime.fromisoformat(started_at)).total_seconds())
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def day(moment: str) -> str:
    """An ISO moment as "22 November 2026, 01:42 UTC"."""
    when = datetime.fromisoformat(moment)
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def as_yaml(value: Mapping[str, Any]) -> str:
    """A configuration as it is written in a file."""
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=88)


# --- the page


def render(folder: Path, template: str, values: Mapping[str, Any], script: str = "") -> str:
    """A page from a template in `folder` (or accord's own), with a policy that lets only `script` run.

    Args:
        folder: where the template is.
        template: its name; it extends accord's `base.html.jinja`.
        values: what it may use; a name that is missing is an error.
        script: JavaScript for the page, allowed by its hash.
    """
    environment = Environment(
        loader=ChoiceLoader([FileSystemLoader(folder), FileSystemLoader(TEMPLATES)]),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        number=number, signed=functools.partial(number, signed=True), percent=percent, label=label,
        figure_label=figure_label, day=day, yaml=as_yaml,
    )  # fmt: skip
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "; ".join(
        (
            "default-src 'none'", "style-src 'unsafe-inline'", "img-src data:", "base-uri 'none'",
            "form-action 'none'", f"script-src 'sha256-{digest}'" if script else "script-src 'none'",
        )
    )  # fmt: skip
    page = environment.get_template(template).render(
        **values, script=Markup(script), content_security_policy=policy
    )
    return "\n".join(line.rstrip() for line in page.splitlines() if line.strip()) + "\n"


def run_page(run: Run, runs: Runs) -> str:
    """The page of any finished run: what made it, its figures and curves, and its descent."""
    return render(
        TEMPLATES, "run.html.jinja",
        {"run": run.record, "stage": STAGES.get(run.record.stage, run.record.stage), "metrics": run.metrics,
         "curves": training_curves(run), "lineage": lineage(run, runs)},
    )  # fmt: skip


# --- curves


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


# --- lineage


@dataclass(frozen=True)
class Input:
    """Something from outside that a run read: a file, or a model that no run here made."""

    role: str
    name: str
    digest: str


@dataclass(frozen=True)
class Node:
    """One run in the picture; lengths are pixels of the SVG."""

    id: str
    stage: str
    tag: str
    link: str | None
    top: int
    height: int
    parents: dict[str, str]
    inputs: list[Input]
    dropped: dict[str, int]
    started_at: str
    took: str


@dataclass(frozen=True)
class Lineage:
    """A run and all it descends from, parents first.

    `steps` join neighbours in the picture; a trunk (node, later nodes, lane) joins one with others further down.
    """

    nodes: list[Node]
    steps: list[tuple[int, int]]
    trunks: list[tuple[int, list[int], int]]
    height: int


def lineage(run: Run, runs: Runs, tags: Mapping[str, str] | None = None) -> Lineage:
    """The descent of a run, laid out from top to bottom.

    Args:
        run: the run whose page it is.
        runs: where its ancestors are.
        tags: what some of them are to this run, by id, such as "candidate".
    """
    ancestors = in_order(run, runs)
    nodes: list[Node] = []
    top = 8
    for each in ancestors:
        record = each.record
        inputs = [
            Input(role, _source_name(record.config, role, digest), digest.split("@")[-1].split(":")[-1])
            for role, digest in record.inputs.items()
        ]
        height = max(56, 30 * len(inputs))
        is_self = each.id == run.id
        nodes.append(
            Node(
                id=each.id, stage=STAGES.get(record.stage, record.stage),
                tag="this page" if is_self else (tags or {}).get(each.id, ""),
                link=f"../{each.id}/report.html" if not is_self and "report.html" in record.outputs else None,
                top=top, height=height, parents=record.parents, inputs=inputs,
                dropped=record.dropped, started_at=record.started_at,
                took="" if is_self else duration(record.started_at, record.ended_at),
            )
        )  # fmt: skip
        top += height + 26
    place = {node.id: i for i, node in enumerate(nodes)}
    edges = sorted({(place[parent], i) for i, node in enumerate(nodes) for parent in node.parents.values()})
    steps = [(a, b) for a, b in edges if b == a + 1]
    far = {a: [b for first, b in edges if first == a and b > a + 1] for a, _ in edges}
    by_length = sorted((a for a in far if far[a]), key=lambda a: far[a][-1] - a)
    return Lineage(nodes, steps, [(a, far[a], lane) for lane, a in enumerate(by_length)], top - 18)


def in_order(run: Run, runs: Runs) -> list[Run]:
    """A run and its ancestors in the order in which they were made, parents first in any case."""
    ancestors = runs.lineage(run)
    by_time = sorted(ancestors, key=lambda each: each.record.started_at)
    place = {each.id: i for i, each in enumerate(by_time)}
    if all(place[p] < place[each.id] for each in by_time for p in each.record.parents.values()):
        return by_time
    return ancestors


def _source_name(config: Mapping[str, Any], role: str, digest: str) -> str:
    """What the configuration calls an input: `prompts: path`, or `demonstrations_0: [{path: ...}]`."""
    value = config.get(role)
    stem, _, index = role.rpartition("_")
    if value is None and index.isdigit() and isinstance(config.get(stem), list):
        value = config[stem][int(index)]
        value = value.get("path") if isinstance(value, Mapping) else value
    if isinstance(value, str):
        return value
    return digest.split("@")[0] if "@" in digest else label(role)
