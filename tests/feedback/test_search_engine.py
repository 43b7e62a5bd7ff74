"""The SQL search engine, through the REST API that the page uses, against answers computed in view.

Twenty records, r00 to r19, whose number decides everything about them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from feedback.argilla.client import Client, Json, log_in
from feedback.argilla.server.process import Server

pytestmark = pytest.mark.slow

NUMBERS = range(20)


@pytest.fixture(scope="module")
def people(server: Server, client: Client) -> dict[str, Any]:
    """HTTP sessions of two annotators, by name."""
    return {name: log_in(server.url, name, client.set_up_annotator(name)) for name in ("eve", "fred")}


@pytest.fixture(scope="module")
def dataset(client: Client, people: dict[str, Any]) -> Iterator[Json]:
    new = {
        "name": "searched",
        "workspace_id": client.workspace_id(),
        "distribution": {"strategy": "overlap", "min_submitted": 2},
    }
    made = client.request("POST", "datasets", json=new)

    def add(what: str, **body: Any) -> Json:
        return client.request("POST", f"datasets/{made['id']}/{what}", json={"title": body["name"], **body})

    add("fields", name="prompt", required=True, settings={"type": "chat", "use_markdown": False})
    add("fields", name="answer", required=True, settings={"type": "text", "use_markdown": False})
    options = [{"value": value, "text": value} for value in ("a", "b")]
    better = add(
        "questions", name="better", required=True, settings={"type": "label_selection", "options": options}
    )
    add(
        "questions",
        name="stars",
        required=False,
        settings={"type": "rating", "options": [{"value": i} for i in range(6)]},
    )
    for name, kind in (("source", "terms"), ("length", "integer"), ("score", "float")):
        add("metadata-properties", name=name, settings={"type": kind})
    add("vectors-settings", name="direction", dimensions=2)
    client.request("PUT", f"datasets/{made['id']}/publish")

    users = {user["username"]: user["id"] for user in client.users()}
    items = []
    for i in NUMBERS:
        responses = []
        if i % 2 == 0:  # eve: submitted, "a" below 10 and "b" from there, stars i % 6
            values = {"better": {"value": "a" if i < 10 else "b"}, "stars": {"value": i % 6}}
            responses.append({"user_id": users["eve"], "status": "submitted", "values": values})
        if i % 5 == 0:  # fred: submitted "b" for 0 and 10, discarded 5 and 15
            status = "submitted" if i % 10 == 0 else "discarded"
            responses.append(
                {"user_id": users["fred"], "status": status, "values": {"better": {"value": "b"}}}
            )
        suggestion = {"question_id": better["id"], "value": "a", "score": i / 20, "agent": f"model-{i % 3}"}
        items.append(
            {
                "external_id": f"r{i:02d}",
                "fields": {
                    "prompt": [{"role": "user", "content": f"Question number {i}"}],
                    "answer": "blue sky" if i % 3 else "The sky, not blue",
                },
                "metadata": {"source": "web" if i < 5 else "book", "length": i * 10, "score": i / 4},
                "responses": responses,
                "suggestions": [suggestion] if i % 4 == 0 else [],
                "vectors": {"direction": [float(i), 10.0]},
            }
        )
    client.request("POST", f"datasets/{made['id']}/records/bulk", json={"items": items})
    yield made


def found(session: Any, dataset: Json, body: Json, own: bool = True, **params: int) -> tuple[list[int], int]:
    """The numbers of the records found, in their order, and the total."""
    path = f"{'me/' if own else ''}datasets/{dataset['id']}/records/search"
    answer = session.post(path, json=body, params={"limit": 100, **params})
    assert answer.status_code == 200, answer.text
    answer = answer.json()
    return [int(item["record"]["external_id"][1:]) for item in answer["items"]], answer["total"]


def terms(scope: Json, *values: str) -> Json:
    return {"type": "terms", "scope": scope, "values": list(values)}


def between(scope: Json, **bounds: Any) -> Json:
    return {"type": "range", "scope": scope, **bounds}


STATUS = {"entity": "response", "property": "status"}
BETTER = {"entity": "response", "question": "better"}
STARS = {"entity": "response", "question": "stars"}
SOURCE = {"entity": "metadata", "metadata_property": "source"}
LENGTH = {"entity": "metadata", "metadata_property": "length"}
SCORE = {"entity": "metadata", "metadata_property": "score"}
RECORD = {"entity": "record", "property": "status"}
AGENT = {"entity": "suggestion", "question": "better", "property": "agent"}
CONFIDENCE = {"entity": "suggestion", "question": "better", "property": "score"}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        # answers are eve's own: fred's do not count
        ([terms(STATUS, "pending")], lambda i: i % 2 == 1),
        ([terms(STATUS, "submitted")], lambda i: i % 2 == 0),
        ([terms(STATUS, "discarded")], lambda i: False),
        ([terms(STATUS, "pending", "submitted")], lambda i: True),
        ([terms(RECORD, "completed")], lambda i: i in (0, 10)),  # two submitted answers
        ([terms(STATUS, "submitted"), terms(RECORD, "pending")], lambda i: i % 2 == 0 and i not in (0, 10)),
        ([terms(BETTER, "b")], lambda i: i % 2 == 0 and i >= 10),
        ([terms(BETTER, "a", "b")], lambda i: i % 2 == 0),
        ([terms(STARS, "4")], lambda i: i % 2 == 0 and i % 6 == 4),
        ([between(STARS, ge=2, le=4)], lambda i: i % 2 == 0 and 2 <= i % 6 <= 4),
        ([terms(SOURCE, "web")], lambda i: i < 5),
        ([terms(LENGTH, "70")], lambda i: i == 7),
        ([between(LENGTH, ge=40, le=60)], lambda i: 4 <= i <= 6),
        ([between(SCORE, ge=4.5)], lambda i: i >= 18),
        ([terms(AGENT, "model-1")], lambda i: i % 4 == 0 and i % 3 == 1),
        ([between(CONFIDENCE, ge=0.5)], lambda i: i % 4 == 0 and i >= 10),
        ([terms({"entity": "record", "property": "external_id"}, "r03", "r04")], lambda i: i in (3, 4)),
        (
            [between({"entity": "record", "property": "inserted_at"}, ge="2100-01-01T00:00:00Z")],
            lambda i: False,
        ),
        ([terms(SOURCE, "book"), between(LENGTH, le=80), terms(STATUS, "pending")], lambda i: i in (5, 7)),
    ],
)
def test_filters(
    people: dict[str, Any], dataset: Json, filters: list[Json], expected: Callable[[int], bool]
) -> None:
    numbers, total = found(people["eve"], dataset, {"filters": {"and": filters}})
    wanted = [i for i in NUMBERS if expected(i)]
    assert sorted(numbers) == wanted
    assert total == len(wanted)


def test_the_owner_sees_anybodys_answers(client: Client, dataset: Json) -> None:
    numbers, _ = found(client.http, dataset, {"filters": {"and": [terms(STATUS, "discarded")]}}, own=False)
    assert sorted(numbers) == [5, 15]
    numbers, _ = found(client.http, dataset, {"filters": {"and": [terms(STATUS, "pending")]}}, own=False)
    assert sorted(numbers) == [i for i in NUMBERS if i % 2 and i % 5]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"q": "sky"}, lambda i: True),
        ({"q": '"blue sky"'}, lambda i: i % 3 != 0),
        ({"q": "sky -not"}, lambda i: i % 3 != 0),
        ({"q": "17"}, lambda i: i == 17),
        ({"q": "numb* 3 | 4"}, lambda i: i in (3, 4)),
        ({"q": "blue", "field": "prompt"}, lambda i: False),
        ({"q": "not", "field": "answer"}, lambda i: i % 3 == 0),
    ],
)
def test_text(people: dict[str, Any], dataset: Json, query: Json, expected: Callable[[int], bool]) -> None:
    numbers, total = found(people["eve"], dataset, {"query": {"text": query}})
    assert sorted(numbers) == [i for i in NUMBERS if expected(i)]
    assert total == len(numbers)


def test_sorts(people: dict[str, Any], client: Client, dataset: Json) -> None:
    def sort(session: Any, own: bool, *orders: tuple[Json, str]) -> list[int]:
        body = {"sort": [{"scope": scope, "order": order} for scope, order in orders]}
        return found(session, dataset, body, own)[0]

    eve = people["eve"]
    assert sort(eve, True, (LENGTH, "desc")) == list(reversed(NUMBERS))
    # stars: eve's answers by i % 6, then by length; records without an answer come last in both directions
    answered = [i for i in NUMBERS if i % 2 == 0]
    unanswered = [i for i in NUMBERS if i % 2 == 1]
    expected = sorted(answered, key=lambda i: (i % 6, i)) + unanswered
    assert sort(eve, True, (STARS, "asc"), (LENGTH, "asc")) == expected
    expected = sorted(answered, key=lambda i: (-(i % 6), i)) + unanswered
    assert sort(eve, True, (STARS, "desc"), (LENGTH, "asc")) == expected
    assert sort(eve, True, (SOURCE, "desc"), (SCORE, "desc"))[:6] == [4, 3, 2, 1, 0, 19]
    external_id = {"entity": "record", "property": "external_id"}
    assert sort(client.http, False, (external_id, "asc")) == list(NUMBERS)


def test_pages_hold_every_record_once(people: dict[str, Any], dataset: Json) -> None:
    pages = [found(people["eve"], dataset, {}, offset=offset, limit=6) for offset in (0, 6, 12, 18, 24)]
    assert [len(numbers) for numbers, _ in pages] == [6, 6, 6, 2, 0]
    assert {total for _, total in pages} == {20}
    assert sorted(number for numbers, _ in pages for number in numbers) == list(NUMBERS)


def test_each_annotator_has_a_random_order_of_its_own(
    people: dict[str, Any], client: Client, dataset: Json
) -> None:
    eve, fred = (found(people[name], dataset, {})[0] for name in ("eve", "fred"))
    assert sorted(eve) == sorted(fred) == list(NUMBERS)
    assert eve != fred
    assert list(NUMBERS) not in (eve, fred)
    assert found(people["eve"], dataset, {})[0] == eve
    assert found(client.http, dataset, {}, own=False)[0] == list(NUMBERS)  # as inserted


def test_similarity(people: dict[str, Any], dataset: Json) -> None:
    def nearest(**query: Any) -> list[int]:
        return found(people["eve"], dataset, {"query": {"vector": {"name": "direction", **query}}}, limit=3)[
            0
        ]

    assert nearest(value=[0.0, 1.0]) == [0, 1, 2]  # the angle of [i, 10] grows with i
    assert nearest(value=[0.0, 1.0], order="least_similar") == [19, 18, 17]
    body = {
        "query": {"vector": {"name": "direction", "value": [0.0, 1.0]}},
        "filters": {"and": [terms(SOURCE, "book")]},
    }
    assert found(people["eve"], dataset, body, limit=2)[0] == [5, 6]


def test_metrics_and_progress(people: dict[str, Any], client: Client, dataset: Json) -> None:
    path = f"me/datasets/{dataset['id']}/metadata-properties"
    properties = {each["name"]: each["id"] for each in client.request("GET", path)["items"]}
    metrics = {
        name: client.request("GET", f"metadata-properties/{each}/metrics")
        for name, each in properties.items()
    }
    counts = [{"term": "book", "count": 15}, {"term": "web", "count": 5}]
    assert metrics["source"] == {"type": "terms", "total": 20, "values": counts}
    assert metrics["length"] == {"type": "integer", "min": 0, "max": 190}
    assert metrics["score"] == {"type": "float", "min": 0.0, "max": 4.75}
    progress = client.request("GET", f"datasets/{dataset['id']}/progress")
    assert (progress["total"], progress["completed"], progress["pending"]) == (20, 2, 18)
    own = people["fred"].get(f"me/datasets/{dataset['id']}/metrics").json()["responses"]
    assert (own["submitted"], own["discarded"], own["pending"]) == (2, 2, 16)
