"""What a policy said and learned of its own answers, as files; what a model made is marked as synthetic for ever."""

import statistics
from collections.abc import Sequence
from typing import Any

from accord.chat.tokens import answer
from accord.data.synthetic import synthetic
from accord.records import messages_as_dicts
from accord.runs import Run
from accord.text_files import write_jsonl
from rl.data import EncodedPrompt
from rl.selection import Answer, Best


def write_samples(
    run: Run, prompts: Sequence[EncodedPrompt], heldout: Sequence[EncodedPrompt],
    rounds: Sequence[tuple[list[list[Answer]], list[Best]]], before: list[list[Answer]], after: list[list[Answer]],
    made_by: dict[str, Any],
) -> None:  # fmt: skip
    """Write demonstrations.jsonl, what was learned, and samples.jsonl, all that was sampled.

    Args:
        run: where they are written.
        prompts: what was asked in every round.
        heldout: what was asked before the first one and after the last one.
        rounds: of each round the answers to each prompt, and which of them were learned.
        before: the answers to the held-out prompts before.
        after: those after.
        made_by: the same for all demonstrations: who made and chose them.
    """
    learned, samples = [], []

    def sampled(asked: EncodedPrompt, each: Answer, **more: Any) -> dict[str, Any]:
        ended = {"truncated": not each.ended, "score": each.score, "seed": each.seed}
        said = {"text": each.text, "token_ids": each.token_ids}
        return {**more, "prompt": messages_as_dicts(asked.messages), **said, **ended}

    for number, (answers, best) in enumerate(rounds, start=1):
        chosen = {each.prompt: each for each in best}
        for i, group in enumerate(answers):
            for each in group:
                is_kept = i in chosen and chosen[i].answer is each
                samples.append(sampled(prompts[i], each, round=number, kept=is_kept))
        for one in best:
            messages = [*prompts[one.prompt].messages, *answer(one.answer.text)]
            row = synthetic(
                {"messages": messages_as_dicts(messages)}, kind="best_of_n", **made_by, round=number,
                score=one.score, seed=one.answer.seed, others=len(one.others),
                others_mean=statistics.fmean(one.others) if one.others else None,
                others_deviation=statistics.pstdev(one.others) if one.others else None,
            )  # fmt: skip
            learned.append(row)
    for when, answered in (("before", before), ("after", after)):
        samples += [
            sampled(asked, each, heldout=when)
            for asked, group in zip(heldout, answered, strict=True)
            for each in group
        ]
    write_jsonl(run.path / "demonstrations.jsonl", learned)
    write_jsonl(run.path / "samples.jsonl", samples)
