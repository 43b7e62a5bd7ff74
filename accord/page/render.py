"""What every run's page is made of: one self-contained HTML file, the same bytes whenever it is built again.

A page asks nothing of the network: style, pictures and the one script stand in it, and its content security policy
forbids all else. Whatever a model or a person wrote is escaped by Jinja. Nothing in a page depends on when it is
built, so `accord report` can rebuild one and compare.

    render(Path("eval"), "report.html.jinja", {...}, script="...")
"""

import base64
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from accord.page.lineage import lineage
from accord.page.plots import training_curves
from accord.page.words import as_yaml, day, figure_label, label, number, percent, stage_title
from accord.runs import Run, Runs

TEMPLATES = Path(__file__).parent


def render(folder: Path, template: str, values: Mapping[str, Any], script: str = "") -> str:
    """A page from a template in `folder` (or accord's own), with a policy that lets only `script` run.

    Args:
        folder: where the template is.
        template: its name; it extends accord's `base.html.jinja`.
        values: what it may use; a name that is missing is an error.
        script: JavaScript for the page, allowed by its hash.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "; ".join(
        (
            "default-src 'none'", "style-src 'unsafe-inline'", "img-src data:", "base-uri 'none'",
            "form-action 'none'", f"script-src 'sha256-{digest}'" if script else "script-src 'none'",
        )
    )  # fmt: skip
    page = (
        _environment(folder)
        .get_template(template)
        .render(**values, script=Markup(script), content_security_policy=policy)
    )
    return "\n".join(line.rstrip() for line in page.splitlines() if line.strip()) + "\n"


@functools.cache
def _environment(folder: Path) -> Environment:
    """Compiles each template once a process, which takes longer than a page does."""
    environment = Environment(
        loader=ChoiceLoader([FileSystemLoader(folder), FileSystemLoader(TEMPLATES)]),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        number=number, signed=functools.partial(number, signed=True), percent=percent, label=label,
        figure_label=figure_label, day=day, yaml=as_yaml,
    )  # fmt: skip
    return environment


def run_page(run: Run, runs: Runs) -> str:
    """The page of any finished run: what made it, its figures and curves, and its descent."""
    return render(
        TEMPLATES, "run.html.jinja",
        {"run": run.record, "stage": stage_title(run.record), "metrics": run.metrics,
         "curves": training_curves(run), "lineage": lineage(run, runs)},
    )  # fmt: skip
