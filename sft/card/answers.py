"""What both models answer to held-out prompts, greedily: their form, and what they share with the demonstrations."""

import contextlib
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from accord.chat.tokens import decode_response
from accord.data.quality.answers import REPEATED, repeated_share
from accord.errors import UsageError
from accord.records import Message, Row
from accord.statistics import Bootstrap, Estimate, wilson
from accord.text_metrics import bleu_and_rouge, exact_match, token_f1
from sft.card.copied import CopiedRun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from accord.sampling.protocol import Sampler

MOST_QUOTED = 5


class Answer(BaseModel):
    """A sampled answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    text: str
    tokens: int
    """Without its EOS."""
    ended: bool
    """By itself, before the limit."""
    copied_tokens: int = 0
    """Of the longest run that stands in a training row, too; 0 where it is shorter than 8."""


class SampleRow(Row):
    """A held-out prompt with the demonstration's answer and both models'."""

    source: str
    prompt: list[Message]
    demonstration: str
    demonstration_tokens: int
    before: Answer
    after: Answer


class Checks(BaseModel):
    """The form of one model's answers; shares with Wilson's interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    ended: Estimate
    empty: Estimate
    repeating: Estimate
    """Over 30% of whose sequences of five words stood in them before."""
    tokens: float
    """Mean length."""
    longer: Estimate | None
    """Mean length minus that of the demonstrations' answers, these cut at the limit, too."""
    exact_match: Estimate
    f1: Estimate
    """Words shared with the demonstration (`accord.text_metrics`)."""
    overlap: dict[str, Estimate]
    """BLEU and ROUGE against the demonstration; empty where sacrebleu or rouge-score is not installed."""
    copied: Estimate
    """With a run of `copied_tokens` tokens that stands in a training row."""


class Quote(BaseModel):
    """A copied run."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sample: int
    """Which of the samples, from 0."""
    tokens: int
    text: str
    source: str
    row: int
    """Of the source, from 1; of all training rows, where the source is not known."""


class Answers(BaseModel):
    """What the answers are like."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    prompts: int
    limit: int
    """Tokens at which answers were cut off."""
    demonstrations_over_limit: float
    """Share of the demonstrations' answers that are longer: so many cannot be expected to end."""
    demonstration_tokens: float
    """Mean length of the demonstrations' answers."""
    tuned: Checks
    base: Checks
    copied_tokens: int
    quotes: list[Quote]
    """The tuned model's longest runs, of `copied_tokens` at least; the longest first."""


Raw = tuple[list[int], bool]
"""A sampled answer's tokens without EOS, and whether it ended by itself."""


def sample(sampler: "Sampler", prompts: Sequence[Sequence[int]], max_response_tokens: int) -> list[Raw]:
    """The likeliest answers, token by token."""
    found = sampler.sample(prompts, [0] * len(prompts), max_response_tokens, temperature=0.0)
    return [
        (each.token_ids[:-1], True) if each.finish == "eos" else (each.token_ids, False) for each in found
    ]


def read(tokenizer: "PreTrainedTokenizerBase", raw: Raw, run: CopiedRun | None = None) -> Answer:
    """An answer as it is kept."""
    ids, ended = raw
    return Answer(
        text=decode_response(tokenizer, ids), tokens=len(ids), ended=ended,
        copied_tokens=run.tokens if run else 0,
    )  # fmt: skip


def answers(
    rows: Sequence[SampleRow], limit: int, copied_tokens: int, quotes: Sequence[Quote]
) -> Answers | None:
    """The figures of the samples; None without any."""
    if not rows:
        return None
    return Answers(
        prompts=len(rows), limit=limit,
        demonstrations_over_limit=statistics.fmean(row.demonstration_tokens > limit for row in rows),
        demonstration_tokens=statistics.fmean(row.demonstration_tokens for row in rows),
        tuned=_checks(rows, lambda row: row.after, limit, copied_tokens),
        base=_checks(rows, lambda row: row.before, limit, copied_tokens),
        copied_tokens=copied_tokens,
        quotes=sorted((each for each in quotes if each.tokens >= copied_tokens), key=lambda each: -each.tokens)[
            :MOST_QUOTED
        ],
    )  # fmt: skip


def _checks(
    rows: Sequence[SampleRow], of: Callable[[SampleRow], Answer], limit: int, copied_tokens: int
) -> Checks:
    given = [of(row) for row in rows]
    bootstrap = Bootstrap(len(rows))

    def share(flags: Sequence[bool]) -> Estimate:
        return wilson(sum(flags) / len(flags), len(flags))

    def mean(values: Sequence[float]) -> Any:
        sums = np.array([[value, 1.0] for value in values])
        return bootstrap.estimate(sums, lambda s: s[..., 0] / s[..., 1], len(values))

    overlaps = []
    with contextlib.suppress(UsageError):
        overlaps = [
            bleu_and_rouge(each.text, [row.demonstration]) for each, row in zip(given, rows, strict=True)
        ]
    return Checks(
        ended=share([each.ended for each in given]),
        empty=share([not each.text for each in given]),
        repeating=share([repeated_share(each.text) > REPEATED for each in given]),
        tokens=statistics.fmean(each.tokens for each in given),
        longer=mean(
            [each.tokens - min(row.demonstration_tokens, limit) for each, row in zip(given, rows, strict=True)]
        ),
        exact_match=share(
            [exact_match(each.text, [row.demonstration]) for each, row in zip(given, rows, strict=True)]
        ),
        overlap={
            name: mean([each[name] for each in overlaps]) for name in (overlaps[0] if overlaps else ())
        },
        f1=mean([token_f1(each.text, row.demonstration) for each, row in zip(given, rows, strict=True)]),
        copied=share([each.copied_tokens >= copied_tokens for each in given]),
    )  # fmt: skip
