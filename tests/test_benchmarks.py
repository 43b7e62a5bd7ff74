"""What lies in benchmarks/: a script each, whose folder is first on sys.path and must hide no package from it."""

import ast
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(FOLDER.glob("*.py"))

# The big libraries are imported once, as the first script to need them would, and each script runs in a fork of that.
ASK_FOR_HELP = """
import os, runpy, sys
sys.path[0] = os.path.dirname(sys.argv[1])
import datasets, peft, scipy.stats, statsmodels.api, torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOTrainer, RewardTrainer, SFTTrainer
for script in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        sys.argv = [script, "--help"]
        runpy.run_path(script, run_name="__main__")
    failed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(f"{os.path.basename(script)} {failed}", file=sys.stderr)
"""


def imported_by(script: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_no_benchmark_is_named_like_a_package_it_would_hide() -> None:
    ours = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert {"accord", "eval", "feedback", "reward", "rl", "sft"} <= ours
    installed = set(importlib.metadata.packages_distributions())
    assert {"torch", "trl"} <= installed
    peers = set().union(*map(imported_by, FOLDER.rglob("*.py"))) - {"helpers"}
    assert {"datasketch", "lm_eval"} <= peers, "not installed here, and yet imported"
    names = {path.stem for path in FOLDER.iterdir() if not path.name.startswith("__")}
    assert names & (ours | installed | peers | sys.stdlib_module_names) == set()


def test_every_benchmark_starts_in_a_clean_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ASK_FOR_HELP, *map(str, SCRIPTS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    ended = [line for line in done.stderr.splitlines() if line.split(" ")[0].endswith(".py")]
    assert ended == [f"{script.name} 0" for script in SCRIPTS], done.stderr
    assert done.stdout.count("usage: ") == len(SCRIPTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_benchmark_ends_with_its_result(script: Path) -> None:
    (main,) = (
        each
        for each in ast.parse(script.read_text()).body
        if isinstance(each, ast.FunctionDef) and each.name == "main"
    )
    last = main.body[-1]
    assert isinstance(last, ast.Expr) and isinstance(last.value, ast.Call)
    assert isinstance(last.value.func, ast.Name) and last.value.func.id == "print_result"


def test_make_bench_runs_the_benchmarks_and_nothing_else() -> None:
    told = subprocess.run(["make", "-n", "bench"], cwd=ROOT, capture_output=True, text=True, check=True)
    named = [word.strip(";") for word in told.stdout.split() if word.startswith("benchmarks/")]
    assert named == [str(script.relative_to(ROOT)) for script in SCRIPTS]
