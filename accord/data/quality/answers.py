"""Answers that refuse, speak in stock phrases, repeat themselves or are of unusual length."""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from accord.data.quality.findings import Finding, learned, words
from accord.records import Row

START = 300
"""So many characters of an answer are its start: a refusal stands there."""
_CANNOT = r"(?:can't|cannot|can not|won't|will not|am unable to|am not able to|'m unable to|'m not able to)"
REFUSAL = re.compile(
    rf"\b(?:i|we)(?: am|'m)?(?: sorry,? but)?(?: i| we)? ?{_CANNOT}"
    r"(?: (?:really|just|ethically|legally|in good conscience))* "
    r"(?:help|assist|provide|comply|fulfil|answer|support|share|give|discuss|engage|participate|create|generate|"
    r"write|do (?:that|this)|offer|advise)\b(?! but\b)|"
    r"\bi (?:must|have to|respectfully|politely) (?:decline|refuse)\b|\bi (?:decline|refuse) to\b(?! believe)|"
    r"\b(?:against|violates) (?:my|our) (?:guidelines|policy|policies|programming|principles)\b|"
    r"^(?:i'm |i am )?(?:sorry|unable)[,.]? (?:but )?(?:i )?(?:can't|cannot|to) (?:help|assist|comply|do that)\b",
)
BOILERPLATE = re.compile(
    r"\bas an? (?:ai|artificial intelligence|large language|language) ?(?:language )?(?:model|assistant)\b|"
    r"\b(?:knowledge cut-?off|last knowledge update|my training data (?:only )?goes)\b|"
    r"\b(?:i hope (?:this|that) (?:helps|answers)|feel free to (?:ask|reach out)|let me know if (?:you|there)|"
    r"is there anything else (?:i|you))\b|^(?:what a |that's a )?(?:great|excellent|good) question\b|"
    r"\bregenerate response\b|\[(?:insert|your) [^\]\n]{1,40}\]|\blorem ipsum\b",
)
GRAM, LONG_ENOUGH, REPEATED = 5, 30, 0.3
"""The share of an answer's sequences of 5 words that stand in it before, from 30 words on. Gopher's rules (Rae et al.
2021) drop web pages from about half of this on; answers hold lists and tables."""
FEWEST = 20
"""Of fewer answers no length is unusual."""
FENCES, LEAST = 3.0, math.log(3)
"""So many interquartile ranges of the logarithm beyond the quartiles (Tukey's far out), and three times at least."""


def stock_phrases(rows: Sequence[Row]) -> list[Finding]:
    """Rows that teach to refuse (`refusals`) or to speak in stock phrases (`boilerplate`), by English patterns."""
    found = []
    for i, row in enumerate(rows):
        for what, pattern in (("refusals", REFUSAL), ("boilerplate", BOILERPLATE)):
            for text in learned(row):
                plain = text.replace("’", "'").casefold().strip()
                match = pattern.search(plain[:START] if what == "refusals" else plain)
                if match:
                    found.append(Finding(what, i, " ".join(match.group().split())[:80]))
                    break
    return found


def repeated(rows: Sequence[Row]) -> list[Finding]:
    """Rows with an answer that says the same again and again."""
    found = []
    for i, row in enumerate(rows):
        share = max(map(repeated_share, learned(row)), default=0.0)
        if share > REPEATED:
            found.append(
                Finding("repetition", i, f"{share:.0%} of its sequences of {GRAM} words stood before")
            )
    return found


def repeated_share(text: str) -> float:
    """The share of a text's sequences of 5 words that stand in it before; 0 for a text of fewer than 30 words."""
    found = words(text)
    if len(found) < LONG_ENOUGH:
        return 0.0
    grams = [tuple(found[i : i + GRAM]) for i in range(len(found) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams)


class Lengths:
    """How many rows have a (longest) learned answer of which length, in characters."""

    def __init__(self) -> None:
        self._rows: Counter[int] = Counter()

    def add(self, rows: Sequence[Row]) -> None:
        """Count these, too."""
        self._rows.update(max(map(len, texts)) for row in rows if (texts := learned(row)))

    def unusual(self, rows: Sequence[Row]) -> list[Finding]:
        """Rows with an answer far longer or shorter than those of all that were counted."""
        if self._rows.total() < FEWEST:
            return []
        lengths = sorted(self._rows)
        up_to = np.cumsum([self._rows[length] for length in lengths])

        def quantile(share: float) -> float:
            """Of the logarithms, as statistics.quantiles has it."""
            place = share * (up_to[-1] + 1)
            low, high = (
                math.log(lengths[int(np.searchsorted(up_to, min(max(int(place) + step, 1), up_to[-1])))] + 1)
                for step in (0, 1)
            )
            return low + (high - low) * (place - int(place))

        low, usual, high = (quantile(share) for share in (0.25, 0.5, 0.75))
        reach = max(FENCES * (high - low), LEAST)
        found = []
        for i, row in enumerate(rows):
            if texts := learned(row):
                length = max(map(len, texts))
                if not low - reach <= math.log(length + 1) <= high + reach:
                    detail = f"{length:,} characters; the median is {math.exp(usual) - 1:,.0f}"
                    found.append(Finding("length", i, detail))
        return found
