"""Suites: what they are called, where they are, and the pages that say what they measure.

A suite is a folder with two files. `README.md` is its page, for people; it begins, as the hub's data set cards do, with
a head for programs:

    ---
    pretty_name: Which of two sentences is likelier
    license: apache-2.0
    accord:
      kind: sentence_pairs          # a module of eval/suites/kinds: what the columns are and what is measured;
                                    # or one of your own, `my_kind.py:KIND`, by a path relative to the page
      family: bias                  # bias, safety or quality: which metrics may raise a false alarm together
      source: written for accord
      directions: {refused: lower}  # only where the kind leaves open which values are better
      labels: ["yes", "no"]         # only for the kind labelled, where every answer is one of a few
      risk: privacy_leakage         # only where the kind does not say which risk it is about (eval/suites/risks.py)
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

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from accord.config import load_yaml
from accord.errors import DataError, UsageError
from accord.records import read_jsonl
from accord.text_files import describe, read_text
from accord.user_code import Place, load, locate
from eval.suites.kind import Answered, ByLikelihood, Kind, Rated, SuiteRow
from eval.suites.labels import kind_of
from eval.suites.metrics import Direction, Metric
from eval.suites.risks import Risk, risk_of

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
    labels: tuple[str, ...] = ()
    """For the kind `labelled`, where every answer is one of a few (eval/suites/labels.py)."""

    risk: Risk | None = None
    """What the items are about, where the kind does not say it."""
    package: str | None = None
    """The package that brings a published data set, with its version."""

    @field_validator("labels", mode="before")
    @classmethod
    def _are_texts(cls, labels: Any) -> Any:
        if isinstance(labels, list) and any(isinstance(each, bool) for each in labels):
            raise ValueError(
                "YAML takes yes, no, true, false, on and off for truth values; write them in quotes"
            )
        return labels


class _Head(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    pretty_name: str
    license: str
    accord: _Accord


@dataclass(frozen=True)
class _Page:
    """A suite's page as it stands there, read anew whenever a suite is looked for."""

    name: str
    path: Path
    text: str
    is_public: bool


@dataclass(frozen=True)
class Suite:
    """A suite without its items."""

    name: str
    title: str
    kind: Kind
    family: str
    risk: Risk | None
    """What its items are about, where that is known."""
    license: str
    source: str
    text: str
    """The page's text below its head, Markdown."""
    file: Path
    """Of the items; it may be missing for a published data set that is not installed."""
    metrics: Mapping[str, Metric]
    """By their full names, such as "sentence_pairs/lean"."""
    is_public: bool = False
    kind_file: Path | None = None
    """Of a kind that is a user's."""

    @property
    def files(self) -> dict[str, Path]:
        """What the suite's figures depend on, by name: `triage` are its items, `triage/kind` a user's kind."""
        return {self.name: self.file} | ({f"{self.name}/kind": self.kind_file} if self.kind_file else {})

    @property
    def is_by_likelihood(self) -> bool:
        """Whether the items are scored by log-likelihood; otherwise the models answer."""
        return isinstance(self.kind, ByLikelihood)

    @property
    def rates(self) -> Rated | None:
        """What a classifier or a judge may say of the answers (`eval.raters`)."""
        return self.kind.rates if isinstance(self.kind, Answered) else None

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


def find_suite(reference: str) -> Suite:
    """A suite by its name, its path, or as `public:<name>`; its items are not read. A kind that is a user's is run.

    Raises:
        UsageError: there is no such suite, or its kind cannot be loaded.
        DataError: its page is not one.
    """
    page = _page(reference)
    place = _kind_place(page)
    return _suite(page, place, place.digest if place else "")


def suite_files(reference: str) -> dict[str, Path]:
    """The same as `find_suite(reference).files`, and nothing of a user's is run.

    Raises:
        UsageError: there is no such suite, or the file of its kind is gone.
        DataError: its page is not one.
    """
    page = _page(reference)
    place = _kind_place(page)
    kind = {f"{page.name}/kind": place.file} if place else {}
    return {page.name: _items_file(page), **kind}


def _page(reference: str) -> _Page:
    if reference.startswith(PUBLIC):
        from eval.suites.public.adapters import page_of

        name = reference.removeprefix(PUBLIC)
        path = page_of(name)
        return _Page(name, path, _text(path), is_public=True)
    folder = Path(reference) if "/" in reference or reference in (".", "..") else DATA / reference
    path = folder / "README.md"
    if not path.is_file():
        if folder.parent == DATA:
            raise UsageError(
                f"there is no suite '{reference}'; there are {', '.join(shipped())}. Name one of your own by its "
                f"folder (./{reference}), and a published one as {PUBLIC}{reference}"
            )
        raise UsageError(
            f"{path}: no such file; a suite is a folder with a page README.md and its items.jsonl"
        )
    return _Page(folder.resolve().name, path, _text(path), is_public=False)


def _text(path: Path) -> str:
    return read_text(path).replace("\r\n", "\n")


@functools.cache
def _head(page: _Page) -> _Head:
    match = HEAD.match(page.text)
    if match is None:
        raise DataError(f"{page.path}: has no head between two lines of ---, which names the suite's kind")
    try:
        return _Head.model_validate(load_yaml(match.group(1)))
    except ValidationError as error:
        raise DataError(f"{page.path}: {describe(error)}") from None
    except ValueError as error:
        raise DataError(f"{page.path}: its head is no YAML: {error}") from None


def _items_file(page: _Page) -> Path:
    if page.is_public:
        from eval.suites.public.adapters import file_of

        return file_of(page.name)
    return page.path.parent / _head(page).accord.items


def _kind_place(page: _Page) -> Place | None:
    """Where a suite's own kind stands; None for one of accord's."""
    name = _head(page).accord.kind
    if ".py:" in name:
        return locate(str(page.path.parent / name), "kind")
    if name not in kinds():
        raise DataError(
            f"{page.path}: there is no kind '{name}'; there are {', '.join(kinds())}, or write file.py:NAME for one "
            "of your own"
        )
    return None


@functools.cache
def _suite(page: _Page, place: Place | None, digest: str) -> Suite:
    """The suite of a page, with the kind as it is in a file of this digest, or accord's own."""
    head = _head(page)
    name, about = page.name, head.accord
    kind: Kind
    if place:
        kind = load(place, "kind")
        if not isinstance(kind, ByLikelihood | Answered):
            raise DataError(
                f"{page.path}: kind {about.kind} is {type(kind).__name__}, not ByLikelihood or Answered of "
                "eval.suites.kind"
            )
    else:
        kind = importlib.import_module(f"eval.suites.kinds.{about.kind}").KIND
    if about.labels:
        if about.kind != "labelled":
            raise DataError(f"{page.path}: labels: the kind {about.kind} has none; only labelled has")
        try:
            kind = kind_of(about.labels)
        except ValueError as error:
            raise DataError(f"{page.path}: {error}") from None
    names = [metric.name for metric in kind.metrics]
    for wrong in about.directions.keys() - set(names):
        raise DataError(
            f"{page.path}: directions: kind {about.kind} has no metric '{wrong}', only {', '.join(names)}"
        )
    metrics = {
        f"{name}/{metric.name}": dataclasses.replace(
            metric, name=f"{name}/{metric.name}", label=f"{head.pretty_name}: {_lower_first(metric.label)}",
            family=about.family, direction=about.directions.get(metric.name, metric.direction),
        )
        for metric in kind.metrics
    }  # fmt: skip
    directions = {metric.name.split("/")[-1]: metric.direction for metric in metrics.values()}
    risk = about.risk or risk_of(about.kind, directions)
    return Suite(
        name=name, title=head.pretty_name, kind=kind, family=about.family, risk=risk, license=head.license,
        source=about.source, text=HEAD.sub("", page.text), file=_items_file(page), metrics=metrics,
        is_public=page.is_public, kind_file=place.file if place else None,
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
        if "\\u0000" in row.model_dump_json():
            raise DataError(
                f"{row.place}: holds the character NUL (\\u0000), which no prompt should; leave it out"
            )
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
