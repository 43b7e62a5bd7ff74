"""The loss of judgements against independent NumPy arithmetic, and its gradients against differences."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from accord.chat.tokens import answer
from accord.records import Comparison, Message, Preference, Ranking, Response
from feedback.belief.reliability import AnnotatorReliability, Reliability
from reward.choices import (
    MOST_ANSWERS,
    choices_from_pairs,
    choices_from_rankings,
    contradictory_pairs,
)
from reward.length import without_length
from reward.loss import Choices, centering_penalty, choice_losses, choice_margins

NO_TIES = -200.0
PROMPT = [Message(role="user", content="Which?")]


def annotator(beta: float = 1.0, position: float = 0.0, length: float = 0.0, tie: float = NO_TIES) -> Any:
    return AnnotatorReliability(beta, 0.1, position, 0.1, length, 0.1, tie, 1)


def comparison(
    texts: list[str], *rankings: tuple[str, list[int]], order: list[int] | None = None
) -> Comparison:
    return Comparison(
        id="c", prompt=PROMPT, display_order=order,
        responses=[Response(text=text, run="sft-0", seed=i) for i, text in enumerate(texts)],
        rankings=[Ranking(annotator=who, ranks=ranks) for who, ranks in rankings],
    )  # fmt: skip


def choices_of(group: Any) -> Choices:
    return Choices(
        *(torch.tensor(part, dtype=torch.float64) for part in (
            group.chosen, group.chosen_offsets, group.alternatives, group.offsets,
        ))
    )  # fmt: skip


def loss_of_rankings(
    found: Comparison, annotators: dict[str, Any], scores: Any, **options: Any
) -> torch.Tensor:
    [group] = choices_from_rankings([found], [found], Reliability(annotators, 0.8, {}, True))
    return choice_losses(torch.as_tensor(scores, dtype=torch.float64)[:, None], choices_of(group)).sum()


# --- rankings


def plackett_luce(scores: list[float], ranks: list[int]) -> float:
    """The product over places of exp(s of the one placed) / sum of exp(s) over those that are left."""
    order = sorted(range(len(scores)), key=lambda i: ranks[i])
    likelihood = 1.0
    for place, i in enumerate(order):
        likelihood *= math.exp(scores[i]) / sum(math.exp(scores[j]) for j in order[place:])
    return -math.log(likelihood)


def davidson_luce(scores: list[float], ranks: list[int], tie: float) -> float:
    """Firth, Kosmidis and Turner (2019), equation by equation: a set's strength is its members' geometric mean times
    delta of its size, here exp(tie (size - 1)); sizes up to the largest that was observed."""
    strengths = [math.exp(s) for s in scores]

    def weight(subset: tuple[int, ...]) -> float:
        return math.exp(tie * (len(subset) - 1)) * math.prod(strengths[i] for i in subset) ** (
            1 / len(subset)
        )

    most = max(ranks.count(rank) for rank in ranks)
    left, nats = set(range(len(scores))), 0.0
    for rank in sorted(set(ranks)):
        best = tuple(i for i in sorted(left) if ranks[i] == rank)
        total = sum(
            weight(subset)
            for size in range(1, most + 1)
            for subset in itertools.combinations(sorted(left), size)
        )
        if len(left) > 1:
            nats -= math.log(weight(best) / total)
        left -= set(best)
    return nats


@pytest.mark.parametrize("k", [2, 3, 5])
def test_a_ranking_without_ties_is_plackett_luce(k: int) -> None:
    generator = np.random.default_rng(k)
    for _ in range(5):
        scores, ranks = generator.normal(size=k).tolist(), (generator.permutation(k) + 1).tolist()
        found = comparison([f"{i}" * 3 for i in range(k)], ("ann", ranks))
        ours = loss_of_rankings(found, {"ann": annotator()}, scores)
        assert float(ours) == pytest.approx(plackett_luce(scores, ranks), abs=1e-9)


def test_a_ranking_of_two_is_bradley_terry() -> None:
    found = comparison(["aa", "bb"], ("ann", [2, 1]))
    ours = loss_of_rankings(found, {"ann": annotator()}, [0.3, 1.1])
    assert float(ours) == pytest.approx(math.log1p(math.exp(-(1.1 - 0.3))), abs=1e-9)
    [pair] = choices_from_pairs([Preference(prompt=PROMPT, chosen=answer("bb"), rejected=answer("aa"))])
    of_pair = choice_losses(torch.tensor([[1.1], [0.3]], dtype=torch.float64), choices_of(pair))
    assert float(of_pair) == pytest.approx(float(ours), abs=1e-9)


@pytest.mark.parametrize("ranks", [[1, 1], [1, 1, 2], [2, 1, 2], [1, 1, 1], [1, 2, 2, 3], [2, 1, 1, 2]])
def test_a_ranking_with_ties_is_davidson_luce(ranks: list[int]) -> None:
    scores = np.random.default_rng(1).normal(size=len(ranks)).tolist()
    found = comparison([f"{i}" * 3 for i in range(len(ranks))], ("ann", ranks))
    ours = loss_of_rankings(found, {"ann": annotator(tie=-0.7)}, scores)
    assert float(ours) == pytest.approx(davidson_luce(scores, ranks, -0.7), abs=1e-9)


def test_a_tie_of_two_is_davidson() -> None:
    """Davidson (1970): P(tie) = nu sqrt(p q) / (p + q + nu sqrt(p q)), with p = e^0.4, q = e^-0.1, nu = e^-0.5."""
    p, q, nu = math.exp(0.4), math.exp(-0.1), math.exp(-0.5)
    found = comparison(["aa", "bb"], ("ann", [1, 1]))
    ours = loss_of_rankings(found, {"ann": annotator(tie=-0.5)}, [0.4, -0.1])
    assert math.exp(-float(ours)) == pytest.approx(
        nu * math.sqrt(p * q) / (p + q + nu * math.sqrt(p * q)), abs=1e-9
    )


def test_annotators_rank_by_their_slopes_and_biases() -> None:
    """b ranks by twice the score, c against it, d by half of it and by the place where he saw an answer."""
    scores = [0.5, -0.2, 0.1]
    found = comparison(
        ["aaa", "bbb", "ccc"], ("b", [1, 3, 2]), ("c", [1, 3, 2]), ("d", [1, 3, 2]), order=[1, 0, 2]
    )
    early = [0.5, 1.0, 0.0]
    by_hand = [
        plackett_luce([2 * s for s in scores], [1, 3, 2]),
        plackett_luce([-s for s in scores], [1, 3, 2]),
        plackett_luce([0.5 * s + 1.5 * e for s, e in zip(scores, early, strict=True)], [1, 3, 2]),
    ]
    people = {"b": annotator(2.0), "c": annotator(-1.0), "d": annotator(0.5, position=1.5)}
    assert float(loss_of_rankings(found, people, scores)) == pytest.approx(sum(by_hand), abs=1e-9)


@pytest.mark.parametrize("ranks", [[2, 1, 3], [1, 1, 2]])
def test_gradients(ranks: list[int]) -> None:
    found = comparison(["aaa", "bb", "c"], ("ann", ranks))
    people = {"ann": annotator(1.3, 0.2, 0.4, -0.5)}
    scores = torch.tensor([0.3, -0.4, 0.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: loss_of_rankings(found, people, s), [scores])


# --- pairs


def pair(chosen: str, rejected: str, weight: float | None = None, **columns: Any) -> Preference:
    return Preference(
        prompt=PROMPT, chosen=answer(chosen), rejected=answer(rejected), weight=weight, **columns
    )


def test_a_pair_is_weighted_bradley_terry_with_its_margin() -> None:
    [group] = choices_from_pairs([pair("a", "b", 0.6, margin=2.0)], margin_coefficient=0.25)
    scores = torch.tensor([[1.2, 0.1], [0.4, 0.3]], dtype=torch.float64)  # two heads
    nats = choice_losses(scores, choices_of(group))[0]
    for head, difference in enumerate((0.8, -0.2)):
        assert float(nats[head]) == pytest.approx(math.log1p(math.exp(-(difference - 0.5))), abs=1e-12)
    assert group.weights.tolist() == [0.6]
    margins = choice_margins(scores, choices_of(group))
    torch.testing.assert_close(margins[0], torch.tensor([0.3, -0.7], dtype=torch.float64))


def test_a_long_ranking_counts_as_its_independent_comparisons() -> None:
    """All pairs of a ranking of four are six and count as three; two annotators' word on one pair counts twice."""
    ranking = [pair(a, b) for a, b in itertools.combinations("abcd", 2)]
    [group] = choices_from_pairs(ranking)
    assert len(group.answers) == 4
    assert group.weights.sum() == pytest.approx(3)
    [twice] = choices_from_pairs([pair("a", "b"), pair("a", "b")])
    assert twice.weights.sum() == pytest.approx(2)
    [chain] = choices_from_pairs([pair("a", "b"), pair("b", "c")])
    assert chain.weights.sum() == pytest.approx(2)


def test_equal_answers_are_one_and_a_prompt_with_many_is_several_groups() -> None:
    rows = [pair("a", f"b{i}") for i in range(20)]
    groups = choices_from_pairs(rows)
    assert [len(group.answers) for group in groups] == [
        MOST_ANSWERS,
        MOST_ANSWERS,
        7,
    ]  # one and 7, 7 and 6 others
    assert sum(len(group.chosen) for group in groups) == 20
    assert len(choices_from_pairs([pair("a", "b"), pair("a", "b")])[0].answers) == 2


def test_heads_without_length_have_no_covariance_with_it() -> None:
    """Planted: states whose first half is worth, whose second half is log length, mixed; two heads that read both."""
    chance = torch.Generator().manual_seed(0)
    worth, length = (torch.randn(400, 1, generator=chance) for _ in range(2))
    mix = torch.randn(2, 12, generator=chance)
    states = torch.cat([worth, length], dim=1) @ mix + 0.1 * torch.randn(400, 12, generator=chance)
    prompts = torch.arange(100).repeat_interleave(4)
    states += torch.randn(100, 12, generator=chance)[
        prompts
    ]  # what prompts differ in says nothing of answers
    read = torch.linalg.pinv(mix)  # [12, 2]: worth and length
    heads = torch.stack([read @ torch.tensor([1.0, 0.7]), read @ torch.tensor([1.0, -0.3])])
    found = without_length(heads, states, length[:, 0], prompts)

    def within(values: torch.Tensor) -> torch.Tensor:
        return (values.view(100, 4) - values.view(100, 4).mean(dim=1, keepdim=True)).flatten()

    for head, before in zip(found, heads, strict=True):
        scores, old = within(states @ head), within(states @ before)
        follows = lambda values: float(torch.corrcoef(torch.stack([values, within(length[:, 0])]))[0, 1])  # noqa: E731
        assert abs(follows(old)) > 0.25
        assert abs(follows(scores)) < 1e-4
        assert float(torch.corrcoef(torch.stack([scores, within(worth[:, 0])]))[0, 1]) > 0.95
    assert torch.equal(without_length(heads, states, torch.ones(400), prompts), heads)


def test_contradictory_pairs_are_counted() -> None:
    assert contradictory_pairs([pair("a", "b"), pair("b", "a"), pair("a", "c"), pair("a", "b")]) == (3, 0)
    assert contradictory_pairs([pair("a", "b", 0.3), pair("b", "a", 0.3), pair("a", "c")]) == (2, 2)


def test_centering_is_the_squared_sum_of_two_rewards() -> None:
    scores = torch.tensor([[0.5, 1.0], [0.2, -1.0]])
    torch.testing.assert_close(centering_penalty(scores), torch.tensor([0.49, 0.0]))
