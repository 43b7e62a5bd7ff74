"""Labels by class against figures worked out by hand, their intervals, and how a label is read."""

import numpy as np
import pytest

from accord.text_metrics import label_metrics, read_label


def test_precision_recall_and_f1_by_hand() -> None:
    """a: 3 items, given 4 times, 2 of them rightly. b: 2 items, given once, rightly. c: 1 item, never given."""
    truth = ["a", "a", "a", "b", "b", "c"]
    given = ["a", "a", None, "b", "a", "a"]
    found = label_metrics(truth, given)
    a, b, c = found.classes
    assert (a.label, a.items, a.given) == ("a", 3, 4)
    assert a.precision and a.recall and a.f1
    assert (a.precision.value, a.recall.value) == (pytest.approx(2 / 4), pytest.approx(2 / 3))
    assert a.f1.value == pytest.approx(2 * 2 / (3 + 4))
    assert b.precision and b.recall and b.f1
    assert (b.precision.value, b.recall.value, b.f1.value) == (1.0, 0.5, pytest.approx(2 / 3))
    assert c.precision is None and c.recall and c.f1 and (c.recall.value, c.f1.value) == (0.0, 0.0)
    assert found.accuracy.value == pytest.approx(3 / 6)
    assert found.unread == 1
    assert found.macro_precision.value == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found.macro_recall.value == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert found.macro_f1.value == pytest.approx((4 / 7 + 2 / 3 + 0) / 3)
    assert found.accuracy.low is None  # six items


def test_a_label_that_no_item_has_is_wrong_and_no_class() -> None:
    found = label_metrics(["a", "b"], ["c", "b"])
    assert [each.label for each in found.classes] == ["a", "b"]
    assert (found.accuracy.value, found.unread) == (0.5, 1)


def test_intervals_cover_and_follow_the_clusters() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        truth = rng.choice(["a", "b"], 150, p=[0.8, 0.2]).tolist()
        given = [label if rng.random() < 0.7 else "a" for label in truth]
        found = label_metrics(truth, given)  # of b, 70% are found, and no a is called b: F1 = 2 * 0.7 / 1.7
        f1 = found.classes[1].f1
        assert f1 and f1.low is not None and f1.high is not None
        covered += f1.low <= 2 * 0.7 / 1.7 <= f1.high
    assert covered >= 52  # of 60, 57 expected
    alone = label_metrics(truth, given)
    twice = label_metrics(truth * 2, given * 2, [str(i) for i in range(150)] * 2)
    assert twice.macro_f1.low == pytest.approx(alone.macro_f1.low)
    assert twice.macro_f1.value == pytest.approx(alone.macro_f1.value)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("Refund.", "refund"),
        ("The category is: Refund!", "refund"),
        ("refund or delivery", None),
        ("refunds", None),
        ("very late delivery", "late delivery"),  # which holds another label
        ("late delivery and delivery", "late delivery"),
        ("", None),
    ],
)
def test_how_a_label_is_read(answer: str, label: str | None) -> None:
    assert read_label(answer, ["refund", "delivery", "late delivery"]) == label
