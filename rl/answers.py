"""Answers of a policy to prompts, several each, scored and kept step by step: what a kill left is not sampled again."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from accord.chat.tokens import decode_response
from accord.models.references import Model
from accord.progress import EveryFewSeconds
from accord.sampling.shared import SharedSampler
from accord.terminal import say
from accord.text_files import write_jsonl
from reward.scorers import Scorer
from rl.data import EncodedPrompt
from rl.own_reward import own_rewards
from rl.policy_gradient.rollout import make_rollout, seeds_of_update
from rl.rewards import reward_model_scores
from rl.selection import Answer

ANSWERS_PER_STEP = 512
"""What is sampled, scored and written at a time, about; a kill costs at most so many answers."""

Score = Callable[[Sequence[EncodedPrompt], Sequence[list[int]]], list[float | None]]
"""The scores of answers, as token ids, to prompts."""


@dataclasses.dataclass(frozen=True)
class Asking:
    """How prompts are answered."""

    tokenizer: PreTrainedTokenizerBase
    sampler: SharedSampler
    score: Score
    answers_per_prompt: int
    max_response_tokens: int
    temperature: float
    seed: int


def answer_prompts(
    asking: Asking, model: Model, prompts: Sequence[EncodedPrompt], number: int, folder: Path, label: str,
    whole_only: bool,
) -> list[list[Answer]]:  # fmt: skip
    """Answers to each prompt, sampled from `model`, or read where an earlier attempt left them.

    Args:
        asking: how.
        model: whose answers.
        prompts: what is asked.
        number: of the round; others draw other answers.
        folder: where each step's answers are kept.
        label: at the beginning of lines of progress.
        whole_only: score only what may be learned.
    """
    count = asking.answers_per_prompt
    seeds = seeds_of_update(number, len(prompts) * count, asking.seed)
    size = max(1, ANSWERS_PER_STEP // count)
    lines = EveryFewSeconds()
    found: list[Answer] = []
    for first in range(0, len(prompts), size):
        done = min(first + size, len(prompts))
        file = folder / f"{first + 1}-to-{done}.jsonl"
        if not file.exists():
            asked = [prompt for prompt in prompts[first : first + size] for _ in range(count)]
            drawn = seeds[first * count : first * count + len(asked)]
            write_jsonl(
                file, [dataclasses.asdict(each) for each in _step(asking, model, asked, drawn, whole_only)]
            )
        found += [Answer(**json.loads(line)) for line in file.read_bytes().splitlines()]
        if lines.is_due(at_once=done == len(prompts)):
            say(f"{label}: {done} of {len(prompts)} prompts answered {count} times")
    return [found[i : i + count] for i in range(0, len(found), count)]


def _step(
    asking: Asking, model: Model, asked: Sequence[EncodedPrompt], seeds: Sequence[int], whole_only: bool
) -> list[Answer]:
    tokenizer = asking.tokenizer
    ids = [prompt.ids for prompt in asked]
    completions = asking.sampler.use(model, tokenizer).sample(
        ids, seeds, asking.max_response_tokens, asking.temperature
    )
    eos_token_id = tokenizer.eos_token_id
    assert isinstance(eos_token_id, int)
    rollout = make_rollout(ids, completions, eos_token_id)
    answers = [
        Answer(response, seed, ended, decode_response(tokenizer, response), None)
        for response, seed, ended in zip(rollout.responses, seeds, rollout.ended, strict=True)
    ]
    wanted = [i for i, each in enumerate(answers) if each.may_be_learned or not whole_only]
    if wanted:
        scores = asking.score([asked[i] for i in wanted], [answers[i].token_ids for i in wanted])
        for i, score in zip(wanted, scores, strict=True):
            answers[i] = dataclasses.replace(answers[i], score=score)
    return answers


def own_score(scorer: Scorer, tokenizer: PreTrainedTokenizerBase) -> Score:
    """By a function or a judge."""
    return lambda prompts, answers: own_rewards(scorer, tokenizer, prompts, answers)


def reward_model_score(
    tokenizer: PreTrainedTokenizerBase, policy: Model, reward_model: Model, max_sequence_tokens: int
) -> Score:
    """By the reward model, on the ids that were sampled; one that was cut off is read as if it ended there.

    Raises:
        UsageError: the reward model has other tokens than the policy, or reads less than `max_sequence_tokens`.
    """
    scores_of = reward_model_scores(tokenizer, policy, reward_model, max_sequence_tokens)
    eos_token_id = tokenizer.eos_token_id
    assert isinstance(eos_token_id, int)

    def score(prompts: Sequence[EncodedPrompt], answers: Sequence[list[int]]) -> list[float | None]:
        rows = [
            prompt.ids + answer + [eos_token_id] * (answer[-1] != eos_token_id)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return list(scores_of(rows))

    return score
