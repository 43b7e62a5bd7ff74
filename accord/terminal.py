"""What is written to a terminal: nothing that came from elsewhere can move, colour, hide or reorder any of it.

Names of annotators, keys of configurations, comments of public keys, errors of libraries and fields of runs may hold
control characters, of which a terminal obeys some, and characters that turn the direction of writing. They are shown
as JSON would write them, as in `\\u001b[31m`; so what `--json` prints means the same as before.
"""

import logging
import re
import sys
import traceback
import warnings
from types import TracebackType
from typing import Any

import click

UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
"""Control characters but for the tab and the line feed, those that turn or hide text, and halves of surrogate pairs."""


def printable(text: str) -> str:
    """The text with each unsafe character as its escape."""
    return UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def say(text: Any = "", err: bool = False, nl: bool = True) -> None:
    """Print a line, to standard error with `err`; the one way in which accord's commands print text."""
    click.echo(printable(str(text)), err=err, nl=nl)


class PlainFormatter(logging.Formatter):
    """Messages of a log as lines that a terminal only shows."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, with unsafe characters as their escapes."""
        return printable(super().format(record))


class _PlainRecord(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802 - its name in the standard library
        return printable(super().getMessage())


def escape_what_libraries_say() -> None:
    """From now on, messages of all logs, warnings and tracebacks hold no unsafe character, whoever prints them.

    A library may quote what it was given: the type of a model in its config.json, the name of a tensor.
    """
    logging.setLogRecordFactory(_PlainRecord)
    warnings.formatwarning = _plain_warning
    sys.excepthook = _plain_traceback


_formatted = warnings.formatwarning


def _plain_warning(*arguments: Any, **named: Any) -> str:
    return printable(_formatted(*arguments, **named))


def _plain_traceback(kind: type[BaseException], error: BaseException, place: TracebackType | None) -> None:
    say("".join(traceback.format_exception(kind, error, place)).rstrip(), err=True)
