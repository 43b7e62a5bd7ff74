"""From rankings to preferences, with the votes counted by hand and the posterior probabilities given."""

import dataclasses
import random

import numpy as np
import pytest

from accord.records import Comparison, Message, Ranking, Response
from feedback.belief.preferences import LEAST_WEIGHT, needs_adjudication, pairwise_preferences
from feedback.belief.reliability import (
    AnnotatorReliability,
    PairPosterior,
    Reliability,
    expected_accuracy,
    fit_reliability,
)

NONE = dict.fromkeys(("kept", "tied", "undecided", "identical", "empty", "unranked", "probe"), 0)


def ranked(texts: list[str], *rankings: Ranking, id_: str = "c-1", **columns: object) -> Comparison:
    return Comparison(
        id=id_,
        prompt=[Message(role="user", content="Name a prime.")],
        responses=[Response(text=text, run="policy0", seed=0) for text in texts],
        rankings=list(rankings),
        **columns,
    )


def submitted(name: str, *ranks: int) -> Ranking:
    return Ranking(annotator=name, ranks=list(ranks))


def test_a_strict_majority_of_the_expressed_votes_decides() -> None:
    comparison = ranked(
        ["Seven is prime.", "Nine.", "Eight."],
        submitted("a", 1, 2, 3),
        submitted("b", 1, 2, 2),
        submitted("c", 2, 1, 3),
        submitted("d", 1, 1, 1),
        Ranking(annotator="e", status="discarded"),
        Ranking(annotator="f", status="discarded", ranks=[3, 2, 1]),
        Ranking(annotator="g", status="draft", ranks=[3, 2, 1]),
    )
    preferences, counts = pairwise_preferences([comparison])
    # pair 0,1: a and b for 0, c for 1, d for neither; pair 0,2: a, b, c for 0; pair 1,2: a and c for 1, b and d tie
    assert [(each.id, each.agreement, each.annotators) for each in preferences] == [
        ("c-1:0>1", 2 / 3, 4),
        ("c-1:0>2", 1.0, 4),
        ("c-1:1>2", 1.0, 4),
    ]
    first = preferences[0]
    assert first.prompt == comparison.prompt
    assert first.chosen == [Message(role="assistant", content="Seven is prime.")]
    assert first.rejected == [Message(role="assistant", content="Nine.")]
    assert counts == NONE | {"kept": 3}


def test_the_winner_may_be_the_later_response() -> None:
    preferences, _ = pairwise_preferences([ranked(["Nine.", "Seven."], submitted("a", 2, 1))])
    assert [each.id for each in preferences] == ["c-1:1>0"]
    assert preferences[0].chosen[0].content == "Seven."


def test_every_dropped_pair_is_counted_once() -> None:
    comparison = ranked(
        ["Seven.", "Nine.", " Seven. ", "  "],
        submitted("a", 1, 2, 3, 4),
        submitted("b", 2, 1, 3, 4),
    )
    preferences, counts = pairwise_preferences([comparison])
    # 0,1: one vote each; 0,2: the same text; 1,2: both for 1; 0,3 and 1,3 and 2,3: the fourth is empty
    assert counts == NONE | {"kept": 1, "tied": 1, "identical": 1, "empty": 3}
    assert [each.id for each in preferences] == ["c-1:1>2"]


def test_without_a_submitted_ranking_nothing_is_preferred() -> None:
    discarded = ranked(["Seven.", "Nine."], Ranking(annotator="a", status="discarded"))
    assert pairwise_preferences([discarded, ranked(["Seven.", "Nine."])]) == (
        [],
        NONE | {"unranked": 2},
    )


def believing(probabilities: dict[str, dict[tuple[int, int], float]]) -> Reliability:
    pairs = {
        id_: {pair: PairPosterior(p, 0.0, 1.0) for pair, p in of_comparison.items()}
        for id_, of_comparison in probabilities.items()
    }
    return Reliability({}, 0.0, pairs, True)


def adjudged(*ranks: int, at: str = "2026-01-01") -> Ranking:
    return Ranking(annotator="judge", ranks=list(ranks), adjudicates=True, submitted_at=at)


def test_with_a_reliability_model_the_posterior_decides_and_weighs() -> None:
    texts = ["Seven.", "Nine.", "Eight."]
    comparison = ranked(texts, submitted("a", 1, 2, 3), submitted("b", 2, 1, 3), submitted("c", 1, 1, 2))
    model = believing({"c-1": {(0, 1): 0.25, (0, 2): 0.9, (1, 2): 0.54}})
    preferences, counts = pairwise_preferences([comparison], model)
    # 0,1: one vote each, and the model believes b: weight 1 - 2 * 0.25; 0,2: 2 * 0.9 - 1; 1,2: 0.08 is under 0.2
    assert LEAST_WEIGHT == 0.2
    assert [each.id for each in preferences] == ["c-1:1>0", "c-1:0>2"]
    assert [each.weight for each in preferences] == pytest.approx([0.5, 0.8])
    assert [each.agreement for each in preferences] == [0.5, 1.0]
    assert [each.margin for each in preferences] == [None, None]
    assert counts == NONE | {"kept": 2, "undecided": 1}


def test_nobodys_answer_is_dropped_or_turned_round_without_a_second_opinion() -> None:
    """Ann's beta is 1, so her accuracy is 0.73; Eve's is negative, and Bob ranks at random."""
    model = dataclasses.replace(
        believing({"c-1": {(0, 1): 0.3, (0, 2): 0.45, (1, 2): 0.6}}),
        annotators={
            name: AnnotatorReliability(beta, 0.3, 0.0, 0.3, 0.0, 0.3, -1.0, 20)
            for name, beta in (("ann", 1.0), ("eve", -1.0), ("bob", 0.0))
        },
    )
    for name, weight in (
        ("ann", 2 * expected_accuracy(1.0) - 1),
        ("eve", LEAST_WEIGHT),
        ("bob", LEAST_WEIGHT),
    ):
        preferences, counts = pairwise_preferences([ranked(["a", "b", "c"], submitted(name, 1, 2, 2))], model)
        assert [each.id for each in preferences] == ["c-1:0>1", "c-1:0>2"]
        assert [each.weight for each in preferences] == [pytest.approx(weight)] * 2
        assert counts["kept"] == 2 and counts["tied"] == 1 and counts["undecided"] == 0
    both = ranked(["a", "b", "c"], submitted("ann", 1, 2, 2), submitted("eve", 1, 2, 2))
    preferences, counts = pairwise_preferences([both], model)
    assert [each.id for each in preferences] == ["c-1:1>0"] and counts["undecided"] == 1


def test_a_liking_for_length_that_all_share_weighs_nobodys_answer_who_is_alone() -> None:
    """200 records with one of ten annotators each, who prefer the longer of two answers in three cases of four."""
    chance = random.Random(0)
    comparisons = []
    for i in range(200):
        longer_first = chance.random() < 0.5
        texts = ["a" * 400, "b" * 40] if longer_first else ["b" * 40, "a" * 400]
        ranks = (1, 2) if longer_first == (chance.random() < 0.75) else (2, 1)
        comparisons.append(ranked(texts, submitted(f"ann-{i % 10}", *ranks), id_=f"c-{i}"))
    reliability = fit_reliability(comparisons)
    assert reliability.shared_length > 0.2
    preferences, counts = pairwise_preferences(comparisons, reliability)
    assert counts["kept"] == 200
    longer = [each.weight for each in preferences if len(each.chosen[0].text) == 400]
    shorter = [each.weight for each in preferences if len(each.chosen[0].text) == 40]
    assert len(longer) > 130 and np.mean(longer) == pytest.approx(np.mean(shorter), abs=0.02)


def test_a_pair_that_all_tie_is_tied_whatever_the_model_says() -> None:
    comparison = ranked(["Seven.", "Nine."], submitted("a", 1, 1), submitted("b", 1, 1))
    assert pairwise_preferences([comparison], believing({"c-1": {(0, 1): 0.9}})) == ([], NONE | {"tied": 1})


def test_without_a_posterior_of_a_comparison_the_majority_decides() -> None:
    preferences, _ = pairwise_preferences([ranked(["Seven.", "Nine."], submitted("a", 1, 2))], believing({}))
    assert [(each.id, each.weight) for each in preferences] == [("c-1:0>1", None)]


def test_an_adjudicator_decides_what_he_orders_and_drops_what_he_ties() -> None:
    comparison = ranked(
        ["Seven.", "Nine.", "Eight."],
        submitted("a", 1, 2, 3),
        submitted("b", 1, 2, 3),
        adjudged(3, 1, 2, at="2026-01-01"),
        adjudged(2, 1, 1, at="2026-01-02"),
    )
    for model in (None, believing({"c-1": {(0, 1): 0.99, (0, 2): 0.99, (1, 2): 0.99}})):
        preferences, counts = pairwise_preferences([comparison], model)
        # the later of his two rankings: 1 and 2 above 0, and tied
        assert [(each.id, each.weight, each.agreement, each.annotators) for each in preferences] == [
            ("c-1:1>0", 1.0, 0.0, 2),
            ("c-1:2>0", 1.0, 0.0, 2),
        ]
        assert counts == NONE | {"kept": 2, "tied": 1}


def test_an_adjudicator_who_was_the_only_one_counts_as_annotator() -> None:
    preferences, _ = pairwise_preferences([ranked(["Seven.", "Nine."], adjudged(1, 2))])
    assert [(each.id, each.weight, each.agreement, each.annotators) for each in preferences] == [
        ("c-1:0>1", 1.0, 1.0, 1)
    ]


def test_margin_is_the_mean_strength_that_annotators_gave() -> None:
    def choice(name: str, first: int, second: int, strength: int | None) -> Ranking:
        return Ranking(annotator=name, ranks=[first, second], strength=strength)

    comparison = ranked(
        ["Seven.", "Nine."],
        choice("a", 1, 2, 3),
        choice("b", 1, 2, 2),
        choice("c", 2, 1, 1),
        choice("d", 1, 1, None),
    )
    preferences, _ = pairwise_preferences([comparison])
    # 3 and 2 for it, 1 against it, and a tie: (3 + 2 - 1 + 0) / 4
    assert [each.margin for each in preferences] == [1.0]
    # where the model believes c alone, the mean is negative in the preference's direction, and TRL's margin is not
    preferences, _ = pairwise_preferences([comparison], believing({"c-1": {(0, 1): 0.1}}))
    assert [(each.id, each.margin) for each in preferences] == [("c-1:1>0", 0.0)]


def test_probes_give_no_preferences_and_are_counted() -> None:
    texts = ["Seven.", "Nine."]
    comparisons = [
        ranked(texts, submitted("a", 1, 2)),
        ranked(texts, submitted("a", 1, 2), id_="c-2", duplicate_of="c-1"),
        ranked(texts, submitted("a", 1, 2), id_="c-3", gold_ranks=[1, 2]),
    ]
    preferences, counts = pairwise_preferences(comparisons)
    assert [each.id for each in preferences] == ["c-1:0>1"]
    assert counts == NONE | {"kept": 1, "probe": 2}


def test_what_needs_adjudication_is_contested_and_uncertain() -> None:
    texts = ["Seven.", "Nine."]
    first, second = submitted("a", 1, 2), submitted("b", 2, 1)
    comparisons = [
        ranked(texts, first, second, id_="unsure"),
        ranked(texts, first, second, id_="most-unsure"),
        ranked(texts, first, second, id_="sure"),
        ranked(texts, first, submitted("b", 1, 2), id_="agreed"),
        ranked(texts, first, submitted("b", 1, 1), id_="tied-by-one"),
        ranked(texts, first, second, adjudged(1, 2), id_="settled"),
        ranked(texts, first, second, id_="gold", gold_ranks=[1, 2]),
        ranked(["Seven.", "Seven."], first, second, id_="identical"),
        ranked(texts, first, Ranking(annotator="b", status="draft", ranks=[2, 1]), id_="draft"),
    ]
    model = believing(
        {each.id: {(0, 1): 0.5} for each in comparisons} | {"unsure": {(0, 1): 0.7}, "sure": {(0, 1): 0.9}}
    )
    assert needs_adjudication(comparisons, model) == ["most-unsure", "unsure"]
    assert needs_adjudication(comparisons, model, bounds=(0.05, 0.95)) == ["most-unsure", "unsure", "sure"]
