"""What rankings say: which ones count, what they say of two responses, and which responses a duplicate repeats."""

from collections.abc import Sequence

from accord.records import Comparison, Ranking


def counts(ranking: Ranking) -> bool:
    """Whether it is an annotator's own finished ranking: submitted, and not given to settle a disagreement."""
    return ranking.status == "submitted" and ranking.ranks is not None and not ranking.adjudicates


def vote(ranks: Sequence[int], first: int, second: int) -> int:
    """1 where the first of two responses is ranked better, -1 where the second is, 0 for a tie."""
    return (ranks[first] < ranks[second]) - (ranks[first] > ranks[second])


def same_responses(comparison: Comparison, original: Comparison) -> list[int] | None:
    """For each response of a duplicate its index in the original; None where the texts are not the same."""
    left = list(range(len(original.responses)))
    places = []
    for response in comparison.responses:
        same = [i for i in left if original.responses[i].text == response.text]
        if not same:
            return None
        places.append(same[0])
        left.remove(same[0])
    return None if left else places
