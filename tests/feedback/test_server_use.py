"""When the embedded server ends: with the run that needed it, and never under somebody who uses it."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from feedback_helpers import comparison, free_port

from accord.errors import WaitingForAnnotatorsError
from accord.runs import Run, Runs
from feedback.annotation import have_annotated, planned
from feedback.argilla.access import argilla_home, open_argilla
from feedback.argilla.people import configured_team
from feedback.argilla.server import process
from feedback.argilla.server.process import Server
from feedback.config import FeedbackConfig

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ANSWERS = ["Water is wet because it clings to things.", "no", "Because it is. Because it is. Because it is."]


@pytest.fixture
def port(runs: Runs) -> Iterator[int]:
    """Of the embedded server of these runs, which the test need not end."""
    yield free_port()
    process.stop(argilla_home(runs.root))


def feedback_run(runs: Runs, **settings: object) -> Run:
    """A feedback run from planned records to preferences; another `seed` makes it another run."""
    config = FeedbackConfig.model_validate({"prompts": "p", "annotators_per_record": 2, **settings})
    with runs.begin("feedback", config, {}) as run:
        team = configured_team(config)
        queue = planned(config, run, team, lambda: [comparison(i, ANSWERS) for i in range(2)])
        have_annotated(config, runs, run, team, queue, wait=False)
    return run


def pid(runs: Runs) -> int | None:
    server = process.running(argilla_home(runs.root))
    return server.pid if server else None


def test_the_page_stays_up_for_the_people_of_another_run_and_ends_when_there_is_none(
    runs: Runs, port: int, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WaitingForAnnotatorsError, match="2 records wait"):
        feedback_run(runs, port=port, annotators="human", human_annotators=["ann"], duplicate_rate=0)
    (waiting,) = runs.all()
    page = pid(runs)
    assert page
    assert feedback_run(runs, port=port, seed=1).is_done
    assert pid(runs) == page, "ended under people"
    waiting.record.status = "running"  # as its record says when its program is killed while people answer
    waiting.save()
    assert feedback_run(runs, port=port, seed=2).is_done
    assert pid(runs) == page, "ended under people whose run was killed"

    shutil.rmtree(waiting.path)
    monkeypatch.setenv("ARGILLA_API_KEY", server.api_key)
    assert feedback_run(runs, argilla_url=server.url).is_done
    assert pid(runs) == page, "ended by a run that used another server"
    assert process.running(server.home) == server, "ended although it is somebody else's"

    with open_argilla(runs, None, port) as client:  # as another program does
        assert feedback_run(runs, port=port, seed=3).is_done
        assert pid(runs) == page and client.users(), "ended under another program"
    assert feedback_run(runs, port=port, seed=4).is_done
    assert pid(runs) is None


def test_what_was_started_for_one_run_or_one_look_ends_with_it(runs: Runs, port: int) -> None:
    assert feedback_run(runs, port=port).is_done
    assert (argilla_home(runs.root) / "argilla.db").exists()
    assert pid(runs) is None
    with open_argilla(runs, None, port, leave_as_found=True):
        assert pid(runs)
    assert pid(runs) is None


def test_a_server_that_a_team_serves_outlives_every_run(runs: Runs, port: int, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "accord",
        "--runs",
        str(runs.root),
        "feedback",
        "serve",
        "--port",
        str(port),
    ]
    with (tmp_path / "log").open("w") as log:
        serving = subprocess.Popen(command, stdout=log, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        while "Argilla answers at" not in (tmp_path / "log").read_text():
            assert serving.poll() is None
            time.sleep(0.1)
        served = pid(runs)
        assert served
        assert feedback_run(runs, port=port).is_done
        assert pid(runs) == served and serving.poll() is None
    finally:
        serving.terminate()
        assert serving.wait(60) == 0
    assert pid(runs) is None
