"""The errors a user can meet. Each message is one sentence that says what to do.

`accord.cli.main` prints the message and exits with `exit_code`; a traceback appears only with `--traceback`.
"""


class AccordError(Exception):
    """Something went wrong that the user can mend; the message says how."""

    exit_code = 1


class UsageError(AccordError):
    """The command, the configuration or a reference given on the command line is wrong."""

    exit_code = 2


class DataError(AccordError):
    """A data file holds something that does not fit; the message names file, line and field."""


class TamperedError(AccordError):
    """A run's files are not the ones that its record describes."""


class SyncError(AccordError):
    """The sampler's weights are not the trainer's: what it generates would come from another policy."""


class SamplerGoneError(AccordError):
    """The sampler's process ended while it was needed."""


class WaitingForAnnotatorsError(AccordError):
    """The round cannot go on before people have answered; run the same command again later."""

    exit_code = 75
