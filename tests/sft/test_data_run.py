"""The data of a fine-tuning: what is made of many files, in how many processes ever, and after a kill."""

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from training_helpers import run_stage

import eval.suites
from accord.cli.main import main
from accord.data import encoding
from accord.data.config import DataConfig
from accord.data.documents import document_marks
from accord.data.quality.held_out import HeldOut
from accord.errors import DataError, UsageError
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model
from accord.records import Demonstration, Message, Prompt
from accord.runs import Run, Runs
from accord.text_files import write_jsonl
from sft.config import SFTConfig
from sft.data import all_rows, files_of, open_data_run, prepare, prepare_retention

LONG = {"max_sequence_tokens": 400}


def row(i: int, **columns: Any) -> Demonstration:
    messages = [Message(role="user", content=f"{i}?"), Message(role="assistant", content=f"It is {i}.")]
    return Demonstration(messages=messages, **columns)


def rows_in(path: Path, numbers: range, **columns: Any) -> str:
    write_jsonl(path, [row(i, **columns) for i in numbers])
    return str(path)


def prepared(model: Model, runs: Runs, **settings: Any) -> Run:
    return prepare(SFTConfig.model_validate({**LONG, **settings}), runs, load_tokenizer(model))


def numbers(run: Run) -> list[int]:
    """What the rows to train on are about, in their order."""
    texts = open_data_run(run).rows["row"]
    return [int(json.loads(text)["messages"][0]["content"][:-1]) for text in texts]


def bytes_of(run: Run) -> dict[str, str]:
    return {name: digest for name, digest in run.record.outputs.items() if name != "report.html"}


# --- the same whatever happens


def test_many_processes_make_the_bytes_that_one_makes(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"demonstrations": rows_in(tmp_path / "rows.jsonl", range(120)), "packing": True}
    monkeypatch.setattr(encoding, "ROWS_A_CHUNK", 25)
    several = prepared(tiny_model, Runs(tmp_path / "several"), **settings)
    monkeypatch.setattr(encoding, "FEW_CHUNKS", 99)
    one = prepared(tiny_model, Runs(tmp_path / "one"), **settings)
    assert len([name for name in one.record.outputs if name.startswith("encoded/")]) == 5
    assert bytes_of(several) == bytes_of(one)
    monkeypatch.setattr(encoding, "ROWS_A_CHUNK", 7)
    smaller = prepared(tiny_model, Runs(tmp_path / "smaller"), **settings)
    assert numbers(smaller) == numbers(one)
    assert open_data_run(smaller).train[:] == open_data_run(one).train[:]


PREPARE = """
import sys, threading, time, os, signal
from pathlib import Path
import eval.suites
from accord.cli.main import main
from accord.data import encoding
from accord.data.config import DataConfig
from accord.models.loading import load_tokenizer
from accord.models.references import resolve
from accord.runs import Runs
from sft.config import SFTConfig
from sft.data import prepare
encoding.ROWS_A_CHUNK = 25
model, rows, root, kill_at = sys.argv[1:]
def watch():
    while len(list(Path(root).rglob("*.arrow"))) < int(kill_at):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
config = SFTConfig(demonstrations=[{"path": rows}], max_sequence_tokens=400)
prepare(config, Runs(root), load_tokenizer(resolve(model, Runs(root))))
"""


def test_a_kill_costs_the_chunks_in_flight_and_changes_nothing(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_in(tmp_path / "rows.jsonl", range(400))
    command = [sys.executable, "-c", PREPARE, str(tiny_model.folder), rows, str(tmp_path / "killed"), "4"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    killed = subprocess.run(command, check=False, **quiet)
    assert killed.returncode == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*.arrow")}
    assert 4 <= len(before) < 16
    monkeypatch.setattr(encoding, "ROWS_A_CHUNK", 25)
    run = prepared(tiny_model, Runs(tmp_path / "killed"), demonstrations=rows)
    kept = {path: path.stat().st_mtime_ns for path in before}
    assert kept == before
    assert run.record.continued_at
    assert bytes_of(run) == bytes_of(prepared(tiny_model, Runs(tmp_path / "straight"), demonstrations=rows))


def test_what_the_data_depend_on(tiny_model: Model, bundled_model: Model, runs: Runs, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"demonstrations": rows_in(tmp_path / "rows.jsonl", range(20))}
    run = prepared(tiny_model, runs, **settings)
    assert prepared(tiny_model, runs, **settings, learning_rate=1.0, epochs=7).id == run.id
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = str(tokenizer.chat_template).replace("SmolLM", "Somebody")
    others = {
        prepare(SFTConfig.model_validate({**LONG, **settings}), runs, tokenizer).id,
        prepared(bundled_model, runs, **settings).id,
        prepared(tiny_model, runs, **settings, seed=1).id,
        prepared(tiny_model, runs, **settings, packing=True).id,
        prepared(tiny_model, runs, **(settings | {"max_sequence_tokens": 300})).id,
    }
    assert len(others | {run.id}) == 6
    rows_in(tmp_path / "rows.jsonl", range(21))
    assert prepared(tiny_model, runs, **settings).id not in others | {run.id}


def test_a_file_that_is_gone_is_not_needed_any_more_and_one_that_changed_is_other_data(
    tiny_model: Model, tmp_path: Path
) -> None:
    data = Path(rows_in(tmp_path / "rows.jsonl", range(20)))
    runs = Runs(tmp_path / "runs")
    run = prepared(tiny_model, runs, demonstrations=str(data))
    data.unlink()
    assert len(list(all_rows(runs.load(run.id)))) == 20
    with pytest.raises(DataError, match=r"rows\.jsonl: (no such file|cannot be read)"):
        run_stage("sft", LONG, tiny_model, data, runs)


# --- mixing


def test_caps_and_temperature(tiny_model: Model, runs: Runs, tmp_path: Path) -> None:
    small = rows_in(tmp_path / "small.jsonl", range(16))
    large = rows_in(tmp_path / "large.jsonl", range(100, 181))
    files = [{"path": small}, {"path": large}]
    run = prepared(tiny_model, runs, demonstrations=files, heldout_fraction=0, mixing_temperature=2)
    # 97 rows in proportion to 4 and 9, the square roots of 16 and 81
    shown = [each["shown_an_epoch"] for each in files_of(run)]
    assert shown == [round(97 * 4 / 13), round(97 * 9 / 13)]
    counts = Counter(numbers(run))
    assert {counts[i] for i in range(16)} == {1, 2} and max(counts[i] for i in range(100, 181)) == 1
    capped = [{"path": small, "at_most": 5, "weight": 2}, {"path": large, "weight": 0}]
    run = prepared(tiny_model, runs, demonstrations=capped, heldout_fraction=0)
    assert sorted(Counter(numbers(run)).values()) == [2] * 5
    with pytest.raises(ValueError, match="all files of demonstrations and documents have weight 0"):
        SFTConfig.model_validate({"demonstrations": [{"path": small, "weight": 0}]})


def test_a_curriculum_is_the_order_of_a_column(tiny_model: Model, runs: Runs, tmp_path: Path) -> None:
    rows = [row(i, difficulty=(i * 7) % 20) for i in range(20)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    settings: dict[str, Any] = {"demonstrations": str(tmp_path / "rows.jsonl"), "heldout_fraction": 0}
    hardest = {"curriculum": {"column": "difficulty", "order": "descending"}}
    run = prepared(tiny_model, runs, **settings, **hardest)
    assert [(i * 7) % 20 for i in numbers(run)] == list(range(19, -1, -1))

    seen = []

    def look(train_dataloader: Any, **_: Any) -> None:
        tokenizer = load_tokenizer(tiny_model)
        for batch in train_dataloader:
            for ids in batch["input_ids"]:
                seen.append(int(tokenizer.decode(ids).split("user\n")[1].split("?")[0]))

    from training_helpers import every_trainer_calls

    training = {"heldout_fraction": 0, "rows_per_update": 4, "rows_per_pass": 4, **LONG, **hardest}
    with every_trainer_calls("train_begin", look):
        run_stage("sft", training, tiny_model, tmp_path / "rows.jsonl", runs)
    assert seen == numbers(run)
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the column 'ease' must be a number .* has none"):
        prepared(tiny_model, runs, **settings, curriculum={"column": "ease"})


def test_replay_takes_rows_of_an_earlier_run(tiny_model: Model, runs: Runs, tmp_path: Path) -> None:
    earlier = prepared(
        tiny_model, runs, demonstrations=rows_in(tmp_path / "old.jsonl", range(50)), heldout_fraction=0
    )
    new = rows_in(tmp_path / "new.jsonl", range(40, 76))  # ten of which are old
    settings: dict[str, Any] = {"demonstrations": new, "heldout_fraction": 0}
    run = prepared(tiny_model, runs, **settings, replay={"source": f"run:{earlier.id}", "share": 0.25})
    found = Counter(numbers(run))
    assert {found[i] for i in range(40, 76)} == {1}
    replayed = [i for i in found if i < 40]
    assert len(replayed) == 12 and {found[i] for i in replayed} == {1}  # a quarter of 48
    assert run.record.parents == {"replay": earlier.id}
    from_file = {"replay": {"source": str(tmp_path / "old.jsonl"), "share": 0.25}}
    assert len(numbers(prepared(tiny_model, runs, **settings, **from_file))) == 48
    many = {"replay": {"source": f"run:{earlier.id}", "share": 0.8}}
    found = Counter(numbers(prepared(tiny_model, runs, **settings, **many)))
    assert sum(found[i] for i in range(40)) == 144 and {found[i] for i in range(40)} <= {3, 4}
    with pytest.raises(UsageError, match="no run in"):
        prepared(tiny_model, runs, **settings, replay={"source": "run:sft-1"})
    with pytest.raises(UsageError, match="was not trained from prepared data"):
        base = runs.load(earlier.id)
        base.record.stage = "dpo"
        base.save()
        prepared(tiny_model, runs, **settings, replay={"source": f"run:{earlier.id}"})


def test_rows_that_a_run_made_keep_it_among_the_parents(
    tiny_model: Model, runs: Runs, tmp_path: Path
) -> None:
    with runs.begin("generate", SFTConfig(), {}) as made:
        rows_in(made.path / "rows.jsonl", range(20))
        made.finish({})
    elsewhere = rows_in(tmp_path / "rows.jsonl", range(20, 30))
    run = prepared(
        tiny_model, runs, demonstrations=[{"path": str(made.path / "rows.jsonl")}, {"path": elsewhere}]
    )
    assert run.record.parents == {"demonstrations_0": made.id}
    assert list(run.record.inputs) == ["demonstrations_1"]


# --- documents


def test_a_document_is_all_of_its_tokens_and_none_is_learned_twice(
    tiny_model: Model, runs: Runs, tmp_path: Path
) -> None:
    text = "".join(f"Line {i}. <|im_end|>\n" for i in range(40))
    (tmp_path / "a.txt").write_text(text)
    settings: dict[str, Any] = {"documents": str(tmp_path / "a.txt"), "heldout_fraction": 0}
    run = prepared(tiny_model, runs, **settings, max_sequence_tokens=100)
    data = open_data_run(run)
    tokenizer = load_tokenizer(tiny_model)
    start, end = document_marks(tokenizer)
    whole = [start, *tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"], end]
    rows = data.rows.sort("line")
    firsts = sorted(rows, key=lambda each: whole.index(each["input_ids"][0]) if each["row"] else 1)
    assert firsts[0]["input_ids"][0] == start
    learned = [label for each in rows for label in each["labels"] if label != -100]
    assert Counter(learned) == Counter(whole[1:])
    assert max(len(each["input_ids"]) for each in rows) == 100
    assert tokenizer.eos_token_id not in learned  # <|im_end|> in a text is text
    (figures,) = files_of(run)
    assert (figures["rows"], figures["split_documents"], figures["kind"]) == (1, 1, "documents")


def test_documents_beside_conversations_in_every_form(tiny_model: Model, runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "texts" / "deep"
    folder.mkdir(parents=True)
    for i in range(3):
        (folder / f"{i}.md").write_text(f"# Text {i}\n")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"Row {i}"}) + "\n" for i in range(4)))
    (tmp_path / "rows.csv").write_text("text\nOne\nTwo\n")
    settings: dict[str, Any] = {
        "documents": [str(tmp_path / each) for each in ("texts", "rows.jsonl", "rows.csv")],
        "demonstrations": rows_in(tmp_path / "chats.jsonl", range(10)),
        "heldout": rows_in(tmp_path / "held.jsonl", range(20, 22)),
        "heldout_fraction": 0.25,
    }
    run = prepared(tiny_model, runs, **settings)
    figures = {Path(each["file"]).name: (each["trained"], each["heldout"]) for each in files_of(run)}
    assert figures == {
        "chats.jsonl": (10, 0), "texts": (2, 1), "rows.jsonl": (3, 1), "rows.csv": (1, 1), "held.jsonl": (0, 2),
    }  # fmt: skip
    heldout = open_data_run(run).heldout
    assert heldout is not None and len(heldout) == 5
    for bad, words in (
        ('{"txt": "x"}', "found no column 'text'"), ('{"text": 3}', "found int"), ('{"text": " "}', "is blank"),
    ):  # fmt: skip
        (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n' + bad + "\n")
        with pytest.raises(DataError, match=f"bad.jsonl:2: .*{words}"):
            prepared(tiny_model, runs, documents=str(tmp_path / "bad.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"the folder holds no \.txt or \.md file"):
        prepared(tiny_model, runs, documents=str(tmp_path / "empty"))


@pytest.mark.usefixtures("one_thread")
def test_packed_documents_do_not_see_one_another(tiny_model: Model, runs: Runs, tmp_path: Path) -> None:
    """The loss and its gradient of packed rows are those of the rows one by one."""
    import torch

    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": "word " * (i + 3)}) + "\n" for i in range(12))
    )
    settings: dict[str, Any] = {"documents": str(tmp_path / "rows.jsonl"), "heldout_fraction": 0}
    packed = open_data_run(prepared(tiny_model, runs, **settings, packing=True)).train
    alone = open_data_run(prepared(tiny_model, runs, **settings)).train
    assert len(packed) < len(alone)

    def loss_and_gradient(rows: Any) -> tuple[float, torch.Tensor]:
        model = load_policy(tiny_model)
        total = torch.zeros(())
        for each in rows:
            lengths = each.get("seq_lengths") or [len(each["input_ids"])]
            positions = torch.cat([torch.arange(length) for length in lengths])[None]
            ids, labels = torch.tensor([each["input_ids"]]), torch.tensor([each["labels"]])
            logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
            total = total + torch.nn.functional.cross_entropy(
                logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum"
            )
        total.backward()
        return float(total), torch.cat(
            [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
        )

    (one, gradient), (other, expected) = loss_and_gradient(packed), loss_and_gradient(alone)
    assert one == pytest.approx(other, rel=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-3 * float(expected.abs().max()))


# --- what later stages find


def test_canaries_synthetic_rows_and_held_out_rows_are_written_down(
    tiny_model: Model, runs: Runs, tmp_path: Path
) -> None:
    rows = [row(i) for i in range(10)]
    rows += [row(77, canary="It is 77", synthetic={"model": "m"})]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    files = [{"path": str(tmp_path / "rows.jsonl"), "weight": 3}]
    run = prepared(tiny_model, runs, demonstrations=files, heldout_fraction=0)
    (canary,) = [json.loads(line) for line in (run.path / "canaries.jsonl").read_text().splitlines()]
    assert canary["canary"] == "It is 77" and canary["times"] == 3
    assert run.metrics["synthetic_rows"] == 1
    run = prepared(tiny_model, runs, demonstrations=files, heldout_fraction=0.2)
    held = [json.loads(line) for line in (run.path / "heldout.jsonl").read_text().splitlines()]
    assert len(held) == 3 and all(each["source"] == files[0]["path"] for each in held)
    assert len(np.load(run.path / "train.npy")) == 24


# --- filters


def said(question: str, answer: str, **columns: Any) -> Demonstration:
    messages = [Message(role="user", content=question), Message(role="assistant", content=answer)]
    return Demonstration(messages=messages, **columns)


FILTERED = {"drop": "near_duplicates,near_heldout,loss>4", "redact": "email", "repair": "encoding"}


def test_what_is_filtered_is_counted_and_written_down_with_the_reasons(
    tiny_model: Model, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = "Which of the many old bridges over the long river was built first of all, and by whom?"
    rows = [said(f"Tell me of the number {i} in some words.", f"It is {i}.", loss=1.0) for i in range(20)]
    rows += [
        said(asked, "The one of stone.", loss=1.0),  # held out
        said("Write to whom?", "Write to anna@example.org, please.", loss=1.0),
        said("What is hard?", "This.", loss=9.0),
        said("Where is the cafÃ©?", "At the corner.", loss=1.0),
    ]
    long = " ".join(f"word{i}" for i in range(60))
    rows += [said("Say it.", long, loss=1.0), said("Say it.", long + " twice", loss=1.0)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_jsonl(tmp_path / "held.jsonl", [said(asked, "Nobody knows; ask bob@example.org.", loss=1.0)])
    config = SFTConfig.model_validate(
        {
            **LONG, "max_sequence_tokens": 1000, "demonstrations": str(tmp_path / "rows.jsonl"),
            "heldout": str(tmp_path / "held.jsonl"),
        }
    )  # fmt: skip
    read = DataConfig.model_validate({**FILTERED, "against": ["held"]})
    held_out = HeldOut([Prompt(prompt=[Message(role="user", content=asked)])], ["held.jsonl:1"])
    tokenizer = load_tokenizer(tiny_model)
    with pytest.raises(UsageError, match=r"data\.against: is resolved by the commands"):
        prepare(config, runs, tokenizer, read)
    with pytest.raises(DataError, match=r"held\.jsonl: no row would be left \(1 for near_heldout\)"):
        prepare(config, runs, tokenizer, read, held_out)
    config = config.model_copy(update={"heldout": None, "heldout_fraction": 0.0})
    run = prepare(config, runs, tokenizer, read, held_out)
    dropped = [json.loads(line) for line in (run.path / "dropped.jsonl").read_text().splitlines()]
    assert {each["place"].rpartition(":")[2]: each["reasons"][0]["what"] for each in dropped} == {
        "21": "near_heldout", "23": "loss>4", "26": "near_duplicates",
    }  # fmt: skip
    assert run.record.dropped == {"duplicate": 0, "too_long": 0, "filtered": 3}
    assert run.metrics["filtered"] == {"near_heldout": 1, "loss>4": 1, "near_duplicates": 1}
    texts = " ".join(open_data_run(run).rows["row"])
    assert len(open_data_run(run).rows) == len(rows) - 3
    assert "<EMAIL>" in texts and "example.org" not in texts and "café" in texts
    assert (run.metrics["redacted_rows"], run.metrics["repaired_rows"]) == (1, 1)
    assert "near_heldout" in (run.path / "report.html").read_text()
    monkeypatch.setattr(encoding, "ROWS_A_CHUNK", 5)
    monkeypatch.setattr(encoding, "FEW_CHUNKS", 99)
    other = prepare(config, Runs(tmp_path / "other"), tokenizer, read, held_out)
    assert other.record.outputs["dropped.jsonl"] == run.record.outputs["dropped.jsonl"]
    assert list(open_data_run(other).rows["row"]) == list(open_data_run(run).rows["row"])


def test_filters_come_with_a_configuration(tiny_model: Model, tmp_path: Path) -> None:
    """And the run is the one that the round finds; what a suite asks is taken from it."""
    suite = next(path for path in (Path(eval.suites.__path__[0]) / "data").rglob("*.jsonl"))
    item = json.loads(suite.read_text().splitlines()[0])
    text = max((value for value in item.values() if isinstance(value, str)), key=len)
    rows = [row(i) for i in range(12)] + [said(text, "I know that one.")]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "round.yaml").write_text(
        f"""
model: {tiny_model.folder}
data: {{drop: contamination, against: ["suite:{suite.parent.name}"]}}
sft: {{demonstrations: {tmp_path / "rows.jsonl"}, max_sequence_tokens: 2000}}
"""
    )
    command = ["--runs", str(tmp_path / "runs"), "data", "prepare", str(tmp_path / "round.yaml")]
    shown = CliRunner().invoke(main, command, catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    assert "1 filtered (contamination 1;" in shown.output
    again = json.loads(CliRunner().invoke(main, [*command, "--json"], catch_exceptions=False).stdout)
    assert f"run:{again['run']}" in shown.output and again["dropped"]["filtered"] == 1


def test_filters_read_other_conventions_and_leave_retention_alone(
    tiny_model: Model, runs: Runs, tmp_path: Path
) -> None:
    lines = [f"{i}?,It is {i}." for i in range(12)] + ["Who?,I am ann@example.org."]
    (tmp_path / "rows.csv").write_text("\n".join(["Frage,Antwort", *lines]) + "\n")
    columns = {str(tmp_path / "rows.csv"): {"prompt": "Frage", "completion": "Antwort"}}
    read = DataConfig.model_validate({"columns": columns, "drop": "email", "against": ["x"]})
    held_out = HeldOut([Prompt(prompt=[Message(role="user", content="Nothing of this sort.")])], ["x:1"])
    write_jsonl(tmp_path / "kept.jsonl", [said("Who?", "I am bob@example.org.")])
    config = SFTConfig.model_validate(
        {**LONG, "demonstrations": str(tmp_path / "rows.csv"), "retention": str(tmp_path / "kept.jsonl")}
    )
    tokenizer = load_tokenizer(tiny_model)
    run = prepare(config, runs, tokenizer, read, held_out)
    assert run.record.dropped["filtered"] == 1 and run.metrics["rows_an_epoch"] == 10
    retained = prepare_retention(config, runs, tokenizer, read)
    assert retained is not None and retained.metrics["rows_an_epoch"] == 1
