"""Faster memory allocation and threads on CPU: tcmalloc and Intel OpenMP, loaded before Python starts.

A library can only be preloaded into a new process, so `restart_with_libraries` replaces this process by itself. What
it gains depends on the machine: benchmarks/preload.py measures it, docs/decisions/0005-speed-on-cpu.md has figures.
"""

import os
import sys
from pathlib import Path

from accord.bootstrap import openmp_library, tcmalloc_library

ALREADY = "ACCORD_PRELOADED"


def libraries() -> list[str]:
    """The libraries to preload, those of them that this machine has; empty on anything but Linux."""
    if sys.platform != "linux":
        return []
    found = (openmp_library(Path(sys.prefix)), tcmalloc_library())
    return [str(path) for path in found if path is not None]


def restart_with_libraries() -> None:
    """Replace this process by the same command with the libraries preloaded; returns where that is not needed.

    It also returns where the process is not the `accord` command but a program that calls it, such as pytest.
    """
    program = Path(sys.argv[0])
    is_command = program.name == "accord" or program == Path(__file__).with_name("__main__.py")
    if not is_command or ALREADY in os.environ or not libraries():
        return
    before = filter(None, [os.environ.get("LD_PRELOAD")])
    environment = {**os.environ, "LD_PRELOAD": ":".join([*libraries(), *before]), ALREADY: "1"}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
