"""A file of conversations or preferences, scored: what `accord reward score` does.

{"messages": [..., {"role": "assistant", ...}]}            gets "score", null where a function has no opinion
{"prompt": [...], "chosen": [...], "rejected": [...]}      gets "chosen_score" and "rejected_score"; compared
                                                           by a judge, "chosen_is_better" and "orders_disagree"
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, pstdev
from typing import Any, cast

from accord.data.check import kind_of_rows
from accord.data.conventions import PLURALS
from accord.data.reading import read
from accord.errors import AccordError, DataError, UsageError
from accord.records import Demonstration, Preference, Row
from reward.judge import summarise
from reward.scorers import Scorer

Scored = tuple[list[dict[str, Any]], dict[str, Any]]
"""The rows with their new columns, and the figures of all of them."""


def read_rows(path: Path) -> list[Demonstration] | list[Preference]:
    """The conversations or preferences of a file, of any kind and convention that `accord.data` knows.

    Raises:
        DataError: a bad file, or its rows are neither.
    """
    row_type = kind_of_rows(str(path), {})
    if row_type not in (Demonstration, Preference):
        raise DataError(
            f"{path}: holds {PLURALS[row_type]}, but a row to score is a conversation "
            '{"messages": [...]} or a preference {"prompt": [...], "chosen": [...], "rejected": [...]}'
        )
    reading = read(str(path), row_type)
    reading.check()
    return cast("list[Demonstration] | list[Preference]", reading.rows)


def score_rows(scorer: Scorer, rows: Sequence[Demonstration] | Sequence[Preference]) -> Scored:
    """Every conversation's score, or those of both answers of every preference.

    A function also gets the rows' other columns. Answers on which it has no opinion are left out of the figures, and
    counted in `no_opinion`.

    Raises:
        DataError: the rows have a column of this name already.
        AccordError: what `Scorer.opinions` raises, or there is no opinion on any row.
    """
    preferences = [row for row in rows if isinstance(row, Preference)]
    if not preferences:
        conversations = [row.messages for row in rows if isinstance(row, Demonstration)]
        _check_columns(rows, "score")
        scores = scorer.opinions(conversations, other_columns(rows))
        return (
            [_row(row) | {"score": score} for row, score in zip(rows, scores, strict=True)],
            {"rows": len(rows), **_spread(scores, scorer)},
        )
    _check_columns(preferences, "chosen_score", "rejected_score")
    pairs = [([*row.prompt, *row.chosen], [*row.prompt, *row.rejected]) for row in preferences]
    scores = scorer.opinions(
        [conversation for pair in pairs for conversation in pair],
        other_columns([row for row in preferences for _ in range(2)]),
    )
    chosen, rejected = scores[::2], scores[1::2]
    margins = [c - r for c, r in zip(chosen, rejected, strict=True) if c is not None and r is not None]
    return (
        [
            _row(row) | {"chosen_score": c, "rejected_score": r}
            for row, c, r in zip(preferences, chosen, rejected, strict=True)
        ],
        {
            "rows": len(pairs),
            **_spread(scores, scorer),
            **_accuracy(sum(m > 0 for m in margins), sum(m == 0 for m in margins), len(margins)),
            "mean_margin": mean(margins) if margins else None,
        },
    )


def compare_rows(scorer: Scorer, rows: Sequence[Demonstration] | Sequence[Preference]) -> Scored:
    """What a judge says of both answers of every preference, put before it together, in both orders.

    Raises:
        UsageError: the scorer is no judge, or the rows are no preferences.
        DataError: the rows have a column of this name already.
        AccordError: what `Judge.compare` raises.
    """
    preferences = [row for row in rows if isinstance(row, Preference)]
    if scorer.judge is None:
        raise UsageError(f"{scorer.reference} scores answers one by one; only a judge compares: judge:...")
    if not preferences:
        raise UsageError(
            "conversations hold one answer each; give preferences, whose two answers can be compared"
        )
    _check_columns(preferences, "chosen_is_better", "orders_disagree")
    judgements = scorer.judge.compare(
        [row.prompt for row in preferences],
        [row.chosen for row in preferences],
        [row.rejected for row in preferences],
    )
    better = [j.first_is_better for j in judgements if j.first_is_better is not None]
    return (
        [
            _row(row) | {"chosen_is_better": j.first_is_better, "orders_disagree": j.orders_disagree}
            for row, j in zip(preferences, judgements, strict=True)
        ],
        {
            "rows": len(preferences),
            **_accuracy(sum(p > 0.5 for p in better), sum(p == 0.5 for p in better), len(better)),
            **{name: value for name, value in asdict(summarise(judgements)).items() if name != "pairs"},
        },
    )


def _row(row: Row) -> dict[str, Any]:
    return row.model_dump(exclude_none=True) | row.model_dump(include=set(row.model_extra or {}))


def _check_columns(rows: Sequence[Row], *names: str) -> None:
    for number, row in enumerate(rows, start=1):
        if taken := [name for name in names if name in (row.model_extra or {})]:
            raise DataError(
                f"row {number} has a column '{taken[0]}' already, which would be replaced; rename or remove it"
            )


def other_columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The columns that accord does not know, a value for each row; None where a row lacks it."""
    names = dict.fromkeys(name for row in rows for name in row.model_extra or {})
    return {name: [(row.model_extra or {}).get(name) for row in rows] for name in names}


def _spread(opinions: Sequence[float | None], scorer: Scorer) -> dict[str, float]:
    scores = [each for each in opinions if each is not None]
    if not scores:
        raise AccordError(f"the reward function {scorer.reference} has no opinion on any of these rows")
    figures = {
        "mean_score": mean(scores), "score_deviation": pstdev(scores), "lowest_score": min(scores),
        "highest_score": max(scores),
    }  # fmt: skip
    return figures | ({"no_opinion": len(opinions) - len(scores)} if scorer.function else {})


def _accuracy(right: int, ties: int, pairs: int) -> dict[str, float | int | None]:
    """How many pairs are ordered as preferred, with the share's 95% Wilson interval; a tie is not."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(right, pairs, alpha=0.05, method="wilson") if pairs else (None, None)
    return {
        "ordered_as_preferred": right,
        "ties": ties,
        "accuracy": right / pairs if pairs else None,
        "accuracy_low": None if low is None else float(low),
        "accuracy_high": None if high is None else float(high),
    }
