"""`accord data ...`: look at files of rows before anything learns from them, and turn them into accord's own form."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accord.cli.shared import AS_JSON, CONFIG, OVERRIDES, Group, runs_of_command
from accord.terminal import say

if TYPE_CHECKING:
    from accord.data.check import Report
    from accord.data.quality.held_out import HeldOut
    from accord.data.quality.survey import Quality, Share
    from accord.data.reading import Reading

KINDS = ("demonstrations", "prompts", "preferences", "comparisons", "feedback")


def _reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how a file is read."""
    for option in (
        click.option(
            "--system", type=click.Choice(["keep", "merge_into_user"]), default="keep", show_default=True,
            help="merge_into_user: put system messages before the user's first words.",
        ),
        click.option(
            "--columns", multiple=True, metavar="PART=COLUMN",
            help="Which column is what, where names do not say it: --columns prompt=Q --columns completion=A.",
        ),
        click.option(
            "--as", "kind", type=click.Choice(KINDS), help="What the rows are; default: what the first one is."
        ),
    ):  # fmt: skip
        command = option(command)
    return command


_AGAINST = click.option(
    "--against", multiple=True, metavar="FILE|suite:NAME|CONFIG.yaml",
    help="What is held out: a file's questions, a suite's items, or all that a configuration's evaluation measures by. "
    "Look for rows that hold it (contamination), or whose question is near to it (near_heldout).",
)  # fmt: skip


@click.group(cls=Group, short_help="Check files of rows, and convert them to accord's own form.")
def data() -> None:
    """Look at files of rows before anything learns from them, and turn them into accord's own form."""


@data.command(short_help="Report all faults of files, and what they hold.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@_reading_options
@click.option("--model", metavar="REF", help="Whose chat template and tokens are tried on every row.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Count rows over this length; needs --model.")
@click.option(
    "--drop-faulty", is_flag=True,
    help="Write the good rows to FILE.good.jsonl and the others, with their faults, to FILE.faulty.jsonl.",
)  # fmt: skip
@click.option(
    "--quality", is_flag=True,
    help="Look for near duplicates (also across the files), personal data, encoding damage, languages, refusals, ...",
)  # fmt: skip
@_AGAINST
@click.option("--page", type=click.Path(path_type=Path), help="Write the report as a page, too.")
@AS_JSON
def check(
    files: tuple[str, ...], kind: str | None, columns: tuple[str, ...], system: str, model: str | None,
    max_tokens: int | None, drop_faulty: bool, quality: bool, against: tuple[str, ...], page: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Report all faults of files, and what they hold: rows, roles, lengths, duplicates, control tokens, ...

    FILE is JSON Lines (also .gz, .zst), a JSON array, CSV, TSV, Parquet, an Arrow folder or hub:owner/name:split.
    Exit code 1 if a row is faulty and --drop-faulty is not given.
    """
    from accord.data.check import examine

    if max_tokens and not model:
        raise click.UsageError("--max-tokens needs --model, whose tokens are counted")
    if against and not quality:
        raise click.UsageError("--against needs --quality, which looks for rows that are near")
    measure = _survey(against) if quality else None
    tokenizer = None
    if model:
        from accord.models.loading import load_tokenizer
        from accord.models.references import locate

        tokenizer = load_tokenizer(locate(model, runs_of_command()))
    reports, written = [], []
    for file in files:
        reading = _read(file, kind, columns, system)
        if not reading.faulty:
            reading.check()  # that there is a row
        reports.append(examine(reading, tokenizer, max_tokens))
        if measure:
            reports[-1].quality = measure(reading)
        if drop_faulty and reading.faulty:
            good = Path(f"{file}.good.jsonl")
            written += [good, _write(reading, good)]
    if as_json:
        say(json.dumps([report.as_dict() for report in reports], indent=2, ensure_ascii=False))
    else:
        for report in reports:
            _show(report)
        for path in filter(None, written):
            say(f"written: {path}")
    if page:
        _write_page(reports, page)
        say(f"page: {page}", err=True)
    if any(report.faults for report in reports) and not drop_faulty:
        click.get_current_context().exit(1)


@data.command(short_help="Read, check, encode and mix what a fine-tuning learns from.")
@CONFIG
@OVERRIDES
@AS_JSON
def prepare(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Make the data of a configuration's sft section, as the run that `accord sft` and `accord round` then find.

    Prints for each file how many rows it has, how many are held out, and how often an epoch shows each of the others.
    """
    from accord.config import load_config
    from accord.data.rows import open_data
    from accord.models.base import examine_base
    from accord.round_against import held_out_by
    from accord.round_config import RoundConfig

    settings = load_config(config, RoundConfig, overrides)
    if settings.sft is None:
        raise click.UsageError("this configuration has no sft section, whose data are prepared; add one")
    runs = runs_of_command()
    section = open_data(settings.sft, runs, settings.data)
    _, tokenizer = examine_base(settings.model, runs, settings.chat_template)
    from sft.data import files_of, prepare

    held_out = held_out_by(settings.data.against, runs) if settings.data.against else None
    run = prepare(section, runs, tokenizer, settings.data, held_out)
    files = files_of(run)
    if as_json:
        found = {"run": run.id, **run.metrics, "dropped": run.record.dropped, "files": files}
        say(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for each in files:
        say(
            f"{each['file']}: {each['rows']:,} rows, {each['too_long']:,} too long, {each['heldout']:,} held out; an "
            f"epoch shows {each['trained']:,} of them {each['times_each']:.2f} times each, {each['tokens']:,} tokens"
        )
    dropped = ", ".join(
        f"{count:,} {reason.replace('_', ' ')}" for reason, count in run.record.dropped.items()
    )
    reasons = ", ".join(f"{what} {count:,}" for what, count in run.metrics.get("filtered", {}).items())
    say(f"left out: {dropped}" + (f" ({reasons}; {run.path / 'dropped.jsonl'})" if reasons else ""))
    say(
        f"an epoch: {run.metrics['rows_an_epoch']:,} rows, {run.metrics['tokens_an_epoch']:,} tokens, of which "
        f"{run.metrics['learned_tokens_an_epoch']:,} are learned; {run.metrics['heldout_rows']:,} rows held out"
    )
    say(f"page: {run.path / 'report.html'}")
    say(f"run:{run.id}")


@data.command(short_help="Write a file's rows in accord's own form.")
@click.argument("file")
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="Where the rows go, as JSON Lines."
)
@_reading_options
@click.option(
    "--drop-faulty",
    is_flag=True,
    help="Write faulty rows to OUTPUT.faulty.jsonl, with their faults.",
)
@click.option(
    "--drop", default="", metavar="WHAT,...",
    help="Kinds of `data check --quality --json` (near_duplicates, pii, refusals, ...), language!=en, or loss>4 for a "
    "column of numbers: write these rows to OUTPUT.dropped.jsonl, with the reasons.",
)  # fmt: skip
@click.option(
    "--redact", default="", metavar="WHAT,...",
    help="pii, or some of email, phone, card, iban, ip, secret: write <EMAIL> and the like in their place.",
)  # fmt: skip
@click.option(
    "--repair", default="", metavar="WHAT,...",
    help="encoding: mend text in a wrong encoding; invisible: leave out control and invisible characters.",
)  # fmt: skip
@_AGAINST
def convert(
    file: str, output: Path, kind: str | None, columns: tuple[str, ...], system: str, drop_faulty: bool,
    drop: str, redact: str, repair: str, against: tuple[str, ...],
) -> None:  # fmt: skip
    """Write the rows of a file of any kind and convention in accord's own form.

    Rows are repaired, then redacted, then dropped, each only where an option asks for it.
    """
    from accord.data.quality.clean import Wishes, clean
    from accord.text_files import write_jsonl

    wishes = Wishes.of(drop, redact, repair, bool(against))
    if against and not {"near_heldout", "contamination"} & set(wishes.drop):
        raise click.UsageError(
            "--against: say with --drop contamination, or near_heldout, what shall become of the rows"
        )
    reading = _read(file, kind, columns, system)
    if not drop_faulty:
        reading.check()
    cleaned = clean(reading, wishes, _held_out(against))
    faulty = _write(reading, output)
    say(f"{output}: {len(reading.rows)} rows, from {reading.convention}")
    if wishes.repair:
        say(f"{cleaned.repaired} of these rows were repaired")
    if wishes.redact:
        say(f"{cleaned.redacted} of these rows were redacted")
    if wishes.drop or cleaned.dropped:
        dropped = Path(f"{output}.dropped.jsonl")
        write_jsonl(dropped, cleaned.dropped)
        listed = ", ".join(f"{what} {count}" for what, count in cleaned.reasons.items())
        say(f"{dropped}: {len(cleaned.dropped)} rows" + (f" ({listed})" if listed else ""))
    if faulty:
        say(f"{faulty}: {len(reading.faulty)} rows that were left out")


@data.command(short_help="Add a model's loss and rewards to demonstrations, as columns.")
@click.argument("file")
@click.option(
    "--model", metavar="REF", help="Whose loss on the answers is measured, with and without the prompt."
)
@click.option(
    "--reward-model",
    metavar="REF",
    help="A reward model or a function, as `accord reward score --model` has it.",
)
@click.option("--judge", metavar="REF", help="judge:<model reference> or judge:https://host/v1#model-name.")
@click.option("--output", type=click.Path(path_type=Path), help="Where the rows go, too, as JSON Lines.")
@AS_JSON
def score(
    file: str,
    model: str | None,
    reward_model: str | None,
    judge: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure how hard and how good the answers of demonstrations are, as columns to drop rows by.

    --model adds loss (nats a token of the answers), loss_without_prompt, ifd (the one as a share of the other) and
    answer_tokens; --reward-model adds reward, --judge adds judge. The rows are a run, `scores-<id>`, which is
    continued after a kill, and which any setting may name as `run:scores-<id>`. Then, for instance:
    `accord data convert OUTPUT --output kept.jsonl --drop "loss>4,ifd>1,reward<-1"`.
    """
    from reward.columns import ScoreConfig, score_columns

    if not (model or reward_model or judge):
        raise click.UsageError("say with --model, --reward-model or --judge what scores")
    config = ScoreConfig(rows=file, model=model, reward_model=reward_model, judge=judge)
    run = score_columns(config, runs_of_command())
    if output:
        from accord.text_files import write_atomically

        write_atomically(output, (run.path / "rows.jsonl").read_bytes())
    if as_json:
        say(json.dumps({"run": run.id, **run.metrics}, indent=2))
        return
    say(f"{output or run.path / 'rows.jsonl'}: {run.metrics['rows']} rows (run:{run.id})")
    for column, figures in run.metrics.items():
        if isinstance(figures, dict) and figures["rows"]:
            shown = ", ".join(f"{name} {figures[name]:.4g}" for name in ("mean", "10%", "50%", "90%"))
            say(f"  {column}: {shown}")


@data.command(short_help="Have a model write answers, paraphrases or prompts from seeds.")
@CONFIG
@OVERRIDES
@AS_JSON
def generate(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Have a model write what the configuration's section data.generate says, and keep what passes the filters.

    The rows are a run, `generate-<id>`, which is continued after a kill, and which demonstrations and prompts may name
    as `run:generate-<id>`. Cost and yield are printed.
    """
    from accord.config import load_config
    from accord.data.generate import generate
    from accord.round_config import RoundConfig

    settings = load_config(config, RoundConfig, overrides)
    section = settings.data.generate
    if section is None:
        raise click.UsageError(f"{config}: has no section data.generate, which says what is to be written")
    if section.model is None:
        section = section.model_copy(update={"model": settings.model})
    run = generate(section, runs_of_command(), settings.sampling, settings.data)
    if as_json:
        say(json.dumps({"run": run.id, **run.metrics, "dropped": run.record.dropped}, indent=2))
        return
    figures = run.metrics
    say(
        f"{run.path / 'rows.jsonl'}: {figures['kept']} {section.kind}, {figures['yield']:.0%} of {figures['asked']} "
        f"(run:{run.id})"
    )
    listed = ", ".join(f"{what} {count}" for what, count in run.record.dropped.items())
    say(
        f"{run.path / 'dropped.jsonl'}: {sum(run.record.dropped.values())}"
        + (f" ({listed})" if listed else "")
    )
    price = f", price {figures['price']:.4g}" if figures["price"] is not None else ""
    say(
        f"{figures['prompt_tokens']} tokens read, {figures['tokens']} written in {figures['seconds']:.0f} s{price}"
    )


def _held_out(against: tuple[str, ...]) -> "HeldOut | None":
    from accord.round_against import held_out_by

    return held_out_by(against, runs_of_command()) if against else None


def _survey(against: tuple[str, ...]) -> "Callable[[Reading], Quality]":
    from accord.data.quality.near import NearDuplicates
    from accord.data.quality.survey import survey

    near, held_out = NearDuplicates(), _held_out(against)
    return lambda reading: survey(reading, near, held_out)


def _read(file: str, kind: str | None, columns: tuple[str, ...], system: str) -> "Reading":
    from accord.data.check import kind_of_rows
    from accord.data.config import DataConfig
    from accord.data.conventions import PLURALS
    from accord.data.reading import read

    parts: dict[str, str] = {}
    for each in columns:
        part, equals, column = each.partition("=")
        if not equals or not column:
            raise click.UsageError(f"--columns {each}: write PART=COLUMN, for example prompt=question")
        parts[part] = column
    row_type = (
        {name: row_type for row_type, name in PLURALS.items()}[kind] if kind else kind_of_rows(file, parts)
    )
    config: DataConfig = DataConfig.model_validate({"columns": {file: parts}, "system": system})
    return read(file, row_type, config)


def _write(reading: "Reading", good: Path) -> Path | None:
    """The good rows, and beside them the others with their faults; returns the file of those, if there are any."""
    from accord.text_files import write_jsonl

    write_jsonl(good, reading.rows)
    if not reading.faulty:
        return None
    faulty = (
        good.with_suffix("").with_suffix(".faulty.jsonl")
        if good.name.endswith(".good.jsonl")
        else Path(f"{good}.faulty.jsonl")
    )
    write_jsonl(
        faulty,
        (
            {"place": faults[0].place, "faults": [fault.message for fault in faults], "row": row}
            for faults, row in reading.faulty
        ),
    )
    return faulty


def _show(report: "Report") -> None:
    from accord.data.check import FIGURES

    held = report.contents
    encoding = f", {report.encoding}" if report.encoding else ""
    say(f"{report.name}: {held.rows} {report.kind} ({report.convention}{encoding})")
    if report.faults:
        say(f"  {report.faulty_rows} faulty rows, {len(report.faults)} kinds of faults:")
        for each in report.faults:
            more = ", ..." if each.count > len(each.places) else ""
            say(f"  {each.count:>6}  {each.example}")
            say(f"          {', '.join(each.places)}{more}")
    else:
        say("  no faulty rows")
    if held.roles:
        say(f"  turns: {', '.join(f'{count} {role}' for role, count in held.roles.items())}")
        by_turns = ", ".join(f"{turns}: {count}" for turns, count in held.turns.items())
        say(f"  rows by number of turns: {by_turns}")
    if held.lengths:
        spread = ", ".join(f"{name} {value:,.0f}" for name, value in held.lengths.items())
        say(f"  {held.unit} a row: {spread}")
    for what, count in held.figures.items():
        say(f"  {count:>6}  {FIGURES[what]}")
        for where in [place for name, place, _ in report.examples if name == what][:3]:
            say(f"          {where}")
    if report.quality:
        say("  quality, each kind with its share and the 95% interval:")
        for kind in [kind for kind in report.quality.shares if kind.rows]:
            say(f"  {kind.rows:>6}  {kind.what}: {kind.label}{_percent(kind)}")
            for where, detail in kind.examples:
                say(f"          {where}: {detail}")
        none = [kind.what for kind in report.quality.shares if not kind.rows]
        say(f"       0  {', '.join(none)}")
        spoken = [f"{name.label} {name.rows}{_percent(name)}" for name in report.quality.languages]
        say(f"  languages: {'; '.join(spoken) or 'none'}")
    if held.columns:
        say(f"  columns that stay as they are: {', '.join(held.columns)}")


def _percent(each: "Share") -> str:
    if not each.rows:
        return ""
    between = "" if each.low is None or each.high is None else f", {each.low:.1%} to {each.high:.1%}"
    return f" ({each.share:.1%}{between})"


def _write_page(reports: list["Report"], page: Path) -> None:
    import accord.data
    from accord.data.check import FIGURES
    from accord.page.render import render
    from accord.text_files import write_atomically

    names = ", ".join(Path(report.name).name for report in reports)
    folder = Path(accord.data.__path__[0])
    values = {"reports": reports, "names": names, "labels": FIGURES}
    write_atomically(page, render(folder, "check.html.jinja", values))
