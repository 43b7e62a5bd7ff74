"""docs/use-from-python.md and the notebook are programs: they run from top to bottom, each in a fresh interpreter."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from accord.runs import Runs

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/use-from-python.md"
NOTEBOOK = ROOT / "docs/a-round-in-python.ipynb"


def run_program(code: str, folder: Path) -> str:
    """What it prints; its working folder is `folder`, and accord is this checkout's."""
    (folder / "program.py").write_text(code)
    # Threads that wait asleep: other tests use the same cores.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stages(folder: Path) -> list[str]:
    """The finished runs' stages, oldest first."""
    return [run.record.stage for run in Runs(folder / "runs").all() if run.is_done]


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    printed = run_program("\n".join(blocks), tmp_path)
    assert stages(tmp_path) == ["data", "sft", "reward", "dpo", "eval"]
    assert re.search(r"^(PASS|FAIL|INCONCLUSIVE) because ", printed, re.MULTILINE)
    (message,) = re.findall(r"```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert message in printed
    report = re.search(r"the report: (.*)", printed)
    assert report and (tmp_path / report.group(1)).is_file()


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    with socket.socket() as probe:  # the notebook's is that of the command line, which may be in use
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = "\n".join(code)
    assert program.count("port=6900") == 1
    printed = run_program(program.replace("port=6900", f"port={port}"), tmp_path)
    assert stages(tmp_path) == ["feedback", "reward", "ppo", "eval"]
    assert re.search(r"^(PASS|FAIL|INCONCLUSIVE) because ", printed, re.MULTILINE)
    assert len(re.findall(r"^simulated_\w+ \[[12], [12]\]$", printed, re.MULTILINE)) == 3
    assert "'prompts_heldout': 2" in printed


def test_the_notebook_is_committed_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4 and notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        assert not cell.get("outputs") and not cell.get("execution_count")
    text = "".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    assert "](" not in text or all(
        (NOTEBOOK.parent / link).exists() for link in re.findall(r"\]\(([^)#:]+)\)", text)
    )
