"""From rankings to preferences: for every pair of responses, what most annotators preferred."""

from collections import Counter
from itertools import combinations

from accord.records import Comparison, Message, Preference


def pairwise_preferences(comparisons: list[Comparison]) -> tuple[list[Preference], dict[str, int]]:
    """One preference for each pair of responses that a strict majority of submitted rankings orders one way.

    An annotator votes for the response of the pair with the smaller rank; equal ranks vote for neither. A pair
    where both get equally many votes, none included, states no preference. In the result

    - `agreement` is the winner's share of the votes: 3 to 1 with 2 ties is 0.75;
    - `annotators` is the number of submitted rankings of the comparison, ties included: 6 in that example;
    - `id` is `<comparison's id>:<index of chosen>><index of rejected>`, for example `c-17:2>0`.

    Returns:
        The preferences, in the order of the comparisons and pairs, and the number of pairs by what became of
        them: `kept`, `tied` (no majority), `identical` (equal texts), `empty` (a text without content) and
        `unranked` (no submitted ranking). Every pair is in exactly one of these.
    """
    preferences = []
    counts = Counter(kept=0, tied=0, identical=0, empty=0, unranked=0)
    for comparison in comparisons:
        texts = [response.text.strip() for response in comparison.responses]
        submitted = [
            ranking.ranks
            for ranking in comparison.rankings
            if ranking.status == "submitted" and ranking.ranks is not None
        ]
        for first, second in combinations(range(len(texts)), 2):
            votes_first = sum(ranks[first] < ranks[second] for ranks in submitted)
            votes_second = sum(ranks[second] < ranks[first] for ranks in submitted)
            if not texts[first] or not texts[second]:
                counts["empty"] += 1
            elif texts[first] == texts[second]:
                counts["identical"] += 1
            elif not submitted:
                counts["unranked"] += 1
            elif votes_first == votes_second:
                counts["tied"] += 1
            else:
                counts["kept"] += 1
                chosen, rejected = (first, second) if votes_first > votes_second else (second, first)
                preferences.append(
                    Preference(
                        prompt=comparison.prompt,
                        chosen=[Message(role="assistant", content=texts[chosen])],
                        rejected=[Message(role="assistant", content=texts[rejected])],
                        chosen_truncated=comparison.responses[chosen].truncated,
                        rejected_truncated=comparison.responses[rejected].truncated,
                        annotators=len(submitted),
                        agreement=max(votes_first, votes_second) / (votes_first + votes_second),
                        id=f"{comparison.id}:{chosen}>{rejected}",
                    )
                )
    return preferences, dict(counts)
