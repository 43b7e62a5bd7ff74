"""Progress of sampling: nothing below two seconds, then a bar on a terminal and a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BEFORE_SHOWN = 2.0
SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[float], None]]:
    """Show how far something is; yields a function to call with how much of `total` is done by now."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True,
    )  # fmt: skip
    task = bar.add_task(what, total=total)
    started = time.monotonic()
    shown_at = started + SECONDS_BEFORE_SHOWN
    bar_is_shown = False

    def update(done: float) -> None:
        nonlocal shown_at, bar_is_shown
        bar.update(task, completed=int(done))
        now = time.monotonic()
        if now < shown_at:
            return
        if console.is_terminal:
            bar.start()
            bar_is_shown = True
            shown_at = float("inf")  # from here on the bar refreshes itself
        else:
            console.print(f"{what}: {int(done)} of {total} after {now - started:.0f} s", highlight=False)
            shown_at = now + SECONDS_BETWEEN_LINES

    try:
        yield update
    finally:
        if bar_is_shown:
            bar.stop()
