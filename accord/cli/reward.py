"""`accord reward ...`: train the reward model, and score answers with it or with a judge."""

import json
from pathlib import Path

import click

from accord import parallel
from accord.cli.shared import AS_JSON, CONFIG, OVERRIDES, group_with_default, run_until, runs_of_command
from accord.compute import worker
from accord.terminal import say


@click.group(cls=group_with_default("train"), subcommand_metavar="CONFIG | COMMAND [ARGS]...")
def reward() -> None:
    """Train the reward model, or score answers.

    `accord reward CONFIG [key=value]...` is short for `accord reward train CONFIG [key=value]...`.
    """


@reward.command(short_help="Train the reward model on the round's preferences.")
@CONFIG
@OVERRIDES
def train(config: Path, overrides: tuple[str, ...]) -> None:
    """Train the reward model on the round's preferences. The stages it builds on must be finished."""
    run = run_until("reward", config, overrides, alone=True)
    if parallel.is_first() and not worker.is_launched():
        say(f"reward: {run.path}\n{json.dumps(run.metrics, indent=2)}")


@reward.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--model", required=True, metavar="REF",
    help="What scores: a reward model (run:<id>, a folder, a hub id), judge:<model reference>, "
    "judge:https://host/v1#model-name, vllm:http://host:port#<reward model>, or file.py:function.",
)  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), help="Where the scored rows go; default: printed.")
@click.option(
    "--pairwise", is_flag=True, help="Have a judge compare a preference's two answers, in both orders."
)
@click.option(
    "--batch-size", default=16, show_default=True, type=click.IntRange(min=1),
    help="How many conversations are computed, or sent to a server, at a time.",
)  # fmt: skip
@AS_JSON
def score(
    file: Path, model: str, output: Path | None, pairwise: bool, batch_size: int, as_json: bool
) -> None:
    """Score a file of conversations or preferences, as JSON Lines.

    \b
    {"messages": [...]}                                     gets "score"
    {"prompt": [...], "chosen": [...], "rejected": [...]}   gets "chosen_score" and "rejected_score"

    The scored rows are printed, or go to --output; the figures of all of them go to stderr. With --json, what is
    printed is one JSON object: the figures, and "scored" where there is no --output.
    """
    from accord.text_files import write_jsonl
    from reward.score_file import compare_rows, read_rows, score_rows
    from reward.scorers import scorer_of

    rows = read_rows(file)
    scorer = scorer_of(model, runs_of_command(), batch_size)
    scored, figures = (compare_rows if pairwise else score_rows)(scorer, rows)
    figures = {"scorer": scorer.reference, "digest": scorer.digest, **figures}
    if output:
        write_jsonl(output, scored)
    if as_json:
        say(json.dumps(figures if output else figures | {"scored": scored}, indent=2))
        return
    if not output:
        for row in scored:
            say(json.dumps(row, ensure_ascii=False))
    for name, value in figures.items():
        shown = round(value, 4) if isinstance(value, float) else value
        say(f"{name}: {'none' if shown is None else shown}", err=True)
    if output:
        say(f"scored rows: {output}", err=True)
