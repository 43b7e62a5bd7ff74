"""The page of a reward model: its report card in words, pictures and tables; one self-contained file.

    write_report(run, runs)     # before the run is finished, so that the page is among its hashed files
"""

from pathlib import Path

from accord.records import write_atomically
from accord.report import run_page
from accord.runs import Run, Runs


def write_report(run: Run, runs: Runs) -> Path:
    """Write `report.html` into the reward run's folder."""
    path = run.path / "report.html"
    write_atomically(path, page(run, runs))
    return path


def page(run: Run, runs: Runs) -> str:
    """The page as text."""
    return run_page(run, runs)
