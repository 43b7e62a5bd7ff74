"""The reliability model: integrals done another way, parameters found again, and annotators planted on known truth."""

import contextlib
import importlib
import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
from scipy.integrate import dblquad, quad
from scipy.optimize import approx_fprime
from scipy.special import expit
from scipy.stats import norm

from accord.records import Comparison, Message, Ranking, Response
from feedback.belief.agreement import measure_agreement
from feedback.belief.dawid_skene import dawid_skene, pair_labels
from feedback.belief.preferences import pairwise_preferences
from feedback.belief.reliability import (
    FINAL_POINTS,
    POINTS,
    Reliability,
    _gather,
    expected_accuracy,
    fit_reliability,
    negative_log_posterior,
)


def comparison(
    name: str, answers: dict[str, list[int]], lengths: tuple[int, ...] = (30, 30, 30), **columns: object
) -> Comparison:
    return Comparison(
        id=name,
        prompt=[Message(role="user", content=str(columns.pop("prompt", name)))],
        responses=[Response(text=f"{i}".ljust(n, "x"), run="policy0", seed=i) for i, n in enumerate(lengths)],
        rankings=[Ranking(annotator=who, ranks=ranks) for who, ranks in answers.items()],
        **columns,
    )


def ranks_of(values: np.ndarray) -> list[int]:
    """Rank 1 for the highest; equal values tie."""
    return [1 + int((values > value).sum()) for value in values]


# --- the likelihood, its gradient and its integrals


def test_the_gradient_is_the_differences_of_the_value() -> None:
    rng = np.random.default_rng(0)
    comparisons = []
    for i in range(12):
        k = 2 + i % 3
        comparisons.append(
            comparison(
                f"c{i}", {who: rng.integers(1, 4, k).tolist() for who in "abc"},
                tuple(rng.integers(2, 90, k).tolist()), display_order=rng.permutation(k).tolist(),
                gold_ranks=[1, 2, 2, 3][:k] if i % 4 == 0 else None,
            )
        )  # fmt: skip
    names, groups = _gather(comparisons)
    for group in groups:
        group.spread(32)
    theta = rng.normal(0.5, 0.7, 4 * len(names) + 1)
    gradient = negative_log_posterior(theta, groups)[1]
    differences = approx_fprime(theta, lambda t: negative_log_posterior(t, groups)[0], 1e-6)
    assert gradient == pytest.approx(differences, abs=1e-3 * np.abs(gradient).max())


def test_ties_among_nine_responses_do_not_speak_against_their_giver() -> None:
    """All six follow the same worths with beta 2; three rank on a coarse scale, with one pair in four tied."""
    rng = np.random.default_rng(1)
    comparisons, tied = [], []
    for i in range(30):
        worth, answers = rng.normal(size=9), {}
        for who in range(6):
            liking = 2 * worth + rng.gumbel(size=9)
            answers[f"{'fine' if who < 3 else 'coarse'}{who}"] = ranks_of(
                liking if who < 3 else np.round(liking / 2.3)
            )
        comparisons.append(comparison(f"c{i}", answers, (30,) * 9))
        tied += [a == b for ranks in list(answers.values())[3:] for a, b in combinations(ranks, 2)]
    assert 0.2 < np.mean(tied) < 0.35
    reliability = fit_reliability(comparisons)
    betas = {name: each.beta for name, each in reliability.annotators.items()}
    assert all(beta > 1.5 for beta in betas.values()), betas
    assert reliability.converged


def davidson(d: float, tie: float, outcome: int) -> float:
    """Davidson (1970): chances of first, tie and second in proportion to e^(d/2), e^tie and e^(-d/2)."""
    weights = {1: math.exp(d / 2), 0: math.exp(tie), -1: math.exp(-d / 2)}
    return weights[outcome] / sum(weights.values())


def test_of_two_responses_the_evidence_is_davidsons_model_integrated() -> None:
    one = comparison("c", {"a": [1, 2], "b": [1, 1]}, (10, 40), display_order=[1, 0])
    _, [group] = _gather([one])
    theta = np.array([1.5, 0.7, -0.4, -0.2, -0.8, 0.3, 0.6, 0.1, 0.9])  # a, b, gamma
    # log lengths, centred and scaled by their deviation over the data, are -1 and 1; the second stands first
    x, early = -1.0 - 1.0, 0.0 - 1.0

    def joint(d: float) -> float:
        worth = d + 0.9 * x  # d ~ N(0, 2) is the difference apart from length
        a = davidson(1.5 * worth + 0.7 * early - 0.4 * x, -0.2, 1)
        b = davidson(-0.8 * worth + 0.3 * early + 0.6 * x, 0.1, 0)
        return a * b * norm.pdf(d, scale=math.sqrt(2))

    expected = quad(joint, -12, 12)[0]
    better = quad(joint, 0.9 * 2, 12)[0] / expected
    group.spread(4096)
    assert group.evidence(theta)[0][0] == pytest.approx(math.log(expected), abs=1e-4)
    group.approach(theta)
    group.spread(4096)
    assert group.evidence(theta)[0][0] == pytest.approx(math.log(expected), abs=1e-4)
    assert group.pair_posteriors(theta)["c"][0, 1].probability == pytest.approx(better, abs=2e-3)


def test_of_three_responses_the_evidence_is_plackett_and_luces_integrated() -> None:
    one = comparison("c", {"a": [2, 1, 3], "b": [1, 2, 3]})
    _, [group] = _gather([one])
    theta = np.array([2.0, 0, 0, -30.0, 0.7, 0, 0, -30.0, 0.0])  # no ties

    def plackett_luce(u: tuple[float, ...], order: tuple[int, ...], beta: float) -> float:
        chance, left = 1.0, list(order)
        for best in order:
            chance *= math.exp(beta * u[best]) / sum(math.exp(beta * u[i]) for i in left)
            left.remove(best)
        return chance

    def joint(
        y: float, x: float
    ) -> float:  # only differences matter, so the third worth may be -x - y, scaled
        u = (
            (x - y / math.sqrt(3)) / math.sqrt(2),
            (-x - y / math.sqrt(3)) / math.sqrt(2),
            2 * y / math.sqrt(6),
        )
        return plackett_luce(u, (1, 0, 2), 2.0) * plackett_luce(u, (0, 1, 2), 0.7) * norm.pdf(x) * norm.pdf(y)

    expected = dblquad(joint, -6, 6, -6, 6, epsabs=1e-6)[0]
    first_better = dblquad(joint, 0, 6, -6, 6, epsabs=1e-6)[0] / expected  # u_0 > u_1 means x > 0
    group.spread(POINTS)
    group.approach(theta)
    group.spread(FINAL_POINTS)
    assert group.evidence(theta)[0][0] == pytest.approx(math.log(expected), abs=5e-3)
    assert group.pair_posteriors(theta)["c"][0, 1].probability == pytest.approx(first_better, abs=0.01)


def test_expected_accuracy_is_the_integral_that_it_says() -> None:
    for beta in (-2.0, 0.0, 0.5, 3.0):
        value = quad(
            lambda d, b=beta: expit(b * abs(d)) * norm.pdf(d, scale=math.sqrt(2)), -12, 12, points=[0]
        )[0]
        assert expected_accuracy(beta) == pytest.approx(value, abs=0.01)


# --- what is found


def test_parameters_are_found_again() -> None:
    """300 records of three responses by the model's own recipe; each estimate within 3.5 of its deviations."""
    rng = np.random.default_rng(0)
    truth = {
        "a": (2.0, 0.0, 0.0, -1.5),
        "b": (1.0, 1.5, 0.0, -0.5),
        "c": (0.7, 0.0, -1.0, -2.0),
        "d": (-1, 0, 0, -1),
    }
    comparisons, lengths = [], rng.integers(20, 200, (300, 3))
    logs = np.log1p(lengths)
    x = logs - logs.mean(axis=1, keepdims=True)
    x /= x.std()
    for i in range(300):
        order = rng.permutation(3).tolist()
        early = np.array([1 - order.index(r) / 2 for r in range(3)])
        worth = rng.normal(size=3) + 0.5 * x[i]
        answers = {}
        for who, (beta, position, length, tie) in truth.items():
            liking = beta * worth + position * early + length * x[i]
            left, ranks = {0, 1, 2}, [0, 0, 0]
            while left:
                sets = [s for size in range(1, len(left) + 1) for s in combinations(sorted(left), size)]
                weights = np.exp([tie * (len(s) - 1) + liking[list(s)].mean() for s in sets])
                best = sets[rng.choice(len(sets), p=weights / weights.sum())]
                for r in best:
                    ranks[r] = 4 - len(left)
                left -= set(best)
            answers[who] = ranks
        comparisons.append(comparison(f"c{i}", answers, tuple(lengths[i].tolist()), display_order=order))
    found = fit_reliability(comparisons)
    assert found.converged
    for who, (beta, position, length, tie) in truth.items():
        each = found.annotators[who]
        print(who, each)
        assert abs(each.beta - beta) < 3.5 * each.beta_deviation < 1.2
        assert abs(each.position - position) < 3.5 * each.position_deviation < 1.2
        assert abs(each.length - length) < 3.5 * each.length_deviation
        assert abs(each.tie - tie) < 0.5
        assert each.rankings == 300
    assert found.shared_length == pytest.approx(0.5, abs=0.25)


def test_one_annotator_alone_decides_and_stays_as_reliable_as_anyone_unknown() -> None:
    rng = np.random.default_rng(0)
    comparisons = [
        comparison(
            f"c{i}", {"a": (1 + rng.permutation(3)).tolist()}, tuple(rng.integers(20, 200, 3).tolist())
        )
        for i in range(100)
    ]
    found = fit_reliability(comparisons)
    assert found.annotators["a"].beta == pytest.approx(1.0, abs=0.1)
    assert found == fit_reliability(comparisons)
    preferences, counts = pairwise_preferences(comparisons, found)
    assert counts["kept"] + counts["undecided"] == 300 and counts["kept"] > 290
    assert {each.agreement for each in preferences} == {1.0}
    assert all(each.weight is not None and 0.2 <= each.weight < 0.9 for each in preferences)


def test_gold_tells_which_of_two_who_disagree_is_wrong() -> None:
    rng = np.random.default_rng(0)
    for good, bad in (("a", "b"), ("b", "a")):
        comparisons = []
        for i in range(60):
            worth = rng.normal(size=3)
            gold = ranks_of(worth) if i < 12 else None
            answers = {good: ranks_of(worth), bad: ranks_of(-worth)}
            comparisons.append(comparison(f"c{i}", answers, gold_ranks=gold))
        found = fit_reliability(comparisons)
        assert found.annotators[good].beta > 1.5
        assert found.annotators[bad].beta < -1.0
        named = [(each.annotator, each.kind) for each in measure_agreement(comparisons, found).warnings]
        assert named == [(bad, "adversarial")]


def test_two_who_disagree_on_everything_leave_everything_open_without_gold() -> None:
    rng = np.random.default_rng(0)
    for k, most in ((2, 0.1), (3, 0.25)):
        comparisons = []
        for i in range(60):
            worth = rng.normal(size=k)
            answers = {"a": ranks_of(worth), "b": ranks_of(-worth)}
            comparisons.append(comparison(f"c{i}", answers, (30,) * k))
        found = fit_reliability(comparisons)
        # Plackett and Luce give a slight edge to a response that both place in the middle
        preferences, _ = pairwise_preferences(comparisons, found)
        assert all(each.weight is not None and each.weight < most for each in preferences)
        assert len(preferences) <= (0 if k == 2 else 120)
        assert measure_agreement(comparisons, found).warnings == []


def test_an_adjudication_and_a_gold_tie_are_truth() -> None:
    settled = comparison("c", {"a": [1, 2, 3]})
    settled.rankings.append(Ranking(annotator="judge", ranks=[2, 1, 1], adjudicates=True))
    found = fit_reliability([settled])
    assert set(found.annotators) == {"a"}
    for better in (1, 2):
        assert (found.probability("c", better, 0) or 0) > 0.85
        assert found.probability("c", 0, better) == pytest.approx(
            1 - (found.probability("c", better, 0) or 0)
        )
    assert 0.3 < (found.probability("c", 1, 2) or 0) < 0.8  # tied by the judge; a prefers 1


def test_a_duplicate_counts_for_what_it_repeats() -> None:
    original = comparison("c", {"a": [1, 2, 3]}, (10, 11, 12), prompt="p")
    again = comparison("d", {"a": [3, 2, 1]}, (10, 11, 12), prompt="p", duplicate_of="c")
    swapped = again.model_copy(update={"responses": again.responses[::-1]})
    once = fit_reliability([original])
    twice = fit_reliability([original, swapped])
    assert set(twice.pairs) == {"c"} and twice.annotators["a"].rankings == 2
    assert (twice.probability("c", 0, 2) or 0) > (once.probability("c", 0, 2) or 1)
    against = fit_reliability([original, again])
    assert (against.probability("c", 0, 2) or 1) == pytest.approx(0.5, abs=0.05)


def test_what_nobody_ranked_is_unknown() -> None:
    empty = comparison("empty", {})
    assert fit_reliability([empty]) == Reliability({}, 0.0, {}, True)
    ignored = empty.model_copy(
        update={
            "rankings": [Ranking(annotator="a", status="draft", ranks=[1, 2, 3])],
            "gold_ranks": [1, 2, 3],
        }
    )
    assert fit_reliability([ignored]).pairs == {}
    assert fit_reliability([ignored, comparison("c", {"a": [1, 2, 3]})]).probability("empty", 0, 1) is None


# --- planted annotators

PLANTED = ("careful", "noisy", "random", "always-first", "length-lover", "adversarial")
SUSPECTS = {
    "random": "random",
    "always-first": "position",
    "length-lover": "length",
    "adversarial": "adversarial",
}


@dataclass(frozen=True)
class Simulated:
    comparisons: list[Comparison]
    worth: dict[str, np.ndarray]


def simulate(
    seed: int, records: int = 300, panel: tuple[str, ...] = PLANTED, per_record: int = 6
) -> Simulated:
    """Records of three responses whose worth is standard normal and apart from their length, by any panel.

    careful: the worth with noise of a tenth of its deviation; noisy: as careful in 80% of the records and at random in
    20%; random; always-first: as displayed; length-lover: by length; adversarial: careful, and then reversed.
    """
    rng = np.random.default_rng(seed)
    comparisons, worths = [], {}
    for i in range(records):
        worth, lengths = rng.normal(size=3), rng.integers(20, 400, 3)
        order = rng.permutation(3).tolist()
        read, guess = worth + rng.normal(0, 0.1, 3), rng.normal(size=3)
        liking = {
            "careful": read,
            "noisy": worth + rng.normal(0, 0.1, 3) if rng.random() < 0.8 else rng.normal(size=3),
            "random": guess,
            "always-first": np.array([-order.index(r) for r in range(3)]),
            "length-lover": lengths,
            "adversarial": -(worth + rng.normal(0, 0.1, 3)),
        }
        asked = rng.choice(len(panel), per_record, replace=False)
        answers = {panel[a]: ranks_of(liking[panel[a].rstrip("2")]) for a in sorted(asked)}
        worths[f"c{i}"] = worth
        comparisons.append(comparison(f"c{i}", answers, tuple(lengths.tolist()), display_order=order))
    return Simulated(comparisons, worths)


def score(simulated: Simulated, reliability: Reliability | None) -> np.ndarray:
    """By record: the share of pairs whose preference is right; half for a pair without a preference."""
    preferences, _ = pairwise_preferences(simulated.comparisons, reliability)
    scores = {each.id: [0.5, 0.5, 0.5] for each in simulated.comparisons}
    for each in preferences:
        name, _, pair = (each.id or "").partition(":")
        chosen, rejected = map(int, pair.split(">"))
        scores[name][chosen + rejected - 1] = float(
            simulated.worth[name][chosen] > simulated.worth[name][rejected]
        )
    return np.array([np.mean(values) for values in scores.values()])


def calibration_error(simulated: Simulated, reliability: Reliability) -> float:
    """Expected calibration error over ten bins: the mean distance of the probability from how often it is right."""
    p, right = [], []
    for name, worth in simulated.worth.items():
        for i, j in combinations(range(3), 2):
            found = reliability.probability(name, i, j) or 0.0
            p.append(max(found, 1 - found))
            right.append((found > 0.5) == (worth[i] > worth[j]))
    bins = np.minimum((np.array(p) * 20).astype(int), 19)
    return sum(
        abs(np.mean(np.array(p)[bins == b]) - np.mean(np.array(right)[bins == b])) * np.mean(bins == b)
        for b in np.unique(bins)
    )


@pytest.mark.parametrize(("seed", "per_record"), [(0, 6), (1, 3), (2, 3)])
def test_planted_annotators_are_named_and_outweighed(seed: int, per_record: int) -> None:
    simulated = simulate(seed, per_record=per_record)
    reliability = fit_reliability(simulated.comparisons)
    agreement = measure_agreement(simulated.comparisons, reliability)
    for warning in agreement.warnings:
        print(f"{warning.annotator}: {warning.text}")
    assert {each.annotator: each.kind for each in agreement.warnings} == SUSPECTS

    weighted, majority = score(simulated, reliability), score(simulated, None)
    rng = np.random.default_rng(0)
    gains = [np.mean((weighted - majority)[rng.integers(0, 300, 300)]) for _ in range(2_000)]
    low, high = np.quantile(gains, [0.025, 0.975])
    error = calibration_error(simulated, reliability)
    print(
        f"seed {seed}, {per_record} of 6 annotators a record: pairs right {weighted.mean():.3f} weighted, "
        f"{majority.mean():.3f} by majority, difference {np.mean(weighted - majority):.3f} ({low:.3f} to {high:.3f}); "
        f"calibration error {error:.3f}"
    )
    assert low > 0
    assert error < 0.06


def test_careful_and_noisy_annotators_are_not_named() -> None:
    gains = []
    for seed in range(6):
        simulated = simulate(seed, 60, ("careful", "noisy", "noisy2", "careful2"), per_record=2)
        reliability = fit_reliability(simulated.comparisons)
        assert measure_agreement(simulated.comparisons, reliability).warnings == []
        gains.append(score(simulated, reliability).mean() - score(simulated, None).mean())
    print("gain over the majority among careful and noisy annotators:", np.mean(gains))
    assert np.mean(gains) > -0.01


# --- Dawid and Skene


def labelled() -> list[tuple[str, str, str]]:
    rng, names = np.random.default_rng(7), ("first", "tie", "second")
    rows = []
    for task in range(40):
        true = int(rng.choice(3, p=[0.45, 0.1, 0.45]))
        for who, accuracy in {"a": 0.9, "b": 0.75, "c": 0.6, "d": 0.34, "e": 0.8}.items():
            if rng.random() < 0.8:
                given = true if rng.random() < accuracy else int(rng.integers(3))
                rows.append((f"t{task:02d}", who, names[given]))
    return rows


def test_dawid_skene_is_crowd_kits() -> None:
    """crowd-kit 1.4.2 on the same labels, `DawidSkene(n_iter=5000, tol=-1)`, gave the numbers below.

    It is no dependency; where it is installed, it is run as well.
    """
    rows = labelled()
    found = dawid_skene(rows)
    probability = {"t00": 0.007111121, "t01": 1.0, "t06": 0.741359775, "t09": 0.0, "t16": 0.611870808,
                   "t21": 0.052759855, "t24": 0.034446782, "t27": 0.078961234, "t36": 0.042790217}  # fmt: skip
    confusion = {
        ("a", "first", "first"): 0.660568199, ("a", "second", "first"): 0.339431801, ("a", "tie", "tie"): 1.0,
        ("c", "first", "first"): 0.379292038, ("c", "second", "first"): 0.178200584,
        ("c", "tie", "first"): 0.442507378, ("c", "second", "tie"): 0.333333333,
        ("d", "first", "first"): 0.462998918, ("d", "second", "second"): 0.72450631,
        ("d", "tie", "second"): 0.27549369, ("d", "first", "second"): 0.0,
    }  # fmt: skip
    prevalence = {"first": 0.441110183, "tie": 0.125, "second": 0.433889817}
    assert len(rows) == 154
    for task, expected in probability.items():
        assert found.probabilities[task]["first"] == pytest.approx(expected, abs=1e-6)
    for (who, given, true), expected in confusion.items():
        assert found.confusion[who][true][given] == pytest.approx(expected, abs=1e-6)
    assert found.prevalence == pytest.approx(prevalence, abs=1e-6)
    with contextlib.suppress(ImportError):
        crowdkit = importlib.import_module("crowdkit.aggregation.classification.dawid_skene")
        pandas = importlib.import_module("pandas")
        model = crowdkit.DawidSkene(n_iter=5_000, tol=-1.0)
        model.fit(pandas.DataFrame(rows, columns=["task", "worker", "label"]))
        for task, by_label in found.probabilities.items():
            assert by_label == pytest.approx(model.probas_.loc[task].to_dict(), abs=1e-6)
        for who, matrix in found.confusion.items():
            for true, by_given in matrix.items():
                for given, value in by_given.items():
                    if (who, given) in model.errors_.index:
                        assert value == pytest.approx(model.errors_.loc[(who, given), true], abs=1e-6)


def test_dawid_skene_finds_who_confuses_what() -> None:
    # c says "second" for every "first" and the other way round; a and b are right
    rows = [
        (f"t{i}", who, label if who != "c" else {"first": "second", "second": "first"}[label])
        for i in range(20)
        for who in "abc"
        for label in ("first" if i % 2 else "second",)
    ]
    found = dawid_skene(rows)
    assert found.confusion["c"]["first"]["second"] == pytest.approx(1.0)
    assert found.confusion["a"]["first"]["first"] == pytest.approx(1.0)
    assert found.probabilities["t1"]["first"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="at least one label"):
        dawid_skene([])


def test_rankings_as_labels_of_pairs() -> None:
    one = comparison("c", {"a": [1, 2, 1]})
    one.rankings.append(Ranking(annotator="b", status="discarded"))
    gold = comparison("g", {"a": [1, 2, 3]}, gold_ranks=[1, 2, 3])
    assert pair_labels([one, gold]) == [
        ("c:0,1", "a", "first"),
        ("c:0,2", "a", "tie"),
        ("c:1,2", "a", "second"),
    ]
