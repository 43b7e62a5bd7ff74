"""What PPO, RLOO and GRPO read: prompts to train on, and what is held out."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from accord.chat.tokens import encode_prompt
from accord.errors import DataError
from accord.records import Message, Preference, Prompt, question_id, read_jsonl, said_of
from reward.data import split_by_prompt, usable_pairs
from rl.pairs import encode_pairs


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the policy reads it and as people do."""

    ids: list[int]
    messages: list[Message]
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The other columns of its row, for reward functions; all prompts have the same ones, None where a row has not."""


@dataclass(frozen=True)
class Data:
    """Prompts to train on and what is held out."""

    prompts: list[EncodedPrompt]
    heldout_prompts: list[EncodedPrompt]
    pairs: list[dict[str, Any]]
    """Held-out preferences as `rl.pairs.encode_pairs` makes them."""
    dropped: dict[str, int]
    """Rows that are not used, by reason."""


def load_data(
    tokenizer: PreTrainedTokenizerBase, prompts: Path, preferences: Path | None, heldout_fraction: float,
    max_sequence_tokens: int, max_response_tokens: int, needed: Collection[str] = (),
) -> Data:  # fmt: skip
    """Prompts without those that are held out, and held-out pairs and their prompts.

    A reward function may need columns: prompts that lack one are left out, and counted. A held-out prompt has those of
    the row of `prompts` that asks the same, or else its preference's. Where all of them lack one, because the
    preferences are about other things, or there are no preferences, the same share of `prompts` is held out to be asked
    instead.

    Args:
        tokenizer: the policy's.
        prompts: a file of prompts.
        preferences: a file of preferences, if there is one.
        heldout_fraction: share of the prompts whose preferences, or that themselves, are held out.
        max_sequence_tokens: the longest prompt and answer together.
        max_response_tokens: the longest answer.
        needed: columns without which a prompt cannot be asked.

    Raises:
        DataError: a bad file, or nothing is left of the prompts or of the held-out pairs.
    """
    longest_prompt = max_sequence_tokens - max_response_tokens
    heldout: list[Preference] = []
    dropped_pairs: dict[str, int] = {}
    if preferences is not None:
        pairs = read_jsonl(preferences, Preference)
        kept, dropped_pairs = usable_pairs(tokenizer, pairs, max_sequence_tokens)
        heldout = split_by_prompt(kept, heldout_fraction)[1]
        if not heldout:
            raise DataError(
                f"{preferences}: no pair is left to hold out, {dropped_pairs['too_long']} were longer than "
                "max_sequence_tokens; collect more preferences or raise it"
            )
    rows = read_jsonl(prompts, Prompt)
    aside: dict[str, Preference | Prompt] = {question_id(row.prompt): row for row in heldout}
    aside |= {id_: row for row in rows if (id_ := question_id(row.prompt)) in aside}
    asked = [row for row in aside.values() if _has(row, needed)]
    own = [row for row in rows if question_id(row.prompt) not in aside]
    training = [row for row in own if _has(row, needed)]
    if not training and own:
        raise DataError(
            f"{prompts}: no row has all of {', '.join(sorted(needed))}, which the reward function takes; add columns "
            "of these names"
        )
    dropped = {"prompts_heldout": len(rows) - len(own)}
    if needed:
        dropped["prompts_without_columns"] = len(own) - len(training)
        dropped["heldout_prompts_without_columns"] = len(aside) - len(asked)
    if not asked:
        training, instead = split_by_prompt(training, heldout_fraction)
        asked = list({question_id(row.prompt): row for row in instead}.values())
        dropped["prompts_heldout"] += len(instead)
    names = dict.fromkeys(name for row in (*training, *asked) for name in _columns(row))

    def encode(row: Preference | Prompt) -> EncodedPrompt:
        columns = _columns(row)
        with said_of(row):
            ids = encode_prompt(tokenizer, row.prompt)
        return EncodedPrompt(ids, row.prompt, {name: columns.get(name) for name in names})

    encoded = [encode(row) for row in training]
    short = [prompt for prompt in encoded if len(prompt.ids) <= longest_prompt]
    if not short:
        raise DataError(
            f"{prompts}: no prompt is left, {dropped['prompts_heldout']} are held out and {len(training)} leave no "
            f"room for {max_response_tokens} tokens of answer within max_sequence_tokens ({max_sequence_tokens})"
        )
    heldout_encoded = [encode(row) for row in asked]
    heldout_prompts = [prompt for prompt in heldout_encoded if len(prompt.ids) <= longest_prompt]
    if not heldout_prompts:
        raise DataError(
            f"{preferences or prompts}: no held-out prompt leaves room for {max_response_tokens} tokens of answer in "
            f"max_sequence_tokens ({max_sequence_tokens}); raise it"
        )
    dropped |= {
        "prompts_too_long": len(training) - len(short),
        "heldout_prompts_too_long": len(heldout_encoded) - len(heldout_prompts),
        **{f"pairs_{why}": count for why, count in dropped_pairs.items()},
    }  # fmt: skip
    return Data(short, heldout_prompts, list(encode_pairs(tokenizer, heldout)), dropped)


def _columns(row: Preference | Prompt) -> dict[str, Any]:
    """The columns of a row that accord does not know."""
    return row.model_extra or {}


def _has(row: Preference | Prompt, needed: Collection[str]) -> bool:
    columns = _columns(row)
    return all(columns.get(name) is not None for name in needed)
