"""Rows from Python, and from a user's reader, are the same work as rows in a file."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from ppo_helpers import SAMPLING, make_prompts, make_reward_model
from safetensors.torch import load_file

from accord.config import load_config
from accord.data.rows import check_reader, keep_rows, open_data, open_judgements
from accord.errors import AccordError, DataError, UsageError
from accord.models.references import Model, resolve
from accord.records import Comparison, Demonstration, Message, Preference, Prompt, read_jsonl
from accord.round_config import RoundConfig
from accord.runs import DataFile, Run, Runs
from accord.sampling.shared import SharedSampler
from accord.text_files import write_jsonl
from eval.checks.contamination import training_data
from eval.config import EvalConfig
from feedback.config import FeedbackConfig
from reward.config import RewardConfig
from reward.train import train_reward_model
from rl.config import DPOConfig, OnlineConfig, PPOConfig
from rl.dpo import train_dpo
from rl.online import train_online
from rl.ppo import train_ppo
from sft.config import SFTConfig
from sft.train import fine_tune

ROOT = Path(__file__).parents[2]
TRAINING: dict[str, Any] = {
    "learning_rate": 1e-3, "rows_per_update": 16, "rows_per_pass": 16, "max_sequence_tokens": 300,
    "checkpoint_every_updates": 100,
}  # fmt: skip
ROW = {"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]}
PROMPT = {"prompt": [{"role": "user", "content": "1 + 1?"}]}


def dicts(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_weights(run: Run, other: Run) -> None:
    """Bit for bit, and made by different runs."""
    assert run.id != other.id
    one, another = (load_file(each.path / "model/model.safetensors") for each in (run, other))
    assert one.keys() == another.keys() and all(torch.equal(one[name], another[name]) for name in one)


# --- the same work


@pytest.mark.usefixtures("one_thread")
def test_demonstrations_in_memory_train_the_model_that_a_file_of_them_trains(
    tiny_model: Model, demonstrations: Path, runs: Runs
) -> None:
    rows = dicts(demonstrations)
    by_file = fine_tune(
        SFTConfig(demonstrations=[{"path": str(demonstrations)}], **TRAINING), runs, tiny_model
    )
    run = fine_tune(SFTConfig(**TRAINING), runs, tiny_model, demonstrations=rows)
    assert_same_weights(run, by_file)
    assert run.metrics == by_file.metrics
    one, other = (runs.load(each.record.parents["data"]).record for each in (run, by_file))
    assert one.inputs["demonstrations_0"] == other.inputs["demonstrations_0"]
    (kept,) = run.record.config["demonstrations"]
    assert Path(kept["path"]).parent == runs.root / "rows" and dicts(Path(kept["path"])) == rows

    def generated() -> Iterator[dict[str, Any]]:
        yield from rows

    typed = read_jsonl(demonstrations, Demonstration)
    for same in (rows, Dataset.from_list(rows), generated(), typed):
        assert fine_tune(SFTConfig(**TRAINING), runs, tiny_model, demonstrations=same).id == run.id
    assert len(runs.all()) == 4 and run.record.continued_at == []  # of each, the data and the model

    aside = fine_tune(SFTConfig(**TRAINING), runs, tiny_model, demonstrations=rows, heldout=[ROW])
    assert aside.metrics["heldout_demonstrations"] == 1
    assert aside.metrics["demonstrations"] == 30
    # all that a model was trained on is compared with what it is evaluated on, and so are rows
    found = training_data(resolve(aside, runs), runs)
    assert {Path(name).parent for name in found.sources} == {runs.root / "rows"}
    assert len(found.sources) == 2 and found.unchecked == []


@pytest.mark.usefixtures("one_thread")
def test_preferences_in_memory_are_a_file_of_them(tiny_model: Model, preferences: Path, runs: Runs) -> None:
    """No setting names them, so equal rows are the same work, wherever they are."""
    rows = dicts(preferences)
    for train in (train_reward_model, train_dpo):
        config: Any = RewardConfig(**TRAINING) if train is train_reward_model else DPOConfig(**TRAINING)
        run = train(config, runs, tiny_model, rows)  # type: ignore[operator]
        assert run.metrics["heldout_pairs"] == 8
        found = training_data(Model("", run.path, run.digest, run.id), runs)
        assert [Path(name).parent for name, _ in found.files] == [runs.root / "rows"]
        assert found.unchecked == []
        for same in (DataFile(preferences), str(preferences), Dataset.from_list(rows)):
            assert train(config, runs, tiny_model, same).id == run.id  # type: ignore[operator]
        assert train(config, runs, tiny_model, rows[:30]).id != run.id  # type: ignore[operator]


@pytest.mark.usefixtures("one_thread")
def test_prompts_in_memory_train_what_a_file_of_them_trains(
    tiny_model: Model, preferences: Path, runs: Runs, tmp_path: Path
) -> None:
    reward_model = make_reward_model(tiny_model, tmp_path / "reward-model")
    file = make_prompts(tmp_path / "prompts.jsonl")
    pairs, rows = dicts(preferences), dicts(file)
    limits: dict[str, Any] = {"max_response_tokens": 8, "max_sequence_tokens": 300, "learning_rate": 1e-3}

    online: dict[str, Any] = {"algorithm": "rloo", "rows_per_update": 8, "num_generations": 2, **limits}
    by_file = train_online(
        OnlineConfig(prompts=str(file), **online), runs, tiny_model, reward_model, DataFile(preferences)
    )
    run = train_online(OnlineConfig(**online), runs, tiny_model, reward_model, pairs, prompts=rows)
    assert_same_weights(run, by_file)

    ppo: dict[str, Any] = {"updates": 1, "prompts_per_update": 4, "epochs_per_update": 1, **limits}
    with SharedSampler(SAMPLING) as sampler:
        by_file = train_ppo(
            PPOConfig(prompts=str(file), **ppo),
            runs,
            tiny_model,
            reward_model,
            DataFile(preferences),
            sampler,
        )
        run = train_ppo(PPOConfig(**ppo), runs, tiny_model, reward_model, pairs, sampler, prompts=rows)
    assert_same_weights(run, by_file)
    assert run.record.inputs == by_file.record.inputs


# --- what is kept


def test_columns_of_others_stay_and_empty_ones_of_ours_do_not(runs: Runs) -> None:
    row = {**PROMPT, "id": None, "topic": None, "tests": [1, {"a": "ü"}]}
    kept = keep_rows([row], Prompt, runs)
    assert dicts(kept) == [{**PROMPT, "topic": None, "tests": [1, {"a": "ü"}]}]
    assert keep_rows([{**row, "id": "a"}], Prompt, runs) != kept
    assert re.fullmatch(r"[0-9a-f]{12}\.jsonl", kept.name)
    assert runs.all() == []  # the folder of rows is no run


def test_kept_rows_that_were_changed_are_written_again(runs: Runs) -> None:
    kept = keep_rows([PROMPT], Prompt, runs)
    text = kept.read_text()
    kept.write_text(text.replace("1 + 1", "1 + 2"))
    assert keep_rows([PROMPT], Prompt, runs).read_text() == text


def test_rows_with_responses_are_comparisons(runs: Runs) -> None:
    answers = [{"text": "two", "run": "r", "seed": 1}, {"text": "three", "run": "r", "seed": 2}]
    comparison = {
        "id": "a",
        **PROMPT,
        "responses": answers,
        "rankings": [{"annotator": "z", "ranks": [1, 2]}],
    }
    source = open_judgements([comparison], runs)
    assert isinstance(source, DataFile)
    (kept,) = read_jsonl(source.path, Comparison)
    assert kept.rankings[0].ranks == [1, 2]
    assert open_judgements([kept], runs) == source


# --- faults


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [ROW, {"messages": ROW["messages"][:1]}],
            r"demonstrations\[1\]: messages: List should have at least 2",
        ),
        ([ROW, ROW, PROMPT], r"demonstrations\[2\]: messages: Field required"),
        (["a"], r"demonstrations\[0\]: Input should be a valid dictionary"),
        ([{"mesages": ROW["messages"]}], r"demonstrations\[0\]: messages: Field required"),
        ([], "demonstrations: there are no rows; at least one demonstration is needed"),
        ("rows.jsonl", "'rows.jsonl' is no list of rows; name a file in the configuration"),
        ([{**ROW, "score": float("nan")}], "something that JSON does not know"),
        ([{**ROW, "at": object()}], "something that JSON does not know"),
        ([Prompt(prompt=[Message(role="user", content="a")])], r"demonstrations\[0\]: Input should be"),
    ],
)
def test_bad_rows_are_named(tiny_model: Model, runs: Runs, rows: Any, message: str) -> None:
    with pytest.raises(AccordError, match=message):
        fine_tune(SFTConfig(), runs, tiny_model, demonstrations=rows)
    assert not runs.root.exists()


def test_rows_are_given_once_and_where_they_are_needed_they_are_given(tiny_model: Model, runs: Runs) -> None:
    with pytest.raises(
        UsageError, match="demonstrations: the configuration names a file, and rows were passed"
    ):
        fine_tune(SFTConfig(demonstrations=[{"path": "a.jsonl"}]), runs, tiny_model, demonstrations=[ROW])
    with pytest.raises(UsageError, match=r"name a file in the configuration, or pass demonstrations=rows"):
        fine_tune(SFTConfig(), runs, tiny_model)
    for config in (FeedbackConfig(), PPOConfig(), OnlineConfig(algorithm="grpo")):
        with pytest.raises(UsageError, match="prompts: is needed"):
            open_data(config, runs)
    # the evaluation has prompts of its own, which rows replace; a file that somebody named they do not
    gate: Any = {"eos_rate": {"margin": 0.1}}
    kept = open_data(EvalConfig(gate=gate), runs, prompts=[PROMPT]).prompts
    assert dicts(Path(kept)) == [PROMPT]
    with pytest.raises(UsageError, match="prompts: the configuration names a file"):
        open_data(EvalConfig(gate=gate, prompts="a.jsonl"), runs, prompts=[PROMPT])


@pytest.mark.parametrize(
    ("section", "setting"), [("sft", "demonstrations"), ("feedback", "prompts"), ("rl", "prompts")]
)
def test_a_configuration_file_must_name_its_files(tmp_path: Path, section: str, setting: str) -> None:
    settings = yaml.safe_load((ROOT / "configs/tiny-ppo.yaml").read_text())
    del settings[section][setting]
    (tmp_path / "round.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UsageError, match=f"'{section}.{setting}' is missing"):
        load_config(tmp_path / "round.yaml", RoundConfig)


# --- readers

READER = """
def chats(path):
    for line in path.read_text().splitlines():
        question, answer = line.split("\\t")
        yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
"""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A reference to a reader and its file; both are in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("readers.py").write_text(READER)
    Path("export.tsv").write_text("".join(f"{i} + 1?\t{i + 1}\n" for i in range(24)))
    return "readers.py:chats(export.tsv)"


@pytest.mark.usefixtures("one_thread")
def test_a_reader_s_rows_train_what_the_same_rows_train(tiny_model: Model, runs: Runs, foreign: str) -> None:
    config = SFTConfig(demonstrations=[{"path": foreign, "weight": 2}], **TRAINING)
    run = fine_tune(config, runs, tiny_model)
    (kept,) = run.record.config["demonstrations"]
    by_file = fine_tune(SFTConfig(demonstrations=[kept], **TRAINING), runs, tiny_model)
    assert by_file.id == run.id
    rows = dicts(Path(kept["path"]))
    assert len(rows) == 24 and rows[3]["messages"][1]["content"] == "4"
    reader, file = DataFile(Path("readers.py")).digest, DataFile(Path("export.tsv")).digest
    inputs = runs.load(run.record.parents["data"]).record.inputs
    assert inputs["demonstrations_0/reader"] == f"readers.py:chats@sha256:{reader}"
    assert inputs["demonstrations_0/file"] == f"export.tsv@sha256:{file}"

    found = training_data(resolve(run, runs), runs)
    assert found.sources == [kept["path"]] and found.unchecked == []
    assert len(list(found.texts())) == 24
    assert len(found.unknown) == 1  # the tiny model

    # another reader is another run, whatever it reads; and the same one is the same
    assert fine_tune(config, runs, tiny_model).id == run.id
    Path("readers.py").write_text(READER + "# mended\n")
    again = fine_tune(config, runs, tiny_model)
    assert again.id != run.id
    assert_same_weights(again, run)


def test_a_round_s_sections_are_opened_before_anything_starts(runs: Runs, foreign: str) -> None:
    prompts = "def prompts(path):\n    return [{'prompt': [{'role': 'user', 'content': path.read_text()}]}]\n"
    Path("more.py").write_text(prompts)
    settings = yaml.safe_load((ROOT / "configs/tiny-ppo.yaml").read_text())
    settings["sft"]["demonstrations"] = [
        {"path": foreign},
        {"path": "bundled:demo/demonstrations.train.jsonl"},
    ]
    for section in ("feedback", "rl", "eval"):
        settings[section]["prompts"] = "more.py:prompts(export.tsv)"
    config = RoundConfig.model_validate(settings)
    opened = open_data(config, runs)
    assert opened.sft and opened.feedback
    assert [str(runs.root / "rows") in file.path for file in opened.sft.demonstrations] == [True, False]
    asked = {opened.feedback.prompts, opened.rl.prompts, opened.eval.prompts}  # type: ignore[union-attr]
    assert len(asked) == 1 and len(read_jsonl(Path(asked.pop()), Prompt)) == 1
    assert opened.rl == config.rl.model_copy(update={"prompts": opened.eval.prompts})
    assert open_data(opened, runs) is opened


@pytest.mark.parametrize(
    ("reader", "error", "message"),
    [
        ("nowhere.py:chats(export.tsv)", UsageError, "nowhere.py cannot be loaded"),
        ("readers.py:chat(export.tsv)", UsageError, "readers.py has no 'chat'"),
        ("readers.py:chats(nowhere.tsv)", DataError, "nowhere.tsv: cannot be read"),
        ("readers.py:broken(export.tsv)", DataError, r"the reader failed \(ZeroDivisionError"),
        (
            "readers.py:short(export.tsv)",
            DataError,
            r"readers.py:short\(export.tsv\)\[1\]: messages: Field req",
        ),
        ("readers.py:nothing(export.tsv)", DataError, "there are no rows"),
        ("readers.py:number(export.tsv)", DataError, "the reader failed"),
        ("badly_spelt.py:chats(export.tsv)", UsageError, "SyntaxError"),
    ],
)
def test_faults_of_a_reader_are_named(
    runs: Runs, foreign: str, reader: str, error: type[AccordError], message: str
) -> None:
    with Path("readers.py").open("a") as file:
        file.write(
            "def broken(path):\n    1 / 0\n"
            f"def short(path):\n    return [{ROW!r}, {PROMPT!r}]\n"
            "def nothing(path):\n    return []\n"
            "def number(path):\n    return 3\n"
        )
    Path("badly_spelt.py").write_text("def chats(path)\n")
    with pytest.raises(error, match=message):
        open_data(SFTConfig(demonstrations=[{"path": reader}]), runs)


def test_a_reader_can_be_a_module_s_and_its_classes_may_be_dataclasses(
    runs: Runs, foreign: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("house_readers.py").write_text(READER)
    monkeypatch.syspath_prepend(str(tmp_path))
    write_jsonl(Path("a.jsonl"), [ROW])
    by_module = open_data(
        SFTConfig(heldout="house_readers:chats(export.tsv)", demonstrations=[{"path": "a.jsonl"}]), runs
    )
    assert len(read_jsonl(Path(str(by_module.heldout)), Demonstration)) == 24
    Path("classes.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Turn:\n    role: str\n    content: str\n" + READER
    )
    assert check_reader("classes.py:chats(export.tsv)")
    assert not check_reader("export.tsv") and not check_reader("run:feedback-0123456789ab")


def test_preferences_by_reference(runs: Runs, foreign: str) -> None:
    Path("pairs.py").write_text(
        f"def pairs(path):\n    return [{PROMPT!r} | {{'chosen': [{{'role': 'assistant', 'content': '2'}}],"
        " 'rejected': [{'role': 'assistant', 'content': '3'}]}]\n"
    )
    source = open_judgements("pairs.py:pairs(export.tsv)", runs)
    assert isinstance(source, DataFile) and source.origin.keys() == {"reader", "file"}
    assert read_jsonl(source.path, Preference)[0].chosen[0].content == "2"
    assert open_judgements("bundled:demo/x.jsonl", runs) == DataFile(ROOT / "accord/bundled/demo/x.jsonl")
    with pytest.raises(UsageError, match="no run in"):
        open_judgements("run:feedback-0123456789ab", runs)
