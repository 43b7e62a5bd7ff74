"""Bounds on time that hold on a machine which is busy with other tests: seconds of the processor, not of a clock."""

import resource


def processor_seconds_of_children() -> float:
    """What the programs that this process started, and that have ended, took so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
