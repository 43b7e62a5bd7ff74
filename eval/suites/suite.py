"""Suites: what they are called, where they are, and the pages that say what they measure.

A suite is a folder with two files. `README.md` is its page, for people; it begins, as the hub's data set cards do, with
a head for programs:

    ---
    pretty_name: Which of two sentences is likelier
    license: apache-2.0
    accord:
      kind: sentence_pairs          # a module of eval/suites/kinds: what the columns are and what is measured
      family: bias                  # bias, safety or quality: which metrics may raise a false alarm together
      source: written for accord
      directions: {refused: lower}  # only where the kind leaves open which values are better
    ---

`items.jsonl` has one item a line. The suites that come with accord are in eval/suites/data and go by the folder's
name; a user's own is named by its path, `suites/triage` or `./triage`; `public:<name>` is a published data set
(eval/suites/public). A suite's metrics are named after it: `sentence_pairs/lean`.
"""

import dataclasses
import functools
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from accord.errors import DataError, UsageError
from accord.records import describe, read_jsonl
from eval.suites.kind import ByLikelihood, Kind, SuiteRow
from eval.suites.metrics import Direction, Metric

DATA = Path(__file__).parent / "data"
KINDS = Path(__file__).parent / "kinds"
PUBLIC = "public:"
HEAD = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


class _Accord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str
    family: Literal["bias", "safety", "quality"]
    source: str
    directions: dict[str, Direction] = {}
    items: str = "items.jsonl"
    """Another suite's items, by a path relative to the page."""
    package: str | None = None
    """The package that brings a published data set, with its version."""


class _Head(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    pretty_name: str
    license: str
    accord: _Accord


@dataclass(frozen=True)
class Suite:
    """A suite without its items."""

    name: str
    title: str
    kind: Kind
    family: str
    license: str
    source: str
    text: str
    """The page's text below its head, Markdown."""
    file: Path
    """Of the items; it may be missing for a published data set that is not installed."""
    metrics: Mapping[str, Metric]
    """By their full names, such as "sentence_pairs/lean"."""
    is_public: bool = False

    @property
    def is_by_likelihood(self) -> bool:
        """Whether the items are scored by log-likelihood; otherwise the models answer."""
        return isinstance(self.kind, ByLikelihood)

    @property
    def measures(self) -> str:
        """The page's first paragraph after "What it measures."."""
        match = re.search(r"\*\*What it measures\.\*\*\s*(.+?)(?:\n\n|\Z)", self.text, re.DOTALL)
        return " ".join(match.group(1).split()) if match else ""


def shipped() -> list[str]:
    """The names of the suites that come with accord."""
    return sorted(page.parent.name for page in DATA.glob("*/README.md"))


def kinds() -> list[str]:
    """The names of all kinds."""
    return sorted(file.stem for file in KINDS.glob("[!_]*.py"))


@functools.cache
def find_suite(reference: str) -> Suite:
    """A suite by its name, its path, or as `public:<name>`; its items are not read.

    Raises:
        UsageError: there is no such suite.
        DataError: its page is not one.
    """
    if reference.startswith(PUBLIC):
        from eval.suites.public.adapters import file_of, page_of

        name = reference.removeprefix(PUBLIC)
        return _suite(name, page_of(name), lambda head: file_of(name), is_public=True)
    folder = Path(reference) if "/" in reference or reference in (".", "..") else DATA / reference
    page = folder / "README.md"
    if not page.is_file():
        if folder.parent == DATA:
            raise UsageError(
                f"there is no suite '{reference}'; there are {', '.join(shipped())}. Name one of your own by its "
                f"folder (./{reference}), and a published one as {PUBLIC}{reference}"
            )
        raise UsageError(
            f"{page}: no such file; a suite is a folder with a page README.md and its items.jsonl"
        )
    return _suite(folder.resolve().name, page, lambda head: folder / head.accord.items)


def _suite(name: str, page: Path, items: Any, is_public: bool = False) -> Suite:
    text = page.read_text(encoding="utf-8")
    match = HEAD.match(text)
    if match is None:
        raise DataError(f"{page}: has no head between two lines of ---, which names the suite's kind")
    try:
        head = _Head.model_validate(yaml.safe_load(match.group(1)))
    except yaml.YAMLError as error:
        raise DataError(f"{page}: its head is no YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise DataError(f"{page}: {describe(error)}") from None
    about = head.accord
    if about.kind not in kinds():
        raise DataError(f"{page}: there is no kind '{about.kind}'; there are {', '.join(kinds())}")
    kind: Kind = importlib.import_module(f"eval.suites.kinds.{about.kind}").KIND
    names = [metric.name for metric in kind.metrics]
    for wrong in about.directions.keys() - set(names):
        raise DataError(
            f"{page}: directions: kind {about.kind} has no metric '{wrong}', only {', '.join(names)}"
        )
    metrics = {
        f"{name}/{metric.name}": dataclasses.replace(
            metric, name=f"{name}/{metric.name}", label=f"{head.pretty_name}: {_lower_first(metric.label)}",
            family=about.family, direction=about.directions.get(metric.name, metric.direction),
        )
        for metric in kind.metrics
    }  # fmt: skip
    return Suite(
        name=name, title=head.pretty_name, kind=kind, family=about.family, license=head.license,
        source=about.source, text=text[match.end() :], file=items(head), metrics=metrics, is_public=is_public,
    )  # fmt: skip


def _lower_first(text: str) -> str:
    """Without a capital at its front, unless the whole first word is in capitals."""
    word = text.split(" ", 1)[0]
    return text if len(word) > 1 and word.isupper() else text[:1].lower() + text[1:]


def read_items(suite: Suite, at_most: int | None = None) -> list[SuiteRow]:
    """A suite's items, the first ones of the file where only so many are wanted.

    Raises:
        DataError: a bad line, an id that occurs twice, or fewer than two items.
        UsageError: a published data set that is not installed.
    """
    if suite.is_public:
        from eval.suites.public.adapters import rows

        found = [_public_row(suite, i, row) for i, row in enumerate(rows(suite.name))]
    else:
        found = read_jsonl(suite.file, suite.kind.row)
    seen: set[str] = set()
    for row in found:
        if row.id in seen:
            raise DataError(f"{suite.file}: the id '{row.id}' occurs twice; give every item its own")
        seen.add(row.id)
    found = found[:at_most]
    if len(found) < 2:
        raise DataError(f"{suite.file}: holds {len(found)} items; a comparison needs at least two")
    return found


def _public_row(suite: Suite, number: int, row: Mapping[str, Any]) -> SuiteRow:
    try:
        return suite.kind.row.model_validate(row)
    except ValidationError as error:
        raise DataError(f"{suite.file}: item {number + 1}: {describe(error)}") from None
