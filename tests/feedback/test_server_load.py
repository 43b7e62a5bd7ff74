"""Many annotators at once, and `kill -9` in the middle: no answer that was acknowledged is lost, none is doubled.

Scaled down by default; ACCORD_LOAD_ANSWERS=3000 ACCORD_LOAD_KILLS=10 runs it at full size (some minutes on two cores).
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from feedback_helpers import free_port

from feedback.argilla.client import Client, Json, connect, log_in
from feedback.argilla.server.process import Server, revive, start, stop

pytestmark = pytest.mark.slow

ANNOTATORS = 16
ANSWERS = int(os.environ.get("ACCORD_LOAD_ANSWERS", "192"))
KILLS = int(os.environ.get("ACCORD_LOAD_KILLS", "2"))
ANSWERS_PER_RECORD = 2
RECORDS = ANSWERS // ANSWERS_PER_RECORD
MOST_SECONDS_WITHOUT_A_SERVER = 60.0


@dataclass
class Annotator:
    """Somebody at the page: takes the queue's next record, answers, and notes what the server acknowledged."""

    name: str
    url: str
    password: str
    acknowledged: dict[str, int] = field(default_factory=dict)  # stars by record id
    times: list[float] = field(default_factory=list)
    tries_again: int = 0

    def answer(self, dataset_id: str, wanted: int) -> None:
        session = self.until_answered(lambda: log_in(self.url, self.name, self.password))
        pending = [
            {"type": "terms", "scope": {"entity": "response", "property": "status"}, "values": ["pending"]},
            {"type": "terms", "scope": {"entity": "record", "property": "status"}, "values": ["pending"]},
        ]
        path = f"me/datasets/{dataset_id}/records/search"
        body = {"filters": {"and": pending}}
        while len(self.acknowledged) < wanted:
            found = self.until_answered(lambda: session.post(path, json=body, params={"limit": 10}))
            assert found.status_code == 200, found.text
            page = found.json()
            if not page["items"]:
                return
            for item in page["items"][: wanted - len(self.acknowledged)]:
                self.submit(session, item["record"]["id"])

    def submit(self, session: httpx.Client, record_id: str) -> None:
        stars = int(record_id[-1], 16) % 5 + 1
        answer = {"status": "submitted", "values": {"stars": {"value": stars}}}
        started = time.perf_counter()
        tries = self.tries_again
        done = self.until_answered(lambda: session.post(f"records/{record_id}/responses", json=answer))
        # a request whose answer was lost with the server may have been done: then the second is refused
        assert done.status_code == 201 or (done.status_code == 409 and self.tries_again > tries), done.text
        self.times.append(time.perf_counter() - started)
        assert record_id not in self.acknowledged
        self.acknowledged[record_id] = stars

    def until_answered(self, ask: Any) -> Any:
        deadline = time.monotonic() + MOST_SECONDS_WITHOUT_A_SERVER
        while True:
            try:
                return ask()
            except httpx.TransportError:
                assert time.monotonic() < deadline, "the server did not come back"
                self.tries_again += 1
                time.sleep(0.1)


def build(client: Client) -> str:
    """A dataset of `RECORDS` texts to give stars to; its id."""
    new = {
        "name": "load",
        "workspace_id": client.workspace_id(),
        "distribution": {"strategy": "overlap", "min_submitted": ANSWERS_PER_RECORD},
    }
    dataset = f"datasets/{client.request('POST', 'datasets', json=new)['id']}"
    text = {"name": "text", "title": "Text", "required": True, "settings": {"type": "text"}}
    client.request("POST", f"{dataset}/fields", json=text)
    settings = {"type": "rating", "options": [{"value": i} for i in range(1, 6)]}
    stars = {"name": "stars", "title": "Stars", "required": True, "settings": settings}
    client.request("POST", f"{dataset}/questions", json=stars)
    client.request("PUT", f"{dataset}/publish")
    for first in range(0, RECORDS, 500):
        items = [{"fields": {"text": f"Text {i}"}} for i in range(first, min(first + 500, RECORDS))]
        client.request("POST", f"{dataset}/records/bulk", json={"items": items})
    return dataset.removeprefix("datasets/")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = start(tmp_path, free_port())
    yield started
    stop(tmp_path)


def hire(server: Server, client: Client) -> list[Annotator]:
    names = [f"annotator-{i:02d}" for i in range(ANNOTATORS)]
    return [Annotator(name, server.url, client.set_up_annotator(name)) for name in names]


def check(client: Client, dataset_id: str, annotators: list[Annotator]) -> Counter[str]:
    """Whether the server has just what was acknowledged, once, and every status is right; the statuses counted."""
    names = {user["id"]: user["username"] for user in client.users()}
    stored: dict[tuple[str, str], list[int]] = {}
    statuses: Counter[str] = Counter()
    for record in client.records(dataset_id, with_responses=True):
        responses = [each for each in record["responses"] if each["status"] == "submitted"]
        for each in responses:
            key = (names[each["user_id"]], record["id"])
            stored.setdefault(key, []).append(each["values"]["stars"]["value"])
        right = "completed" if len(responses) >= ANSWERS_PER_RECORD else "pending"
        assert record["status"] == right, (
            f"{record['id']} with {len(responses)} answers is {record['status']}"
        )
        statuses[right] += 1
    expected = {
        (each.name, record): [stars] for each in annotators for record, stars in each.acknowledged.items()
    }
    assert stored == expected
    return statuses


def progress_is(client: Client, dataset_id: str, statuses: Counter[str]) -> None:
    progress: Json = client.request("GET", f"datasets/{dataset_id}/progress")
    assert {status: progress[status] for status in statuses} == dict(statuses)


def test_sixteen_annotators_at_once(server: Server) -> None:
    client = connect(server.url, server.api_key)
    dataset_id = build(client)
    annotators = hire(server, client)
    cpu = sum(psutil.Process(server.pid).cpu_times()[:2])
    started = time.perf_counter()
    with ThreadPoolExecutor(ANNOTATORS) as pool:
        list(pool.map(lambda each: each.answer(dataset_id, RECORDS), annotators))
    wall = time.perf_counter() - started
    cpu = sum(psutil.Process(server.pid).cpu_times()[:2]) - cpu
    statuses = check(client, dataset_id, annotators)
    assert statuses == {"completed": RECORDS}  # nobody's queue holds anything any more
    progress_is(client, dataset_id, statuses)
    answers = sum(len(each.acknowledged) for each in annotators)
    assert answers >= ANSWERS  # a record that two are at when a third completes it has more
    times = sorted(second for each in annotators for second in each.times)
    print(
        f"\n{answers} answers of {ANNOTATORS} annotators: {wall:.1f} s, server {cpu:.1f} s of CPU; an answer's median "
        f"{1000 * times[len(times) // 2]:.0f} ms, 99th percentile {1000 * times[len(times) * 99 // 100]:.0f} ms"
    )


def test_nothing_acknowledged_is_lost_by_kill_9(server: Server) -> None:
    client = connect(server.url, server.api_key)
    dataset_id = build(client)
    annotators = hire(server, client)
    finished = threading.Event()
    killed = 0

    def kill_and_revive() -> None:
        nonlocal killed
        alive = server
        for number in range(1, KILLS + 1):
            while sum(len(each.acknowledged) for each in annotators) < number * ANSWERS / (KILLS + 1):
                if finished.wait(0.01):
                    return
            process = psutil.Process(alive.pid)
            process.kill()
            psutil.wait_procs([process])
            killed += 1
            alive = revive(alive)
            assert alive.url == server.url
            assert alive.pid != process.pid

    with ThreadPoolExecutor(ANNOTATORS + 1) as pool:
        killing = pool.submit(kill_and_revive)
        try:
            list(pool.map(lambda each: each.answer(dataset_id, RECORDS), annotators))
        finally:
            finished.set()
        killing.result()
    assert killed == KILLS
    assert sum(each.tries_again for each in annotators) > 0
    statuses = check(client, dataset_id, annotators)
    assert statuses == {"completed": RECORDS}
    progress_is(client, dataset_id, statuses)
