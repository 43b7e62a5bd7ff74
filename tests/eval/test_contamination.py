"""Everything a candidate was trained on is compared, or it is said that it was not."""

import json
import shutil
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from accord.config import Config
from accord.data.quality.overlap import TrainingText
from accord.errors import DataError
from accord.models.references import Model
from accord.runs import DataFile, Run, Runs, Source
from accord.text_files import write_jsonl
from eval.checks.contamination import (
    Contamination,
    SuiteOverlap,
    blocks,
    contamination,
    overlap,
    training_data,
)

ASKED = "How long should a loaf of rye bread cool before I cut it into slices?"
ANSWERED = "Let it cool on a rack for at least two hours, and better still overnight."
RANKED = "The crumb sets while the loaf cools, so a warm loaf turns gummy under the knife."
OUTSIDE = "bundled:a-model@0123"


class StageConfig(Config):
    """Stands for any stage's configuration."""

    demonstrations: list[dict[str, Any]] | str | None = None
    heldout: str | None = None
    prompts: str | None = None


class Outside:
    """Stands for a model from outside."""

    run_id = None
    digest = OUTSIDE


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def stage(
    runs: Runs, name: str, config: Config, sources: Mapping[str, Source], files: Mapping[str, Any] = {}
) -> Run:
    with runs.begin(name, config, sources) as run:
        for file, rows in files.items():
            write_jsonl(run.path / file, rows)
        run.finish({})
    return run


def lineage(root: Path) -> tuple[Model, Runs]:
    """SFT on two files, then feedback, then a reward model with demonstrations, then PPO."""
    runs = Runs(root / "runs")
    first, second, prompts, heldout = (
        root / f"{name}.jsonl" for name in ("first", "second", "prompts", "heldout")
    )
    write_jsonl(
        first, [{"messages": user("What is rye?") + assistant("Rye is a grain that grows in poor soil.")}]
    )
    second.write_text("\n" + json.dumps({"messages": user("And bread?") + assistant(ANSWERED)}) + "\n")
    write_jsonl(prompts, [{"prompt": user("How is rye bread made?")}, {"prompt": user(ASKED)}])
    write_jsonl(
        heldout, [{"messages": user("Who bakes?") + assistant("A baker bakes bread and sells it early.")}]
    )
    files: list[dict[str, Any]] = [{"path": str(first), "weight": 1.0}, {"path": str(second), "weight": 2.0}]
    sft = stage(
        runs, "sft", StageConfig(demonstrations=files, heldout=str(heldout)),
        {"base": Outside(), "demonstrations_0": DataFile(first), "demonstrations_1": DataFile(second),
         "heldout": DataFile(heldout)},
    )  # fmt: skip
    answers = [{"text": text, "run": sft.id, "seed": 1} for text in ("Two hours.", RANKED)]
    feedback = stage(
        runs, "feedback", StageConfig(prompts=str(prompts)), {"policy": sft, "prompts": DataFile(prompts)},
        {"comparisons.jsonl": [{"id": "c1", "prompt": user(ASKED), "responses": answers}],
         "preferences.jsonl": [
             {"prompt": user(ASKED), "chosen": assistant(RANKED), "rejected": assistant("Two hours.")}]},
    )  # fmt: skip
    reward = stage(
        runs, "reward", StageConfig(demonstrations=str(first)),
        {"base": sft, "preferences": feedback, "demonstrations": DataFile(first)},
    )  # fmt: skip
    ppo = stage(
        runs, "ppo", StageConfig(prompts=str(prompts)),
        {"policy": sft, "reward_model": reward, "preferences": feedback, "prompts": DataFile(prompts)},
    )  # fmt: skip
    return Model(f"run:{ppo.id}", ppo.path / "model", ppo.digest, ppo.id), runs


SUITES = {
    "asked": [("a1", ASKED), ("a2", "What should I serve with rye bread and butter in the evening?")],
    "answered": [("b1", f"Bread. {ANSWERED}"), ("b2", "Salt"), ("b1", ANSWERED)],
    "ranked": [("c1", RANKED.upper())],
}


def suite(report: Contamination, name: str) -> SuiteOverlap:
    return next(each for each in report.suites if each.suite == name)


def test_every_file_of_the_lineage_is_compared(tmp_path: Path) -> None:
    candidate, runs = lineage(tmp_path)
    report = contamination(candidate, runs, SUITES)
    feedback = next(run.id for run in runs.all() if run.record.stage == "feedback")
    assert {Path(source).name for source in report.sources} == {
        "first.jsonl", "second.jsonl", "prompts.jsonl", "heldout.jsonl", "comparisons.jsonl", "preferences.jsonl"
    }  # fmt: skip
    assert report.rows == 7
    assert report.unchecked == []
    assert report.unknown == [
        "what bundled:a-model was trained on before is not known here, so nothing is said about it"
    ]
    asked, answered, ranked = (suite(report, name) for name in SUITES)
    assert (asked.items, asked.exact, asked.near, asked.rate, asked.contaminated) == (2, 1, 0, 0.5, ["a1"])
    assert (Path(asked.worst[0].source).name, asked.worst[0].line) == ("prompts.jsonl", 2)
    assert (answered.items, answered.contaminated) == (2, ["b1"])
    # the empty first line counts, as it does in an editor
    assert (Path(answered.worst[0].source).name, answered.worst[0].line) == ("second.jsonl", 2)
    assert answered.worst[0].share == 1.0
    assert (ranked.exact, ranked.worst[0].source) == (1, f"{feedback}/comparisons.jsonl")
    assert (
        ranked.worst[0].matching
        == "the crumb sets while the loaf cools so a warm loaf turns gummy under the knife"
    )
    assert Contamination.model_validate_json(report.model_dump_json()) == report


def test_a_changed_and_a_missing_file_are_reported(tmp_path: Path) -> None:
    candidate, runs = lineage(tmp_path)
    (tmp_path / "second.jsonl").write_text('{"messages": []}\n')
    (tmp_path / "prompts.jsonl").unlink()
    comparisons = next((tmp_path / "runs").glob("feedback-*/comparisons.jsonl"))
    comparisons.write_text(comparisons.read_text() + "\n")
    report = contamination(candidate, runs, SUITES)
    told = "\n".join(report.unchecked)
    assert "second.jsonl could not be checked: it was changed" in told
    assert "prompts.jsonl could not be checked: it is gone" in told
    assert "comparisons.jsonl could not be checked: it was changed" in told
    assert len(report.unchecked) == 3
    assert suite(report, "answered").contaminated == []


def test_a_run_that_is_gone_is_reported(tmp_path: Path) -> None:
    candidate, runs = lineage(tmp_path)
    reward = next((tmp_path / "runs").glob("reward-*"))
    shutil.rmtree(reward)
    data = training_data(candidate, runs)
    assert [text for text in data.unchecked if reward.name in text] == data.unchecked != []


PREFERENCE = {"prompt": user(ASKED), "chosen": assistant("Two."), "rejected": assistant("One.")}


def test_preferences_from_outside_block_what_they_hold(tmp_path: Path) -> None:
    """A round's file of preferences is in no stage's configuration, so its path is the record's."""
    file, runs = tmp_path / "preferences.jsonl", Runs(tmp_path / "runs")
    write_jsonl(file, [PREFERENCE])
    reward = stage(runs, "reward", StageConfig(), {"base": Outside(), "preferences": DataFile(file)})
    sources: dict[str, Source] = {"policy": Outside(), "preferences": DataFile(file), "reward_model": reward}
    ppo = stage(runs, "ppo", StageConfig(), sources)
    report = contamination(Model(f"run:{ppo.id}", ppo.path / "model", ppo.digest, ppo.id), runs, SUITES)
    assert (report.unchecked, report.sources, report.rows) == ([], [str(file)], 1)
    assert "1 of its 2 items" in blocks(report, threshold=0.01)["asked"]


def test_of_a_reviewed_evaluation_only_what_reviewers_were_asked_about_counts(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    prompts, items = tmp_path / "heldout.jsonl", tmp_path / "items.jsonl"
    write_jsonl(prompts, [{"prompt": user(ASKED)}, {"prompt": user(SUITES["asked"][1][1])}])
    write_jsonl(items, [{"prompt": user(RANKED)}])
    files = {"prompts": DataFile(prompts), "suite:ranked": DataFile(items), "judge": Outside()}
    config = StageConfig(prompts=str(prompts))
    evaluation = stage(runs, "eval", config, {"baseline": Outside(), "candidate": Outside(), **files})
    answers = [{"text": text, "run": "x", "seed": 1} for text in ("Two hours.", "One hour.")]
    asked = [{"id": "c1", "prompt": user(ASKED), "responses": answers}]
    review = stage(runs, "feedback", StageConfig(), {"evaluation": evaluation}, {"comparisons.jsonl": asked})
    dpo = stage(runs, "dpo", StageConfig(), {"policy": Outside(), "preferences": review})
    report = contamination(Model(f"run:{dpo.id}", dpo.path / "model", dpo.digest, dpo.id), runs, SUITES)
    assert (report.unchecked, report.sources) == ([], [f"{review.id}/comparisons.jsonl"])
    assert [suite(report, name).contaminated for name in ("asked", "ranked")] == [["a1"], []]


def test_a_file_without_a_path_is_found_by_its_content_or_reported(tmp_path: Path) -> None:
    """As an earlier accord recorded it."""
    file, runs = tmp_path / "preferences.jsonl", Runs(tmp_path / "runs")
    write_jsonl(file, [PREFERENCE])
    dpo = stage(runs, "dpo", StageConfig(), {"policy": Outside(), "preferences": DataFile(file)})
    record = json.loads((dpo.path / "record.json").read_text())
    assert record.pop("input_paths") == {"preferences": str(file)}
    (dpo.path / "record.json").write_text(json.dumps(record))
    candidate = Model(f"run:{dpo.id}", dpo.path / "model", dpo.digest, dpo.id)
    without = contamination(candidate, runs, SUITES)
    assert len(without.unchecked) == 1
    assert f"the preferences of {dpo.id}" in without.unchecked[0]
    assert blocks(without, threshold=0.0) == {}
    report = contamination(candidate, runs, SUITES, files=[file])
    assert report.unchecked == []
    assert suite(report, "asked").contaminated == ["a1"]


def test_of_a_model_from_outside_nothing_is_known(tmp_path: Path) -> None:
    report = contamination(Model("some/model", tmp_path, "some/model@1"), Runs(tmp_path), SUITES)
    assert (report.rows, report.sources) == (0, [])
    assert report.unknown == [
        "what some/model was trained on before is not known here, so nothing is said about it"
    ]


def test_too_many_contaminated_items_block(tmp_path: Path) -> None:
    candidate, runs = lineage(tmp_path)
    report = contamination(
        candidate, runs, {"asked": SUITES["asked"], "clean": [("d1", "What is a sieve for?")]}
    )
    assert blocks(report, threshold=0.5) == {}
    ((_, reason),) = blocks(report, threshold=0.1).items()
    assert reason.startswith("1 of its 2 items (50.0%) are in the candidate's training data")
    assert "line 2" in reason


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    file, runs = tmp_path / "preferences.jsonl", Runs(tmp_path / "runs")
    file.write_text('{"prompt": "plain text"}\n')
    dpo = stage(runs, "dpo", StageConfig(), {"policy": Outside(), "preferences": DataFile(file)})
    candidate = Model(f"run:{dpo.id}", dpo.path / "model", dpo.digest, dpo.id)
    with pytest.raises(DataError, match=r"preferences.jsonl:1: is no demonstration"):
        contamination(candidate, runs, SUITES, files=[file])


def test_no_row_is_kept_so_memory_does_not_grow_with_them() -> None:
    alive: weakref.WeakSet[TrainingText] = weakref.WeakSet()
    most = 0

    def rows() -> Iterator[TrainingText]:
        nonlocal most
        for number in range(3_000):
            said = (
                ASKED if number % 5 == 0 else f"row {number} of many others, about nothing at all",
                ANSWERED,
            )
            text = TrainingText(said, "rows.jsonl", number)
            alive.add(text)
            most = max(most, len(alive))
            yield text

    found = overlap(rows(), {"prompts": [("rye", ASKED), ("other", RANKED)]})
    assert found.rows == 3_000 and found.suites[0].contaminated == ["rye"]
    assert most <= 3
