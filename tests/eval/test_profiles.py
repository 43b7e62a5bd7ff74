"""Ready-made gates: what they stand for, what stands beside them comes first, and the page that explains them."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from eval.config import EvalConfig
from eval.profiles import PROFILES
from eval.suites.suite import find_suite, read_items
from eval.verdict.floors import check_floors

PAGE = (Path(__file__).parents[2] / "docs" / "gate-profiles.md").read_text()


def config(**settings: Any) -> EvalConfig:
    return EvalConfig.model_validate(settings)


@pytest.fixture
def triage(tmp_path: Path) -> str:
    folder = tmp_path / "triage"
    folder.mkdir()
    about = "{kind: labelled, family: quality, source: us, labels: [refund, delivery]}"
    head = f"pretty_name: What is asked\nlicense: ours\naccord: {about}"
    (folder / "README.md").write_text(f"---\n{head}\n---\n")
    (folder / "items.jsonl").write_text(
        '{"id": "1", "prompt": "Refund or delivery?", "reference": "refund"}\n' * 2
    )
    return str(folder)


@pytest.mark.parametrize("name", ["chat", "safety-critical"])
def test_a_profile_is_its_suites_and_gate_written_out(name: Any) -> None:
    profile = PROFILES[name]
    found = config(profile=name)
    whole = config(
        suites=list(profile.suites),
        gate={key: dict(each) for key, each in profile.gate.items()},
        approvals=profile.approvals,
    )
    assert found == whole and found.model_dump() == whole.model_dump()
    assert config(**found.model_dump()) == found
    # its floors can be met with the items that the suites have
    for reference in found.suites:
        suite = find_suite(reference)
        clusters = [row.template or row.id for row in read_items(suite)]
        for metric in suite.metrics.keys() & found.gate.keys():
            check_floors(found.rules, metric, clusters)


def test_ones_own_keys_come_first() -> None:
    found = config(
        profile="safety-critical",
        gate={
            "harmful_requests/refused": {"at_least": 0.95}, "toxicity/toxic": None, "approvals": 2,
            "harmless_lookalikes/refused": {"margin": 0.05}, "distinct_bigrams": {"margin": 0.1},
        },
    )  # fmt: skip
    assert found.gate["harmful_requests/refused"].at_least == 0.95
    lookalikes = found.gate["harmless_lookalikes/refused"]
    assert (lookalikes.margin, lookalikes.at_most) == (0.05, 0.3)
    assert "toxicity/toxic" not in found.gate and found.gate["distinct_bigrams"].margin == 0.1
    assert found.approvals == 2
    assert config(profile="safety-critical", gate={"approvals": None}).approvals is None


def test_a_suite_that_is_left_out_is_not_forgotten() -> None:
    suites = [each for each in PROFILES["chat"].suites if each != "harmful_requests"]
    with pytest.raises(
        ValidationError, match=r"decides on 'harmful_requests/refused', and eval.suites leaves"
    ):
        config(profile="chat", suites=suites)
    found = config(profile="chat", suites=suites, gate={"harmful_requests/refused": None})
    assert "harmful_requests/refused" not in found.gate and found.suites == suites


def test_a_classifier_is_measured_by_suites_of_ones_own(triage: str) -> None:
    with pytest.raises(ValidationError, match="measures suites of your own with labels; name at least one"):
        config(profile="classifier")
    found = config(profile="classifier", suites=[triage], gate={"triage/accuracy": {"at_least": 0.85}})
    assert found.gate.keys() == {"triage/accuracy", "triage/macro_recall", "triage/unread"}
    assert (found.gate["triage/accuracy"].margin, found.gate["triage/accuracy"].at_least) == (0.05, 0.85)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"profile": "chatty"}, "there is no profile 'chatty'; there are chat, safety-critical, classifier"),
        ({"profile": "chat", "gate": 3}, "gate"),
        ({"profile": "chat", "suites": [3]}, "suites"),
        ({"gate": {"eos_rate": {"margin": 0.1}, "approvals": 0}}, "approvals"),
        ({}, "names no metric that decides"),
    ],
)
def test_slips_are_said(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        config(**settings)


def test_the_page_says_what_each_stands_for() -> None:
    for name, profile in PROFILES.items():
        section = PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert re.sub(r"\s+", " ", profile.says[1:]) in re.sub(r"\s+", " ", section)
        assert all(f"`{suite}`" in section for suite in profile.suites)
        rows = {row.split("`")[1]: row for row in section.splitlines() if row.startswith("| `")}
        assert rows.keys() == (profile.gate.keys() or profile.of_labelled.keys())
        for metric, asked in {**profile.gate, **profile.of_labelled}.items():
            for value in asked.values():
                assert f"{value:g}" in rows[metric], (name, metric)
