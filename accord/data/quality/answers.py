"""Answers that refuse, speak in stock phrases, repeat themselves, are of unusual length or contradict one another."""

import math
import re
import statistics
from collections.abc import Sequence

from accord.data.quality.findings import Finding, answers, learned, question, words
from accord.records import Demonstration, Row, content_id

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


def unusual_lengths(rows: Sequence[Row]) -> list[Finding]:
    """Rows whose (longest) learned answer is far longer or shorter than those of the others."""
    lengths = {i: max(len(text) for text in texts) for i, row in enumerate(rows) if (texts := learned(row))}
    if len(lengths) < FEWEST:
        return []
    logs = {i: math.log(length + 1) for i, length in lengths.items()}
    low, _, high = statistics.quantiles(logs.values(), n=4)
    reach = max(FENCES * (high - low), LEAST)
    usual = math.exp(statistics.median(logs.values())) - 1
    return [
        Finding("length", i, f"{lengths[i]:,} characters; the median is {usual:,.0f}")
        for i, value in logs.items()
        if not low - reach <= value <= high + reach
    ]


def disagreeing(rows: Sequence[Row], places: Sequence[str]) -> list[Finding]:
    """Demonstrations whose conversation up to the last answer stands in an earlier row, with another answer."""
    first: dict[str, tuple[list[str], str]] = {}
    found = []
    for i, (row, place) in enumerate(zip(rows, places, strict=True)):
        if not isinstance(row, Demonstration):
            continue
        asked = content_id([[turn.role, words(turn.text), turn.tools] for turn in question(row)], 32)
        answer = words(answers(row)[0]) or answers(row)
        before, where = first.setdefault(asked, (answer, place))
        if before != answer:
            found.append(Finding("disagreement", i, f"{where} answers otherwise"))
    return found
