"""The page of a run of data: what was read, what was left out, and what an epoch shows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accord.page.render import render
from accord.runs import Run
from accord.text_files import write_atomically


def write_page(run: Run, metrics: Mapping[str, Any]) -> None:
    """Write `report.html` into the run's folder, before it is finished, so that it is among its hashed files."""
    write_atomically(run.path / "report.html", page(run, metrics))


def page(run: Run, metrics: Mapping[str, Any]) -> str:
    """The page as text, from the run's files and figures."""
    files = json.loads((run.path / "files.json").read_text(encoding="utf-8"))
    values = {"run": run.record, "metrics": metrics, "files": files}
    return render(Path(__file__).parent, "data.html.jinja", values)
