"""Push comparisons to Argilla, see how far annotators are, and pull their rankings back.

push(client, "round-1", comparisons, min_submitted=2)      # again after a kill: adds only what is missing
status(client, "round-1").records_waiting                  # 0 when nobody needs to answer any more
comparisons = pull(client, "round-1", comparisons)         # reads only; may be repeated at any time
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from accord.errors import AccordError
from accord.records import Comparison, Ranking
from feedback.client import Client, Json
from feedback.tasks import (
    GUIDELINES,
    check_rankable,
    fields_of,
    original_ranks,
    question_of,
    record_of,
)

RECORDS_PER_REQUEST = 100
LONGEST_PAUSE_SECONDS = 1800.0


@dataclass(frozen=True)
class Status:
    """How far the annotation of a dataset is.

    A record waits until it has as many answers, submitted or discarded, as annotators are wanted for it. Argilla
    itself calls it completed only when enough answers are submitted, which a discarded one may prevent for ever.
    """

    records: int
    records_completed: int
    records_waiting: int
    min_submitted: int
    answers: dict[str, dict[str, int]]
    """For each annotator who answered, the number of answers by status."""


def push(client: Client, dataset_name: str, comparisons: list[Comparison], min_submitted: int) -> int:
    """Make the ranking dataset hold every comparison once, and return how many records were added.

    Args:
        client: the server.
        dataset_name: the dataset, created when it does not exist.
        comparisons: what to rank; the comparison's id is the record's external id.
        min_submitted: the number of annotators wanted for each record.

    Raises:
        AccordError: comparisons that one dataset cannot hold, or a dataset of this name with another content.
    """
    responses = check_rankable(comparisons)
    wanted = {each.id: record_of(each, dataset_name) for each in comparisons}
    dataset = client.dataset(dataset_name)
    if dataset is not None and dataset["status"] == "draft":  # a push was killed before it could be used
        client.request("DELETE", f"datasets/{dataset['id']}")
        dataset = None
    if dataset is None:
        dataset = _create_dataset(client, dataset_name, responses, min_submitted)
    elif dataset["distribution"]["min_submitted"] != min_submitted:
        raise AccordError(
            f"the dataset '{dataset_name}' asks for {dataset['distribution']['min_submitted']} annotators a record, "
            f"not {min_submitted}; use another dataset name for another number"
        )
    for record in client.records(dataset["id"]):
        new = wanted.pop(record["external_id"], None)
        if new is not None and new["fields"] != record["fields"]:
            raise AccordError(
                f"the dataset '{dataset_name}' holds other texts for the comparison '{record['external_id']}'; use "
                "another dataset name"
            )
    items = list(wanted.values())
    for start in range(0, len(items), RECORDS_PER_REQUEST):
        # an upsert by external id, so that a request that is tried again adds nothing twice
        batch = items[start : start + RECORDS_PER_REQUEST]
        client.request("PUT", f"datasets/{dataset['id']}/records/bulk", json={"items": batch})
    return len(items)


def status(client: Client, dataset_name: str) -> Status:
    """Counts of records and answers.

    Raises:
        AccordError: there is no such dataset.
    """
    dataset = client.existing_dataset(dataset_name)
    names = {user["id"]: user["username"] for user in client.users()}
    min_submitted = dataset["distribution"]["min_submitted"]
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    records = completed = waiting = 0
    for record in client.records(dataset["id"], with_responses=True):
        by_status = Counter(response["status"] for response in record["responses"])
        for response in record["responses"]:
            answers[names[response["user_id"]]][response["status"]] += 1
        records += 1
        completed += record["status"] == "completed"
        waiting += by_status["submitted"] + by_status["discarded"] < min_submitted
    return Status(
        records=records,
        records_completed=completed,
        records_waiting=waiting,
        min_submitted=min_submitted,
        answers={name: dict(sorted(counts.items())) for name, counts in sorted(answers.items())},
    )


def pull(client: Client, dataset_name: str, comparisons: list[Comparison]) -> list[Comparison]:
    """The comparisons with every annotator's ranking, in the comparisons' own order of responses.

    Ranks are exactly those that were given. Ties stay ties; discarded answers and drafts are kept with that
    status, without ranks unless they rank every response. `submitted_at` is the UTC time of the last change,
    `seconds` the time since the same annotator's previous answer (None for the first and after half an hour or
    more). Nothing is written, here or on the server.

    Raises:
        AccordError: a comparison is not in the dataset, or the record's texts are not the comparison's.
    """
    dataset = client.existing_dataset(dataset_name)
    names = {user["id"]: user["username"] for user in client.users()}
    records = {record["external_id"]: record for record in client.records(dataset["id"], with_responses=True)}
    seconds = _seconds_by_answer(
        [response for record in records.values() for response in record["responses"]]
    )
    pulled = []
    for comparison in comparisons:
        record = records.get(comparison.id)
        if record is None:
            raise AccordError(f"the dataset '{dataset_name}' has no record '{comparison.id}'; push it first")
        if record["fields"] != record_of(comparison, dataset_name)["fields"]:
            raise AccordError(
                f"the record '{comparison.id}' of '{dataset_name}' shows other texts than the comparison, so its "
                "ranks cannot be mapped back; pull with the comparisons that were pushed"
            )
        rankings = [
            Ranking(
                annotator=names[response["user_id"]],
                status=response["status"],
                ranks=original_ranks(comparison, dataset_name, response["values"]),
                seconds=seconds[response["id"]],
                submitted_at=None if response["status"] == "draft" else response["updated_at"] + "Z",
            )
            for response in record["responses"]
        ]
        rankings.sort(key=lambda ranking: ranking.annotator)
        pulled.append(comparison.model_copy(update={"rankings": rankings}))
    return pulled


def _create_dataset(client: Client, name: str, responses: int, min_submitted: int) -> Json:
    new = {
        "name": name,
        "guidelines": GUIDELINES,
        "workspace_id": client.workspace_id(),
        "allow_extra_metadata": False,
        "distribution": {"strategy": "overlap", "min_submitted": min_submitted},
    }
    dataset = client.request("POST", "datasets", json=new)
    for field in fields_of(responses):
        client.request("POST", f"datasets/{dataset['id']}/fields", json=field)
    client.request("POST", f"datasets/{dataset['id']}/questions", json=question_of(responses))
    return client.request("PUT", f"datasets/{dataset['id']}/publish")


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
