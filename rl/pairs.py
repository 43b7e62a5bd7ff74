"""Preferences as the token ids of a prompt and its two answers."""

from collections.abc import Sequence

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from accord.chat.tokens import common_prefix, encode_conversation, encode_prompt
from accord.records import Preference


def encode_pairs(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Preference]) -> Dataset:
    """Rows as `prompt_ids`, and `chosen_ids` and `rejected_ids` without the prompt, for DPOTrainer's collator.

    An answer that the token limit cut off has no EOS: the policy never chose to end there, and if that EOS were
    learned as rejected, the policy would learn not to end at all.
    """
    encoded = []
    for row in rows:
        chosen = encode_conversation(tokenizer, [*row.prompt, *row.chosen]).input_ids
        rejected = encode_conversation(tokenizer, [*row.prompt, *row.rejected]).input_ids
        chosen = chosen[:-1] if row.chosen_truncated else chosen
        rejected = rejected[:-1] if row.rejected_truncated else rejected
        prompt = encode_prompt(tokenizer, row.prompt)
        start = min(common_prefix(prompt, chosen), common_prefix(prompt, rejected))
        encoded.append(
            {"prompt_ids": prompt[:start], "chosen_ids": chosen[start:], "rejected_ids": rejected[start:]}
        )
    return Dataset.from_list(encoded)
