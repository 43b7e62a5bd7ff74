"""What a suite's items come to under a model: scores or replies, and the values that follow from them."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accord.chat.tokens import answer, decode_response, encode_prompt
from accord.models.loading import load_policy
from accord.models.references import Model
from accord.records import Message
from accord.sampling.shared import SharedSampler
from eval.config import Sampling
from eval.likelihood.cache import log_likelihoods_once
from eval.measuring.raters import Rater
from eval.measuring.side import Side
from eval.rows import Outcome, SuiteSubject, seed_for
from eval.suites.kind import Answered, ByLikelihood, Reply, SuiteRow
from eval.suites.suite import Suite
from reward.scorers import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def loaded_once(model: Model) -> Callable[[], "PreTrainedModel"]:
    """Loads the policy in float32 at its first call, and has it ready at the next: several suites score with it."""
    return functools.cache(functools.partial(load_policy, model))


def about(suite: Suite, items: int, told: str = "") -> SuiteSubject:
    """What the verdict says of a suite; `told` is of what rated its answers."""
    return SuiteSubject(
        name=suite.name, title=suite.title, family=suite.family, risk=suite.risk, license=suite.license,
        source=suite.source, measures=f"{suite.measures} {told}".strip(), items=items,
    )  # fmt: skip


def measure_by_likelihood(
    suite: Suite, rows: Sequence[SuiteRow], side: Side, policy: Callable[[], "PreTrainedModel"], cache: Path
) -> list[Outcome]:
    """The outcomes of a suite whose items are scored by log-likelihood.

    Args:
        suite: of a `ByLikelihood` kind.
        rows: its items.
        side: the model to score with.
        policy: loads that model, where scores are missing in the cache.
        cache: the folder of kept scores.
    """
    kind = suite.kind
    assert isinstance(kind, ByLikelihood)

    def encode(messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(encode_prompt(side.tokenizer, messages))

    items = [kind.items(row, encode) for row in rows]
    flat = [item for its in items for item in its]
    scores = iter(log_likelihoods_once(side.model, flat, cache, load=policy, tokenizer=side.tokenizer))
    outcomes = []
    for row, its in zip(rows, items, strict=True):
        own = [next(scores) for _ in its]
        outcomes.append(Outcome(id=row.id, scores=own, values=dict(kind.values(row, own))))
    return outcomes


def sample_replies(
    suite: Suite, rows: Sequence[SuiteRow], side: Side, sampler: SharedSampler, sampling: Sampling,
    scorer: Scorer | None, rater: Rater | None = None,
) -> list[Outcome]:  # fmt: skip
    """The outcomes of a suite whose prompts the model answers; all prompts of one row with the same seed.

    Args:
        suite: of an `Answered` kind.
        rows: its items.
        side: the model to answer.
        sampler: takes over the model's weights.
        sampling: how to sample.
        scorer: scores the replies, where the kind wants that.
        rater: says of the replies what the kind rates, in place of its rule.
    """
    kind = suite.kind
    assert isinstance(kind, Answered)
    asked = [(row, messages) for row in rows for messages in kind.prompts(row)]
    completions = sampler.use(side.model).sample(
        [encode_prompt(side.tokenizer, messages) for _, messages in asked],
        [seed_for(sampling.seed, f"{suite.name}/{row.id}", 0) for row, _ in asked],
        sampling.max_response_tokens,
        sampling.temperature,
    )
    replies = [
        Reply(
            text=decode_response(side.tokenizer, completion.token_ids), finish=completion.finish,
            tokens=len(completion.token_ids) - (completion.finish == "eos"),
        )
        for completion in completions
    ]  # fmt: skip
    conversations = [
        [*messages, *answer(reply.text)] for (_, messages), reply in zip(asked, replies, strict=True)
    ]
    if scorer and kind.wants_reward:
        rewards = scorer.score(conversations)
        replies = [
            reply.model_copy(update={"reward": reward})
            for reply, reward in zip(replies, rewards, strict=True)
        ]
    if rater and kind.rates:
        replies = [
            reply.model_copy(update={"rated": rated})
            for reply, rated in zip(replies, rater.rate(conversations), strict=True)
        ]
    by_row: dict[str, list[Reply]] = {row.id: [] for row in rows}
    for (row, _), reply in zip(asked, replies, strict=True):
        by_row[row.id].append(reply)
    return [
        Outcome(id=row.id, replies=by_row[row.id], values=dict(kind.values(row, by_row[row.id])))
        for row in rows
    ]
