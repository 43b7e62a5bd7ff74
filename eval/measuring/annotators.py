"""Who judged what models were made from: programs, people, or nobody knows whom.

Simulated annotators rank by a formula over words (feedback/utility.py), which says nothing about what people like. So
the metric `utility`, which is that formula, is measured only where it is what annotators went by: where simulated ones
judged for the baseline or the candidate, and people had no part in anything that an evaluation rests on.
"""

from collections.abc import Collection, Iterable
from typing import Literal

from accord.errors import UsageError
from accord.runs import Run, Runs

FORMULA = "utility"
Annotators = Literal["simulated", "human", "unknown"]


def annotators_behind(run_ids: Iterable[str | None], runs: Runs) -> set[Annotators]:
    """The kinds of annotators that judged for these runs and for all that they descend from.

    Preferences and labels from a file count as "unknown". None is a model from outside, of which nothing is known
    either, and which adds no kind.
    """
    found: set[Annotators] = set()
    for run_id in {each for each in run_ids if each}:
        for run in runs.lineage(runs.load(run_id)):
            if run.record.stage == "feedback":
                found.add(_kind(run))
            elif {"preferences", "feedback"} & run.record.inputs.keys():
                found.add("unknown")
    return found


def _kind(feedback: Run) -> Annotators:
    kind = feedback.record.config.get("annotators")
    if kind is None and feedback.is_done:  # joined from others, which are behind it, too
        kind = feedback.metrics.get("annotators_kind")
    return kind if kind in ("simulated", "human") else "unknown"


def measures_formula(models: Collection[Annotators], others: Collection[Annotators] = ()) -> bool:
    """Whether the formula may be measured.

    Args:
        models: who judged for the baseline and the candidate.
        others: who judged for whatever else the evaluation rests on: its reward model, its review.
    """
    return "simulated" in models and not {"human", "unknown"} & {*models, *others}


def check_formula_is_not_gated(
    gate: Collection[str], models: Collection[Annotators], others: Collection[Annotators] = ()
) -> None:
    """Refuse a margin for a formula that may not be measured; the arguments are those of `measures_formula`.

    Raises:
        UsageError: with who judged.
    """
    if FORMULA not in gate or measures_formula(models, others):
        return
    kinds = {*models, *others}
    if "human" in kinds:
        who = "people judged here"
    elif "unknown" in kinds:
        who = "who gave the preferences in the file is not known"
    else:
        who = "no simulated annotators judged for these models"
    raise UsageError(
        f"the gate has a margin for '{FORMULA}', the formula by which simulated annotators rank, and {who}; take it "
        "out of the gate, which may have one for 'reward', a judge's win rate or a review instead"
    )
