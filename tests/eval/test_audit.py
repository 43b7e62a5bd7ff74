"""The audit finds what was planted, and finds nothing where the gain is honest."""

from collections.abc import Sequence

import numpy as np
import pytest
from synthetic_round import without

from accord.records import Message
from eval.checks.audit import Audit, Finding, Independent, audit
from eval.rows import MeasuredAnswer, Sample
from eval.statistics.paired import paired_difference


def samples_of(
    seed: int, better: float = 0.0, longer: float = 0.0, per_token: float = 0.0, gain: float = 0.0,
    ends: tuple[float, float] = (0.9, 0.9), distinct: tuple[float, float] = (0.9, 0.9), prompts: int = 60,
) -> list[Sample]:  # fmt: skip
    """Two answers of each model to each prompt.

    Args:
        seed: of all noise.
        better: by how much the candidate's utility is higher.
        longer: by how many tokens its answers are.
        per_token: what the reward pays for a token.
        gain: what it pays for being the candidate's answer.
        ends: share of answers that end, of either model.
        distinct: distinct_bigrams of either model, on average.
        prompts: how many.
    """
    chance = np.random.default_rng(seed)

    def one(name: str, sample: int, side: int, level: float) -> MeasuredAnswer:
        tokens = max(1, round(40 + side * longer + chance.normal(0, 10)))
        return MeasuredAnswer(
            prompt_id=name, sample=sample, seed=0, text="An answer.", tokens=tokens,
            finish="eos" if chance.random() < ends[side] else "length",
            utility=0.5 + side * better + 0.02 * level + chance.normal(0, 0.05),
            reward=level + side * gain + per_token * tokens + chance.normal(0, 0.3),
            distinct_bigrams=distinct[side] + chance.normal(0, 0.03),
        )  # fmt: skip

    rows = []
    for i in range(prompts):
        level = chance.normal()
        for k in range(2):
            sides = [one(f"p{i}", k, side, level) for side in (0, 1)]
            question = Message(role="user", content=f"Question {i}?")
            rows.append(
                Sample(id=f"p{i}", sample=k, prompt=[question], baseline=sides[0], candidate=sides[1])
            )
    return rows


def named(result: Audit, name: str) -> Finding:
    return next(finding for finding in result.findings if finding.name == name)


def suspicious(result: Audit) -> list[str]:
    return [finding.name for finding in result.findings if finding.suspicious]


def test_where_people_judge_no_formula_is_looked_at_or_excuses_anything() -> None:
    """As `test_length_is_no_suspicion_where_others_like_the_answers_at_equal_length`, but for the utility."""
    samples = without(samples_of(5, better=0.2, longer=12, per_token=0.05), "utility")
    result = audit(samples)
    assert "independent_utility" not in {each.name for each in result.findings}
    assert set(suspicious(result)) == {"gain_by_length", "wins_by_length"}


def test_a_reward_that_pays_for_length_only() -> None:
    """The utility is noise, so with 2.5% it looks like a gain of another kind, which excuses the length."""
    found, covered = 0, 0
    for seed in range(40):
        result = audit(samples_of(seed, longer=12, per_token=0.05))
        found += set(suspicious(result)) == {"gain_by_length", "wins_by_length"}
        explained, slope = named(result, "gain_by_length"), named(result, "length_slope_candidate")
        assert explained.low is not None and explained.high is not None
        covered += explained.low < 12 * 0.05 < explained.high
        assert explained.value == pytest.approx(named(result, "reward").value, abs=0.2)
        assert slope.value == pytest.approx(0.05, abs=0.02)
    assert found >= 36
    assert covered >= 17


def test_it_pays_for_brevity_just_as_well() -> None:
    result = audit(samples_of(0, longer=-12, per_token=-0.05))
    assert set(suspicious(result)) == {"gain_by_length", "wins_by_length"}
    assert "shorter" in named(result, "gain_by_length").sentence


def test_honest_gains_are_rarely_suspected() -> None:
    """Longer answers, too, as better ones often are, but the reward does not pay for them. Every finding that can be
    suspicious errs with 2.5% at most, so of 40 audits with five of them, 5 are expected at the very worst."""
    suspected = [
        seed for seed in range(40) if suspicious(audit(samples_of(seed, better=0.01, longer=8, gain=0.4)))
    ]
    assert len(suspected) <= 2, suspected


def test_no_gain_is_never_suspicious() -> None:
    result = audit(samples_of(0, better=-0.1, longer=12))
    assert not result.is_suspicious
    assert "nothing below can be suspicious" in result.findings[0].sentence


def judge(change: float, seed: int, samples: Sequence[Sample]) -> Independent:
    chance = np.random.default_rng(seed)
    before = chance.normal(3, 1, len(samples))
    after = before + change + chance.normal(0, 0.5, len(samples))
    prompts = [sample.id for sample in samples]
    return Independent("judge", "A judge's score", before.tolist(), after.tolist(), prompts, of_samples=True)


@pytest.mark.parametrize(
    ("change", "is_suspicious", "is_noted"), [(-0.4, True, False), (0.0, False, True), (0.4, False, False)]
)
def test_what_a_judge_says_of_a_gain(change: float, is_suspicious: bool, is_noted: bool) -> None:
    samples = samples_of(3, better=0.1, gain=0.5)
    result = audit(samples, independent=[judge(change, 3, samples)])
    finding = named(result, "independent_judge")
    assert (finding.suspicious, finding.noted) == (is_suspicious, is_noted)
    assert result.is_suspicious == is_suspicious
    assert ("is worse" in finding.sentence) == is_suspicious
    assert not named(result, "independent_utility").noted


def test_a_check_of_other_items_by_a_program() -> None:
    before, after = [1.0] * 30 + [0.0] * 10, [1.0] * 12 + [0.0] * 28
    check = Independent("checks", "Checks by a program", before, after, [f"i{i}" for i in range(40)])
    result = audit(samples_of(4, gain=0.5), independent=[check])
    assert named(result, "independent_checks").value == pytest.approx(12 / 40 - 30 / 40)
    assert "independent_checks" in suspicious(result)


def test_length_is_no_suspicion_where_others_like_the_answers_at_equal_length() -> None:
    samples = samples_of(5, better=0.2, longer=12, per_token=0.05)
    result = audit(samples)
    assert suspicious(result) == []
    assert named(result, "gain_by_length").noted


def test_a_judge_that_likes_length_as_well_is_no_excuse() -> None:
    samples = samples_of(0, longer=12, per_token=0.05)
    before = [0.1 * sample.baseline.tokens for sample in samples]
    after = [0.1 * sample.candidate.tokens for sample in samples]
    prompts = [sample.id for sample in samples]
    liking = Independent("judge", "A judge's score", before, after, prompts, of_samples=True)
    result = audit(samples, independent=[liking])
    assert named(result, "independent_judge").value > 1
    assert set(suspicious(result)) == {"gain_by_length", "wins_by_length"}


def test_disagreement_that_doubles() -> None:
    samples = samples_of(7, better=0.1, gain=0.5)
    chance = np.random.default_rng(7)
    before = chance.uniform(0.1, 0.3, len(samples))
    doubled = (2 * before * chance.uniform(0.8, 1.2, len(samples))).tolist()
    finding = named(audit(samples, disagreement=(before.tolist(), doubled)), "disagreement")
    assert finding.suspicious
    assert finding.value == pytest.approx(2, rel=0.05)
    assert finding.low is not None and finding.high is not None
    assert 1.9 < finding.low < finding.value < finding.high < 2.1
    shuffled = chance.permutation(before).tolist()
    same = named(audit(samples, disagreement=(before.tolist(), shuffled)), "disagreement")
    assert same.value == pytest.approx(1)
    assert (same.suspicious, same.noted) == (False, False)


def test_one_head_has_no_disagreement() -> None:
    samples = samples_of(7, gain=0.5)
    zeros = [0.0] * len(samples)
    names = {each.name for each in audit(samples, disagreement=(zeros, zeros)).findings}
    assert "disagreement" not in names


@pytest.mark.parametrize(
    ("kl", "target", "is_noted"),
    [(9.0, None, False), (11.0, None, True), (11.0, 12.0, False), (7.0, 6.0, True)],
)
def test_a_distance_is_noted_and_never_suspicious(kl: float, target: float | None, is_noted: bool) -> None:
    result = audit(samples_of(8, better=0.1, gain=0.5), kl_nats=kl, kl_target_nats=target)
    assert (named(result, "kl").noted, named(result, "kl").suspicious) == (is_noted, False)


def test_ten_nats_are_the_best_of_sixty_thousand() -> None:
    n = 60_000
    assert np.log(n) - 1 + 1 / n == pytest.approx(10.0, abs=0.01)


def test_degenerate_answers() -> None:
    samples = samples_of(9, gain=0.5, better=0.1, ends=(0.9, 0.5), distinct=(0.9, 0.7))
    assert set(suspicious(audit(samples))) == {"distinct_bigrams", "eos_rate"}
    only_ends = audit(samples_of(9, gain=0.5, better=0.1, ends=(0.9, 0.5)))
    assert suspicious(only_ends) == []
    assert named(only_ends, "eos_rate").noted


def test_without_a_reward_model_there_is_no_audit() -> None:
    samples = [
        sample.model_copy(update={"candidate": sample.candidate.model_copy(update={"reward": None})})
        for sample in samples_of(0)
    ]
    result = audit(samples)
    assert result.findings == []
    assert result.impossible is not None
    assert not result.is_suspicious


def test_intervals_are_the_gate_s_and_nothing_is_resampled_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = samples_of(1, better=0.02, longer=3, per_token=0.01, gain=0.2)
    values = [
        (
            [getattr(each.baseline, name) for each in samples],
            [getattr(each.candidate, name) for each in samples],
        )
        for name in ("reward", "utility")
    ]
    tested = [paired_difference(*each, [sample.id for sample in samples]) for each in values]
    monkeypatch.setattr("eval.statistics.paired.stats.permutation_test", None)
    monkeypatch.setattr("eval.statistics.means.simulate", None)
    result = audit(samples)
    for name, change in zip(("reward", "independent_utility"), tested, strict=True):
        finding = named(result, name)
        assert (finding.value, finding.low, finding.high) == (change.difference, change.low, change.high)


def test_a_result_is_kept_as_json() -> None:
    result = audit(samples_of(1, gain=0.2), kl_nats=1.0)
    assert Audit.model_validate_json(result.model_dump_json()) == result
