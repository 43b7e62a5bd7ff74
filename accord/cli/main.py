"""The command line. Heavy libraries are imported inside the commands, so that `accord --help` answers at once."""

import errno
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accord import __version__, parallel
from accord.cli.chat import chat
from accord.cli.compare import compare
from accord.cli.config import config_group, init
from accord.cli.data import data
from accord.cli.eval import evaluation, finish_with_verdict
from accord.cli.feedback import feedback
from accord.cli.keys import keys
from accord.cli.launch import launch
from accord.cli.review import review
from accord.cli.reward import reward
from accord.cli.shared import (
    AS_JSON,
    CONFIG,
    OVERRIDES,
    RUN,
    Group,
    run_until,
    runs_of_command,
    store_of_command,
)
from accord.compute import worker
from accord.errors import AccordError, WaitingForAnnotatorsError
from accord.preload import restart_with_libraries
from accord.terminal import PlainFormatter, escape_what_libraries_say, printable, say
from rl.algorithms import ALGORITHMS

if TYPE_CHECKING:
    from accord.run_store import RunStore

COMPUTE = ("chat", "demo", "round", "sft", "reward", *ALGORITHMS, "eval", "feedback", "gate")
"""The commands that train or sample, and are worth a restart with faster libraries."""
OF_A_NAME = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ELOOP,
)  # fmt: skip
"""Errors of the system that are about the file or folder that was named."""


class _Accord(Group):
    """Turns accord's errors, and those of a full disk, into one sentence and an exit code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does it, whose messages show words as they are; so words may hold no control characters."""
        if strange := next((word for word in args if printable(word) != word), None):
            ctx.fail(f"'{printable(strange)}' holds control characters, as no word of a command does")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AccordError as error:
            if ctx.params.get("traceback"):
                raise
            label = "waiting" if isinstance(error, WaitingForAnnotatorsError) else "error"
            if parallel.speaks() and worker.is_launched():
                worker.tell(error)
            elif parallel.speaks():
                say(f"{label}: {error}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if not ctx.params.get("traceback") and _is_about_runs(error, ctx.obj):
                say(
                    f"error: {error.filename} cannot be written ({error.strerror}); name a folder for runs that can, "
                    "with --runs or ACCORD_RUNS",
                    err=True,
                )
                ctx.exit(1)
            if not ctx.params.get("traceback") and error.errno == errno.ENAMETOOLONG:
                name = str(error.filename)
                say(
                    f"error: no file can be called {Path(name).name[:60]}...: that is too long a name",
                    err=True,
                )
                ctx.exit(2)
            if not ctx.params.get("traceback") and error.errno in OF_A_NAME and error.filename is not None:
                name = error.filename2 or error.filename
                say(
                    f"error: {name} cannot be read or written ({error.strerror}); name another file or "
                    "folder, or change who may",
                    err=True,
                )
                ctx.exit(1)
            if ctx.params.get("traceback") or error.errno != errno.ENOSPC:
                raise
            say(f"error: the disk is full ({error.filename}); free some space and run this again", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            if parallel.is_first():
                say("\ninterrupted; the same command continues from here", err=True)
            ctx.exit(130)


def _is_about_runs(error: OSError, root: Path | None) -> bool:
    """Whether the folder of runs cannot be one: it is a file, is read-only, or cannot be made."""
    if not isinstance(error.filename, str | os.PathLike) or root is None:
        return False
    place, folder = Path(error.filename).absolute(), root.absolute()
    if folder in place.parents:
        return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
    return not folder.is_dir() and (place == folder or place in folder.parents)


@click.group(cls=_Accord, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option(
    "--runs", "runs_root", type=click.Path(path_type=Path), default=Path("runs"), envvar="ACCORD_RUNS",
    show_default=True, help="Folder that holds the runs.",
)  # fmt: skip
@click.option(
    "--store", metavar="URL", envvar="ACCORD_STORE",
    help="Fetch finished runs from here, and bring new ones: s3://bucket/folder, or whatever fsspec knows.",
)  # fmt: skip
@click.option("--traceback", is_flag=True, help="Show where an error came from.")
@click.pass_context
def main(ctx: click.Context, runs_root: Path, store: str | None, traceback: bool) -> None:
    """Align a language model: fine-tune, collect preferences, train a reward model, optimise, and judge.

    \b
    Exit codes: 0 done or PASS, 1 error, 2 usage, 10 gate FAIL, 11 gate INCONCLUSIVE,
    75 waiting for annotators (run the same command again later).
    """
    ctx.obj = runs_root
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if parallel.count() > 1:
        os.environ.setdefault(
            "TORCH_CPP_LOG_LEVEL", "ERROR"
        )  # warnings about lost connections, and of advice
    if ctx.invoked_subcommand in COMPUTE:
        restart_with_libraries()
        if worker.is_launched():
            worker.end_with_launcher()
        parallel.join()
    escape_what_libraries_say()
    lines = logging.StreamHandler()
    lines.setFormatter(PlainFormatter("%(message)s"))
    logging.basicConfig(handlers=[lines], level=logging.ERROR)
    logging.getLogger("accord").setLevel(logging.INFO)


# --- rounds and stages


@main.command(short_help="Run one whole round on the bundled model, in about 20 minutes.")
@click.option("--human", is_flag=True, help="Leave the ranking to you, in the browser; ranks 20 prompts.")
@OVERRIDES
def demo(human: bool, overrides: tuple[str, ...]) -> None:
    """Run one whole round on the bundled model (about 20 minutes on two cores)."""
    from accord.bundled import config_path

    people = (
        "feedback.annotators=human", "feedback.annotators_per_record=1", "feedback.max_prompts=20",
        "eval.gate.utility=null",
    )  # fmt: skip
    _round(config_path("demo.yaml"), (*people, *overrides) if human else overrides, wait=human)


@main.command("round", short_help="Run or continue a round; finished stages are reused.")
@CONFIG
@OVERRIDES
@click.option(
    "--wait", is_flag=True, help="Stay while annotators work, instead of leaving with exit code 75."
)
@click.option(
    "--no-code",
    is_flag=True,
    help="Refuse a configuration that brings code: functions, kinds, readers, algorithms.",
)
def round_(config: Path, overrides: tuple[str, ...], wait: bool, no_code: bool) -> None:
    """Run or continue a round: the stages that the configuration has sections for. Finished ones are reused."""
    if no_code:
        from accord import user_code

        user_code.forbid()
    _round(config, overrides, wait)


def _round(config: Path, overrides: tuple[str, ...], wait: bool) -> None:
    run = run_until(None, config, overrides, wait)
    if run.record.stage == "eval":
        finish_with_verdict(run)
    elif parallel.is_first():
        say(f"{run.record.stage}: {run.path}\n{json.dumps(run.metrics, indent=2)}")
        say(
            "\nthe round ends here: its configuration has no eval section, so there is no verdict, and nothing can be "
            "promoted"
        )


def _stage_command(stage: str, does: str, key: str = "") -> None:
    """A stage alone; `key` is what has to be set for it."""

    @main.command(
        stage, short_help=f"{does}.", help=f"{does}{key}. The stages it builds on must be finished."
    )
    @CONFIG
    @OVERRIDES
    def command(config: Path, overrides: tuple[str, ...]) -> None:
        run = run_until(stage, config, overrides, alone=True)
        if parallel.is_first() and not worker.is_launched():
            say(f"{stage}: {run.path}\n{json.dumps(run.metrics, indent=2)}")


main.add_command(init)
main.add_command(config_group)
_stage_command("sft", "Fine-tune the base model on demonstrations")
main.add_command(feedback)
main.add_command(reward)
for algorithm in ALGORITHMS.values():
    _stage_command(algorithm.name, algorithm.does, f" (rl.algorithm: {algorithm.name})")
main.add_command(evaluation)
main.add_command(launch)


# --- gate and promotion


@main.command(short_help="Compare any two models by pre-declared margins.")
@click.option(
    "--baseline", required=True, help="The model in use: run:<id>, a folder, a hub id or bundled:..."
)
@click.option("--candidate", required=True, help="The model that may replace it.")
@click.option(
    "--reward-model", metavar="REF",
    help="What scores the answers of both: a reward model, judge:<model reference>, judge:https://host/v1#model-name, "
    "or file.py:function.",
)  # fmt: skip
@click.option(
    "--config", "config_file", required=True, type=click.Path(path_type=Path), help="The gate's margins."
)
@OVERRIDES
def gate(
    baseline: str, candidate: str, reward_model: str | None, config_file: Path, overrides: tuple[str, ...]
) -> None:
    """Compare any two models by pre-declared margins: PASS, FAIL or INCONCLUSIVE."""
    from accord.config import load_config
    from accord.models.base import examine_base, prepare_base
    from accord.sampling.config import SamplingConfig
    from accord.sampling.shared import SharedSampler
    from eval.config import EvalConfig
    from eval.evaluate import evaluate
    from reward.scorers import scorer_of

    config = load_config(config_file, EvalConfig, overrides)
    runs = runs_of_command()
    for reference in (baseline, candidate):
        examine_base(reference, runs)  # before hours of answers by the first
    models = [prepare_base(reference, runs) for reference in (baseline, candidate)]
    scorer = scorer_of(reward_model, runs) if reward_model else None
    with SharedSampler(SamplingConfig()) as sampler:
        run = evaluate(config, runs, sampler, models[0], models[1], scorer)
    finish_with_verdict(run)


@main.command(short_help="Let a candidate replace its baseline, if its verdict is PASS.")
@RUN
@click.option(
    "--override", metavar="REASON",
    help="Promote against a verdict of FAIL or INCONCLUSIVE; the reason, of four words or more, is signed and shown "
    "wherever the model is.",
)  # fmt: skip
def promote(run: str, override: str | None) -> None:
    """Let a candidate replace its baseline; refuses without a valid, passing, untampered verdict."""
    from eval.promotion import approvals_of, card_path, keys_behind
    from eval.promotion import promote as let_replace

    runs = runs_of_command()
    promotion = let_replace(runs.load(run), runs, override)
    say(f"promoted: {promotion.model} (verdict {promotion.outcome} of {promotion.verdict})")
    for each in approvals_of(promotion, runs):
        say(f"approved: {each.who}: {each.statement.comment}")
    if promotion.override is not None:
        say(f"override: {promotion.promoted_by} let it pass for this reason: {promotion.override}")
    say(f"card:     {card_path(promotion, runs)}")
    say(f"keys:     {keys_behind(promotion, runs)}")


main.add_command(review)
main.add_command(keys)


@main.command(short_help="Rebuild an evaluation's page, or sum it up as Markdown.")
@RUN
@click.option("--output", type=click.Path(path_type=Path), help="Where to write; default: print the path.")
@click.option(
    "--markdown",
    is_flag=True,
    help="Print a summary of an evaluation for a comment under a pull request instead.",
)
def report(run: str, output: Path | None, markdown: bool) -> None:
    """Rebuild the HTML page of an evaluation run; with what reviewers signed since, as a page beside it."""
    from eval.page.report import rebuild

    runs = runs_of_command()
    found = runs.load(run)
    if found.is_done:
        found.check_outputs()
    if not markdown:
        say(rebuild(found, runs, output))
        return
    from accord.text_files import write_atomically
    from eval.page.summary import markdown_summary
    from eval.promotion import read_signed_verdict
    from eval.verdict.sign_offs import read_sign_offs

    text = markdown_summary(read_signed_verdict(found), read_sign_offs(found))
    if output is None:
        say(text, nl=False)
        return
    write_atomically(output, text)
    say(output)


main.add_command(chat)
main.add_command(compare)
main.add_command(data)


# --- runs


@main.group(cls=Group, short_help="Look at runs, at their lineage, and whether they are intact.")
def runs() -> None:
    """Look at runs: what was made from what, and whether it is still as it was made."""


@runs.command("list")
@AS_JSON
def list_(as_json: bool) -> None:
    """List all runs, oldest first."""
    from accord.run_index import listed

    if as_json:
        readable, broken = runs_of_command().readable()
        records = [run.record.model_dump() for run in readable]
        say(json.dumps([*records, *({"id": name, "status": "broken"} for name in broken)], indent=2))
        return
    found = listed(runs_of_command().root)
    if found:
        say("\n".join(f"{run.id:<28} {run.status:<8} {run.started_at}" for run in found))
    else:
        say("no runs yet; `accord demo` makes some")


@runs.command()
@RUN
@AS_JSON
def show(run: str, as_json: bool) -> None:
    """Show a run's record and figures."""
    found = runs_of_command().load(run)
    metrics = found.metrics if found.is_done else {}
    if as_json:
        say(json.dumps({"record": found.record.model_dump(), "metrics": metrics}, indent=2))
        return
    record = found.record
    say(f"{record.id}   {record.status}   {record.started_at} to {record.ended_at or 'now'}")
    if record.error:
        say(f"error: {record.error}")
    for title, values in (
        ("made from", record.parents | record.inputs),
        ("figures", metrics),
        ("dropped", record.dropped),
        ("files", {name: digest[:12] for name, digest in record.outputs.items()}),
    ):
        say(f"{title}:")
        for name, value in values.items():
            say(f"  {name}: {value if not isinstance(value, float) else round(value, 4)}")


@runs.command(short_help="Show everything a run descends from, with hashes.")
@RUN
@AS_JSON
def lineage(run: str, as_json: bool) -> None:
    """Show everything a run descends from, down to files and their hashes."""
    found = runs_of_command()
    records = [each.record for each in found.lineage(found.load(run))]
    if as_json:
        say(
            json.dumps(
                [r.model_dump(include={"id", "stage", "parents", "inputs"}) for r in records], indent=2
            )
        )
        return
    for record in records:
        say(record.id)
        for role, source in (record.parents | record.inputs).items():
            say(f"  {role:<18} {source}")


@runs.command(short_help="Compare files with their recorded hashes.")
@click.argument("run", required=False)
@AS_JSON
def verify(run: str | None, as_json: bool) -> None:
    """Compare the files of a run and its ancestors, or of all runs and promotions, with what was recorded."""
    from accord.errors import TamperedError

    found = runs_of_command()
    looked_at, problems = (found.lineage(found.load(run)), {}) if run else found.readable()
    chosen = [each for each in looked_at if each.is_done]
    if not as_json:
        for name in problems:
            say(f"{name:<28} BROKEN")
    promotions = found.root / "promoted.json"
    if run is None and (promotions.exists() or (found.root / "promoted").exists()):
        from eval.promotion import check_list

        state = "ok"
        try:
            check_list(found)
        except AccordError as error:
            state = "TAMPERED" if isinstance(error, TamperedError) else "UNKNOWN KEY"
            problems[promotions.name] = str(error)
        if not as_json:
            say(f"{promotions.name:<28} {state}")
    for each in chosen:
        try:
            each.check_outputs()
        except TamperedError as error:
            problems[each.id] = str(error)
        if not as_json:
            say(f"{each.id:<28} {'TAMPERED' if each.id in problems else 'ok'}")
    if as_json:
        say(json.dumps({"checked": [each.id for each in chosen], "problems": problems}, indent=2))
    if problems:
        raise TamperedError("; ".join(problems.values()))


@runs.command(short_help="Bring finished runs to the store.")
@click.argument("run", required=False)
def push(run: str | None) -> None:
    """Bring a finished run and everything it descends from to the store (--store); without RUN, all finished runs."""
    store, found = _store(), runs_of_command()
    chosen = found.lineage(found.load(run)) if run else [each for each in found.all() if each.is_done]
    for each in chosen:
        say(f"{each.id:<28} {'brought' if store.push(each) else 'is there'}")


@runs.command(short_help="Fetch finished runs from the store.")
@click.argument("run", required=False)
def pull(run: str | None) -> None:
    """Fetch a run and everything it descends from from the store (--store); without RUN, all runs that are there."""
    from accord.runs import run_folders

    store, found = _store(), runs_of_command()
    here = {path.name for path in run_folders(found.root)}
    for wanted in [run] if run else store.ids():
        for each in found.lineage(found.load(wanted)):
            if each.id not in here:
                here.add(each.id)
                say(f"{each.id:<28} fetched")


def _store() -> "RunStore":
    if store := store_of_command():
        return store
    raise click.UsageError("say with --store or ACCORD_STORE which store")


@main.command(short_help="Show what is installed and works here, with remedies.")
@AS_JSON
def doctor(as_json: bool) -> None:
    """Show what is installed and what works here, each failing line with its remedy."""
    from dataclasses import asdict

    from accord.doctor import examine, exit_code, render

    checks = examine()
    if as_json:
        say(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        render(checks)
    click.get_current_context().exit(exit_code(checks))
