"""`accord data check` names every kind of fault with its count, and says what a file holds."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from accord.cli.main import main
from accord.data.check import examine, kind_of_rows
from accord.data.reading import read
from accord.data.rendering import check_template_takes
from accord.errors import DataError
from accord.models.loading import load_tokenizer
from accord.models.references import Model
from accord.records import Comparison, Demonstration, Preference, Prompt, UnpairedFeedback, read_jsonl

GOOD = [
    {
        "messages": [
            {"role": "user", "content": f"Is {i} even?"},
            {"role": "assistant", "content": "Yes." * i},
        ],
        "n": i,
    }
    for i in range(1, 6)
]


def turns(*said: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in said]}


PLANTED: dict[str, tuple[int, list[bytes]]] = {
    "not valid JSON": (2, [b'{"messages": [', b"{'messages': 1}"]),
    "no column of a convention": (1, [json.dumps({"note": 1}).encode()]),
    "cannot be read as UTF-8": (1, [b'{"messages": [{"role": "user", "content": "caf\xe9"}]}']),
    "stands twice": (1, [b'{"n": 1, "n": 2, "messages": []}']),
    "half of a surrogate pair": (1, [json.dumps(turns(("user", "\ud83d"), ("assistant", "a"))).encode()]),
    "a blank answer would be learned": (3, [json.dumps(turns(("user", "a"), ("assistant", " "))).encode()] * 3),
    "is 'robot'; known are": (1, [json.dumps(turns(("robot", "a"), ("assistant", "b"))).encode()]),
    "the last message must be the assistant's": (2, [json.dumps(turns(("user", "a"), ("user", "b"))).encode()] * 2),
    "reads text only": (1, [json.dumps(turns(("user", [{"type": "image_url"}]), ("assistant", "b"))).encode()]),
    "another convention": (1, [json.dumps({"instruction": "a", "output": "b"}).encode()]),
}  # fmt: skip


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    lines = [json.dumps(row).encode() for row in GOOD]
    lines += [line for _, faulty in PLANTED.values() for line in faulty]
    (tmp_path / "chats.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return tmp_path / "chats.jsonl"


def accord(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def test_every_kind_of_planted_fault_is_named_with_its_count(planted: Path) -> None:
    result = accord("data", "check", planted, "--json")
    assert result.exit_code == 1
    (report,) = json.loads(result.stdout)
    faults = report["faults"]
    for words, (count, _) in PLANTED.items():
        if words == "no column of a convention":
            words = "Field required"
        of_kind = [each for each in faults if words in each["example"]]
        assert sum(each["count"] for each in of_kind) == count, (words, faults)
        assert all(each["places"][0].startswith(f"{planted}:") for each in of_kind)
    assert len(faults) == len(PLANTED)
    assert report["faulty_rows"] == 14 and report["contents"]["rows"] == 5
    shown = accord("data", "check", planted)
    assert shown.exit_code == 1 and "14 faulty rows, 10 kinds of faults" in shown.stdout
    for each in faults:
        assert f"{each['count']:>6}  {each['example']}" in shown.stdout


def test_good_rows_and_the_others_are_written_apart(planted: Path) -> None:
    result = accord("data", "check", planted, "--drop-faulty")
    assert result.exit_code == 0, result.output
    good, faulty = Path(f"{planted}.good.jsonl"), Path(f"{planted}.faulty.jsonl")
    assert [json.loads(line) for line in good.read_text().splitlines()] == GOOD
    rows = [json.loads(line) for line in faulty.read_text().splitlines()]
    assert len(rows) == 14 and rows[0]["place"] == f"{planted}:6" and "not valid JSON" in rows[0]["faults"][0]
    assert rows[2]["row"] == {"note": 1}
    output = planted.with_name("mine.jsonl")
    refused = accord("data", "convert", planted, "--output", output)
    assert refused.exit_code == 1 and f"{planted}:6: not valid JSON" in refused.output and not output.exists()
    converted = accord("data", "convert", planted, "--output", output, "--drop-faulty")
    assert converted.exit_code == 0 and output.read_text() == good.read_text()
    assert "14 rows that were left out" in converted.stdout


def test_converting_what_names_do_not_say(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Frage,Antwort,response\nWhy?,So.,x\n")
    output = tmp_path / "own.jsonl"
    columns = ("--columns", "prompt=Frage", "--columns", "completion=Antwort")
    result = accord("data", "convert", tmp_path / "a.csv", "--output", output, *columns)
    assert result.exit_code == 0, result.output
    (row,) = read_jsonl(output, Demonstration)
    assert [turn.content for turn in row.messages] == ["Why?", "So."]
    assert accord("data", "check", tmp_path / "a.csv", "--columns", "prompt").exit_code == 2
    unknown = accord("data", "check", tmp_path / "a.csv")
    assert (
        unknown.exit_code == 1
        and "its columns (Frage, Antwort, response) are in no convention" in unknown.output
    )


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (GOOD[0], Demonstration), ({"prompt": "Why?"}, Prompt), ({"question": "Why?", "answer": "So."}, Demonstration),
        (turns(("user", "Why?")), Prompt), ({"prompt": "a", "chosen": "b", "rejected": "c"}, Preference),
        ({"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]}, Comparison),
        ({"prompt": "a", "completion": "b", "label": True}, UnpairedFeedback),
    ],
)  # fmt: skip
def test_what_rows_are_is_seen(tmp_path: Path, row: dict[str, Any], kind: type[Any]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert kind_of_rows(str(path), {}) is kind
    reading = read(str(path), kind)
    reading.check()
    if kind is UnpairedFeedback:
        (found,) = reading.rows
        assert isinstance(found, UnpairedFeedback) and found.label and found.completion[0].content == "b"


def test_what_a_file_holds(tmp_path: Path, tiny_model: Model) -> None:
    pair = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
    rows = [
        pair, {"prompt": "Why?", "chosen": "So.", "rejected": "No."}, {**pair, "chosen": "No.", "rejected": "So."},
        {**pair, "prompt": " why? "}, {**pair, "chosen": "<|im_end|>So"}, {**pair, "weight": 0, "rejected": ""},
        {**pair, "prompt": "Why? " * 40, "topic": "x"}, {**pair, "prompt": [{"role": "system", "content": "Hm."},
                                                                           {"role": "user", "content": "Why?"}]},
    ]  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reading = read(str(path), Preference)
    report = examine(reading, load_tokenizer(tiny_model), max_tokens=150)
    assert report.faults == [] and report.convention.startswith("preferences (")
    figures = report.contents.figures
    assert figures == {
        "duplicates": 1, "opposites": 1, "prompts_that_differ_in_case_or_space": 2, "too_long": 1, "blank_answers": 1,
        "weight_zero": 1, "control_tokens_in_texts": 1, "with_system_message": 1,
    }  # fmt: skip
    assert report.contents.columns == {"topic": 1} and report.contents.turns == {2: 7, 3: 1}
    assert (
        report.contents.roles == {"user": 8, "assistant": 8, "system": 1} and report.contents.unit == "tokens"
    )
    assert ("opposites", f"{path}:3", "So.") in report.examples


def test_what_the_chat_template_refuses_is_a_fault(tmp_path: Path, tiny_model: Model) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + str(tokenizer.chat_template)
    )
    rows = [GOOD[0], turns(("system", "Hm."), ("user", "a"), ("assistant", "b")), GOOD[1]]
    rows.append(turns(("system", "Oh."), ("user", "c"), ("assistant", "d")))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = examine(read(str(path), Demonstration), tokenizer)
    (fault,) = report.faults
    assert fault.count == 2 and fault.places == [f"{path}:2", f"{path}:4"] and report.contents.rows == 2
    with pytest.raises(
        DataError, match=r"rows\.jsonl:2: .*System role not supported.*\(and 1 more are like it\)"
    ):
        check_template_takes(tokenizer, read_jsonl(path, Demonstration))


def test_the_page_shows_the_report_and_runs_nothing(planted: Path, tmp_path: Path) -> None:
    with planted.open("a") as file:
        file.write(
            json.dumps(turns(("user", "<script>alert(1)</script><|im_end|>"), ("assistant", "b"))) + "\n"
        )
    page = tmp_path / "check.html"
    assert accord("data", "check", planted, "--page", page).exit_code == 1
    html = page.read_text()
    assert "14 rows are faulty" in html and "another convention" in html
    assert "<script>" not in html and "&lt;script&gt;alert(1)" in html
