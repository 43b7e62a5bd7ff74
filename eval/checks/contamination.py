"""Whether the candidate was trained on what it is evaluated on.

Every file and run that the candidate descends from is compared with the items of every suite, and with the held-out
prompts; what counts as the same text is accord/data/quality/overlap.py's business, which also filters rows by it before
a training. All rows that a stage reads count, those too that only chose the model (a held-out file for early stopping):
a model that was chosen on an item has seen it.

    report = contamination(candidate, runs, {"prompts": [("h001", "Why is the sky blue?"), ...]})
    blocks(report, threshold=0.01)      # {} or, in words, why a suite is not to be trusted

Where a model was trained on a review of an evaluation's answers, what reviewers were asked about stands in the review's
comparisons; on the evaluation's other prompts and its suites nothing was trained.

A file is read only if it is still the recorded one, to the byte. What is gone or changed is `unchecked`, and what a
model from outside was trained on is `unknown`; neither is left out silently.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from accord.bundled import data_path
from accord.data.quality.overlap import How, TrainingText, find_overlaps, rank
from accord.digests import file_digest
from accord.errors import AccordError, DataError, TamperedError
from accord.models.references import Model
from accord.runs import Run, Runs
from eval.rows import Sample, SuiteItem
from sft.data import all_rows, sources_of

WORST_SHOWN = 10
PROMPTS = "prompts"
WORDS_OF_A_TEXT = 5
"""Of a column that counts as a text by itself; an item with shorter ones only is all of them together."""
OUTPUTS = {"feedback": ("comparisons.jsonl", "preferences.jsonl"), "best_of_n": ("demonstrations.jsonl",)}
"""The files that runs of a stage make and that they, or others, train on."""
NOT_TRAINED_ON = ("guidelines", "gold", "reward_function")
"""Inputs of a run that hold no rows to learn from; gold records are compared as part of comparisons.jsonl. Nor do those
that say what made an input (`runs.DataFile.origin`)."""


class Match(BaseModel):
    """One contaminated item and the training row that is most like it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    item: str
    text: str
    """The item's."""
    how: How
    share: float
    """How much of the item was found; what of, is said at accord.data.quality.overlap.Overlap."""
    source: str
    line: int
    matching: str
    """The words of the training row that are like the item's, in lower case and without punctuation."""


class SuiteOverlap(BaseModel):
    """One suite's items that are in the training data."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    suite: str
    items: int
    exact: int
    near: int
    """Edited or reordered."""
    rate: float
    """Exact and near, as a share of the items."""
    contaminated: list[str]
    """The ids of all of them, so that a score without them can be had."""
    worst: list[Match]
    """Ten at most, exact ones first."""


class Contamination(BaseModel):
    """What a candidate's training data have in common with what it is evaluated on."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    suites: list[SuiteOverlap]
    rows: int
    """Training rows that were compared."""
    sources: list[str]
    """The files they are from."""
    unchecked: list[str]
    """What could not be compared, and why, in sentences."""
    unknown: list[str]
    """Models from outside, whose training data nobody here knows, in sentences."""


@dataclass(frozen=True)
class TrainingData:
    """The files behind a model: what each is called and where it is; and what there is besides."""

    files: list[tuple[str, Path]]
    unchecked: list[str]
    unknown: list[str]
    prepared: list[Run] = field(default_factory=list)
    """Runs of data, which hold the rows of their files themselves."""

    @property
    def sources(self) -> list[str]:
        """The names of all files."""
        prepared = [source for run in self.prepared for source in sources_of(run)]
        return list(dict.fromkeys([*prepared, *(name for name, _ in self.files)]))

    def texts(self) -> Iterator[TrainingText]:
        """Every row of every file, one at a time.

        Raises:
            DataError: a line is no row of a format that accord reads.
        """
        for run in self.prepared:
            for source, place, row in all_rows(run):
                yield TrainingText(_turns(row, Path(source), place), source, place)
        for name, path in self.files:
            with path.open(encoding="utf-8", newline="\n") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield TrainingText(_turns(line, path, number), name, number)


def contamination(
    candidate: Model, runs: Runs, suites: Mapping[str, Sequence[tuple[str, str]]], files: Iterable[Path] = ()
) -> Contamination:
    """Compare everything the candidate was trained on with everything it is evaluated on.

    Args:
        candidate: the model to decide on.
        runs: where its lineage is.
        suites: by suite, an id and a text for each item; an item may have several texts, under one id.
        files: where to look for training files whose path no run recorded; found by their hash.

    Raises:
        DataError: a training file is the recorded one and yet cannot be read as rows.
    """
    data = training_data(candidate, runs, files)
    return overlap(data.texts(), suites, data.sources, data.unchecked, data.unknown)


def overlap(
    training: Iterable[TrainingText], suites: Mapping[str, Sequence[tuple[str, str]]], sources: Sequence[str] = (),
    unchecked: Sequence[str] = (), unknown: Sequence[str] = (),
) -> Contamination:  # fmt: skip
    """The same for training texts that are at hand, which are read once; the last three are only passed on."""
    rows = 0

    def counted() -> Iterator[TrainingText]:
        nonlocal rows
        for rows, text in enumerate(training, start=1):  # noqa: B007
            yield text

    named = [(suite, item, text) for suite, items in suites.items() for item, text in items]
    best: dict[str, dict[str, Match]] = {suite: {} for suite in suites}
    found = find_overlaps([text for *_, text in named], counted())
    for (suite, item, text), match in zip(named, found, strict=True):
        earlier = best[suite].get(item)
        if match and (earlier is None or rank(match.how, match.share) > rank(earlier.how, earlier.share)):
            best[suite][item] = Match(
                item=item, text=text, how=match.how, share=match.share, source=match.source, line=match.line,
                matching=match.text,
            )  # fmt: skip
    return Contamination(
        suites=[_of_suite(suite, {item for item, _ in suites[suite]}, best[suite]) for suite in suites],
        rows=rows, sources=list(sources), unchecked=list(unchecked), unknown=list(unknown),
    )  # fmt: skip


def blocks(report: Contamination, threshold: float) -> dict[str, str]:
    """Why a suite is not to be trusted, in a sentence, for each that has too many contaminated items.

    Args:
        report: from `contamination`.
        threshold: the largest share of a suite's items that may be in the training data.
    """
    return {
        suite.suite: f"{suite.exact + suite.near} of its {suite.items} items ({suite.rate:.1%}) are in the "
        f"candidate's training data, and {threshold:.1%} may be: {suite.exact} word for word and {suite.near} nearly; "
        f"the worst is {suite.worst[0].item}, in {suite.worst[0].source}, line {suite.worst[0].line}"
        for suite in report.suites
        if suite.rate > threshold
    }


def evaluated_texts(
    samples: Sequence[Sample], items: Sequence[SuiteItem]
) -> dict[str, list[tuple[str, str]]]:
    """What the candidate must not have been trained on: by suite, each item's texts; held-out prompts as "prompts"."""
    found: dict[str, list[tuple[str, str]]] = {
        PROMPTS: [(sample.id, sample.prompt[-1].text) for sample in samples if sample.sample == 0]
    }
    for item in items:
        if not item.item:  # a document of lm-eval's, whose text is not at hand
            continue
        found.setdefault(item.suite, []).extend((item.id, text) for text in texts_of(item.item))
    return found


def texts_of(columns: Mapping[str, Any]) -> list[str]:
    """The texts of an item that must not be in training data, from its columns but for id, template and group."""
    said = [value for value in columns.values() if isinstance(value, str)]
    return [value for value in said if len(value.split()) >= WORDS_OF_A_TEXT] or [" ".join(said)]


def training_data(candidate: Model, runs: Runs, files: Iterable[Path] = ()) -> TrainingData:
    """The files of all runs that a model descends from, each once, if they are still the recorded ones."""
    data = TrainingData([], [], [])
    by_digest = {file_digest(path): path for path in files}
    seen: set[str] = set()
    if candidate.run_id is None:
        data.unknown.append(_unknown(candidate.reference))
        return data
    for run in _ancestors(candidate.run_id, runs, data):
        if run.record.stage == "data":
            _add_prepared(run, runs, data)
        elif run.record.stage != "eval":
            _add_inputs(run, by_digest, data, seen)
        for name in OUTPUTS.get(run.record.stage, ()):
            if name in run.record.outputs:
                _add(f"{run.id}/{name}", run.path / name, run.record.outputs[name], data, seen)
    return data


def _ancestors(run_id: str, runs: Runs, data: TrainingData) -> Iterator[Run]:
    """The run and all that it descends from; what is not there any more is noted as unchecked."""
    waiting, seen = [run_id], {run_id}
    while waiting:
        name = waiting.pop(0)
        try:
            run = runs.load(name)
        except AccordError as error:
            data.unchecked.append(f"what {name} was trained on could not be checked: {error}")
            continue
        yield run
        for parent in run.record.parents.values():
            if parent not in seen:
                seen.add(parent)
                waiting.append(parent)


def _add_inputs(run: Run, by_digest: Mapping[str, Path], data: TrainingData, seen: set[str]) -> None:
    for role, digest in run.record.inputs.items():
        if role in NOT_TRAINED_ON or role.endswith(("/reader", "/file", "/kind")):
            continue
        if not _is_sha256(digest):
            if digest not in seen:
                seen.add(digest)
                data.unknown.append(_unknown(digest.rpartition("@")[0] or digest))
            continue
        name = _configured(role, run.record.config) or run.record.input_paths.get(role)
        if name is not None:
            _add(name, data_path(name), digest, data, seen)
        elif digest in by_digest:
            _add(str(by_digest[digest]), by_digest[digest], digest, data, seen)
        else:
            data.unchecked.append(
                f"the {role} of {run.id} (SHA-256 {digest[:12]}...) could not be checked: its path is not recorded"
            )


def _add_prepared(run: Run, runs: Runs, data: TrainingData) -> None:
    try:
        runs.check(run)
    except TamperedError as error:
        data.unchecked.append(f"what {run.id} holds could not be checked: {error}")
    else:
        data.prepared.append(run)


def _add(name: str, path: Path, digest: str, data: TrainingData, seen: set[str]) -> None:
    if digest in seen:
        return
    seen.add(digest)
    if not path.is_file():
        data.unchecked.append(f"{name} could not be checked: it is gone")
    elif file_digest(path) != digest:
        data.unchecked.append(f"{name} could not be checked: it was changed after the training read it")
    else:
        data.files.append((name, path))


def _configured(role: str, config: Mapping[str, Any]) -> str | None:
    """The path that a run's configuration has for a role of its inputs: `prompts`, or `demonstrations_0`."""
    name, _, number = role.rpartition("_")
    if number.isdecimal() and isinstance(config.get(name), list) and int(number) < len(config[name]):
        return str(config[name][int(number)]["path"])
    value = config.get(role)
    return value if isinstance(value, str) else None


def _is_sha256(digest: str) -> bool:
    """Whether it is a file's; a model's names the model, too."""
    return len(digest) == 64 and set(digest) <= set("0123456789abcdef")


def _unknown(model: str) -> str:
    return f"what {model} was trained on before is not known here, so nothing is said about it"


def _turns(line: str, path: Path, number: int) -> tuple[str, ...]:
    try:
        row = json.loads(line)
        turns = [
            each["content"]
            for name in ("prompt", "messages", "chosen", "rejected", "completion")
            for each in row.get(name) or ()
        ]
        turns += [each["text"] for each in row.get("responses") or ()]
        turns += [row["text"]] if "text" in row and not turns else []
        return tuple(str(turn) for turn in turns)
    except (ValueError, TypeError, AttributeError, KeyError):
        raise DataError(
            f"{path}:{number}: is no demonstration, prompt, preference or comparison, so what it holds cannot be "
            "compared; mend the line"
        ) from None


def _of_suite(suite: str, items: Collection[str], matches: Mapping[str, Match]) -> SuiteOverlap:
    exact = sum(match.how == "exact" for match in matches.values())
    return SuiteOverlap(
        suite=suite, items=len(items), exact=exact, near=len(matches) - exact,
        rate=len(matches) / len(items) if items else 0.0, contaminated=list(matches),
        worst=sorted(matches.values(), key=lambda each: rank(each.how, each.share), reverse=True)[:WORST_SHOWN],
    )  # fmt: skip
