"""The page of a reward model: its report card in words, pictures and tables; one self-contained file.

    run.record.dropped = {"too_long": 3}
    write_report(run, runs)     # before the run is finished, so that the page is among its hashed files

It is built from report_card.json, heldout.jsonl, the rows of metrics and the run's record, and from the runs that this
one descends from, so `accord report RUN` builds the same bytes again.
"""

from pathlib import Path
from typing import Any

from accord.page.lineage import lineage
from accord.page.plots import training_curves
from accord.page.render import render
from accord.page.words import points
from accord.records import read_jsonl
from accord.runs import Run, Runs
from accord.statistics import FEWEST_CLUSTERS
from accord.text_files import write_atomically
from feedback.page.report import displayed_names
from feedback.utility import SIMULATED
from reward.card.slices import FEWEST_PAIRS
from reward.page.plots import best_of_n_plots, reliability_diagram
from reward.page.tables import (
    MistakeView,
    TableRow,
    accuracy_rows,
    ceiling_rows,
    ensemble_rows,
    length_rows,
    previous_rows,
    slice_groups,
)
from reward.page.words import (
    best_of_n_says,
    cautions,
    ceiling_says,
    ensemble_says,
    headline,
    previous_says,
    summary,
)
from reward.report_card import ReportCard
from reward.rows import ScoredPair


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
        "warnings": cautions(card),
        "simulated": kind == "simulated" or (bool(simulated) and all(simulated)),
        "accuracy": accuracy_rows(card),
        "above": points(card.baselines.above_length_only),
        "slices": slice_groups(card.slices),
        "annotators": [TableRow.of_slice(each, names[each.name]) for each in card.annotators],
        "fewest_pairs": FEWEST_PAIRS,
        "fewest_prompts": FEWEST_CLUSTERS,
        "reliability": reliability_diagram(f"{run.id}-reliability", card),
        "length": length_rows(card),
        "ensemble": ensemble_rows(card),
        "ensemble_says": ensemble_says(card),
        "ceiling": ceiling_rows(card),
        "ceiling_says": ceiling_says(card),
        "best_of_n": best_of_n_plots(f"{run.id}-best-of-n", card),
        "best_of_n_says": best_of_n_says(card),
        "mistakes": [MistakeView.of(each, pairs[each.row]) for each in card.mistakes],
        "previous": previous_rows(card),
        "previous_says": previous_says(card),
        "curves": training_curves(run),
        "lineage": lineage(run, runs),
        "config": {key: value for key, value in run.record.config.items() if value is not None},
    }  # fmt: skip
    return render(Path(__file__).parent, "report.html.jinja", values)
