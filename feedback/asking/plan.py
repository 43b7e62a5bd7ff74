"""From sampled answers to the records that annotators get: which are asked, in which order, with which checks.

    chosen = select(...)                         # feedback.asking.select: which comparisons, with which probability
    records = plan(chosen, checks, names, assigned_per_record=2, seed=0)

What is planned is written down before anything is pushed, so a run that was killed goes on with the same plan.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from accord.errors import DataError
from accord.records import Comparison, Message, Response, Row, content_id, read_jsonl


class Gold(Row):
    """A comparison whose right answer is known; `ranks[i]` is the rank of `responses[i]`, 1 is best, ties share."""

    prompt: list[Message] = Field(min_length=1)
    responses: list[str] = Field(min_length=2)
    ranks: list[int]

    @model_validator(mode="after")
    def _ranks_say_something(self) -> Self:
        if len(self.ranks) != len(self.responses):
            raise ValueError(f"ranks: has {len(self.ranks)} ranks for {len(self.responses)} responses")
        if len(set(self.ranks)) == 1:
            raise ValueError("ranks: are all equal, so any attention passes")
        if any("\0" in text for text in (*self.responses, *(turn.content for turn in self.prompt))):
            raise ValueError(
                "holds the character NUL (\\u0000), which databases and pages refuse; leave it out"
            )
        return self


@dataclass(frozen=True)
class Checks:
    """What is mixed in to see whether annotators attend: shares of the records that are asked."""

    duplicate_rate: float
    """Asked a second time, with the order of display turned round."""
    gold: Path | None
    """A file of `Gold` rows to draw gold records from."""
    gold_rate: float


def plan(
    comparisons: Sequence[Comparison],
    checks: Checks,
    annotators: Sequence[str],
    assigned_per_record: int | None,
    seed: int,
) -> list[Comparison]:
    """Every record to push, in the order in which it is pushed.

    Args:
        comparisons: what is to be asked.
        checks: what is mixed in.
        annotators: the names of those who may be assigned.
        assigned_per_record: how many of them each record is assigned to, all with equal loads; None: records go to
            whoever comes first.
        seed: of everything drawn.

    Returns:
        The comparisons, their duplicates, and the gold records (at least one where there is a file); all with
        `display_order`, and with `assigned_to` where they are assigned. A duplicate goes to the annotators of its
        original, gold to everybody.

    Raises:
        DataError: a gold row is bad, or has fewer responses than a record shows.
    """
    chance = random.Random(f"plan:{seed}")
    records = [_in_random_order(chance, comparison) for comparison in comparisons]
    if assigned_per_record is not None:
        records = _assigned(chance, records, annotators, assigned_per_record)
    repeated = chance.sample(records, round(checks.duplicate_rate * len(records)))
    duplicates = [
        original.model_copy(
            update={
                "id": f"duplicate-{original.id}",
                "duplicate_of": original.id,
                "display_order": list(reversed(original.display_order or [])),
            }
        )
        for original in repeated
    ]
    known: list[Comparison] = []
    if checks.gold is not None:
        rows = _gold_comparisons(chance, checks.gold, len(comparisons[0].responses))
        wanted = min(len(rows), max(1, round(checks.gold_rate * len(records))))
        known = [_in_random_order(chance, each) for each in chance.sample(rows, wanted)]
        if assigned_per_record is not None:
            known = [each.model_copy(update={"assigned_to": list(annotators)}) for each in known]
    planned = [*records, *duplicates, *known]
    chance.shuffle(planned)
    return planned


def _in_random_order(chance: random.Random, comparison: Comparison) -> Comparison:
    order = list(range(len(comparison.responses)))
    chance.shuffle(order)
    return comparison.model_copy(update={"display_order": order})


def _assigned(
    chance: random.Random, comparisons: list[Comparison], annotators: Sequence[str], per_record: int
) -> list[Comparison]:
    """Each comparison to the annotators who have the fewest so far, so that loads differ by one at most."""
    loads = Counter(dict.fromkeys(annotators, 0))
    assigned = []
    for comparison in comparisons:
        by_load = sorted(annotators, key=lambda name: (loads[name], chance.random()))
        names = sorted(by_load[:per_record])
        loads.update(names)
        assigned.append(comparison.model_copy(update={"assigned_to": names}))
    return assigned


def read_gold(path: Path, responses: int) -> list[Gold]:
    """The gold rows of a file, for records that show so many responses.

    Raises:
        DataError: a row is bad, or has fewer responses.
    """
    rows = read_jsonl(path, Gold)
    for number, row in enumerate(rows, start=1):
        if len(row.responses) < responses:
            raise DataError(
                f"{path}: row {number} has {len(row.responses)} responses, but a record shows {responses}; add some, "
                "or lower feedback.responses_per_prompt"
            )
    return rows


def _gold_comparisons(chance: random.Random, path: Path, responses: int) -> list[Comparison]:
    comparisons = []
    for row in read_gold(path, responses):
        # of more responses than a record shows, the best and the worst stay, so that something can be told apart
        by_rank = sorted(range(len(row.ranks)), key=lambda index: row.ranks[index])
        middle = chance.sample(by_rank[1:-1], responses - 2)
        kept = sorted([by_rank[0], *middle, by_rank[-1]])
        texts = [row.responses[index] for index in kept]
        comparisons.append(
            Comparison(
                id=f"gold-{content_id([[m.model_dump() for m in row.prompt], texts])}",
                prompt=row.prompt,
                responses=[Response(text=text, run="gold", seed=0) for text in texts],
                gold_ranks=[row.ranks[index] for index in kept],
            )
        )
    return comparisons
