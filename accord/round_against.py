"""What `--against` names: held-out files, suites, and all that an evaluation of a round measures by."""

from collections.abc import Sequence
from pathlib import Path

from accord.bundled import data_path
from accord.config import load_config
from accord.data.check import kind_of_rows
from accord.data.quality.held_out import HeldOut
from accord.data.reading import read
from accord.data.rows import open_data
from accord.errors import UsageError
from accord.records import Prompt, Row, read_jsonl
from accord.round_config import RoundConfig
from accord.runs import Runs
from eval.checks.contamination import texts_of
from eval.rows import SUITE
from eval.suites.suite import find_suite, read_items


def held_out_by(references: Sequence[str], runs: Runs) -> HeldOut:
    """What none of the rows to learn from should hold.

    Args:
        references: each a file of rows whose questions are held out, `suite:NAME` (a name, a folder or `public:<name>`,
            as `eval.suites` has it), or a round's configuration (`.yaml`), whose evaluation's prompts and suites count.
        runs: where rows of files in other forms are kept.

    Raises:
        UsageError: there is no such suite, or the configuration has no evaluation.
        DataError: a row is faulty.
    """
    rows: list[Row] = []
    places: list[str] = []
    items: list[tuple[str, str]] = []
    for reference in references:
        suites: list[str] = []
        at_most = None
        if reference.startswith(SUITE):
            suites = [reference.removeprefix(SUITE)]
        elif Path(reference).suffix in (".yaml", ".yml"):
            round_config = load_config(Path(reference), RoundConfig)
            config = round_config.eval
            if config is None:
                raise UsageError(f"{reference}: has no section eval, so it measures by nothing")
            opened = open_data(config, runs, round_config.data)
            prompts = read_jsonl(data_path(opened.prompts), Prompt)[: config.max_prompts]
            rows += prompts
            places += [row.place for row in prompts]
            suites, at_most = config.suites, config.max_suite_items
        else:
            reading = read(reference, kind_of_rows(reference, {}))
            reading.check()
            rows += reading.rows
            places += reading.places
        for name in suites:
            suite = find_suite(name)
            items += [
                (f"{SUITE}{suite.name}/{item.id}", text)
                for item in read_items(suite, at_most)
                for text in texts_of(item.model_dump(exclude={"id", "template", "group"}))
            ]
    return HeldOut(rows, places, items)
