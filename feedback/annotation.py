"""What the feedback stage and reviews have in common: plan records, push, wait for people, pull, settle, conclude.

    team = configured_team(config)
    queue = planned(config, run, team, select)
    have_annotated(config, runs, run, team, queue, wait=False)

These three unpack the settings that both have in common; what they call takes values. What was pulled is kept at every
pull, so a kill, or weeks of waiting for annotators, lose nothing.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.bundled import data_path
from accord.errors import WaitingForAnnotatorsError
from accord.records import Comparison, Preference, read_jsonl
from accord.runs import DataFile, Run, Runs, Source
from accord.terminal import say
from accord.text_files import write_atomically, write_jsonl
from feedback.argilla.access import end_unless_needed, open_argilla
from feedback.argilla.client import Client
from feedback.argilla.collect import changes, pull, push, status
from feedback.argilla.people import Team, set_up_people
from feedback.argilla.simulate import answer_as_simulated
from feedback.argilla.tasks import TaskKind, read_guidelines
from feedback.asking.plan import Checks, plan
from feedback.belief.agreement import Agreement, measure_agreement
from feedback.belief.kept import RELIABILITY, fitted
from feedback.belief.preferences import needs_adjudication, pairwise_preferences
from feedback.config import AnnotationConfig
from feedback.page.report import figures, write_report
from feedback.utility import SIMULATED, utility

SECONDS_BETWEEN_LOOKS = 3.0
ADJUDICATION = "-adjudication"
"""How the dataset's name ends in which disagreements are settled."""


# --- what both entries begin and end with


def files_of(config: AnnotationConfig) -> dict[str, Source]:
    """The files that annotating reads, by role."""
    files = {"gold": config.gold, "guidelines": config.guidelines}
    return {role: DataFile(data_path(file)) for role, file in files.items() if file}


def planned(
    config: AnnotationConfig, run: Run, team: Team, select: Callable[[], Sequence[Comparison]]
) -> list[Comparison]:
    """The records that annotators get: as they were planned before, or of the comparisons that `select` gives.

    Raises:
        DataError: the gold records are bad.
    """
    path = run.path / "queue.jsonl"
    if not path.exists():
        checks = Checks(
            config.duplicate_rate, data_path(config.gold) if config.gold else None, config.gold_rate
        )
        per_record = config.annotators_per_record if config.assignment == "balanced" else None
        write_jsonl(path, plan(select(), checks, team.annotators, per_record, config.seed))
    return read_jsonl(path, Comparison)


def have_annotated(
    config: AnnotationConfig,
    runs: Runs,
    run: Run,
    team: Team,
    queue: list[Comparison],
    wait: bool,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Have the planned records annotated, and finish the run with what follows from the answers.

    Args:
        config: who annotates, how, and where.
        runs: where the run is kept.
        run: the run, begun.
        team: who annotates, by name.
        queue: the records, as `planned` gives them.
        wait: look again until people have answered, instead of leaving.
        more: further figures of the run.

    Raises:
        WaitingForAnnotatorsError: people have not answered everything yet; the page stays up for them.
    """
    task = _Task(
        config.task, config.criteria,
        read_guidelines(data_path(config.guidelines)) if config.guidelines else None,
        config.annotators_per_record,
    )  # fmt: skip
    is_ours = not config.argilla_url
    is_over = config.annotators == "simulated"  # however it ends, since no people wait for the page
    try:
        with open_argilla(runs, config.argilla_url, config.port) as client:
            if config.annotators == "simulated":
                asking = _Asking(client, task, simulation_seed=config.seed)
            else:
                asking = _Asking(client, task, wait=wait)
                _show_passwords(set_up_people(client, team, config.assignment == "balanced"))
            try:
                annotated = _annotated(asking, run, queue, team.adjudicators)
            except WaitingForAnnotatorsError:
                _measured(run, read_jsonl(run.path / "comparisons.jsonl", Comparison), config.seed)
                raise
        conclude(run, annotated, config.annotators, config.seed, more)
        is_over = True
    finally:
        if is_ours and is_over:
            end_unless_needed(runs)


def conclude(
    run: Run, annotated: list[Comparison], kind: str, seed: int, more: Mapping[str, Any] | None = None
) -> None:
    """Make preferences of finished annotation, and finish the run.

    Args:
        run: the run, begun.
        annotated: every comparison with its rankings.
        kind: of the annotators, "human" or "simulated".
        seed: of the resampling behind the agreement's intervals.
        more: further figures of the run.
    """
    agreement, preferences, pairs = _measured(run, annotated, seed)
    write_jsonl(run.path / "preferences.jsonl", preferences)
    run.finish(
        {**_figures(kind, annotated, agreement, preferences, pairs), **(more or {})},
        {f"pairs_{reason}": count for reason, count in pairs.items() if reason != "kept"},
    )


def _measured(
    run: Run, annotated: list[Comparison], seed: int
) -> tuple[Agreement, list[Preference], dict[str, int]]:
    """What the answers so far say of annotators and pairs; keeps it as agreement.json and as a page."""
    reliability = fitted(run.path / RELIABILITY, annotated)
    preferences, pairs = pairwise_preferences(annotated, reliability)
    agreement = measure_agreement(annotated, reliability, seed)
    evidence = (annotated, agreement, reliability, preferences, pairs)
    found = json.dumps(figures(*evidence), indent=1, allow_nan=False) + "\n"
    write_atomically(run.path / "agreement.json", found)
    write_report(run.path / "report.html", *evidence, title=f"Feedback · {run.id}")
    return agreement, preferences, pairs


# --- asking


@dataclass(frozen=True)
class _Task:
    """What annotators are asked, and how many of them answer a record that is assigned to nobody."""

    kind: TaskKind
    criteria: tuple[str, ...]
    guidelines: str | None
    annotators_per_record: int


@dataclass(frozen=True)
class _Asking:
    """Where and how records are put before annotators: programs where there is a `simulation_seed`, else people."""

    client: Client
    task: _Task
    simulation_seed: int | None = None
    wait: bool = False
    """For people, instead of leaving."""


def _show_passwords(passwords: Mapping[str, str]) -> None:
    for name, password in passwords.items():
        say(f"feedback:   user {name}   password {password}   (shown this once)")


def _annotated(
    asking: _Asking, run: Run, queue: list[Comparison], adjudicators: Sequence[str]
) -> list[Comparison]:
    """The records with every answer, once everybody has answered, and with what adjudicators say to them."""
    path = run.path / "comparisons.jsonl"
    say(
        f"feedback: {len(queue)} records to annotate, {len(queue[0].responses)} answers each, "
        f"{sum(each.is_probe for each in queue)} of them to check attention"
    )
    annotated = _answered(asking, run.id, queue, path)
    if not adjudicators:
        return annotated

    path = run.path / "adjudication.jsonl"
    if path.exists():
        contested = read_jsonl(path, Comparison)
    else:
        by_id = {each.id: each for each in annotated}
        contested = [
            by_id[id_].model_copy(
                update={
                    "rankings": [],
                    "assigned_to": [adjudicators[i % len(adjudicators)]],
                    "display_order": list(reversed(by_id[id_].display_order or [])),
                }
            )
            for i, id_ in enumerate(needs_adjudication(annotated, fitted(run.path / RELIABILITY, annotated)))
        ]
        if not contested:
            return annotated
        write_jsonl(path, contested)
    say(
        f"feedback: annotators disagree on {len(contested)} records, which {' and '.join(adjudicators)} "
        f"{'settles' if len(adjudicators) == 1 else 'settle'}"
    )
    settled = {
        each.id: [ranking.model_copy(update={"adjudicates": True}) for ranking in each.rankings]
        for each in _answered(asking, run.id + ADJUDICATION, contested, path)
    }
    annotated = [
        each.model_copy(update={"rankings": [*each.rankings, *settled.get(each.id, [])]})
        for each in annotated
    ]
    write_jsonl(run.path / "comparisons.jsonl", annotated)
    return annotated


def _answered(asking: _Asking, dataset_name: str, records: list[Comparison], path: Path) -> list[Comparison]:
    """Push the records, wait for their answers, and keep them in `path` as they come."""
    client, task = asking.client, asking.task
    push(
        client, dataset_name, records, task.annotators_per_record, task.kind, task.criteria, task.guidelines
    )  # fmt: skip
    if asking.simulation_seed is not None:
        answer_as_simulated(
            client,
            dataset_name,
            annotators_per_record=task.annotators_per_record,
            seed=asking.simulation_seed,
        )
        waiting = 0
    else:
        waiting = _wait_for_people(client, dataset_name, records, asking.wait)
    before = read_jsonl(path, Comparison) if path.exists() else records
    answered = pull(client, dataset_name, before)
    write_jsonl(path, answered)
    found = changes(before, answered)
    say(
        f"feedback: pulled {found.new} new answers, {found.edited} edited, {found.deleted} deleted, "
        f"{found.unchanged} as before"
    )
    if waiting:
        raise WaitingForAnnotatorsError(
            f"{waiting} records wait for annotators at {client.url}; run the same command again when they are "
            "annotated (the page stays up until then; `accord feedback stop` ends it)"
        )
    return answered


def _wait_for_people(client: Client, dataset_name: str, records: list[Comparison], wait: bool) -> int:
    """How many records still wait for answers, at once or, with `wait`, when none does or Ctrl-C is pressed."""
    waiting = status(client, dataset_name, records).records_waiting
    if not waiting:
        return 0
    say(f"feedback: rank the answers in your browser at {client.url}")
    try:
        while wait and waiting:
            began = time.monotonic()
            now = status(client, dataset_name, records)
            if now.records_waiting != waiting:
                waiting = now.records_waiting
                say(f"feedback: {now.records - waiting} of {now.records} records are annotated")
            time.sleep(max(SECONDS_BETWEEN_LOOKS, 10 * (time.monotonic() - began)))
    except KeyboardInterrupt:
        say("")
    return waiting


def _figures(
    kind: str,
    comparisons: list[Comparison],
    agreement: Agreement,
    preferences: list[Preference],
    pairs: dict[str, int],
) -> dict[str, Any]:
    asked = [comparison for comparison in comparisons if not comparison.is_probe]
    rankings = [ranking for comparison in comparisons for ranking in comparison.rankings]
    submitted = [r for r in rankings if r.status == "submitted" and r.ranks is not None]
    found = {
        "annotators_kind": kind,
        "annotators": sorted(agreement.annotators),
        "comparisons": len(asked),
        "gold_records": agreement.gold_records,
        "duplicates": agreement.duplicates,
        "rankings_submitted": len(submitted),
        "rankings_discarded": sum(r.status == "discarded" for r in rankings),
        "rankings_deleted": sum(r.status == "deleted" for r in rankings),
        "rankings_with_ties": sum(len(set(r.ranks or [])) < len(r.ranks or []) for r in submitted),
        "comparisons_adjudicated": sum(any(r.adjudicates for r in c.rankings) for c in asked),
        "responses_flagged_harmful": sum(
            any(i in (r.harmful or []) for r in c.rankings) for c in asked for i in range(len(c.responses))
        ),
        "pairs": sum(count for reason, count in pairs.items() if reason != "probe"),
        "preferences": len(preferences),
        "krippendorff_alpha": agreement.alpha_pairs.value if agreement.alpha_pairs else None,
        "annotators_to_look_at": sorted({warning.annotator for warning in agreement.warnings}),
    }
    if kind == "simulated" and all(name.startswith(SIMULATED) for name in agreement.annotators):
        # programs' opinions are this formula; it says nothing of people's
        utilities = [utility(c.prompt, r.text) for c in asked for r in c.responses]
        found["mean_utility"] = sum(utilities) / len(utilities)
    return found
