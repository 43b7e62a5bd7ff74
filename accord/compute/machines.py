"""Several machines that run the same command: the first one does the round, the others take part in what it launches.

They meet in a key-value store of torch's at `compute.rendezvous`, which lives as long as the first one's command. Its
key `launch` has what to start, and `end` the first one's exit code.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial

from accord.errors import AccordError, UsageError

PATIENCE = timedelta(minutes=30)
"""How long a machine waits for the first one to be there."""
SECONDS_TO_HEAR = 15
"""How long the first one waits for the others to hear that it ends."""


@dataclass(frozen=True)
class Launch:
    """What is started on each machine; files are below the shared folder of runs."""

    config: str
    """What `accelerate launch` reads."""
    reason: str
    """Where a process says what went wrong."""
    command: list[str]
    """The program and its arguments."""


class Machines:
    """The connection of the machines."""

    def __init__(self, rendezvous: str, is_first: bool) -> None:
        """Open the store, or wait for it.

        Raises:
            UsageError: the first machine's port is taken.
            AccordError: the first machine is not there.
        """
        from torch.distributed import DistNetworkError, TCPStore

        host, _, port = rendezvous.partition(":")
        self.rendezvous = rendezvous
        self.launches = 0
        try:
            self.store = TCPStore(
                host, int(port), is_master=is_first, wait_for_workers=False, timeout=PATIENCE
            )
            if not is_first:
                self.store.add("here", 1)
        except (DistNetworkError, RuntimeError) as error:
            if is_first:
                raise UsageError(
                    f"compute.rendezvous: port {port} of this machine cannot be used; end what uses it, or name another"
                ) from error
            raise AccordError(
                f"the first machine is not at {rendezvous}; start the same command there, or correct compute.rendezvous"
            ) from error

    def announce(self, launch: Launch | None) -> None:
        """On the first machine: tell the others what to start, and that what was started before is over.

        Without a launch, they start nothing any more; what they have started may come to its end.
        """
        self.launches += launch is not None
        self.store.set("launch", json.dumps([self.launches, asdict(launch) if launch else None]))

    def end(self, code: int) -> None:
        """On the first machine: tell the others to leave, and wait a little until they did."""
        self.store.set("end", str(code))
        until = time.monotonic() + SECONDS_TO_HEAR
        while self.store.add("gone", 0) < self.store.add("here", 0) and time.monotonic() < until:
            time.sleep(0.1)

    def follow(self, run: Callable[[Launch, Callable[[], bool]], int]) -> int:
        """On another machine: run each launch until the first machine ends, whose exit code is returned.

        Args:
            run: starts a launch and waits for it, or until the function that it is given says that it is over.

        Raises:
            AccordError: the first machine is gone.
        """
        from torch.distributed import DistError

        done = 0
        try:
            while not self._has("end"):
                number, launch = self._latest()
                if number > done and launch:
                    done = number
                    run(launch, partial(self._is_over, number))
                else:
                    time.sleep(1)
            code = int(self.store.get("end"))
            self.store.add("gone", 1)
            return code
        except (DistError, RuntimeError) as error:
            raise AccordError(
                f"the first machine, at {self.rendezvous}, ended before its time; run the same command again on all "
                "machines to continue"
            ) from error

    def _latest(self) -> tuple[int, Launch | None]:
        """The number of the latest launch, and the launch unless it is over."""
        if not self._has("launch"):
            return 0, None
        number, launch = json.loads(self.store.get("launch"))
        return number, Launch(**launch) if launch else None

    def _is_over(self, number: int) -> bool:
        return self._has("end") or self._latest()[0] > number

    def _has(self, key: str) -> bool:
        return bool(self.store.check([key]))
