"""SIMULATED annotators: programs that rank through the requests a person's browser makes.

They exist so that a round can be run and tested without people. Their opinions are `feedback.utility`, a formula, and
say nothing about what people prefer. Everything a person can see of them begins with "simulated".

    answer_as_simulated(client, "round-1", seed=0)

Each is a user of its own who logs in with a password, asks for the queue of pending records as the page does, sees
the responses in the displayed order, and posts an answer in the page's form. Four kinds come with accord:

    simulated_careful       follows the utility closely
    simulated_noisy         follows it roughly
    simulated_prefers_long  adds a bonus for every word
    simulated_always_first  mostly ranks in the order in which the responses stand
"""

import hashlib
import itertools
import math
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from accord.progress import progress
from accord.records import Message
from accord.terminal import say
from feedback.argilla.client import WORKSPACE, Client, Json, RefusedError, log_in, request, workspace_of
from feedback.argilla.tasks import PAIRWISE, RANKING, as_read
from feedback.utility import utility

RECORDS_PER_PAGE = 10  # what the web page asks for at a time
TIE_THRESHOLD = 0.02
DISCARD_BELOW = 0.25


@dataclass(frozen=True)
class SimulatedAnnotator:
    """One simulated annotator: the shared utility, with noise and a bias of its own.

    `noise` is the standard deviation added to each response's utility, `bonus_per_word` is added for every word,
    and with the probability `follows_display` the responses are ranked as they stand, unread.
    """

    username: str
    noise: float
    bonus_per_word: float = 0.0
    follows_display: float = 0.0

    def felt(
        self, prompt: Sequence[Message], displayed: Sequence[str], record_id: str, seed: int
    ) -> list[float] | None:
        """How good each displayed response seems, or None to discard the record.

        The same annotator, record and seed always give the same answer. The record is discarded when every
        response's utility is under 0.25.
        """
        chance = _random(seed, self.username, record_id)
        if chance.random() < self.follows_display:
            return [1 - place / len(displayed) for place in range(len(displayed))]
        utilities = [utility(prompt, text) for text in displayed]
        if max(utilities) < DISCARD_BELOW:
            return None
        return [
            value + self.bonus_per_word * len(text.split()) + chance.gauss(0, self.noise)
            for value, text in zip(utilities, displayed, strict=True)
        ]


SIMULATED_ANNOTATORS = (
    SimulatedAnnotator("simulated_careful", noise=0.03),
    SimulatedAnnotator("simulated_noisy", noise=0.20),
    SimulatedAnnotator("simulated_prefers_long", noise=0.05, bonus_per_word=0.01),
    SimulatedAnnotator("simulated_always_first", noise=0.10, follows_display=0.8),
)


def ranks_with_ties(values: Sequence[float], threshold: float) -> list[int]:
    """Ranks of values, the highest first; one that is within `threshold` of the best of a group shares its rank.

    For example [0.50, 0.90, 0.51, 0.20] with 0.02 gives [2, 1, 2, 3].
    """
    ranks = [0] * len(values)
    rank, best = 0, math.inf
    for index in sorted(range(len(values)), key=lambda index: -values[index]):
        if rank == 0 or best - values[index] > threshold:
            rank, best = rank + 1, values[index]
        ranks[index] = rank
    return ranks


def assigned(
    annotators: Sequence[SimulatedAnnotator], record_id: str, annotators_per_record: int, seed: int
) -> list[str]:
    """The usernames of those who answer a record: a random draw, always the same for one record and seed."""
    names = [annotator.username for annotator in annotators]
    return _random(seed, "assignment", record_id).sample(names, min(annotators_per_record, len(names)))


def answer_as_simulated(
    client: Client,
    dataset_name: str,
    annotators: Sequence[SimulatedAnnotator] = SIMULATED_ANNOTATORS,
    annotators_per_record: int | None = None,
    seed: int = 0,
) -> int:
    """Let simulated annotators answer what is pending in a dataset, and return the number of answers given.

    Answers that exist already are left alone, so a call after a kill gives only those that are missing.

    Args:
        client: the owner's session, which creates the annotators (with new passwords that nobody keeps).
        dataset_name: a dataset made by `feedback.argilla.collect.push`; where its records are assigned, each annotator
            answers those of its own workspace.
        annotators: who answers, at the same time, each in its own session.
        annotators_per_record: how many of them answer each record that is not assigned; None for all.
        seed: of the draw of annotators and of their noise.

    Raises:
        AccordError: there is no such dataset, or the server fails.
    """
    wanted = annotators_per_record or len(annotators)
    is_assigned = client.dataset(dataset_name) is None
    queues = []
    for annotator in annotators:
        workspace = workspace_of(annotator.username) if is_assigned else WORKSPACE
        dataset = client.dataset(dataset_name, workspace)
        if dataset is not None:
            password = client.set_up_annotator(annotator.username, workspaces=[workspace])
            queues.append(
                (annotator, log_in(client.url, annotator.username, password, client.revive), dataset)
            )
    if not queues:
        client.existing_dataset(dataset_name)  # says that there is none
    counts = {
        dataset["id"]: client.request("GET", f"datasets/{dataset['id']}/progress")["total"]
        for _, _, dataset in queues
    }
    total = sum(counts.values()) * (1 if is_assigned else min(wanted, len(annotators)))
    given = itertools.count(1)
    must_stop = threading.Event()

    def answer_queue(
        annotator: SimulatedAnnotator, http: httpx.Client, dataset: Json, show: Callable[[float], None]
    ) -> int:
        questions = {
            each["name"] for each in request(http, "GET", f"datasets/{dataset['id']}/questions")["items"]
        }
        answers = skipped = 0
        answers_of_this_pass = 0
        while not must_stop.is_set():
            page, pending = _pending(http, dataset["id"], offset=skipped)
            if not page and not answers_of_this_pass and pending == skipped:
                break
            if not page:  # records that others completed have left the queue, so look at its beginning again
                skipped = answers_of_this_pass = 0
            for record in page:
                chosen = assigned(annotators, record["external_id"], wanted, seed)
                if not is_assigned and annotator.username not in chosen:
                    skipped += 1
                    continue
                _answer(http, annotator, questions, record, seed)
                answers += 1
                answers_of_this_pass += 1
                show(next(given))
                if must_stop.is_set():
                    break
        return answers

    what = f"simulated annotators answer '{dataset_name}'"
    with progress(what, total) as show, ThreadPoolExecutor(len(queues)) as pool:
        futures = [pool.submit(answer_queue, *queue, show) for queue in queues]
        try:
            answers = sum(future.result() for future in futures)
        finally:
            must_stop.set()
            for _, session, _ in queues:
                # a session is closed after its thread is done, which `must_stop` brings about
                pool.submit(session.close)
    say(f"{what}: {answers} answers given")
    return answers


def _pending(http: httpx.Client, dataset_id: str, offset: int) -> tuple[list[dict[str, Any]], int]:
    """One page of the user's queue, asked for in the web page's words, and how many records the whole queue has."""
    pending = [
        {"type": "terms", "scope": {"entity": entity, "property": "status"}, "values": ["pending"]}
        for entity in ("response", "record")
    ]
    found = request(
        http,
        "POST",
        f"me/datasets/{dataset_id}/records/search",
        params={"include": ["responses", "suggestions"], "offset": offset, "limit": RECORDS_PER_PAGE},
        json={"query": {}, "filters": {"and": pending}},
    )
    return [item["record"] for item in found["items"]], found["total"]


def _answer(
    http: httpx.Client, annotator: SimulatedAnnotator, questions: set[str], record: dict[str, Any], seed: int
) -> None:
    """Read a record as it is displayed, and post the answer or the discard in the page's form."""
    fields = record["fields"]
    prompt = [
        Message(role=message["role"], content=as_read(message["content"])) for message in fields["prompt"]
    ]
    displayed = [as_read(fields[f"response_{position}"]) for position in range(1, len(fields))]
    felt = annotator.felt(prompt, displayed, record["external_id"], seed)
    if felt is None:
        answer: dict[str, Any] = {"status": "discarded", "values": {}}
    else:
        values = {name: {"value": value} for name, value in answers_from(felt, questions).items()}
        answer = {"status": "submitted", "values": values}
    try:
        request(http, "POST", f"records/{record['id']}/responses", json=answer)
    except RefusedError as error:
        if error.status_code != 409:  # 409: an earlier try of this very request did arrive
            raise


def answers_from(felt: Sequence[float], questions: set[str]) -> dict[str, Any]:
    """What an annotator who finds the displayed responses so good answers to the required questions, by name.

    Values within 0.02 of the best one of a group tie with it in a ranking; one of two is slightly better up to a
    difference of 0.1 and much better from 0.3; a rating is 1 + 4 x the value, rounded, between 1 and 5.
    """
    values: dict[str, Any] = {}
    for name in questions:
        if name == RANKING:
            ranks = ranks_with_ties(felt, TIE_THRESHOLD)
            values[name] = [
                {"value": f"response_{place}", "rank": rank} for place, rank in enumerate(ranks, start=1)
            ]
        elif name == PAIRWISE:
            difference = felt[0] - felt[1]
            size = sum(abs(difference) > threshold for threshold in (0.1, 0.3))
            strength = ("slightly_better", "better", "much_better")[size]
            winner = "first" if difference > 0 else "second"
            values[name] = "tie" if abs(difference) <= TIE_THRESHOLD else f"{winner}_{strength}"
        elif name.startswith("rating_"):
            position = int(name.rpartition("_")[2])
            values[name] = round(min(5.0, max(1.0, 1 + 4 * felt[position - 1])))
    return values


def _random(seed: int, *parts: str) -> random.Random:
    digest = hashlib.sha256("\n".join([str(seed), *parts]).encode()).digest()
    return random.Random(int.from_bytes(digest[:8]))
