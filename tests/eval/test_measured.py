"""Win rates as metrics of an evaluation, worked by hand, and a real judge that decides on answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from accord.errors import UsageError
from accord.models.references import Model
from accord.records import Message, read_jsonl
from accord.runs import Runs
from eval.config import EvalConfig
from eval.evaluate import evaluate
from eval.measuring.answers import judge_answers
from eval.measuring.values import measured_answers
from eval.promotion import check_verdict
from eval.rows import Judgement, MeasuredAnswer, Sample
from eval.verdict.comparison import compare
from eval.verdict.gate import read_verdict
from reward.judge import judge_of


def answered(reward: float | None, tokens: int, text: str = "x") -> MeasuredAnswer:
    return MeasuredAnswer(
        prompt_id="p", sample=0, seed=0, text=text, tokens=tokens, finish="eos", utility=0.5, reward=reward,
        distinct_bigrams=1.0,
    )  # fmt: skip


def sample(
    name: str, before: float | None, after: float | None, judged: Any = "no judge", lengths: tuple[int, int] = (5, 5)
) -> Sample:  # fmt: skip
    judgement = None if judged == "no judge" else Judgement(candidate_is_better=judged)
    return Sample(
        id=name, sample=0, prompt=[Message(role="user", content="Why?")], baseline=answered(before, lengths[0]),
        candidate=answered(after, lengths[1]), judgement=judgement,
    )  # fmt: skip


def test_win_rates_by_hand() -> None:
    """Scores 1:2, 3:3, 5:4, 0:9: won, tied, lost, won, which is 2.5 of 4; the judge left one pair undecided."""
    samples = [
        sample("a", 1, 2, 0.9),
        sample("b", 3, 3, 0.5),
        sample("c", 5, 4, None),
        sample("d", 0, 9, 0.1),
    ]
    found = measured_answers(samples)
    assert found["win_rate"].after == [1.0, 0.5, 0.0, 1.0] and found["win_rate"].before == [0.5] * 4
    assert found["win_rate_length_controlled"].after == [1.0, 0.5, 0.0, 1.0]  # all of one length
    assert found["judge_win_rate"].after == [0.9, 0.5, 0.5, 0.1]
    assert (found["judge_unparsed"].before, found["judge_unparsed"].after) == (
        [0.0] * 4,
        [0.0, 0.0, 1.0, 0.0],
    )


def test_a_scorer_that_likes_length_only_wins_nothing_at_equal_length() -> None:
    lengths = [(5, 5 + d) for d in (-4, -2, 2, 4, 6, 8, 10, 12)]
    found = measured_answers([sample(str(i), a, b, lengths=(a, b)) for i, (a, b) in enumerate(lengths)])
    assert sum(map(float, found["win_rate"].after)) / 8 == 6 / 8  # type: ignore[arg-type]
    controlled = [float(value) for value in found["win_rate_length_controlled"].after]  # type: ignore[arg-type]
    assert sum(controlled) / 8 == pytest.approx(0.4, abs=0.12)


def test_without_a_reward_model_or_judge_there_are_no_win_rates() -> None:
    found = measured_answers([sample("a", None, None), sample("b", None, None)])
    assert [name for name in found if "win" in name or "judge" in name or name == "reward"] == []


class SaysItsSeed:
    """A sampler of fixed words."""

    def use(self, model: Model) -> "SaysItsSeed":
        return self

    def sample(self, prompts: Any, seeds: Any, max_response_tokens: int, temperature: float) -> Any:
        from accord.sampling import Completion

        return [Completion([40 + seed % 50, 2], [0.0, 0.0], "eos") for seed in seeds]


def test_a_judge_decides_and_is_part_of_the_verdict(tiny_model: Model, runs: Runs, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [{"id": f"p{i}", "prompt": [{"role": "user", "content": f"Question {i}?"}]} for i in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    gate: Any = {"judge_win_rate": {"margin": 0.1}, "judge_unparsed": {"margin": 0.5}}
    settings: Any = {"prompts": str(file), "suites": [], "gate": gate, "samples_per_prompt": 1}
    sampler: Any = SaysItsSeed()
    with pytest.raises(UsageError, match="so it needs a judge"):
        evaluate(EvalConfig(**settings), runs, sampler, tiny_model, tiny_model, show=lambda line: None)

    judged = EvalConfig(**settings, judge=f"judge:{tiny_model.reference}")
    run = evaluate(judged, runs, sampler, tiny_model, tiny_model, show=lambda line: None)
    verdict = read_verdict(run)
    samples = read_jsonl(run.path / "samples.jsonl", Sample)
    again = judge_answers(judge_of(str(judged.judge), runs), samples)
    assert [each.judgement for each in samples] == again
    # the same answers in both orders: the judge's two probabilities add up to one, so each pair is a tie
    win_rate = next(metric for metric in verdict.metrics if metric.name == "judge_win_rate")
    assert win_rate.candidate == pytest.approx(0.5, abs=1e-6) and win_rate.baseline == 0.5
    assert verdict.judge is not None and verdict.judge.reference == judged.judge
    assert check_verdict(run, Runs(runs.root), any_outcome=True) == verdict
    assert str(judged.judge) in (run.path / "report.html").read_text()


def test_a_judge_that_says_nothing_fails_the_gate_by_its_own_metric() -> None:
    gate: Any = {"judge_win_rate": {"margin": 0.2}}
    with pytest.raises(ValueError, match="needs a margin for 'judge_unparsed'"):
        EvalConfig(gate=gate)
    config = EvalConfig(gate=gate | {"judge_unparsed": {"margin": 0.1}})
    silent = [sample(str(i), None, None, None) for i in range(40)]
    by_name = {metric.name: metric for metric in compare(measured_answers(silent), config.rules).metrics}
    assert by_name["judge_unparsed"].verdict == "FAIL"
    assert by_name["judge_unparsed"].candidate == 1.0

    def half(i: int) -> float | None:
        return None if i % 20 == 0 else 0.4 + 0.2 * (i % 2)

    # two of 40 undecided, 5%: not certain to be below 10%
    some = [sample(str(i), None, None, half(i)) for i in range(40)]
    by_name = {metric.name: metric for metric in compare(measured_answers(some), config.rules).metrics}
    assert by_name["judge_unparsed"].verdict == "INCONCLUSIVE" and by_name["judge_win_rate"].verdict == "PASS"
