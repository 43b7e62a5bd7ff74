"""What annotators said elsewhere, as a feedback run: agreement, reliability, page, preferences and export are ours.

accord feedback import rankings.jsonl       # runs/feedback-<id>; a round has it by preferences: run:feedback-<id>
"""

from pathlib import Path

from accord.config import Config
from accord.runs import DataFile, Run, Runs
from accord.text_files import write_jsonl
from feedback.annotation import conclude
from feedback.outside.rows import read_outside


class OutsideConfig(Config):
    """Nothing to choose but the seed of the resampling behind the agreement's intervals."""

    annotators: str = "human"
    seed: int = 0


def import_feedback(file: str, runs: Runs) -> Run:
    """A finished feedback run with what a file holds.

    Raises:
        DataError: the file cannot be read; the message names the row.
    """
    with runs.begin("feedback", OutsideConfig(), {"comparisons": DataFile(Path(file))}) as run:
        if run.is_done:
            return run
        comparisons, left_out = read_outside(file)
        write_jsonl(run.path / "comparisons.jsonl", comparisons)
        conclude(run, comparisons, "human", run.record.seed or 0, {"answers_left_out": left_out})
    return run
