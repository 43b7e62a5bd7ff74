"""Pairs and rankings read, split by prompt, and as token ids. The split is used by DPO and PPO, too, so all see one."""

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from accord import parallel
from accord.chat.tokens import encode_conversation, encode_prompt
from accord.errors import DataError
from accord.records import (
    Comparison,
    Message,
    Preference,
    Prompt,
    UnpairedFeedback,
    conversation_id,
    holds_comparisons,
    question_id,
    read_jsonl,
    said_of,
)
from accord.runs import DataFile, Run
from feedback.belief.kept import RELIABILITY, read_reliability, settled
from feedback.belief.preferences import pairwise_preferences
from feedback.belief.reliability import UNSETTLED, Reliability, fit_reliability
from reward.choices import PromptChoices, answers_of

logger = logging.getLogger("accord.reward")


@dataclass(frozen=True)
class PreferenceData:
    """What a reward model learns from; `comparisons` are there where rankings are known."""

    pairs: list[Preference]
    comparisons: list[Comparison]
    reliability: Reliability | None
    dropped: dict[str, int]


def read_preference_data(source: Run | DataFile, with_reliability: bool = False) -> PreferenceData:
    """What a feedback run, a file of preferences or a file of comparisons holds.

    Args:
        source: the run or file.
        with_reliability: give that of the annotators, too, where there are comparisons: the one that the feedback run
            fitted, or a new one, which takes a while, of a file and of a run from before runs kept theirs.

    Raises:
        DataError: a bad file, or comparisons from which no preference follows.
    """
    if isinstance(source, Run):
        comparisons = read_jsonl(source.output("comparisons.jsonl"), Comparison)
        pairs = read_jsonl(source.output("preferences.jsonl"), Preference)
        was_kept = RELIABILITY in source.record.outputs
        if not with_reliability:
            _tell_of_the_fit(source.id, not was_kept or settled(source.output(RELIABILITY)))
            return PreferenceData(pairs, comparisons, None, {})
        kept = read_reliability(source.output(RELIABILITY), comparisons) if was_kept else None
        reliability = kept or fit_reliability(comparisons)
        _tell_of_the_fit(source.id, reliability.converged)
        return PreferenceData(pairs, comparisons, reliability, {})
    if not holds_comparisons(source.path):
        return PreferenceData(read_jsonl(source.path, Preference), [], None, {})
    comparisons = read_jsonl(source.path, Comparison)
    reliability = fit_reliability(comparisons)
    _tell_of_the_fit(str(source.path), reliability.converged)
    pairs, counts = pairwise_preferences(comparisons, reliability)
    del counts["kept"]
    if not pairs:
        found = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
        raise DataError(f"{source.path}: no pair of answers has a preference ({found}); rank more of them")
    return PreferenceData(
        pairs, comparisons, reliability, {f"pairs_{reason}": n for reason, n in counts.items() if n}
    )


def _tell_of_the_fit(name: str, settled: bool) -> None:
    if not settled and parallel.is_first():
        logger.warning("%s: %s; `accord feedback agreement` shows who ranked how", name, UNSETTLED)


PromptedT = TypeVar("PromptedT", Preference, Prompt, UnpairedFeedback)


def split_by_prompt(
    rows: Sequence[PromptedT], heldout_fraction: float
) -> tuple[list[PromptedT], list[PromptedT]]:
    """Train and held-out rows; all rows of prompts that ask the same (`records.question_id`) are on the same side.

    The prompts with the smallest hashes are held out: at least one, and the same ones in every stage that asks
    for the same fraction of the same rows.
    """
    ids = [question_id(row.prompt) for row in rows]
    draws: dict[str, tuple[str, str]] = {}
    for id_, row in zip(ids, rows, strict=True):
        draw = (_draw(row.prompt), conversation_id(row.prompt))
        draws[id_] = min(draw, draws.get(id_, draw))
    heldout = set(sorted(draws, key=lambda id_: draws[id_])[: math.ceil(heldout_fraction * len(draws))])
    parts: tuple[list[PromptedT], list[PromptedT]] = [], []
    for id_, row in zip(ids, rows, strict=True):
        parts[id_ in heldout].append(row)
    return parts


def usable_pairs(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Preference], max_sequence_tokens: int
) -> tuple[list[Preference], dict[str, int]]:
    """The pairs from which something can be learned, and how many of the others there are of each kind.

    `too_long`: the prompt with either answer does not fit; TRL would filter or cut it silently. `equal_once_encoded`:
    both answers have the same tokens, as with a template that trims them. `weight_zero`: they count for nothing.

    Raises:
        DataError: the chat template refuses one.
    """
    dropped = {"too_long": 0, "equal_once_encoded": 0, "weight_zero": 0}
    kept = []
    for row in rows:
        with said_of(row):
            chosen, rejected = (
                encode_conversation(tokenizer, [*row.prompt, *answer]).input_ids
                for answer in (row.chosen, row.rejected)
            )
        if max(len(chosen), len(rejected)) > max_sequence_tokens:
            dropped["too_long"] += 1
        elif chosen == rejected:
            dropped["equal_once_encoded"] += 1
        elif row.weight == 0:
            dropped["weight_zero"] += 1
        else:
            kept.append(row)
    return kept, dropped


def drop_long_comparisons(
    tokenizer: PreTrainedTokenizerBase, comparisons: Sequence[Comparison], max_sequence_tokens: int
) -> tuple[list[Comparison], int]:
    """The same for comparisons, of which every response must fit."""
    kept = []
    for comparison in comparisons:
        with said_of(comparison):
            lengths = [
                len(encode_conversation(tokenizer, [*comparison.prompt, *answer]).input_ids)
                for answer in answers_of(comparison)
            ]
        if max(lengths) <= max_sequence_tokens:
            kept.append(comparison)
    return kept, len(comparisons) - len(kept)


def encode_choices(
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[PromptChoices],
    heads: int = 1,
    seed: int | None = None,
) -> Dataset:
    """Groups as a data set for the trainer: every answer's whole conversation, the choices, and their weights.

    Weights are divided by their mean sum over the rows: they say what counts more than other things, and leave the
    learning rate what it is. With a `seed`, the heads of an ensemble differ in how much each prompt counts for them:
    by a draw from the exponential distribution with mean 1, the Bayesian bootstrap (Rubin 1981), so that
    they disagree where few prompts decide.
    """
    mean = sum(float(group.weights.sum()) for group in groups) / max(1, len(groups)) or 1.0
    return Dataset.from_list(
        [
            {
                "answers": [
                    encode_conversation(tokenizer, [*group.prompt, *answer]).input_ids
                    for answer in group.answers
                ],
                "prompt_tokens": len(encode_prompt(tokenizer, group.prompt)),
                "chosen": group.chosen.tolist(),
                "chosen_offsets": group.chosen_offsets.tolist(),
                "alternatives": group.alternatives.tolist(),
                "offsets": group.offsets.tolist(),
                "weights": (group.weights / mean).tolist(),
                "head_weights": _head_weights(group.prompt, heads, seed),
            }
            for group in groups
        ]
    )


def _head_weights(prompt: Sequence[Message], heads: int, seed: int | None) -> list[float]:
    if heads == 1 or seed is None:
        return [1.0] * heads
    draws: list[float] = (
        np.random.default_rng([seed, int(conversation_id(prompt)[:16], 16)]).exponential(size=heads).tolist()
    )
    return draws


def _draw(prompt: Sequence[Message]) -> str:
    """What decides by chance which prompts are held out: a hash of the words, so that nothing else changes it."""
    return hashlib.sha256("\n".join(f"{m.role}: {m.text}" for m in prompt).encode()).hexdigest()
