"""The items of the bias suites: what their pages promise, and that models can be measured on them."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from accord.chat.tokens import encode_prompt
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model
from accord.records import read_jsonl
from eval.likelihood.log_likelihood import log_likelihoods
from eval.suites.kind import ByLikelihood
from eval.suites.kinds import bbq, bbq_answers, coreference, decisions, swaps, sycophancy

DATA = Path(bbq.__file__).parents[1] / "data"
ITEMS = {
    "coreference": coreference,
    "bbq_style": bbq,
    "swaps": swaps,
    "decisions": decisions,
    "sycophancy": sycophancy,
}


def items_of(suite: str) -> list[Any]:
    return read_jsonl(DATA / suite / "items.jsonl", ITEMS[suite].KIND.row)


@pytest.mark.parametrize("suite", [*ITEMS, "bbq_style_answers"])
def test_pages_say_what_the_suite_is(suite: str) -> None:
    _, front, page = (DATA / suite / "README.md").read_text().split("---\n", 2)
    matter = yaml.safe_load(front)
    kind = {"bbq_style": "bbq", "bbq_style_answers": "bbq_answers"}.get(suite, suite)
    assert matter["accord"]["kind"] == kind
    module = ITEMS.get(suite, bbq_answers)
    assert {metric.family for metric in module.KIND.metrics} == {matter["accord"]["family"]}
    items = DATA / suite / matter["accord"].get("items", "items.jsonl")
    assert read_jsonl(items, module.KIND.row)
    assert len(page.splitlines()) < 50
    for heading in ("What it measures.", "Direction.", "Groups.", "Limits.", "Licence."):
        assert f"**{heading}**" in page


@pytest.mark.parametrize("suite", ITEMS)
def test_items_are_apart(suite: str) -> None:
    rows = items_of(suite)
    assert len({row.id for row in rows}) == len(rows)
    contents = [row.model_dump_json(exclude={"id"}) for row in rows]
    assert len(set(contents)) == len(rows)
    assert all(row.group for row in rows)


def test_coreference_items_are_mirrored() -> None:
    rows = items_of("coreference")
    templates: dict[str, list[coreference.PronounReference]] = {}
    for row in rows:
        templates.setdefault(row.template, []).append(row)
    assert len(templates) == 60
    for one, mirrored in templates.values():
        assert (one.referent, one.other) == (mirrored.other, mirrored.referent)
        assert (one.pro, one.anti) == (mirrored.anti, mirrored.pro)
    assert Counter(row.pro for row in rows) == {"she": 60, "he": 60}


def test_bbq_items_are_balanced() -> None:
    """A model that always names the right one, always the first-named, or always one place of the list has no bias."""
    rows = items_of("bbq_style")
    assert len(rows) == 192
    assert set(Counter(row.template for row in rows).values()) == {8}
    told = [row for row in rows if row.condition == "disambiguated"]
    assert sum(row.label == row.stereotyped for row in told) == len(told) / 2
    for condition in ("ambiguous", "disambiguated"):
        for column in ("stereotyped", "unknown"):
            places = Counter(getattr(row, column) for row in rows if row.condition == condition)
            assert places == {0: 32, 1: 32, 2: 32}
    for row in rows:
        people = [row.answers[i].removeprefix("The ") for i in range(3) if i != row.unknown]
        assert all(person in row.context for person in people), row.id
    first_named = [
        row.context.index(row.answers[row.stereotyped].removeprefix("The "))
        < row.context.index(row.answers[3 - row.unknown - row.stereotyped].removeprefix("The "))
        for row in rows
    ]
    assert sum(first_named) == len(rows) / 2


def test_every_decision_is_asked_for_every_group() -> None:
    rows = items_of("decisions")
    asked = Counter((row.template, row.group) for row in rows)
    assert len(asked) == len(rows) == 30 * 6


def test_each_pair_of_swaps_stands_in_two_requests() -> None:
    rows = items_of("swaps")
    assert Counter(row.group for row in rows) == dict.fromkeys(
        ("origin", "gender", "religion", "age", "disability"), 12
    )
    assert set(Counter((row.first.who, row.second.who) for row in rows).values()) == {2}


def test_sycophancy_answers_are_alike() -> None:
    for row in items_of("sycophancy"):
        assert len(row.right.split()) == len(row.wrong.split())
        assert abs(len(row.right) - len(row.wrong)) <= 3


@pytest.mark.parametrize("suite", ["coreference", "bbq_style", "decisions", "sycophancy"])
def test_items_are_scored(suite: str, tiny_model: Model) -> None:
    """Through a real model, however small, all of a row's metrics come out, named as the kind says."""
    kind = ITEMS[suite].KIND
    assert isinstance(kind, ByLikelihood)
    policy, tokenizer = load_policy(tiny_model), load_tokenizer(tiny_model)
    rows = items_of(suite)[:4]
    named = set()
    for row in rows:
        items = kind.items(row, lambda messages: tuple(encode_prompt(tokenizer, messages)))
        named |= set(kind.values(row, log_likelihoods(policy, tokenizer, items)))
    assert named == {metric.name for metric in kind.metrics}


def test_every_answer_of_the_items_is_parsed_by_text_and_by_letter() -> None:
    for row in items_of("bbq_style"):
        for i, answer in enumerate(row.answers):
            for text in (answer, "ABC"[i], f"{'ABC'[i]}. {answer}", f"I think that it is: {answer.lower()}."):
                assert bbq_answers.parse(text, row.answers) == i, (row.id, text)
