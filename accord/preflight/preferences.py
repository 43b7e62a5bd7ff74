"""A look at the preferences that are there already."""

from collections.abc import Sequence
from pathlib import Path

from accord.bundled import data_path
from accord.errors import DataError, UsageError
from accord.preflight.evaluation import prompts_of
from accord.preflight.shared import Faults, Prompts
from accord.records import Comparison, Preference, Row, conversation_id, holds_comparisons, read_jsonl
from accord.round_config import RoundConfig
from accord.runs import Run, Runs
from reward.config import NO_RANKINGS, RewardConfig
from rl.config import NO_RATINGS


def look_at_preferences(
    config: RoundConfig, runs: Runs, sections: Sequence[str], prompts: Prompts | None, faults: Faults
) -> None:
    """Those that are there already: a file, or a finished run, which may have judged what the gate measures."""
    if config.preferences is None:
        return
    if config.preferences.startswith("run:"):
        if config.eval and "eval" not in sections:
            with faults.of("eval.prompts"):
                prompts = prompts_of(config.eval)
        with faults.of("preferences"):
            check_unseen(finished_feedback(config.preferences, runs), prompts or {})
        return
    path = data_path(config.preferences)
    by_ratings = "rl" in sections and getattr(config.rl, "labels", None) == "ratings"
    with faults.of("preferences"):
        if config.reward and "reward" in sections:
            _look_at_slices(config.reward, path, faults)
        if not holds_comparisons(path):
            read_jsonl(path, Preference)
            if by_ratings:
                raise DataError(f"{path}: {NO_RATINGS}")
            if config.reward and "reward" in sections and config.reward.loss == "plackett_luce":
                raise DataError(NO_RANKINGS)
            return
        read_jsonl(path, Comparison)
        if config.rl and "rl" in sections and not by_ratings:
            raise DataError(
                f"{path}: holds comparisons, which a reward model learns from; {config.rl.algorithm} reads pairs of a "
                "chosen and a rejected answer, so give a file of those, or a finished feedback run"
            )


def _look_at_slices(config: RewardConfig, path: Path, faults: Faults) -> None:
    """Whether the columns are there that the user, and not a default, splits the accuracy by."""
    if "slices" not in config.model_fields_set:
        return
    row_type: type[Row] = Comparison if holds_comparisons(path) else Preference
    rows = read_jsonl(path, row_type)
    columns = {
        name: any(
            isinstance(value, str) and value for value in ((row.model_extra or {}).get(name) for row in rows)
        )
        for name in {name for row in rows for name in row.model_extra or {}}
    }
    there = sorted(name for name, has_text in columns.items() if has_text)
    with faults.of("reward.slices"):
        for name in config.slices:
            if name not in there:
                what = "has no text in any row" if name in columns else "is no column"
                raise UsageError(
                    f"'{name}' {what} of {path}; columns of text there are: {', '.join(there) or 'none'}"
                )


def finished_feedback(reference: str, runs: Runs) -> Run:
    """The finished feedback run that `preferences` names.

    Raises:
        UsageError: there is no such run, or it is no feedback or not finished.
        TamperedError: its files are not the recorded ones.
    """
    run = runs.load(reference)
    if run.record.stage != "feedback":
        raise UsageError(f"preferences: {run.id} is no feedback run; `accord runs list` shows which are")
    run.output("comparisons.jsonl")
    runs.check(run)
    return run


def check_unseen(feedback: Run, prompts: Prompts) -> None:
    """Refuse an evaluation by prompts that were judged, and so trained on.

    Raises:
        UsageError: with how many were.
    """
    comparisons = read_jsonl(feedback.output("comparisons.jsonl"), Comparison)
    judged = {conversation_id(each.prompt) for each in comparisons if not each.is_probe}
    if seen := sum(conversation_id(prompt) in judged for prompt in prompts.values()):
        raise UsageError(
            f"{seen} of the evaluation's {len(prompts)} prompts were judged in {feedback.id}, so training would see "
            "what the gate measures; give eval.prompts a file without them"
        )
