"""Suites of labels: a page of five lines, figures against those worked out by hand, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accord.errors import DataError
from accord.text_metrics import label_metrics
from eval.config import EvalConfig
from eval.measuring.values import linear, measured_suites
from eval.page.suites import _number
from eval.rows import Outcome, SuiteItem
from eval.suites.kind import Answered, Ratio, Reply
from eval.suites.suite import find_suite, read_items
from eval.verdict.comparison import compare

PAGE = """---
pretty_name: What a customer writes about
license: ours
accord: {kind: labelled, family: quality, source: us, labels: [Refund, late delivery]}
---
"""
TRUTH = ["refund", "refund", "refund", "late delivery", "Late delivery."]
SAID = ["Refund!", "It is a refund.", "late delivery", "late delivery", "either: refund or late delivery"]


def make(root: Path, page: str = PAGE, truth: Any = TRUTH) -> str:
    (root / "mine").mkdir()
    (root / "mine" / "README.md").write_text(page)
    rows = [{"id": str(i), "prompt": f"Letter {i}", "reference": each} for i, each in enumerate(truth)]
    (root / "mine" / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(root / "mine")


def reply(text: str) -> list[Reply]:
    return [Reply(text=text, tokens=3, finish="eos")]


def test_five_lines_and_figures_by_hand(tmp_path: Path) -> None:
    """Of refund 2 of 3 are found and nothing else is called so; of late delivery 1 of 2, and one refund is."""
    suite = find_suite(make(tmp_path))
    assert isinstance(suite.kind, Answered)
    rows = read_items(suite)
    values = [suite.kind.values(row, reply(said)) for row, said in zip(rows, SAID, strict=True)]
    found = {name: float(np.mean(linear([each[name] for each in values]))) for name in values[0]}
    assert found == pytest.approx(
        {
            "accuracy": 3 / 5, "unread": 1 / 5,
            "precision_refund": 1.0, "recall_refund": 2 / 3, "f1_refund": 2 * 2 / (2 + 3),
            "precision_late_delivery": 1 / 2, "recall_late_delivery": 1 / 2, "f1_late_delivery": 1 / 2,
            "macro_precision": 3 / 4, "macro_recall": 7 / 12, "macro_f1": (4 / 5 + 1 / 2) / 2,
        }
    )  # fmt: skip
    assert {f"mine/{name}" for name in found} == suite.metrics.keys()
    assert suite.metrics["mine/f1_late_delivery"].label.endswith("F1 of “late delivery”")
    core = label_metrics(["r"] * 3 + ["l"] * 2, ["r", "r", "l", "l", None])
    assert core.macro_f1.value == pytest.approx(found["macro_f1"])


def test_a_mean_of_quotients_survives_its_file_and_has_the_right_spread(tmp_path: Path) -> None:
    suite = find_suite(make(tmp_path))
    assert isinstance(suite.kind, Answered)
    [row, *_] = read_items(suite)
    outcome = Outcome(id="0", replies=reply("refund"), values=dict(suite.kind.values(row, reply("refund"))))
    item = SuiteItem(suite="mine", id="0", item=row.model_dump(), baseline=outcome, candidate=outcome)
    again = SuiteItem.model_validate_json(item.model_dump_json())
    assert again.baseline.values == outcome.values
    assert measured_suites([again])["mine/macro_f1"].before == [[Ratio(2, 2), Ratio(0, 0)]]
    assert _number(again.baseline.values["macro_f1"]) == 1.0

    rng = np.random.default_rng(0)

    def some(n: int) -> list[list[Ratio]]:
        first = rng.random(n) < 0.3
        return [
            [Ratio(float(a and b), float(a)), Ratio(float(not a and b), float(not a))]
            for a, b in zip(first, rng.random(n) < np.where(first, 0.5, 0.9), strict=True)
        ]

    drawn = np.array([np.mean(linear(some(300))) for _ in range(300)])
    assert drawn.mean() == pytest.approx(0.7, abs=0.01)
    predicted = np.std(linear(some(20_000))) / np.sqrt(300)
    assert predicted == pytest.approx(drawn.std(), rel=0.15)


@pytest.mark.parametrize(
    ("page", "truth", "says"),
    [
        (PAGE, ["refund", "lost"], "items.jsonl:2: .*must be one of the page's labels: Refund, late delivery"),
        (PAGE, [["refund", "late delivery"], "refund"], "must be one of the page's labels"),
        (PAGE.replace("labelled", "text"), TRUTH, "the kind text has none; only labelled has"),
        (PAGE.replace("late delivery", "refund."), TRUTH, "no two may differ in case and punctuation only"),
        (PAGE.replace(", late delivery", ""), TRUTH, "must be two at least"),
        (PAGE.replace("Refund, late delivery", "yes, no"), TRUTH, "write them in quotes"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, page: str, truth: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_items(find_suite(make(tmp_path, page, truth)))


def test_the_gate_decides_on_macro_f1(tmp_path: Path) -> None:
    """A candidate that answers the frequent label always keeps its accuracy at 80% and loses the rare one's F1."""
    truth = ["refund" if i % 5 else "late delivery" for i in range(200)]
    reference = make(tmp_path, truth=truth)
    suite = find_suite(reference)
    assert isinstance(suite.kind, Answered)

    def outcome(row: Any, said: str) -> Outcome:
        assert isinstance(suite.kind, Answered)
        return Outcome(id=row.id, replies=reply(said), values=dict(suite.kind.values(row, reply(said))))

    items = []
    for i, row in enumerate(read_items(suite)):
        wrong = "late delivery" if truth[i] == "refund" else "refund"
        before = outcome(row, truth[i] if i % 4 else wrong)
        items.append(
            SuiteItem(
                suite="mine",
                id=row.id,
                item=row.model_dump(),
                baseline=before,
                candidate=outcome(row, "refund"),
            )
        )
    config = EvalConfig.model_validate({"suites": [reference], "gate": {"mine/macro_f1": {"margin": 0.05}}})
    found = {each.name: each for each in compare(measured_suites(items), config.rules).metrics}
    macro, accuracy = found["mine/macro_f1"], found["mine/accuracy"]
    assert macro.verdict == "FAIL" and accuracy.verdict is None
    right = label_metrics(truth, [truth[i] if i % 4 else "" for i in range(200)])
    assert accuracy.candidate == pytest.approx(0.8) and accuracy.baseline == right.accuracy.value
    assert macro.candidate == pytest.approx((2 * 160 / (160 + 200)) / 2)
    assert (
        macro.low is not None
        and macro.high is not None
        and macro.low < macro.candidate - macro.baseline < macro.high
    )
