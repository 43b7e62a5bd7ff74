"""What reviewers prefer, as a metric: the share of the candidate's answers that people prefer to the baseline's.

    measured = adjudicated(review, samples)

An item is worth 1 where reviewers prefer the candidate's answer, 0 where they prefer the baseline's, and 1/2 for a
tie. A candidate as good as the baseline is worth 1/2 on average, which is what every item is worth `before`.

Only some items were asked about (eval/review/ask.py), and those that were chosen were chosen for being bad: the mean
over all answers of reviewers is lower than the truth. So the mean is taken part by part. With N_h items of part h
(`same`, `chosen`, and `drawn` with what was left `unasked`), of which n_h have a judgement, with mean m_h,

    share = sum over parts of N_h m_h / N

is the stratified estimator (Cochran 1977, Sampling Techniques, 5.3): unbiased over the draw, and no label is wasted.

The interval. `after` holds a value for each of the N items, judged or not,

    z_i = m_h + (y_i - m_h) N_h / n_h    for a judged item,        z_i = m_h    for one that is not,

so that their mean is that share, and their variance over N, which is what the gate's paired interval over prompts
takes, is the variance of the share: sum over parts of (N_h / N)^2 s_h^2 / n_h, plus the spread of the parts' means.
That is what two-phase sampling gives (first prompts from all that could be asked, then items from those; Cochran,
12.2), because what the second phase adds, (1 - n_h / N_h) s_h^2 / n_h, and what the first one has in it, s_h^2 / N_h,
sum to s_h^2 / n_h. The second phase is neither forgotten nor counted twice. Single values may lie outside of 0 and 1.

What it does not say. Reviewers are taken as they are: other people may differ, and the interval does not allow for
that. Items that nobody could judge (all discarded) are taken to be like the others of their part.
"""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from accord.errors import UsageError
from accord.records import Comparison, read_jsonl
from accord.runs import Run
from eval.measuring.values import Measured
from eval.review.ask import ITEMS, ReviewItem
from eval.rows import Sample
from feedback.belief.preferences import adjudication
from feedback.belief.rankings import counts, vote

TIE = 0.5
"""What an item is worth on which neither answer is preferred."""
BASELINE, CANDIDATE = 0, 1
"""Places of the two answers in a review's comparisons."""


def adjudicated(review: Run, samples: Sequence[Sample]) -> Measured:
    """Every item's value under the baseline and the candidate, its cluster (the prompt) and its group.

    An item's judgement is an adjudicator's, where there is one, and otherwise the mean over the reviewers who
    submitted one, all alike: weights by how far each agrees with the others would estimate something else than
    what a reviewer prefers. Duplicates and gold records count for nothing here.

    Args:
        review: the finished review.
        samples: the evaluation's items, as they stand in its samples.jsonl.

    Raises:
        UsageError: the run is no review, is not finished, reviewed other answers than these, drew nothing by chance,
            or has too few judgements to estimate anything.
        TamperedError: the run's files are not the recorded ones.
    """
    if "evaluation" not in review.record.parents:
        raise UsageError(
            f"{review.id} is no review of an evaluation; make one with `accord feedback review EVAL_RUN CONFIG`"
        )
    path = review.output(ITEMS)
    review.check_outputs()
    items = {item.id: item for item in read_jsonl(path, ReviewItem)}
    names = [f"{sample.id}:{sample.sample}" for sample in samples]
    if set(names) != set(items) or any(
        not _same(items[name], sample) for name, sample in zip(names, samples, strict=True)
    ):
        raise UsageError(
            f"{review.id} reviewed other answers than these, those of {review.record.parents['evaluation']}; review "
            "this evaluation, or give that one"
        )
    judged = preferred_shares(read_jsonl(review.output("comparisons.jsonl"), Comparison))
    values = expanded([(_part(items[name]), judged.get(name)) for name in names], review.id)
    return Measured(
        [TIE] * len(samples),
        [*values],
        [sample.id for sample in samples],
        [sample.group for sample in samples],
    )


def preferred_shares(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """By id, what reviewers say of each comparison of [baseline, candidate] that has a judgement: 1, 0, or between."""
    found = {}
    for comparison in comparisons:
        if comparison.is_probe:
            continue
        settled = adjudication(comparison)
        rankings = [settled] if settled else [each for each in comparison.rankings if counts(each)]
        if rankings:
            votes = [vote(each.ranks or [], CANDIDATE, BASELINE) for each in rankings]
            found[comparison.id] = TIE + fmean(votes) / 2
    return found


def expanded(items: Sequence[tuple[str, float | None]], review: str = "the review") -> list[float]:
    """The values z_i above, whose mean is the stratified estimate.

    Args:
        items: of each item its part ("same" is a known tie) and its judgement, None where it has none.
        review: what to call the review in an error.

    Raises:
        UsageError: a part has items without a judgement, and fewer than two with one.
    """
    known: dict[str, list[float]] = defaultdict(list)
    sizes: dict[str, int] = defaultdict(int)
    for part, value in items:
        sizes[part] += 1
        if part == "same":
            known[part].append(TIE)
        elif value is not None:
            known[part].append(value)
    for part, size in sizes.items():
        if len(known[part]) < min(2, size):
            raise UsageError(
                f"{review} has judgements of {len(known[part])} of the {size} items that were {part}, too few to "
                "estimate what reviewers prefer; review with a larger --random-share or more --items"
            )
    means = {part: fmean(values) for part, values in known.items()}
    return [
        means[part] if value is None else means[part] + (value - means[part]) * sizes[part] / len(known[part])
        for part, value in items
    ]


def _part(item: ReviewItem) -> str:
    """Its stratum: what was not drawn is stood for by what was."""
    return "drawn" if item.part == "unasked" else item.part


def _same(item: ReviewItem, sample: Sample) -> bool:
    texts = [sample.baseline.text, sample.candidate.text]
    return item.prompt == sample.prompt and [each.text for each in item.responses] == texts
