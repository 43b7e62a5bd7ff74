"""Both models' answers to the held-out prompts, and what is measured about each of them."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING

from accord.chat.tokens import answer, decode_response, encode_prompt
from accord.errors import DataError
from accord.records import Message, Prompt, conversation_id, read_jsonl
from eval.config import Sampling
from eval.measuring.side import Side
from eval.rows import Answer, Judgement, MeasuredAnswer, Reward, Sample, seed_for
from reward.judge import Judge
from reward.scorers import Scorer

if TYPE_CHECKING:
    from accord.sampling.shared import SharedSampler


def read_prompts(path: Path) -> dict[str, list[Message]]:
    """The prompts of a file by id; a prompt without an id is named by its content.

    Raises:
        DataError: a bad line, an id or a prompt that occurs twice, or fewer than two prompts.
    """
    prompts: dict[str, list[Message]] = {}
    places: dict[str, str] = {}
    for row in read_jsonl(path, Prompt):
        content = conversation_id(row.prompt, 12)
        name = row.id or content
        for what, key in ((f"the id '{row.id}'", name), ("the same prompt", content)):
            if earlier := places.get(key):
                raise DataError(
                    f"{row.place}: {what} stands in {earlier}, too; items must differ to count, leave one out"
                )
        places |= dict.fromkeys((name, content), row.place)
        prompts[name] = row.prompt
    if len(prompts) < 2:
        raise DataError(f"{path}: holds one prompt; a comparison with an interval needs at least two")
    return prompts


def read_groups(path: Path, column: str) -> dict[str, str]:
    """The group of every prompt that has one, by the prompt's id; `column` holds it."""
    groups = {}
    for row in read_jsonl(path, Prompt):
        group = (row.model_extra or {}).get(column)
        if group is not None:
            groups[row.id or conversation_id(row.prompt, 12)] = str(group)
    return groups


def sample_answers(
    side: Side, sampler: "SharedSampler", prompts: Mapping[str, list[Message]], sampling: Sampling
) -> list[Answer]:  # fmt: skip
    """One model's answers, `samples_per_prompt` to each prompt."""
    wanted = [(name, sample) for name in prompts for sample in range(sampling.samples_per_prompt)]
    seeds = [seed_for(sampling.seed, *key) for key in wanted]
    encoded = {name: encode_prompt(side.tokenizer, prompt) for name, prompt in prompts.items()}
    completions = sampler.use(side.model).sample(
        [encoded[name] for name, _ in wanted], seeds, sampling.max_response_tokens, sampling.temperature
    )
    return [
        Answer(
            prompt_id=name, sample=sample, seed=seed, finish=completion.finish,
            text=decode_response(side.tokenizer, completion.token_ids),
            tokens=len(completion.token_ids) - (completion.finish == "eos"),
        )
        for (name, sample), seed, completion in zip(wanted, seeds, completions, strict=True)
    ]  # fmt: skip


def score_answers(
    scorer: Scorer, prompts: Mapping[str, list[Message]], answers: Sequence[Answer]
) -> list[Reward]:  # fmt: skip
    """The scorer's score of every answer."""
    conversations = [[*prompts[a.prompt_id], *answer(a.text)] for a in answers]
    if scorer.score_by_head is None:
        return [Reward(reward=value) for value in scorer.score(conversations)]
    return [
        Reward(reward=fmean(heads), disagreement=pstdev(heads) if len(heads) > 1 else None)
        for heads in scorer.score_by_head(conversations)
    ]


def measure_answers(
    prompts: Mapping[str, list[Message]], answers: Sequence[Answer], rewards: Sequence[Reward], by_formula: bool = False
) -> list[MeasuredAnswer]:  # fmt: skip
    """The answers with everything that is measured about them.

    Args:
        prompts: by id.
        answers: to them.
        rewards: of the answers, in their order; empty without a reward model.
        by_formula: measure the simulated annotators' utility, too.
    """
    from feedback.utility import utility

    return [
        MeasuredAnswer(
            **a.model_dump(), utility=utility(prompts[a.prompt_id], a.text) if by_formula else None,
            reward=rewards[i].reward if rewards else None,
            disagreement=rewards[i].disagreement if rewards else None, distinct_bigrams=distinct_bigrams(a.text),
        )
        for i, a in enumerate(answers)
    ]  # fmt: skip


def pair_up(
    prompts: Mapping[str, list[Message]], groups: Mapping[str, str], baseline: Sequence[MeasuredAnswer],
    candidate: Sequence[MeasuredAnswer],
) -> list[Sample]:  # fmt: skip
    """The two models' answers to the same prompts, side by side."""
    return [
        Sample(
            id=b.prompt_id, sample=b.sample, prompt=prompts[b.prompt_id], group=groups.get(b.prompt_id), baseline=b,
            candidate=c,
        )
        for b, c in zip(baseline, candidate, strict=True)
    ]  # fmt: skip


def judge_answers(judge: Judge, samples: Sequence[Sample]) -> list[Judgement]:
    """What the judge says of every pair of answers; each is asked about in both orders."""
    answers = [[answer(each.text) for each in (s.candidate, s.baseline)] for s in samples]
    found = judge.compare(
        [s.prompt for s in samples], [first for first, _ in answers], [second for _, second in answers]
    )
    return [Judgement(candidate_is_better=each.first_is_better) for each in found]


def distinct_bigrams(text: str) -> float:
    """The share of a text's neighbouring word pairs that are different ones; 1 where there is no pair.

    distinct-2 of Li et al. 2016 (https://arxiv.org/abs/1510.03055), by answer instead of over all answers.
    """
    words = text.lower().split()
    pairs = list(itertools.pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else 1.0
