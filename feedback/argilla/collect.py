"""Push comparisons to Argilla, see how far annotators are, and pull their answers back.

    push(client, "round-1", comparisons, min_submitted=2)      # again after a kill: adds only what is missing
    status(client, "round-1", comparisons).records_waiting     # 0 when nobody needs to answer any more
    comparisons = pull(client, "round-1", comparisons)         # reads only; may be repeated at any time

Comparisons without `assigned_to` stand in one dataset that every annotator sees, and go to whoever comes first.
Assigned ones stand in a dataset of the same name in each assigned annotator's own workspace, because Argilla itself
knows no assignment of records.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from accord.errors import AccordError
from accord.records import Comparison, Ranking
from feedback.argilla.client import WORKSPACE, Client, Json, workspace_of
from feedback.argilla.tasks import (
    TaskKind,
    check_rankable,
    fields_of,
    guidelines_of,
    questions_of,
    ranking_from_page,
    record_id,
    record_of,
)

RECORDS_PER_REQUEST = 100
LONGEST_PAUSE_SECONDS = 1800.0


@dataclass(frozen=True)
class Status:
    """How far the annotation of a dataset is.

    A record waits until it has as many answers, submitted or discarded, as annotators are wanted for it. Argilla
    itself calls it completed only when enough answers are submitted, which a discarded one may prevent for ever.
    A comparison that is assigned to three annotators counts as three records.
    """

    records: int
    records_completed: int
    records_waiting: int
    answers: dict[str, dict[str, int]]
    """For each annotator who answered, the number of answers by status."""


@dataclass(frozen=True)
class Changes:
    """What a pull found, against the pull before: numbers of answers."""

    new: int = 0
    edited: int = 0
    deleted: int = 0
    unchanged: int = 0


def push(
    client: Client,
    dataset_name: str,
    comparisons: list[Comparison],
    min_submitted: int,
    task: TaskKind = "ranking",
    criteria: tuple[str, ...] = (),
    guidelines: str | None = None,
) -> int:
    """Make the dataset hold every comparison once for those who shall answer, and return how many records were added.

    Args:
        client: the server.
        dataset_name: the dataset, created when it does not exist.
        comparisons: what to annotate.
        min_submitted: the number of annotators wanted for each record that is not assigned to anybody.
        task: what annotators are asked; `criteria` are those of ratings.
        guidelines: the page's guidelines, below what the task asks; None for accord's own.

    Raises:
        AccordError: comparisons that one dataset cannot hold, or a dataset of this name with another content.
    """
    responses = check_rankable(comparisons)
    if task == "pairwise" and responses != 2:
        raise AccordError(f"a pairwise comparison is between 2 responses; these comparisons have {responses}")
    new = {
        "name": dataset_name,
        "guidelines": guidelines_of(task, guidelines),
        "allow_extra_metadata": False,
    }
    questions = questions_of(task, responses, criteria)
    added = 0
    for workspace, queue in _queues(comparisons).items():
        wanted = 1 if queue[0].assigned_to else min_submitted
        dataset = client.dataset(dataset_name, workspace)
        if dataset is not None and dataset["status"] == "draft":  # a push was killed before it could be used
            client.request("DELETE", f"datasets/{dataset['id']}")
            dataset = None
        if dataset is None:
            options = new | {"distribution": {"strategy": "overlap", "min_submitted": wanted}}
            dataset = _create_dataset(client, workspace, options, fields_of(responses), questions)
        elif dataset["distribution"]["min_submitted"] != wanted:
            raise AccordError(
                f"the dataset '{dataset_name}' asks for {dataset['distribution']['min_submitted']} annotators a "
                f"record, not {wanted}; use another dataset name for another number"
            )
        added += _add_records(client, dataset, queue)
    return added


def status(client: Client, dataset_name: str, comparisons: list[Comparison]) -> Status:
    """Counts of records and answers, over every dataset that the comparisons stand in.

    Raises:
        AccordError: there is no such dataset.
    """
    names = {user["id"]: user["username"] for user in client.users()}
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    records = completed = waiting = 0
    for dataset, _ in _datasets(client, dataset_name, comparisons):
        for record in client.records(dataset["id"], with_responses=True):
            by_status = Counter(response["status"] for response in record["responses"])
            for response in record["responses"]:
                answers[names[response["user_id"]]][response["status"]] += 1
            records += 1
            completed += record["status"] == "completed"
            given = by_status["submitted"] + by_status["discarded"]
            waiting += given < dataset["distribution"]["min_submitted"]
    return Status(
        records=records,
        records_completed=completed,
        records_waiting=waiting,
        answers={name: dict(sorted(counts.items())) for name, counts in sorted(answers.items())},
    )


def pull(client: Client, dataset_name: str, comparisons: list[Comparison]) -> list[Comparison]:
    """The comparisons with every annotator's answer, in the comparisons' own order of responses.

    Ranks are exactly those that were given. Ties stay ties; discarded answers and drafts are kept with that
    status, without ranks unless they rank every response. `submitted_at` is the UTC time of the last change,
    `seconds` the time since the same annotator's previous answer (None for the first and after half an hour or
    more). Nothing is written on the server.

    Give the comparisons as an earlier pull returned them, and an answer edited since replaces the old one, and one
    that the server does not have any more (its user or record was deleted) is kept with the status `deleted`.

    Raises:
        AccordError: a comparison is not in the dataset, or the record's texts are not the comparison's.
    """
    names = {user["id"]: user["username"] for user in client.users()}
    found: dict[str, list[Json]] = {comparison.id: [] for comparison in comparisons}
    for dataset, queue in _datasets(client, dataset_name, comparisons):
        records = {
            record["external_id"]: record for record in client.records(dataset["id"], with_responses=True)
        }
        for comparison in queue:
            record = records.get(record_id(dataset_name, comparison.id))
            if record is None:
                if comparison.rankings:
                    continue  # it was there when those were pulled
                raise AccordError(
                    f"the dataset '{dataset_name}' has no record '{comparison.id}'; push it first"
                )
            if record["fields"] != record_of(comparison, dataset_name)["fields"]:
                raise AccordError(
                    f"the record '{comparison.id}' of '{dataset_name}' shows other texts than the comparison, so its "
                    "ranks cannot be mapped back; pull with the comparisons that were pushed"
                )
            found[comparison.id] += record["responses"]
    seconds = _seconds_by_answer([answer for answers in found.values() for answer in answers])
    pulled = []
    for comparison in comparisons:
        rankings = {
            ranking.annotator: ranking.model_copy(update={"status": "deleted"})
            for ranking in comparison.rankings
            if not ranking.adjudicates  # those stand in another dataset
        }
        for answer in sorted(found[comparison.id], key=lambda answer: answer["updated_at"]):
            name = names[answer["user_id"]]
            rankings[name] = Ranking(
                annotator=name,
                status=answer["status"],
                seconds=seconds[answer["id"]],
                submitted_at=None if answer["status"] == "draft" else answer["updated_at"] + "Z",
                **ranking_from_page(comparison, dataset_name, answer["values"]),
            )
        pulled.append(
            comparison.model_copy(update={"rankings": [rankings[name] for name in sorted(rankings)]})
        )
    return pulled


def changes(before: list[Comparison], after: list[Comparison]) -> Changes:
    """What is different between two pulls of the same comparisons."""
    counts = Counter[str]()
    for old, new in zip(before, after, strict=True):
        known = {ranking.annotator: ranking for ranking in old.rankings if not ranking.adjudicates}
        for ranking in new.rankings:
            previous = known.get(ranking.annotator)
            if previous is None:
                counts["new"] += 1
            elif ranking.status == "deleted" != previous.status:
                counts["deleted"] += 1
            elif ranking.model_copy(update={"seconds": previous.seconds}) != previous:
                counts["edited"] += 1
            else:
                counts["unchanged"] += 1
    return Changes(**counts)


def _queues(comparisons: list[Comparison]) -> dict[str, list[Comparison]]:
    """The comparisons of each workspace: the common one, or that of each annotator whom one is assigned to."""
    queues: dict[str, list[Comparison]] = defaultdict(list)
    for comparison in comparisons:
        names = comparison.assigned_to
        for workspace in [workspace_of(name) for name in names] if names else [WORKSPACE]:
            queues[workspace].append(comparison)
    if WORKSPACE in queues and len(queues) > 1:
        raise AccordError("either all comparisons of one dataset are assigned to annotators, or none is")
    return queues


def _datasets(
    client: Client, dataset_name: str, comparisons: list[Comparison]
) -> Iterator[tuple[Json, list[Comparison]]]:
    for workspace, queue in _queues(comparisons).items():
        yield client.existing_dataset(dataset_name, workspace), queue


def _create_dataset(
    client: Client, workspace: str, options: Json, fields: list[Json], questions: list[Json]
) -> Json:
    dataset = client.request(
        "POST", "datasets", json=options | {"workspace_id": client.workspace_id(workspace)}
    )
    for field in fields:
        client.request("POST", f"datasets/{dataset['id']}/fields", json=field)
    for question in questions:
        client.request("POST", f"datasets/{dataset['id']}/questions", json=question)
    return client.request("PUT", f"datasets/{dataset['id']}/publish")


def _add_records(client: Client, dataset: Json, comparisons: list[Comparison]) -> int:
    wanted = {}
    for comparison in comparisons:
        record = record_of(comparison, dataset["name"])
        wanted[record["external_id"]] = (comparison.id, record)
    for record in client.records(dataset["id"]):
        id_, new = wanted.pop(record["external_id"], (None, None))
        if new is not None and new["fields"] != record["fields"]:
            raise AccordError(
                f"the dataset '{dataset['name']}' holds other texts for the comparison '{id_}'; use another dataset "
                "name"
            )
    items = [record for _, record in wanted.values()]
    for start in range(0, len(items), RECORDS_PER_REQUEST):
        # an upsert by external id, so that a request that is tried again adds nothing twice
        batch = items[start : start + RECORDS_PER_REQUEST]
        client.request("PUT", f"datasets/{dataset['id']}/records/bulk", json={"items": batch})
    return len(items)


def _seconds_by_answer(answers: list[dict[str, Any]]) -> dict[str, float | None]:
    """For each answer's id, the seconds since its annotator's previous answer was first saved.

    Argilla does not record when a record was opened.
    """
    by_annotator: dict[str, list[tuple[datetime, str]]] = defaultdict(list)
    for answer in answers:
        saved_at = datetime.fromisoformat(answer["inserted_at"]).replace(tzinfo=UTC)
        by_annotator[answer["user_id"]].append((saved_at, answer["id"]))
    seconds: dict[str, float | None] = {}
    for saved in by_annotator.values():
        saved.sort()
        previous: datetime | None = None
        for saved_at, answer_id in saved:
            pause = (saved_at - previous).total_seconds() if previous else None
            seconds[answer_id] = pause if pause is not None and pause < LONGEST_PAUSE_SECONDS else None
            previous = saved_at
    return seconds
