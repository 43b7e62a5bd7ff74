"""Rankings, choices and labels that were collected elsewhere: read, measured, trained on and exported like ours."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from accord.cli.main import main
from accord.errors import DataError
from accord.records import Comparison, Preference, read_jsonl
from accord.runs import Runs
from accord.text_files import write_jsonl
from feedback.belief.agreement import measure_agreement
from feedback.belief.labels import desirable_or_not
from feedback.belief.reliability import fit_reliability
from feedback.export import export_data_set
from feedback.outside.rows import read_outside
from feedback.outside.run import import_feedback
from feedback.page.report import summary
from reward.data import read_preference_data

ASKED = {"prompt": "Name a prime."}


def read(tmp_path: Path, *rows: dict[str, Any]) -> list[Comparison]:
    file = tmp_path / "outside.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_outside(str(file))[0]


def said(comparison: Comparison) -> dict[str, dict[str, int]]:
    """Each annotator's ranks by the answers' texts."""
    return {
        ranking.annotator: dict(
            zip([each.text for each in comparison.responses], ranking.ranks or [], strict=True)
        )
        for ranking in comparison.rankings
    }


def test_rows_of_one_record_are_one_comparison_whatever_order_they_name_the_answers_in(
    tmp_path: Path,
) -> None:
    (found,) = read(
        tmp_path,
        ASKED | {"responses": ["Nine.", "Seven.", "One."], "ranks": [3, 1, 2], "annotator": "ann", "topic": "maths"},
        ASKED | {"responses": ["Seven.", "One.", "Nine."], "ranks": [1, 1, 2], "worker_id": 7},
    )  # fmt: skip
    assert said(found) == {
        "ann": {"Nine.": 3, "Seven.": 1, "One.": 2},
        "7": {"Nine.": 2, "Seven.": 1, "One.": 1},
    }
    assert found.prompt[-1].text == "Name a prime." and (found.model_extra or {})["topic"] == "maths"
    assert all(each.run is None and each.seed is None for each in found.responses)


def test_pairs_and_choices_with_ties(tmp_path: Path) -> None:
    (pair,) = read(
        tmp_path,
        ASKED | {"chosen": "Seven.", "rejected": "Nine.", "annotator": "ann"},
        ASKED | {"chosen": "Nine.", "rejected": "Seven.", "annotator": "bob"},
    )
    assert said(pair) == {"ann": {"Seven.": 1, "Nine.": 2}, "bob": {"Seven.": 2, "Nine.": 1}}
    both = {"response_a": "Seven.", "response_b": "Nine."}
    (choice,) = read(
        tmp_path,
        ASKED | both | {"winner": "b", "annotator": "ann"},
        ASKED | both | {"winner": "tie", "annotator": "bob"},
    )
    assert said(choice) == {"ann": {"Seven.": 2, "Nine.": 1}, "bob": {"Seven.": 1, "Nine.": 1}}


def test_who_ranks_a_record_again_repeats_it(tmp_path: Path) -> None:
    row = ASKED | {"chosen": "Seven.", "rejected": "Nine.", "annotator": "ann"}
    first, again = read(tmp_path, row, row | {"annotator": "bob"}, row)
    assert again.duplicate_of == first.id and again.is_probe and set(said(again)) == {"ann"}
    agreement = measure_agreement([first, again])
    consistency = agreement.annotators["ann"].self_consistency
    assert consistency is not None and consistency.value == 1.0


def test_labels_of_several_answers_are_a_ranking_and_stay_labels(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    rows = [
        ASKED | {"completion": "Seven.", "label": True, "annotator": "ann"},
        ASKED | {"completion": "Nine.", "label": False, "annotator": "ann"},
        ASKED | {"completion": "Nine.", "label": False, "annotator": "bob"},
        ASKED | {"completion": "Seven.", "label": True, "annotator": "bob"},
        {"prompt": "Name a tree.", "completion": "Oak.", "label": True, "annotator": "ann"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,), left_out = read_outside(str(file))
    assert left_out == 1
    assert said(found) == {"ann": {"Seven.": 1, "Nine.": 2}, "bob": {"Seven.": 1, "Nine.": 2}}
    labels, _ = desirable_or_not([found])
    assert {row.completion[0].text: row.label for row in labels} == {"Seven.": True, "Nine.": False}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ASKED | {"chosen": "Seven.", "rejected": "Nine."}, r"jsonl:1: does not say who ranked; .* 'annotator'"),
        (ASKED | {"responses": ["Seven.", "Nine."], "annotator": "ann"}, r"jsonl:1: has neither ranks nor scores"),
        (ASKED | {"responses": ["Seven."], "ranks": [1], "annotator": "ann"}, r"jsonl:1: "),
        (ASKED | {"completion": "Seven.", "label": True, "annotator": "ann"}, r"1 labels are of the only answer"),
        ({"colour": "red", "annotator": "ann"}, r"jsonl:1: "),
    ],
)  # fmt: skip
def test_what_cannot_be_read_names_its_row(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, row)


def made(file: Path, records: int = 40) -> None:
    """Three annotators of pairs: two who follow the longer number, and one who ranks at random; without run or seed."""
    chance = random.Random(0)
    rows = []
    for i in range(records):
        for who in ("ann", "bob", "cyd"):
            right = chance.random() < (0.5 if who == "cyd" else 0.95)
            one, other = (f"{i}00", f"{i}") if right else (f"{i}", f"{i}00")
            rows.append({"prompt": f"Question {i}?", "chosen": one, "rejected": other, "annotator": who})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_file_goes_the_way_of_a_run_of_ours(tmp_path: Path, runs: Runs) -> None:
    file = tmp_path / "outside.jsonl"
    made(file)
    run = import_feedback(str(file), runs)
    assert run.is_done and import_feedback(str(file), runs).id == run.id
    comparisons = read_jsonl(run.output("comparisons.jsonl"), Comparison)
    reliability = fit_reliability(comparisons)
    betas = {name: each.beta for name, each in reliability.annotators.items()}
    assert betas["cyd"] < min(betas["ann"], betas["bob"]) - 0.5
    preferences = read_jsonl(run.output("preferences.jsonl"), Preference)
    right = [each.chosen[0].text.endswith("00") and len(each.chosen[0].text) > 2 for each in preferences]
    assert len(preferences) > 30 and sum(right) / len(right) > 0.9
    assert (run.path / "report.html").exists()
    assert read_preference_data(run, with_reliability=True).reliability == reliability

    export_data_set(run, runs, tmp_path / "data", with_names=False)
    card = (tmp_path / "data/README.md").read_text()
    assert (
        "- Collected elsewhere, and read from a file" in card
        and "annotator-" in card
        and "| ann |" not in card
    )


def test_the_documented_comparison_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/bring-your-data.md").read_text()
    row = json.loads(page.split("### Comparisons")[1].split("```json\n")[1].split("```")[0])
    (found,) = read(tmp_path, row)
    assert set(said(found.model_copy(update={"rankings": [found.rankings[0]]}))) == {"ann"}
    assert found.rankings[1].status == "discarded" and found.responses[1].seed is None


def test_the_command_measures_a_file_and_makes_a_run_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made(Path("outside.jsonl"), records=12)
    comparisons, _ = read_outside("outside.jsonl")
    write_jsonl(Path("own.jsonl"), comparisons)  # accord's own form
    shown = {}
    for name in ("outside", "own"):
        done = CliRunner().invoke(main, ["feedback", "agreement", f"{name}.jsonl"], catch_exceptions=False)
        assert done.exit_code == 0
        shown[name] = done.output.splitlines()[:-1]
    assert shown["outside"] == shown["own"] and any("beta" in line for line in shown["own"])
    assert not Path("runs").exists()
    done = CliRunner().invoke(main, ["feedback", "import", "outside.jsonl"], catch_exceptions=False)
    run_id = done.output.split("preferences: run:")[1].strip()
    of_run = CliRunner().invoke(main, ["feedback", "agreement", run_id], catch_exceptions=False)
    assert of_run.output.splitlines()[:-1] == shown["own"]
    as_json = CliRunner().invoke(
        main, ["feedback", "agreement", "own.jsonl", "--json"], catch_exceptions=False
    )
    assert summary(json.loads(as_json.output)).splitlines() == shown["own"]
