"""A reward of the user's own, in place of the reward model: what a function or a judge says of sampled answers."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from accord.chat.tokens import answer, decode_response
from reward.scorers import Scorer
from rl.data import EncodedPrompt


def needed_columns(scorer: Scorer | None) -> frozenset[str]:
    """The columns without which a prompt's answers cannot be scored."""
    return scorer.function.needs if scorer and scorer.function else frozenset()


def own_rewards(
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedPrompt],
    responses: Sequence[list[int]],
    **extra: Any,
) -> list[float | None]:
    """The reward of every answer, None where a function has no opinion.

    Args:
        scorer: a function, a judge or a reward model.
        tokenizer: the policy's.
        prompts: what was answered; their columns go to a function.
        responses: the answers' token ids.
        extra: what a function gets besides.
    """
    texts = [decode_response(tokenizer, response) for response in responses]
    if scorer.function is None:
        conversations = [
            [*prompt.messages, *answer(text)] for prompt, text in zip(prompts, texts, strict=True)
        ]
        return list(scorer.score(conversations))
    columns = {name: [prompt.columns.get(name) for prompt in prompts] for name in prompts[0].columns}
    conversations = [prompt.messages for prompt in prompts]
    return scorer.function(conversations, texts, columns, completion_ids=list(responses), **extra)
