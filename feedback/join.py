"""Rankings of several feedback runs as one: what a round collects, and the reviews of earlier evaluations."""

from collections.abc import Sequence

from accord.config import Config
from accord.records import Comparison, read_jsonl
from accord.runs import Run, Runs
from accord.text_files import write_jsonl
from feedback.annotation import conclude


class JoinConfig(Config):
    """Nothing to choose but the seed of the resampling behind the agreement's intervals."""

    seed: int = 0


def join_feedback(runs: Runs, parts: Sequence[Run]) -> Run:
    """A feedback run with the rankings of all of these, which are finished.

    Annotators are who they are in any of them, so that how far one can be relied on follows from all that they ranked.
    A comparison's id is `<run>/<its id there>`.

    Raises:
        TamperedError: the files of one are not the recorded ones.
    """
    for part in parts:
        runs.check(part)
    sources = {f"feedback_{number}": part for number, part in enumerate(parts)}
    with runs.begin("feedback", JoinConfig(), sources) as run:
        if run.is_done:
            return run
        comparisons = [
            _renamed(each, part.id)
            for part in parts
            for each in read_jsonl(part.output("comparisons.jsonl"), Comparison)
        ]
        write_jsonl(run.path / "comparisons.jsonl", comparisons)
        kinds = {part.metrics["annotators_kind"] for part in parts}
        kind = "simulated" if "simulated" in kinds else "human"  # whatever programs touched says so
        conclude(run, comparisons, kind, run.record.seed or 0)
    return run


def _renamed(comparison: Comparison, run_id: str) -> Comparison:
    original = comparison.duplicate_of
    return comparison.model_copy(
        update={
            "id": f"{run_id}/{comparison.id}",
            "duplicate_of": f"{run_id}/{original}" if original else None,
        }
    )
