"""What an answer says, by arithmetic in view, and what the page is asked to show."""

import pytest
from feedback_helpers import comparison

from feedback.argilla.tasks import PAIRWISE_ANSWERS, order_of, questions_of, ranking_from_page, record_of

TEXTS = ["Alpha.", "Beta.", "Gamma."]
SHOWN = comparison(1, TEXTS).model_copy(update={"display_order": [2, 0, 1]})  # Gamma, Alpha, Beta
PAIR = comparison(2, TEXTS[:2]).model_copy(update={"display_order": [1, 0]})  # Beta, Alpha


def test_a_record_stands_in_its_own_order() -> None:
    assert order_of(SHOWN, "any") == [2, 0, 1]
    fields = record_of(SHOWN, "any")["fields"]
    assert [fields[f"response_{place}"] for place in (1, 2, 3)] == ["Gamma.", "Alpha.", "Beta."]


def test_a_ranking_with_harm_and_a_reason() -> None:
    ranks = [
        {"value": "response_1", "rank": 2},
        {"value": "response_2", "rank": 1},
        {"value": "response_3", "rank": 2},
    ]
    values = {
        "ranking": {"value": ranks},
        "harmful": {"value": ["response_3", "response_1"]},
        "reason": {"value": " too long "},
    }
    assert ranking_from_page(SHOWN, "any", values) == {
        "ranks": [1, 2, 2],  # Alpha first; Beta and Gamma share
        "strength": None,
        "ratings": None,
        "harmful": [1, 2],
        "reason": "too long",
    }


def test_an_incomplete_ranking_has_no_ranks_and_nothing_is_nothing() -> None:
    empty = {"ranks": None, "strength": None, "ratings": None, "harmful": None, "reason": None}
    half = {"ranking": {"value": [{"value": "response_1", "rank": 1}, {"value": "response_2", "rank": None}]}}
    assert ranking_from_page(SHOWN, "any", half) == empty
    assert ranking_from_page(SHOWN, "any", {}) == empty
    assert ranking_from_page(SHOWN, "any", None) == empty
    assert ranking_from_page(SHOWN, "any", {"reason": None, "harmful": {"value": []}}) == empty


@pytest.mark.parametrize(
    ("choice", "ranks", "strength"),
    [
        # shown first is Beta, index 1
        ("first_much_better", [2, 1], 3),
        ("first_slightly_better", [2, 1], 1),
        ("tie", [1, 1], None),
        ("second_better", [1, 2], 2),
    ],
)
def test_a_choice_is_ranks_and_strength(choice: str, ranks: list[int], strength: int | None) -> None:
    found = ranking_from_page(PAIR, "any", {"choice": {"value": choice}})
    assert (found["ranks"], found["strength"]) == (ranks, strength)


def test_ratings_order_by_their_sums() -> None:
    values = {
        f"rating_{criterion}_{place}": {"value": value}
        for place, (helpful, honest) in enumerate([(5, 1), (3, 3), (4, 5)], start=1)
        for criterion, value in (("helpful", helpful), ("honest", honest))
    }
    found = ranking_from_page(SHOWN, "any", values)
    assert found["ratings"] == [
        {"helpful": 3, "honest": 3},  # Alpha
        {"helpful": 4, "honest": 5},  # Beta
        {"helpful": 5, "honest": 1},  # Gamma
    ]
    assert found["ranks"] == [2, 1, 2]  # sums 6, 9, 6
    del values["rating_honest_3"]  # a draft that does not rate Beta's honesty orders nothing
    assert ranking_from_page(SHOWN, "any", values)["ranks"] is None


def test_every_choice_has_its_mirror() -> None:
    for value, (_, ranks, strength) in PAIRWISE_ANSWERS.items():
        if value.startswith("first"):
            _, mirrored, same = PAIRWISE_ANSWERS[value.replace("first", "second")]
            assert (mirrored, same) == (ranks[::-1], strength)


def test_questions_of_each_task() -> None:
    names = {
        task: [(each["name"], each["required"]) for each in questions_of(task, 2, ("helpful", "honest"))]
        for task in ("ranking", "pairwise", "rating")
    }
    optional = [("harmful", False), ("reason", False)]
    rated = [f"rating_{criterion}_{place}" for place in (1, 2) for criterion in ("helpful", "honest")]
    assert names == {
        "ranking": [("ranking", True), *optional],
        "pairwise": [("choice", True), *optional],
        "rating": [*((name, True) for name in rated), *optional],
    }
