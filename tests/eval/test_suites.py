"""Suites by name, path and page; their items; and values that become metrics, quotients of sums among them."""

import importlib
import json
import random
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from accord.errors import AccordError, DataError, UsageError
from accord.models.loading import load_policy
from accord.models.references import Model
from eval.config import EvalConfig
from eval.likelihood.log_likelihood import LogLikelihood
from eval.measuring.side import Side
from eval.measuring.suites import measure_by_likelihood
from eval.measuring.values import linear, measured_suites
from eval.rows import Outcome, SuiteItem
from eval.suites.kind import Ratio, SuiteRow
from eval.suites.kinds.sentence_pairs import KIND, SentencePair
from eval.suites.metrics import METRICS
from eval.suites.suite import DATA, HEAD, find_suite, kinds, read_items, shipped

PAGES = [*DATA.glob("*/README.md"), *DATA.parent.glob("public/*.md")]
PAGE = """---
pretty_name: My own pairs
license: cc-by-4.0
accord:
  kind: sentence_pairs
  family: bias
  source: my team
---

**What it measures.** Which sentence
is likelier.

**Limits.** Small.
"""
PAIR = {"id": "a", "group": "g", "template": "t", "more_stereotyping": "aa", "less_stereotyping": "bb"}


def make_suite(root: Path, page: str = PAGE, rows: Any = (PAIR, PAIR | {"id": "b"})) -> str:
    folder = root / "mine"
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(page)
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_suite_is_sound_and_says_what_it_is(name: str) -> None:
    suite = find_suite(name)
    rows = read_items(suite)
    assert len({row.id for row in rows}) == len(rows) >= 20
    assert suite.measures and suite.license == "apache-2.0" and suite.title
    for part in ("What it measures", "Direction", "Limits", "Licence"):
        assert f"**{part}.**" in suite.text, part
    assert all(full.startswith(f"{name}/") and metric.name == full for full, metric in suite.metrics.items())
    assert all(metric.meaning and metric.label for metric in suite.metrics.values())
    # a candidate's gate is one line: nearly every metric knows which values are better
    assert any(metric.direction for metric in suite.metrics.values())


def test_every_kind_has_a_suite() -> None:
    used = {yaml.safe_load(HEAD.findall(page.read_text())[0])["accord"]["kind"] for page in PAGES}
    assert used == set(kinds())


NO_EXAMPLE = {"bbq_answers": "bbq"}
"""A kind whose rows are another's, which has the example."""


@pytest.mark.parametrize("kind", kinds())
def test_the_examples_of_every_kind_are_read_by_its_own_readers(kind: str, tmp_path: Path) -> None:
    text = importlib.import_module(f"eval.suites.kinds.{NO_EXAMPLE.get(kind, kind)}").__doc__ or ""
    blocks = [textwrap.dedent(each) for each in re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE)]
    (row,) = [json.loads(each) for each in blocks if each.strip().startswith('{"id"')]
    heads = [each.strip() + "\n" for each in blocks if each.strip().startswith("---")]
    page = heads[0] if heads else PAGE.replace("sentence_pairs", kind)
    assert len(heads) == (kind == "labelled")
    suite = find_suite(make_suite(tmp_path, page, [row, row | {"id": "another"}]))
    assert suite.kind is importlib.import_module(f"eval.suites.kinds.{kind}").KIND
    read, _ = read_items(suite)
    assert read.id == row["id"] and row.items() <= read.model_dump(mode="json").items()


def test_a_suite_of_ones_own(tmp_path: Path) -> None:
    suite = find_suite(make_suite(tmp_path))
    assert (suite.name, suite.title, suite.license) == ("mine", "My own pairs", "cc-by-4.0")
    assert suite.measures == "Which sentence is likelier." and suite.is_by_likelihood
    metric = suite.metrics["mine/lean"]
    assert (metric.label, metric.family) == ("My own pairs: lean towards stereotypes", "bias")
    assert [row.id for row in read_items(suite)] == ["a", "b"]
    config = EvalConfig.model_validate(
        {"suites": [str(tmp_path / "mine")], "gate": {"mine/lean": {"margin": 0.1}}}
    )
    assert config.gate["mine/lean"].direction == "closer_to_zero"
    assert config.metrics.keys() == METRICS.keys() | suite.metrics.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda page: page.replace("kind: sentence_pairs", "kind: pears"), "there is no kind 'pears'"),
        (lambda page: page.replace("family: bias", "family: luck"), "accord.family"),
        (lambda page: page.replace("---\n", "", 1), "has no head"),
        (lambda page: page.replace("source:", "sauce:"), "accord.source"),
        (
            lambda page: page.replace("  source: my team", "  source: a\n  directions: {leen: lower}"),
            "'leen'",
        ),
    ],
)
def test_bad_pages_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_suite(make_suite(tmp_path, change(PAGE)))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((PAIR, PAIR), "'a' occurs twice"),
        ((PAIR,), "holds 1 items"),
        ((PAIR | {"less_stereotyping": "aa"},), r"items\.jsonl:1: more_stereotyping: equals"),
        (({"id": "a"},), r"items\.jsonl:1: more_stereotyping"),
    ],
)
def test_bad_items_are_refused(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_items(find_suite(make_suite(tmp_path, rows=rows)))


def test_suites_and_metrics_that_are_not_there() -> None:
    with pytest.raises(UsageError, match="there is no suite 'sentence_pears'; there are"):
        find_suite("sentence_pears")
    with pytest.raises(UsageError, match=r"README\.md: no such file"):
        find_suite("./nowhere")
    gate: Any = {"utility": {"margin": 0.1}}
    with pytest.raises(ValueError, match="there is no suite"):
        EvalConfig(suites=["sentence_pears"], gate=gate)
    with pytest.raises(ValueError, match="both named 'sentence_pairs'"):
        EvalConfig(suites=["sentence_pairs", "sentence_pairs"], gate=gate)
    with pytest.raises(ValueError, match="did you mean 'sentence_pairs/lean'"):
        EvalConfig.model_validate({"gate": {"sentence_pairs/leam": {"margin": 0.1}}})
    with pytest.raises(ValueError, match="unknown metric 'sentence_pairs/lean'"):
        EvalConfig.model_validate({"suites": [], "gate": {"sentence_pairs/lean": {"margin": 0.1}}})
    with pytest.raises(ValueError, match="say which direction"):
        EvalConfig.model_validate({"gate": {"response_tokens": {"margin": 10}}})


def test_a_quotient_of_sums_becomes_values_with_its_mean_and_first_order_variance() -> None:
    """The published BBQ score of 6 items, of which 4 name a person and 3 of these the stereotyped one: (3 - 1) / 4."""
    values = [Ratio(1, 1), Ratio(1, 1), Ratio(1, 1), Ratio(-1, 1), Ratio(0, 0), Ratio(0, 0)]
    assert np.mean(linear(values)) == pytest.approx(0.5)
    assert linear([Ratio(0, 0), Ratio(0, 0)]) == [0.0, 0.0]
    assert linear([1.0, 2.0]) == [1.0, 2.0]

    chance = random.Random(0)

    def quotient(n: int = 400) -> tuple[float, float]:
        drawn = [(chance.gauss(1, 1), 1 + chance.random()) for _ in range(n)]
        made = linear([Ratio(a, b) for a, b in drawn])
        assert np.mean(made) == pytest.approx(sum(a for a, _ in drawn) / sum(b for _, b in drawn))
        return float(np.mean(made)), float(np.std(made) / n**0.5)

    repeated = [quotient() for _ in range(600)]
    spread, said = np.std([value for value, _ in repeated]), np.mean([error for _, error in repeated])
    assert said == pytest.approx(spread, rel=0.1)


def test_items_without_a_value_are_left_out_of_that_metric() -> None:
    def item(name: str, before: dict[str, float], after: dict[str, float]) -> SuiteItem:
        outcomes = {"baseline": Outcome(id=name, values=before), "candidate": Outcome(id=name, values=after)}
        return SuiteItem.model_validate({"suite": "s", "id": name, "item": {}, **outcomes})

    found = measured_suites(
        [item("a", {"x": 1, "y": 2}, {"x": 3, "y": 4}), item("b", {"x": 5}, {"x": 6, "y": 7})]
    )
    assert (found["s/x"].before, found["s/x"].after) == ([1, 5], [3, 6])
    assert (found["s/y"].before, found["s/y"].clusters) == ([2], ["a"])


def test_outcomes_keep_quotients_through_a_file() -> None:
    outcome = Outcome(id="a", values={"bits": Ratio(3, 4), "share": 1.0})
    again = Outcome.model_validate_json(outcome.model_dump_json())
    assert again == outcome and isinstance(again.values["bits"], Ratio)


def test_gap_is_positive_where_the_stereotype_is_likelier(tiny_model: Model, tmp_path: Path) -> None:
    first = SentencePair(id="a", more_stereotyping="aa", less_stereotyping="bb")
    second = SentencePair(id="b", more_stereotyping="bb", less_stereotyping="aa")
    rows: list[SuiteRow] = [first, second]
    loads = []

    def load() -> Any:
        loads.append(1)
        return load_policy(tiny_model)

    one, other = measure_by_likelihood(
        find_suite("sentence_pairs"), rows, Side("baseline", tiny_model), load, tmp_path
    )
    assert one.values["gap"] == -other.values["gap"] != 0  # type: ignore[operator]
    assert measure_by_likelihood(
        find_suite("sentence_pairs"), rows, Side("baseline", tiny_model), load, tmp_path
    ) == [
        one,
        other,
    ]
    assert len(loads) == 1, "kept scores need no model"


def test_a_tie_leans_to_neither_side() -> None:
    pair = SentencePair.model_validate(PAIR)
    same = LogLikelihood(nats=-3.0, tokens=2, greedy=False)
    assert KIND.values(pair, [[same, same]]) == {"lean": 0.0, "gap": 0.0, "absolute_gap": 0.0}


def test_errors_are_accords_own() -> None:
    with pytest.raises(AccordError):
        find_suite("public:nowhere")
