"""Claim: the embedded Argilla takes in records at least four times faster than a stock argilla-server.

    python benchmarks/feedback_server.py                    # 10,000 records: some minutes on two cores
    python benchmarks/feedback_server.py --records 2000

Both servers get the same records in batches of 500, in turns, over the request that accord makes; the figure is the
CPU time of the server's process for a batch. The peer is stock argilla-server 2.8 with its own SQLite settings and a
search engine that does nothing at no cost, so that indexing, which ours does and a real OpenSearch would add, is not
held against it. Afterwards three kinds of queries are timed at our server, as the page sends them: an
annotator's queue, text searches, and the metrics of a metadata property. The last line printed is one JSON object.
"""

import argparse
import os
import random
import socket
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil
from helpers.result import mean_ratio, print_result

from accord.bootstrap import argilla_python
from feedback.argilla.client import Client, connect, log_in
from feedback.argilla.server.process import start, stop

GOAL = 4.0
GOAL_MILLISECONDS = 100.0
BATCH = 500
STOCK = Path(__file__).parent.parent / "tests" / "feedback" / "stock_argilla.py"


def main() -> None:
    """Insert, query, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=40, help="of each kind")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "ours"
        server = start(home, free_port())
        stock = None
        try:
            ours = connect(server.url, server.api_key)
            stock, stock_url = start_stock(home / "argilla.db", Path(folder))
            peer = connect(stock_url, server.api_key)
            batches = insert(ours, server.pid, peer, stock.pid, arguments.records)
            medians = time_queries(ours, server.url, arguments.queries)
        finally:
            if stock is not None:
                stock.kill()
                stock.wait()
            stop(home)

    found = mean_ratio([peer["cpu"] / ours["cpu"] for ours, peer in batches])
    seconds = {
        f"{name}_{kind}_seconds": round(sum(pair[i][kind] for pair in batches), 1)
        for i, name in enumerate(("our", "peer"))
        for kind in ("cpu", "wall")
    }
    print_result(
        "records taken in for a CPU second",
        "argilla-server 2.8.0 with an engine that does nothing",
        **found,
        goal=GOAL,
        ok=found["ratio"] >= GOAL and max(medians.values()) < GOAL_MILLISECONDS,
        records=arguments.records,
        goal_milliseconds=GOAL_MILLISECONDS,
        **seconds,
        **{f"{name}_median_milliseconds": round(value, 1) for name, value in medians.items()},
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_stock(database: Path, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A stock server on a copy of our still empty database, without what we added to it."""
    with closing(sqlite3.connect(database)) as ours, closing(sqlite3.connect(folder / "stock.db")) as copy:
        ours.backup(copy)
        for trigger in ("insert", "update", "delete"):
            copy.execute(f"DROP TRIGGER accord_texts_{trigger}")
        copy.execute("PRAGMA journal_mode = DELETE")
        copy.commit()
    port = free_port()
    environment = {"PATH": os.environ["PATH"], "HOME": folder, "TMPDIR": folder}
    process = subprocess.Popen(
        [argilla_python(), "-P", STOCK, folder / "stock.db", str(port), "none"], env=environment
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            httpx.get(f"{url}/api/v1/version", trust_env=False)
            return process, url
        except httpx.TransportError:
            time.sleep(0.1)
    process.kill()
    raise SystemExit("the stock server did not start")


def make_dataset(client: Client) -> str:
    """An empty dataset of comparisons of three responses; its id."""
    new = {"name": "benchmark", "workspace_id": client.workspace_id()}
    dataset = f"datasets/{client.request('POST', 'datasets', json=new)['id']}"
    fields = {"prompt": "chat", "response_1": "text", "response_2": "text", "response_3": "text"}
    for name, kind in fields.items():
        settings = {"type": kind, "use_markdown": False}
        body = {"name": name, "title": name, "required": True, "settings": settings}
        client.request("POST", f"{dataset}/fields", json=body)
    options = [{"value": f"response_{i}", "text": str(i)} for i in (1, 2, 3)]
    question = {"name": "ranking", "title": "Ranking", "settings": {"type": "ranking", "options": options}}
    client.request("POST", f"{dataset}/questions", json={**question, "required": True})
    for name, kind in (("source", "terms"), ("length", "integer")):
        body = {"name": name, "title": name, "settings": {"type": kind}}
        client.request("POST", f"{dataset}/metadata-properties", json=body)
    client.request("PUT", f"{dataset}/publish")
    return dataset


def insert(
    ours: Client, our_pid: int, peer: Client, peer_pid: int, records: int
) -> list[tuple[dict[str, float], dict[str, float]]]:
    """CPU and wall seconds of each batch, at our server and at the peer."""
    dice = random.Random(0)
    vocabulary = [f"word{i}" for i in range(20_000)]
    weights = [1 / (i + 1) for i in range(len(vocabulary))]  # as often as words of a language, by Zipf's law
    datasets = {ours.url: make_dataset(ours), peer.url: make_dataset(peer)}

    def text(words: int) -> str:
        return " ".join(dice.choices(vocabulary, weights, k=words))

    def measured(client: Client, pid: int, items: list[dict[str, Any]]) -> dict[str, float]:
        process = psutil.Process(pid)
        wall, cpu = time.perf_counter(), sum(process.cpu_times()[:2])
        client.request("PUT", f"{datasets[client.url]}/records/bulk", json={"items": items}, timeout=600)
        return {"wall": time.perf_counter() - wall, "cpu": sum(process.cpu_times()[:2]) - cpu}

    pairs = []
    for first in range(0, records, BATCH):
        items = [
            {
                "external_id": f"c-{i}",
                "fields": {
                    "prompt": [{"role": "user", "content": text(30)}],
                    **{f"response_{k}": text(100) for k in (1, 2, 3)},
                },
                "metadata": {"source": ("web", "book", "chat")[i % 3], "length": i},
            }
            for i in range(first, min(first + BATCH, records))
        ]
        pairs.append((measured(ours, our_pid, items), measured(peer, peer_pid, items)))
        mine, other = pairs[-1]
        print(
            f"records {first} to {first + len(items)}: accord {mine['cpu']:.2f} s of CPU, stock {other['cpu']:.2f} s",
            flush=True,
        )
    return pairs


def time_queries(client: Client, url: str, queries: int) -> dict[str, float]:
    """The median milliseconds of each kind of query at our server, from request to answer."""
    annotator = log_in(url, "reader", client.set_up_annotator("reader"))
    dataset = client.existing_dataset("benchmark")
    search = f"me/datasets/{dataset['id']}/records/search"
    pending = {"type": "terms", "scope": {"entity": "response", "property": "status"}, "values": ["pending"]}
    properties = annotator.get(f"me/datasets/{dataset['id']}/metadata-properties").json()["items"]
    texts = [
        "word7",
        "word3 word50",
        "word900*",
        '"word1 word2"',
        "word5 -word1",
        "word40 | word3000",
        "word2",
    ]

    def queue(number: int) -> httpx.Response:
        page = {"offset": number, "limit": 10, "include": ["responses", "suggestions"]}
        return annotator.post(search, json={"filters": {"and": [pending]}}, params=page)

    def text(number: int) -> httpx.Response:
        body = {"query": {"text": {"q": texts[number % len(texts)]}}, "filters": {"and": [pending]}}
        return annotator.post(search, json=body, params={"offset": 0, "limit": 10})

    def metrics(number: int) -> httpx.Response:
        return annotator.get(f"metadata-properties/{properties[number % len(properties)]['id']}/metrics")

    def median(ask: Callable[[int], httpx.Response]) -> float:
        spent = []
        for number in range(queries):
            started = time.perf_counter()
            ask(number).raise_for_status()
            spent.append(1000 * (time.perf_counter() - started))
        return statistics.median(spent)

    return {"queue": median(queue), "text": median(text), "metrics": median(metrics)}


if __name__ == "__main__":
    main()
