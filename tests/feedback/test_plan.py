"""What annotators get: rates, orders and loads, counted in view."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from feedback_helpers import comparison

from accord.bundled import data_path
from accord.errors import DataError
from accord.records import Comparison
from feedback.asking.plan import Checks, plan

TEXTS = ["Alpha.", "Beta.", "Gamma."]
NAMES = ["ann", "bob", "cyn"]
COMPARISONS = [comparison(i, TEXTS) for i in range(60)]
GOLD = data_path("bundled:demo/gold.jsonl")


def planned(
    gold: Path | None = None,
    duplicate_rate: float = 0.05,
    gold_rate: float = 0.05,
    assigned_per_record: int | None = None,
    seed: int = 0,
) -> list[Comparison]:
    return plan(COMPARISONS, Checks(duplicate_rate, gold, gold_rate), NAMES, assigned_per_record, seed)


def test_every_comparison_is_there_once_in_a_random_order_with_its_checks() -> None:
    records = planned(GOLD, duplicate_rate=0.1, gold_rate=0.05)
    asked = [each for each in records if not each.is_probe]
    duplicates = [each for each in records if each.duplicate_of]
    gold = [each for each in records if each.gold_ranks]
    assert sorted(each.id for each in asked) == sorted(each.id for each in COMPARISONS)
    assert (len(duplicates), len(gold), len(records)) == (6, 3, 69)
    by_id = {each.id: each for each in records}
    assert len(by_id) == 69
    for each in duplicates:
        original = by_id[str(each.duplicate_of)]
        assert each.responses == original.responses and original.display_order
        assert each.display_order == original.display_order[::-1]
    for each in gold:
        assert each.gold_ranks == [1, 2, 2]
    orders = Counter(tuple(each.display_order or []) for each in asked)
    assert len(orders) == 6 and max(orders.values()) <= 20  # of 6 orders, 10 each are expected
    assert [each.id for each in records] != [*map(str, by_id)][::-1] and records[0].id != "c-0"
    assert all(each.assigned_to is None for each in records)
    assert planned(GOLD, duplicate_rate=0.1, gold_rate=0.05) == records
    assert planned(GOLD, duplicate_rate=0.1, gold_rate=0.05, seed=1) != records


def test_without_gold_and_duplicates_there_is_nothing_else() -> None:
    assert len(planned(duplicate_rate=0.0)) == 60
    assert (
        sum(each.gold_ranks is not None for each in planned(GOLD, gold_rate=0.0)) == 1
    )  # a file means some gold
    assert sum(each.gold_ranks is not None for each in planned(GOLD, gold_rate=1.0)) == 12  # all there is


def test_balanced_loads_and_checks_for_those_concerned() -> None:
    records = planned(GOLD, assigned_per_record=2, duplicate_rate=0.1, gold_rate=0.05)
    by_id = {each.id: each for each in records}
    loads: Counter[str] = Counter()
    for each in records:
        assert each.assigned_to
        if each.gold_ranks:
            assert each.assigned_to == NAMES
        elif each.duplicate_of:
            assert each.assigned_to == by_id[each.duplicate_of].assigned_to
        else:
            assert len(set(each.assigned_to)) == 2
            loads.update(each.assigned_to)
    assert dict(loads) == {"ann": 40, "bob": 40, "cyn": 40}
    together = Counter(tuple(each.assigned_to or []) for each in records if not each.is_probe)
    assert set(together) == {
        ("ann", "bob"),
        ("ann", "cyn"),
        ("bob", "cyn"),
    }  # everybody overlaps with everybody


def test_of_more_gold_responses_than_are_shown_the_best_and_worst_stay(tmp_path: Path) -> None:
    path = tmp_path / "gold.jsonl"
    row = {"prompt": [{"role": "user", "content": "?"}], "responses": list("abcd"), "ranks": [2, 1, 4, 3]}
    path.write_text(json.dumps(row))
    records = plan([comparison(1, TEXTS[:2])], Checks(0.05, path, 0.05), NAMES, None, 0)
    (found,) = [each for each in records if each.gold_ranks]
    assert ([one.text for one in found.responses], found.gold_ranks) == (["b", "c"], [1, 4])


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"responses": ["a", "b"], "ranks": [1, 2]}, r"row 1 has 2 responses, but a record shows 3"),
        (
            {"responses": ["a", "b", "c"], "ranks": [1, 2]},
            r"gold\.jsonl:1: ranks: has 2 ranks for 3 responses",
        ),
        ({"responses": ["a", "b", "c"], "ranks": [1, 1, 1]}, r"gold\.jsonl:1: ranks: are all equal"),
        ({"responses": ["a", "b", "c"]}, r"gold\.jsonl:1: ranks: Field required"),
    ],
)
def test_bad_gold_is_one_sentence(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    path = tmp_path / "gold.jsonl"
    path.write_text(json.dumps({"prompt": [{"role": "user", "content": "?"}], **row}))
    with pytest.raises(DataError, match=problem):
        planned(path)
