"""Every usual file and convention is read as its hand-written accord form; what is not right is said of its place."""

import csv
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from transformers import PreTrainedTokenizerBase

from accord.data.config import DataConfig
from accord.data.reading import OWN, read
from accord.data.rows import open_data, open_judgements
from accord.errors import DataError, UsageError
from accord.models.loading import load_tokenizer
from accord.models.references import Model
from accord.records import Comparison, Demonstration, Message, Preference, Prompt, read_jsonl
from accord.runs import DataFile, Runs
from sft.config import SFTConfig
from sft.data import files_of, open_data_run, prepare

ASKED = ("What melts at zero degrees?", 'Say "hello, you".', "007 is what kind of number?", "Is NA a word?")
ANSWERED = ("Ice.", "Hello,\nyou.", "A code.", "NA")
OWN_ROWS = [
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": asked},
                  {"role": "assistant", "content": answered}]}
    for asked, answered in zip(ASKED, ANSWERED, strict=True)
]  # fmt: skip
ALPACA = [
    {"system": "Be brief.", "instruction": asked, "input": "", "output": answered}
    for asked, answered in zip(ASKED, ANSWERED, strict=True)
]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def as_csv(folder: Path, delimiter: str = ",", suffix: str = "csv") -> str:
    path = folder / f"rows.{suffix}"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ALPACA[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ALPACA)
    return str(path)


def as_zst(folder: Path) -> str:
    path = folder / "rows.jsonl.zst"
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.CompressedOutputStream(file, "zstd") as out:
        out.write("".join(json.dumps(row) + "\n" for row in OWN_ROWS).encode())
    return str(path)


def as_gz(folder: Path) -> str:
    path = folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in OWN_ROWS).encode()))
    return str(path)


def as_array(folder: Path) -> str:
    path = folder / "rows.json"
    path.write_text(json.dumps(OWN_ROWS, indent=1))
    return str(path)


def as_parquet(folder: Path) -> str:
    path = folder / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(OWN_ROWS), path)
    return str(path)


def as_arrow(folder: Path) -> str:
    datasets.Dataset.from_list(OWN_ROWS).save_to_disk(str(folder / "saved"))
    return str(folder / "saved")


def as_splits(folder: Path) -> str:
    datasets.DatasetDict({"train": datasets.Dataset.from_list(OWN_ROWS)}).save_to_disk(str(folder / "both"))
    return f"{folder / 'both'}:train"


def written(make: Callable[[str, str], dict[str, Any]]) -> Callable[[Path], str]:
    """A file of JSON Lines with a row for each question and answer."""
    return lambda folder: write_lines(
        folder / "rows.jsonl", [make(a, b) for a, b in zip(ASKED, ANSWERED, strict=True)]
    )


FORMS: dict[str, Callable[[Path], str]] = {
    "gz": as_gz,
    "zst": as_zst,
    "array": as_array,
    "csv": as_csv,
    "tsv": lambda folder: as_csv(folder, "\t", "tsv"),
    "parquet": as_parquet,
    "arrow": as_arrow,
    "split": as_splits,
    "alpaca": lambda folder: write_lines(folder / "rows.jsonl", ALPACA),
    "alpaca_input": written(
        lambda a, b: {"system": "Be brief.", "instruction": a[:-5], "input": "", "output": b}
        | ({"instruction": a} if "\n" not in a else {})
    ),
    "sharegpt": written(
        lambda a, b: {"id": 3, "conversations": [
            {"from": "system", "value": "Be brief."}, {"from": "human", "value": a}, {"from": "gpt", "value": b}]}
    ),
    "sharegpt_system": written(
        lambda a, b: {"system": "Be brief.", "conversation": [
            {"from": "User", "value": a, "weight": None}, {"from": "chatgpt", "value": b}]}
    ),
    "prompt_completion": written(
        lambda a, b: {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": a}],
                      "completion": [{"role": "assistant", "content": b}]}
    ),
    "strings": written(lambda a, b: {"system_prompt": "Be brief.", "question": a, "answer": b}),
    "query": written(
        lambda a, b: {"history": [], "query": a, "response": b, "system": "Be brief."}
    ),
    "parts": written(
        lambda a, b: {"messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": [{"type": "input_text", "text": a}]},
            {"role": "assistant", "content": [{"type": "text", "text": b}], "refusal": None, "weight": 1}]}
    ),
    "json_in_a_column": written(
        lambda a, b: {"messages": json.dumps(OWN_ROWS[ASKED.index(a)]["messages"])}
    ),
    "chatml": written(
        lambda a, b: {"text": f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{a}<|im_end|>\n"
                              f"<|im_start|>assistant\n{b}<|im_end|>\n"}
    ),
    "transcript": written(lambda a, b: {"system": "Be brief.", "text": f"Human: {a}\n\nAssistant: {b}"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(bundled_model: Model) -> PreTrainedTokenizerBase:
    return load_tokenizer(bundled_model)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_has_the_tokens_and_labels_of_accord_s_own(
    form: str, tmp_path: Path, runs: Runs, tokenizer: PreTrainedTokenizerBase
) -> None:
    reference = FORMS[form](tmp_path)
    found = []
    for name in (write_lines(tmp_path / "own.jsonl", OWN_ROWS), reference):
        config = open_data(
            SFTConfig.model_validate({"demonstrations": name, "heldout_fraction": 0}), runs, DataConfig()
        )
        run = prepare(config, runs, tokenizer)
        rows = open_data_run(run).rows
        found.append((rows["input_ids"][:], rows["labels"][:]))
    assert found[0] == found[1] and len(found[0][0]) == 4
    (file,) = config.demonstrations
    if file.path == reference:
        assert files_of(run)[0]["convention"]
    else:  # a folder
        assert Path(file.path).parent == runs.root / "rows"
        assert read_jsonl(Path(file.path), Demonstration)[2].place == f"{reference}: row 3"
        origin = DataFile(Path(file.path)).origin
        assert origin["file"].startswith(reference) and origin["convention"]


def test_accord_s_own_form_is_read_where_it_is(tmp_path: Path, runs: Runs) -> None:
    for name, mark in (("plain", ""), ("marked", "\ufeff")):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(mark + "".join(json.dumps(row) + "\r\n" for row in OWN_ROWS), encoding="utf-8")
        config = SFTConfig(demonstrations=[{"path": str(path)}])
        assert open_data(config, runs) is config
        assert read(str(path), Demonstration).convention == OWN
        assert read_jsonl(path, Demonstration)[3].place == f"{path}:4"
    (tmp_path / "wide.jsonl").write_text(path.read_text(encoding="utf-8-sig"), encoding="utf-16")
    assert len(read(str(tmp_path / "wide.jsonl"), Demonstration).rows) == 4


# --- what rows mean


def only(rows: list[Any]) -> Any:
    (row,) = rows
    return row


def read_one(folder: Path, row: dict[str, Any], row_type: type[Any], **columns: str) -> Any:
    path = write_lines(folder / "one.jsonl", [row])
    reading = read(path, row_type, DataConfig(columns={path: columns}) if columns else None)
    reading.check()
    return only(reading.rows)


def said(turns: list[Message]) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in turns]


TOOL = {"type": "function", "function": {"name": "tide", "parameters": {}}}


@pytest.mark.parametrize(
    "arguments", [{"harbour": "Leith"}, '{"harbour": "Leith"}', json.dumps('{"harbour": "Leith"}')]
)
def test_tools_and_their_calls(tmp_path: Path, arguments: Any) -> None:
    call = {"id": "c0", "type": "function", "function": {"name": "tide", "arguments": arguments}}
    turns = [
        {"role": "user", "content": "When is high water?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c0", "content": "06:40"},
        {"role": "assistant", "content": "At 06:40."},
    ]
    row = read_one(tmp_path, {"messages": turns, "tools": [TOOL]}, Demonstration)
    assert row.messages[0].tools == [TOOL]
    assert row.messages[1].tool_calls[0]["function"]["arguments"] == {"harbour": "Leith"}
    assert row.messages[1].text == '{"name": "tide", "arguments": {"harbour": "Leith"}}'
    assert row.messages[2].tool_call_id == "c0"
    # ShareGPT's way to say it
    spoken = [
        {"from": "human", "value": "When is high water?"},
        {"from": "function_call", "value": json.dumps({"name": "tide", "arguments": arguments})},
        {"from": "observation", "value": "06:40"},
        {"from": "gpt", "value": "At 06:40."},
    ]
    same = read_one(tmp_path, {"conversations": spoken, "tools": json.dumps([TOOL])}, Demonstration)
    assert [turn.text for turn in same.messages] == [turn.text for turn in row.messages]
    assert same.messages[0].tools == [TOOL]


def test_thinking_weights_and_history(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "Seven?"},
        {"role": "assistant", "content": "<think>\nIt is odd.\n</think>\n\nPrime.", "train": False},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "reasoning_content": "Yes.", "content": "Yes."},
    ]
    row = read_one(tmp_path, {"messages": turns}, Demonstration)
    assert said(row.messages)[1] == ("assistant", "Prime.")
    assert row.messages[1].reasoning_content == "It is odd." and row.messages[1].weight == 0
    row = read_one(
        tmp_path, {"instruction": "Go on.", "input": "Now.", "output": "So.", "history": [["Hi.", "Ho."]]},
        Demonstration,
    )  # fmt: skip
    assert said(row.messages) == [
        ("user", "Hi."), ("assistant", "Ho."), ("user", "Go on.\nNow."), ("assistant", "So.")
    ]  # fmt: skip


HELLO = [{"role": "user", "content": "Hello."}]
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("Hello to you.", "No."))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hello.", "chosen": "Hello to you.", "rejected": "No."},
        {"instruction": "Hello.", "chosen": GOOD, "rejected": BAD},
        {"chosen": [*HELLO, GOOD], "rejected": [*HELLO, BAD]},
        {"prompt": "Hello.", "prompt_id": "p0", "chosen": [*HELLO, GOOD], "rejected": [*HELLO, BAD],
         "messages": [*HELLO, GOOD], "score_chosen": 8.0},
        {"prompt": HELLO, "chosen": [*HELLO, GOOD], "rejected": [*HELLO, BAD]},
        {"chosen": "\n\nHuman: Hello.\n\nAssistant: Hello to you.", "rejected": "\n\nHuman: Hello.\n\nAssistant: No."},
        {"messages": [*HELLO, GOOD], "rejected_response": "No."},
        {"conversations": [{"from": "human", "value": "Hello."}], "chosen": {"from": "gpt", "value": "Hello to you."},
         "rejected": {"from": "gpt", "value": "No."}},
        {"prompt": "Hello.", "response_0": "No.", "response_1": "Hello to you.", "better_response_id": 1},
        {"question": "Hello.", "response_a": "Hello to you.", "response_b": "No.", "winner": "a"},
        {"conversation_a": [*HELLO, BAD], "conversation_b": [*HELLO, GOOD], "winner": "model_b"},
    ],
)  # fmt: skip
def test_preferences_in_other_conventions(tmp_path: Path, row: dict[str, Any], runs: Runs) -> None:
    found = read_one(tmp_path, row, Preference)
    assert (said(found.prompt), said(found.chosen), said(found.rejected)) == (
        [("user", "Hello.")], [("assistant", "Hello to you.")], [("assistant", "No.")]
    )  # fmt: skip
    kept = open_judgements(str(tmp_path / "one.jsonl"), runs)
    assert isinstance(kept, DataFile)
    assert read_jsonl(kept.path, Preference) == [found]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": HELLO, "chosen": [GOOD], "rejected": [{**HELLO[0], "content": "No."}]},
         "rejected: must begin and end with the assistant, found 'user'"),
        ({"prompt": HELLO, "chosen": HELLO, "rejected": [{**HELLO[0], "content": "No."}]},
         "chosen: must begin and end with the assistant"),
        ({"prompt": [*HELLO, BAD], "chosen": [GOOD], "rejected": [BAD]}, "the last message is the assistant's"),
        ({"prompt": HELLO, "chosen": [GOOD], "rejected": [{**GOOD, "content": "Hello to you. \n"}]},
         "equals rejected, but for white space"),
        ({"prompt": HELLO, "chosen": [GOOD], "rejected": [BAD], "margin": -2}, "margin: is -2"),
        ({"prompt": "Bye.", "chosen": [*HELLO, GOOD], "rejected": [*HELLO, BAD]},
         "prompt: is not what chosen and rejected begin with"),
        ({"chosen": [*HELLO, GOOD], "rejected": [{"role": "user", "content": "Bye."}, BAD]},
         "after the 0 turns that both share comes 'user'"),
        ({"prompt": "Hello.", "response_0": "a", "response_1": "b", "better_response_id": 2}, "prefers neither"),
        ({"prompt": "a", "question": "b", "chosen": "c", "rejected": "d"}, "prompt may be in prompt or in question"),
        ({"chosen": "a", "rejected": "b"}, "in no convention of preferences that accord knows"),
        ({"messages": [*HELLO, GOOD]}, r"holds demonstrations, OpenAI messages \(messages\), and preferences are"),
    ],
)  # fmt: skip
def test_preferences_that_say_nothing_or_two_things(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=rf"one\.jsonl:1: .*{says}"):
        read_one(tmp_path, row, Preference)


def test_rankings_and_scores_are_comparisons(tmp_path: Path, runs: Runs) -> None:
    ranked = read_one(
        tmp_path, {"prompt": "Hello.", "responses": ["No.", "Hi."], "ranks": [2, 1]}, Preference
    )
    assert isinstance(ranked, Comparison)
    assert [answer.text for answer in ranked.responses] == ["No.", "Hi."] and ranked.rankings[0].ranks == [
        2,
        1,
    ]
    scored = read_one(
        tmp_path,
        {"instruction": "Hello.", "completions": [
            {"response": "a", "overall_score": 3.5}, {"response": "b", "overall_score": 4},
            {"response": "c", "overall_score": 3.5}]},
        Preference,
    )  # fmt: skip
    assert scored.rankings[0].ranks == [2, 1, 2] and said(scored.prompt) == [("user", "Hello.")]
    path = write_lines(tmp_path / "twice.jsonl", [json.loads(ranked.model_dump_json(exclude_none=True))] * 2)
    with pytest.raises(DataError, match=r"twice\.jsonl:2: id: '[0-9a-f]+' stands in .*twice\.jsonl:1, too"):
        open_judgements(path, runs)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hello."}, {"question": "Hello.", "answer": "x"}, {"messages": HELLO}, {"messages": [*HELLO, GOOD]},
        {"id": 7, "prompt": HELLO}, {"instruction": "Hello.", "input": "", "output": "No."},
        {"conversations": [{"from": "human", "value": "Hello."}]},
    ],
)  # fmt: skip
def test_prompts_in_other_conventions(tmp_path: Path, row: dict[str, Any]) -> None:
    found = read_one(tmp_path, row, Prompt)
    assert said(found.prompt) == [("user", "Hello.")]
    assert found.id == ("7" if "id" in row else None)


# --- what the user says of the columns


def test_columns_that_the_user_names(tmp_path: Path, runs: Runs, tokenizer: PreTrainedTokenizerBase) -> None:
    row = {"Frage": "Hello.", "Antwort": "Hi.", "response": "old", "topic": "x"}
    with pytest.raises(DataError, match=r"say in data\.columns which column is what"):
        read_one(tmp_path, {"Frage": "a", "Antwort": "b"}, Demonstration)
    found = read_one(tmp_path, row, Demonstration, prompt="Frage", completion="Antwort")
    assert said(found.messages) == [("user", "Hello."), ("assistant", "Hi.")]
    assert found.model_extra == {"column_response": "old", "topic": "x"}
    with pytest.raises(UsageError, match="'answer' is no part of a row; messages, prompt"):
        read_one(tmp_path, row, Demonstration, prompt="Frage", answer="Antwort")
    with pytest.raises(
        DataError, match=r"has no column 'Antwrt', which data.columns names; it has Frage, Antwort"
    ):
        read_one(tmp_path, row, Demonstration, prompt="Frage", completion="Antwrt")
    # and through a round's configuration
    data = DataConfig(columns={str(tmp_path / "one.jsonl"): {"prompt": "Frage", "completion": "Antwort"}})
    named = {"demonstrations": str(tmp_path / "one.jsonl"), "heldout_fraction": 0}
    rows = open_data_run(prepare(SFTConfig.model_validate(named), runs, tokenizer, data)).rows
    assert Demonstration.model_validate_json(rows[0]["row"]) == found


def test_system_messages_merged_into_the_user_s(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [*OWN_ROWS, {"messages": [*HELLO, GOOD], "topic": "x"}])
    reading = read(path, Demonstration, DataConfig(system="merge_into_user"))
    assert said(reading.rows[0].messages) == [
        ("user", f"Be brief.\n\n{ASKED[0]}"), ("assistant", ANSWERED[0])
    ]  # fmt: skip
    assert said(reading.rows[4].messages)[0] == ("user", "Hello.") and reading.rows[4].model_extra == {
        "topic": "x"
    }
    assert reading.convention != OWN
    with_tools = {"messages": [{"role": "system", "content": "Be brief."}, *HELLO, GOOD], "tools": [TOOL]}
    (row,) = read(
        write_lines(tmp_path / "t.jsonl", [with_tools]), Demonstration, DataConfig(system="merge_into_user")
    ).rows
    assert row.messages[0].tools == [TOOL] and len(row.messages) == 2


# --- what is not right


def test_two_conventions_in_one_file(tmp_path: Path) -> None:
    for rows in ((OWN_ROWS[0], ALPACA[0]), (ALPACA[0], OWN_ROWS[0])):
        reading = read(write_lines(tmp_path / "rows.jsonl", [*rows]), Demonstration)
        assert len(reading.rows) == 1
        assert "another convention than the rows before it" in reading.faults[0].message


def test_all_faults_of_a_file_are_found(
    tmp_path: Path, runs: Runs, tokenizer: PreTrainedTokenizerBase
) -> None:
    lines = [json.dumps(row).encode() for row in OWN_ROWS]
    lines[1:1] = [
        b'{"messages": [',
        b"[1, 2]",
        b'{"messages": [{"role": "user", "content": "a"}], "messages": []}',
        b'{"messages": [{"role": "user", "content": "caf\xe9"}]}',
        json.dumps({"messages": [*HELLO, {"role": "assistant", "content": " \n"}]}).encode(),
        json.dumps({"messages": [*HELLO, {"role": "robot", "content": "x"}]}).encode(),
        json.dumps({"messages": [*HELLO, GOOD], "note": "\ud83d"}).encode(),
        json.dumps({"messages": [*HELLO, {"role": "assistant", "content": "a\x00"}]}).encode(),
        json.dumps({"messages": [GOOD, *HELLO]}).encode(),
        b'{"a":' * 100_000,
        json.dumps(
            {"messages": [*HELLO, {"role": "assistant", "content": [{"type": "image_url"}]}]}
        ).encode(),
        json.dumps({"messages": [*HELLO, {**GOOD, "weight": 0}]}).encode(),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    reading = read(str(path), Demonstration)
    assert len(reading.rows) == 4 and len(reading.faulty) == 12
    said = {int(fault.place.rpartition(":")[2]): fault.message for fault in reading.faults}
    expected = (
        "not valid JSON", "found [1, 2]", "'messages' stands twice", "byte 0xE9", "blank answer", "is 'robot'",
        "half of a surrogate pair", "NUL", "must be the assistant's", "nested too deep", "type 'image_url'",
        "weight 0, so nothing",
    )  # fmt: skip
    for line, words in enumerate(expected, start=2):
        assert words in said[line], (line, said[line])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: not valid JSON .*and 11 more faults, of 12 kinds"):
        prepare(SFTConfig.model_validate({"demonstrations": str(path)}), runs, tokenizer)


def test_a_long_row_and_columns_of_mixed_types(tmp_path: Path) -> None:
    long = {
        "messages": [*HELLO, {"role": "assistant", "content": "x" * 10_000_000}],
        "topic": {"a": [1, "b", None]},
    }
    (row,) = read(write_lines(tmp_path / "long.jsonl", [long]), Demonstration).rows
    assert len(row.messages[1].content) == 10_000_000 and row.model_extra == {"topic": {"a": [1, "b", None]}}
    path = tmp_path / "mixed.parquet"
    table = pyarrow.table({"instruction": ["a", "b"], "output": pyarrow.array([1, 2])})
    pyarrow.parquet.write_table(table, path)
    faults = read(str(path), Demonstration).faults
    assert (
        len(faults) == 2
        and faults[0].place == f"{path}: row 1"
        and "output: is int, not text" in faults[0].message
    )


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.csv", b"instruction,output\na,b\nc,d,e\n", r"rows\.csv:3: has 3 values for 2 columns"),
        ("rows.csv", b'instruction,output\n"a,b\n', r"rows\.csv:\d: is no CSV"),
        ("rows.csv", b"prompt,prompt\na,b\n", r"rows\.csv:1: the column 'prompt' stands twice"),
        ("rows.json", b"[{]", r"rows\.json: not valid JSON"),
        ("rows.json", b'{\n "messages": []\n}', "JSON over several lines; write one object a line, or an array"),
        ("rows.txt", b"Hello there", r"rows\.txt:1: is no JSON; a file of rows is JSON Lines, a JSON array, CSV"),
        ("rows.parquet", b"PAR1", "cannot be read as Parquet"),
        ("rows.jsonl.gz", b"no gzip", "cannot be read"),
        ("rows.jsonl", b"", "holds no rows; it must hold at least one demonstration"),
        ("rows.jsonl", b'{"text": "once upon a time"}', "a conversation needs its turns"),
        ("rows.jsonl", b'{"a": 1, "b": 2}', r"its columns \(a, b\) are in no convention of demonstrations"),
        ("rows.jsonl", b'{"prompt": "a", "completion": "b", "response": "c"}',
         "completion may be in completion or in response; say which, with data.columns"),
        ("rows.jsonl", b'{"messages": [{"role": "user", "content": "a"}], "prompt": "a", "completion": "b"}',
         "conversation may be in messages or in prompt and completion"),
    ],
)  # fmt: skip
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        read(str(tmp_path / name), Demonstration).check()


def test_data_sets_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="is written hub:owner/name:split"):
        read("hub:name", Demonstration)
    with pytest.raises(DataError, match="hub:no-such-owner/no-such-name:train: "):
        read("hub:no-such-owner/no-such-name:train", Demonstration)
    for error, says in (
        (
            RuntimeError("Dataset scripts are no longer supported, but found x.py"),
            "is a program that would run here",
        ),
        (ValueError('Unknown split "trian". Should be one of ["train"].'), "Unknown split"),
    ):

        def refuse(*_: Any, error: Exception = error, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(datasets, "load_dataset", refuse)
        with pytest.raises(DataError, match=says):
            read("hub:owner/name:trian", Demonstration)
    monkeypatch.undo()
    # what the hub gives is a data set as any other
    given = datasets.Dataset.from_list(OWN_ROWS)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: given)
    reading = read("hub:owner/name:train", Demonstration)
    assert len(reading.rows) == 4 and reading.places[1] == "hub:owner/name:train: row 2"
    monkeypatch.undo()
    folder = as_splits(tmp_path).rpartition(":")[0]
    with pytest.raises(DataError, match=re.escape(f"has the splits train; name one as {folder}:train")):
        read(folder, Demonstration)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is no folder of a data set"):
        read(str(tmp_path / "empty"), Demonstration)
