"""The annotation task: what an annotator sees, and how an answer maps back to the comparison.

A record shows the conversation and the responses in an order of its own, as `response_1` to `response_k`:

    {"external_id": "5d0c63e1a9f2",
     "fields": {"prompt": [{"role": "user", "content": "Name a prime."}],
                "response_1": "Nine.", "response_2": "Seven is prime."}}

The page posts a ranking as one rank for each displayed position; equal ranks are a tie:

    {"ranking": {"value": [{"value": "response_1", "rank": 2}, {"value": "response_2", "rank": 1}]}}

Besides rankings there are comparisons of two responses and ratings from 1 to 5; each task also takes flags for
harmful responses and a reason, both optional.

Annotators are blind: no model name, score or suggestion is sent to the server at all, and a record's external id
tells neither what it is about nor whether it is there to check attention. The order of display stays here too,
because Argilla's API would show it to annotators; on the way back the record's own texts must agree with it.
"""

import hashlib
import html
from pathlib import Path
from typing import Any, Literal

from accord.errors import AccordError, DataError
from accord.records import Comparison, content_id
from accord.text_files import read_text

TaskKind = Literal["ranking", "pairwise", "rating"]

FEWEST_RESPONSES = 2
MOST_RESPONSES = 8
EMPTY_RESPONSE = "(this response is empty)"

RANKING, PAIRWISE, HARMFUL, REASON = "ranking", "choice", "harmful", "reason"
"""Names of the questions; a rating's is `rating_<criterion>_<position>`."""

PAIRWISE_ANSWERS = {
    "first_much_better": ("Response 1 is much better", [1, 2], 3),
    "first_better": ("Response 1 is better", [1, 2], 2),
    "first_slightly_better": ("Response 1 is slightly better", [1, 2], 1),
    "tie": ("Equally good", [1, 1], None),
    "second_slightly_better": ("Response 2 is slightly better", [2, 1], 1),
    "second_better": ("Response 2 is better", [2, 1], 2),
    "second_much_better": ("Response 2 is much better", [2, 1], 3),
}
"""What can be chosen between two responses: what the page says, the ranks it stands for, and the strength."""

INSTRUCTIONS: dict[TaskKind, str] = {
    "ranking": "Read the conversation, then rank **all** responses to its last message: 1 is best. Responses that "
    "are equally good share a rank.",
    "pairwise": "Read the conversation, then say which of the two responses to its last message is better, and by how "
    "much.",
    "rating": "Read the conversation, then rate **each** response to its last message on every criterion: 5 is best. "
    "Responses that are equally good get the same number.",
}
GUIDELINES = """\
## What makes a response better

1. **Helpful.** It answers what was asked, completely, and follows any wish about form or length.
2. **Honest.** What it says is true as far as you can tell, and it does not claim to know what it cannot know.
3. **Harmless.** It does not insult, endanger or deceive anybody, and it turns down a harmful request politely.
4. **To the point.** It is clear, ends properly, does not repeat itself, and spends no words on filler.

When these pull in different directions, harm weighs most, then honesty, then helpfulness, then brevity. A longer
response is not better for its length. Judge what is written, not how confident it sounds. Take the order in which the
responses stand as chance, because it is.

## Harm

Flag every response that could hurt somebody if it were followed or believed, also where it is the better one.

## When to discard

Discard the record if you cannot judge it: you do not understand the language or the subject, or no response is
readable at all. Write down why. If the responses are bad but differ, judge them all the same.
"""


def check_rankable(comparisons: list[Comparison]) -> int:
    """The number of responses that every comparison has.

    Raises:
        AccordError: there are none, ids repeat, or the numbers of responses differ or are not between 2 and 8.
    """
    if not comparisons:
        raise AccordError("there are no comparisons to rank; give at least one")
    ids = [comparison.id for comparison in comparisons]
    if len(set(ids)) != len(ids):
        repeated = next(each for each in ids if ids.count(each) > 1)
        raise AccordError(f"two comparisons have the id '{repeated}'; ids must differ within one dataset")
    numbers = {len(comparison.responses) for comparison in comparisons}
    if len(numbers) > 1 or not FEWEST_RESPONSES <= min(numbers) <= MOST_RESPONSES:
        raise AccordError(
            f"the comparisons have {sorted(numbers)} responses; one dataset needs the same number for all, between "
            f"{FEWEST_RESPONSES} and {MOST_RESPONSES}"
        )
    return numbers.pop()


def read_guidelines(path: Path) -> str:
    """The text of a file of guidelines.

    Raises:
        DataError: it cannot be read, or says nothing.
    """
    text = read_text(path)
    if not text.strip():
        raise DataError(
            f"{path}: is empty; write what makes an answer good, or leave feedback.guidelines out"
        )
    return text


def guidelines_of(task: TaskKind, guidelines: str | None = None) -> str:
    """What the page shows as guidelines: what to do, then `guidelines` or accord's own."""
    return f"## What to do\n\n{INSTRUCTIONS[task]}\n\n{guidelines or GUIDELINES}"


def fields_of(responses: int) -> list[dict[str, Any]]:
    """The dataset's fields, as Argilla's API defines them; markdown is off, so that texts are shown as they are."""
    prompt = {"name": "prompt", "title": "Conversation", "settings": {"type": "chat", "use_markdown": False}}
    texts = [
        {
            "name": f"response_{number}",
            "title": f"Response {number}",
            "settings": {"type": "text", "use_markdown": False},
        }
        for number in range(1, responses + 1)
    ]
    return [{**each, "required": True} for each in [prompt, *texts]]


def questions_of(task: TaskKind, responses: int, criteria: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The dataset's questions, as Argilla's API defines them: those of the task, then harm and the reason."""
    positions = range(1, responses + 1)
    named = [{"value": f"response_{number}", "text": f"Response {number}"} for number in positions]
    if task == "ranking":
        title = "Rank the responses: 1 is best, equally good ones share a rank"
        asked = [_question(RANKING, title, {"type": "ranking", "options": named})]
    elif task == "pairwise":
        options = [{"value": value, "text": text} for value, (text, _, _) in PAIRWISE_ANSWERS.items()]
        settings = {"type": "label_selection", "options": options, "visible_options": len(options)}
        asked = [_question(PAIRWISE, "Which response is better?", settings)]
    else:
        settings = {"type": "rating", "options": [{"value": value} for value in range(1, 6)]}
        asked = [
            _question(
                f"rating_{criterion}_{number}",
                f"Response {number}, {criterion}: 1 is worst, 5 is best",
                settings,
            )
            for number in positions
            for criterion in criteria
        ]
    harmful = {"type": "multi_label_selection", "options": named}
    return [
        *asked,
        _question(HARMFUL, "Which responses could do harm?", harmful, required=False),
        _question(REASON, "Why? (if you like)", {"type": "text", "use_markdown": False}, required=False),
    ]


def _question(name: str, title: str, settings: dict[str, Any], required: bool = True) -> dict[str, Any]:
    return {"name": name, "title": title, "required": required, "settings": settings}


def record_id(dataset_name: str, comparison_id: str) -> str:
    """The external id under which a comparison's record stands in its dataset; it tells an annotator nothing."""
    return content_id([dataset_name, comparison_id])


def display_order(dataset_name: str, comparison_id: str, responses: int) -> list[int]:
    """Which response stands at each displayed position: a random permutation, always the same for one record."""

    def key(index: int) -> bytes:
        return hashlib.sha256(f"{dataset_name}\n{comparison_id}\n{index}".encode()).digest()

    return sorted(range(responses), key=key)


def order_of(comparison: Comparison, dataset_name: str) -> list[int]:
    """The order in which a comparison is displayed: its own, or the one of its place in the dataset."""
    if comparison.display_order is not None:
        return comparison.display_order
    return display_order(dataset_name, comparison.id, len(comparison.responses))


def displayable(text: str) -> str:
    """`text` as it is sent to the server: mark-up escaped, and a note in place of nothing."""
    return html.escape(text.strip(), quote=False) or EMPTY_RESPONSE


def as_read(field: str) -> str:
    """The text that a person reads in a record's field; the inverse of `displayable`."""
    return "" if field == EMPTY_RESPONSE else html.unescape(field)


def record_of(comparison: Comparison, dataset_name: str) -> dict[str, Any]:
    """The record that shows a comparison, as Argilla's API takes it."""
    texts = {
        f"response_{position}": displayable(comparison.responses[index].text)
        for position, index in enumerate(order_of(comparison, dataset_name), start=1)
    }
    prompt = [
        {"role": message.role, "content": displayable(message.text)}
        for message in comparison.prompt
        if message.text
    ]
    return {"external_id": record_id(dataset_name, comparison.id), "fields": {"prompt": prompt, **texts}}


def ranking_from_page(
    comparison: Comparison, dataset_name: str, values: dict[str, Any] | None
) -> dict[str, Any]:
    """What an answer says, as columns of `Ranking`, in the order of `comparison.responses`.

    `ranks` is None unless the answer orders every response. Ratings order responses by their sum over criteria.
    """
    given = {name: answer["value"] for name, answer in (values or {}).items() if answer}
    order = order_of(comparison, dataset_name)
    index_of = {f"response_{position}": index for position, index in enumerate(order, start=1)}

    ranks: list[int | None] = [None] * len(order)
    strength: int | None = None
    ratings: list[dict[str, int]] | None = None
    if PAIRWISE in given:
        _, by_position, strength = PAIRWISE_ANSWERS[given[PAIRWISE]]
        for index, rank in zip(order, by_position, strict=True):
            ranks[index] = rank
    for item in given.get(RANKING) or []:
        ranks[index_of[item["value"]]] = item.get("rank")
    if rated := [name for name in given if name.startswith("rating_")]:
        ratings = [{} for _ in order]
        for name in rated:
            criterion, _, position = name.removeprefix("rating_").rpartition("_")
            ratings[order[int(position) - 1]][criterion] = given[name]
        if len({frozenset(each) for each in ratings}) == 1:  # every response was rated on the same criteria
            sums = [sum(each.values()) for each in ratings]
            ranks = [1 + len({other for other in sums if other > own}) for own in sums]
    complete = [rank for rank in ranks if rank is not None]
    return {
        "ranks": complete if len(complete) == len(ranks) else None,
        "strength": strength,
        "ratings": ratings,
        "harmful": sorted(index_of[name] for name in given[HARMFUL]) if given.get(HARMFUL) else None,
        "reason": (given.get(REASON) or "").strip() or None,
    }
