"""Instructions about the form of an answer that a program can check: whether the answers follow them.

    {"id": "in001", "group": "length", "prompt": "In at most ten words, say what a lighthouse is for.",
     "checks": [{"check": "words_at_most", "n": 10}]}

After IFEval (Zhou et al. 2023, https://arxiv.org/abs/2311.07911), with its two strict scores: `followed` is the share
of prompts whose checks are all met, `checks_followed` that of checks over all prompts. Two prompts with 1 and 3 checks,
of which 1 and 2 are met: `followed` is 1/2 and `checks_followed` 3/4. An empty answer meets no check.

All 25 types of IFEval's instructions can be written as checks, but for `response_language`, of which there is the
script only. Where we differ:

- Scores: IFEval also has loose ones, which drop an answer's first line, last line and asterisks and take the best of
  eight variants; an opening such as "Sure!" is a fault here.
- Words: IFEval counts "don't" and "well-known" as two each; here they are one, as a reader counts: "Don't use
  well-known names" is 4 words, and 6 there. Fewer than n words are `words_at_most` n - 1.
- Sentences: IFEval's end where nltk says; here at a ".", "!" or "?" before a space or the end, so "Dr. No" ends one.
- Keywords (`contains`, `contains_times`, `contains_fewer`) are whole words here, and any part of a word there: "war"
  is not in "wars". What must not occur (`excludes`) is whole words in both.
- Paragraphs: IFEval parts them by "***" where it counts them, and by empty lines where it asks for the first word of
  one; here it is empty lines in both, and `parts` takes a separator. Nothing before the first or after the last
  separator is a fault here, and two parts may be equal.
- `one_of`: the whole answer is one of those listed, but for case, marks and a full stop. In IFEval it holds one of
  them.
- `starts_with`, `ends_with`: asterisks and quotation marks around are left out, not quotation marks alone, and a full
  stop may follow. A prompt to be repeated is `starts_with`.
- `in_quotes` takes typographic quotation marks, too.
- `bullets`: "•" counts, too, and a space has to follow; `placeholders` have a word in them.
- `postscript`, `sections`: they begin a line; in IFEval they may stand anywhere.
- `lowercase`, `uppercase`: IFEval also wants a language detector to say English, which short answers fail.

`CHECKS` holds the checks by name. A row gives a check's arguments beside its name.
"""

import inspect
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from accord.records import Message
from eval.suites.kind import Answered, Ratio, Reply, SuiteRow, Value
from eval.suites.metrics import PROMPTS, QUALITY, Metric

Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
Letter = Annotated[str, Field(min_length=1, max_length=1)]
Texts = Annotated[list[Text], Field(min_length=1)]
Script = Literal["latin", "cyrillic", "greek", "arabic", "hebrew", "hangul", "devanagari", "han"]

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_MARKS = "\"'“”‘’*_ \n"


def words(text: str) -> list[str]:
    """The words of a text; an apostrophe or a hyphen inside does not end one."""
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """The parts of a text that end at ".", "!" or "?" before white space or at the end, and hold a word."""
    return [part for part in re.split(r"(?<=[.!?])[\"'”’)*]*\s+|\n\n+", text) if words(part)]


def occurrences(text: str, word: str) -> int:
    """How often a word, or several in a row, stands in a text as a whole, whatever its case."""
    return len(re.findall(rf"(?<!\w){re.escape(word.casefold())}(?!\w)", text.casefold()))


def _words_at_most(text: str, n: Count) -> bool:
    return len(words(text)) <= n


def _words_at_least(text: str, n: Count) -> bool:
    return len(words(text)) >= n


def _words_between(text: str, low: Count, high: Count) -> bool:
    return low <= len(words(text)) <= high


def _sentences_at_most(text: str, n: Count) -> bool:
    return len(sentences(text)) <= n


def _sentences(text: str, n: Count) -> bool:
    return len(sentences(text)) == n


def _paragraphs(text: str, n: Count) -> bool:
    """Paragraphs are parted by an empty line."""
    return len([part for part in re.split(r"\n\s*\n", text) if part.strip()]) == n


def _paragraph_starts_with(text: str, paragraphs: Count, nth: Count, word: Text) -> bool:
    """There are so many paragraphs, and the nth begins with this word, whatever its case."""
    found = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    if len(found) != paragraphs or nth > paragraphs:
        return False
    return (
        re.match(rf"{re.escape(word.casefold())}(?!\w)", found[nth - 1].strip(_MARKS).casefold()) is not None
    )


def _contains(text: str, words: Texts) -> bool:
    return all(occurrences(text, word) for word in words)


def _contains_times(text: str, word: Text, at_least: Count) -> bool:
    return occurrences(text, word) >= at_least


def _contains_fewer(text: str, word: Text, less_than: Count) -> bool:
    """It may be missing altogether."""
    return occurrences(text, word) < less_than


def _letter_times(text: str, letter: Letter, at_least: Count) -> bool:
    """Whatever its case."""
    return text.casefold().count(letter.casefold()) >= at_least


def _letter_fewer(text: str, letter: Letter, less_than: Count) -> bool:
    """Whatever its case; it may be missing altogether."""
    return text.casefold().count(letter.casefold()) < less_than


def _contains_text(text: str, text_: Text) -> bool:
    """As it stands, case and marks included."""
    return text_ in text


def _excludes(text: str, words: Texts) -> bool:
    return not any(occurrences(text, word) for word in words)


def _excludes_characters(text: str, characters: Text) -> bool:
    return not set(text) & set(characters)


def _starts_with(text: str, text_: Text) -> bool:
    """Whatever its case, and without quotation marks and asterisks around."""
    return text.lstrip(_MARKS).casefold().startswith(text_.casefold())


def _ends_with(text: str, text_: Text) -> bool:
    """Whatever its case, and without quotation marks and asterisks around; a full stop may follow."""
    bare = text.rstrip(_MARKS).casefold()
    return bare.endswith(text_.casefold()) or bare.rstrip(".!").endswith(text_.casefold())


def _lowercase(text: str) -> bool:
    return text.islower()


def _uppercase(text: str) -> bool:
    return text.isupper()


def _words_in_capitals(text: str, at_least: Count) -> bool:
    return sum(word.isupper() for word in words(text)) >= at_least


def _words_in_capitals_fewer(text: str, less_than: Count) -> bool:
    return sum(word.isupper() for word in words(text)) < less_than


def _highlighted(text: str, at_least: Count) -> bool:
    """Parts of a line between asterisks, *so* or **so**."""
    found = re.findall(r"\*\*[^\n*]+\*\*|\*[^\n*]+\*", text)
    return sum(bool(words(part)) for part in found) >= at_least


def _sections(text: str, word: Text, at_least: Count) -> bool:
    """Lines that begin with this word and a number, such as "Section 1" or "**SECTION 2**"; case counts."""
    return len(re.findall(rf"^[\W_]*{re.escape(word)}\s?\d+", text, re.MULTILINE)) >= at_least


def _postscript(text: str, marker: Text) -> bool:
    """A line begins with this, such as "P.S." or "P.P.S.", whatever its case and with or without spaces in it."""
    spaced = r"\s?".join(re.escape(character) for character in marker.casefold() if not character.isspace())
    found = re.search(rf"^[{re.escape(_MARKS)}]*{spaced}", text.casefold(), re.MULTILINE)
    return found is not None


def _bullets(text: str, n: Count) -> bool:
    """Lines that begin with "-", "*" or "•" and a space."""
    return len(re.findall(r"^\s*[-*•] +\S", text, re.MULTILINE)) == n


def _numbered(text: str, n: Count) -> bool:
    """Lines that begin with 1., 2., ... (or 1), 2), ...), in order."""
    found = re.findall(r"^\s*(\d+)[.)]\s+\S", text, re.MULTILINE)
    return [int(number) for number in found] == list(range(1, n + 1))


def _json(text: str, keys: list[str] | None = None) -> bool:
    """The whole answer is JSON, a fence of three backticks around it allowed; with `keys`, an object that has them."""
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?```", text.strip(), re.DOTALL | re.IGNORECASE)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except ValueError:
        return False
    return keys is None or (isinstance(value, dict) and set(keys) <= set(value))


def _one_of(text: str, answers: Texts) -> bool:
    """The whole answer is one of them, whatever the case, and the marks around and at the end of either."""

    def bare(answer: str) -> str:
        return answer.strip(_MARKS).rstrip(".!").strip(_MARKS).casefold()

    return bare(text) in [bare(answer) for answer in answers]


def _title(text: str) -> bool:
    """Some text stands in <<double angle brackets>>, within a line."""
    return re.search(r"<<[^\n<>]*\w[^\n<>]*>>", text) is not None


def _placeholders(text: str, at_least: Count) -> bool:
    """Places to fill in, as [name]."""
    return len(re.findall(r"\[[^\[\]\n]*\w[^\[\]\n]*\]", text)) >= at_least


def _in_quotes(text: str) -> bool:
    """The whole answer stands in double quotation marks."""
    text = text.strip()
    return len(text) > 2 and text[0] in '"“' and text[-1] in '"”'


def _contains_number(text: str) -> bool:
    return any(character.isdigit() for character in text)


def _parts(text: str, separator: Text, n: Count) -> bool:
    """So many texts with the separator between them, none of them empty."""
    parts = [part.strip() for part in text.strip().split(separator)]
    return len(parts) == n and all(parts)


def _script(text: str, script: Script) -> bool:
    """At least nine tenths of the letters belong to a script."""
    begins = "CJK UNIFIED" if script == "han" else script.upper()
    letters = [character for character in text if character.isalpha()]
    own = sum(unicodedata.name(letter, "").startswith(begins) for letter in letters)
    return bool(letters) and own >= 0.9 * len(letters)


CHECKS: dict[str, Callable[..., bool]] = {
    check.__name__.removeprefix("_"): check
    for check in (
        _words_at_most, _words_at_least, _words_between, _sentences_at_most, _sentences, _paragraphs,
        _paragraph_starts_with, _contains, _contains_times, _contains_fewer, _contains_text, _letter_times,
        _letter_fewer, _excludes, _excludes_characters, _starts_with, _ends_with, _lowercase, _uppercase,
        _words_in_capitals, _words_in_capitals_fewer, _highlighted, _sections, _postscript, _bullets, _numbered, _json,
        _one_of, _title, _placeholders, _in_quotes, _contains_number, _parts, _script,
    )
}  # fmt: skip
"""From a check's name to a function of the answer and the check's arguments. A column named `text` is `text_` there."""


def _argument(name: str) -> str:
    return "text_" if name == "text" else name


def is_met(text: str, check: Mapping[str, Any]) -> bool:
    """Whether an answer meets a check of a row, `{"check": name, ...arguments}`."""
    arguments = {_argument(name): value for name, value in check.items() if name != "check"}
    return bool(text.strip()) and CHECKS[check["check"]](text, **arguments)


def _fault(check: Mapping[str, Any]) -> str | None:
    """What is wrong with a check of a row: the field, and what was expected."""
    name = check.get("check")
    if name not in CHECKS:
        return f"check: there is none called {name!r}; there are {', '.join(CHECKS)}"
    expected = dict(list(inspect.signature(CHECKS[name]).parameters.items())[1:])
    given = {_argument(key): value for key, value in check.items() if key != "check"}
    if unknown := [key for key in given if key not in expected]:
        known = ", ".join(key.removesuffix("_") for key in expected) or "no arguments"
        return f"{unknown[0]}: the check '{name}' takes {known}"
    for key, parameter in expected.items():
        if key not in given:
            if parameter.default is inspect.Parameter.empty:
                return f"{key.removesuffix('_')}: is missing, and the check '{name}' needs it"
            continue
        try:
            kind = get_type_hints(CHECKS[name], include_extras=True)[key]
            TypeAdapter(kind).validate_python(given[key], strict=True)
        except ValidationError as error:
            return f"{key.removesuffix('_')}: {error.errors()[0]['msg']}"
    return None


class InstructionRow(SuiteRow):
    """One prompt, and what its answer has to be like; `group` is the sort of instruction."""

    prompt: str = Field(min_length=1)
    checks: list[dict[str, Any]] = Field(min_length=1)

    @model_validator(mode="after")
    def _checks_fit(self) -> "InstructionRow":
        for i, check in enumerate(self.checks):
            if fault := _fault(check):
                raise ValueError(f"checks.{i}.{fault}")
        return self


def _prompts(row: InstructionRow) -> Sequence[Sequence[Message]]:
    return [[Message(role="user", content=row.prompt)]]


def _values(row: InstructionRow, replies: Sequence[Reply]) -> Mapping[str, Value]:
    met = [is_met(replies[0].text, check) for check in row.checks]
    return {"followed": float(all(met)), "checks_followed": Ratio(sum(met), len(met))}


KIND = Answered(
    row=InstructionRow,
    metrics=(
        Metric(
            "followed", "Instructions followed", "share", PROMPTS,
            "how many of the answers meet all checks of their prompt", QUALITY, ends=(0.0, 1.0), direction="higher",
        ),
        Metric(
            "checks_followed", "Single instructions followed", "share", PROMPTS,
            "how many of all prompts' checks the answers meet", QUALITY, direction="higher",
        ),
    ),
    prompts=_prompts,
    values=_values,
)  # fmt: skip
