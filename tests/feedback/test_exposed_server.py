"""`accord feedback serve` as a person runs it: how soon, with what processes, and for a team behind a proxy."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from feedback_helpers import free_port

from accord.errors import AccordError
from feedback.argilla.server.exposure import Exposure

PUBLIC = "https://argilla.example.org"


@pytest.mark.parametrize(
    ("exposure", "readable", "local"),
    [
        (Exposure(), False, "http://127.0.0.1:6900"),
        (Exposure("0.0.0.0"), True, "http://127.0.0.1:6900"),
        (Exposure("10.0.0.5"), True, "http://10.0.0.5:6900"),
        (Exposure("::"), True, "http://[::1]:6900"),
        (Exposure("10.0.0.5", PUBLIC), False, "http://10.0.0.5:6900"),
        (Exposure(public_url="http://argilla.example.org"), True, "http://127.0.0.1:6900"),
        (Exposure(public_url=f"{PUBLIC}/rank/"), False, "http://127.0.0.1:6900/rank"),
    ],
)
def test_what_is_readable_on_the_way_and_where_it_answers(
    exposure: Exposure, readable: bool, local: str
) -> None:
    assert exposure.is_readable_on_the_way is readable
    assert exposure.local_url(6900) == local


def test_wrong_addresses_are_one_sentence() -> None:
    with pytest.raises(AccordError, match="'somewhere' is no IP address"):
        Exposure("somewhere")
    with pytest.raises(AccordError, match=r"'argilla\.example\.org' is no URL of a page"):
        Exposure(public_url="argilla.example.org")


@contextmanager
def serve(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """The command in a folder of its own; its process, port and the line that says it is ready."""
    port = free_port()
    accord = Path(sys.executable).with_name("accord")
    command = [str(accord), "--runs", "runs", "feedback", "serve", "--port", str(port)]
    with subprocess.Popen(
        [*command, *options], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                assert process.stderr is not None
                raise AssertionError(process.stderr.read())
            yield process, port, line
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


@pytest.mark.slow
def test_the_login_page_is_there_in_thirty_seconds_and_nothing_but_python_runs(tmp_path: Path) -> None:
    started = time.monotonic()
    with serve(tmp_path) as (process, port, line):
        page = httpx.get(f"http://127.0.0.1:{port}/sign-in", follow_redirects=True)
        scripts = re.findall(r'<script[^>]* src="([^"]+)"', page.text)
        assert scripts
        for script in scripts:
            assert httpx.get(httpx.URL(f"http://127.0.0.1:{port}/sign-in").join(script)).status_code == 200
        seconds = time.monotonic() - started
        print(f"from the command to the login page: {seconds:.1f} s")
        assert seconds < 30
        assert f"http://127.0.0.1:{port}" in line
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 1
        assert {re.sub(r"[\d.]+$", "", each.name()) for each in children} == {"python"}


@pytest.mark.slow
def test_behind_a_proxy_its_address_path_and_clients_are_known(tmp_path: Path) -> None:
    proxy = "127.0.0.2"  # a second address of this machine plays the proxy
    options = ("--behind-proxy", f"{PUBLIC}/rank", "--proxy-address", proxy)
    with serve(tmp_path, *options) as (_, port, line):
        assert f"{PUBLIC}/rank" in line
        base = f"http://127.0.0.1:{port}/rank"
        through = httpx.Client(transport=httpx.HTTPTransport(local_address=proxy), base_url=base)
        direct = httpx.Client(base_url=base)

        page = through.get("/sign-in", follow_redirects=True)
        assert page.status_code == 200
        assert "@@baseUrl@@" not in page.text
        scripts = re.findall(r'<script[^>]* src="([^"]+)"', page.text)
        assert scripts
        assert all(script.startswith("/rank/") for script in scripts)
        assert through.get(f"http://127.0.0.1:{port}{scripts[0]}").status_code == 200
        allowed = through.get("/api/v1/version", headers={"Origin": PUBLIC}).headers
        assert allowed["access-control-allow-origin"] == PUBLIC

        # a client elsewhere gets compressed answers, one on this machine plain ones
        far = through.get("/sign-in/", headers={"X-Forwarded-For": "unknown", "Accept-Encoding": "gzip"})
        assert far.headers.get("content-encoding") == "gzip"
        near = direct.get("/sign-in/", headers={"Accept-Encoding": "gzip"})
        assert "content-encoding" not in near.headers

        def guess(session: httpx.Client, name: str, address: str) -> int:
            form = {"username": name, "password": "wrong"}
            return session.post("/api/v1/token", data=form, headers={"X-Forwarded-For": address}).status_code

        # the proxy's word on who asks is believed: one client's failures do not make another wait
        assert [guess(through, f"a-{i}", "198.51.100.7") for i in range(21)] == [401] * 20 + [429]
        assert guess(through, "b", "198.51.100.8") == 401
        # that of anybody else is not: all of these come from one address
        assert [guess(direct, f"c-{i}", f"198.51.100.{i}") for i in range(21)] == [401] * 20 + [429]


@pytest.mark.slow
def test_without_tls_it_warns(tmp_path: Path) -> None:
    with serve(tmp_path, "--host", "0.0.0.0") as (process, port, _):
        listening: set[Any] = {
            connection.laddr.ip
            for child in psutil.Process(process.pid).children(recursive=True)
            for connection in child.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"0.0.0.0"}
        record = json.loads((tmp_path / "runs" / "argilla" / "server.json").read_text())
        assert record["url"] == f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "warning: without TLS" in process.stderr.read()
