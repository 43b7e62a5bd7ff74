"""Quality suites: checks at their boundaries, overlaps against worked numbers, likelihoods by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from accord.errors import DataError
from accord.records import read_jsonl
from eval.suites.kind import Ratio, Reply
from eval.suites.kinds import instructions
from eval.suites.kinds.instructions import CHECKS, InstructionRow, is_met

DATA = Path(instructions.__file__).parent.parent / "data"


def reply(text: str) -> Reply:
    return Reply(text=text, tokens=len(text.split()), finish="eos")


Case = tuple[str, dict[str, Any], str, str]
"""A check, its arguments, an answer that meets it, and one that just does not."""
CASES: list[Case] = [
    ("words_at_most", {"n": 3}, "Don't go out.", "Do not go out."),
    ("words_at_least", {"n": 4}, "Do not go out.", "Don't go out."),
    ("words_between", {"low": 2, "high": 3}, "A well-known name", "A name that is known"),
    ("words_between", {"low": 2, "high": 3}, "Two words.", "One."),
    ("sentences_at_most", {"n": 2}, "It costs 3.50 euros. Take it!", "One. Two. Three."),
    ("sentences", {"n": 2}, 'He said "Stop." Then he left', "He left."),
    ("paragraphs", {"n": 2}, "One\nstill one\n\n\nTwo", "One\n\nTwo\n\nThree"),
    ("contains", {"words": ["sun", "moon"]}, "The Sun, and the moon.", "The sunny moon."),
    ("contains_times", {"word": "tea", "at_least": 2}, "Tea? More tea!", "Tea for a team."),
    ("contains_text", {"text": "P.S."}, "Bye. P.S. Call me.", "Bye. p.s. Call me."),
    ("excludes", {"words": ["bad"]}, "A badger came.", "How Bad!"),
    ("excludes_characters", {"characters": ",;"}, "Salt and pepper.", "Salt, pepper."),
    ("starts_with", {"text": "Dear Sam"}, '"dear Sam, thanks', "My dear Sam"),
    ("ends_with", {"text": "the end."}, "And so it stopped. **The end.**", "The end. Bye"),
    ("ends_with", {"text": "station"}, "They met at the station.", "They met at the station?"),
    ("lowercase", {}, "all 3 are small.", "all 3 are Small."),
    ("uppercase", {}, "ALL 3 ARE LARGE.", "ALL 3 ARE LARGe."),
    ("words_in_capitals", {"at_least": 2}, "VERY GOOD soup", "VERY Good soup"),
    ("bullets", {"n": 2}, "Buy:\n- milk\n* tea", "- milk\n-tea"),
    ("numbered", {"n": 2}, "So:\n1. milk\n2) tea", "1. milk\n3. tea"),
    ("json", {}, '{"a": [1, 2]}', '{"a": [1, 2}'),
    ("json", {"keys": ["a", "b"]}, '```json\n{"a": 1, "b": 2, "c": 3}\n```', '{"a": 1}'),
    ("one_of", {"answers": ["yes", "no"]}, '"Yes."', "Yes, it is."),
    ("title", {}, "<<The Sea>>\nIt is wet.", "<The Sea>\nIt is wet."),
    ("placeholders", {"at_least": 2}, "Dear [name], see you at [place].", "Dear [name], see you at []."),
    ("in_quotes", {}, "“Good night.”", '"Good night," he said.'),
    ("contains_number", {}, "About 7 days", "About seven days"),
    ("parts", {"separator": "***", "n": 2}, "One poem\n***\nAnother", "One poem\n***\n"),
    ("script", {"script": "cyrillic"}, "Кошка спит, 12.", "Кошка sleeps."),
    ("script", {"script": "han"}, "水", "みず"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_a_check_at_its_boundary(case: Case) -> None:
    name, arguments, met, missed = case
    row = InstructionRow(id="a", prompt="Do it.", checks=[{"check": name, **arguments}])
    assert is_met(met, row.checks[0])
    assert not is_met(missed, row.checks[0])
    assert not is_met("  ", row.checks[0])


def test_every_check_has_a_case() -> None:
    assert {name for name, *_ in CASES} == set(CHECKS)


def test_both_scores_of_instructions_as_in_the_docstring() -> None:
    one = InstructionRow(id="a", prompt="A", checks=[{"check": "lowercase"}])
    three = InstructionRow(
        id="b",
        prompt="B",
        checks=[{"check": "words_at_most", "n": 2}, {"check": "uppercase"}, {"check": "contains_number"}],
    )
    values = instructions.KIND.values
    assert values(one, [reply("yes")]) == {"followed": 1.0, "checks_followed": Ratio(1, 1)}
    assert values(three, [reply("YES, YES")]) == {"followed": 0.0, "checks_followed": Ratio(2, 3)}


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ({"check": "words_at_mots", "n": 3}, r"checks\.0\.check: there is none called 'words_at_mots'"),
        ({"n": 3}, r"checks\.0\.check: there is none called None"),
        ({"check": "words_at_most"}, r"checks\.0\.n: is missing"),
        ({"check": "words_at_most", "n": "3"}, r"checks\.0\.n: .*integer"),
        ({"check": "words_at_most", "n": 0}, r"checks\.0\.n: .*greater"),
        ({"check": "words_at_most", "n": 3, "m": 4}, r"checks\.0\.m: the check 'words_at_most' takes n"),
        ({"check": "contains", "words": []}, r"checks\.0\.words: .*at least 1"),
        ({"check": "starts_with", "prefix": "A"}, r"checks\.0\.prefix: .*takes text"),
        ({"check": "script", "script": "klingon"}, r"checks\.0\.script: .*'latin'"),
    ],
)
def test_a_wrong_check_names_the_field(check: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text(json.dumps({"id": "a", "prompt": "A", "checks": [check]}))
    with pytest.raises(DataError, match=message):
        read_jsonl(file, InstructionRow)


def test_the_suite_of_instructions() -> None:
    rows = read_jsonl(DATA / "instructions" / "items.jsonl", InstructionRow)
    assert len({row.id for row in rows}) == len({row.prompt for row in rows}) == 90
    used = {check["check"] for row in rows for check in row.checks}
    assert used == set(CHECKS)  # none is there that no prompt needs
