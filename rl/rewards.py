"""What scores the answers of algorithms that sample, as one of a run's inputs and as scores of token ids."""

import math
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from accord.errors import AccordError, UsageError
from accord.models.families import context_length
from accord.models.loading import check_same_tokens
from accord.models.references import Model
from accord.runs import DataFile, Run, Source
from reward.score import load_scorer, score_ids
from reward.scorers import Scorer


def sources_of(
    algorithm: str, policy: Model, prompts: DataFile, preferences: Run | DataFile | None, scorer: Scorer | None,
    reward_model: Model | None,
) -> dict[str, Source]:  # fmt: skip
    """The inputs of a run that samples answers to prompts, by their roles; `scorer` goes before the reward model.

    Raises:
        UsageError: nothing scores.
    """
    sources: dict[str, Source] = {"policy": policy, "prompts": prompts}
    if preferences is not None:
        sources["preferences"] = preferences
    if scorer:
        sources["reward_function"] = scorer
    elif reward_model:
        sources["reward_model"] = reward_model
    else:
        raise UsageError(f"{algorithm} needs a reward model, or rl.reward_function")
    return sources


def reward_model_scores(
    tokenizer: PreTrainedTokenizerBase, policy: Model, reward_model: Model, max_sequence_tokens: int
) -> Callable[[Sequence[list[int]]], list[float]]:
    """A function that scores whole conversations, each as the token ids that were sampled and their prompt's.

    Raises:
        UsageError: the reward model has other tokens than the policy, or reads less than `max_sequence_tokens`.
    """
    check_same_tokens(tokenizer, policy, reward_model)
    model = load_scorer(reward_model)
    if max_sequence_tokens > context_length(model.config):
        raise UsageError(
            f"max_sequence_tokens ({max_sequence_tokens}) is more than the reward model {reward_model.reference} reads "
            f"({context_length(model.config)}); lower it"
        )

    def scores(rows: Sequence[list[int]]) -> list[float]:
        found = score_ids(model, tokenizer, rows)
        if not all(math.isfinite(each) for each in found):  # TRL would leave such answers out, silently
            raise AccordError(f"the reward model {reward_model.reference} gave a score that is no number")
        return list(found)

    return scores
