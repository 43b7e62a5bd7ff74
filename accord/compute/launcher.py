"""`python -m accord.compute.launcher PARENT ARGUMENTS`: `accelerate launch ARGUMENTS`, which ends with its parent.

Its exit code says what became of the stage's processes: that of one that failed, or 128 and the number of the signal
that killed one.
"""

import logging
import os
import signal
import sys

from accord.compute.worker import LAUNCHER, end_with_parent
from accord.terminal import say

NO_RENDEZVOUS = 69
"""Exit code: the processes could not find together, most often because the port was taken."""


def main() -> None:
    """Start the processes, and wait for them."""
    end_with_parent(int(sys.argv[1]), signal.SIGTERM)
    os.environ[LAUNCHER] = str(os.getpid())
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(
            logging.CRITICAL
        )  # whoever reads the exit code says it in a sentence
    try:
        launch_command(launch_command_parser().parse_args(sys.argv[2:]))
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        killed = [-code for code in codes if code < 0]
        # where one fails by itself, the others are terminated
        by_itself = [code for code in codes if code > 0] if set(killed) <= {signal.SIGTERM} else []
        os._exit(by_itself[0] if by_itself else 128 + min(killed))
    except SignalException as error:
        os._exit(128 + error.sigval)
    except (OSError, RuntimeError) as error:
        say(f"the processes did not find together: {error}", err=True)
        os._exit(NO_RENDEZVOUS)


if __name__ == "__main__":
    main()
