"""Text queries in Elasticsearch's `simple_query_string` language, AND by default, as Argilla's stock engine uses it.

    magic -unicorns          the word magic, and not the word unicorns
    "the end" | ray*         the two words side by side, or any word that starts with ray
    (magic | rayleigh) blue  one of the two, and blue
    blu~1 "end the"~2        a word one letter away from blu, and two words at most two moves from this order

Operators bind from left to right: `a | b c` is `(a | b) c`. A word that the analyser takes apart (`the-end`) stands
for all of its parts within one field.

`parse` makes a tree of a query, as Lucene's SimpleQueryParser does; `full_text_expression` says a leaf in FTS5's
language, and the search engine makes SQL of the whole.
"""

import re
from dataclasses import dataclass
from typing import TypeAlias

from .words import keyword, words_of

MOST_EDITS = 2
END_OF_WORD = frozenset('"|+() \t\n\r')
# ASCII that is part of words besides letters and digits
WORD_PUNCTUATION = "_'.,:;"


@dataclass(frozen=True)
class Word:
    """A word, whole."""

    text: str


@dataclass(frozen=True)
class Prefix:
    """The beginning of a word."""

    text: str


@dataclass(frozen=True)
class Fuzzy:
    """A word with at most so many letters inserted, left out or replaced."""

    text: str
    edits: int


@dataclass(frozen=True)
class Phrase:
    """Words side by side, or at most `slop` moves from it."""

    text: str
    slop: int


@dataclass(frozen=True)
class Not:
    """What does not match."""

    part: "Query"


@dataclass(frozen=True)
class Both:
    """What matches both parts."""

    left: "Query"
    right: "Query"


@dataclass(frozen=True)
class Either:
    """What matches one part or both."""

    left: "Query"
    right: "Query"


@dataclass(frozen=True)
class Everything:
    """Every record."""


Leaf: TypeAlias = Word | Prefix | Fuzzy | Phrase
Query: TypeAlias = Leaf | Not | Both | Either | Everything


def parse(text: str, has_keywords: bool = True) -> Query | None:
    """The tree of a query; None, which nothing matches, if there is no word in it.

    Args:
        text: the query.
        has_keywords: whether the fields that are searched have values that are not taken apart into words (the
            roles of chat messages). If not, a part without any word, such as `...`, is left out.
    """
    return Everything() if text.strip() == "*" else _Parser(text, has_keywords).parse()


class _Parser:
    """One pass over a query's characters, with what Lucene's SimpleQueryParser does at each."""

    def __init__(self, text: str, has_keywords: bool) -> None:
        self.text = text
        self.has_keywords = has_keywords
        self.position = 0
        self.tree: Query | None = None
        self.operator: type[Both] | type[Either] | None = None
        self.denials = 0

    def parse(self) -> Query | None:
        while self.position < len(self.text):
            character = self.text[self.position]
            if character == "-":
                self.denials += 1
                self.position += 1
                continue
            if character == "(":
                self.parentheses()
            elif character == '"':
                self.phrase()
            elif character in "+|":
                if self.operator is None and self.tree is not None:
                    self.operator = Both if character == "+" else Either
                self.position += 1
            elif character in ") \t\n\r":
                self.position += 1
            else:
                self.word()
            self.denials = 0
        return self.tree

    def add(self, part: Query | None) -> None:
        if part is not None:
            if self.denials % 2:
                part = Not(part)
            self.tree = part if self.tree is None else (self.operator or Both)(self.tree, part)
        self.operator = None

    def add_leaf(self, leaf: Leaf) -> None:
        has_words = isinstance(leaf, Prefix | Fuzzy) or bool(words_of(leaf.text))
        self.add(leaf if has_words or self.has_keywords else None)

    def parentheses(self) -> None:
        start = self.position + 1
        end = self.closing(start)
        if end is None:  # an opening parenthesis that nothing closes means nothing
            self.position = start
            return
        self.add(_Parser(self.text[start:end], self.has_keywords).parse())
        self.position = end + 1

    def closing(self, position: int) -> int | None:
        depth = 1
        while position < len(self.text):
            character = self.text[position]
            if character == "\\":
                position += 1
            elif character in "()":
                depth += 1 if character == "(" else -1
                if depth == 0:
                    return position
            position += 1
        return None

    def phrase(self) -> None:
        start = position = self.position + 1
        found = ""
        while position < len(self.text) and self.text[position] != '"':
            if self.text[position] == "\\" and position + 1 < len(self.text):
                position += 1
            found += self.text[position]
            position += 1
        if position >= len(self.text):  # so does a quotation mark
            self.position = start
            return
        self.position = position + 1
        slop = self.number() if self.text[position + 1 : position + 2] == "~" else 0
        if found:
            self.add_leaf(Phrase(found, slop))
        else:
            self.operator = None

    def word(self) -> None:
        found, is_prefix = "", False
        while self.position < len(self.text):
            character = self.text[self.position]
            if character == "\\":
                self.position += 1
                if self.position < len(self.text):
                    found += self.text[self.position]
                    is_prefix = False
            elif character in END_OF_WORD:
                break
            elif character == "~" and found:
                edits = min(self.number(), MOST_EDITS)
                return self.add_leaf(Fuzzy(found, edits) if edits else Word(found))
            else:
                is_prefix = bool(found) and character == "*"
                found += character
            self.position += 1
        if found:
            self.add_leaf(Prefix(found[:-1]) if is_prefix else Word(found))

    def number(self) -> int:
        """What follows a tilde: a number, or nothing, which is the most."""
        match = re.compile(r"~([^\s()|+\"]*)").match(self.text, self.position)
        assert match is not None
        self.position = match.end()
        return int(match[1]) if match[1].isdecimal() else (MOST_EDITS if not match[1] else 0)


def full_text_expression(leaf: Word | Prefix | Phrase) -> str:
    """The query in FTS5's language; see https://www.sqlite.org/fts5.html#full_text_query_syntax."""
    if isinstance(leaf, Prefix):
        alternatives = [f'"{keyword(leaf.text)}" *']
        beginning = leaf.text.lower()
        if all(c.isalnum() or not c.isascii() or c in WORD_PUNCTUATION for c in beginning):
            alternatives.append(f'"{beginning}" *')
    else:
        alternatives = [f'"{keyword(leaf.text)}"']
        words = words_of(leaf.text)
        if words:
            side_by_side = isinstance(leaf, Phrase) and not leaf.slop
            alternatives.append(
                f'"{" ".join(words)}"'
                if side_by_side
                else "(" + " AND ".join(f'"{word}"' for word in words) + ")"
            )
    return " OR ".join(alternatives)


def edits(term: str, word: str) -> int:
    """Letters to insert, leave out or replace to get from `word` to an indexed word (Levenshtein's distance)."""
    if term.startswith("="):
        term = bytes.fromhex(term[1:]).decode()
    else:
        word = word.lower()
    if abs(len(term) - len(word)) > MOST_EDITS:
        return MOST_EDITS + 1
    before = list(range(len(word) + 1))
    for i, letter in enumerate(term, start=1):
        row = [i]
        for j, other in enumerate(word, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != other)))
        before = row
    return before[-1]


def is_near(words: str, phrase: str, slop: int) -> bool:
    """Whether the words of `phrase` are all there, at most `slop` moves from standing side by side in its order.

    A word found at position p that is the i-th of the phrase is displaced by p - i; the slop is the difference of
    the largest and the smallest displacement, as in Lucene.
    """
    wanted = words_of(phrase)
    places: list[list[int]] = [[] for _ in wanted]
    found = words.split(" ")
    if keyword(phrase) in found:
        return True
    for position, word in enumerate(found):
        for i, each in enumerate(wanted):
            if word == each:
                places[i].append(position)

    def fits(i: int, taken: tuple[int, ...]) -> bool:
        displaced = [position - j for j, position in enumerate(taken)]
        if displaced and max(displaced) - min(displaced) > slop:
            return False
        return i == len(wanted) or any(
            fits(i + 1, (*taken, position)) for position in places[i] if position not in taken
        )

    return bool(wanted) and fits(0, ())
