"""Whether a model's chat template takes the rows of a file, told before anything is trained on them."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from accord.chat.tokens import encode_conversation, encode_prompt
from accord.data.check import conversations
from accord.errors import DataError
from accord.records import Message, Prompt, Row, said_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_template_takes(tokenizer: "PreTrainedTokenizerBase", rows: Iterable[Row]) -> None:
    """Encode one row of each pattern of roles, tools and thinking parts: a template takes all of a pattern, or none.

    Raises:
        DataError: it refuses one, or leaves a part of it out; the message says which, and how many rows are like it.
    """
    patterns: dict[tuple[object, ...], int] = {}
    refused: dict[tuple[object, ...], DataError] = {}
    for row in rows:
        for turns in conversations(row):
            pattern = _pattern(turns)
            patterns[pattern] = patterns.get(pattern, 0) + 1
            if patterns[pattern] > 1:
                continue
            try:
                with said_of(row):
                    if isinstance(row, Prompt):
                        encode_prompt(tokenizer, turns)
                    else:
                        encode_conversation(tokenizer, turns)
            except DataError as error:
                refused[pattern] = error
    if refused:
        others = sum(patterns[pattern] for pattern in refused) - 1
        raise DataError(
            f"{next(iter(refused.values()))}" + (f" (and {others} more are like it)" if others else "")
        )


def _pattern(turns: Sequence[Message]) -> tuple[object, ...]:
    return tuple(
        (turn.role, bool(turn.content), bool(turn.tools), bool(turn.tool_calls), bool(turn.reasoning_content))
        for turn in turns
    )
