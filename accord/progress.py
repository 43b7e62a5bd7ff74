"""Progress of what takes long: nothing for two seconds, then a bar on a terminal or, elsewhere, a line now and then."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from accord import parallel
from accord.terminal import printable

SECONDS_BEFORE_SHOWN = 2.0
SECONDS_BETWEEN_LINES = 10.0


class EveryFewSeconds:
    """Says when the next line of progress is due."""

    def __init__(self, first_after: float = 0.0) -> None:
        """Args: `first_after`, in seconds."""
        self._next = time.monotonic() + first_after

    def is_due(self, at_once: bool = False) -> bool:
        """Whether to print a line now, which is then the last one for ten seconds; `at_once` in any case."""
        now = time.monotonic()
        if now < self._next and not at_once:
            return False
        self._next = now + SECONDS_BETWEEN_LINES
        return True


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[float], None]]:
    """Show how far something is, in the first process.

    Yields a function to call, in any thread, with how much of `total` is done by now.
    """
    what = printable(what)
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True,
    )  # fmt: skip
    task = bar.add_task(what, total=total)
    started = time.monotonic()
    lines = EveryFewSeconds(first_after=SECONDS_BEFORE_SHOWN)
    one_at_a_time = threading.Lock()

    def update(done: float) -> None:
        with one_at_a_time:
            bar.update(task, completed=int(done))
            if (
                not parallel.is_first() or bar.live.is_started or not lines.is_due()
            ):  # once started, the bar refreshes itself
                return
            if console.is_terminal:
                bar.start()
            else:
                seconds = time.monotonic() - started
                console.print(
                    f"{what}: {int(done)} of {total} after {seconds:.0f} s", highlight=False, markup=False
                )

    try:
        yield update
    finally:
        if bar.live.is_started:  # else it would print an empty line
            bar.stop()
