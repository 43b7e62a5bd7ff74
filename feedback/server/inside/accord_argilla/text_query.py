"""Text queries as Argilla's stock engine understands them: Elasticsearch's `simple_query_string`, AND by default.

    magic -unicorns          the word magic, and not the word unicorns
    "the end" | ray*         the two words side by side, or any word that starts with ray
    (magic | rayleigh) blue  one of the two, and blue

A query becomes a predicate over the words of a record's fields. Words are runs of letters, digits and
underscores, in lower case, which is what Elasticsearch's standard analyser makes of text in most languages.
"""

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

Words = list[str]
Predicate = Callable[[list[Words]], bool]

TOKEN = re.compile(
    r'"(?P<phrase>[^"]*)"(?:~\d+)?|(?P<operator>[()|])|(?P<minus>-)(?=\S)|(?P<word>[^\s()|"]+)'
)


def matches(fields_json: str, query: str, field: str | None) -> bool:
    """Whether a record's fields (a JSON object) satisfy `query`, within one field or in any of them."""
    fields = json.loads(fields_json)
    if field is not None:
        fields = {field: fields.get(field)}
    texts = [words_of("\n".join(strings_in(value))) for value in fields.values()]
    return parse(query)(texts)


def strings_in(value: Any) -> Iterator[str]:
    """Every string in a field's value: the text itself, or each message's role and content."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings_in(part)


def words_of(text: str) -> Words:
    """The words of `text` in lower case."""
    return re.findall(r"\w+", text.lower())


@lru_cache(maxsize=256)
def parse(query: str) -> Predicate:
    """The predicate that `query` stands for; a query without any word is true of everything."""
    tokens = list(TOKEN.finditer(query))
    position = 0

    def alternatives() -> Predicate:
        nonlocal position
        parts = [conjunction()]
        while position < len(tokens) and tokens[position]["operator"] == "|":
            position += 1
            parts.append(conjunction())
        return lambda texts: any(part(texts) for part in parts)

    def conjunction() -> Predicate:
        parts = []
        while position < len(tokens) and tokens[position]["operator"] not in ("|", ")"):
            parts.append(term())
        return lambda texts: all(part(texts) for part in parts)

    def term() -> Predicate:
        nonlocal position
        token = tokens[position]
        position += 1
        if token["minus"]:
            if position == len(tokens) or tokens[position]["operator"] in ("|", ")"):
                return lambda texts: True
            denied = term()
            return lambda texts: not denied(texts)
        if token["operator"] == "(":
            inner = alternatives()
            if position < len(tokens):  # it is the closing parenthesis
                position += 1
            return inner
        if token["phrase"] is not None:
            return contains(words_of(token["phrase"]), is_prefix=False)
        return contains(words_of(token["word"]), is_prefix=token["word"].endswith("*"))

    parts = []
    while position < len(tokens):
        parts.append(alternatives())
        position += 1  # past a closing parenthesis that nothing opened
    return lambda texts: all(part(texts) for part in parts)


def contains(phrase: Words, is_prefix: bool) -> Predicate:
    """Whether some field holds the words of `phrase` side by side; the last may be the beginning of a word."""
    if not phrase:
        return lambda texts: True

    def is_at(words: Words, start: int) -> bool:
        found = words[start : start + len(phrase)]
        if is_prefix:
            return (
                len(found) == len(phrase) and found[:-1] == phrase[:-1] and found[-1].startswith(phrase[-1])
            )
        return found == phrase

    return lambda texts: any(is_at(words, start) for words in texts for start in range(len(words)))
