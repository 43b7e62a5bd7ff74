"""Which tests run in one process, and that pytest-xdist keeps to it."""

import subprocess
import sys
from pathlib import Path

import pytest
from spread import LONGEST_FIRST, TOGETHER, group_of

ROOT = Path(__file__).parents[1]
TEST = """
import os, pathlib, time

def test_one():
    time.sleep(0.2)
    with pathlib.Path({log!r}).open("a") as log:
        log.write({name!r} + " " + os.environ["PYTEST_XDIST_WORKER"] + "\\n")

test_two = test_three = test_four = test_one
"""


def test_named_files_are_there() -> None:
    named = [file for files in TOGETHER.values() for file in files]
    named += [name for name in LONGEST_FIRST if name not in TOGETHER]
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert group_of("tests/feedback/test_stage.py::test_x[a::b]") == "argilla"
    assert group_of("tests/feedback/test_plan.py::test_x") == "tests/feedback/test_plan.py"


def test_all_tests_on_the_shared_argilla_are_together(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        assert isinstance(item, pytest.Function)
        shares = item.path.parent.name == "feedback" and "server" in item.fixturenames
        if shares and not hasattr(item.module, "server"):
            assert group_of(item.nodeid) == "argilla", item.nodeid


def test_a_group_stays_in_one_process_and_the_longest_is_begun_first(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    log = tmp_path / "log"
    files = [*TOGETHER["vllm"][:2], "tests/test_first.py", "tests/test_round.py", "tests/test_second.py"]
    for file in files:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TEST.format(log=str(log), name=group_of(file)))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "spread",
        "-p",
        "no:cacheprovider",
        "-n2",
        "--dist=loadfile",
    ]
    command += ["--rootdir", str(tmp_path), "-c", "/dev/null", "tests"]
    path = {"PYTHONPATH": str(ROOT / "tests"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True)
    assert "20 passed" in done.stdout.splitlines()[-1], done.stdout + done.stderr
    ran = [line.split() for line in log.read_text().splitlines()]
    processes = {name: {process for each, process in ran if each == name} for name, _ in ran}
    assert len(ran) == 20 and all(len(each) == 1 for each in processes.values()), processes
    assert {name for name, _ in ran[:4]} <= {"tests/test_round.py", "vllm"}
