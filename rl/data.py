"""What PPO, RLOO and GRPO read: prompts to train on, and what is held out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from accord.chat import encode_prompt
from accord.errors import DataError
from accord.records import Message, Preference, Prompt, conversation_id, read_jsonl
from reward.data import drop_too_long, split_by_prompt
from rl.pairs import encode_pairs


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the policy reads it and as people do."""

    ids: list[int]
    messages: list[Message]


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
    tokenizer: PreTrainedTokenizerBase, prompts: Path, preferences: Path, heldout_fraction: float,
    max_sequence_tokens: int, max_response_tokens: int,
) -> Data:  # fmt: skip
    """Prompts without those that are held out, and held-out pairs and their prompts.

    Raises:
        DataError: a bad file, or nothing is left of the prompts or of the held-out pairs.
    """
    longest_prompt = max_sequence_tokens - max_response_tokens
    kept, pairs_too_long = drop_too_long(tokenizer, read_jsonl(preferences, Preference), max_sequence_tokens)
    heldout = split_by_prompt(kept, heldout_fraction)[1]
    if not heldout:
        raise DataError(
            f"{preferences}: no pair is left to hold out, {pairs_too_long} were longer than max_sequence_tokens; "
            "collect more preferences or raise it"
        )
    rows = read_jsonl(prompts, Prompt)
    aside = {conversation_id(row.prompt): row.prompt for row in heldout}
    training = [row.prompt for row in rows if conversation_id(row.prompt) not in aside]
    encoded = [EncodedPrompt(encode_prompt(tokenizer, prompt), prompt) for prompt in training]
    short = [prompt for prompt in encoded if len(prompt.ids) <= longest_prompt]
    if not short:
        raise DataError(
            f"{prompts}: no prompt is left, {len(rows) - len(training)} are held out and {len(training)} leave no room "
            f"for {max_response_tokens} tokens of answer within max_sequence_tokens ({max_sequence_tokens})"
        )
    heldout_encoded = [EncodedPrompt(encode_prompt(tokenizer, prompt), prompt) for prompt in aside.values()]
    heldout_prompts = [prompt for prompt in heldout_encoded if len(prompt.ids) <= longest_prompt]
    if not heldout_prompts:
        raise DataError(
            f"{preferences}: no held-out prompt leaves room for {max_response_tokens} tokens of answer within "
            f"max_sequence_tokens ({max_sequence_tokens}); raise it"
        )
    dropped = {
        "prompts_heldout": len(rows) - len(training), "prompts_too_long": len(training) - len(short),
        "heldout_prompts_too_long": len(heldout_encoded) - len(heldout_prompts), "pairs_too_long": pairs_too_long,
    }  # fmt: skip
    return Data(short, heldout_prompts, list(encode_pairs(tokenizer, heldout)), dropped)
