"""What reviewers prefer: the estimate is the truth on average over all draws, and its interval holds it."""

import itertools

import numpy as np
import pytest

from accord.errors import UsageError
from accord.records import Comparison, Message, Ranking, Response
from eval.review.adjudicated import expanded, preferred_shares
from eval.statistics.paired import paired_difference


def comparison(name: str, rankings: list[Ranking], **more: object) -> Comparison:
    answers = [Response(text=text, run=text, seed=0) for text in ("baseline", "candidate")]
    return Comparison(
        id=name, prompt=[Message(role="user", content="?")], responses=answers, rankings=rankings, **more
    )


def ranking(annotator: str, baseline: int, candidate: int, **more: object) -> Ranking:
    return Ranking(annotator=annotator, ranks=[baseline, candidate], **more)


def test_a_judgement_is_the_mean_over_reviewers_or_the_last_adjudicators() -> None:
    ann, bob, cyn = ranking("ann", 2, 1), ranking("bob", 1, 2), ranking("cyn", 1, 1)
    eva = ranking("eva", 1, 2, adjudicates=True, submitted_at="2026-11-22T10:00:00Z")
    dan = ranking("dan", 2, 1, adjudicates=True, submitted_at="2026-11-22T09:00:00Z")
    gone, draft = ranking("gil", 1, 2, status="deleted"), ranking("fay", 1, 2, status="draft")
    thrown = Ranking(annotator="hal", status="discarded")
    assert preferred_shares(
        [
            comparison("candidate", [ann]),
            comparison("baseline", [bob]),
            comparison("tie", [cyn]),
            comparison("split", [ann, bob]),
            comparison("mostly", [ann, ann, cyn, bob, gone, draft]),  # (1 + 1 + 1/2 + 0) / 4
            comparison("settled", [ann, ann, eva, dan]),
            comparison("nobody", [thrown]),
            comparison("unasked", []),
            comparison("again", [ann], duplicate_of="candidate"),
            comparison("gold", [ann], gold_ranks=[2, 1]),
        ]
    ) == {"candidate": 1.0, "baseline": 0.0, "tie": 0.5, "split": 0.5, "mostly": 0.625, "settled": 0.0}


def test_over_all_possible_draws_the_estimate_is_the_truth() -> None:
    chosen, rest, same = [0.0, 0.0, 0.5], [1.0, 0.0, 0.5, 1.0, 1.0], 2
    truth = (sum(chosen) + sum(rest) + 2 * 0.5) / 10
    fixed = [("same", None)] * same + [("chosen", value) for value in chosen]
    estimates, variances, naive = [], [], []
    for drawn in itertools.combinations(range(5), 3):
        items = fixed + [("drawn", rest[i] if i in drawn else None) for i in range(5)]
        values = np.array(expanded(items))
        judged = [rest[i] for i in drawn]
        estimates.append(values.mean())
        naive.append((sum(chosen) + sum(judged)) / 6)
        # the formula of the module's docstring, part by part
        parts = [(2, [0.5, 0.5]), (3, chosen), (5, judged)]
        within = sum((size / 10) ** 2 * np.var(known) / len(known) for size, known in parts)
        between = sum(size * (np.mean(known) - values.mean()) ** 2 for size, known in parts) / 100
        assert values.var() / 10 == pytest.approx(within + between)
        variances.append(values.var() / 10)
    assert np.mean(estimates) == pytest.approx(truth) == 0.5
    assert np.mean(naive) == pytest.approx(
        (0.5 + 3 * 0.7) / 6
    )  # 0.43, for a candidate as good as the baseline
    assert np.mean(variances) > np.var(
        estimates
    )  # which is the draw's part alone, without that of the prompts


def test_with_every_item_judged_the_values_are_the_judgements() -> None:
    items = [("chosen", 0.0), ("drawn", 1.0), ("drawn", 0.25), ("same", None)]
    assert expanded(items) == [0.0, 1.0, 0.25, 0.5]


def test_what_nobody_could_judge_is_like_the_others_of_its_part() -> None:
    items = [
        ("chosen", 0.0),
        ("chosen", 0.5),
        ("chosen", None),
        ("drawn", 1.0),
        ("drawn", 0.0),
        ("drawn", None),
    ]
    # of 3 chosen 2 are judged, with mean 1/4: 1/4 -+ 1/4 * 3/2; of 3 drawn 2, with mean 1/2: 1/2 +- 1/2 * 3/2
    assert expanded(items) == pytest.approx([-0.125, 0.625, 0.25, 1.25, -0.25, 0.5])


@pytest.mark.parametrize(
    ("items", "problem"),
    [
        ([("chosen", 0.0)] * 5 + [("drawn", None)] * 3, "of 0 of the 3 items that were drawn"),
        ([("drawn", 1.0), ("drawn", None)], "of 1 of the 2 items that were drawn"),
        ([("chosen", None), ("drawn", 1.0)], "of 0 of the 1 items that were chosen"),
    ],
)
def test_too_few_judgements_are_refused(items: list[tuple[str, float | None]], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        expanded(items)


def reviewed(
    chance: np.random.Generator, prompts: int, asked: int
) -> tuple[list[float], float, float, list[str]]:
    """One evaluation of two answers a prompt, and its review of `asked` items, half of them drawn.

    Prompts differ in how well the candidate does; what measures answers sees that with noise, and chooses the worst.

    Returns:
        The values, the mean over the chosen ones, the mean over all that reviewers judged, and the clusters.
    """
    better = chance.normal(0, 0.6, (prompts, 1)) + chance.normal(0, 0.8, (prompts, 2))
    worth = (chance.random(better.shape) < 1 / (1 + np.exp(-2 * better))).astype(float).ravel()
    worth[chance.random(len(worth)) < 0.15] = 0.5
    measured = (better + chance.normal(0, 0.7, better.shape)).ravel()
    order = np.argsort(measured)
    chosen, rest = order[: asked // 2], order[asked // 2 :]
    drawn = chance.choice(rest, asked // 2, replace=False)
    judged = {int(i): float(worth[i]) for i in (*chosen, *drawn)}
    parts = ["chosen" if i in set(chosen) else "drawn" for i in range(len(worth))]
    values = expanded([(part, judged.get(i)) for i, part in enumerate(parts)])
    clusters = [str(i // 2) for i in range(len(worth))]
    return values, float(worth[chosen].mean()), float(np.mean(list(judged.values()))), clusters


def test_the_chosen_mislead_the_estimate_does_not_and_its_interval_is_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A candidate as good as the baseline, 100 prompts, 40 of 200 items reviewed, 300 times."""
    monkeypatch.setattr("eval.statistics.paired._exchange_p", lambda *_: 1.0)
    chance = np.random.default_rng(5)
    estimates, chosen, judged, low, high = [], [], [], 0, 0
    for _ in range(300):
        values, worst, everything, clusters = reviewed(chance, 100, 40)
        change = paired_difference([0.5] * len(values), values, clusters, resamples=999)
        estimates.append(0.5 + change.difference)
        chosen.append(worst)
        judged.append(everything)
        low += change.low > 0
        high += change.high < 0
    assert abs(np.mean(estimates) - 0.5) < 3 * np.std(estimates) / np.sqrt(300)
    assert (
        np.mean(chosen) < 0.2 and np.mean(judged) < 0.4
    )  # what the worst say, and what all labels say, is not it
    # 2.5% each, 7.5 of 300; its standard deviation is 2.7
    assert low <= 16 and high <= 16
