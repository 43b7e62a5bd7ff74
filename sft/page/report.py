"""The page of a fine-tuning: its report card in words and tables; one self-contained file.

    run.record.dropped = {"too_long": 3}
    write_report(run, runs)     # before the run is finished, so that the page is among its hashed files

It is built from report_card.json, samples.jsonl, the rows of metrics and the run's record, and from the runs that this
one descends from, so `accord report RUN` builds the same bytes again.
"""

from pathlib import Path
from typing import Any

from accord.page.lineage import lineage
from accord.page.plots import training_curves
from accord.page.render import render
from accord.page.words import coefficient, counted, share
from accord.records import read_jsonl
from accord.runs import Run, Runs
from accord.statistics import FEWEST_CLUSTERS
from accord.text_files import write_atomically
from sft.card.answers import SampleRow
from sft.card.canaries import CHANCE
from sft.page.words import MODELS, TO, cautions, difference, headline, nats, summary
from sft.report_card import ReportCard

SAMPLES_SHOWN = 20
LONGEST_SHOWN = 2_000
"""Characters of a text in the page; the whole text is in the run's files."""


def write_report(run: Run, runs: Runs) -> Path:
    """Write `report.html` into the fine-tuning's folder.

    The page shows how many rows were left out, so `run.record.dropped` has to be set by then.
    """
    path = run.path / "report.html"
    write_atomically(path, page(run, runs))
    return path


def page(run: Run, runs: Runs) -> str:
    """The page as text."""
    card = ReportCard.model_validate_json((run.path / "report_card.json").read_bytes())
    file = run.path / "samples.jsonl"
    samples = read_jsonl(file, SampleRow) if file.exists() else []
    values: dict[str, Any] = {
        "run": run.record,
        "card": card,
        "headline": headline(card),
        "summary": summary(card),
        "warnings": cautions(card),
        "models": MODELS,
        "samples": samples[:SAMPLES_SHOWN],
        "samples_kept": len(samples),
        "longest_shown": LONGEST_SHOWN,
        "fewest_rows": FEWEST_CLUSTERS,
        "chance": CHANCE,
        "nats": nats,
        "difference": difference,
        "share": lambda each: share(each).replace(" to ", TO),
        "coefficient": lambda each: coefficient(each).replace(" to ", TO),
        "counted": counted,
        "curves": training_curves(run),
        "lineage": lineage(run, runs),
        "config": {key: value for key, value in run.record.config.items() if value is not None},
    }
    return render(Path(__file__).parent, "report.html.jinja", values)
