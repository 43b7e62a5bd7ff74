"""Figures of many comparisons by many annotators: what plain loops give, at a cost that grows with the rankings."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plain_agreement import Plain
from processor_time import growth

from accord.records import Comparison, Message, Ranking, Response
from accord.statistics import RESAMPLES, Bootstrap, Estimate, two_sided_poisson_binomial
from feedback.belief.agreement import measure_agreement
from feedback.belief.information import observed_information
from feedback.belief.likelihood import ComparisonBatch
from feedback.belief.preferences import pairwise_preferences
from feedback.belief.reliability import (
    AnnotatorReliability,
    Reliability,
    _gather,
    choices_given,
    fit_reliability,
    negative_log_posterior,
)
from feedback.belief.suspicion import Suspicion
from feedback.page.report import first_to_look_at, write_report


def simulate(
    comparisons: int, annotators: int, rankings: int = 3, sizes: tuple[int, ...] = (3,), seed: int = 0
) -> list[Comparison]:
    """Comparisons with everything in them that a figure looks at; each annotator is noisier than the one before."""
    rng = np.random.default_rng(seed)
    names = [f"ann-{number:03}" for number in range(annotators)]
    made = []
    for number in range(comparisons):
        k = sizes[number % len(sizes)]
        worth, lengths, order = rng.normal(size=k), rng.integers(5, 60, k), rng.permutation(k).tolist()
        who = rng.choice(annotators, min(annotators, rankings), replace=False)

        def ranked(who: np.ndarray, worth: np.ndarray = worth, k: int = k) -> list[Ranking]:
            given = []
            for each in who:
                likes = np.round(2 * (worth + rng.normal(0, 0.3 + 2 * each / annotators, k)))
                status = "submitted" if rng.random() < 0.95 else ("draft", "discarded")[int(rng.integers(2))]
                given.append(
                    Ranking(
                        annotator=names[each], ranks=[1 + int((likes > one).sum()) for one in likes],
                        seconds=float(rng.integers(3, 90)) if rng.random() < 0.8 else None, status=status,
                        adjudicates=rng.random() < 0.03,
                    )
                )  # fmt: skip
            return given

        columns: dict[str, object] = {}
        if number % 20 == 7:
            columns["gold_ranks"] = [1 + int((worth > one).sum()) for one in worth]
        if number % 3:
            columns["display_order"] = order
        one = Comparison(
            id=f"c-{number}", prompt=[Message(role="user", content=f"question {number - number % 7 % 2}")],
            responses=[Response(text=f"{i}".ljust(int(n), "x"), run="p", seed=i) for i, n in enumerate(lengths)],
            rankings=ranked(who), assigned_to=[names[each] for each in rng.choice(annotators, 2)], **columns,
        )  # fmt: skip
        made.append(one)
        if number % 9 == 4:
            again = {
                "id": f"again-{number}", "duplicate_of": one.id, "gold_ranks": None, "rankings": ranked(who),
                "responses": one.responses[::-1],
            }  # fmt: skip
            made.append(one.model_copy(update=again))
    return made


def close(found: Estimate | None, expected: Estimate | None) -> bool:
    if found is None or expected is None or None in (found.low, expected.low):
        return (found and found.items) == (expected and expected.items) and (
            found is None or expected is None or found.value == pytest.approx(expected.value)
        )
    values = [(each.value, each.low, each.high, each.items) for each in (found, expected)]
    return bool(values[0] == pytest.approx(values[1], abs=1e-9))


@pytest.mark.parametrize(
    ("comparisons", "annotators", "rankings", "sizes"),
    [(90, 4, 3, (2, 3, 4)), (70, 12, 2, (3,)), (6, 3, 3, (2,))],
)
def test_figures_are_those_of_plain_loops(
    comparisons: int, annotators: int, rankings: int, sizes: tuple[int, ...]
) -> None:
    made = simulate(comparisons, annotators, rankings, sizes)
    plain, found = Plain(made), measure_agreement(made)
    assert close(found.alpha_ranks, plain.alpha(ordinal=True))
    assert close(found.alpha_pairs, plain.alpha(ordinal=False))
    named = frozenset(each.annotator for each in found.warnings)
    if found.alpha_ranks_of_rest:
        assert close(found.alpha_ranks_of_rest, plain.alpha(True, named))
    w, chance = plain.kendall_w()
    assert close(found.kendall_w, w) and found.kendall_w_by_chance == pytest.approx(chance)
    names = sorted({r.annotator for each in made for r in each.rankings if not r.adjudicates})
    assert list(found.annotators) == names
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert close(found.kappa.get((one, other)), plain.kappa(one, other))
    firsts, lengths = [plain.first_position(name) for name in names], [plain.length(name) for name in names]
    first_p = plain.corrected([each and each[2] for each in firsts])
    length_p = plain.corrected([each and each[3] for each in lengths])
    for i, name in enumerate(names):
        each = found.annotators[name]
        assert each.submitted == len(plain.of[name]) and each.skipped == plain.skipped(name)
        assert each.discarded == sum(
            r.annotator == name and r.status == "discarded" for c in made for r in c.rankings
        )
        assert close(each.gold, plain.gold(name)) and close(each.with_others, plain.with_others(name))
        assert close(each.self_consistency, plain.self_consistency(name))
        assert each.ties == plain.ties(name) and each.median_seconds == plain.median_seconds(name)
        first, length = firsts[i], lengths[i]
        if first is None or each.first_position is None:
            assert first is each.first_position
        else:
            found_first = each.first_position
            assert (found_first.share.value, found_first.by_chance, found_first.p_value) == pytest.approx(
                (*first[:2], first_p[i])
            )
        if length is None or each.length is None:
            assert length is each.length
        else:
            assert close(each.length.share, length[0]) and close(each.length.excess, length[2])
            assert (each.length.others, each.length.p_value) == pytest.approx((length[1], length_p[i]))


def test_a_byte_is_enough_for_a_resample_and_blocks_change_nothing() -> None:
    for clusters in (1, 7, 300):
        even = np.full(clusters, 1 / clusters)
        drawn = np.random.default_rng(3).multinomial(clusters, even, RESAMPLES)
        assert (drawn == Bootstrap(clusters, 3).times.T).all()


def test_the_count_of_unlike_trials_is_what_their_convolution_gives() -> None:
    chances = [1 / 3] * 40 + [2 / 3] * 25 + [1 / 2] * 7
    distribution = np.ones(1)
    for p in chances:
        distribution = np.convolve(distribution, [1 - p, p])
    for hits in (0, 5, 33, 34, 60, 72):
        tail = min(distribution[: hits + 1].sum(), distribution[hits:].sum())
        assert two_sided_poisson_binomial(hits, chances) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)
    # of 50,000 trials most counts have no chance that a number could hold
    assert two_sided_poisson_binomial(0, [0.5] * 50_000) == 0.0
    assert two_sided_poisson_binomial(25_000, [0.5] * 50_000) == 1.0


def laid(comparisons: list[Comparison], points: int = 32) -> tuple[np.ndarray, list[ComparisonBatch]]:
    names, groups = _gather(comparisons)
    for group in groups:
        group.spread(points)
    return np.random.default_rng(0).normal(0.4, 0.5, 4 * len(names) + 1), groups


def test_the_information_is_the_curvature_of_the_log_evidence() -> None:
    theta, groups = laid(simulate(40, 5, 3, (2, 3, 4)))
    priors = np.eye(len(theta))  # their part of the curvature
    found = sum(observed_information(group, theta) for group in groups)
    step = 1e-4
    for i, move in enumerate(step * np.eye(len(theta))):
        up, down = (negative_log_posterior(theta + sign * move, groups)[1] for sign in (1, -1))
        expected = (up - down) / (2 * step) - priors[i]
        assert found[i] == pytest.approx(expected, abs=1e-4 * np.abs(expected).max())


def test_far_out_parameters_neither_overflow_nor_vanish() -> None:
    made = simulate(12, 3)
    theta, groups = laid(made)
    for scale in (200.0, -200.0):
        values = [group.evidence(scale * np.abs(theta))[0] for group in groups]
        assert all(np.isfinite(each).all() for each in values)


def test_parts_of_a_batch_have_the_points_of_the_whole() -> None:
    theta, [group] = laid(simulate(30, 4))
    group.approach(theta)
    group.spread(64)
    whole, parts = group.pair_posteriors(theta), {}
    for part in group.parts(7):
        part.spread(64)
        parts |= part.pair_posteriors(theta)
    assert list(parts) == list(whole)
    for id_, pairs in whole.items():
        for pair, posterior in pairs.items():
            assert parts[id_][pair].probability == pytest.approx(posterior.probability, abs=1e-12)
            assert parts[id_][pair].difference == pytest.approx(posterior.difference, abs=1e-12)


def test_twice_the_comparisons_are_twice_the_work() -> None:
    small, large = simulate(400, 20), simulate(800, 20)
    assert growth(lambda: measure_agreement(small), lambda: measure_agreement(large)) < 2.4

    def of_reliability(theta: np.ndarray, groups: list[ComparisonBatch]) -> None:
        negative_log_posterior(theta, groups)
        observed_information(groups[0], theta)

    one, other = laid(small), laid(large)
    assert growth(lambda: of_reliability(*one), lambda: of_reliability(*other)) < 2.4
    assert growth(lambda: _gather(small), lambda: _gather(large)) < 2.4


def test_as_many_rankings_by_four_times_the_annotators_are_no_more_work_than_their_pairs() -> None:
    few, many = simulate(400, 20), simulate(400, 80)
    assert growth(lambda: measure_agreement(few), lambda: measure_agreement(many)) < 2.4
    one, other = laid(few), laid(many)
    of_few = lambda: observed_information(one[1][0], one[0])  # noqa: E731
    assert growth(of_few, lambda: observed_information(other[1][0], other[0])) < 1.5


def test_choices_are_those_of_each_comparison() -> None:
    made = simulate(60, 5, 3, (3,))
    choices = choices_given(made, fit_reliability(made[:20] + made[20:]))
    assert sum(len(each.chosen) for each in choices.values()) == sum(
        len(group.block) for group in _gather(made)[1]
    )
    for each in choices.values():  # by softmax over what may be chosen, what was chosen is possible
        logs = each.alternatives @ np.zeros(3) + each.fixed
        assert (np.logaddexp.reduce(logs, axis=1) >= each.chosen_fixed - 1e-12).all()


def test_a_page_of_two_hundred_annotators_shows_whom_to_look_at_and_holds_all(tmp_path: Path) -> None:
    made = simulate(500, 200)
    agreement = measure_agreement(made)
    ability = {
        name: AnnotatorReliability(i / 50, 0.1, 0, 0.1, 0, 0.1, -1, 9)
        for i, name in enumerate(agreement.annotators)
    }
    annotators = {
        name: replace(each, reliability=ability[name]) for name, each in agreement.annotators.items()
    }
    busy = max(annotators, key=lambda name: annotators[name].submitted)
    warnings = [Suspicion(name, "random", f"ranks at random, {name}") for name in list(annotators)[100:130]]
    agreement = replace(agreement, annotators=annotators, warnings=warnings)
    first = first_to_look_at(agreement)
    assert first[:30] == [each.annotator for each in warnings] and first[30:38] == list(annotators)[:8]
    assert busy in first and len(first) == len(set(first)) <= 30 + 8 + 8
    preferences, counts = pairwise_preferences(made)
    write_report(tmp_path / "page.html", made, agreement, Reliability({}, 0.0, {}, True), preferences, counts)
    page = (tmp_path / "page.html").read_text()
    rows = re.findall(r'<tr><th scope="row">annotator (\d+)</th>', page)
    assert len(rows) == 200 and set(map(int, rows)) == set(range(1, 201))
    assert [int(each) - 1 for each in rows[: len(first)]] == [list(annotators).index(name) for name in first]
    assert f"<summary>The other {200 - len(first)} annotators</summary>" in page
    assert all(each.text in page for each in warnings) and "<summary>6 more warnings</summary>" in page
    assert f"The 50 lowest of {len(agreement.kappa):,} kappas" in page
    assert len(page) < 1_000_000
    assert (
        first_to_look_at(replace(agreement, annotators=dict(list(annotators.items())[:24])))
        == list(annotators)[:24]
    )
