"""A gate that takes over a reviewed evaluation: the same answers, and the reviewers' labels as a metric."""

import json
from pathlib import Path
from typing import Any

import pytest

from accord.errors import UsageError
from accord.models.references import Model
from accord.records import Ranking, read_jsonl
from accord.runs import Run, Runs
from accord.text_files import write_jsonl
from eval.config import EvalConfig
from eval.evaluate import evaluate
from eval.review.ask import choose
from eval.rows import Sample
from eval.verdict.gate import read_verdict
from feedback.config import ReviewConfig


class SaysSomethingElse:
    """A sampler whose words depend on the seed and on whose turn it is."""

    def __init__(self) -> None:
        self.turns = 0

    def use(self, model: Model) -> "SaysSomethingElse":
        self.turns += 1
        return self

    def sample(self, prompts: Any, seeds: Any, max_response_tokens: int, temperature: float) -> Any:
        from accord.sampling import Completion

        return [Completion([40 + (seed + self.turns) % 50, 2], [0.0, 0.0], "eos") for seed in seeds]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "prompts.jsonl"
    rows = [{"id": f"p{i}", "prompt": [{"role": "user", "content": f"Question {i}?"}]} for i in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    suites = {"suites": ["sentence_pairs"], "max_suite_items": 20}
    return {
        "prompts": str(file),
        "samples_per_prompt": 1,
        "gate": {"distinct_bigrams": {"margin": 0.5}},
        **suites,
    }


def reviewed(runs: Runs, evaluation: Run, prefers: int) -> Run:
    """A review in which one reviewer prefers the answer at that place to all pairs that were asked about."""
    config = ReviewConfig(items=8 + prefers, random_share=0.5)  # another review is another run
    with runs.begin("feedback", config, {"evaluation": evaluation}) as run:
        samples = read_jsonl(evaluation.output("samples.jsonl"), Sample)
        items = choose(samples, ["b", "c"], config.items, config.random_items, 0)
        write_jsonl(run.path / "items.jsonl", items)
        ranks = [2, 2]
        ranks[prefers] = 1
        asked = [
            item.model_copy(update={"rankings": [Ranking(annotator="ann", ranks=ranks)]})
            for item in items
            if item.part in ("chosen", "drawn")
        ]
        write_jsonl(run.path / "comparisons.jsonl", asked)
        run.finish({"annotators_kind": "human"})
    return run


def test_reviewers_labels_decide_on_the_answers_that_they_saw(
    tiny_model: Model, runs: Runs, settings: dict[str, Any]
) -> None:
    def gate(sampler: Any, **more: Any) -> Run:
        config = EvalConfig.model_validate(settings | more)
        return evaluate(config, runs, sampler, tiny_model, tiny_model, show=lambda line: None)

    first = gate(SaysSomethingElse())
    margin = {"gate": {"adjudicated": {"margin": 0.1}}}
    with pytest.raises(UsageError, match="so it needs a review"):
        gate(SaysSomethingElse(), **margin)

    for prefers, outcome, share in ((0, "FAIL", 0.0), (1, "PASS", 1.0)):
        review = reviewed(runs, first, prefers)
        sampler = SaysSomethingElse()
        run = gate(sampler, review=f"run:{review.id}", **margin)
        assert sampler.turns == 0, "nothing is sampled again"
        samples = (read_jsonl(each.path / "samples.jsonl", Sample) for each in (first, run))
        assert next(samples) == next(samples)
        assert (run.path / "suites.jsonl").read_bytes() == (first.path / "suites.jsonl").read_bytes()
        verdict = read_verdict(run)
        (metric,) = verdict.deciding
        assert (metric.name, metric.baseline, metric.candidate) == ("adjudicated", 0.5, pytest.approx(share))
        assert verdict.outcome == outcome and review.id in verdict.lineage


def test_a_review_of_something_else_is_refused(
    tiny_model: Model, runs: Runs, settings: dict[str, Any]
) -> None:
    def gate(**more: Any) -> Run:
        config = EvalConfig.model_validate(settings | more)
        sampler: Any = SaysSomethingElse()
        return evaluate(config, runs, sampler, tiny_model, tiny_model, show=lambda line: None)

    first = gate()
    review = reviewed(runs, first, 1)
    name = f"run:{review.id}"
    with pytest.raises(UsageError, match="has seed: 0, and this evaluation 1"):
        gate(review=name, seed=1)
    with pytest.raises(UsageError, match="is no finished review"):
        gate(review=f"run:{first.id}")
    other = Path(settings["prompts"]).with_name("other.jsonl")
    other.write_text(Path(settings["prompts"]).read_text().replace("Question", "Riddle"))
    with pytest.raises(UsageError, match="another prompts"):
        gate(review=name, prompts=str(other))
