"""What a request may be before anything of it is read; what is wrong with it is said with 4xx, by the real server."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from feedback.argilla.client import Client
from feedback.argilla.server.process import Server

pytestmark = pytest.mark.slow
SEARCH = "/api/v1/me/datasets/00000000-0000-0000-0000-000000000000/records/search"
BULK = "/api/v1/me/responses/bulk"


CLOSED = 0


def code(send: Callable[[], httpx.Response]) -> int:
    """The answer's; `CLOSED` where the server had closed the connection before all was sent."""
    try:
        return send().status_code
    except httpx.TransportError:
        return CLOSED


@pytest.fixture(scope="module")
def dataset(client: Client) -> dict[str, Any]:
    new = {"name": "limited", "workspace_id": client.workspace_id()}
    made: dict[str, Any] = client.request("POST", "datasets", json=new)

    def add(what: str, **body: Any) -> None:
        client.request("POST", f"datasets/{made['id']}/{what}", json={"title": body["name"], **body})

    add("fields", name="answer", required=True, settings={"type": "text", "use_markdown": False})
    options = [{"value": value, "text": value} for value in ("a", "b")]
    add("questions", name="better", required=True, settings={"type": "label_selection", "options": options})
    add("metadata-properties", name="source", settings={"type": "terms"})
    client.request("PUT", f"datasets/{made['id']}/publish")
    return made


@pytest.mark.parametrize("path", [SEARCH, BULK, "/api/v1/datasets/1/records/bulk", "/api/v1/token"])
def test_nobodys_large_body_is_refused_unread(server: Server, path: str) -> None:
    url = httpx.URL(server.url)
    for length in (100_000, 100_000_000):
        head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\nx-argilla-api-key: guessed\r\n\r\n"
        with socket.create_connection((url.host, url.port or 80), timeout=10) as connection:
            connection.sendall(head.encode())  # and nothing after it
            answer = connection.recv(65_536).decode()
        assert answer.startswith("HTTP/1.1 413 "), answer
        assert "x-content-type-options: nosniff" in answer


def test_a_body_of_no_stated_length_is_counted(server: Server, client: Client) -> None:
    def parts(megabytes: int) -> Iterator[bytes]:
        for _ in range(megabytes * 16):
            yield b" " * 65_536

    for headers in ({}, {"X-Argilla-Api-Key": "guessed"}, dict(client.http.headers)):
        assert code(lambda headers=headers: httpx.post(f"{server.url}{SEARCH}", content=parts(3), headers=headers)) in (
            413, CLOSED
        )  # fmt: skip


def test_somebody_may_send_more_and_not_everything(client: Client, dataset: dict[str, Any]) -> None:
    search = f"me/datasets/{dataset['id']}/records/search"
    assert client.http.post(search, json={"query": {"text": {"q": "a " * 100_000}}}).status_code != 413
    large = {"query": {"text": {"q": "a " * 600_000}}}
    url, headers = f"{client.http.base_url}{search}", client.http.headers
    assert code(lambda: httpx.post(url, json=large, headers=headers)) in (413, CLOSED)
    text = "long " * 400_000  # two million characters
    items = [{"fields": {"answer": text}}]
    sent = client.http.post(f"datasets/{dataset['id']}/records/bulk", json={"items": items})
    assert sent.status_code == 201, sent.text[:300]


def test_large_bodies_cost_others_no_waiting(server: Server) -> None:
    def flood(_: int) -> int:
        return code(lambda: httpx.post(f"{server.url}{SEARCH}", content=b" " * 20_000_000, timeout=60))

    with ThreadPoolExecutor(4) as pool:
        floods = pool.map(flood, range(8))
        waits = []
        for _ in range(10):
            started = time.monotonic()
            assert httpx.get(f"{server.url}/api/v1/version", timeout=60).status_code == 200
            waits.append(time.monotonic() - started)
        assert set(floods) <= {413, CLOSED}
    assert sorted(waits)[5] < 2


def test_a_path_with_control_characters_is_no_page(server: Server) -> None:
    for path in ("/%00", "/api/v1/datasets/%00", "/%1b[31m", "/a%0d%0ab"):
        assert httpx.get(f"{server.url}{path}").status_code == 404


@pytest.mark.parametrize(
    "scope",
    [
        {"entity": "metadata", "metadata_property": "nothing"},
        {"entity": "metadata", "metadata_property": "a\"b.c[0]"},
        {"entity": "response", "question": "nothing"},
        {"entity": "suggestion", "question": "nothing"},
        {"entity": "record", "property": "nothing"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("own", ["me/", ""])
def test_a_filter_on_what_is_not_there(client: Client, dataset: dict[str, Any], scope: Any, own: str) -> None:
    path = f"{own}datasets/{dataset['id']}/records/search"
    for body in (
        {"filters": {"and": [{"type": "terms", "scope": scope, "values": ["a"]}]}},
        {"sort": [{"scope": scope, "order": "asc"}]},
    ):
        answer = client.http.post(path, json=body)
        assert 400 <= answer.status_code < 500, answer.text
