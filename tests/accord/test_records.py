import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from accord.errors import DataError
from accord.records import (
    Comparison,
    Demonstration,
    Message,
    Preference,
    Prompt,
    Row,
    content_id,
    conversation_id,
    read_jsonl,
)
from accord.text_files import write_atomically, write_jsonl

USER = {"role": "user", "content": "Name a prime."}
SEVEN = {"role": "assistant", "content": "Seven."}
NINE = {"role": "assistant", "content": "Nine."}
GOOD_PREFERENCE = {"prompt": [USER], "chosen": [SEVEN], "rejected": [NINE]}
GOOD_COMPARISON = {
    "id": "c1",
    "prompt": [USER],
    "responses": [
        {"text": "Seven.", "run": "sft-1", "seed": 1},
        {"text": "Nine.", "run": "sft-1", "seed": 2},
    ],
}
GOOD = {
    Demonstration: {"messages": [USER, SEVEN]},
    Prompt: {"prompt": [USER]},
    Preference: GOOD_PREFERENCE,
    Comparison: GOOD_COMPARISON,
}


def ranked(**ranking: object) -> dict[str, object]:
    return {**GOOD_COMPARISON, "rankings": [{"annotator": "a", **ranking}]}


@pytest.mark.parametrize(
    ("row_type", "bad", "field", "says"),
    [
        (Demonstration, {}, "messages", "required"),
        (Demonstration, {"messages": "hello"}, "messages", "list"),
        (
            Demonstration,
            {"messages": [USER, {"role": "robot", "content": "x"}]},
            "messages.1.role",
            "'assistant'",
        ),
        (Demonstration, {"messages": [USER, {"role": "assistant"}]}, "messages.1.content", "required"),
        (Demonstration, {"messages": [USER, {**SEVEN, "content": ""}]}, "messages.1.content", "at least 1"),
        (
            Demonstration,
            {"messages": [USER, {**SEVEN, "contnet": "x"}]},
            "messages.1.contnet",
            "not permitted",
        ),
        (Demonstration, {"messages": [USER, USER]}, "messages", "assistant's"),
        (Prompt, {"prompt": [USER, SEVEN]}, "prompt", "user's"),
        (Prompt, {"prompt": []}, "prompt", "at least 1"),
        (Preference, {**GOOD_PREFERENCE, "chosen": [NINE]}, "chosen", "equals rejected"),
        (Preference, {**GOOD_PREFERENCE, "chosen": 7}, "chosen", "list"),
        (Preference, {**GOOD_PREFERENCE, "wieght": 2.0}, "wieght", "did you mean 'weight'"),
        (Preference, {**GOOD_PREFERENCE, "weights": 2.0}, "weights", "did you mean 'weight'"),
        (Preference, {**GOOD_PREFERENCE, "anotator": 2}, "anotator", "did you mean 'annotators'"),
        (Preference, {**GOOD_PREFERENCE, "weight": -1}, "weight", "greater than or equal to 0"),
        (Preference, {**GOOD_PREFERENCE, "margin": float("nan")}, "margin", "finite"),
        (Preference, {**GOOD_PREFERENCE, "agreement": 1.5}, "agreement", "less than or equal to 1"),
        (Comparison, ranked(ranks=[1]), "rankings.0.ranks", "has 1 ranks for 2 responses"),
        (Comparison, ranked(ranks=[1, 2, 3]), "rankings.0.ranks", "has 3 ranks for 2 responses"),
        (Comparison, ranked(ranks=["best", 2]), "rankings.0.ranks.0", "integer"),
        (Comparison, ranked(), "rankings.0.ranks", "needs ranks"),
        (
            Comparison,
            {**GOOD_COMPARISON, "responses": GOOD_COMPARISON["responses"][:1]},
            "responses",
            "at least 2",
        ),
        (Demonstration, ["not", "an", "object"], "", "dictionary"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(
    tmp_path: Path, row_type: type[Row], bad: object, field: str, says: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD[row_type]) + "\n\n" + json.dumps(bad) + "\n")
    with pytest.raises(DataError) as caught:
        read_jsonl(path, row_type)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: ")  # the third line, though the second is blank
    assert field in message
    assert says in message
    assert "\n" not in message


def test_the_good_rows_of_the_cases_above_are_good(tmp_path: Path) -> None:
    for row_type, value in GOOD.items():
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(value) + "\n")
        assert len(read_jsonl(path, row_type)) == 1


def test_a_half_written_last_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    whole = json.dumps(GOOD[Prompt])
    path.write_text(whole + "\n" + whole[:20])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: not valid JSON .* half-written"):
        read_jsonl(path, Prompt)


def test_missing_empty_and_non_utf8_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        read_jsonl(tmp_path / "gone.jsonl", Prompt)
    with pytest.raises(DataError, match="cannot be read"):
        read_jsonl(tmp_path, Prompt)  # a folder
    path = tmp_path / "rows.jsonl"
    for content in ("", "\n \n"):
        path.write_text(content)
        with pytest.raises(DataError, match="holds no rows; it must hold at least one prompt a line"):
            read_jsonl(path, Prompt)
    path.write_bytes('{"prompt": [{"role": "user", "content": "Grüß"}]}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: cannot be read as UTF-8"):
        read_jsonl(path, Prompt)


def test_round_trip_keeps_every_row_and_column_identical(tmp_path: Path) -> None:
    odd = 'tab\t quote" back\\slash é 漢 🙂 \u2028 \u2029 \x85 \x0b \x1c end'
    values = [
        {
            **GOOD_PREFERENCE,
            "prompt": [{"role": "user", "content": odd}],
            "source": {"url": None, "n": [1, 2.5]},
        },
        {
            **GOOD_PREFERENCE,
            "weight": 0.0,
            "annotators": 4,
            "agreement": 0.75,
            "margin": 0.5,
            "id": "p",
            "tag": None,
        },
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    rows = read_jsonl(path, Preference)
    again = tmp_path / "again.jsonl"
    write_jsonl(again, rows)
    assert read_jsonl(again, Preference) == rows
    # The raw values too: unknown columns stay, even where they are null, and nothing is added.
    assert [json.loads(line) for line in again.read_text().split("\n")[:-1]] == values


def test_a_carriage_return_before_the_line_feed_is_no_part_of_the_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD[Prompt]).encode() + b"\r\n")
    assert read_jsonl(path, Prompt) == [Prompt(prompt=[Message(**USER)])]


def test_a_failing_serialisation_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"old": 1}])
    with pytest.raises(TypeError):
        write_jsonl(path, [{"new": 1}, {"new": object()}])
    with pytest.raises(UnicodeEncodeError):
        write_jsonl(path, [{"new": "\ud800"}])  # half of a surrogate pair has no UTF-8
    assert path.read_text() == '{"old": 1}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A process that may write 4096 bytes a file stands in for the full disk (the kernel cuts both writes off)."""
    path = tmp_path / "rows.jsonl"
    write_atomically(path, "old\n")
    code = (
        "import sys, pathlib; from accord.text_files import write_atomically\n"
        "write_atomically(pathlib.Path(sys.argv[1]), 'new' * 10_000)"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = subprocess.run(
        [sys.executable, "-B", "-c", code, str(path)], preexec_fn=limit, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert path.read_text() == "old\n"
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_write_atomically_replaces_and_sets_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "new" / "secret"
    write_atomically(path, b"one", mode=0o600)
    write_atomically(path, "two", mode=0o600)
    assert path.read_text() == "two"
    assert path.stat().st_mode & 0o777 == 0o600


def test_content_id_is_the_hash_of_canonical_json() -> None:
    import hashlib

    expected = hashlib.sha256('{"a":[1,"é"],"b":null}'.encode()).hexdigest()
    assert content_id({"b": None, "a": [1, "é"]}) == expected[:12]
    assert content_id({"a": [1, "é"], "b": None}, 64) == expected
    assert content_id({"a": ["é", 1], "b": None}) != expected[:12]


@pytest.mark.parametrize(
    "columns",
    [
        {
            "prompt_id": "p-7",
            "chosen_id": 3,
            "rejected_id": 4,
        },  # other names, however much they have in common
        {"ids": [1, 2]},
        {"id": "a", "idx": 7},
        {"weight": 1.0, "weights": [0.5, 0.5]},  # what it would be a slip for is there
    ],
)
def test_unknown_columns_stay_whole(columns: dict[str, object]) -> None:
    row = Preference.model_validate({**GOOD_PREFERENCE, **columns})
    assert {name: value for name, value in row.model_dump().items() if name in columns} == columns


def test_a_conversation_is_all_of_its_turns() -> None:
    def turns(*texts: str) -> list[Message]:
        return [Message(role="user" if i % 2 == 0 else "assistant", content=t) for i, t in enumerate(texts)]

    assert conversation_id(turns("Hi", "Hello", "And then?")) == conversation_id(
        turns("Hi", "Hello", "And then?")
    )
    different = [turns("And then?"), turns("Hi", "Hello", "And then?"), turns("Hi\nassistant: Hello")]
    assert len({conversation_id(each) for each in [*different, turns("Hi", "Hello")]}) == 4


def test_what_a_model_wrote_is_read_back_whatever_it_is(tmp_path: Path) -> None:
    """A policy may sample NUL; its answers are ours to keep. Files from outside may not hold one (accord.data)."""
    row = Demonstration(
        messages=[Message(role="user", content="a"), Message(role="assistant", content="\x00\u2028\\u0000")]
    )
    write_jsonl(tmp_path / "rows.jsonl", [row])
    assert read_jsonl(tmp_path / "rows.jsonl", Demonstration) == [row]
