"""The embedded server: start, reuse, stop, refusal, what it exposes, and how it mends itself."""

import ast
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest
from feedback_helpers import comparison, free_port

from accord.errors import AccordError
from feedback.argilla.client import Client, RefusedError, connect, log_in
from feedback.argilla.collect import push
from feedback.argilla.server import process
from feedback.argilla.server.process import INSIDE, Server, revive, start, stop

pytestmark = pytest.mark.slow


def test_a_second_start_finds_the_running_server(server: Server) -> None:
    again = start(server.home, free_port())
    assert again == server
    assert psutil.Process(server.pid).ppid() != 0
    assert os.getsid(server.pid) == server.pid  # its own session: it survives the program that started it


def test_revive_leaves_a_living_server_alone(server: Server) -> None:
    assert revive(server) == server


def test_secrets_are_in_private_files_and_in_no_repr(server: Server) -> None:
    secrets = json.loads((server.home / "secrets.json").read_text())
    assert {"password", "api_key", "jwt_secret"} < set(secrets)
    for secret in (server.password, server.api_key):
        assert secret not in repr(server)
    for path in [server.home, *server.home.iterdir()]:
        assert path.stat().st_mode & 0o077 == 0, f"{path} can be read by others"
    command = " ".join(psutil.Process(server.pid).cmdline())
    environment = psutil.Process(server.pid).environ()
    for secret in secrets.values():
        if secret != "owner":
            assert secret not in command
            assert secret not in environment.values()


def test_only_this_machine_can_reach_it(server: Server) -> None:
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(server.pid).net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]


def test_there_is_no_user_but_the_owner_with_the_random_password(
    tmp_path: Path, server: Server, client: Client
) -> None:
    owners = [user["username"] for user in client.users() if user["role"] == "owner"]
    assert owners == ["owner"]
    for name, password in [("argilla", "1234"), ("argilla", "12345678"), ("owner", "12345678")]:
        with pytest.raises(AccordError, match="refuses the log-in"):
            log_in(server.url, name, password)
    with pytest.raises(AccordError, match="refuses the log-in"):
        connect(server.url, "argilla.apikey")
    assert log_in(server.url, "owner", server.password).get("me").json()["role"] == "owner"


def test_other_origins_are_refused_and_every_answer_has_the_headers(server: Server) -> None:
    for path in ("/", "/sign-in", "/api/v1/version"):
        headers = httpx.get(server.url + path, headers={"Origin": "http://evil.example"}).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert "'unsafe-inline'" not in policy["script-src"]
        assert "'sha256-" in policy["script-src"]
        assert policy["img-src"] == "'self' data: blob:"
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
    own = httpx.get(server.url + "/api/v1/version", headers={"Origin": server.url}).headers
    assert own["access-control-allow-origin"] == server.url


def test_a_port_in_use_is_one_sentence_with_the_remedy(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(AccordError, match=rf"port {port} cannot be used .* feedback\.port={port + 1}"):
            start(tmp_path, port)
    assert not (tmp_path / "server.json").exists()


def test_a_port_of_another_argilla_names_its_process(server: Server, tmp_path: Path) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(AccordError, match=rf"by process {server.pid}, the Argilla of {server.home}"):
        start(tmp_path, port)


def test_without_an_environment_the_error_names_make_setup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "argilla_python", lambda: None)
    with pytest.raises(AccordError, match="make setup"):
        start(tmp_path, free_port())


def test_a_server_that_does_not_come_up_shows_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "argilla_python", lambda: Path(sys.executable))  # an environment without it
    with pytest.raises(AccordError, match=r"(?s)ended with code 1 .*ModuleNotFoundError"):
        start(tmp_path, free_port())
    assert not (tmp_path / "server.json").exists()


def test_damaged_or_missing_secrets_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text('{"username": "own')
    with pytest.raises(AccordError, match=r"secrets\.json is damaged; restore it"):
        start(tmp_path, free_port())
    (tmp_path / "secrets.json").unlink()
    (tmp_path / "argilla.db").touch()
    with pytest.raises(AccordError, match=r"secrets\.json is missing although .*argilla\.db exists"):
        start(tmp_path, free_port())


def test_a_slow_server_is_given_up_and_ended(tmp_path: Path) -> None:
    with pytest.raises(AccordError, match="did not answer within 0 s"):
        start(tmp_path, free_port(), timeout_seconds=0.3)
    assert not [
        each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in (each.info["cmdline"] or [])
    ]


def test_a_process_id_of_another_program_is_neither_used_nor_ended(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        record = {"pid": other.pid, "url": "http://127.0.0.1:1", "started_at": ""}
        (tmp_path / "server.json").write_text(json.dumps(record))
        assert process.running(tmp_path) is None
        assert stop(tmp_path) is False
        assert other.poll() is None
        other.kill()


def test_a_killed_server_starts_again_with_its_data_and_right_statuses(tmp_path: Path) -> None:
    port = free_port()
    first = start(tmp_path, port)
    client = connect(first.url, first.api_key)
    push(
        client, "mended", [comparison(1, ["One.", "Two."]), comparison(2, ["One.", "Two."])], min_submitted=1
    )
    psutil.Process(first.pid).kill()
    psutil.wait_procs([psutil.Process(first.pid)])
    with sqlite3.connect(tmp_path / "argilla.db") as database:  # as if killed before a status was set back
        database.execute("UPDATE records SET status = 'completed' WHERE id = (SELECT min(id) FROM records)")
    second = start(tmp_path, port)
    try:
        assert second.pid != first.pid
        assert second.api_key == first.api_key
        client = connect(second.url, second.api_key)
        dataset = client.existing_dataset("mended")
        assert [record["status"] for record in client.records(dataset["id"])] == ["pending", "pending"]
        assert "1 record statuses were mended" in (tmp_path / "server.log").read_text()
    finally:
        assert stop(tmp_path) is True
    assert not psutil.pid_exists(second.pid)
    assert stop(tmp_path) is False


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_it_serves_until_it_is_told_to_end(tmp_path: Path, ending: int) -> None:
    code = (
        "import sys; from pathlib import Path; from feedback.argilla.server.process import run_in_foreground\n"
        "ready = lambda server: print(server.url, server.pid, flush=True)\n"
        "sys.exit(run_in_foreground(Path(sys.argv[1]), int(sys.argv[2]), on_ready=ready))"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        url, pid = program.stdout.readline().split()
        assert httpx.get(f"{url}/api/v1/version").json() == {"version": "2.8.0"}
        program.send_signal(ending)
        assert program.wait(30) == 0
    assert not psutil.pid_exists(int(pid))


@contextmanager
def webhook_for(client: Client, event: str) -> Iterator[list[dict]]:
    """A webhook for one kind of event, and what was delivered to it so far."""
    delivered: list[dict] = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            delivered.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    new = {"url": f"http://localhost:{listener.server_port}/", "events": [event], "description": "test"}
    webhook = client.request("POST", "webhooks", json=new)
    try:
        yield delivered
    finally:
        client.request("DELETE", f"webhooks/{webhook['id']}")
        listener.shutdown()


def wait_until(is_so: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for something that the tests after it check."""
    deadline = time.monotonic() + seconds
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.1)


def test_jobs_run_without_redis_and_webhooks_are_delivered(client: Client) -> None:
    with webhook_for(client, "record.created") as delivered:
        push(client, "hooked", [comparison(1, ["One.", "Two."])], min_submitted=1)
        wait_until(lambda: len(delivered) == 1)
    dataset = client.existing_dataset("hooked")
    (record,) = client.records(dataset["id"])
    assert [event["data"]["id"] for event in delivered] == [record["id"]]
    # a change of the dataset starts the status job, which stock Argilla would hand to Redis
    changed = client.request(
        "PATCH",
        f"datasets/{dataset['id']}",
        json={"distribution": {"strategy": "overlap", "min_submitted": 3}},
    )
    assert changed["distribution"]["min_submitted"] == 3
    hub = {
        "name": "a",
        "subset": "b",
        "split": "c",
        "mapping": {"fields": [{"source": "x", "target": "prompt"}]},
    }
    with pytest.raises(RefusedError, match="works offline"):
        client.request("POST", f"datasets/{dataset['id']}/import", json=hub)


def test_events_go_to_who_listens_for_them_and_are_not_even_made_otherwise(client: Client) -> None:
    """A webhook for deletions hears of the deletion, with the record's data, and of nothing before it."""
    with webhook_for(client, "record.deleted") as delivered:
        push(client, "heard", [comparison(i, ["One.", "Two."]) for i in (1, 2)], min_submitted=1)
        dataset = client.existing_dataset("heard")
        first, second = client.records(dataset["id"])
        client.request("DELETE", f"records/{first['id']}")
        client.request("DELETE", f"datasets/{dataset['id']}/records", params={"ids": second["id"]})
        wait_until(lambda: len(delivered) == 2)
    assert [event["type"] for event in delivered] == ["record.deleted"] * 2
    assert {event["data"]["id"] for event in delivered} == {first["id"], second["id"]}
    assert delivered[0]["data"]["dataset"]["name"] == "heard"


def test_a_status_job_that_died_with_the_server_is_done_at_the_next_start(tmp_path: Path) -> None:
    """`min_submitted` falls from 2 to 1; the server is killed before the records with one answer are completed."""
    port = free_port()
    first = start(tmp_path, port)
    try:
        client = connect(first.url, first.api_key)
        push(client, "job", [comparison(i, ["One.", "Two."]) for i in range(3)], min_submitted=2)
        dataset = client.existing_dataset("job")
        record = next(client.records(dataset["id"]))
        # answered by every question's first choice, whatever the task asks
        questions = client.request("GET", f"datasets/{dataset['id']}/questions")["items"]
        values = {
            each["name"]: {
                "value": [
                    {"value": option["value"], "rank": rank}
                    for rank, option in enumerate(each["settings"]["options"], start=1)
                ]
            }
            for each in questions
            if each["settings"]["type"] == "ranking"
        }
        assert values
        answer = {"status": "submitted", "values": values}
        client.request("POST", f"records/{record['id']}/responses", json=answer)
        assert {each["status"] for each in client.records(dataset["id"])} == {"pending"}
        psutil.Process(first.pid).kill()
        psutil.wait_procs([psutil.Process(first.pid)])
        with sqlite3.connect(
            tmp_path / "argilla.db"
        ) as database:  # as the PATCH leaves it before its job has run
            database.execute(
                "UPDATE datasets SET distribution = json_set(distribution, '$.min_submitted', 1) WHERE name = 'job'"
            )
        second = start(tmp_path, port)
        client = connect(second.url, second.api_key)
        statuses = {each["id"]: each["status"] for each in client.records(dataset["id"])}
        assert statuses.pop(record["id"]) == "completed"
        assert set(statuses.values()) == {"pending"}
        # with the server alive, the job itself does it
        distribution = {"strategy": "overlap", "min_submitted": 2}
        client.request("PATCH", f"datasets/{dataset['id']}", json={"distribution": distribution})
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if {each["status"] for each in client.records(dataset["id"])} == {"pending"}:
                break
            time.sleep(0.1)
        assert {each["status"] for each in client.records(dataset["id"])} == {"pending"}
    finally:
        stop(tmp_path)


def test_what_runs_inside_the_server_imports_nothing_of_accord() -> None:
    ours = {"accord", "sft", "feedback", "reward", "rl", "eval"}
    for path in INSIDE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & ours, path
