"""How `make test` spreads the tests over the cores: hooks of pytest and pytest-xdist, which conftest.py takes over.

The tests of a file run one after the other in one process. So do those of files that use one server or engine which
takes long to start; the longest of such groups are begun first, so that none is left for the end.

xdist's own `--dist loadgroup` cannot do this: its marks have no effect with pytest 9.2, which it does not say.
"""

import os
import sys
from typing import Any

import psutil
import pytest

TOGETHER = {
    "argilla": [
        *(f"tests/feedback/test_{name}.py" for name in ("annotation_page", "argilla_server", "backup", "collect")),
        *(f"tests/feedback/test_{name}.py" for name in ("people", "request_limits", "review", "search_engine")),
        *(f"tests/feedback/test_{name}.py" for name in ("server_use", "simulate", "stage")),
    ],
    "vllm": [
        "tests/accord/test_sampling_vllm.py", "tests/accord/test_sampling_vllm_server.py",
        "tests/invariants/test_ppo_resume_vllm.py", "tests/reward/test_reward_vllm.py",
    ],
}  # fmt: skip
LONGEST_FIRST = ("tests/test_round.py", "argilla", "vllm")
GIGABYTES_EACH = 7
"""Of memory for one of several test processes: a trainer, and a sampler's engine or a whole round beside it."""


def cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def group_of(test: str) -> str:
    """The name of the group that a test is in, by its id; its file's name if nothing else is in the group."""
    file = test.split("::")[0]
    return next((name for name, files in TOGETHER.items() if file in files), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: as many as there are cores and memory for."""
    return max(1, min(cores(), int(psutil.virtual_memory().total / 1e9 / GIGABYTES_EACH)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a process of several, put the tests into the order in which their groups are to be begun."""
    if hasattr(config, "workerinput"):
        order = {name: place for place, name in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: order.get(group_of(item.nodeid), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, hand out groups where xdist would hand out files, in the order of collection."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Groups(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)
