"""Back to people: they compare the answers of an evaluation's two models, blind, without being told which is whose.

    accord feedback review eval-0123456789ab configs/mine.yaml --items 40 --random-share 0.5

The review is a feedback run whose parent is the evaluation, so waiting, pulling, agreement, adjudication, export and
the next round's reward model treat it like any other. Its `items.jsonl` holds every pair of answers of the evaluation
as a comparison of [baseline, candidate] whose `part` says why it is asked about, or not:

    same      both models said the same: a tie, known without asking
    chosen    it got worst, or what measures it disagrees most about it
    drawn     drawn by chance from all the others, each as likely
    unasked   not drawn

What is chosen is no fair sample: it was chosen for being bad. What is drawn stands for what is unasked, and all of them
together say what share of the candidate's answers people prefer (eval/review/adjudicated.py).
"""

from collections import Counter
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Literal

import numpy as np

from accord.errors import UsageError
from accord.records import Comparison, Response, read_jsonl
from accord.runs import Run, Runs, Source
from accord.text_files import write_jsonl
from eval.rows import MeasuredAnswer, Sample
from feedback.annotation import files_of, have_annotated, planned
from feedback.argilla.people import configured_team
from feedback.asking.select import select_random
from feedback.config import ReviewConfig

ITEMS = "items.jsonl"
ROLES = ("baseline", "candidate")
"""In the order of a comparison's responses; annotators see them in an order drawn for each record."""


class ReviewItem(Comparison):
    """A row of items.jsonl: a pair of answers as a comparison, and which part of the review it is."""

    part: Literal["same", "chosen", "drawn", "unasked"]


def review(config: ReviewConfig, runs: Runs, evaluation: Run, wait: bool = False) -> Run:
    """Have people compare answers of a finished evaluation, and make preferences of what they say.

    Args:
        config: how many items, how many of them by chance, and who annotates them where.
        runs: where the run is kept.
        evaluation: the evaluation; its files are checked against their hashes first.
        wait: look again until people have answered, instead of leaving.

    Raises:
        UsageError: the evaluation is not finished or is none, or both models always said the same.
        TamperedError: the evaluation's files are not the recorded ones.
        WaitingForAnnotatorsError: people have not answered everything yet; the page stays up for them.
    """
    if evaluation.record.stage != "eval":
        raise UsageError(
            f"{evaluation.id} is no evaluation; `accord runs list` shows which are, as eval-<id>"
        )
    samples = evaluation.output("samples.jsonl")
    runs.check(evaluation)
    sources: dict[str, Source] = {"evaluation": evaluation, **files_of(config)}
    with runs.begin("feedback", config, sources) as run:
        if run.is_done:
            return run
        team = configured_team(config)
        if not (run.path / ITEMS).exists():
            models = [evaluation.record.parents.get(role, role) for role in ROLES]
            chosen = choose(
                read_jsonl(samples, Sample), models, config.items, config.random_items, config.seed
            )
            write_jsonl(run.path / ITEMS, chosen)
        items = read_jsonl(run.path / ITEMS, ReviewItem)
        asked = [_asked(item) for item in items if item.part in ("chosen", "drawn")]
        if not asked:
            raise UsageError(
                f"both models of {evaluation.id} said the same to every prompt; there is nothing to review"
            )
        parts = Counter(item.part for item in items)
        have_annotated(
            config, runs, run, team, planned(config, run, team, lambda: asked), wait,
            {"items": len(items), **{f"items_{part}": parts[part] for part in ("same", "chosen", "drawn", "unasked")}},
        )  # fmt: skip
    return run


def choose(
    items: Sequence[Sample], models: Sequence[str], most: int, random_items: int, seed: int
) -> list[ReviewItem]:
    """Every item of an evaluation with its part in the review, in the order given.

    At most `most` items are asked about: `random_items` of them are drawn, the others chosen, where there are so many.
    Chosen are, by turns, the item that got worst and the one that what measures it disagrees most about. Both follow
    from the changes from baseline to candidate of the reward, the judge's opinion and simulated annotators' utility, as
    far as they were measured, each divided by its root mean square over all items: the worst has the smallest mean, the
    most uncertain the largest distance between any two. With one measure all are the worst by it; with none, all that
    are asked about are drawn. Each item keeps the probability with which it was to be asked about,
    as `selection_probability`; that of an unasked one is None.

    Args:
        items: the evaluation's.
        models: what the two models are called, baseline first.
        most: items to ask about.
        random_items: of them, to be drawn by chance.
        seed: of the draw.
    """
    comparisons = [_comparison(item, models) for item in items]
    differ = [i for i, item in enumerate(items) if item.baseline.text.strip() != item.candidate.text.strip()]
    asked = min(most, len(differ))
    changes = _changes(items)
    drawn = min(random_items, asked) if len(changes) else asked
    chosen = set(_worst_or_most_uncertain(changes, differ)[: asked - drawn])
    rest = [comparisons[i] for i in differ if i not in chosen]
    chances = (
        {each.id: each.selection_probability for each in select_random(rest, drawn, seed)} if drawn else {}
    )
    found = []
    for i, each in enumerate(comparisons):
        part, chance = ("drawn", chances[each.id]) if each.id in chances else ("unasked", None)
        if i in chosen:
            part, chance = "chosen", 1.0
        elif i not in differ:
            part, chance = "same", 1.0
        found.append(ReviewItem.model_validate({**dict(each), "part": part, "selection_probability": chance}))
    return found


def _comparison(item: Sample, models: Sequence[str]) -> Comparison:
    responses = [
        Response(text=each.text, run=model, seed=each.seed, truncated=each.finish == "length")
        for model, each in zip(models, (item.baseline, item.candidate), strict=True)
    ]
    group = {"group": item.group} if item.group is not None else {}
    return Comparison(id=f"{item.id}:{item.sample}", prompt=item.prompt, responses=responses, **group)


def _asked(item: ReviewItem) -> Comparison:
    """The item as a comparison to ask about: reviewers' preferences carry no mark of why they were asked for."""
    return Comparison.model_validate({key: value for key, value in dict(item).items() if key != "part"})


def _changes(items: Sequence[Sample]) -> np.ndarray:
    """How much better every item got, by each measure that all of them have: [measures, items]; 0 for an undecided
    judge."""
    found = []
    for name in ("utility", "reward"):
        before, after = ([getattr(answer, name) for answer in side] for side in _sides(items))
        if None not in before and None not in after:
            found.append(np.subtract(after, before))
    judged = [item.judgement for item in items if item.judgement]
    if len(judged) == len(items):
        undecided = [0.5 if j.candidate_is_better is None else j.candidate_is_better for j in judged]
        found.append(np.subtract(undecided, 0.5))
    return np.array(found).reshape(len(found), len(items))


def _sides(items: Sequence[Sample]) -> tuple[list[MeasuredAnswer], list[MeasuredAnswer]]:
    return [item.baseline for item in items], [item.candidate for item in items]


def _worst_or_most_uncertain(changes: np.ndarray, among: Sequence[int]) -> list[int]:
    """The places of the items among which to choose, by turns from the worst and from the most uncertain.

    Args:
        changes: from `_changes`.
        among: places of items.
    """
    if not len(changes):
        return []
    sizes = np.sqrt((changes**2).mean(axis=1, keepdims=True))
    changes = changes / np.where(sizes > 0, sizes, 1.0)
    worst = sorted(among, key=lambda i: changes[:, i].mean())
    if len(changes) == 1:
        return worst
    uncertain = sorted(among, key=lambda i: -np.ptp(changes[:, i]))
    turns = chain.from_iterable(zip_longest(worst, uncertain))
    return list(dict.fromkeys(i for i in turns if i is not None))
