"""The simulated annotators: the utility's arithmetic, ranks and ties, and answering through the real server."""

import math
from collections import Counter

import pytest
from feedback_helpers import comparison

from accord.errors import AccordError
from accord.records import Message
from feedback.argilla.client import Client
from feedback.argilla.collect import pull, push, status
from feedback.argilla.simulate import (
    SIMULATED_ANNOTATORS,
    SimulatedAnnotator,
    answer_as_simulated,
    answers_from,
    assigned,
    ranks_with_ties,
)
from feedback.argilla.tasks import TaskKind, record_id
from feedback.utility import WEIGHTS, utility

QUESTION = [Message(role="user", content="What are the largest planets?")]  # content words: largest, planets


def test_the_weights_sum_to_one() -> None:
    assert math.isclose(sum(WEIGHTS.values()), 1)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        # all six terms are 1: it ends with a full stop, has 8 words, repeats nothing, takes up "planet"
        ("The largest planet is Jupiter, Saturn comes next.", 1.0),
        # unfinished: without "complete"
        ("The largest planet is Jupiter, Saturn comes", 1 - 0.25),
        # three words: length 3/6; nothing of the question
        ("Jupiter and Saturn.", 1 - 0.25 * 0.5 - 0.20),
        # an opening of filler
        ("Sure! The largest planet is Jupiter, Saturn comes next.", 1 - 0.10),
        # the 9 bigrams of "the planet" five times are 2 distinct ones
        ("The planet the planet the planet the planet the planet.", 1 - 0.15 * 7 / 9),
        # 60 different words: 20 over 40
        (" ".join(["planet", *[f"w{i}" for i in range(59)]]) + ".", 1 - 0.25 * (1 - math.exp(-0.5))),
        # two list marks of three
        ("- the largest planet\n- another thing altogether here.", 1 - 0.05 * 2 / 3),
        ("", 0.0),
        ("... !!", 0.0),
    ],
)
def test_utility(response: str, expected: float) -> None:
    assert utility(QUESTION, response) == pytest.approx(expected)


def test_a_rambling_cut_off_answer_is_far_below_a_short_complete_one() -> None:
    rambling = (
        "Sure! Here are the largest planets:\n\n1. **Jupiter** is the largest planet.\n2. **Saturn** is the"
    )
    assert (
        utility(QUESTION, "The largest planets are Jupiter and Saturn.") - utility(QUESTION, rambling) > 0.3
    )


def test_ranks_with_ties() -> None:
    assert ranks_with_ties([0.50, 0.90, 0.51, 0.20], 0.02) == [2, 1, 2, 3]
    assert ranks_with_ties([0.1, 0.2, 0.3], 0.02) == [3, 2, 1]
    assert ranks_with_ties([0.5, 0.5], 0.02) == [1, 1]
    # 0.03 is near to 0.015 but not to 0.045, the best of its group: ties do not chain
    assert ranks_with_ties([0.045, 0.03, 0.015], 0.02) == [1, 1, 2]


def test_each_annotator_has_its_bias() -> None:
    careful, noisy, long, first = SIMULATED_ANNOTATORS
    good = "The largest planet is Jupiter."
    padded = "The largest planet is Jupiter, and " + " ".join(f"also{i}" for i in range(30)) + "."
    bad = "planet planet planet planet planet"
    texts = [bad, padded, good]

    def share(annotator: SimulatedAnnotator, wanted: int) -> float:
        felt = [annotator.felt(QUESTION, texts, f"r{i}", seed=0) for i in range(200)]
        return sum(values is not None and values[wanted] == max(values) for values in felt) / 200

    assert share(careful, 0) == 0  # the bad one is never best
    assert share(noisy, 0) > 0.01
    assert share(long, 1) > 0.95
    assert 0.75 < share(first, 0) < 0.95
    assert careful.felt(QUESTION, ["", ""], "r", seed=0) is None
    assert careful.felt(QUESTION, texts, "r", seed=0) == careful.felt(QUESTION, texts, "r", seed=0)
    assert all(annotator.username.startswith("simulated_") for annotator in SIMULATED_ANNOTATORS)


def test_the_assignment_is_balanced_and_repeatable() -> None:
    pairs = [assigned(SIMULATED_ANNOTATORS, f"r{i}", 2, seed=0) for i in range(400)]
    assert pairs == [assigned(SIMULATED_ANNOTATORS, f"r{i}", 2, seed=0) for i in range(400)]
    assert all(len(set(names)) == 2 for names in pairs)
    assert all(170 < count < 230 for count in Counter(name for names in pairs for name in names).values())


@pytest.mark.slow
def test_they_answer_everything_once_and_only_what_is_missing(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [
        "Water is wet because it clings to things.",
        "No",
        "Water water water water",
        "Water <b>is</b> & was",
    ]
    comparisons = [comparison(i, texts) for i in range(12)]
    comparisons.append(comparison(12, ["", " ", "\n", "..."]))
    push(client, "simulated", comparisons, min_submitted=4)
    careful = SIMULATED_ANNOTATORS[:1]
    assert answer_as_simulated(client, "simulated", careful) == 13
    assert answer_as_simulated(client, "simulated", careful) == 0
    assert answer_as_simulated(client, "simulated") == 3 * 13
    state = status(client, "simulated", comparisons)
    assert state.records_waiting == 0
    assert set(state.answers) == {annotator.username for annotator in SIMULATED_ANNOTATORS}
    pulled = pull(client, "simulated", comparisons)
    for each in pulled[:12]:
        ranks = {ranking.annotator: ranking.ranks for ranking in each.rankings}
        careful_ranks = ranks["simulated_careful"]
        assert careful_ranks is not None
        assert careful_ranks[0] == 1  # in the ORIGINAL order, however it was displayed
        assert careful_ranks[1] > 1
    empty = {ranking.annotator: ranking.status for ranking in pulled[12].rankings}
    assert empty["simulated_careful"] == "discarded"
    assert "simulated annotators answer 'simulated': 39 answers given" in capsys.readouterr().out


@pytest.mark.slow
def test_two_of_four_answer_each_record(client: Client) -> None:
    comparisons = [comparison(i, ["Water is wet because it clings to things.", "No"]) for i in range(25)]
    push(client, "simulated-pairs", comparisons, min_submitted=2)
    assert answer_as_simulated(client, "simulated-pairs", annotators_per_record=2, seed=3) == 50
    for each in pull(client, "simulated-pairs", comparisons):
        names = sorted(ranking.annotator for ranking in each.rankings)
        record = record_id("simulated-pairs", each.id)
        assert names == sorted(assigned(SIMULATED_ANNOTATORS, record, 2, seed=3))


@pytest.mark.parametrize(
    ("felt", "choice"),
    [
        ([0.9, 0.5], "first_much_better"),
        ([0.7, 0.5], "first_better"),
        ([0.5, 0.55], "second_slightly_better"),
        ([0.5, 0.51], "tie"),
        ([0.1, 0.9], "second_much_better"),
    ],
)
def test_what_is_felt_becomes_a_choice_and_ratings(felt: list[float], choice: str) -> None:
    answers = answers_from(felt, {"choice", "rating_helpful_1", "rating_helpful_2", "harmful", "reason"})
    assert answers["choice"] == choice
    expected = {0.1: 1, 0.5: 3, 0.51: 3, 0.55: 3, 0.7: 4, 0.9: 5}
    assert [answers["rating_helpful_1"], answers["rating_helpful_2"]] == [expected[value] for value in felt]
    assert set(answers) == {"choice", "rating_helpful_1", "rating_helpful_2"}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pairwise", "rating"])
def test_they_answer_other_tasks_and_assigned_records(client: Client, task: TaskKind) -> None:
    names = [annotator.username for annotator in SIMULATED_ANNOTATORS]
    texts = ["Water is wet because it clings to things.", "No"]
    comparisons = [
        comparison(i, texts).model_copy(update={"assigned_to": [names[i % 4], names[(i + 1) % 4]]})
        for i in range(8)
    ]
    dataset = f"simulated-{task}"
    push(client, dataset, comparisons, 2, task, criteria=("helpful", "honest"))
    assert answer_as_simulated(client, dataset, annotators_per_record=2) == 16
    assert status(client, dataset, comparisons).records_waiting == 0
    for each in pull(client, dataset, comparisons):
        assert [one.annotator for one in each.rankings] == sorted(each.assigned_to or [])
        for one in each.rankings:
            assert one.ranks is not None
            if one.annotator == "simulated_careful":
                assert one.ranks == [1, 2]
                assert (
                    (one.strength or 0) >= 1
                    if task == "pairwise"
                    else one.ratings
                    == [
                        {"helpful": 5, "honest": 5},
                        {"helpful": min(one.ratings[1].values()), "honest": min(one.ratings[1].values())},  # type: ignore[index]
                    ]
                )


@pytest.mark.slow
def test_a_dataset_that_does_not_exist_is_one_sentence(client: Client) -> None:
    with pytest.raises(AccordError, match="has no dataset 'nowhere'; push the comparisons to it first"):
        answer_as_simulated(client, "nowhere")
