"""The check for machines with GPUs: what it says without one, and its comparison of shards on CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "tests" / "gpu_check.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU; run `make gpu-check`")
def test_without_a_gpu_all_is_skipped() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=100, check=False
    )
    *checks, _, last = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(checks) == 6 and all(line.endswith("skipped    no GPU here") for line in checks)
    assert last == "no GPU here: nothing was checked; run this where there is one"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU; run `make gpu-check`")
def test_the_comparison_of_shards_on_cpu() -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    done = subprocess.run(
        [sys.executable, *command, "--as-one-of-many"], capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 devices, losses and gradient norms within" in done.stdout
