"""Bounds on time that hold on a machine which is busy with other tests: seconds of the processor, not of a clock."""

import resource
import time
from collections.abc import Callable


def processor_seconds_of_children() -> float:
    """What the programs that this process started, and that have ended, took so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def growth(small: Callable[[], object], large: Callable[[], object], times: int = 3) -> float:
    """How many times the processor seconds of one piece of work another takes; the least of each, done in turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(times):
        for work, taken in zip((small, large), seconds, strict=True):
            started = time.process_time()
            work()
            taken.append(time.process_time() - started)
    return min(seconds[1]) / min(seconds[0])
