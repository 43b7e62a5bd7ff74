"""From rankings to preferences: for every pair of responses, which is better, and how sure that is.

    preferences, counts = pairwise_preferences(comparisons, fit_reliability(comparisons))

Probes (gold records and duplicates) ask nothing new, so they give no preferences; their rankings tell how reliable
annotators are, and a duplicate's also count for the comparison that it repeats.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from statistics import mean

from accord.chat.tokens import answer
from accord.records import Comparison, Preference, Ranking
from feedback.belief.rankings import counts as is_counted
from feedback.belief.rankings import vote
from feedback.belief.reliability import Reliability

LEAST_WEIGHT = 0.2
"""A pair with a smaller weight, so a probability between 0.4 and 0.6, states no preference: most trainers know no
weights, and would take it for as sure as any other."""
CONTESTED = (0.2, 0.8)
"""A pair about which annotators disagree needs adjudication if its probability is between these."""


def pairwise_preferences(
    comparisons: Sequence[Comparison], reliability: Reliability | None = None
) -> tuple[list[Preference], dict[str, int]]:
    """One preference for each pair of responses whose order the rankings decide.

    Without `reliability` a strict majority of the submitted rankings that order the pair decides, equal ranks voting
    for neither. With it, the posterior probability p that the one response is worth more decides, and the weight
    is |2 p - 1|, which is how much more often than not the preference is right. In either case an
    adjudicator's ranking decides alone, with weight 1 (the latest, if there are several).

    Nobody's answer is dropped or turned round without a second opinion: where one annotator alone submitted a ranking,
    it decides, with the weight 2 a - 1, where a is that annotator's accuracy, and at least `LEAST_WEIGHT`. p would not
    do there: it counts a liking for length that annotators share as worth, and nobody contradicts it.

    In the result

    - `weight` is as above, None without `reliability` and adjudication;
    - `margin` is how much better annotators said the chosen response is: the mean over those who gave a `strength`
      (1 to 3), in the direction of the preference, with a tie as 0 and at least 0 in all; None where nobody did. It
      is never made from the probability: TRL's RewardTrainer demands that the score of the chosen response exceed
      the other by the margin, and being sure of a small difference does not make it a large one;
    - `agreement` is the share, among the rankings that order the pair, of those that do so as the preference does
      (3 of 4, with 2 ties, is 0.75); None where all tie it, which an adjudicator may decide;
    - `annotators` is the number of submitted rankings of the comparison, ties included: 6 in that example. The
      adjudicator's is in neither, unless there is no other;
    - `id` is `<comparison's id>:<index of chosen>><index of rejected>`, for example `c-17:2>0`;
    - columns of the comparison that accord does not know, such as a topic, are kept.

    Returns:
        The preferences, in the order of the comparisons and pairs, and the number of pairs by what became of
        them: `kept`, `tied` (all tie it, or the adjudicator does, or, without `reliability`, there is no majority),
        `undecided` (weight under `LEAST_WEIGHT`), `identical` (equal texts), `empty` (a text without content),
        `unranked` (no submitted ranking) and `probe` (of a gold record or duplicate). Every pair is in exactly one
        of these.
    """
    preferences = []
    counts = Counter(kept=0, tied=0, undecided=0, identical=0, empty=0, unranked=0, probe=0)
    for comparison in comparisons:
        texts = [response.text.strip() for response in comparison.responses]
        adjudicator = adjudication(comparison)
        own = [ranking for ranking in comparison.rankings if is_counted(ranking)]
        submitted = own or ([adjudicator] if adjudicator else [])
        for first, second in combinations(range(len(texts)), 2):
            if comparison.is_probe:
                counts["probe"] += 1
                continue
            if not texts[first] or not texts[second]:
                counts["empty"] += 1
                continue
            if texts[first] == texts[second]:
                counts["identical"] += 1
                continue
            if not submitted:
                counts["unranked"] += 1
                continue
            votes = [vote(ranking.ranks or [], first, second) for ranking in submitted]
            weight: float | None = None
            probability = reliability.probability(comparison.id, first, second) if reliability else None
            if adjudicator:
                direction, weight = vote(adjudicator.ranks or [], first, second), 1.0
            elif reliability and probability is not None and len(submitted) == 1:
                direction, weight = votes[0], _weight_alone(reliability, submitted[0])
            elif probability is not None and any(votes):
                direction, weight = (1 if probability > 0.5 else -1), abs(2 * probability - 1)
                if weight < LEAST_WEIGHT:
                    counts["undecided"] += 1
                    continue
            else:
                direction = (sum(votes) > 0) - (sum(votes) < 0)
            if not direction:
                counts["tied"] += 1
                continue
            counts["kept"] += 1
            chosen, rejected = (first, second) if direction > 0 else (second, first)
            strict = [each for each in votes if each]
            preferences.append(
                Preference(
                    prompt=comparison.prompt,
                    chosen=answer(texts[chosen]),
                    rejected=answer(texts[rejected]),
                    chosen_truncated=comparison.responses[chosen].truncated,
                    rejected_truncated=comparison.responses[rejected].truncated,
                    weight=weight,
                    margin=_margin(submitted, votes, direction),
                    annotators=len(submitted),
                    agreement=strict.count(direction) / len(strict) if strict else None,
                    id=f"{comparison.id}:{chosen}>{rejected}",
                    **{
                        name: value
                        for name, value in (comparison.model_extra or {}).items()
                        if name not in Preference.model_fields
                    },
                )
            )
    return preferences, dict(counts)


def needs_adjudication(
    comparisons: Sequence[Comparison], reliability: Reliability, bounds: tuple[float, float] = CONTESTED
) -> list[str]:
    """The ids of the comparisons that someone should settle, the most uncertain first.

    A comparison is one of them if annotators order a pair of its responses differently, and the probability of that
    pair lies within `bounds`. Pairs that cannot become preferences (equal or empty texts), probes, and comparisons
    that an adjudicator has ranked are none.
    """
    distance: dict[str, float] = {}
    for comparison in comparisons:
        if comparison.is_probe or adjudication(comparison):
            continue
        texts = [response.text.strip() for response in comparison.responses]
        submitted = [ranking for ranking in comparison.rankings if is_counted(ranking)]
        for first, second in combinations(range(len(texts)), 2):
            votes = {vote(ranking.ranks or [], first, second) for ranking in submitted}
            probability = reliability.probability(comparison.id, first, second)
            if (
                votes >= {1, -1}
                and probability is not None
                and bounds[0] <= probability <= bounds[1]
                and texts[first] and texts[second] and texts[first] != texts[second]
            ):  # fmt: skip
                distance[comparison.id] = min(distance.get(comparison.id, 1.0), abs(probability - 0.5))
    return sorted(distance, key=lambda id_: distance[id_])


def adjudication(comparison: Comparison) -> Ranking | None:
    """The last ranking that was given to settle the comparison, which decides alone; None where there is none."""
    given = [
        ranking
        for ranking in comparison.rankings
        if ranking.adjudicates and ranking.status == "submitted" and ranking.ranks is not None
    ]
    return max(given, key=lambda ranking: ranking.submitted_at or "") if given else None


def _weight_alone(reliability: Reliability, ranking: Ranking) -> float:
    """Of every pair that this ranking orders, and nobody else judged."""
    annotator = reliability.annotators[ranking.annotator]
    return max(2 * annotator.accuracy - 1, LEAST_WEIGHT)


def _margin(rankings: list[Ranking], votes: list[int], direction: int) -> float | None:
    """The mean strength in the preference's direction; a tie is 0 where others gave a strength."""
    strengths = [
        direction * each * (ranking.strength or 0)
        for ranking, each in zip(rankings, votes, strict=True)
        if ranking.strength is not None or not each
    ]
    if all(ranking.strength is None for ranking in rankings):
        return None
    return max(0.0, float(mean(strengths)))
