"""What simulated annotators like: a formula over a response's words, which says nothing about what people like."""

import math
import re
from collections.abc import Sequence
from itertools import pairwise

from accord.records import Message

SIMULATED = "simulated_"
"""How the name of every simulated annotator begins."""

WEIGHTS = {"complete": 0.25, "length": 0.25, "variety": 0.15, "topic": 0.20, "direct": 0.10, "plain": 0.05}
FEWEST_WORDS, MOST_WORDS = 6, 40

FILLER = re.compile(
    r"^\W*(sure|certainly|of course|absolutely|great question|good question|as an ai|as a language model|i'm sorry"
    r"|here is|here are|here's|thank you for)\b",
    re.IGNORECASE,
)
CLUTTER = re.compile(r"^\s*([-*•#>|]|\d+[.)]\s|```)|\*\*", re.MULTILINE)
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a about all am an and any are as at be been but by can could did do does for from give had has have he her
        him his how i if in into is it its just may me more most my no not of on one or our please she should so some
        such tell than that the their them then there these they this to two up us was we were what when where which
        while who why will with would write you your""",
    )
)


def utility(prompt: Sequence[Message], response: str) -> float:
    """How good a simulated annotator finds a response, from 0 to 1: the weighted mean of six terms.

    | term     | weight | 1 when                                                | otherwise                        |
    |----------|--------|-------------------------------------------------------|----------------------------------|
    | complete | 0.25   | it ends with . ! ? or … (a quote or bracket may follow) | 0                              |
    | length   | 0.25   | it has 6 to 40 words                                  | words / 6; or e^(-(words-40)/40) |
    | variety  | 0.15   | no pair of adjacent words comes twice                 | share of distinct pairs          |
    | topic    | 0.20   | it takes up half of the question's content words      | share taken up / 0.5             |
    | direct   | 0.10   | it does not open with filler ("Sure!", "As an AI")    | 0                                |
    | plain    | 0.05   | it has no list, heading or bold mark                  | 1 - marks / 3, at least 0        |

    The question is the last message of `prompt`. A response without any word has utility 0.
    """
    words = re.findall(r"\w+(?:['’]\w+)*", response.lower())
    if not words:
        return 0.0
    bigrams = list(pairwise(words))
    asked = {_stem(word) for word in re.findall(r"\w+", prompt[-1].content.lower()) if word not in STOP_WORDS}
    taken_up = len(asked & {_stem(word) for word in words}) / len(asked) if asked else 1.0
    if len(words) < FEWEST_WORDS:
        length = len(words) / FEWEST_WORDS
    else:
        length = math.exp(-max(0, len(words) - MOST_WORDS) / MOST_WORDS)
    terms = {
        "complete": float(re.search(r"[.!?…][\"'”’)\]]*\s*$", response) is not None),
        "length": length,
        "variety": len(set(bigrams)) / len(bigrams) if bigrams else 1.0,
        "topic": min(1.0, taken_up / 0.5),
        "direct": float(FILLER.search(response) is None),
        "plain": max(0.0, 1 - len(CLUTTER.findall(response)) / 3),
    }
    return sum(WEIGHTS[name] * value for name, value in terms.items())


def _stem(word: str) -> str:
    """A crude stem, so that "planets" takes up "planet" and "boiling" takes up "boils"."""
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word
