"""The held-out pairs and rankings with the trained model's scores: what a report card is made from."""

import json
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from accord.chat.tokens import encode_conversation, encode_prompt
from accord.models.references import Model
from accord.records import Comparison, Message, Preference, conversation_id
from accord.runs import Runs
from reward.choices import answers_of
from reward.rows import ScoredComparison, ScoredPair
from reward.score import score, score_by_head

TRAINED_ON = "train_prompts.json"
"""The ids of the prompts that a reward model was trained on, in its run."""


def score_heldout(
    reward_model: Model,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Preference],
    comparisons: Sequence[Comparison],
    previous: Model | None = None,
    runs: Runs | None = None,
) -> tuple[list[ScoredPair], list[ScoredComparison]]:
    """Held-out pairs and comparisons with the scores of every head, and with those of an earlier model.

    Args:
        reward_model: the trained one.
        tokenizer: its tokenizer.
        pairs: held-out pairs.
        comparisons: held-out comparisons; gold records and duplicates are left out of the result.
        previous: an earlier reward model. Pairs of prompts that it was trained on get no scores of it, where it is a
            run, which knows them.
        runs: where its run is.
    """
    comparisons = [each for each in comparisons if not each.is_probe]
    texts = [[*row.prompt, *side] for row in pairs for side in (row.chosen, row.rejected)]
    texts += [[*each.prompt, *answer] for each in comparisons for answer in answers_of(each)]
    different = list({conversation_id(messages): messages for messages in texts}.values())
    by_head = score_by_head(reward_model, different, tokenizer=tokenizer)
    scores = dict(zip(map(conversation_id, different), by_head, strict=True))
    seen = _trained_on(previous, runs)
    fresh = [row for row in pairs if previous and conversation_id(row.prompt) not in seen]
    earlier = (
        score(previous, [[*row.prompt, *side] for row in fresh for side in (row.chosen, row.rejected)])
        if previous
        else []
    )
    before = {id(row): earlier[2 * i : 2 * i + 2] for i, row in enumerate(fresh)}
    first = _shown_first(comparisons)
    scored_pairs = []
    for row in pairs:
        of_previous = before.get(id(row), [None, None])
        lengths = [answer_tokens(tokenizer, row.prompt, side) for side in (row.chosen, row.rejected)]
        scored_pairs.append(
            ScoredPair(
                **row.model_dump(exclude_unset=True),
                chosen_scores=scores[conversation_id([*row.prompt, *row.chosen])],
                rejected_scores=scores[conversation_id([*row.prompt, *row.rejected])],
                chosen_tokens=lengths[0], rejected_tokens=lengths[1], shown_first=first.get(row.id or ""),
                previous_chosen_score=of_previous[0], previous_rejected_score=of_previous[1],
            )
        )  # fmt: skip
    scored_comparisons = [
        ScoredComparison(
            **each.model_dump(exclude_unset=True),
            scores=[scores[conversation_id([*each.prompt, *answer])] for answer in answers_of(each)],
            tokens=[answer_tokens(tokenizer, each.prompt, answer) for answer in answers_of(each)],
        )
        for each in comparisons
    ]
    return scored_pairs, scored_comparisons


def longer_chosen_share(tokenizer: PreTrainedTokenizerBase, pairs: Iterable[Preference]) -> float:
    """Among pairs of answers of unequal length in tokens, the share whose longer one is chosen; 1/2 without any."""
    longer = []
    for row in pairs:
        chosen, rejected = (answer_tokens(tokenizer, row.prompt, side) for side in (row.chosen, row.rejected))
        if chosen != rejected:
            longer.append(chosen > rejected)
    return sum(longer) / len(longer) if longer else 0.5


def answer_tokens(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], answer: Sequence[Message]
) -> int:
    """The tokens of an answer, its EOS included."""
    return len(encode_conversation(tokenizer, [*prompt, *answer]).input_ids) - len(
        encode_prompt(tokenizer, prompt)
    )


def _shown_first(comparisons: Iterable[Comparison]) -> dict[str, str]:
    """By a pair's id (see `feedback.belief.preferences`), which of its answers stood before the other on the page."""
    found = {}
    for comparison in comparisons:
        order = comparison.display_order or []
        for place, one in enumerate(order):
            for other in order[place + 1 :]:
                found[f"{comparison.id}:{one}>{other}"] = "chosen"
                found[f"{comparison.id}:{other}>{one}"] = "rejected"
    return found


def _trained_on(model: Model | None, runs: Runs | None) -> set[str]:
    """The ids of the prompts that a run's reward model was trained on; none are known of another model."""
    if model is None or model.run_id is None or runs is None:
        return set()
    path = runs.load(model.run_id).path / TRAINED_ON
    return set(json.loads(path.read_text())) if path.exists() else set()
