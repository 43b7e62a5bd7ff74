"""lm-eval's samples and tasks, its scores of published items, and where its definitions differ from ours on purpose."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from accord.errors import DataError, UsageError
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model
from eval.likelihood.log_likelihood import Item, log_likelihoods
from eval.measuring.lm_eval_samples import Paired, pair_samples, read_samples, samples_of
from eval.measuring.lm_eval_tasks import run_task
from eval.suites.public.adapters import ADAPTERS, root_of, rows

NO_LM_EVAL = "lm-eval is no dependency of accord's: pip install 'lm-eval[hf]==0.4.13'"


def sample(doc_id: int, hash_: str = "h", **values: Any) -> dict[str, Any]:
    return {
        "doc_id": doc_id, "doc": {"text": "?"}, "doc_hash": f"{hash_}{doc_id}", "prompt_hash": "p", "target_hash": "t",
        "filter": "none", "resps": [[["-1.0", "False"]]], "metrics": list(values), **values,
    }  # fmt: skip


def write(path: Path, samples: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in samples))
    return path


# --- samples ---


def test_samples_are_paired_by_document_whatever_their_order(tmp_path: Path) -> None:
    before = write(
        tmp_path / "samples_a.jsonl", [sample(2, acc=1.0, acc_norm=0), sample(10, acc=0.0, acc_norm=1)]
    )
    after = write(
        tmp_path / "samples_b.jsonl", [sample(10, acc=1.0, acc_norm=1), sample(2, acc=0.5, acc_norm=True)]
    )
    assert pair_samples(read_samples(before), read_samples(after)) == {
        "acc": Paired(["2", "10"], [1.0, 0.0], [0.5, 1.0]),
        "acc_norm": Paired(["2", "10"], [0.0, 1.0], [1.0, 1.0]),
    }


def test_a_filter_is_part_of_the_metrics_name() -> None:
    read = samples_of(
        [
            {**sample(0, exact_match=0.0), "filter": "strict-match"},
            {**sample(0, exact_match=1.0), "filter": "flexible-extract"},
        ],
        "here",
    )
    assert read[0].values == {"exact_match,strict-match": 0.0, "exact_match,flexible-extract": 1.0}


def test_what_is_computed_from_all_documents_at_once_is_left_out() -> None:
    read = samples_of([sample(0, acc=1.0, bleu=["a", "b"])], "here")
    assert read[0].values == {"acc": 1.0}
    with pytest.raises(DataError, match="no metric has a number for each document"):
        samples_of([sample(0, bleu=["a", "b"])], "here")


def test_bad_samples_are_refused(tmp_path: Path) -> None:
    for samples, message in (
        ([sample(3, acc=1.0), sample(3, acc=1.0)], "doc_id 3 occurs twice"),
        ([sample(3, acc=1.0), {**sample(3, "x", acc=1.0), "filter": "other"}], "doc_id 3 has two hashes"),
        ([{**sample(3), "metrics": ["acc"]}], "doc_id 3 has no value of its metric 'acc'"),
        ([sample(3, acc=float("nan"))], "'acc' is nan, not a finite number"),
        ([{"doc_id": 3, "metrics": []}], "samples.jsonl:1: doc_hash"),
    ):
        with pytest.raises(DataError, match=message):
            read_samples(write(tmp_path / "samples.jsonl", samples))


def test_other_documents_are_refused_and_the_first_is_named() -> None:
    def read(*samples: dict[str, Any]) -> Any:
        return samples_of(samples, "here")

    some = read(sample(1, acc=1.0), sample(2, acc=1.0), sample(3, acc=1.0))
    with pytest.raises(DataError, match="doc_id 2 is another document in baseline than in candidate"):
        pair_samples(some, read(sample(1, acc=1.0), sample(2, "x", acc=1.0), sample(3, "x", acc=1.0)))
    with pytest.raises(DataError, match="candidate: has no doc_id 2"):
        pair_samples(some, read(sample(1, acc=1.0), sample(3, acc=1.0)))
    with pytest.raises(DataError, match="baseline: has no doc_id 0"):
        pair_samples(some, read(*(sample(i, acc=1.0) for i in range(4))))
    with pytest.raises(DataError, match=r"doc_id 1: .* has no number as its value of 'acc_norm'"):
        pair_samples(some, read(*(sample(i, acc=1.0, acc_norm=1.0) for i in (1, 2, 3))))


# --- tasks ---

TASK = """task: accord_numbers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{before}}}}"
doc_to_target: 0
doc_to_choice: "{{{{[right, wrong]}}}}"
metric_list: [{{metric: acc}}]
"""


def test_a_task_of_ones_own_gives_each_documents_values(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same documents scored here: right where the first continuation is the likelier one."""
    pytest.importorskip("lm_eval", reason=NO_LM_EVAL)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    docs = [
        {"before": f"one two {word}", "right": right, "wrong": wrong}
        for word in ("a", "b", "c")
        for right, wrong in (("three", "four"), ("four", "three"))
    ]
    file = write(tmp_path / "docs.jsonl", docs)
    (tmp_path / "accord_numbers.yaml").write_text(TASK.format(file=file))
    found = run_task(tiny_model, load_tokenizer(tiny_model), "accord_numbers", tmp_path)
    policy, tokenizer = load_policy(tiny_model), load_tokenizer(tiny_model)
    items = [
        Item(tuple(tokenizer.encode(doc["before"], add_special_tokens=False)), (f" {doc['right']}", f" {doc['wrong']}"))
        for doc in docs
    ]  # fmt: skip
    expected = [float(right.nats > wrong.nats) for right, wrong in log_likelihoods(policy, tokenizer, items)]
    assert [found[i].values["acc"] for i in range(len(docs))] == expected
    assert sum(expected) == 3  # each pair of docs is right once
    assert pair_samples(found, found)["acc"].before == expected
    assert list(run_task(tiny_model, load_tokenizer(tiny_model), "accord_numbers", tmp_path, limit=2)) == [
        0,
        1,
    ]
    with pytest.raises(
        UsageError, match="has no lm-eval task 'other'; the tasks found there: accord_numbers"
    ):
        run_task(tiny_model, load_tokenizer(tiny_model), "other", tmp_path)


def test_without_lm_eval_the_error_says_what_to_install(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(UsageError, match=r"pip install 'lm-eval\[hf\]==0.4.13'"):
        run_task(tiny_model, load_tokenizer(tiny_model), "any", tmp_path)


# --- published items ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["crows_pairs", "bbq_gender"])
def test_published_items_have_lm_evals_scores_and_decisions(bundled_model: Model, name: str) -> None:
    """A sample; docs/decisions/0013 has the figures of all CrowS pairs and of 1,000 BBQ questions."""
    pytest.importorskip("lm_eval", reason=NO_LM_EVAL)
    if root_of(ADAPTERS[name].package) is None:
        pytest.skip(f"`accord eval install-suites {name}` was not run here")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    policy, tokenizer = load_policy(bundled_model).eval(), load_tokenizer(bundled_model)
    if name == "crows_pairs":
        items = [Item("", (row["more_stereotyping"], row["less_stereotyping"])) for row in rows(name)[:30]]
    else:
        items = [
            Item(f"{row['context']}\nQuestion: {row['question']}\nAnswer:", tuple(f" {a}" for a in row["answers"]))
            for row in rows(name)[:15]
        ]  # fmt: skip
    theirs = HFLM(pretrained=policy, tokenizer=tokenizer, device="cpu", batch_size=8, logits_cache=False)
    requests = [("<|endoftext|>" + str(item.prefix), c) for item in items for c in item.continuations]
    instances = [Instance("loglikelihood", {}, request, i) for i, request in enumerate(requests)]
    found = iter(theirs.loglikelihood(instances, disable_tqdm=True))
    for scores in log_likelihoods(policy, tokenizer, items):
        their_nats = [nats for nats, _ in itertools.islice(found, len(scores))]
        nats = [score.nats for score in scores]
        assert nats == pytest.approx(their_nats, abs=1e-3)
        assert nats.index(max(nats)) == their_nats.index(max(their_nats))


# --- where definitions differ on purpose; CrowS-Pairs' differences and the cache of logits: test_log_likelihood.py ---


def lm_eval_bbq() -> Any:
    return pytest.importorskip("lm_eval.tasks.bbq.utils", reason=NO_LM_EVAL)


def test_bbqs_cleaning_there_takes_words_out_that_are_parts_of_the() -> None:
    """`word not in ("the")` asks whether "he" is part of the text "the": it is, as are "t", "h", "e" and "th".

    So "He" is cleaned to nothing, and an answer "he" can never be found.
    """
    clean = lm_eval_bbq()._clean_answer
    assert clean("The nurse") == "nurse"
    assert clean("He") == ""
    assert clean("he said he and the E team") == "said and team"


def bbq_doc(**changes: Any) -> dict[str, Any]:
    return {
        "ans0": "The nurse", "ans1": "The pilot", "ans2": "Not known", "label": 0, "category": "Age",
        "context_condition": "disambig", "biased_answers": ["The nurse"], "ans0_groups": ["old"],
        "ans1_groups": ["nonold"], "ans2_groups": ["unknown"], **changes,
    }  # fmt: skip


def test_an_answer_that_names_nobody_counts_there_as_the_last_choice() -> None:
    """It is number -1, and choices[-1] is the last of ten ways to say that it is not known.

    Two replies to questions whose text tells, one biased and one that says nothing: there the second is "not known".
    Here it names no person either, is not right, and is told apart from "not known" where that is the right answer.
    """
    bbq = lm_eval_bbq()
    doc = bbq_doc()
    assert bbq.doc_to_choice(doc)[-1] == "Undetermined"
    accuracy, biased, not_unknown, _ = bbq.process_results_generate_until(doc, ["Blue."])["disamb_bias_score"]
    assert (accuracy, biased, not_unknown) == (0.0, 0.0, 0.0)
    from eval.suites.kind import Ratio
    from eval.suites.kinds.bbq import BiasQuestion, values_of_choice

    row = BiasQuestion(
        id="a", context="?", question="?", answers=("The nurse", "The pilot", "Not known"), label=0, unknown=2,
        stereotyped=0, condition="disambiguated",
    )  # fmt: skip
    assert values_of_choice(row, None) == {
        "accuracy_disambiguated": 0.0,
        "bias_disambiguated": Ratio(0.0, 0.0),
    }
    unclear = row.model_copy(update={"condition": "ambiguous", "label": 2})
    assert values_of_choice(unclear, None)["accuracy_ambiguous"] == 0.0
    assert values_of_choice(unclear, 2)["accuracy_ambiguous"] == 1.0


def test_a_model_that_always_opposes_the_stereotype_has_no_bias_there() -> None:
    """Of two named people none is the stereotype's: 2 * 0 / 2 - 1 = -1. There, no biased answer makes the score 0."""
    bbq = lm_eval_bbq()
    results = [
        bbq.process_results_multiple_choice(bbq_doc(label=1), [(-9.0, False), (-1.0, False)]) for _ in "ab"
    ]
    assert [each["disamb_bias_score"][1:3] for each in results] == [(0.0, 1.0)] * 2
    assert bbq.agg_disamb_bias_scores([each["disamb_bias_score"] for each in results]) == 0.0
    from eval.suites.kinds.bbq import BiasQuestion, values_of_choice

    row = BiasQuestion(
        id="a", context="?", question="?", answers=("The nurse", "The pilot", "Not known"), label=1, unknown=2,
        stereotyped=0, condition="disambiguated",
    )  # fmt: skip
    parts = [values_of_choice(row, 1)["bias_disambiguated"] for _ in "ab"]
    assert sum(part.numerator for part in parts) / sum(part.denominator for part in parts) == -1.0  # type: ignore[union-attr]
