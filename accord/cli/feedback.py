"""`accord feedback ...`: the annotators' server, accounts, and what they said."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from accord.cli.shared import (
    AS_JSON,
    CONFIG,
    OVERRIDES,
    RUN,
    Group,
    names_a_file,
    run_until,
    runs_of_command,
)
from accord.errors import DataError, UsageError, WaitingForAnnotatorsError
from accord.terminal import say

if TYPE_CHECKING:
    from accord.runs import Run
    from feedback.config import FeedbackConfig


class _Feedback(Group):
    """Says which of two commands a configuration is for."""

    def meant(self, ctx: click.Context, word: str) -> str:
        if not names_a_file(word):
            return super().meant(ctx, word)
        path = ctx.command_path
        return f" '{path} push {word}' samples answers and asks people, '{path} pull {word}' fetches what they said."


@click.group(cls=_Feedback)
def feedback() -> None:
    """Collect preferences from people in Argilla."""


@feedback.command()
@click.option("--port", default=6900, show_default=True, help="Port to listen on.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="IP address to listen at; 0.0.0.0 for all."
)
@click.option("--behind-proxy", metavar="URL", help="The URL of a reverse proxy that people use instead.")
@click.option("--proxy-address", default="127.0.0.1", show_default=True, help="That proxy's IP address.")
def serve(port: int, host: str, behind_proxy: str | None, proxy_address: str) -> None:
    """Run the embedded Argilla in the foreground, until Ctrl-C."""
    from feedback.argilla.access import argilla_home
    from feedback.argilla.server.exposure import Exposure
    from feedback.argilla.server.process import Server, run_in_foreground

    exposure = Exposure(host, behind_proxy, proxy_address)
    if exposure.is_readable_on_the_way:
        say(
            "warning: without TLS everybody on the way can read passwords; put a reverse proxy before it and name "
            "that with --behind-proxy https://...",
            err=True,
        )

    def ready(server: Server) -> None:
        url = behind_proxy or server.url
        say(f"Argilla answers at {url}; the owner's login is in {server.home / 'secrets.json'}")

    home = argilla_home(runs_of_command().root)
    click.get_current_context().exit(run_in_foreground(home, port, ready, exposure))


@feedback.command(short_help="Write all that the embedded Argilla keeps to one file.")
@click.argument("file", type=click.Path(path_type=Path))
def backup(file: Path) -> None:
    """Write all that the embedded Argilla keeps to one private file; it may be running."""
    from feedback.argilla.access import argilla_home
    from feedback.argilla.server.backup import backup as write_backup

    write_backup(argilla_home(runs_of_command().root), file)
    say(f"{file} holds Argilla's database and secrets; keep it as private as they are")


@feedback.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace what the embedded Argilla holds now.")
def restore(file: Path, force: bool) -> None:
    """Bring the embedded Argilla back from a backup."""
    from feedback.argilla.access import argilla_home
    from feedback.argilla.server.backup import restore as read_backup

    read_backup(file, argilla_home(runs_of_command().root), force)
    say("restored; `accord feedback serve` or the next round starts it")


@feedback.command(short_help="End the embedded Argilla that a round left running.")
def stop() -> None:
    """End the embedded Argilla that a round left running for its annotators."""
    from feedback.argilla.access import argilla_home
    from feedback.argilla.server.process import stop as stop_server

    say("stopped" if stop_server(argilla_home(runs_of_command().root)) else "was not running")


@feedback.command(short_help="Make people's accounts; new passwords are printed, once.")
@CONFIG
@OVERRIDES
@click.option("--reset", metavar="NAME", help="Give this person a new password, and print it.")
@AS_JSON
def users(config: Path, overrides: tuple[str, ...], reset: str | None, as_json: bool) -> None:
    """Make the accounts of a configuration's people; new passwords are printed, once."""
    from feedback.argilla.access import open_argilla
    from feedback.argilla.people import configured_team, reset_password, set_up_people

    section = _feedback_config(config, overrides)
    if section.annotators != "human":
        raise UsageError(f"{config} has simulated annotators, who need no accounts")
    team = configured_team(section)
    with open_argilla(runs_of_command(), section.argilla_url, section.port) as client:
        passwords = set_up_people(client, team, section.assignment == "balanced")
        if reset:
            passwords[reset] = reset_password(client, reset)
        page = client.url
    names = [person.name for person in team.people]
    if as_json:
        say(json.dumps({"page": page, "users": names, "passwords": passwords}, indent=2))
        return
    say(f"page: {page}")
    for name in dict.fromkeys([*names, *passwords]):
        word = passwords.get(name, "(as before; --reset NAME makes a new one)")
        say(f"user {name}   password {word}")


@feedback.command(short_help="Sample answers and push them to Argilla for people.")
@CONFIG
@OVERRIDES
def push(config: Path, overrides: tuple[str, ...]) -> None:
    """Sample the answers of a round's policy and push them to Argilla for people; the page stays up."""
    if _feedback_config(config, overrides).annotators != "human":
        raise UsageError(
            f"{config} has simulated annotators, who need no push; add feedback.annotators=human"
        )
    try:
        _feedback(config, overrides, wait=False)
    except WaitingForAnnotatorsError as waiting:
        say(f"pushed: {waiting}")


@feedback.command(short_help="Pull answers and make preferences of them.")
@CONFIG
@OVERRIDES
@click.option("--wait", is_flag=True, help="Stay until everything is annotated.")
def pull(config: Path, overrides: tuple[str, ...], wait: bool) -> None:
    """Pull answers and make preferences of them; exit code 75 while annotators have not finished."""
    _feedback(config, overrides, wait)


def _feedback(config: Path, overrides: tuple[str, ...], wait: bool) -> None:
    run = run_until("feedback", config, overrides, wait, alone=True)
    say(f"feedback: {run.path}\n{json.dumps(run.metrics, indent=2)}")


@feedback.command(short_help="Have people compare an evaluation's answers, blind.")
@click.argument("evaluation")
@CONFIG
@OVERRIDES
@click.option(
    "--items", default=40, show_default=True, help="How many pairs of answers to ask about, at most."
)
@click.option(
    "--random-share", default=0.5, show_default=True,
    help="Of them, the share drawn by chance; the others got worst or are most uncertain.",
)  # fmt: skip
@click.option("--wait", is_flag=True, help="Stay until everything is annotated.")
def review(
    evaluation: str, config: Path, overrides: tuple[str, ...], items: int, random_share: float, wait: bool
) -> None:
    """Have the people of a configuration compare an evaluation's answers, blind; exit code 75 until they have.

    EVALUATION is the run's id. Who annotates, how many a record, and where, is what CONFIG's feedback section says.
    """
    from pydantic import ValidationError

    from accord.text_files import describe
    from eval.review.ask import review as have_reviewed
    from feedback.config import AnnotationConfig, ReviewConfig

    section = _feedback_config(config, overrides)
    people = {name: getattr(section, name) for name in AnnotationConfig.model_fields if name != "task"}
    try:
        settings = ReviewConfig(items=items, random_share=random_share, **people)
    except ValidationError as error:
        raise UsageError(describe(error)) from None
    runs = runs_of_command()
    run = have_reviewed(settings, runs, runs.load(evaluation), wait)
    say(f"review: {run.path}\n{json.dumps(run.metrics, indent=2)}")


@feedback.command()
@RUN
@AS_JSON
def status(run: str, as_json: bool) -> None:
    """Show how far the annotators of a feedback run are."""
    from dataclasses import asdict

    from accord.records import Comparison, read_jsonl
    from feedback.annotation import ADJUDICATION
    from feedback.argilla.access import open_argilla
    from feedback.argilla.collect import status as look
    from feedback.config import FeedbackConfig, ReviewConfig

    runs = runs_of_command()
    found = runs.load(run)
    if found.record.stage != "feedback":
        raise UsageError(f"{found.id} is no feedback run; `accord runs list` shows which are")
    queues = {found.id: "queue.jsonl", found.id + ADJUDICATION: "adjudication.jsonl"}
    pushed = {name: found.path / file for name, file in queues.items() if (found.path / file).exists()}
    if not pushed:
        raise UsageError(f"{found.id} has not sampled its answers yet; run its command again")
    kind = ReviewConfig if "evaluation" in found.record.parents else FeedbackConfig
    settings = kind(**found.record.config)
    with open_argilla(runs, settings.argilla_url, settings.port, leave_as_found=True) as client:
        states = {
            name: asdict(look(client, name, read_jsonl(path, Comparison))) for name, path in pushed.items()
        }
    if as_json:
        say(json.dumps({"run": found.id, "queues": states}, indent=2))
        return
    for name, state in states.items():
        annotated = state["records"] - state["records_waiting"]
        say(f"{name}: {annotated} of {state['records']} records annotated")
        for annotator, counts in state["answers"].items():
            say(f"  {annotator}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))


@feedback.command(short_help="Show how far annotators agree, attend and follow position.")
@RUN
@AS_JSON
def agreement(run: str, as_json: bool) -> None:
    """Show how far annotators agree, attend and follow position: of a feedback run, as of the last pull, or of a file.

    \b
    accord feedback agreement feedback-0123456789ab
    accord feedback agreement rankings.jsonl
    """
    if names_a_file(run) and not Path(run).is_dir():
        _agreement_of_file(run, as_json)
        return
    found = runs_of_command().load(run)
    path = found.path / "agreement.json"
    if found.record.stage != "feedback" or not path.exists():
        raise UsageError(
            f"{found.id} has no answers of annotators; `accord feedback pull` fetches a feedback run's"
        )
    if found.is_done:
        found.check_outputs()
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(f"{path}: is damaged; `accord feedback pull` makes it anew") from None
    if as_json:
        say(json.dumps(figures, indent=2))
        return
    from feedback.page.report import summary

    say(summary(figures))
    say(f"report: {found.path / 'report.html'}")


def _agreement_of_file(file: str, as_json: bool) -> None:
    from feedback.belief.agreement import measure_agreement
    from feedback.belief.preferences import pairwise_preferences
    from feedback.belief.reliability import fit_reliability
    from feedback.outside.rows import read_outside
    from feedback.page.report import figures, summary

    comparisons, left_out = read_outside(file)
    reliability = fit_reliability(comparisons)
    evidence = (measure_agreement(comparisons, reliability), reliability)
    found = figures(comparisons, *evidence, *pairwise_preferences(comparisons, reliability))
    if as_json:
        say(json.dumps(found, indent=2))
        return
    say(summary(found))
    if left_out:
        say(f"{left_out} labels are of the only answer to their prompt, which cannot be compared")
    say(f"`accord feedback import {file}` keeps this as a run, with its page, to train on and to export")


@feedback.command(name="import", short_help="Make a feedback run of what annotators said elsewhere.")
@click.argument("file")
def import_(file: str) -> None:
    """Make a finished feedback run of a file with comparisons, rankings, choices or labels collected elsewhere.

    Every row says who ranked, in a column `annotator`. A round trains on it with preferences: run:feedback-<id>.
    """
    from feedback.outside.run import import_feedback
    from feedback.page.report import summary

    run = import_feedback(file, runs_of_command())
    say(summary(json.loads((run.path / "agreement.json").read_text(encoding="utf-8"))))
    say(f"report: {run.path / 'report.html'}")
    say(f"to train on it: preferences: run:{run.id}")


@feedback.command(short_help="Write a finished feedback run as a data set with a card.")
@RUN
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="A new folder for the data set."
)
@click.option("--names", is_flag=True, help="Keep annotators' names, in place of pseudonyms.")
def export(run: str, output: Path, names: bool) -> None:
    """Write a finished feedback run as a data set: preferences for TRL, every ranking, and a data card."""
    from feedback.export import export_data_set

    runs = runs_of_command()
    counts = export_data_set(_finished_feedback(run), runs, output, with_names=names)
    for name, rows in counts.items():
        say(f"{output / name}: {rows} rows")
    say(f"{output / 'README.md'}: the data card; read it before you publish")


def _finished_feedback(run: str) -> "Run":
    found = runs_of_command().load(run)
    if not found.is_done or found.record.stage != "feedback":
        raise UsageError(f"{found.id} is no finished feedback run; `accord runs list` shows which are")
    return found


def _feedback_config(config: Path, overrides: tuple[str, ...]) -> "FeedbackConfig":
    from accord.config import load_config
    from accord.round_config import RoundConfig

    section = load_config(config, RoundConfig, overrides).feedback
    if section is None:
        raise UsageError(f"{config} has no feedback section, so nobody is asked; add one")
    return section
