"""The stage with the tiny model and a sampler that counts: what is measured, shared seeds, and continuing."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from accord.chat.tokens import decode_response
from accord.errors import DataError, UsageError
from accord.models.loading import load_tokenizer
from accord.models.references import Model
from accord.records import Message, content_id, read_jsonl
from accord.runs import Runs
from accord.sampling import Completion
from eval.config import EvalConfig
from eval.evaluate import evaluate
from eval.measuring.answers import distinct_bigrams, read_prompts
from eval.promotion import promote
from eval.rows import Sample, SuiteItem, seed_for
from eval.suites.suite import find_suite, read_items
from eval.verdict.gate import read_verdict

GATE: Any = {
    "distinct_bigrams": {"direction": "higher", "margin": 0.1},
    "sentence_pairs/lean": {"direction": "closer_to_zero", "margin": 0.1},
}


class FakeSampler:
    """Answers with words that depend on the seed; every third answer is cut off."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.calls: list[list[int]] = []

    def use(self, model: Model) -> "FakeSampler":
        return self

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_response_tokens: int, temperature: float
    ) -> list[Completion]:  # fmt: skip
        self.calls.append(list(seeds))
        completions = []
        for seed in seeds:
            ids = self.tokenizer.encode(f"Answer {seed}.", add_special_tokens=False)
            is_cut = seed % 3 == 0
            ids = ids if is_cut else [*ids, self.tokenizer.eos_token_id]
            completions.append(Completion(ids, [0.0] * len(ids), "length" if is_cut else "eos"))
        return completions


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [{"id": f"p{i}", "prompt": [{"role": "user", "content": f"Question {i}?"}]} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_both_models_answer_with_the_same_seeds(tiny_model: Model, runs: Runs, prompts: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    sampler: Any = FakeSampler(tokenizer)
    config = EvalConfig(prompts=str(prompts), samples_per_prompt=2, gate=GATE)
    run = evaluate(config, runs, sampler, tiny_model, tiny_model, show=lambda line: None)

    assert sampler.calls[0] == sampler.calls[1] and len(set(sampler.calls[0])) == 12
    samples = read_jsonl(run.path / "samples.jsonl", Sample)
    assert len(samples) == 12
    for sample in samples:
        answer = sample.baseline
        assert answer.text == f"Answer {answer.seed}."
        assert answer.seed == seed_for(0, sample.id, sample.sample)
        ids = tokenizer.encode(answer.text, add_special_tokens=False)
        assert (answer.tokens, answer.finish) == (len(ids), "length" if answer.seed % 3 == 0 else "eos")
        assert decode_response(tokenizer, ids) == answer.text
    assert len(read_jsonl(run.path / "suites.jsonl", SuiteItem)) == 120
    verdict = read_verdict(run)
    assert [metric.name for metric in verdict.metrics][:2] == ["distinct_bigrams", "sentence_pairs/lean"]
    assert not {"reward", "utility"} & {metric.name for metric in verdict.metrics}
    assert "utility" not in (run.path / "report.html").read_text().lower()
    # an identical model can only pass, or leave it open; no answer here repeats a pair of words, which shows nothing
    assert verdict.outcome == "INCONCLUSIVE"
    bigrams, lean = verdict.deciding
    assert bigrams.cannot_decide is not None and "same value" in bigrams.cannot_decide
    assert lean.cannot_decide is None and lean.p_change == 1.0
    assert "same value" in verdict.reason() and "sentence templates" in verdict.items_to_decide
    # 120 pairs of 8 groups, 4 templates each: too small to say; the prompts have no groups
    assert {each.slice for each in verdict.slices} == set(
        Counter(p.group for p in read_items(find_suite("sentence_pairs")))
    )
    assert all(each.low is None and each.clusters == 4 for each in verdict.slices)
    assert "checkpoints" not in [path.name for path in run.path.iterdir()]
    # finished: nothing is sampled again
    assert evaluate(config, runs, sampler, tiny_model, tiny_model).id == run.id
    assert len(sampler.calls) == 2


def test_each_models_tokenizer_is_loaded_once(
    tiny_model: Model, runs: Runs, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    sampler: Any = FakeSampler(load_tokenizer(tiny_model))
    loaded, load = [], transformers.AutoTokenizer.from_pretrained

    def counted(folder: Path) -> Any:
        loaded.append(folder)
        return load(folder)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", counted)
    gate: Any = {"eos_rate": {"margin": 0.1}}
    suites = ["sentence_pairs", "sycophancy", "instructions", "harmless_lookalikes"]
    config = EvalConfig(prompts=str(prompts), gate=gate, suites=suites, max_suite_items=2)
    evaluate(config, runs, sampler, tiny_model, tiny_model, show=lambda line: None)
    assert loaded == [tiny_model.folder] * 2  # as the baseline, and as the candidate


def test_a_killed_evaluation_continues_with_the_answers_it_has(
    tiny_model: Model, runs: Runs, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler: Any = FakeSampler(load_tokenizer(tiny_model))
    config = EvalConfig(prompts=str(prompts), gate=GATE)

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("eval.evaluate.conclude", killed)
        evaluate(config, runs, sampler, tiny_model, tiny_model, show=lambda line: None)
    assert len(sampler.calls) == 2
    monkeypatch.setattr("eval.evaluate.measure_by_likelihood", killed)
    run = evaluate(config, runs, sampler, tiny_model, tiny_model, show=lambda line: None)
    assert run.is_done and len(sampler.calls) == 2


def test_reward_gate_needs_a_reward_model(tiny_model: Model, runs: Runs, prompts: Path) -> None:
    sampler: Any = FakeSampler(load_tokenizer(tiny_model))
    gate: Any = {"reward": {"direction": "higher", "margin": 0.1}}
    with pytest.raises(UsageError, match="needs a reward model"):
        evaluate(EvalConfig(prompts=str(prompts), gate=gate), runs, sampler, tiny_model, tiny_model)
    assert not runs.root.exists()


def test_bad_prompt_files(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    row = {"prompt": [{"role": "user", "content": "Why?"}]}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="at least two"):
        read_prompts(path)
    path.write_text(json.dumps(row | {"id": "a"}) + "\n" + json.dumps(row | {"id": "b"}) + "\n")
    with pytest.raises(DataError, match="stands in"):
        read_prompts(path)
    with pytest.raises(DataError, match="no such file"):
        read_prompts(tmp_path / "missing.jsonl")


def test_prompts_without_ids_are_named_by_their_content(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": [{"role": "user", "content": c}]}) + "\n" for c in "ab"))
    first = read_prompts(path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[::-1]))
    assert first == read_prompts(path)
    assert next(iter(first.values())) == [Message(role="user", content="a")]


def test_distinct_bigrams_by_hand() -> None:
    # the cat | cat and | and the | the cat: 3 of 4 are different
    assert distinct_bigrams("The cat and the cat") == 3 / 4
    assert distinct_bigrams("no no no no") == 1 / 3
    assert distinct_bigrams("word") == distinct_bigrams("") == 1.0


def test_seeds_differ_and_stay() -> None:
    seeds = {seed_for(s, f"p{i}", k) for s in range(3) for i in range(50) for k in range(4)}
    assert len(seeds) == 600
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seed_for(0, "p0", 0) == seed_for(0, "p0", 0)


def test_what_lm_eval_logged_decides_like_any_suite(tiny_model: Model, runs: Runs, prompts: Path) -> None:
    def logged(name: str, right: range, hash_: str = "h") -> str:
        rows = [
            {
                "doc_id": i,
                "doc_hash": f"{hash_}{i}",
                "filter": "none",
                "metrics": ["acc"],
                "acc": float(i in right),
            }
            for i in range(200)
        ]
        path = prompts.with_name(name)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    sampler: Any = FakeSampler(load_tokenizer(tiny_model))

    def gate(candidate: str) -> Any:
        task = {
            "baseline": logged("a.jsonl", range(120)),
            "candidate": candidate,
            "metrics": {"acc": "higher"},
        }
        settings: Any = {
            "prompts": str(prompts), "suites": [], "lm_eval": {"arc": task}, "gate": {"arc/acc": {"margin": 0.05}},
        }  # fmt: skip
        config = EvalConfig.model_validate(settings)
        return evaluate(config, runs, sampler, tiny_model, tiny_model, show=lambda line: None)

    run = gate(logged("b.jsonl", range(60)))
    verdict = read_verdict(run)
    (metric,) = verdict.deciding
    assert (verdict.outcome, metric.name, metric.items, metric.baseline, metric.candidate) == (
        "FAIL", "arc/acc", 200, 0.6, 0.3
    )  # fmt: skip
    assert {"suite:arc/baseline", "suite:arc/candidate"} <= verdict.files.keys()
    assert [suite.name for suite in verdict.suites] == ["arc"] and "arc: acc" in (
        run.path / "report.html"
    ).read_text()
    # the same samples pass, and the model's card names what they are from
    run = gate(logged("a.jsonl", range(120)))
    promote(run, runs)
    (card,) = (runs.root / "promoted").glob("*/README.md")
    (result,) = [
        each for each in ModelCard.load(card).data.eval_results or [] if each.metric_type == "arc/acc"
    ]
    files = {role: each for role, each in read_verdict(run).files.items() if role.startswith("suite:arc/")}
    assert len(files) == 2 and result.dataset_revision == content_id(files, 64)
    assert all(digest in card.read_text() for digest in files.values())
    with pytest.raises(DataError, match="another document"):
        gate(logged("c.jsonl", range(60), "other"))
    with pytest.raises(ValueError, match="unknown metric 'arc/acc'"):
        EvalConfig.model_validate({"gate": {"arc/acc": {"margin": 0.1}}})
    both: Any = {"arc": {"metrics": {"acc": "higher"}, "folder": ".", "baseline": "a"}}
    with pytest.raises(ValueError, match="give either folder"):
        EvalConfig.model_validate({"lm_eval": both, "gate": {"eos_rate": {"margin": 0.1}}})
