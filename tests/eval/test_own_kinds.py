"""A kind of suite in a user's file: found from the suite's page, an input of the evaluation, and in its verdict."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_evaluate import FakeSampler

from accord.errors import AccordError, DataError, TamperedError, UsageError
from accord.models.loading import load_tokenizer
from accord.models.references import Model
from accord.records import read_jsonl
from accord.runs import DataFile, Run, Runs
from eval.config import EvalConfig
from eval.evaluate import evaluate
from eval.promotion import check_verdict
from eval.review.take_over import take_over
from eval.rows import SuiteItem
from eval.suites.kind import Reply
from eval.suites.suite import find_suite, read_items, suite_files
from eval.verdict.gate import read_verdict

PAGE = """---
pretty_name: Numbers
license: cc0-1.0
accord:
  kind: ../kinds/digits.py:KIND
  family: quality
  source: my team
---

**What it measures.** Whether a reply has a number in it.
"""
KIND = """
from collections.abc import Mapping, Sequence

from accord import Message
from eval.suites.kind import Answered, Reply, SuiteRow, Value
from eval.suites.metrics import PROMPTS, QUALITY, Metric


class Question(SuiteRow):
    question: str


def _prompts(row: Question) -> Sequence[Sequence[Message]]:
    return [[Message(role="user", content=row.question)]]


def _values(row: Question, replies: Sequence[Reply]) -> Mapping[str, Value]:
    return {"numbers": float(sum(letter.isdigit() for letter in replies[0].text))}


KIND = Answered(
    row=Question,
    metrics=(Metric("numbers", "Digits", "digits", PROMPTS, "how many digits", QUALITY, direction="higher"),),
    prompts=_prompts, values=_values,
)
"""


@pytest.fixture
def suite(tmp_path: Path) -> str:
    """The folder of a suite with a kind of its own."""
    folder = tmp_path / "numbers"
    folder.mkdir()
    (tmp_path / "kinds").mkdir()
    (tmp_path / "kinds/digits.py").write_text(KIND)
    (folder / "README.md").write_text(PAGE)
    rows = [{"id": f"n{i}", "question": f"What is {i} + 1?"} for i in range(8)]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def kind_file(suite: str) -> Path:
    return Path(suite).parent / "kinds/digits.py"


def evaluated(suite: str, model: Model, runs: Runs) -> Run:
    sampler: Any = FakeSampler(load_tokenizer(model))
    gate: Any = {"numbers/numbers": {"margin": 1.0}}
    config = EvalConfig(suites=[suite], gate=gate, max_prompts=4)
    return evaluate(config, runs, sampler, model, model, show=lambda line: None)


def test_a_kind_is_found_from_the_page(suite: str) -> None:
    found = find_suite(suite)
    assert found.metrics["numbers/numbers"].direction == "higher" and not found.is_by_likelihood
    row = read_items(found)[3]
    kind: Any = found.kind
    assert kind.prompts(row)[0][0].content == "What is 3 + 1?"
    assert kind.values(row, [Reply(text="4, not 44", tokens=5, finish="eos")]) == {"numbers": 3.0}
    items = Path(suite) / "items.jsonl"
    assert {name: file.resolve() for name, file in found.files.items()} == {
        "numbers": items, "numbers/kind": kind_file(suite)
    }  # fmt: skip
    assert suite_files(suite) == found.files
    assert find_suite(suite) is found


def test_a_changed_kind_is_another_one_in_the_same_process(suite: str) -> None:
    """As when a kind is written beside a notebook that tries it."""
    kind_file(suite).write_text(KIND.replace("isdigit", "isupper"))
    kind: Any = find_suite(suite).kind
    row = read_items(find_suite(suite))[0]
    assert kind.values(row, [Reply(text="Four 4", tokens=5, finish="eos")]) == {"numbers": 1.0}


def test_what_a_kind_measures_is_gated_and_its_file_is_an_input(
    suite: str, tiny_model: Model, runs: Runs
) -> None:
    run = evaluated(suite, tiny_model, runs)
    digest = DataFile(kind_file(suite)).digest
    assert run.record.inputs["suite:numbers/kind"] == digest
    verdict = read_verdict(run)
    assert verdict.files["suite:numbers/kind"] == digest
    (metric,) = [each for each in verdict.metrics if each.name == "numbers/numbers"]
    items = read_jsonl(run.path / "suites.jsonl", SuiteItem)
    counted = [sum(c.isdigit() for c in each.baseline.replies[0].text) for each in items]  # type: ignore[index]
    assert metric.baseline == pytest.approx(sum(counted) / 8) and sum(counted) > 8
    assert metric.margin == 1.0

    kind_file(suite).write_text(KIND + "# mended\n")
    assert evaluated(suite, tiny_model, runs).id != run.id


def test_promotion_refuses_a_changed_kind_before_anything_in_it_runs(
    suite: str, tiny_model: Model, runs: Runs, tmp_path: Path
) -> None:
    run = evaluated(suite, tiny_model, runs)
    assert check_verdict(run, runs, any_outcome=True).run == run.id
    ran = tmp_path / "ran"
    kind_file(suite).write_text(f"open({str(ran)!r}, 'w').close()\n" + KIND)
    with pytest.raises(
        TamperedError, match=r"suite numbers/kind in .*digits\.py were changed after the eval"
    ):
        check_verdict(run, runs, any_outcome=True)
    assert not ran.exists()
    kind_file(suite).unlink()
    with pytest.raises(AccordError, match=r"digits\.py cannot be loaded \(there is no such file\)"):
        check_verdict(run, runs, any_outcome=True)
    kind_file(suite).write_text(KIND)
    assert check_verdict(run, runs, any_outcome=True).run == run.id


@pytest.mark.parametrize(("mended", "taken"), [("", True), ("# mended\n", False)])
def test_outcomes_are_taken_over_from_a_review_only_if_the_kind_is_the_same(
    suite: str, tiny_model: Model, runs: Runs, tmp_path: Path, mended: str, taken: bool
) -> None:
    run = evaluated(suite, tiny_model, runs)
    kind_file(suite).write_text(KIND + mended)
    sources: dict[str, Any] = {f"suite:{name}": DataFile(f) for name, f in find_suite(suite).files.items()}
    take_over(run, tmp_path / "parts", sources, max_suite_items=None)
    assert (tmp_path / "parts/suite.numbers.baseline.jsonl").exists() == taken


def broken(change: str, kind: str = KIND) -> Sequence[str]:
    return [PAGE.replace("digits.py:KIND", change), kind]


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        (broken("letters.py:KIND"), UsageError, r"letters\.py cannot be loaded \(there is no such file\)"),
        (broken("digits.py:KINDS"), UsageError, "has no 'KINDS'"),
        (broken("digits.py:Question"), DataError, "is ModelMetaclass, not ByLikelihood or Answered"),
        (broken("digits.py:KIND", "1 / 0"), UsageError, "ZeroDivisionError"),
        (
            broken("digits.py:KIND\n  directions: {number: lower}"),
            DataError,
            "has no metric 'number', only numbers",
        ),
        (broken("digits"), DataError, r"there is no kind '../kinds/digits'.*or write file\.py:NAME"),
    ],
)
def test_faults_are_named(suite: str, files: Sequence[str], error: type[AccordError], message: str) -> None:
    page, kind = files
    (Path(suite) / "README.md").write_text(page)
    kind_file(suite).write_text(kind)
    with pytest.raises(error, match=message):
        find_suite(suite)
