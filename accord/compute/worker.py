"""In a process that `accord.compute.launch` started: whom it tells what went wrong, and with whom it ends."""

import json
import os
import signal
import threading
import time
from pathlib import Path

from accord.errors import AccordError
from accord.text_files import write_atomically

REASON = "ACCORD_LAUNCHED"
"""The variable that names the file for the sentence about what went wrong."""
LAUNCHER = "ACCORD_LAUNCHER"
"""The variable that has the process id of whoever started this process: its parent, unless that is gone already."""
SECONDS_TO_END = 45
"""The launcher of a stage ends its processes within 30."""


def is_launched() -> bool:
    """Whether this process works at a stage for a round that another process controls."""
    return REASON in os.environ and "LOCAL_RANK" in os.environ


def tell(error: AccordError) -> None:
    """Leave the controlling process a sentence; it says it to the user."""
    reason = {"kind": type(error).__name__, "message": str(error)}
    write_atomically(Path(os.environ[REASON]), json.dumps(reason))


def end_with_launcher() -> None:
    """In a process that is launched: from now on it ends soon after its launcher, whatever ended that one."""
    end_with_parent(int(os.environ[LAUNCHER]))


def end_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """From now on this process gets a signal soon after its parent's end, whatever ended that one.

    Args:
        parent: the process id.
        by: the signal; after SIGTERM there are 45 seconds before SIGKILL.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), by)
        time.sleep(SECONDS_TO_END)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
