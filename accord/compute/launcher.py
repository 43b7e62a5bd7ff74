"""`python -m accord.compute.launcher PARENT ARGUMENTS`: `accelerate launch ARGUMENTS`, which ends with its parent.

Its exit code says what became of the stage's processes: that of the first one to fail, or 128 and the number of the
signal that killed one.
"""

import logging
import os
import signal
import sys

from accord.compute.worker import end_with_parent

NO_RENDEZVOUS = 69
"""Exit code: the processes could not find together, most often because the port was taken."""


def main() -> None:
    """Start the processes, and wait for them."""
    end_with_parent(int(sys.argv[1]), signal.SIGTERM)
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
        killed = [-failure.exitcode for failure in error.failures.values() if failure.exitcode < 0]
        os._exit(128 + killed[0] if killed else error.get_first_failure()[1].exitcode)
    except SignalException as error:
        os._exit(128 + error.sigval)
    except (OSError, RuntimeError) as error:
        print(f"the processes did not find together: {error}", file=sys.stderr, flush=True)
        os._exit(NO_RENDEZVOUS)


if __name__ == "__main__":
    main()
