"""The Argilla that a configuration means: one at a URL, or the embedded one, which runs while somebody needs it.

    with open_argilla(runs, url=None, port=6900) as client:
        ...
    end_unless_needed(runs)     # after the last of them

Who needs the embedded server, so that it is not ended: whoever started it by `accord feedback serve`; every program
within `open_argilla`; and people, as long as a run that asks them is not finished.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accord.runs import Run, Runs
from feedback.argilla.client import Client, connect, owner_key
from feedback.argilla.server import process


def argilla_home(runs_root: Path) -> Path:
    """Where the embedded Argilla keeps its database and secrets."""
    return runs_root / "argilla"


@contextmanager
def open_argilla(runs: Runs, url: str | None, port: int, leave_as_found: bool = False) -> Iterator[Client]:
    """A connection to the Argilla at a URL, or to the embedded one, which is started where it does not run.

    Args:
        runs: beside which the embedded one keeps its data.
        url: of an Argilla that somebody else runs; None for the embedded one.
        port: of the embedded one, where it has to be started.
        leave_as_found: end the embedded one after the `with` if it was started here and no other program has come to
            use it; otherwise it goes on running until `end_unless_needed`.

    Raises:
        UsageError: a URL without ARGILLA_API_KEY.
        AccordError: the server cannot be started or reached.
    """
    if url:
        yield connect(url, owner_key(url))
        return
    home = argilla_home(runs.root)
    was_running = process.running(home) is not None
    try:
        with process.in_use(home):
            server = process.start(home, port)
            # a server that dies, by a kill or for want of memory, is started again by the next request
            yield connect(server.url, server.api_key, revive=lambda: process.revive(server))
    finally:
        if leave_as_found and not was_running:
            process.stop_if_unused(home)


def end_unless_needed(runs: Runs) -> None:
    """End the embedded Argilla if it runs and nobody needs it."""
    if not any(_asks_people(run) for run in runs.all("feedback")):
        process.stop_if_unused(argilla_home(runs.root))


def _asks_people(run: Run) -> bool:
    """Whether people may be looking at the run's records on the embedded server's page."""
    config = run.record.config
    return (
        run.record.stage == "feedback"
        and not run.is_done
        and config.get("annotators") == "human"
        and not config.get("argilla_url")
        and (run.path / "queue.jsonl").exists()
    )
