"""From rankings to preferences, with the votes counted by hand."""

from accord.records import Comparison, Message, Ranking, Response
from feedback.preferences import pairwise_preferences


def ranked(texts: list[str], *rankings: Ranking) -> Comparison:
    return Comparison(
        id="c-1",
        prompt=[Message(role="user", content="Name a prime.")],
        responses=[Response(text=text, run="policy0", seed=0) for text in texts],
        rankings=list(rankings),
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
    assert counts == {"kept": 3, "tied": 0, "identical": 0, "empty": 0, "unranked": 0}


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
    assert counts == {"kept": 1, "tied": 1, "identical": 1, "empty": 3, "unranked": 0}
    assert [each.id for each in preferences] == ["c-1:1>2"]


def test_without_a_submitted_ranking_nothing_is_preferred() -> None:
    discarded = ranked(["Seven.", "Nine."], Ranking(annotator="a", status="discarded"))
    assert pairwise_preferences([discarded, ranked(["Seven.", "Nine."])]) == (
        [],
        {"kept": 0, "tied": 0, "identical": 0, "empty": 0, "unranked": 2},
    )
