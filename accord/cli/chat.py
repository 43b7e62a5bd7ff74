"""`accord chat REF`: talk to a model in the terminal."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from accord.cli.shared import reference_of, runs_of_command
from accord.errors import AccordError
from accord.terminal import say

if TYPE_CHECKING:
    from accord.sampling.talk import Talk

HELP = """\
/new             forget what was said
/system TEXT     begin anew with this system message
/save FILE       add the conversation to a file of demonstrations
/quit            leave (also Ctrl-D); Ctrl-C cuts an answer"""


@click.command(short_help="Talk to a model in the terminal.")
@click.argument("model")
@click.option("--system", default="", metavar="TEXT", help="The system message.")
@click.option(
    "--temperature", type=click.FloatRange(0), default=0.7, show_default=True,
    help="0 takes the likeliest word each time.",
)  # fmt: skip
@click.option(
    "--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="Of an answer, at most."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the answers.")
def chat(model: str, system: str, temperature: float, max_tokens: int, seed: int) -> None:
    """Talk to MODEL: a run (its id, or the beginning of it), promoted, a folder, a hub id or bundled:...

    The prompts are what the model was trained on: its own chat template, through accord's. Without a terminal, each
    line of standard input is a question.
    """
    from accord.models.base import prepare_base
    from accord.sampling.talk import Talk

    runs = runs_of_command()
    talk = Talk(prepare_base(reference_of(model, runs), runs), system, seed)
    if sys.stdin.isatty():
        say(f"{model}: say something, or /help", err=True)
    while (line := _read()) is not None:
        if line.startswith("/"):
            if line == "/quit":
                return
            _obey(talk, line)
        elif line:
            _answer(talk, line, temperature, max_tokens)


def _read() -> str | None:
    """The next line of the user's, or None where there is no more."""
    try:
        if sys.stdin.isatty():
            import readline  # noqa: F401  # lines can be edited and taken back

            return input("> ").strip()
        line = sys.stdin.readline()
        return line.strip() if line else None
    except EOFError:
        return None


def _answer(talk: "Talk", question: str, temperature: float, max_tokens: int) -> None:
    pieces = talk.answer(question, temperature, max_tokens)
    try:
        for piece in pieces:
            say(piece, nl=False)
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
    except AccordError as error:
        say(f"error: {error}", err=True)
    say()


def _obey(talk: "Talk", line: str) -> None:
    from accord.records import Demonstration
    from accord.text_files import jsonl

    word, _, rest = line.partition(" ")
    if word == "/new":
        talk.begin()
    elif word == "/system" and rest:
        talk.begin(rest)
    elif word == "/save" and rest:
        if not any(message.role == "assistant" for message in talk.messages):
            say("nothing was said yet", err=True)
            return
        try:
            with Path(rest).open("a", encoding="utf-8") as file:
                file.write(jsonl([Demonstration(messages=talk.messages)]))
        except OSError as error:
            say(f"error: {rest} cannot be written ({error.strerror})", err=True)
            return
        say(f"{rest}: one conversation more", err=True)
    else:
        say(HELP, err=True)
