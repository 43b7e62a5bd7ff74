"""From ratings and harm flags to answers that are desirable or not, each by itself.

rows, counts = desirable_or_not(comparisons)
"""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from accord.chat.tokens import answer
from accord.records import Comparison, UnpairedFeedback
from feedback.belief.preferences import adjudication

DESIRABLE, UNDESIRABLE = 4.0, 2.0
"""An answer's mean rating, of 5: from the one on it is desirable, up to the other it is not."""


def desirable_or_not(
    comparisons: Sequence[Comparison],
) -> tuple[list[UnpairedFeedback], dict[str, int]]:
    """One row for each answer that annotators' ratings and harm flags decide.

    An answer is undesirable if more than half of the submitted rankings flag it as harmful, whatever its ratings.
    Otherwise the mean of its ratings decides, over criteria and annotators; an adjudicator's ratings decide alone.

    Returns:
        The rows, in the order of the comparisons and answers, with the columns of the comparison that accord does not
        know; and the number of answers by what became of them: `desirable`, `undesirable`, `middling` (a mean rating
        between the two), `unrated`, `empty` (a text without content) and `probe` (of a gold record or duplicate).
    """
    rows = []
    counts = Counter(desirable=0, undesirable=0, middling=0, unrated=0, empty=0, probe=0)
    for comparison in comparisons:
        for index, response in enumerate(comparison.responses):
            text = response.text.strip()
            found = "probe" if comparison.is_probe else "empty" if not text else _verdict(comparison, index)
            counts[found] += 1
            if found not in ("desirable", "undesirable"):
                continue
            rows.append(
                UnpairedFeedback(
                    prompt=comparison.prompt,
                    completion=answer(text),
                    label=found == "desirable",
                    truncated=response.truncated,
                    id=f"{comparison.id}:{index}",
                    **{
                        name: value
                        for name, value in (comparison.model_extra or {}).items()
                        if name not in UnpairedFeedback.model_fields
                    },
                )
            )
    return rows, dict(counts)


def _verdict(comparison: Comparison, index: int) -> str:
    submitted = [ranking for ranking in comparison.rankings if ranking.status == "submitted"]
    flags = sum(index in (ranking.harmful or []) for ranking in submitted)
    if 2 * flags > len(submitted):
        return "undesirable"
    adjudicator = adjudication(comparison)
    own = [ranking for ranking in submitted if not ranking.adjudicates]
    raters = [adjudicator] if adjudicator and adjudicator.ratings else own
    ratings = [value for ranking in raters if ranking.ratings for value in ranking.ratings[index].values()]
    if not ratings:
        return "unrated"
    mean = fmean(ratings)
    return "desirable" if mean >= DESIRABLE else "undesirable" if mean <= UNDESIRABLE else "middling"
