"""Start, find and stop the embedded Argilla server.

    server = start(Path("runs/argilla"))     # about seven seconds the first time, or at once if it runs already
    print(server.url, server.username)       # the password is in runs/argilla/secrets.json
    stop(server.home)

The server is stock argilla-server in its own virtual environment, with the additions of `inside/`. Everything it
keeps is in one folder, readable by its owner only:

    argilla.db      the SQLite database, with its -wal and -shm files while the server runs
    secrets.json    the owner's name, password and API key, and the key that signs log-ins
    server.json     process id, URL, time of the start and whether it is served, while it runs
    server.log      what it printed, with the run before in server.log.1
    in-use.lock     held, shared, by every program that talks to the server

A server that is *served* was started by `accord feedback serve`, and runs until somebody ends it. Any other was started
because a program needed one, and `stop_if_unused` ends it when no program does any more.
"""

import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import psutil
from filelock import FileLock

from accord.bootstrap import argilla_python
from accord.errors import AccordError
from accord.text_files import write_atomically
from feedback.argilla.server.exposure import LOOPBACK, Exposure

INSIDE = Path(__file__).parent / "inside"
OWNER = "owner"
SECONDS_TO_START = 120.0
SECONDS_TO_STOP = 15.0

# what the server may see of our environment: nothing that could point it at another database, Python path,
# allocator or account
KEPT_VARIABLES = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "PATH", "SYSTEMROOT", "TZ", "USER")


@dataclass(frozen=True)
class Server:
    """A running server and how to log in as its owner; the secrets are left out of its repr."""

    url: str
    home: Path
    pid: int
    username: str
    password: str = field(repr=False)
    api_key: str = field(repr=False)


def start(home: Path, port: int = 6900, timeout_seconds: float = SECONDS_TO_START) -> Server:
    """The server of `home`: the one that is running, or a new one on `port` of the loopback interface.

    A new one is its own session, so it goes on when the calling program ends, until `stop`. The first start
    creates the database and an owner with random secrets.

    Raises:
        AccordError: there is no Argilla environment, the port is taken, or the server did not come up.
    """
    home = _prepare(home)
    with lock(home):
        if server := running(home):
            return server
        process = _launch(home, port, detached=True)
        return _wait_until_healthy(home, LOOPBACK.local_url(port), process, timeout_seconds)


def revive(server: Server) -> Server:
    """`server` again, at the same URL: as it is if it still answers, or started anew if its process has died.

    Raises:
        AccordError: as `start`.
    """
    port = httpx.URL(server.url).port
    assert port is not None
    return start(server.home, port)


def run_in_foreground(
    home: Path,
    port: int = 6900,
    on_ready: Callable[[Server], None] | None = None,
    exposure: Exposure = LOOPBACK,
) -> int:
    """Run the server until Ctrl-C, SIGTERM or its own end, and return its exit code (0 after the first two).

    Args:
        home: the server's folder.
        port: the port to listen on.
        on_ready: called once, as soon as the server answers.
        exposure: who can reach it; as it stands, programs on this machine.

    Raises:
        AccordError: as `start`, or the server of `home` is running already.
    """
    home = _prepare(home)
    with lock(home):
        if server := running(home):
            raise AccordError(f"this Argilla is running already, at {server.url} (process {server.pid})")
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as a service manager ends it
        process = _launch(home, port, detached=False, exposure=exposure)
        server = _wait_until_healthy(
            home, exposure.local_url(port), process, SECONDS_TO_START, is_served=True
        )
    try:
        if on_ready is not None:
            on_ready(server)
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        stop(home)
        signal.signal(signal.SIGTERM, before)


def stop(home: Path) -> bool:
    """End the server of `home` if it runs, whoever uses it; whether there was one to end."""
    home = home.resolve()
    if not home.is_dir():
        return False
    with lock(home):
        return _end(home)


@contextmanager
def in_use(home: Path) -> Iterator[None]:
    """Within it, no other program's `stop_if_unused` ends the server of `home`; a killed program uses it no more."""
    with _in_use_file(_prepare(home)) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def stop_if_unused(home: Path) -> bool:
    """End the server of `home`, unless it is served or some program is within `in_use`; whether it was ended."""
    home = home.resolve()
    if not home.is_dir():
        return False
    with lock(home), _in_use_file(home) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return not _recorded(home).get("is_served") and _end(home)


def _in_use_file(home: Path) -> BinaryIO:
    return os.fdopen(os.open(home / "in-use.lock", os.O_RDWR | os.O_CREAT, 0o600), "wb")


def _end(home: Path) -> bool:
    process = recorded_process(home)
    if process is not None:
        process.terminate()
        try:
            process.wait(SECONDS_TO_STOP)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(SECONDS_TO_STOP)
    (home / "server.json").unlink(missing_ok=True)
    return process is not None


def running(home: Path) -> Server | None:
    """The server that `home/server.json` records, if that process is alive, is ours, and answers."""
    home = home.resolve()
    process = recorded_process(home)
    if process is None:
        return None
    server = _server(home, _recorded(home)["url"], process.pid)
    for _ in range(20):  # a machine that is busy with training may need a few seconds to answer
        if _answers(server):
            return server
        time.sleep(0.5)
    raise AccordError(
        f"the Argilla server at {server.url} (process {process.pid}) is alive but does not answer; end it with "
        f"`kill {process.pid}` and run this again\n{_log_tail(home)}"
    )


def lock(home: Path) -> FileLock:
    """Keeps others from starting or ending the server of `home`, or changing its files, at the same time."""
    return FileLock(home / "start.lock", timeout=SECONDS_TO_START + SECONDS_TO_STOP, mode=0o600)


def _prepare(home: Path) -> Path:
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    if not (home / "secrets.json").exists():
        if (home / "argilla.db").exists():
            raise AccordError(
                f"{home}/secrets.json is missing although {home}/argilla.db exists; restore it, or move the folder "
                "away to begin with an empty server"
            )
        made = {
            "username": OWNER,
            "password": secrets.token_urlsafe(18),
            "api_key": secrets.token_urlsafe(48),
            "jwt_secret": secrets.token_urlsafe(48),
        }
        write_atomically(home / "secrets.json", json.dumps(made, indent=1), mode=0o600)
    read_secrets(home)
    return home


def _launch(home: Path, port: int, detached: bool, exposure: Exposure = LOOPBACK) -> subprocess.Popen[bytes]:
    python = _python()
    _require_free(exposure.host, port)
    log = home / "server.log"
    if log.exists():
        log.replace(home / "server.log.1")
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    environment |= {"PYTHONPATH": str(INSIDE), "PYTHONUNBUFFERED": "1"}
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as output:
        return subprocess.Popen(
            # -P: the current folder stays off Python's path
            [
                *(str(python), "-P", "-m", "accord_argilla", *exposure.arguments()),
                *("--home", str(home), "--port", str(port)),  # last: `_other_server` reads them
            ],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=detached,
            umask=0o077,
        )


def check_can_start(home: Path, port: int | None) -> None:
    """Look whether `start` has what it needs; nothing is needed where the server of `home` runs already.

    Args:
        home: the server's folder.
        port: which must be free; None: it is not looked at.

    Raises:
        AccordError: there is no Argilla environment, or the port is taken.
    """
    if running(home) is None:
        _python()
        if port is not None:
            _require_free(LOOPBACK.host, port)


def _python() -> Path:
    python = argilla_python()
    if python is None:
        raise AccordError("there is no environment with argilla-server yet; run `make setup` to build it")
    return python


def _require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise AccordError(
                f"port {port} cannot be used for Argilla ({error.strerror}{_other_server(port)}); choose another one "
                f"with feedback.port={port + 1}"
            ) from None


def _other_server(port: int) -> str:
    """Says which accord server has the port, if one does: of another folder, or of one that was deleted."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "accord_argilla" in command and command[-1] == str(port):
            return f" by process {process.pid}, the Argilla of {command[-3]}"
    return ""


def _wait_until_healthy(
    home: Path, url: str, process: subprocess.Popen[bytes], timeout_seconds: float, is_served: bool = False
) -> Server:
    server = _server(home, url, process.pid)
    record = {
        "pid": server.pid,
        "url": server.url,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "is_served": is_served,
    }
    write_atomically(home / "server.json", json.dumps(record, indent=1), mode=0o600)
    deadline = time.monotonic() + timeout_seconds
    try:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise AccordError(
                    f"Argilla ended with code {process.returncode} while starting; the reason is in "
                    f"{home}/server.log, which ends with\n{_log_tail(home)}"
                )
            if _answers(server):
                return server
            time.sleep(0.1)
        raise AccordError(
            f"Argilla did not answer within {timeout_seconds:.0f} s; see {home}/server.log, which ends with\n"
            f"{_log_tail(home)}"
        )
    except BaseException:
        process.kill()
        process.wait()
        (home / "server.json").unlink(missing_ok=True)
        raise


def _server(home: Path, url: str, pid: int) -> Server:
    known = read_secrets(home)
    return Server(url, home, pid, known["username"], known["password"], known["api_key"])


def read_secrets(home: Path) -> dict[str, str]:
    """The owner's name, password and API key, and the key that signs log-ins."""
    path = home / "secrets.json"
    try:
        known = json.loads(path.read_text())
        return {name: known[name] for name in ("username", "password", "api_key", "jwt_secret")}
    except (ValueError, KeyError, TypeError):
        raise AccordError(
            f"{path} is damaged; restore it, or move {home} away to begin with an empty server"
        ) from None


def _answers(server: Server) -> bool:
    """Whether the server at the URL is up and is ours: it knows the owner's key."""
    try:
        # trust_env: a proxy of this machine's user has no business between two local processes
        response = httpx.get(
            f"{server.url}/api/v1/me",
            headers={"X-Argilla-Api-Key": server.api_key},
            timeout=2.0,
            trust_env=False,
        )
    except httpx.HTTPError:
        return False
    return response.status_code == 200 and response.json().get("username") == server.username


def _recorded(home: Path) -> dict[str, Any]:
    try:
        return json.loads((home / "server.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def recorded_process(home: Path) -> psutil.Process | None:
    """The process of `home/server.json`, if its command line says that it serves this folder.

    A process id alone proves nothing: after a reboot it belongs to some other program.
    """
    try:
        process = psutil.Process(int(_recorded(home)["pid"]))
        command = process.cmdline()
    except (KeyError, ValueError, psutil.Error):
        return None
    return process if "accord_argilla" in command and str(home) in command else None


def _log_tail(home: Path, lines: int = 15) -> str:
    log = home / "server.log"
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:])
