"""One real Argilla server for all tests of feedback/, in a temporary folder on a free port."""

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from feedback_helpers import free_port

from accord.bootstrap import argilla_python
from feedback.argilla.client import Client, connect
from feedback.argilla.server.process import Server, start, stop


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if argilla_python() is None:
        pytest.skip("no environment with argilla-server; `make setup` builds it")
    home: Path = tmp_path_factory.mktemp("argilla")
    # what a user's shell may hold must not reach the server
    elsewhere = {
        "ARGILLA_DATABASE_URL": "sqlite:////nowhere/else.db",
        "ARGILLA_SEARCH_ENGINE": "elasticsearch",
    }
    with mock.patch.dict(os.environ, {**elsewhere, "PYTHONPATH": "/nowhere"}):
        started = start(home, free_port())
    yield started
    stop(home)


@pytest.fixture(scope="session")
def client(server: Server) -> Client:
    return connect(server.url, server.api_key)
