"""The page of a reward model: its report card in words, pictures and tables; one self-contained file.

    run.record.dropped = {"too_long": 3}
    write_report(run, runs)     # before the run is finished, so that the page is among its hashed files

It is built from report_card.json, heldout.jsonl, the rows of metrics and the run's record, and from the runs that this
one descends from, so `accord report RUN` builds the same bytes again.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from accord.records import Message, read_jsonl, write_atomically
from accord.report import BLUE, GRID, INK, MUTED, ORANGE, inline, lineage, render, training_curves
from accord.runs import Run, Runs
from feedback.report import SIMULATED, displayed_names
from feedback.statistics import FEWEST_CLUSTERS, Estimate
from reward.card.people import Mistake
from reward.card.slices import FEWEST_PAIRS, Slice
from reward.report_card import ReportCard
from reward.rows import ScoredPair

MODERATE_CORRELATION = 0.3
"""Cohen (1988, Statistical Power Analysis, p. 80) calls a correlation of this size medium."""
LONGEST_SHOWN = 2_000
"""Characters of a text in the page; the whole text is in the run's files."""
SLICES = {
    "length": "Length of the chosen answer beside the other",
    "margin": "How much better annotators said it is (margin)",
    "weight": "How sure the preference is (weight)",
    "agreement": "Annotators",
}


def write_report(run: Run, runs: Runs) -> Path:
    """Write `report.html` into the reward run's folder.

    The page shows how many rows were left out, so `run.record.dropped` has to be set by then.
    """
    path = run.path / "report.html"
    write_atomically(path, page(run, runs))
    return path


def page(run: Run, runs: Runs) -> str:
    """The page as text."""
    card = ReportCard.model_validate_json((run.path / "report_card.json").read_bytes())
    pairs = read_jsonl(run.path / "heldout.jsonl", ScoredPair)
    parent = run.record.parents.get("preferences")
    kind = runs.load(parent).metrics.get("annotators_kind") if parent else None
    names = displayed_names([each.name for each in card.annotators], show_names=False)
    simulated = [name.startswith(SIMULATED) for name in names]
    values: dict[str, Any] = {
        "run": run.record,
        "card": card,
        "headline": headline(card),
        "summary": summary(card),
        "warnings": warnings(card),
        "simulated": kind == "simulated" or (bool(simulated) and all(simulated)),
        "accuracy": accuracy_rows(card),
        "above": points(card.baselines.above_length_only),
        "slices": _slice_groups(card.slices),
        "annotators": [Row.of_slice(each, names[each.name]) for each in card.annotators],
        "fewest_pairs": FEWEST_PAIRS,
        "fewest_prompts": FEWEST_CLUSTERS,
        "reliability": reliability_diagram(f"{run.id}-reliability", card),
        "length": _length_rows(card),
        "ensemble": _ensemble_rows(card),
        "ensemble_says": ensemble_says(card),
        "ceiling": _ceiling_rows(card),
        "ceiling_says": ceiling_says(card),
        "best_of_n": best_of_n_plots(f"{run.id}-best-of-n", card),
        "best_of_n_says": best_of_n_says(card),
        "mistakes": [MistakeView.of(each, pairs[each.row]) for each in card.mistakes],
        "previous": _previous_rows(card),
        "previous_says": previous_says(card),
        "curves": training_curves(run),
        "lineage": lineage(run, runs),
        "config": {key: value for key, value in run.record.config.items() if value is not None},
    }  # fmt: skip
    return render(Path(__file__).parent, "report.html.jinja", values)


# --- what it says


def share(estimate: Estimate) -> str:
    """A share with its interval, such as "71% (64 to 78%)"."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.0%}"
    return f"{estimate.value:.0%} ({100 * estimate.low:.0f} to {estimate.high:.0%})"


def points(estimate: Estimate) -> str:
    """A difference of shares in percentage points with its interval, such as "+4 points (−1 to +9)"."""
    text = f"{100 * estimate.value:+.0f} points"
    if estimate.low is not None and estimate.high is not None:
        text += f" ({100 * estimate.low:+.0f} to {100 * estimate.high:+.0f})"
    return text.replace("-", "−")


def coefficient(estimate: Estimate) -> str:
    """A correlation or the like with two digits and its interval."""
    text = f"{estimate.value:.2f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" ({estimate.low:.2f} to {estimate.high:.2f})"
    return text.replace("-", "−")


def headline(card: ReportCard) -> str:
    """The answer to "is this reward model any good?"."""
    above = card.baselines.above_length_only
    if card.accuracy.low is None or above.low is None:
        return "Too little was held out to tell how good this reward model is."
    if card.accuracy.low <= 0.5:
        return "This reward model is not certain to be better than guessing."
    if above.low <= 0:
        return "This reward model is not certain to be better than judging by length."
    return "This reward model is better than guessing, and than judging by length."


def summary(card: ReportCard) -> str:
    """The figures that matter most, in a sentence."""
    longer = card.baselines.length_only_prefers
    parts = [
        f"The model orders {share(card.accuracy)} of {card.pairs:,} held-out pairs as the annotators did",
        f"always preferring the {longer} answer gets {card.baselines.length_only.value:.0%}",
    ]
    if card.ceiling:
        parts.append(f"two annotators agree on {card.ceiling.two_annotators.value:.0%}")
    return "; ".join(parts) + "."


@dataclass(frozen=True)
class Warning:
    """Something to know before the scores are used, and what to do about it."""

    text: str
    do: str


def warnings(card: ReportCard) -> list[Warning]:
    """What is wrong, or not certain, in plain words; the gravest first."""
    found = []
    rule, above = card.baselines.length_only_prefers, card.baselines.above_length_only
    if card.accuracy.low is None:
        found.append(
            Warning(
                f"The held-out pairs come from {_count(card.prompts, 'prompt')}, which is too few for intervals.",
                f"Collect preferences on more prompts: at least {10 * FEWEST_CLUSTERS} held out tell something.",
            )
        )
    elif card.accuracy.low <= 0.5:
        found.append(
            Warning(
                f"It may be guessing: guessing is right in 50% of pairs, and the interval is {share(card.accuracy)}.",
                "Do not optimise a policy against it. Look at the agreement of the annotators and the training curves.",
            )
        )
    if above.low is not None and above.low <= 0:
        found.append(
            Warning(
                f"Always preferring the {rule} answer does about as well: the model is ahead by {points(above)}.",
                "What it learnt may be length. Collect pairs whose answers are about equally long.",
            )
        )
    excess, within = card.length.excess, card.length.pearson_within_prompts
    if (
        excess is not None
        and excess.low is not None
        and excess.low > 0
        and card.length.model_prefers_longer is not None
        and card.length.annotators_prefer_longer is not None
    ):
        found.append(
            Warning(
                "It likes length more than the annotators do: it prefers the longer answer in "
                f"{card.length.model_prefers_longer.value:.0%} of pairs, and they in "
                f"{card.length.annotators_prefer_longer.value:.0%}.",
                "A policy optimised against it will write longer answers. Watch their length, and compare at equal "
                "length.",
            )
        )
    if (
        within is not None
        and within.low is not None
        and within.high is not None
        and abs(within.value) >= MODERATE_CORRELATION
        and (within.low > 0 or within.high < 0)
    ):
        found.append(
            Warning(
                f"Scores follow length: among the answers to one prompt their correlation with the logarithm of length "
                f"is {coefficient(within)}.",
                "See whether the annotators’ preferences do so too, in the section on length.",
            )
        )
    found += _calibration_warnings(card)
    for part in card.slices:
        if part.accuracy and part.accuracy.high is not None and part.accuracy.high < 0.5:
            found.append(
                Warning(
                    f"On the pairs with {SLICES.get(part.by, part.by).lower()} “{part.name}” it is wrong more often "
                    f"than right: {share(part.accuracy)}.",
                    "Do not use it on answers of this kind.",
                )
            )
    return found + _selection_warnings(card)


def _calibration_warnings(card: ReportCard) -> list[Warning]:
    gap = card.calibration.overconfidence
    if gap.low is None or gap.high is None or gap.low <= 0 <= gap.high:
        return []
    sure = f"on average it is {card.accuracy.value + gap.value:.0%} sure and {card.accuracy.value:.0%} right"
    use = "The order of answers does not change."
    if not card.temperature_at_limit:
        use = f"Divide scores by {card.temperature:.2g} where they are read as probabilities. {use}"
    kind = "overconfident" if gap.value > 0 else "less sure than it could be"
    return [Warning(f"It is {kind}: {sure}.", use)]


def _selection_warnings(card: ReportCard) -> list[Warning]:
    found = []
    best, previous = card.best_of_n, card.previous
    if best and best.gain.low is not None and best.gain.low <= 0:
        found.append(
            Warning(
                f"Picking the best of {best.curve[-1].n} answers by its score is not certain to find a better one than "
                "drawing at random.",
                "Do not optimise a policy against it.",
            )
        )
    if best and best.last_step and best.last_step.high is not None and best.last_step.high < 0:
        found.append(
            Warning(
                f"Picking from {best.curve[-1].n} answers finds worse ones than picking from {best.curve[-2].n}, while "
                "its own score rises: it is over-optimised already.",
                "Keep the policy close to its reference, and look at the answers with the highest scores.",
            )
        )
    if (
        previous
        and previous.difference
        and previous.difference.high is not None
        and previous.difference.high < 0
    ):
        found.append(
            Warning(
                f"It is worse than {previous.name} on the same pairs: {points(previous.difference)}.",
                "Use the earlier one, or find out what changed.",
            )
        )
    return found


def ensemble_says(card: ReportCard) -> str:
    """Whether the heads' disagreement is of use, in a sentence."""
    if card.ensemble is None:
        return ""
    found = card.ensemble.auroc
    if found is None:
        return "All held-out pairs came out alike, so nothing shows whether disagreement predicts a mistake."
    if found.low is None or found.high is None:
        return "Too few prompts were held out to tell whether disagreement predicts a mistake."
    if found.low > 0.5:
        return (
            "Where the heads disagree more, the model is wrong more often: their disagreement is a warning."
        )
    if found.high < 0.5:
        return (
            "Where the heads disagree more, the model is wrong less often: their disagreement grows with the "
            "difference of scores, and is no warning by itself."
        )
    return "Nothing shows that the model is wrong more often where its heads disagree more."


def ceiling_says(card: ReportCard) -> str:
    """How the model stands beside one more annotator, in a sentence."""
    if card.ceiling is None:
        return ""
    above = card.ceiling.model_above_annotator
    end = f": {points(above)}."
    if above.low is None or above.high is None:
        return "Too few prompts were held out to compare the model with one more annotator."
    if above.high < 0:
        return "One more annotator would say what the others say more often than the model does" + end
    if above.low > 0:
        return "The model says what the annotators say more often than one more annotator would" + end
    return "The model is not certain to be better or worse at this than one more annotator" + end


def best_of_n_says(card: ReportCard) -> str:
    """What picking by the score is worth, in a sentence."""
    if card.best_of_n is None:
        return ""
    first, last = card.best_of_n.curve[0], card.best_of_n.curve[-1]
    possible = last.ceiling.value - first.judgement.value
    text = (
        f"Drawn at random, an answer has a mean place of {first.judgement.value:.2f}; picked by the score from "
        f"{last.n}, {coefficient(last.judgement)}; picked by the annotators themselves, {last.ceiling.value:.2f}."
    )
    if possible > 0:
        text += f" The score finds {card.best_of_n.gain.value / possible:.0%} of what there is to gain."
    return text.replace("-", "−")


def previous_says(card: ReportCard) -> str:
    """Which of the two models is better, in a sentence."""
    if card.previous is None:
        return ""
    found = card.previous.difference
    if found is None:
        return f"{card.previous.name} was trained on every held-out prompt, so the two cannot be compared."
    if found.low is None or found.high is None:
        return "Too few prompts are left to tell which of the two is better."
    if found.low > 0:
        return f"This model is better than {card.previous.name}: {points(found)}."
    if found.high < 0:
        return f"This model is worse than {card.previous.name}: {points(found)}."
    return f"Nothing shows that this model is better or worse than {card.previous.name}: {points(found)}."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# --- tables


@dataclass(frozen=True)
class Row:
    """A line of a table: a figure in words, where it lies between 0 and 1 (None: no picture), and how to read it."""

    name: str
    text: str
    items: str
    reading: str = ""
    estimate: Estimate | None = None

    @classmethod
    def of_share(cls, name: str, estimate: Estimate, unit: str, reading: str = "") -> "Row":
        """A share of so many units."""
        return cls(name, share(estimate), f"{estimate.items:,} {unit}", reading, estimate)

    @classmethod
    def of_slice(cls, part: Slice, name: str) -> "Row":
        """The accuracy on a part of the pairs."""
        items = f"{_count(part.pairs, 'pair')}, {_count(part.prompts, 'prompt')}"
        text = share(part.accuracy) if part.accuracy else "too small to say"
        return cls(name, text, items, "", part.accuracy)


def accuracy_rows(card: ReportCard) -> list[Row]:
    """The model beside the rules that read nothing."""
    rules = card.baselines
    others = "longer" if rules.length_only_prefers == "shorter" else "shorter"
    asked = rules.longer if others == "longer" else rules.shorter
    trained = (
        f"the rule that training pairs suggest: in {rules.longer_chosen_share:.0%} of those of unequal length the "
        "longer answer was chosen"
        if rules.longer_chosen_share is not None
        else "training pairs suggest no rule"
    )
    rows = [
        Row.of_share("This model", card.accuracy, "pairs", "equal scores count one half"),
        Row.of_share(f"Always the {rules.length_only_prefers} answer", rules.length_only, "pairs", trained),
        Row.of_share(f"Always the {others} answer", asked, "pairs", "the other way round"),
    ]
    if rules.first:
        rows.append(
            Row.of_share(
                "Always the answer shown first", rules.first, "pairs",
                "far from one half: annotators were led by the order of display, or the order was not random",
            )
        )  # fmt: skip
    return rows


@dataclass(frozen=True)
class Group:
    """The parts that one property divides the pairs into."""

    title: str
    rows: list[Row]


def _slice_groups(slices: Sequence[Slice]) -> list[Group]:
    return [
        Group(
            SLICES.get(by, by[:1].upper() + by[1:]),
            [Row.of_slice(part, part.name) for part in slices if part.by == by],
        )
        for by in dict.fromkeys(part.by for part in slices)
    ]


def _length_rows(card: ReportCard) -> list[Row]:
    found = card.length
    answers = f"{found.answers:,} answers"
    rows = [
        Row(name, coefficient(estimate), answers, reading)
        for name, estimate, reading in (
            ("Correlation within prompts (Pearson)", found.pearson_within_prompts,
             "of score and log length, each less its mean over the prompt’s answers"),
            ("Correlation within prompts (Spearman)", found.spearman_within_prompts, "the same, of ranks"),
            ("Correlation over all answers (Pearson)", found.pearson,
             "also counts that some questions get long answers and high scores"),
            ("Correlation over all answers (Spearman)", found.spearman, "the same, of ranks"),
        )
        if estimate is not None
    ]  # fmt: skip
    for name, estimate in (
        ("The model prefers the longer answer", found.model_prefers_longer),
        ("The annotators prefer the longer answer", found.annotators_prefer_longer),
    ):
        if estimate is not None:
            rows.append(Row.of_share(name, estimate, "pairs", "of the pairs of unequal length"))
    if found.excess is not None:
        rows.append(
            Row("Difference of these two", points(found.excess), f"{found.excess.items:,} pairs",
                "above 0: the model likes length more than they do")
        )  # fmt: skip
    return rows


def _ensemble_rows(card: ReportCard) -> list[Row]:
    if card.ensemble is None:
        return []
    found = card.ensemble
    rows = [
        Row(name, coefficient(estimate), f"{estimate.items:,} pairs", reading, estimate)
        for name, estimate, reading in (
            ("Disagreement of the heads (AUROC)", found.auroc, "0.5 is useless, 1 finds every mistake"),
            ("Disagreement relative to the difference of scores (AUROC)", found.auroc_relative,
             "the same, counted in units of the difference"),
            ("A small difference of scores alone (AUROC)", found.auroc_of_difference,
             "needs no ensemble: what disagreement has to beat"),
        )
        if estimate is not None
    ]  # fmt: skip
    rows += [Row.of_slice(part, f"Accuracy where disagreement is {part.name}") for part in found.thirds]
    return rows


def _ceiling_rows(card: ReportCard) -> list[Row]:
    if card.ceiling is None:
        return []
    found = card.ceiling
    return [
        Row.of_share("Two annotators agree", found.two_annotators, "pairs", "two drawn at random who order the pair"),
        Row.of_share("The model agrees with one annotator", found.model_with_annotator, "pairs", "the same pairs"),
        Row.of_share("An annotator agrees with the others", found.annotator_with_others, "pairs",
                     "with their majority; half where they are split evenly"),
        Row.of_share("The model agrees with the same others", found.model_with_others, "pairs",
                     "to be compared with the line above"),
    ]  # fmt: skip


def _previous_rows(card: ReportCard) -> list[Row]:
    found = card.previous
    if found is None or found.accuracy is None or found.previous_accuracy is None or found.difference is None:
        return []
    return [
        Row.of_share("This model", found.accuracy, "pairs"),
        Row.of_share(found.name, found.previous_accuracy, "pairs"),
        Row("Difference", points(found.difference), f"{found.difference.items:,} pairs"),
    ]


# --- mistakes


@dataclass(frozen=True)
class MistakeView:
    """A mistake as the page shows it."""

    mistake: Mistake
    name: str
    prompt: list[Message]
    chosen: str
    rejected: str
    cut: bool
    seen: str

    @classmethod
    def of(cls, mistake: Mistake, pair: ScoredPair) -> "MistakeView":
        """A mistake with the texts of its pair."""
        chosen, rejected = ("\n\n".join(m.content for m in side) for side in (pair.chosen, pair.rejected))
        return cls(
            mistake=mistake, name=pair.id or f"line {mistake.row + 1}", prompt=pair.prompt,
            chosen=chosen[:LONGEST_SHOWN], rejected=rejected[:LONGEST_SHOWN],
            cut=max(len(chosen), len(rejected)) > LONGEST_SHOWN, seen=_seen(mistake, pair),
        )  # fmt: skip


def _seen(mistake: Mistake, pair: ScoredPair) -> str:
    """How the annotators saw it."""
    parts = []
    if mistake.votes:
        ours, theirs, neither = mistake.votes
        parts.append(f"{_count(ours, 'annotator')} preferred the first answer, {theirs:,} the second")
        if neither:
            parts[-1] += f", {neither:,} called it a tie"
    elif pair.annotators is not None:
        parts.append(f"judged by {_count(pair.annotators, 'annotator')}")
        if pair.agreement is not None:
            parts[-1] += f", of whom {pair.agreement:.0%} preferred the first answer"
    if pair.margin is not None:
        parts.append(f"margin {pair.margin:.2g}")
    if pair.weight is not None:
        parts.append(f"weight {pair.weight:.2f}")
    return "; ".join(parts) or "the preferences came without a word on how sure they are"


# --- pictures


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
    """What `draw` draws, in the style of `accord.report.line_plot`: the same figures give the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9, "path.simplify": False}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(3.7, 2.7), layout="constrained")
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
            axes.legend(frameon=False, labelcolor=INK, handlelength=1.6, loc=legend)
        file = io.StringIO()
        FigureCanvasSVG(figure).print_svg(
            file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return Picture(title, inline(file.getvalue(), name, title, description), description)


def _error_bars(axes: Any, x: Sequence[float], estimates: Sequence[Estimate], **style: Any) -> None:
    """Points with their intervals; a resampled interval may, barely, miss the point itself."""
    y = [each.value for each in estimates]
    below = [max(0.0, each.value - each.low) if each.low is not None else 0.0 for each in estimates]
    above = [max(0.0, each.high - each.value) if each.high is not None else 0.0 for each in estimates]
    axes.errorbar(x, y, yerr=[below, above], linewidth=1.3, markersize=4.5, elinewidth=1, **style)
