"""A `vllm serve` of the documentation's own command, started for a test and ended by its process id."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import httpx
import psutil

from accord.sampling.vllm_engine import cpu_engine_environment


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[bytes]
    url: str
    log: Path


@contextmanager
def serve(
    command: Sequence[str], model: Path, log: Path, variables: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """The command with this model for MODEL_FOLDER, on a free port."""
    arguments = [str(model) if word == "MODEL_FOLDER" else word for word in command]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments[arguments.index("--port") + 1] = str(port)
    assert arguments[:2] == ["vllm", "serve"]
    assert arguments[arguments.index("--host") + 1] == "127.0.0.1"
    if "vllm" not in packages_distributions()["vllm"]:
        # the community build's `vllm serve` fails, as it asks for the version of a package `vllm`
        arguments[:2] = ["python", "-m", "vllm.entrypoints.openai.api_server", "--model"]
    environment = cpu_engine_environment() | dict(variables or {})
    del environment["VLLM_ENABLE_V1_MULTIPROCESSING"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name(arguments[0])), *arguments[1:]],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        yield Server(process, url, log)
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """The server and the engine that it started, by their ids."""
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        for child in children:
            if child.is_running():
                child.kill()
        psutil.wait_procs(children, timeout=10)
