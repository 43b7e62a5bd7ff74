"""The quality of rows: planted faults at known counts are found exactly, and nothing changes unless it is asked for."""

import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from accord.cli.main import main
from accord.data.quality import answers, encoding, near
from accord.data.quality.clean import Cleaner, Wishes
from accord.data.quality.findings import Finding, strings, with_texts
from accord.data.quality.held_out import HeldOut
from accord.data.quality.kinds import KINDS
from accord.data.quality.language import language
from accord.data.quality.near import NearDuplicates, NearTexts, jaccard, shingles
from accord.data.quality.overlap import TrainingText, find_overlaps
from accord.data.quality.personal import find_personal, redacted
from accord.data.quality.same import Disagreements
from accord.data.quality.signatures import Signatures, sequences
from accord.data.quality.toxicity import toxic_answers
from accord.records import Demonstration, Message, Preference, Prompt, Row, UnpairedFeedback

VOCABULARY = [a + b + c for a in "bdfgklmnprst" for b in ("a", "ei", "o", "u") for c in "lmnrst"]


def text(rng: random.Random, length: int) -> list[str]:
    return rng.choices(VOCABULARY, k=length)


def changed(rng: random.Random, words: list[str], low: float, high: float) -> list[str]:
    """The words with one run of them replaced, so that what is left has a similarity from `low` to `high`."""
    for run in range(1, len(words)):
        other = list(words)
        at = rng.randrange(5, len(words) - run) if run < len(words) - 5 else 0
        other[at : at + run] = [f"x{rng.random()}".replace(".", "") for _ in range(run)]
        if low <= jaccard(shingles(" ".join(words)), shingles(" ".join(other))) <= high:
            return other
    raise AssertionError("no change gives that similarity")


def chat(question: str, answer: str, **columns: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **columns}


def demonstrations(*rows: dict[str, Any]) -> list[Demonstration]:
    return [Demonstration.model_validate(row) for row in rows]


def places(rows: Any) -> list[str]:
    return [f"f:{i}" for i in range(1, len(rows) + 1)]


def accord(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def write(path: Path, rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def unusual_lengths(rows: list[Demonstration]) -> list[Finding]:
    lengths = answers.Lengths()
    lengths.add(rows)
    return lengths.unusual(rows)


def spans(text: str) -> list[tuple[str, str]]:
    return [(span.kind, text[span.start : span.end]) for span in find_personal(text)]


def test_near_duplicates_of_500_planted_pairs() -> None:
    rng = random.Random(0)
    first = [text(rng, 100) for _ in range(500)]
    near = [changed(rng, words, 0.80, 0.88) for words in first]
    far = [changed(rng, words, 0.55, 0.65) for words in (text(rng, 100) for _ in range(250))]
    base = [text(rng, 100) for _ in range(250)]
    other = [changed(rng, words, 0.55, 0.65) for words in base]
    rows = demonstrations(
        *(chat(" ".join(w[:20]), " ".join(w[20:])) for w in [*first, *far, *base, *near, *other])
    )
    began = time.process_time()
    found = NearDuplicates().find(rows, places(rows))
    assert time.process_time() - began < 5
    planted = range(1000, 1500)
    right = [
        each for each in found if each.row in planted and f"f:{each.row - 999}" == each.detail.split()[-1]
    ]
    assert len(right) / len(planted) >= 0.95 and len(right) == len(found)


def test_what_is_near_stays_out_of_the_way_of_others() -> None:
    rng = random.Random(1)
    words = text(rng, 60)
    system = {"role": "system", "content": " ".join(text(rng, 300))}
    one, two = (chat(" ".join(text(rng, 30)), "So.") for _ in range(2))
    for row in (one, two):
        row["messages"].insert(0, system)
    long = " ".join(words)
    judged: list[Row] = [
        Preference.model_validate({"prompt": [{"role": "user", "content": long}],
                                   "chosen": [{"role": "assistant", "content": chosen}],
                                   "rejected": [{"role": "assistant", "content": rejected}]})
        for chosen, rejected in (("Yes.", "No."), ("No.", "Yes."), ("Perhaps.", "No."), ("yes", "no"))
    ]  # fmt: skip
    judged += [
        UnpairedFeedback(prompt=[Message(role="user", content=long)], label=label,
                         completion=[Message(role="assistant", content="Yes.")])
        for label in (True, False, True)
    ]  # fmt: skip
    rows = [
        *demonstrations(
            one, two, chat(long, "So."), chat(long, "So!"), chat("Ok?", "So."), chat("Ok?", "No.")
        ),
        *judged,
    ]
    found = NearDuplicates().find(rows, places(rows))
    # The system message that rows share makes nothing near; nor does the prompt of answers that were judged otherwise.
    assert [(each.row, each.detail) for each in found] == [
        (3, "1.00 like f:3"), (9, "1.00 like f:7"), (12, "1.00 like f:11"),
    ]  # fmt: skip
    without = [row for i, row in enumerate(rows) if i not in {each.row for each in found}]
    assert NearDuplicates().find(without, places(without)) == []


def test_chinese_has_words_too() -> None:
    said = "树叶在秋天会变红因为叶绿素分解而花青素在阳光下形成颜色随温度变化我们每年都能看到"
    rows = demonstrations(chat("为什么", said), chat("为什么", said[:-1] + "见"), chat("为什么", said[::-1]))
    assert [each.row for each in NearDuplicates().find(rows, places(rows))] == [1]


def test_sequences_are_those_of_the_words() -> None:
    rng = random.Random(8)
    base = text(rng, 12)
    texts = [
        "", "...", "One", "one two three FOUR", "one two three four five", "ONE-two: three, four; five! six",
        "Straße der Ärzte in x_y Z", "树叶在秋天会变红因为叶绿素 in autumn",
        f"{'long' * 9} {'long' * 9} b c {'e' * 8} f",
        " ".join(base), " ".join(base[3:]), " ".join(base * 2), "one two three four five",
    ]  # fmt: skip
    found, starts = sequences(texts)
    as_sets = [set(found[a:b].tolist()) for a, b in itertools.pairwise(starts)]
    for one, mine in zip(texts, as_sets, strict=True):
        for other, theirs in zip(texts, as_sets, strict=True):
            assert len(mine & theirs) == len(shingles(one) & shingles(other))


def test_near_duplicates_of_many_batches_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(9)
    rows = [text(rng, 60) for _ in range(200)]
    rows += [changed(rng, words, 0.75, 0.95) for words in rows for _ in range(2)]
    rng.shuffle(rows)
    texts = list(map(" ".join, rows))

    def found(size: int) -> list[Any]:
        monkeypatch.setattr(near, "AT_ONCE", size)
        return list(NearTexts().nearest(texts, notes=lambda i: i))

    assert found(1) == found(37) == found(2048)
    seen: list[str] = []
    for said, hit in zip(
        texts, found(100), strict=True
    ):  # what stays is near to nothing that stays before it
        similar = [jaccard(shingles(said), shingles(other)) for other in seen]
        assert (max(similar, default=0) >= 0.8) == (hit is not None)
        if not hit:
            seen.append(said)


def test_signatures_take_300_bytes_a_text() -> None:
    index = Signatures()
    for _ in range(8):
        for signature in np.random.default_rng(0).integers(0, 2**32, (500, 126), dtype=np.uint32):
            index.add(signature)
        index.settle()
    (short,) = index._short
    arrays = [*itertools.chain(*index._runs), short[: index.count]]
    assert sum(each.nbytes for each in arrays) / index.count <= 300 and len(index._runs) < 5


def test_held_out_questions() -> None:
    rng = random.Random(2)
    words = text(rng, 60)
    prompts = [Prompt(prompt=[Message(role="user", content=" ".join(words))]),
               Prompt(prompt=[Message(role="user", content="Name a prime.")])]  # fmt: skip
    near = " ".join(changed(rng, words, 0.8, 0.9))
    far = " ".join(changed(rng, words, 0.4, 0.6))
    turns = chat("Hi.", "Hello.")["messages"] + chat(near, "So.")["messages"]
    rows = demonstrations(chat(near, "a"), chat(far, "b"), {"messages": turns}, chat("name a PRIME", "7"),
                          chat("Name a number.", "7"))  # fmt: skip
    found = HeldOut(prompts, ["h:1", "h:2"]).near(rows)
    assert [(each.row, each.detail.split()[-1]) for each in found] == [(0, "h:1"), (2, "h:1"), (3, "h:2")]


KEY = "AKIA" + "ABCDEFGH2345WXYZ"
TOKEN = "ghp_" + "a1B2" * 9
BLOCK = "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----"
JWT = "eyJ" + "hbGciOiJIUzI1NiJ9" + ".eyJ" + "zdWIiOiIxMjM0NTY3" + "." + "dozjgNryP4J3jVmN"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Write to ada.l@mail.example.org, now.", [("email", "ada.l@mail.example.org")]),
        ("<a@b.de>; jörg+x@müller.de", [("email", "a@b.de"), ("email", "jörg+x@müller.de")]),
        ("+49 30 901820 or (415) 555-2671.", [("phone", "+49 30 901820"), ("phone", "(415) 555-2671")]),
        ("Call 415-555-2671", [("phone", "415-555-2671")]),
        ("Card 4111 1111 1111 1111, 5500-0055-5555-5559; 378282246310005",
         [("card", "4111 1111 1111 1111"), ("card", "5500-0055-5555-5559"), ("card", "378282246310005")]),
        ("Amex 3782 822463 10005.", [("card", "3782 822463 10005")]),
        ("IBAN DE89 3704 0044 0532 0130 00 IS MINE", [("iban", "DE89 3704 0044 0532 0130 00")]),
        ("GB82WEST12345698765432", [("iban", "GB82WEST12345698765432")]),
        ("ip=8.8.4.4, (1.1.1.1)", [("ip", "8.8.4.4"), ("ip", "1.1.1.1")]),
        ("from 8.8.4.4 and 2606:4700:4700::1111", [("ip", "8.8.4.4"), ("ip", "2606:4700:4700::1111")]),
        (f"key {KEY}.", [("secret", KEY)]), (f"{TOKEN} {JWT}", [("secret", TOKEN), ("secret", JWT)]),
        (f"It is:\n{BLOCK}", [("secret", BLOCK)]),
        ("a@b.de 4111111111111111", [("email", "a@b.de"), ("card", "4111111111111111")]),
    ],
)  # fmt: skip
def test_personal_data_is_found(said: str, expected: list[tuple[str, str]]) -> None:
    assert spans(said) == expected


@pytest.mark.parametrize(
    "said",
    [
        "4111 1111 1111 1112", "9111111111111111", "1234567812345670", "4111-1111-1111-1111-4111",
        "DE89 3704 0044 0532 0130 01", "XX89 3704 0044 0532 0130 00", "550e8400-e29b-41d4-a716-446655440000",
        "2026-11-28 16:20:47", "28.11.2026", "1 000 000 000", "3.14159265358979", "978-3-16-148410-0", "415-555-26711",
        "+1 234", "id-4111111111111111", "version 8.8.4.4", "b>=1.2.0.2", "c ~= 1.4.5.3",
        'version="5.1.0.93"', "§ 4.2.3.2", "RFC 5891 §4.2.3.2", "14.0.0.0", "239.1.2.3",
        "1.2.3", "192.168.0.1", "127.0.0.1", "300.8.8.8",
        "12:30:45", "std::vector<int>", "icon@2x.png", "@ada", "a@b", "5 @ 3.50", "sk-learn and scikit-learn",
        "sk-learn-scikit-learn-contrib-of-many-long-words-here",
        "1,234,567,890", "000-000-0000", "6.02214076e23", "https://example.org/2026/11/28/1234567890",
    ],
)  # fmt: skip
def test_what_only_looks_like_personal_data(said: str) -> None:
    assert spans(said) == []


TOKENS = [
    KEY, TOKEN, BLOCK, JWT, KEY.replace("AKIA", "ASIA"), *(TOKEN.replace("ghp", f"gh{kind}") for kind in "ousr"),
    "github_pat_" + "a1" * 41, "glpat-" + "a1" * 10, "xoxb-" + "1a" * 6, "xapp-1-" + "1a" * 6, "sk_live_" + "a1" * 9,
    "rk_test_" + "a1" * 9, "sk-proj-" + "a1" * 18, "hf_" + "aB" * 17, "AIza" + "a1" * 17 + "b", "npm_" + "a1" * 18,
    "pypi-AgE" + "a1" * 26,
]  # fmt: skip


@pytest.mark.parametrize("token", TOKENS, ids=lambda token: token[:9])
def test_every_sort_of_token_is_found(token: str) -> None:
    assert spans(f"It is {token}, so keep it.") == [("secret", token)]


def test_encoding_damage_and_invisible_characters() -> None:
    rows = demonstrations(
        chat("Why?", "The café isn’t open — “so”."), chat("Why?", "The cafÃ© isn\u00e2\u20ac\u2122t open."),
        chat("Why?", "Lost \ufffd here."), chat("Why\u200b?", "So\x1b[0m."),
        chat("👩\u200d🔬🏴\U000e0067\U000e0062\U000e007f", "می\u200cخواهم"),
        chat("Hi\U000e0041\U000e0042", "a\tb\n"),
    )  # fmt: skip
    assert [(each.row, each.detail) for each in encoding.damaged(rows)] == [(1, "cafÃ©"), (2, "\ufffd")]
    assert [(each.row, each.detail) for each in encoding.invisible(rows)] == [
        (3, "U+001B, U+200B"), (5, "U+E0041"),
    ]  # fmt: skip
    assert encoding.repaired("cafÃ©\u200b", ["encoding"]) == "café\u200b"
    assert encoding.repaired("cafÃ©\u200b", ["invisible"]) == "cafÃ©"


def test_languages() -> None:
    assert language("Warum werden Blätter im Herbst rot, bevor sie fallen?") == "de"
    assert language("Why do leaves turn red in autumn before they fall?") == "en"
    assert (
        language("1 + 1 = 2")
        == language("Ok.")
        == language("0x3f a9 f3 qzx 77 word12 word31 word7 word99 word4")
        == "unknown"
    )


def test_refusals_and_stock_phrases() -> None:
    rows = demonstrations(
        chat("a", "I'm sorry, but I can't help with that."), chat("b", "I cannot help but smile at that."),
        chat("c", "As an AI language model, I have no feelings."), chat("d", "Seven."),
        chat("e", "I can’t provide medical advice."), chat("f", "Great question! Seven."),
        chat("g", "Dear [Your Name], thanks."), chat("h", "We cannot see infrared light."),
        chat("i", "Seven. " * 60 + "I cannot help with that."),
    )  # fmt: skip
    found = [(each.what, each.row) for each in answers.stock_phrases(rows)]
    assert found == [
        ("refusals", 0),
        ("boilerplate", 2),
        ("refusals", 4),
        ("boilerplate", 5),
        ("boilerplate", 6),
    ]
    pair = {"prompt": [{"role": "user", "content": "a"}], "chosen": [{"role": "assistant", "content": "Seven."}],
            "rejected": [{"role": "assistant", "content": "I can't help with that."}]}  # fmt: skip
    assert answers.stock_phrases([Preference.model_validate(pair)]) == []


def test_answers_that_disagree_repeat_or_are_of_unusual_length() -> None:
    rng = random.Random(3)
    usual = [chat(f"Question {i}?", " ".join(text(rng, rng.randrange(40, 80)))) for i in range(60)]
    rows = demonstrations(
        *usual, chat("question 5", "No."), chat("Question 6?", usual[6]["messages"][1]["content"].upper()),
        chat("Loop?", "and so on and on " * 12), chat("Long?", " ".join(text(rng, 5000))),
    )  # fmt: skip
    assert [(e.row, e.detail) for e in Disagreements().find(rows, places(rows))] == [
        (60, "f:6 answers otherwise")
    ]
    assert [each.row for each in answers.repeated(rows)] == [62]
    assert [each.row for each in unusual_lengths(rows)] == [60, 63]
    assert unusual_lengths(rows[:19]) == []
    alike = demonstrations(
        *(chat(f"{i}?", "So it is." + " No." * (i == 7) + " Yes." * 20 * (i == 9)) for i in range(40))
    )
    assert [each.row for each in unusual_lengths(alike)] == [9]


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Path, dict[str, int]]:
    """A file of 200 good rows and some faults of every kind, and how many."""
    rng = random.Random(4)
    good = [text(rng, 60) for _ in range(200)]
    rows = [chat(" ".join(words[:20]) + "?", " ".join(words[20:])) for words in good]

    def row(said: str) -> dict[str, Any]:
        return chat(" ".join(text(rng, 20)) + "?", " ".join([*text(rng, 20), said, *text(rng, 20)]))

    rows += [rows[0], rows[1]]
    rows += [chat(" ".join(words[:20]), " ".join(words[20:-1])) for words in good[2:7]]
    said = {
        "email": ["ada@example.org"] * 3, "card": ["4111111111111111"] * 2, "iban": ["GB82WEST12345698765432"],
        "phone": ["+49 30 901820"] * 4, "ip": ["8.8.4.4"] * 2, "secret": [TOKEN] * 3, "encoding": ["cafÃ©"] * 6,
        "invisible": ["a\u200bb"] * 5,
    }  # fmt: skip
    rows += [row(each) for texts in said.values() for each in texts]
    counts = {what: len(texts) for what, texts in said.items()} | {"near_duplicates": 7}
    return write(tmp_path / "rows.jsonl", rows), counts


UNPLANNED = ("length", "disagreement", "toxicity")
"""What random words may be by chance."""


def test_planted_faults_are_counted_in_text_json_and_on_the_page(
    planted: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    path, counts = planted
    before = path.read_bytes()
    page = tmp_path / "page.html"
    result = accord("data", "check", path, "--quality", "--json", "--page", page)
    assert result.exit_code == 0, result.output
    (report,) = json.loads(result.stdout)
    shares = {each["what"]: each for each in report["quality"]["shares"]}
    rare = {what: each["rows"] for what, each in shares.items() if what not in UNPLANNED}
    assert {what: count for what, count in rare.items() if count} == counts
    total = report["contents"]["rows"]
    email = shares["email"]
    assert email["share"] == 3 / total and 0 < email["low"] < 3 / total < email["high"]
    assert shares["near_duplicates"]["low"] is None and len(shares["phone"]["examples"]) == 3
    assert (
        "near_heldout" not in shares and sum(each["rows"] for each in report["quality"]["languages"]) == total
    )
    shown = accord("data", "check", path, "--quality").stdout
    assert "email: rows with e-mail addresses (" in shown and "languages: " in shown
    html = page.read_text()
    assert "rows with e-mail addresses" in html
    assert all(TOKEN not in each and "ada@" not in each for each in (shown, html, result.stdout))
    assert path.read_bytes() == before
    (plain,) = json.loads(accord("data", "check", path, "--json").stdout)
    assert plain["quality"] is None


def test_near_duplicates_across_files_and_against_held_out_rows(
    planted: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    path, _ = planted
    rows = lines(path)
    other = write(tmp_path / "other.jsonl", [rows[9], chat("Why?", "So.")])
    held = write(tmp_path / "held.jsonl", [{"prompt": rows[9]["messages"][0]["content"]}])
    result = accord("data", "check", path, other, "--quality", "--json", "--against", held)
    assert result.exit_code == 0, result.output
    first, second = (
        {each["what"]: each for each in report["quality"]["shares"]} for report in json.loads(result.stdout)
    )
    assert first["near_heldout"]["rows"] == second["near_heldout"]["rows"] == 1
    assert second["near_duplicates"]["examples"] == [[f"{other}:1", f"1.00 like {path}:10"]]
    output = tmp_path / "out.jsonl"
    converted = accord(
        "data", "convert", path, "--output", output, "--drop", "near_heldout", "--against", held
    )
    assert converted.exit_code == 0 and lines(output) == rows[:9] + rows[10:]
    assert accord("data", "check", path, "--against", held).exit_code == 2
    assert accord("data", "convert", path, "--output", output, "--against", held).exit_code == 2
    lacking = accord("data", "convert", path, "--output", output, "--drop", "near_heldout")
    assert lacking.exit_code == 2 and "--against FILE" in lacking.output


def test_nothing_is_dropped_by_default_and_dropped_files_add_up(
    planted: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    path, counts = planted
    rows, output = lines(path), tmp_path / "out.jsonl"
    dropped = Path(f"{output}.dropped.jsonl")
    assert accord("data", "convert", path, "--output", output).exit_code == 0
    assert lines(output) == rows and not dropped.exists()
    result = accord("data", "convert", path, "--output", output, "--drop", "duplicates,near_duplicates,pii")
    assert result.exit_code == 0, result.output
    out = lines(dropped)
    personal = sum(counts[kind] for kind in ("email", "card", "iban", "phone", "ip", "secret"))
    assert (
        len(out) == personal + counts["near_duplicates"] and f"{dropped}: {len(out)} rows (" in result.stdout
    )
    assert sorted(map(json.dumps, [*lines(output), *(each["row"] for each in out)])) == sorted(
        map(json.dumps, rows)
    )
    assert out[0]["place"] == f"{path}:201"
    assert [each["what"] for each in out[0]["reasons"]] == ["duplicates", "near_duplicates"]
    (again,) = json.loads(accord("data", "check", output, "--quality", "--json").stdout)
    left = {each["what"]: each["rows"] for each in again["quality"]["shares"]}
    assert left["near_duplicates"] == left["email"] == left["secret"] == 0 and left["encoding"] == 6


def test_redacting_and_repairing(tmp_path: Path) -> None:
    pair = {"prompt": "Whom?", "chosen": "Write to ada@example.org.", "rejected": "Write to bob@example.org."}
    rows = [
        {**pair, "rejected": "Nobody, cafÃ©\u200b."}, pair, {**pair, "chosen": "So.", "note": f"from {KEY}", "id": 7},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    ]  # fmt: skip
    path, output = write(tmp_path / "pairs.jsonl", rows), tmp_path / "out.jsonl"
    result = accord(
        "data", "convert", path, "--output", output, "--redact", "pii", "--repair", "encoding,invisible"
    )
    assert result.exit_code == 0, result.output
    first, second, third = lines(output)
    assert (
        first["chosen"][0]["content"] == "Write to <EMAIL>."
        and first["rejected"][0]["content"] == "Nobody, café."
    )
    assert second["note"] == "from <SECRET>" and second["rejected"][0]["content"] == "Write to <EMAIL>."
    assert third["chosen"][0]["content"] == "b"
    assert (
        "1 of these rows were repaired" in result.stdout and "2 of these rows were redacted" in result.stdout
    )
    # Once redacted, its answers are equal, so it states no preference any more.
    (gone,) = lines(Path(f"{output}.dropped.jsonl"))
    assert gone["place"] == f"{path}:2" and gone["reasons"][0]["what"] == "invalid_when_changed"
    assert gone["row"]["chosen"][0]["content"] == "Write to ada@example.org."
    only = accord("data", "convert", path, "--output", output, "--redact", "email", "--drop", "secret")
    assert only.exit_code == 0 and len(lines(output)) == 2


def test_every_text_of_a_row_is_redacted_and_no_identifier() -> None:
    mail = "ada@example.org"
    call = {
        "id": mail,
        "type": "function",
        "function": {"name": "send", "arguments": {"name": mail, "to": [mail]}},
    }
    row = Demonstration.model_validate(
        {"messages": [{"role": "user", "name": mail, "content": f"Write to {mail}"},
                      {"role": "assistant", "content": "", "reasoning_content": mail, "tool_calls": [call]},
                      {"role": "tool", "tool_call_id": mail, "content": mail}, {"role": "assistant", "content": mail}],
         "id": mail, "name": mail, "by": {"id": mail}}
    )  # fmt: skip
    assert len(strings(row)) == 9  # with the empty answer
    changed = json.dumps(
        with_texts(row.model_dump(exclude_unset=True), lambda text: redacted(text, ["email"]))
    )
    assert changed.count("<EMAIL>") == 8 and changed.count(mail) == 4


def test_dropping_by_language_and_dropping_all(tmp_path: Path) -> None:
    german = chat("Warum werden Blätter rot?", "Weil im Herbst das Blattgrün abgebaut wird.")
    english = chat("Why do leaves turn red?", "Because they lose their green in the autumn.")
    path = write(tmp_path / "rows.jsonl", [german, english, chat("1 + 1?", "2")])
    output = tmp_path / "out.jsonl"
    assert accord("data", "convert", path, "--output", output, "--drop", "language!=en").exit_code == 0
    assert lines(output) == [english, chat("1 + 1?", "2")]
    with path.open("a") as file:
        file.write('{"messages": []}\n')
    both = accord("data", "convert", path, "--output", output, "--drop", "language!=en", "--drop-faulty")
    assert both.exit_code == 0, both.output
    parts = [lines(Path(f"{output}{end}")) for end in ("", ".dropped.jsonl", ".faulty.jsonl")]
    assert list(map(len, parts)) == [2, 1, 1] and parts[2][0]["place"] == f"{path}:4"
    output.unlink()
    only = write(tmp_path / "only.jsonl", [german])
    refused = accord("data", "convert", only, "--output", output, "--drop", "language=de")
    assert refused.exit_code == 1 and "no row would be left (1 for language=de)" in refused.output
    assert not output.exists()
    unknown = accord("data", "convert", only, "--output", output, "--drop", "typos")
    assert unknown.exit_code == 2 and "there are pii, duplicates, near_duplicates" in unknown.output


def test_a_missing_library_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rensa", None)
    path = write(tmp_path / "rows.jsonl", [chat("Why?", "So.")])
    result = accord("data", "check", path, "--quality")
    assert result.exit_code == 2 and "pip install 'accord[data]'" in result.output
    assert accord("data", "convert", path, "--output", tmp_path / "out.jsonl").exit_code == 0


def test_many_rows_of_one_template_stay_fast() -> None:
    rng = random.Random(5)
    shared = text(rng, 300)
    said = [text(rng, 40) for _ in range(1500)]
    near = [[*words[:-2], "other", "end"] for words in said[:50]]
    rows = demonstrations(*(chat(" ".join(shared), " ".join(words)) for words in [*said, *near]))
    began = time.process_time()
    found = NearDuplicates().find(rows, places(rows))
    assert time.process_time() - began < 15
    assert [(each.row, each.detail.split()[-1]) for each in found] == [
        (1500 + i, f"f:{i + 1}") for i in range(50)
    ]


def test_toxic_answers() -> None:
    pytest.importorskip("profanity_check")
    rows = demonstrations(
        chat("Shut up, you idiot.", "The recipe needs two eggs."),
        chat("And?", "Shut up, you stupid idiot."),
        {"messages": [*chat("a", "You stupid idiot.")["messages"], *chat("b", "Two eggs.")["messages"]]},
    )
    found = toxic_answers(rows)
    assert [each.row for each in found] == [1, 2] and all("idiot" not in each.detail for each in found)


ITEM = "Why do the leaves of some trees turn red in autumn while those of others stay green until the snow falls?"


def test_rows_that_hold_what_is_held_out_are_contaminated() -> None:
    rng = random.Random(5)
    prompt = Prompt(prompt=[Message(role="user", content=ITEM)])
    long = text(rng, 60)
    held = HeldOut([prompt], ["h:1"], [("suite:s/1", " ".join(long)), ("suite:s/2", "Name a prime.")])
    words = ITEM.split()
    edited = ITEM.replace("autumn", "summer")
    reordered = " ".join([*words[10:], *words[:10]])
    around = [" ".join(text(rng, 30)) for _ in range(2)]
    rows = demonstrations(
        chat("A list", f"{around[0]} {edited} {around[1]}"), chat(reordered, "So."),
            chat(ITEM.split("while")[0], "So."),
        chat("So?", " ".join([*text(rng, 9), *long[:45], *text(rng, 9)])), chat("Name a prime!", "7"),
        chat("Name a prime and a square.", "7"), chat("So?", " ".join([*long[:20], *text(rng, 9), *long[20:30]])),
    )  # fmt: skip
    found = held.contaminated(rows)
    assert [(each.row, each.detail.split(",")[0], each.detail.split()[-1]) for each in found] == [
        (0, "edited", "h:1"), (1, "reordered", "h:1"), (3, "exact", "suite:s/1"), (4, "exact", "suite:s/2"),
    ]  # fmt: skip
    left = [row for i, row in enumerate(rows) if i not in {each.row for each in found}]
    training = (
        TrainingText(tuple(turn.text for turn in row.messages), "f", i) for i, row in enumerate(left, 1)
    )
    # What is left passes the gate's check, too.
    assert find_overlaps([ITEM, " ".join(long), "Name a prime."], training) == [None] * 3


def test_suites_and_configurations_are_held_out(tmp_path: Path) -> None:
    suite = tmp_path / "triage"
    suite.mkdir()
    head = {"pretty_name": "T", "license": "apache-2.0",
            "accord": {"kind": "text", "family": "quality", "source": "here"}}  # fmt: skip
    (suite / "README.md").write_text(f"---\n{json.dumps(head)}\n---\n**What it measures.** Nothing.\n")
    write(
        suite / "items.jsonl",
        [{"id": "t1", "text": ITEM}, {"id": "t2", "text": "Two plus two is how many, then?"}],
    )
    prompts = write(
        tmp_path / "heldout.jsonl", [{"prompt": "Which river is the longest of all in Europe, and why?"}]
    )
    rows = [chat("Hm?", f"Asked was: {ITEM}"), chat("Which river is the longest of all in Asia, and why?", "So."),
            chat("Why?", "So.")]  # fmt: skip
    path, output = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    config = tmp_path / "round.yaml"
    config.write_text(
        f"eval: {{prompts: {prompts}, suites: [{suite}], gate: {{eos_rate: {{margin: 0.1}}}}}}\n"
    )
    options = ("--output", output, "--drop", "contamination")
    result = accord("data", "convert", path, *options, "--against", f"suite:{suite}")
    assert result.exit_code == 0, result.output
    assert lines(output) == rows[1:]
    assert lines(Path(f"{output}.dropped.jsonl"))[0]["reasons"][0]["detail"].endswith("suite:triage/t1")
    assert accord("data", "convert", path, *options, "--against", config).exit_code == 0
    assert lines(output) == rows[2:]
    (report,) = json.loads(accord("data", "check", path, "--quality", "--json", "--against", config).stdout)
    (share,) = [each for each in report["quality"]["shares"] if each["what"] == "contamination"]
    assert share["rows"] == 2 and share["low"] is None
    config.write_text("sft: {demonstrations: x.jsonl}\n")
    refused = accord("data", "convert", path, *options, "--against", config)
    assert refused.exit_code == 2 and "has no section eval" in refused.output
    assert accord("data", "convert", path, *options, "--against", "suite:none").exit_code == 2
    assert accord("data", "convert", path, *options).exit_code == 2


def test_dropping_by_numbers(tmp_path: Path) -> None:
    rows = [chat(f"{i}?", "So.", loss=i / 2, reward=-i) for i in range(6)]
    path, output = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"

    def kept(drop: str) -> list[int]:
        result = accord("data", "convert", path, "--output", output, "--drop", drop)
        assert result.exit_code == 0, result.output
        return [rows.index(row) for row in lines(output)]

    assert kept("loss>1.5") == [0, 1, 2, 3] and kept("loss >= 1.5, reward>-1e0") == [1, 2]
    assert kept("reward<=-4") == [0, 1, 2, 3] and kept("reward<-4") == [0, 1, 2, 3, 4]
    for bad, said in ((None, "is None"), ("high", "is 'high'"), (True, "is True"), ("", "is ''")):
        write(path, [*rows, chat("b?", "So.", loss=bad)])
        refused = accord("data", "convert", path, "--output", output, "--drop", "loss>1")
        assert refused.exit_code == 1 and f"{path}:7: loss: {said}, and must be a number" in refused.output
    write(path, [chat("b?", "So."), *rows])
    refused = accord("data", "convert", path, "--output", output, "--drop", "loss>1")
    assert refused.exit_code == 1 and f"{path}:1: loss: is missing" in refused.output
    assert accord("data", "convert", path, "--output", output, "--drop", "loss>many").exit_code == 2


def test_cleaning_in_parts_is_cleaning_at_once(planted: tuple[Path, dict[str, int]]) -> None:
    pytest.importorskip("profanity_check")
    rng = random.Random(6)
    path, _ = planted
    rows = [{**row, "loss": rng.random()} for row in lines(path)]
    rows += [chat(row["messages"][0]["content"].upper(), "No.", loss=0.5) for row in rows[20:30]]
    rows += [chat("Go on.", "no " * n, loss=0.2) for n in (40, 4000)] + [chat("Hm", ITEM, loss=0.1)]
    rng.shuffle(rows)
    made, where = demonstrations(*rows), places(rows)
    drop = ",".join([*KINDS, "language=de", "loss>0.9"])
    wishes = Wishes.of(drop, "phone", "encoding", against=True)
    held = HeldOut([Prompt(prompt=[Message(role="user", content=ITEM)])], ["h:1"])

    def cleaned(cuts: list[int]) -> tuple[Any, ...]:
        cleaner = Cleaner(wishes, held)
        kept: list[Row] = []
        dropped: list[Any] = []
        parts = [slice(a, b) for a, b in itertools.pairwise([0, *sorted(cuts), len(made)])]
        assert cleaner.looks_first
        for part in parts:
            cleaner.look(made[part])
        for part in parts:
            taken = cleaner.take(made[part], where[part])
            kept += taken.rows
            dropped += taken.dropped
        assert len(kept) == cleaner.kept and len(dropped) == cleaner.dropped
        return kept, dropped, cleaner.reasons, cleaner.redacted, cleaner.repaired

    whole = cleaned([])
    assert whole[2].keys() >= {
        "duplicates",
        "near_duplicates",
        "disagreement",
        "length",
        "contamination",
        "loss>0.9",
    }
    for _ in range(4):
        assert cleaned(rng.sample(range(len(made)), 7)) == whole
    assert cleaned(list(range(1, len(made)))) == whole
