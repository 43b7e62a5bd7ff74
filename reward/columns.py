"""Scores of demonstrations as columns by which rows can be dropped: what `accord data score` does.

    {"messages": [...], "loss": 1.9, "loss_without_prompt": 2.4, "ifd": 0.79, "answer_tokens": 41, "reward": 0.7}

`loss` is the model's on the answers in nats a token, `loss_without_prompt` the same where nothing stands before them,
and `ifd` the one as a share of the other (`accord.data.difficulty`); `reward` is a reward model's or a function's score
of the last answer, `judge` a judge's grade of it, from 1 to 5.
"""

import json
import statistics
from collections.abc import Sequence
from typing import Any, ClassVar

from accord.bundled import data_path
from accord.config import Config
from accord.data.difficulty import difficulties
from accord.data.rows import Rows, open_data
from accord.errors import DataError
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import resolve
from accord.progress import progress
from accord.records import Demonstration, Row, read_jsonl
from accord.runs import DataFile, Run, Runs, Source
from accord.text_files import write_jsonl
from reward.score_file import other_columns
from reward.scorers import scorer_of

ROWS_AT_ONCE = 256
"""What is scored and written at a time; a kill costs at most so many rows."""


class ScoreConfig(Config):
    """By what a file of demonstrations is scored; what is left out is not computed."""

    row_files: ClassVar[dict[str, type[Row]]] = {"rows": Demonstration}
    needed_files: ClassVar[tuple[str, ...]] = ("rows",)

    rows: str = ""
    """The file."""
    model: str | None = None
    """Whose loss is measured."""
    reward_model: str | None = None
    """Anything that `reward.scorers` knows."""
    judge: str | None = None
    """`judge:<model reference>` or `judge:https://host/v1#model-name`."""


def score_columns(config: ScoreConfig, runs: Runs, rows: Rows | None = None) -> Run:
    """Score a file; returns the finished run, whose rows.jsonl has the file's rows with the new columns.

    Raises:
        DataError: a row is no demonstration, has a column of a new one's name, or does not fit into a model.
        UsageError: a reference names nothing that scores.
        AccordError: a server does not answer.
    """
    config = open_data(config, runs, rows=rows)
    file = DataFile(data_path(config.rows))
    model = resolve(config.model, runs) if config.model else None
    scorers = {
        name: scorer_of(reference, runs)
        for name, reference in (("reward", config.reward_model), ("judge", config.judge))
        if reference
    }
    sources: dict[str, Source] = {"rows": file, **({"model": model} if model else {}), **scorers}
    with runs.begin("scores", config, sources) as run:
        if run.is_done:
            return run
        found = read_jsonl(file.path, Demonstration)
        new = [*(("loss", "loss_without_prompt", "ifd", "answer_tokens") if model else ()), *scorers]
        for row in found:
            for column in new:
                if column in (row.model_extra or {}):
                    raise DataError(f"{row.place}: has a column '{column}' already; rename it")
        policy = tokenizer = None
        scored: list[dict[str, Any]] = []
        with progress("scoring rows", len(found)) as update:
            for first in range(0, len(found), ROWS_AT_ONCE):
                part = found[first : first + ROWS_AT_ONCE]
                kept = run.path / "checkpoints" / f"{first + 1}-to-{first + len(part)}.jsonl"
                if not kept.exists():
                    if model and policy is None:
                        policy, tokenizer = load_policy(model).eval(), load_tokenizer(model)
                    columns: list[dict[str, Any]] = [{} for _ in part]
                    if policy is not None and tokenizer is not None:
                        for column, each in zip(columns, difficulties(policy, tokenizer, part), strict=True):
                            column |= {
                                "loss": each.loss, "loss_without_prompt": each.loss_without_prompt,
                                "ifd": each.ifd, "answer_tokens": each.tokens,
                            }  # fmt: skip
                    for name, scorer in scorers.items():
                        opinions = scorer.opinions([row.messages for row in part], other_columns(part))
                        for column, score in zip(columns, opinions, strict=True):
                            column[name] = score
                    write_jsonl(kept, columns)
                scored += [json.loads(line) for line in kept.read_bytes().splitlines()]
                update(len(scored))
        write_jsonl(
            run.path / "rows.jsonl",
            (row.model_dump(exclude_unset=True) | each for row, each in zip(found, scored, strict=True)),
        )
        run.finish({"rows": len(found), **_figures(scored, new)})
    return run


def _figures(scored: Sequence[dict[str, Any]], columns: Sequence[str]) -> dict[str, Any]:
    """Of each column the mean, and what a tenth, a half and nine tenths of the rows are below."""
    found: dict[str, Any] = {}
    for column in columns:
        values = sorted(each[column] for each in scored if each[column] is not None)
        found[column] = {
            "rows": len(values), "mean": statistics.fmean(values) if values else None,
            **{f"{share}%": values[min(len(values) - 1, len(values) * share // 100)] if values else None
               for share in (10, 50, 90)},
        }  # fmt: skip
    return found
