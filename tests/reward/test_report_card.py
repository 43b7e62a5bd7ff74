"""Every figure of the report card against arithmetic in view, a closed form or another way to compute it."""

import json
import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest, pearsonr, spearmanr

from accord.page.words import FIGURES
from accord.records import Message, Ranking, Response
from reward.card.calibration import calibration, fit_temperature
from reward.card.ensemble import auroc
from reward.card.people import best_of
from reward.card.previous import sign_flip_p_value
from reward.card.prompts import Prompts
from reward.report_card import ReportCard, report_card
from reward.rows import ScoredComparison, ScoredPair


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def says(text: str) -> list[Message]:
    return [Message(role="assistant", content=text)]


def pair(
    prompt: int, chosen: float | list[float], rejected: float | list[float] = 0.0, tokens: tuple[int, int] = (10, 10),
    **more: Any,
) -> ScoredPair:  # fmt: skip
    """A pair with these scores; its answers are named by their scores and lengths."""
    one, other = (score if isinstance(score, list) else [score] for score in (chosen, rejected))
    return ScoredPair(
        prompt=user(f"Question {prompt}"), chosen=says(f"Good {one} {tokens}"), rejected=says(f"Bad {other} {tokens}"),
        chosen_scores=one, rejected_scores=other, chosen_tokens=tokens[0], rejected_tokens=tokens[1], **more,
    )  # fmt: skip


def ranked(
    number: int, scores: list[float], *ranks: list[int], prompt: int | None = None, **more: Any
) -> ScoredComparison:
    return ScoredComparison(
        id=f"c-{number}", prompt=user(f"Question {number if prompt is None else prompt}"),
        responses=[Response(text=f"Answer {i}", run="r", seed=i) for i in range(len(scores))],
        rankings=[Ranking(annotator=f"ann-{i}", ranks=each) for i, each in enumerate(ranks)],
        scores=[[score] for score in scores], tokens=[10] * len(scores), **more,
    )  # fmt: skip


def card_of(
    pairs: list[ScoredPair], comparisons: tuple[ScoredComparison, ...] = (), **more: Any
) -> ReportCard:
    return report_card(pairs, comparisons, more.pop("longer_chosen_share", 0.6), **more)


def prompts_of(count: int, each: int = 1) -> Prompts:
    return Prompts([user(str(i)) for i in range(count) for _ in range(each)])


# --- accuracy and its interval


def test_equal_scores_count_half_and_few_prompts_have_no_interval() -> None:
    card = card_of([pair(0, 1), pair(1, 0), pair(2, -1), pair(3, 2)])
    assert card.accuracy.value == (1 + 0.5 + 0 + 1) / 4
    assert card.accuracy.low is None and card.accuracy.high is None
    assert card.mean_margin == (1 + 0 - 1 + 2) / 4
    metrics = card.metrics()
    assert metrics["heldout_pairs"] == 4 and "heldout_accuracy_low" not in metrics
    assert None not in metrics.values()


def test_a_score_is_the_mean_over_heads() -> None:
    card = card_of([pair(0, [0.0, 4.0], [1.0, 1.0]), pair(1, [0.0, 1.0], [1.0, 1.0])])
    assert card.mean_margin == pytest.approx((1 - 0.5) / 2) and card.accuracy.value == 0.5


def test_the_interval_knows_that_pairs_repeat_prompts() -> None:
    """Four copies of each pair say nothing new: the interval stays, and is twice that of independent pairs."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0.7, 1, 60)
    once = card_of([pair(i, s) for i, s in enumerate(scores)]).accuracy
    copied = card_of([pair(i, s) for i, s in enumerate(scores) for _ in range(4)]).accuracy
    independent = card_of([pair(4 * i + j, s) for i, s in enumerate(scores) for j in range(4)]).accuracy
    assert copied.value == once.value == independent.value
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
    assert (copied.high - copied.low) / (independent.high - independent.low) == pytest.approx(2, rel=0.15)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """80 prompts of four pairs, whose chance to be right differs by prompt and is 0.7 on average."""
    rng, repeats, covered = np.random.default_rng(1), 300, 0
    prompts = prompts_of(80, 4)
    for _ in range(repeats):
        chance = np.repeat(rng.beta(2.1, 0.9, 80), 4)
        found = prompts.share((rng.random(320) < chance).astype(float))
        covered += found.low <= 0.7 <= found.high
    # 95% with a standard error of 1.3 points
    assert 0.91 <= covered / repeats <= 0.985


def test_all_right_is_not_certain() -> None:
    card = card_of([pair(i // 2, 1) for i in range(40)])
    assert card.accuracy.value == card.accuracy.high == 1
    # Wilson's lower end for n right of n is n / (n + z^2), here with 20 prompts
    assert card.accuracy.low == pytest.approx(20 / (20 + 1.959964**2), abs=1e-6)
    assert card.temperature_at_limit and card.mistakes == []


def test_the_order_of_rows_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    rows = [
        pair(int(i) // 3, float(s), 0.0, (int(a), int(b)), weight=float(w), id=str(i))
        for i, (s, a, b, w) in enumerate(
            zip(rng.normal(0.5, 1, 90), *rng.integers(1, 50, (2, 90)), rng.random(90), strict=True)
        )
    ]
    shuffled = [rows[i] for i in rng.permutation(90)]
    one, other = card_of(rows).metrics(), card_of(shuffled).metrics()
    assert one == pytest.approx(other)


# --- slices


def test_slices_by_length_strength_and_column() -> None:
    rows = []
    for i in range(60):
        tokens = ((10, 20), (100, 91), (20, 10))[i % 3]
        right = (True, i % 2 == 0, False)[i % 3]
        rows.append(
            pair(i, 1 if right else -1, tokens=tokens, margin=float(i % 3), topic=("a", "b")[i >= 25])
        )
    card = card_of(rows)
    found = {(part.by, part.name): part for part in card.slices}
    assert found["length", "chosen is shorter"].accuracy.value == 1
    # 91 is within 10% of 100, and half of those are right
    assert found["length", "about equally long"].accuracy.value == 0.5
    assert found["length", "chosen is longer"].accuracy.value == 0
    assert [part.name for part in card.slices if part.by == "margin"] == ["0", "1", "2"]
    assert found["margin", "1"].accuracy == found["length", "about equally long"].accuracy
    assert (found["topic", "a"].pairs, found["topic", "b"].pairs) == (25, 35)
    assert found["topic", "a"].accuracy.value == pytest.approx(
        np.mean([r.chosen_scores[0] > 0 for r in rows[:25]])
    )


def test_small_slices_say_nothing() -> None:
    rows = [pair(i, 1, topic="rare" if i < 19 else "common") for i in range(60)]
    rows += [pair(100 + i % 9, 1, topic="nine prompts") for i in range(45)]
    found = {part.name: part for part in card_of(rows).slices if part.by == "topic"}
    assert found["common"].accuracy is not None
    assert found["rare"].accuracy is None and found["rare"].pairs == 19
    assert found["nine prompts"].accuracy is None and found["nine prompts"].prompts == 9


def test_weights_are_used_without_margins_and_rare_values_are_pooled() -> None:
    rows = [
        pair(i, 1, weight=i / 90, agreement=1.0 if i < 30 else 0.75, area=f"area {i % 45:02}")
        for i in range(90)
    ]
    card = card_of(rows, slices=["area"])
    assert [part.pairs for part in card.slices if part.by == "weight"] == [30, 30, 30]
    assert {p.name: p.pairs for p in card.slices if p.by == "agreement"} == {"unanimous": 30, "contested": 60}
    areas = [part for part in card.slices if part.by == "area"]
    assert len(areas) == 21 and areas[-1].name == "all other values" and areas[-1].pairs == 50


def test_one_annotator_is_not_unanimous() -> None:
    rows = [pair(i, 1, agreement=1.0, annotators=1 if i < 50 else 3) for i in range(90)]
    found = {part.name: part.pairs for part in card_of(rows).slices if part.by == "agreement"}
    assert found == {"unanimous": 40, "one annotator": 50}


def test_annotators_by_hand() -> None:
    # scores put answer 0 over 1 over 2; the first annotator agrees on 3 of 3, the second ties two and reverses two
    comparisons = tuple(ranked(i, [3.0, 2.0, 1.0], [1, 2, 3], [2, 2, 1]) for i in range(20))
    first, second = card_of([pair(0, 1)], comparisons).annotators
    assert (first.name, first.pairs, first.accuracy.value) == ("ann-0", 60, 1)
    assert (second.name, second.pairs, second.accuracy.value) == ("ann-1", 40, 0)


# --- calibration


def test_calibration_of_six_pairs_by_hand() -> None:
    """Odds of 3, 3, 3, 9, 9, 1/9 to 1: sure of 75%, 75%, 75%, 90%, 90% and, wrongly, 90%; one bin of six."""
    scaled = np.log([3, 3, 3, 9, 9, 1 / 9])
    found = calibration(scaled, (scaled > 0).astype(float), prompts_of(6))
    (only,) = found.bins
    assert only.confidence == pytest.approx((3 * 0.75 + 3 * 0.9) / 6)
    assert only.accuracy.value == pytest.approx(5 / 6)
    assert found.ece == pytest.approx(abs(0.825 - 5 / 6))
    assert found.overconfidence.value == pytest.approx(0.825 - 5 / 6)
    assert found.brier.value == pytest.approx((3 * 0.25**2 + 2 * 0.1**2 + 0.9**2) / 6)
    assert found.log_loss.value == pytest.approx(
        -(3 * math.log(0.75) + 2 * math.log(0.9) + math.log(0.1)) / 6
    )


def test_bins_hold_equally_many_and_never_split_equal_confidences() -> None:
    rng = np.random.default_rng(0)
    scaled = rng.normal(0, 2, 200)
    found = calibration(np.abs(scaled), np.ones(200), prompts_of(200))
    assert [each.pairs for each in found.bins] == [20] * 10
    confidence = np.sort(expit(np.abs(scaled)))
    assert [each.confidence for each in found.bins] == pytest.approx(confidence.reshape(10, 20).mean(axis=1))
    # all are right, so every bin is less sure than right
    assert found.ece == pytest.approx((1 - confidence).mean())
    scaled[:150] = 1.0
    assert max(each.pairs for each in calibration(scaled, np.ones(200), prompts_of(200)).bins) >= 150


def test_the_error_by_chance_is_what_calibrated_scores_show() -> None:
    rng = np.random.default_rng(3)
    scaled, prompts = rng.normal(0, 1.5, 300), prompts_of(300)
    sides = [np.where(rng.random(300) < expit(scaled), 1, -1) for _ in range(200)]
    found = [calibration(scaled * side, ((scaled * side) > 0).astype(float), prompts) for side in sides[:40]]
    assert np.mean([each.ece for each in found]) == pytest.approx(found[0].ece_by_chance, rel=0.15)


def test_the_temperature_is_the_likeliest_on_a_grid() -> None:
    differences = np.random.default_rng(4).normal(1, 2, 80)
    grid = np.exp(np.linspace(-3, 3, 6001))
    losses = np.logaddexp(0, -differences / grid[:, None]).mean(axis=1)
    assert fit_temperature(differences) == pytest.approx(grid[losses.argmin()], rel=2e-3)
    assert fit_temperature(7 * differences) == pytest.approx(7 * fit_temperature(differences), rel=1e-5)
    assert fit_temperature(np.zeros(5)) == 1


def planted(temperature: float, prompts: int, per_prompt: int, seed: int = 0) -> list[ScoredPair]:
    """Pairs whose scores are true log odds, times the temperature."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(prompts):
        for odds in rng.normal(0, 1.5, per_prompt):
            side = 1 if rng.random() < expit(odds) else -1
            rows.append(pair(i, float(temperature * odds * side)))
    return rows


def test_a_planted_temperature_is_found_and_repairs_calibration() -> None:
    card = card_of(planted(3, 1000, 4))
    assert card.temperature == pytest.approx(3, rel=0.1) and not card.temperature_at_limit
    assert card.calibration.ece > 0.1 and card.calibration.overconfidence.low > 0
    assert card.calibrated.ece < 0.05 and card.calibrated.ece < 2 * card.calibrated.ece_by_chance
    assert card.calibrated.overconfidence.low < 0 < card.calibrated.overconfidence.high
    assert card.calibrated.log_loss.value < card.calibration.log_loss.value
    # the accuracy does not change
    assert sum(b.pairs * b.accuracy.value for b in card.calibrated.bins) == pytest.approx(
        4000 * card.accuracy.value
    )


def test_a_temperature_is_fitted_on_other_prompts() -> None:
    """Scores without any information: fitted on the same pairs, no temperature could be worse than ln 2."""
    rng = np.random.default_rng(5)
    worse = 0
    for _ in range(20):
        card = card_of([pair(i, float(s)) for i, s in enumerate(rng.normal(0.35, 1, 12))])
        assert card.calibrated is not None
        worse += card.calibrated.log_loss.value > math.log(2)
    assert worse > 2
    assert card_of([pair(i, 1.0) for i in range(9)]).calibrated is None


# --- length and place


def test_baselines_by_hand() -> None:
    rows = [
        pair(0, 1, tokens=(9, 5), shown_first="chosen"), pair(1, 1, tokens=(5, 9), shown_first="rejected"),
        pair(2, -1, tokens=(9, 5), shown_first="chosen"), pair(3, 1, tokens=(7, 7)),
    ]  # fmt: skip
    found = card_of(rows, longer_chosen_share=0.3).baselines
    assert (found.longer.value, found.shorter.value) == (2.5 / 4, 1.5 / 4)
    assert found.length_only_prefers == "shorter" and found.length_only == found.shorter
    assert found.above_length_only.value == 3 / 4 - 1.5 / 4
    assert found.first.value == 2 / 3 and found.first.items == 3
    assert card_of(rows, longer_chosen_share=0.7).baselines.length_only_prefers == "longer"
    assert card_of([pair(0, 1)]).baselines.first is None


def test_the_difference_from_length_is_paired() -> None:
    """A model that is the rule, but for six pairs, differs from it with a narrow interval."""
    rng = np.random.default_rng(6)
    rows = []
    for i in range(100):
        longer = rng.random() < 0.5
        right = longer or i < 12
        rows.append(pair(i, 1 if right else -1, tokens=(9, 5) if longer else (5, 9)))
    card = card_of(rows)
    gap = card.baselines.above_length_only
    assert gap.value == pytest.approx(card.accuracy.value - card.baselines.longer.value) and gap.low > 0
    assert gap.high - gap.low < 0.7 * (card.accuracy.high - card.accuracy.low)


def test_correlations_with_length() -> None:
    rng = np.random.default_rng(7)
    rows, scores, lengths = [], [], []
    for i in range(40):
        tokens = rng.integers(3, 200, 2)
        score = rng.normal(0, 1, 2) + 0.8 * np.log(tokens) + 3 * (i % 2)
        rows.append(pair(i, float(score[0]), float(score[1]), (int(tokens[0]), int(tokens[1]))))
        scores.append(score)
        lengths.append(np.log(tokens))
    found = card_of(rows).length
    score, length = np.array(scores), np.array(lengths)
    assert found.answers == 80
    assert found.pearson.value == pytest.approx(pearsonr(score.ravel(), length.ravel()).statistic)
    assert found.spearman.value == pytest.approx(spearmanr(score.ravel(), length.ravel()).statistic)
    inner = [(x - x.mean(axis=1, keepdims=True)).ravel() for x in (score, length)]
    assert found.pearson_within_prompts.value == pytest.approx(pearsonr(*inner).statistic)
    assert found.spearman_within_prompts.value == pytest.approx(spearmanr(*inner).statistic)
    assert (
        found.pearson_within_prompts.low
        < found.pearson_within_prompts.value
        < found.pearson_within_prompts.high
    )


def test_an_answer_in_two_pairs_counts_once_for_its_length() -> None:
    rows = [
        ScoredPair(
            prompt=user("q"), chosen=says(one), rejected=says(other), chosen_scores=[s], rejected_scores=[t],
            chosen_tokens=a, rejected_tokens=b,
        )
        for one, s, a, other, t, b in (("x", 3, 9, "y", 2, 5), ("x", 3, 9, "z", 1, 4), ("y", 2, 5, "z", 1, 4))
    ]  # fmt: skip
    assert card_of(rows).length.answers == 3


def test_who_prefers_the_longer_by_hand() -> None:
    # the model prefers the longer in the first, third and fourth, the annotators in the first and second
    rows = [
        pair(0, 1, tokens=(9, 5)), pair(1, -1, tokens=(9, 5)), pair(2, -1, tokens=(5, 9)), pair(3, -1, tokens=(5, 9)),
        pair(4, 1, tokens=(6, 6)),
    ]  # fmt: skip
    found = card_of(rows).length
    assert found.model_prefers_longer.value == 3 / 4 and found.annotators_prefer_longer.value == 2 / 4
    assert found.excess.value == 1 / 4 and found.excess.items == 4
    assert card_of([pair(0, 1)]).length.excess is None


# --- the ensemble


def test_auroc_is_the_share_of_pairs_of_a_wrong_and_a_right_one() -> None:
    rng = np.random.default_rng(8)
    values, wrong = rng.integers(0, 12, 70).astype(float), rng.random(70) < 0.4
    brute = np.mean([(w > r) + (w == r) / 2 for w in values[wrong] for r in values[~wrong]])
    found = auroc(values, wrong, np.arange(70), prompts_of(70))
    assert found.value == pytest.approx(brute) and found.low < brute < found.high
    assert auroc(values, np.ones(70, bool), np.arange(70), prompts_of(70)) is None


def test_disagreement_that_predicts_mistakes() -> None:
    rng = np.random.default_rng(9)
    rows = []
    for i in range(300):
        noise = 2.0 if i % 3 == 0 else 0.2
        heads = 1 + rng.normal(0, noise, 4) - (1.5 if i % 3 == 0 else 0)
        rows.append(pair(i, heads.tolist(), [0.0] * 4))
    found = card_of(rows).ensemble
    differences = np.array([row.chosen_scores for row in rows])
    deviation, wrong = differences.std(axis=1, ddof=1), differences.mean(axis=1) < 0
    brute = np.mean([w > r for w in deviation[wrong] for r in deviation[~wrong]])
    assert found.auroc.value == pytest.approx(brute) and found.auroc.low > 0.5
    third = np.argsort(np.argsort(deviation)) // 100
    assert [part.accuracy.value for part in found.thirds] == pytest.approx(
        [1 - wrong[third == i].mean() for i in range(3)]
    )
    assert card_of(rows).metrics()["disagreement_auroc"] == found.auroc.value
    single = card_of([pair(0, 1)])
    assert single.ensemble is None and "disagreement_auroc" not in single.metrics()


# --- what annotators say


def voted(number: int, score: float, *votes: int) -> tuple[ScoredPair, ScoredComparison]:
    """A pair and its comparison, where annotators vote for the chosen answer (1), the other (-1) or a tie."""
    comparison = ranked(number, [score, 0.0], *([[1, 2], [1, 1], [2, 1]][1 - vote] for vote in votes))
    return pair(number, score, id=f"c-{number}:0>1"), comparison


def test_agreement_of_annotators_by_hand() -> None:
    # three for and one against, the model for; two against each other, the model against; one alone and a tie
    rows = [voted(0, 1.0, 1, 1, 1, -1), voted(1, -1.0, 1, -1), voted(2, 1.0, 1, 0)]
    card = card_of([row for row, _ in rows], tuple(comparison for _, comparison in rows))
    found = card.ceiling
    assert found.two_annotators.items == 2
    # of 6 couples in the first pair 3 agree, of the one in the second none
    assert found.two_annotators.value == (3 / 6 + 0) / 2
    assert found.model_with_annotator.value == (3 / 4 + 1 / 2) / 2
    # each of the three for meets two for and one against, the one against meets three for
    assert found.annotator_with_others.value == (3 / 4 + 0) / 2
    # the model agrees with the others whoever is left out in the first, and with one of two in the second
    assert found.model_with_others.value == (1 + 1 / 2) / 2
    assert found.model_above_annotator.value == pytest.approx(0.75 - 0.375)
    assert card.metrics()["annotator_ceiling"] == found.annotator_with_others.value
    without = card_of([row for row, _ in rows])
    assert without.ceiling is None and without.best_of_n is None and without.annotators == []
    assert not any(key.startswith(("annotator_", "best_of_n", "previous")) for key in without.metrics())


def test_agreement_of_independent_annotators_is_the_closed_form() -> None:
    """Right with p = 0.8 each: two agree with p^2 + (1 - p)^2, and a model that is always right agrees with p."""
    rng = np.random.default_rng(10)
    rows = [voted(i, 1.0, *rng.choice([1, -1], 5, p=[0.8, 0.2]).tolist()) for i in range(1500)]
    found = card_of([row for row, _ in rows], tuple(comparison for _, comparison in rows)).ceiling
    assert found.two_annotators.low <= 0.68 <= found.two_annotators.high
    assert found.model_with_annotator.low <= 0.8 <= found.model_with_annotator.high
    assert found.model_above_annotator.low > 0


def test_probes_and_unknown_ids_count_for_nothing() -> None:
    row, comparison = voted(0, 1.0, 1, 1)
    gold = comparison.model_copy(update={"gold_ranks": [1, 2]})
    assert card_of([row], (gold,)).ceiling is None
    strange = [row.model_copy(update={"id": each}) for each in (None, "c-0", "c-0:0>7", "c-0:a>b", "d:0>1")]
    assert card_of(strange, (comparison,)).ceiling is None


@pytest.mark.parametrize("k", [2, 3, 5, 6])
@pytest.mark.parametrize("tied", [False, True])
def test_best_of_n_is_the_mean_over_all_subsets(k: int, tied: bool) -> None:
    rng = np.random.default_rng(k)
    scores = rng.integers(0, 3, k).astype(float) if tied else rng.normal(size=k)
    values = rng.normal(size=k)

    def picked(subset: tuple[int, ...]) -> float:
        best = max(scores[i] for i in subset)
        return float(np.mean([values[i] for i in subset if scores[i] == best]))

    for n in range(1, k + 1):
        brute = np.mean([picked(subset) for subset in combinations(range(k), n)])
        assert best_of(scores, values, n) == pytest.approx(brute)


def test_best_of_n_by_hand() -> None:
    # judged 1, 1/2, 0 by one annotator and 1/2, 1, 0 by the other, so 3/4, 3/4 and 0; the score puts the last one first
    comparisons = tuple(ranked(i, [2.0, 1.0, 3.0], [1, 2, 3], [2, 1, 3]) for i in range(12))
    odd = ranked(99, [1.0, 2.0], [1, 2])
    found = card_of([pair(0, 1)], (*comparisons, odd)).best_of_n
    assert (found.comparisons, found.left_out) == (12, 1)
    one, two, three = found.curve
    assert one.judgement.value == pytest.approx(0.5) and one.kl_nats == 0
    # subsets of two: {0, 1} picks 0 (3/4), {0, 2} and {1, 2} pick 2 (0)
    assert two.judgement.value == pytest.approx(0.25) and two.kl_nats == pytest.approx(math.log(2) - 1 / 2)
    assert three.judgement.value == 0 and three.kl_nats == pytest.approx(math.log(3) - 2 / 3)
    assert [each.ceiling.value for each in found.curve] == pytest.approx([0.5, 0.75, 0.75])
    assert [each.score.value for each in found.curve] == pytest.approx([2, (2 + 3 + 3) / 3, 3])
    assert found.gain.value == pytest.approx(-0.5) and found.last_step.value == pytest.approx(-0.25)


# --- mistakes and the earlier model


def test_the_worst_mistakes_come_first() -> None:
    rows = [pair(i, float(i - 12), id=f"c-{i}:0>1") for i in range(20)]
    comparison = ranked(0, [-12.0, 0.0], [1, 2], [2, 1], [1, 1], [1, 2])
    card = card_of(rows, (comparison,))
    assert [each.row for each in card.mistakes] == list(range(10))
    assert card.mistakes[0].votes == (2, 1, 1) and card.mistakes[1].votes is None
    assert card.mistakes[9].confidence == pytest.approx(1 / (1 + math.exp(-3)))
    assert len(card_of(rows[8:]).mistakes) == 4


def test_the_earlier_model_on_the_same_pairs() -> None:
    def both(i: int, now: float, then: float | None) -> ScoredPair:
        return pair(i, now, previous_chosen_score=then, previous_rejected_score=None if then is None else 0.0)

    rows = [both(i, 1, -1) for i in range(9)] + [both(9 + i, -1, 1) for i in range(2)]
    rows += [both(11 + i, 1, 1) for i in range(10)] + [both(21 + i, -1, None) for i in range(5)]
    found = card_of(rows, previous="run:reward-1").previous
    assert (found.name, found.pairs, found.left_out) == ("run:reward-1", 21, 5)
    assert (found.accuracy.value, found.previous_accuracy.value) == (19 / 21, 12 / 21)
    assert found.difference.value == pytest.approx(7 / 21)
    assert found.mcnemar_p_value == pytest.approx(binomtest(9, 11).pvalue)
    # with one pair a prompt, flipping prompts is the same test
    assert found.p_value == pytest.approx(binomtest(9, 11).pvalue)
    assert card_of(rows).previous is None
    none = card_of(rows[-5:], previous="x")
    assert none.previous.pairs == 0 and none.previous.difference is None
    assert none.metrics()["previous_pairs"] == 0 and "previous_mcnemar_p" not in none.metrics()


def test_flipping_whole_prompts_by_enumeration() -> None:
    values = np.array([3.0, -1, 2, 0.5, 0, 1])
    sums = [
        sum(v * (1 if bits >> i & 1 else -1) for i, v in enumerate(values))
        for bits in range(2 ** len(values))
    ]
    brute = np.mean([abs(each) >= abs(values.sum()) - 1e-9 for each in sums])
    assert sign_flip_p_value(values) == pytest.approx(brute)
    assert sign_flip_p_value(np.zeros(5)) == 1


def test_repeated_prompts_make_the_difference_less_certain() -> None:
    rng = np.random.default_rng(11)
    gained = rng.random(24) < 0.7
    rows = [
        pair(i, 1 if up else -1, previous_chosen_score=-1 if up else 1, previous_rejected_score=0)
        for i, up in enumerate(gained) for _ in range(4)
    ]  # fmt: skip
    found = card_of(rows, previous="x").previous
    assert found.p_value > 5 * found.mcnemar_p_value
    once = card_of(rows[::4], previous="x").previous
    assert found.p_value == pytest.approx(once.p_value, abs=0.02)


# --- the whole


def test_the_card_is_json_and_comes_back() -> None:
    rows = [voted(i, float(s), 1, 1, -1) for i, s in enumerate(np.random.default_rng(12).normal(0.5, 1, 30))]
    card = card_of([row for row, _ in rows], tuple(c for _, c in rows), previous="x")
    text = card.model_dump_json(indent=2)
    assert ReportCard.model_validate_json(text) == card
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(json.dumps(card.metrics(), allow_nan=False)) == card.metrics()


def test_every_flat_figure_has_a_plain_name() -> None:
    """Ensembles, annotators, an earlier model and enough prompts for intervals, so that no figure is missing."""
    rows = [voted(i, float(s), 1, 1, -1) for i, s in enumerate(np.random.default_rng(13).normal(0.5, 1, 30))]
    pairs = [
        row.model_copy(
            update={
                "chosen_scores": [row.chosen_scores[0], 0.1 * i], "rejected_scores": [0.0, 1.0],
                "chosen_tokens": 10 + i % 7, "shown_first": "chosen", "previous_chosen_score": 1.0,
                "previous_rejected_score": float(i % 3),
            }
        )
        for i, (row, _) in enumerate(rows)
    ]  # fmt: skip
    found = card_of(pairs, tuple(comparison for _, comparison in rows), previous="x").metrics()
    assert len(found) == 45  # all of them
    assert {*found, "prompts", "contradictory_pairs"} <= FIGURES.keys()
