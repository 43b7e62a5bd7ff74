"""Answers that are desirable or not: from where they come, and in which order and as which token ids KTO reads them."""

import random
from collections import Counter
from collections.abc import Sequence

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from accord.bundled import data_path
from accord.chat.tokens import common_prefix, encode_conversation, encode_prompt
from accord.errors import DataError
from accord.records import (
    Comparison,
    Preference,
    UnpairedFeedback,
    content_id,
    holds_comparisons,
    messages_as_dicts,
    question_id,
    read_jsonl,
    said_of,
)
from accord.runs import DataFile, Run, file_of
from feedback.belief.labels import desirable_or_not
from rl.config import NO_RATINGS, KTOConfig


def read_feedback(
    config: KTOConfig, preferences: Run | DataFile | None
) -> tuple[list[UnpairedFeedback], dict[str, int]]:
    """The rows, and how many answers are left out, by reason.

    Args:
        config: names the file, or says what to make of the preferences.
        preferences: used where it names no file.

    Raises:
        DataError: a bad file, or no answer is desirable or none undesirable.
    """
    dropped: dict[str, int] = {}
    if config.feedback:
        path = data_path(config.feedback)
        rows = read_jsonl(path, UnpairedFeedback)
    else:
        assert preferences is not None
        path = file_of(
            preferences, "comparisons.jsonl" if config.labels == "ratings" else "preferences.jsonl"
        )
        if config.labels == "ratings":
            if not holds_comparisons(path):
                raise DataError(f"{path}: {NO_RATINGS}")
            rows, dropped = desirable_or_not(read_jsonl(path, Comparison))
            del dropped["desirable"], dropped["undesirable"]
        else:
            pairs = read_jsonl(path, Preference)
            rows = [row for pair in pairs if pair.weight != 0 for row in unpaired(pair)]
            dropped = {"weight_zero": 2 * sum(pair.weight == 0 for pair in pairs)}
    labels = {row.label for row in rows}
    for label, name in ((True, "desirable"), (False, "undesirable")):
        if label not in labels:
            left_out = "".join(f", {count} {reason}" for reason, count in dropped.items() if count)
            raise DataError(
                f"{path}: has no {name} answer ({len(rows)} of the other kind{left_out}); KTO learns from both"
            )
    return rows, dropped


def unpaired(pair: Preference) -> list[UnpairedFeedback]:
    """The two answers of a pair: the chosen one is desirable, the other is not."""
    return [
        UnpairedFeedback(prompt=pair.prompt, completion=completion, label=label, truncated=truncated)
        for completion, label, truncated in (
            (pair.chosen, True, pair.chosen_truncated),
            (pair.rejected, False, pair.rejected_truncated),
        )
    ]


def contradictory(rows: Sequence[UnpairedFeedback]) -> int:
    """How many rows call an answer to a prompt desirable that another row calls undesirable, or the reverse."""
    ids = [content_id([messages_as_dicts(row.prompt), messages_as_dicts(row.completion)], 64) for row in rows]
    labels = {(id_, row.label) for id_, row in zip(ids, rows, strict=True)}
    return sum((id_, not row.label) in labels for id_, row in zip(ids, rows, strict=True))


def spread_out(rows: Sequence[UnpairedFeedback], seed: int) -> list[UnpairedFeedback]:
    """The rows by chance, but those of one prompt as far apart as they can be.

    KTO reads them in this order every epoch, and gives each prompt the answer of the row before it: to another prompt,
    if it is to say anything. So the j-th of a prompt's c rows, in an order by chance, stands at (j + u) / c of the
    whole, where u is drawn for the prompt.
    """
    chance = random.Random(seed)
    shuffled = list(rows)
    chance.shuffle(shuffled)
    ids = [question_id(row.prompt) for row in shuffled]
    counts, starts, seen = Counter(ids), {id_: chance.random() for id_ in dict.fromkeys(ids)}, Counter[str]()
    placed: list[tuple[float, int, UnpairedFeedback]] = []
    for id_, row in zip(ids, shuffled, strict=True):
        placed.append(((seen[id_] + starts[id_]) / counts[id_], len(placed), row))
        seen[id_] += 1
    return [row for *_, row in sorted(placed, key=lambda each: each[:2])]


def drop_too_long_answers(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[UnpairedFeedback], max_sequence_tokens: int
) -> tuple[list[UnpairedFeedback], int]:
    """The rows whose prompt and answer fit, and how many did not."""
    kept = []
    for row in rows:
        with said_of(row):
            encoded = encode_conversation(tokenizer, [*row.prompt, *row.completion])
        if len(encoded.input_ids) <= max_sequence_tokens:
            kept.append(row)
    return kept, len(rows) - len(kept)


def encode_unpaired(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[UnpairedFeedback], batch_size: int
) -> Dataset:
    """Rows as `prompt_ids`, `completion_ids` without the prompt, and `label`, for KTOTrainer's collator.

    `KL_completion_ids` is the answer of the row before, and of the batch's last row for its first, so that a batch has
    the same answers twice, as TRL builds it; a batch of a single row takes that of the row before it. As for pairs, an
    answer that the token limit cut off has no EOS.
    """
    encoded = []
    for row in rows:
        whole = encode_conversation(tokenizer, [*row.prompt, *row.completion]).input_ids
        whole = whole[:-1] if row.truncated else whole
        prompt = encode_prompt(tokenizer, row.prompt)
        start = common_prefix(prompt, whole)
        encoded.append({"prompt_ids": prompt[:start], "completion_ids": whole[start:], "label": row.label})
    for first in range(0, len(encoded), batch_size):
        batch = encoded[first : first + batch_size]
        for i, row_ids in enumerate(batch):
            other = batch[i - 1] if len(batch) > 1 else encoded[first - 1]
            row_ids["KL_completion_ids"] = other["completion_ids"]
    return Dataset.from_list(encoded)
