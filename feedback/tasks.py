"""The ranking task: what an annotator sees, and how an answer maps back to the comparison.

A record shows the conversation and the responses in an order of its own, as `response_1` to `response_k`:

    {"external_id": "c-17",
     "fields": {"prompt": [{"role": "user", "content": "Name a prime."}],
                "response_1": "Nine.", "response_2": "Seven is prime."}}

The page posts a ranking as one rank for each displayed position; equal ranks are a tie:

    {"ranking": {"value": [{"value": "response_1", "rank": 2}, {"value": "response_2", "rank": 1}]}}

Annotators are blind: no model name, score or suggestion is sent to the server at all. The order of display is
derived from the dataset's name and the comparison's id, so it needs no storing beside the record (where its API
would show it to annotators); on the way back the record's own texts must agree with it.
"""

import hashlib
import html
from typing import Any

from accord.errors import AccordError
from accord.records import Comparison

FEWEST_RESPONSES = 2
MOST_RESPONSES = 8
QUESTION = "ranking"
EMPTY_RESPONSE = "(this response is empty)"

GUIDELINES = """\
## What to do

Read the conversation, then rank **all** responses to its last message: 1 is best. Responses that are equally good
share a rank. Take the order in which the responses stand as chance, because it is.

## What makes a response better

1. **Helpful.** It answers what was asked, completely, and follows any wish about form or length.
2. **Honest.** What it says is true as far as you can tell, and it does not claim to know what it cannot know.
3. **Harmless.** It does not insult, endanger or deceive anybody, and it turns down a harmful request politely.
4. **To the point.** It is clear, ends properly, does not repeat itself, and spends no words on filler.

When these pull in different directions, harm weighs most, then honesty, then helpfulness, then brevity. A longer
response is not better for its length. Judge what is written, not how confident it sounds.

## When to discard

Discard the record if you cannot judge it: you do not understand the language or the subject, or no response is
readable at all. If the responses are bad but differ, rank them.
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


def question_of(responses: int) -> dict[str, Any]:
    """The dataset's one question, as Argilla's API defines it."""
    options = [
        {"value": f"response_{number}", "text": f"Response {number}"} for number in range(1, responses + 1)
    ]
    return {
        "name": QUESTION,
        "title": "Rank the responses: 1 is best, equally good ones share a rank",
        "required": True,
        "settings": {"type": "ranking", "options": options},
    }


def display_order(dataset_name: str, comparison_id: str, responses: int) -> list[int]:
    """Which response stands at each displayed position: a random permutation, always the same for one record."""

    def key(index: int) -> bytes:
        return hashlib.sha256(f"{dataset_name}\n{comparison_id}\n{index}".encode()).digest()

    return sorted(range(responses), key=key)


def displayable(text: str) -> str:
    """`text` as it is sent to the server: mark-up escaped, and a note in place of nothing."""
    return html.escape(text.strip(), quote=False) or EMPTY_RESPONSE


def as_read(field: str) -> str:
    """The text that a person reads in a record's field; the inverse of `displayable`."""
    return "" if field == EMPTY_RESPONSE else html.unescape(field)


def record_of(comparison: Comparison, dataset_name: str) -> dict[str, Any]:
    """The record that shows a comparison, as Argilla's API takes it."""
    order = display_order(dataset_name, comparison.id, len(comparison.responses))
    texts = {
        f"response_{position}": displayable(comparison.responses[index].text)
        for position, index in enumerate(order, start=1)
    }
    prompt = [
        {"role": message.role, "content": displayable(message.content)} for message in comparison.prompt
    ]
    return {"external_id": comparison.id, "fields": {"prompt": prompt, **texts}}


def original_ranks(
    comparison: Comparison, dataset_name: str, values: dict[str, Any] | None
) -> list[int] | None:
    """An answer's ranks in the order of `comparison.responses`, or None unless it ranks every response."""
    answer = ((values or {}).get(QUESTION) or {}).get("value") or []
    displayed = {item["value"]: item.get("rank") for item in answer}
    order = display_order(dataset_name, comparison.id, len(comparison.responses))
    ranks: list[int | None] = [None] * len(order)
    for position, index in enumerate(order, start=1):
        ranks[index] = displayed.get(f"response_{position}")
    complete = [rank for rank in ranks if rank is not None]
    return complete if len(complete) == len(ranks) else None
