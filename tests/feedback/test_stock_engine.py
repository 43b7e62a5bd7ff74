"""Our SQL search engine against the stock OpenSearch engine: the same database, the same queries, three users.

The stock engine talks to osmem-server, an in-memory OpenSearch. Both servers answer from one database: ours has it,
the stock one gets a copy and indexes it. What differs must be listed in `DIFFERENCES` with the upstream bug that
explains it, and what is listed there must be seen.
"""

import itertools
import os
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from feedback_helpers import free_port

from accord.bootstrap import argilla_python
from feedback.argilla.client import Client, Json, connect, log_in
from feedback.argilla.server.process import Server, start, stop

pytestmark = pytest.mark.slow

RECORDS = 30
PASSWORD = "a password for the tests"
PEOPLE = ("owner", "olga", "hugo")

TEXTS = [
    "Rayleigh scattering makes the sky blue; the-end",
    "Unicorn_magic and magic unicorns don't exist",
    "naïve Éclairs cost 3.50 at example.com, or 1,000 for a crowd",
    "the end of the blue sky",
    "MAGIC is what Rayleigh scattering is not",
    "日本語 の テキスト and 東京タワー",
    "C++ isn't C#; foo-bar_baz/qux a.b.c U.S.A.",
    "magic rayleigh end end end, unicorns: blue",
]
AGENTS = ("model-a", "model b", "model-c")


# how many of their own answers have which status, by the arithmetic of `build`: olga has answered every third record,
# hugo every fifth
OWN_ANSWERS = {
    "olga": {"submitted": 10, "draft": 0, "discarded": 0},
    "hugo": {"submitted": 2, "draft": 2, "discarded": 2},
}


def terms(scope: Json, *values: str) -> Json:
    return {"type": "terms", "scope": scope, "values": list(values)}


def between(scope: Json, **bounds: Any) -> Json:
    return {"type": "range", "scope": scope, **bounds}


def answer(question: str) -> Json:
    return {"entity": "response", "question": question}


def metadata(name: str) -> Json:
    return {"entity": "metadata", "metadata_property": name}


def record(name: str) -> Json:
    return {"entity": "record", "property": name}


def suggestion(question: str, name: str) -> Json:
    return {"entity": "suggestion", "question": question, "property": name}


STATUS = {"entity": "response", "property": "status"}


def filters() -> dict[str, Json]:
    """Every kind of filter with several values, by name."""
    statuses = ("pending", "draft", "submitted", "discarded")
    made = {}
    for size in (1, 2, 3, 4):
        for chosen in itertools.combinations(statuses, size):
            made[f"status {'+'.join(chosen)}"] = terms(STATUS, *chosen)
    for status in ("pending", "completed"):
        made[f"record {status}"] = terms(record("status"), status)
    made["record pending+completed"] = terms(record("status"), "pending", "completed")
    for values in (["a"], ["b"], ["tie"], ["a", "tie"], ["nothing"]):
        made[f"better {values}"] = terms(answer("better"), *values)
        made[f"suggested better {values}"] = terms(suggestion("better", "value"), *values)
    for values in (["x"], ["y", "z"], ["z"]):
        made[f"tags {values}"] = terms(answer("tags"), *values)
        made[f"suggested tags {values}"] = terms(suggestion("tags", "value"), *values)
    for values in (["3"], ["0", "5"]):
        made[f"stars {values}"] = terms(answer("stars"), *values)
        made[f"suggested stars {values}"] = terms(suggestion("stars", "value"), *values)
    for bounds in ({"ge": 2}, {"le": 2}, {"ge": 1, "le": 4}, {"ge": 9}):
        made[f"stars {bounds}"] = between(answer("stars"), **bounds)
        made[f"suggested stars {bounds}"] = between(suggestion("stars", "value"), **bounds)
    for bounds in ({"ge": 0.5}, {"le": 0.25}, {"ge": 0.2, "le": 0.8}):
        made[f"suggestion score {bounds}"] = between(suggestion("better", "score"), **bounds)
        made[f"suggestion scores {bounds}"] = between(suggestion("tags", "score"), **bounds)
    for agents in (["model-a"], ["model b", "model-c"], ["model"]):
        made[f"agent {agents}"] = terms(suggestion("better", "agent"), *agents)
    for kind in ("model", "human"):
        made[f"suggestion type {kind}"] = terms(suggestion("stars", "type"), kind)
    for values in (["web"], ["book", "mail"], ["Web"], ["two words"]):
        made[f"source {values}"] = terms(metadata("source"), *values)
    for values in (["7"], ["7", "14", "700"]):
        made[f"length {values}"] = terms(metadata("length"), *values)
    for values in (["2.5"], ["1.0"], ["1"]):
        made[f"score {values}"] = terms(metadata("score"), *values)
    for bounds in ({"ge": 10}, {"le": 10}, {"ge": 7, "le": 14}, {"ge": 7.5}):
        made[f"length {bounds}"] = between(metadata("length"), **bounds)
        made[f"score {bounds}"] = between(metadata("score"), **bounds)
    for values in (["r05"], ["r05", "r06", "nobody"]):
        made[f"external id {values}"] = terms(record("external_id"), *values)
    for name in ("inserted_at", "updated_at"):
        made[f"{name} from 2100"] = between(record(name), ge="2100-01-01T00:00:00Z")
        made[f"{name} to 2100"] = between(record(name), le="2100-01-01T00:00:00Z")
        made[f"{name} from 2000, no zone"] = between(record(name), ge="2000-01-01T00:00:00")
        made[f"{name} from 2000 by zone"] = between(record(name), ge="2000-01-01T00:00:00+02:00")
    return made


def text_queries() -> list[str]:
    words = ["magic", "MAGIC", "unicorns", "unicorn", "the", "end", "blue", "zebra", "user", "User", "system"]
    words += ["éclairs", "eclairs", "Naïve", "don't", "don", "isn't", "3.50", "3", "50", "1,000", "000"]
    words += ["example.com", "example", "com", "unicorn_magic", "a.b.c", "U.S.A.", "u.s.a", "C++", "C#", "c"]
    words += [
        "日本語",
        "日",
        "東京",
        "タワー",
        "タ",
        "question",
        "number",
        "17",
        "the-end",
        "foo-bar_baz",
        "qux",
    ]
    phrases = ['"blue sky"', '"sky blue"', '"the end"', '"the-end"', '"magic"', '"Rayleigh scattering makes"']
    phrases += ['"end end"', '"makes the blue"', '"question number 17"', '"blue the end"', '"don\'t exist"']
    prefixes = [
        "ray*",
        "RAY*",
        "unicorn*",
        "us*",
        "the-e*",
        "mag* uni*",
        "日*",
        "exam*",
        "don*",
        "zzz*",
        "*",
        "*ray",
    ]
    prefixes += ['"the en"*', "3.*", "unicorn_*"]
    joined = [
        "magic rayleigh",
        "magic + rayleigh",
        "magic | rayleigh",
        "magic | blue end",
        "blue end | magic",
    ]
    joined += [
        "magic | rayleigh | zebra",
        "zebra | lion",
        "(magic | blue) end",
        "(zebra | lion) blue",
        "magic|blue",
    ]
    joined += [
        "magic (blue | end) unicorns",
        "magic+blue",
        "(magic blue) | (the sky)",
        "((magic))",
        "magic | (end -the)",
    ]
    negated = [
        "-magic",
        "magic -unicorns",
        "-magic -blue",
        "--magic",
        "magic | -blue",
        '-"blue sky"',
        "-(magic | blue)",
    ]
    negated += ["- magic", "-ray*", "blue -sky | magic", "magic-blue", "-user", "-zebra"]
    odd = [
        "sky | (",
        ")) blue",
        "...",
        "-",
        "magic ...",
        "'; DROP TABLE records; --",
        '"',
        'magic "',
        "()",
        "magic ()",
    ]
    odd += [
        "\\-magic",
        "\\magic",
        "ma\\gic*",
        "magic |",
        "| magic",
        "magic OR blue",
        "magic AND blue",
        "NOT magic",
        "NEAR",
    ]
    odd += [
        "blue:sky",
        "fields.prompt:magic",
        "magic^2",
        "ma?ic",
        "[a TO z]",
        "  magic  ",
        "magic\tblue",
        "_",
        "«magic»",
    ]
    loose = [
        "magik~1",
        "magik~",
        "blu~",
        "zebbra~2",
        "Rayliegh~1",
        "Rayliegh~2",
        "usr~1",
        "magic~0",
        "~",
        "magic~1 blue",
    ]
    loose += [
        '"blue the"~1',
        '"blue the"~2',
        '"makes sky"~1',
        '"makes sky"~2',
        '"end sky"~9',
        '"the end"~',
        '"sky the"~3',
    ]
    return words + phrases + prefixes + joined + negated + odd + loose


def sorts() -> dict[str, list[Json]]:
    """Every sort, both ways; the external id breaks ties."""
    scopes = {
        "length": metadata("length"),
        "score": metadata("score"),
        "source": metadata("source"),
        "stars": answer("stars"),
        "suggested stars": suggestion("stars", "value"),
        "suggestion score": suggestion("better", "score"),
        "suggestion agent": suggestion("better", "agent"),
        "inserted": record("inserted_at"),
        "updated": record("updated_at"),
        "record status": record("status"),
        "external id": record("external_id"),
        "id": record("id"),
    }
    last = {"scope": record("external_id"), "order": "asc"}
    made = {
        f"{name} {order}": [{"scope": scope, "order": order}, last]
        for name, scope in scopes.items()
        for order in ("asc", "desc")
    }
    made["source then length"] = [
        {"scope": metadata("source"), "order": "desc"},
        {"scope": metadata("length"), "order": "asc"},
        last,
    ]
    return made


def queries() -> dict[str, Json]:
    """Every search, by a name that says what it is."""
    made: dict[str, Json] = {"everything": {}}
    made |= {f"filter {name}": {"filters": {"and": [each]}} for name, each in filters().items()}
    made |= {f"text {q}": {"query": {"text": {"q": q}}} for q in text_queries()}
    for q in (
        "magic",
        "user",
        '"the end"',
        "ray*",
        "-magic",
        "magic | blue",
        "question",
        "...",
        "magic ...",
        "us*",
    ):
        for field in ("prompt", "answer_a", "answer_b"):
            made[f"text {q} in {field}"] = {"query": {"text": {"q": q, "field": field}}}
    made |= {f"sort {name}": {"sort": each} for name, each in sorts().items()}
    known = filters()
    pairs = [
        ("status submitted", "source ['web']"),
        ("status pending", "record pending"),
        ("better ['a']", "stars {'ge': 2}"),
    ]
    pairs += [("status pending+draft", "length {'ge': 10}"), ("agent ['model-a']", "score {'le': 10}")]
    for first, second in pairs:
        made[f"filters {first} and {second}"] = {"filters": {"and": [known[first], known[second]]}}
    made["text, filter and sort"] = {
        "query": {"text": {"q": "magic -zebra"}},
        "filters": {"and": [known["status pending+draft+submitted"], known["length {'le': 10}"]]},
        "sort": sorts()["length desc"],
    }
    return made


@dataclass(frozen=True)
class Difference:
    """Searches whose answers differ, by their names, and the upstream bug that explains it."""

    bug: str
    names: tuple[str, ...]


# None is left. What differs besides the searches has a test of its own below: a user's own progress.
DIFFERENCES: tuple[Difference, ...] = ()


def build(client: Client) -> str:
    """A dataset with every kind of field, question, metadata, suggestion and answer; its id."""
    new = {
        "name": "compared",
        "workspace_id": client.workspace_id(),
        "distribution": {"strategy": "overlap", "min_submitted": 2},
    }
    dataset_id = client.request("POST", "datasets", json=new)["id"]

    def add(what: str, **body: Any) -> Json:
        return client.request("POST", f"datasets/{dataset_id}/{what}", json={"title": body["name"], **body})

    add("fields", name="prompt", required=True, settings={"type": "chat"})
    for name in ("answer_a", "answer_b"):
        add("fields", name=name, required=False, settings={"type": "text"})
    labels = {
        name: [{"value": value, "text": value} for value in name.split()] for name in ("a b tie", "x y z")
    }
    stars = [{"value": i} for i in range(6)]
    questions = {
        "better": {"type": "label_selection", "options": labels["a b tie"]},
        "tags": {"type": "multi_label_selection", "options": labels["x y z"]},
        "stars": {"type": "rating", "options": stars},
        "order": {"type": "ranking", "options": labels["a b tie"]},
        "why": {"type": "text"},
    }
    ids = {
        name: add("questions", name=name, required=name == "better", settings=settings)["id"]
        for name, settings in questions.items()
    }
    for name, kind in (("source", "terms"), ("length", "integer"), ("score", "float")):
        add("metadata-properties", name=name, settings={"type": kind})
    add("vectors-settings", name="direction", dimensions=3)
    client.request("PUT", f"datasets/{dataset_id}/publish")
    users = {user["username"]: user["id"] for user in client.users()}
    random = np.random.default_rng(0)
    items = []
    for i in range(RECORDS):
        values = {
            "better": {"value": ("a", "b", "tie")[i % 3]},
            "stars": {"value": i % 6},
            "tags": {"value": ["x", "y"] if i % 2 else ["z"]},
            "order": {"value": [{"value": v, "rank": 1} for v in ("a", "b", "tie")]},
        }
        responses = []
        if i % 3 == 0:
            responses.append({"user_id": users["olga"], "status": "submitted", "values": values})
        if i % 5 == 0:
            status = ("draft", "submitted", "discarded")[i % 3]
            other = {"better": {"value": "b"}, "stars": {"value": (i + 2) % 6}}
            responses.append({"user_id": users["hugo"], "status": status, "values": other})
        if i % 7 == 0:
            responses.append({"user_id": users["owner"], "status": "discarded", "values": {}})
        suggestions: list[Json] = []
        if i % 2 == 0:
            suggestions.append(
                {
                    "question_id": ids["better"],
                    "value": "ab"[i % 4 // 2],
                    "score": i / RECORDS,
                    "agent": AGENTS[i % 3],
                }
            )
        if i % 4 == 0:
            many = {"value": ["x", "z"], "score": [0.5, 0.2]} if i % 8 else {"value": ["y"], "score": [0.9]}
            suggestions.append({"question_id": ids["tags"], **many})
        if i % 6 == 0:
            kind = "model" if i % 12 else "human"
            suggestions.append({"question_id": ids["stars"], "value": i // 6 % 6, "type": kind})
        prompt = [{"role": "user", "content": f"Question number {i}: {TEXTS[i % 3]}"}]
        if i % 10 == 0:
            prompt.insert(0, {"role": "system", "content": "Answer the question."})
        fields: Json = {"prompt": prompt, "answer_a": TEXTS[i % 8]}
        if i % 4:
            fields["answer_b"] = TEXTS[(i * 3 + 1) % 8]
        meta = {
            "source": ["web", "book"] if i % 6 == 5 else ["web", "book", "two words"][i % 3],
            "length": i,
            "score": i / 4,
        }
        items.append(
            {
                "external_id": f"r{i:02d}",
                "fields": fields,
                "metadata": {} if i % 11 == 10 else meta,
                "responses": responses,
                "suggestions": suggestions,
                "vectors": {"direction": random.normal(size=3).tolist()} if i % 9 else {},
            }
        )
    client.request("POST", f"datasets/{dataset_id}/records/bulk", json={"items": items})
    return dataset_id


@dataclass(frozen=True)
class Both:
    """Sessions by user's name with our server and the stock one, on equal data."""

    ours: dict[str, httpx.Client]
    stock: dict[str, httpx.Client]
    dataset_id: str

    def search(self, person: str, body: Json, **params: int) -> tuple[Json, Json]:
        """Both servers' answers to one search, as status code, external ids in order, and total."""
        prefix = "" if person == "owner" else "me/"
        path = f"{prefix}datasets/{self.dataset_id}/records/search"
        found = []
        for sessions in (self.ours, self.stock):
            answered = sessions[person].post(path, json=body, params={"limit": 100, **params})
            page = answered.json() if answered.status_code == 200 else {"items": [], "total": -1}
            ids = [item["record"]["external_id"] for item in page["items"]]
            found.append({"status": answered.status_code, "ids": ids, "total": page["total"]})
        return found[0], found[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own: the stock engine cannot index what other tests do (a discarded answer without values)."""
    if argilla_python() is None:
        pytest.skip("no environment with argilla-server; `make setup` builds it")
    home = tmp_path_factory.mktemp("argilla")
    yield start(home, free_port())
    stop(home)


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return connect(server.url, server.api_key)


@pytest.fixture(scope="module")
def both(server: Server, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder: Path = tmp_path_factory.mktemp("stock")
    for person in PEOPLE[1:]:
        client.set_up_annotator(person, PASSWORD)
    dataset_id = build(client)
    with sqlite3.connect(server.home / "argilla.db") as ours, sqlite3.connect(folder / "copy.db") as copy:
        ours.backup(copy)
    python = argilla_python()
    assert python is not None
    binary = subprocess.run(
        [python, "-c", "import osmem_server; print(osmem_server.resolve_binary())"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    if not binary:
        pytest.skip("osmem-server, which stands for OpenSearch, has no build for this machine")
    engine_port, port = free_port(), free_port()
    engine = subprocess.Popen(
        [binary, "--addr", f"127.0.0.1:{engine_port}", "--parent-pid", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    script = Path(__file__).parent / "stock_argilla.py"
    log = (folder / "server.log").open("wb")
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "TMPDIR": str(folder)}
    stock = subprocess.Popen(
        [python, "-P", script, folder / "copy.db", str(port), f"http://127.0.0.1:{engine_port}"],
        stdout=log,
        stderr=log,
        env=environment,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert stock.poll() is None, (folder / "server.log").read_text()[-3000:]
            try:
                httpx.get(f"{url}/api/v1/version")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        passwords = {"owner": server.password, **dict.fromkeys(PEOPLE[1:], PASSWORD)}
        yield Both(
            {person: log_in(server.url, person, password) for person, password in passwords.items()},
            {person: log_in(url, person, password) for person, password in passwords.items()},
            dataset_id,
        )
    finally:
        for process in (stock, engine):
            process.send_signal(signal.SIGKILL)
            process.wait()
        log.close()


def test_every_search_answers_as_the_stock_engine_does(both: Both) -> None:
    named = queries()
    assert len(named) >= 200
    unexplained, seen = [], set()
    for name, body in named.items():
        for person in PEOPLE:
            ours, stock = both.search(person, body)
            if "sort" not in body:  # the order is random by user, or by relevance
                ours["ids"].sort()
                stock["ids"].sort()
            if ours == stock:
                continue
            known = [each for each in DIFFERENCES if name in each.names]
            seen.update(each.bug for each in known)
            if not known:
                missing, extra = set(stock["ids"]) - set(ours["ids"]), set(ours["ids"]) - set(stock["ids"])
                same = f"same records, ours {ours['ids'][:9]}, stock {stock['ids'][:9]}"
                what = (
                    f"missing {sorted(missing)[:9]}, extra {sorted(extra)[:9]}" if missing or extra else same
                )
                totals = f"totals {ours['total']} and {stock['total']}"
                unexplained.append(f"{person}: {name}: {totals}, {what}")
    assert not unexplained, "\n".join(unexplained)
    assert seen == {each.bug for each in DIFFERENCES}, "a listed difference is gone"


def test_metadata_metrics_and_progress(both: Both) -> None:
    properties = both.ours["owner"].get(f"me/datasets/{both.dataset_id}/metadata-properties").json()["items"]
    for each in properties:
        path = f"metadata-properties/{each['id']}/metrics"
        ours, stock = both.ours["owner"].get(path).json(), both.stock["owner"].get(path).json()
        assert ours == stock, each["name"]
        assert ours["type"] == each["settings"]["type"]
    path = f"datasets/{both.dataset_id}/progress"
    assert both.ours["owner"].get(path).json() == both.stock["owner"].get(path).json()


def test_own_progress_differs_by_the_stock_engines_bug(both: Both) -> None:
    """`get_dataset_user_progress` counts `responses.status` of every answer to a record that the user answered."""
    path = f"me/datasets/{both.dataset_id}/metrics"
    for person, own in OWN_ANSWERS.items():
        ours = both.ours[person].get(path).json()["responses"]
        assert {status: ours[status] for status in own} == own
        assert ours["total"] == RECORDS
        assert ours["pending"] == RECORDS - sum(own.values())
    stock = both.stock["hugo"].get(path).json()["responses"]
    # olga submitted answers to two of hugo's six records, and the owner discarded one
    assert {status: stock[status] for status in ("submitted", "draft", "discarded")} != OWN_ANSWERS["hugo"]


def test_random_order_is_a_stable_permutation_of_each_users_own(both: Both) -> None:
    orders = {}
    for sessions in (both.ours, both.stock):
        for person in PEOPLE[1:]:
            path = f"me/datasets/{both.dataset_id}/records/search"
            pages = [
                sessions[person].post(path, json={}, params={"limit": 12, "offset": offset}).json()["items"]
                for offset in (0, 12, 24, 0)
            ]
            ids = [[item["record"]["external_id"] for item in page] for page in pages]
            assert ids[3] == ids[0]
            orders[person, sessions is both.ours] = ids[0] + ids[1] + ids[2]
    inserted = [f"r{i:02d}" for i in range(RECORDS)]
    for order in orders.values():
        assert sorted(order) == inserted
        assert order != inserted
    for is_ours in (True, False):
        assert orders["olga", is_ours] != orders["hugo", is_ours]


def test_similarity_is_exact_cosine(both: Both) -> None:
    """osmem has no nearest neighbours, so numpy is the oracle; OpenSearch's own are approximate."""
    path = f"datasets/{both.dataset_id}/records"
    page = both.ours["owner"].get(path, params={"limit": 100, "include": "vectors"}).json()["items"]
    with_vector = [each for each in page if each["vectors"]]
    assert len(with_vector) == RECORDS - 4
    names = np.array([each["external_id"] for each in with_vector])
    vectors = np.array([each["vectors"]["direction"] for each in with_vector])
    random = np.random.default_rng(1)
    for person in PEOPLE:
        for wanted in random.normal(size=(10, 3)):
            cosine = vectors @ wanted / np.linalg.norm(vectors, axis=1) / np.linalg.norm(wanted)
            for order, sign in (("most_similar", -1), ("least_similar", 1)):
                query = {"vector": {"name": "direction", "value": wanted.tolist(), "order": order}}
                prefix = "" if person == "owner" else "me/"
                found = both.ours[person].post(
                    f"{prefix}{path}/search", json={"query": query}, params={"limit": 9}
                )
                items = found.json()["items"]
                best = np.argsort(sign * cosine)[:9]
                assert [item["record"]["external_id"] for item in items] == names[best].tolist()
                scores = [(1 - sign * cosine[i]) / 2 for i in best]
                assert [item["query_score"] for item in items] == pytest.approx(scores, abs=1e-6)
    nearest = (
        both.ours["owner"]
        .post(
            f"{path}/search",
            json={
                "query": {
                    "vector": {"name": "direction", "record_id": with_vector[0]["id"]},
                    "text": {"q": "magic"},
                },
                "filters": {"and": [between(metadata("length"), ge=9)]},
            },
        )
        .json()["items"]
    )
    texts = [" ".join([*map(str, each["fields"].values())]).lower() for each in with_vector]
    allowed = [
        i
        for i, each in enumerate(with_vector)
        if "magic" in re.findall(r"\w+", texts[i]) and i and each["metadata"]
    ]
    allowed = [i for i in allowed if with_vector[i]["metadata"]["length"] >= 9]
    assert allowed
    cosine = vectors @ vectors[0] / np.linalg.norm(vectors, axis=1)
    assert [item["record"]["external_id"] for item in nearest] == names[
        sorted(allowed, key=lambda i: -cosine[i])
    ].tolist()
