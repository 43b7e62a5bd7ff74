"""Quality suites: checks at their boundaries, overlaps against worked numbers, likelihoods by hand."""

import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from accord.errors import DataError, UsageError
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model
from accord.records import Message, Row, read_jsonl
from accord.text_metrics import normalised, overlap_scorers, token_f1
from eval.likelihood.log_likelihood import LogLikelihood, log_likelihoods
from eval.suites.kind import Ratio, Reply
from eval.suites.kinds import instructions, labelled, multiple_choice, text
from eval.suites.kinds.instructions import CHECKS, InstructionRow, is_met
from eval.suites.kinds.labelled import LabelledRow
from eval.suites.kinds.multiple_choice import ChoiceRow
from eval.suites.kinds.text import TextRow

DATA = Path(instructions.__file__).parent.parent / "data"


def reply(text: str) -> Reply:
    return Reply(text=text, tokens=len(text.split()), finish="eos")


Case = tuple[str, dict[str, Any], str, str]
"""A check, its arguments, an answer that meets it, and one that just does not."""
CASES: list[Case] = [
    ("words_at_most", {"n": 3}, "Don't go out.", "Do not go out."),
    ("words_at_least", {"n": 4}, "Do not go out.", "Don't go out."),
    ("words_between", {"low": 2, "high": 3}, "A well-known name", "A name that is known"),
    ("words_between", {"low": 2, "high": 3}, "Two words.", "One."),
    ("sentences_at_most", {"n": 2}, "It costs 3.50 euros. Take it!", "One. Two. Three."),
    ("sentences", {"n": 2}, 'He said "Stop." Then he left', "He left."),
    ("paragraphs", {"n": 2}, "One\nstill one\n\n\nTwo", "One\n\nTwo\n\nThree"),
    ("contains", {"words": ["sun", "moon"]}, "The Sun, and the moon.", "The sunny moon."),
    ("contains_times", {"word": "tea", "at_least": 2}, "Tea? More tea!", "Tea for a team."),
    ("contains_text", {"text": "P.S."}, "Bye. P.S. Call me.", "Bye. p.s. Call me."),
    ("excludes", {"words": ["bad"]}, "A badger came.", "How Bad!"),
    ("excludes_characters", {"characters": ",;"}, "Salt and pepper.", "Salt, pepper."),
    ("starts_with", {"text": "Dear Sam"}, '"dear Sam, thanks', "My dear Sam"),
    ("ends_with", {"text": "the end."}, "And so it stopped. **The end.**", "The end. Bye"),
    ("ends_with", {"text": "station"}, "They met at the station.", "They met at the station?"),
    ("lowercase", {}, "all 3 are small.", "all 3 are Small."),
    ("uppercase", {}, "ALL 3 ARE LARGE.", "ALL 3 ARE LARGe."),
    ("words_in_capitals", {"at_least": 2}, "VERY GOOD soup", "VERY Good soup"),
    ("bullets", {"n": 2}, "Buy:\n- milk\n* tea", "- milk\n-tea"),
    ("numbered", {"n": 2}, "So:\n1. milk\n2) tea", "1. milk\n3. tea"),
    ("json", {}, '{"a": [1, 2]}', '{"a": [1, 2}'),
    ("json", {"keys": ["a", "b"]}, '```json\n{"a": 1, "b": 2, "c": 3}\n```', '{"a": 1}'),
    ("one_of", {"answers": ["yes", "no"]}, '"Yes."', "Yes, it is."),
    ("title", {}, "<<The Sea>>\nIt is wet.", "<The Sea>\nIt is wet."),
    ("placeholders", {"at_least": 2}, "Dear [name], see you at [place].", "Dear [name], see you at []."),
    ("in_quotes", {}, "“Good night.”", '"Good night," he said.'),
    ("contains_number", {}, "About 7 days", "About seven days"),
    ("parts", {"separator": "***", "n": 2}, "One poem\n***\nAnother", "One poem\n***\n"),
    ("json", {"keys": ["a"]}, '```JSON\n{"a": 1}\n```', '```JSON\n{"b": 1}\n```'),
    ("one_of", {"answers": ["My answer is yes.", "Maybe!"]}, "**My answer is yes**", "My answer is: yes."),
    ("one_of", {"answers": ["My answer is yes.", "Maybe!"]}, "My answer is yes.", "No."),
    ("contains_fewer", {"word": "tea", "less_than": 2}, "Tea for a team.", "Tea? More tea!"),
    ("letter_times", {"letter": "e", "at_least": 3}, "Eleven", "Seven"),
    ("letter_fewer", {"letter": "E", "less_than": 3}, "Seven", "Eleven"),
    ("paragraph_starts_with", {"paragraphs": 2, "nth": 2, "word": "rain"}, "Sun.\n\n“Rain, rain”", "Sun.\n\nRainy"),
    ("paragraph_starts_with", {"paragraphs": 2, "nth": 1, "word": "sun"}, "Sun\n \nRain", "Sun\n\nRain\n\nSnow"),
    ("words_in_capitals_fewer", {"less_than": 2}, "VERY Good soup", "VERY GOOD soup"),
    ("highlighted", {"at_least": 2}, "A *red* and a **very blue** car", "A *red* and ** ** a car, 2 * 3 is 6"),
    ("sections", {"word": "SECTION", "at_least": 2}, "SECTION 1\nA\n**SECTION 2:**\nB", "SECTION 1: see SECTION 2"),
    ("postscript", {"marker": "P.S."}, "Bye.\n\n*p. s. Call me.*", "Bye. P.S. Call me."),
    ("postscript", {"marker": "P.P.S"}, "Bye.\nP.S. Call.\nP.P.S. Soon.", "Bye.\nP.S. Call me."),
    ("script", {"script": "cyrillic"}, "Кошка спит, 12.", "Кошка sleeps."),
    ("script", {"script": "han"}, "水", "みず"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_a_check_at_its_boundary(case: Case) -> None:
    name, arguments, met, missed = case
    row = InstructionRow(id="a", prompt="Do it.", checks=[{"check": name, **arguments}])
    assert is_met(met, row.checks[0])
    assert not is_met(missed, row.checks[0])
    assert not is_met("  ", row.checks[0])


def test_every_check_has_a_case() -> None:
    assert {name for name, *_ in CASES} == set(CHECKS)


def test_both_scores_of_instructions_as_in_the_docstring() -> None:
    one = InstructionRow(id="a", prompt="A", checks=[{"check": "lowercase"}])
    three = InstructionRow(
        id="b",
        prompt="B",
        checks=[{"check": "words_at_most", "n": 2}, {"check": "uppercase"}, {"check": "contains_number"}],
    )
    values = instructions.KIND.values
    assert values(one, [reply("yes")]) == {"followed": 1.0, "checks_followed": Ratio(1, 1)}
    assert values(three, [reply("YES, YES")]) == {"followed": 0.0, "checks_followed": Ratio(2, 3)}


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ({"check": "words_at_mots", "n": 3}, r"checks\.0\.check: there is none called 'words_at_mots'"),
        ({"n": 3}, r"checks\.0\.check: there is none called None"),
        ({"check": "words_at_most"}, r"checks\.0\.n: is missing"),
        ({"check": "words_at_most", "n": "3"}, r"checks\.0\.n: .*integer"),
        ({"check": "words_at_most", "n": 0}, r"checks\.0\.n: .*greater"),
        ({"check": "words_at_most", "n": 3, "m": 4}, r"checks\.0\.m: the check 'words_at_most' takes n"),
        ({"check": "contains", "words": []}, r"checks\.0\.words: .*at least 1"),
        ({"check": "starts_with", "prefix": "A"}, r"checks\.0\.prefix: .*takes text"),
        ({"check": "script", "script": "klingon"}, r"checks\.0\.script: .*'latin'"),
    ],
)
def test_a_wrong_check_names_the_field(check: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text(json.dumps({"id": "a", "prompt": "A", "checks": [check]}))
    with pytest.raises(DataError, match=message):
        read_jsonl(file, InstructionRow)


def test_the_suite_of_instructions() -> None:
    rows = read_jsonl(DATA / "instructions" / "items.jsonl", InstructionRow)
    assert len({row.id for row in rows}) == len({row.prompt for row in rows}) == 98
    used = {check["check"] for row in rows for check in row.checks}
    assert used == set(CHECKS)  # none is there that no prompt needs


def scored(*nats: float) -> list[list[LogLikelihood]]:
    return [[LogLikelihood(nats=each, tokens=1, greedy=False) for each in nats]]


def no_template(messages: Sequence[Message]) -> tuple[int, ...]:
    raise AssertionError("texts are scored as plain text")


def labelled_values(answer: str, reference: str | list[str]) -> dict[str, Any]:
    row = LabelledRow(id="a", prompt="A", reference=reference)
    return dict(labelled.KIND.values(row, [reply(answer)]))


def test_normalisation_as_squad_does_it() -> None:
    assert normalised(" The  U.S. president's an  old-timer! ") == "us presidents oldtimer"


def test_token_f1_by_hand() -> None:
    """3 of the answer's 4 words are among the reference's 6: P = 3/4, R = 1/2, F1 = 2 * 3/8 / (5/4) = 0.6."""
    assert token_f1("red red blue dog", "red red red blue cat cow") == pytest.approx(0.6)
    assert token_f1("The", "a") == 1.0
    assert token_f1("", "red") == 0.0


def test_bleu_and_rouge_by_hand() -> None:
    """Runs of 1 to 4 words in common: 5 of 6, 3 of 5, 2 of 4, 1 of 3, and both have 6 words, so BLEU is 100 times the
    fourth root of the product. The longest common sequence, "the cat sat on mat", has 5 of either's 6 words."""
    pytest.importorskip("sacrebleu")
    values = labelled_values("the cat sat on the mat", "the cat sat on a mat")
    assert values["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert values["rouge_l"] == pytest.approx(5 / 6)
    assert values["rouge_1"] == pytest.approx(5 / 6)  # all but "a" and the second "the"
    assert values["rouge_2"] == pytest.approx(3 / 5)
    assert (
        values["exact_match"] == values["f1"] == 1.0
    )  # SQuAD drops the articles, in which alone they differ
    assert (values["bleu"] + labelled_values("yes", "yes")["bleu"]) / 2 == pytest.approx(76.9, abs=0.05)


def test_corpus_bleu_in_the_docstring() -> None:
    bleu = pytest.importorskip("sacrebleu").metrics.BLEU()
    corpus = bleu.corpus_score(["the cat sat on the mat", "yes"], [["the cat sat on a mat", "yes"]])
    assert corpus.score == pytest.approx(54.1, abs=0.05)


def test_the_best_reference_counts() -> None:
    pytest.importorskip("sacrebleu")
    values = labelled_values("Thirty days.", ["30 days", "thirty days"])
    assert values["exact_match"] == values["f1"] == values["rouge_l"] == 1.0
    assert labelled_values("Thirty days.", "30 days")["f1"] == pytest.approx(0.5)
    assert set(labelled_values("", "30 days").values()) == {0.0}


def test_a_prompt_is_a_message_or_a_conversation() -> None:
    turns = [
        Message(role="system", content="Be short."),
        Message(role="user", content="Name a prime."),
    ]
    assert labelled.KIND.prompts(LabelledRow(id="a", prompt=turns, reference="7")) == [turns]
    one = labelled.KIND.prompts(LabelledRow(id="a", prompt="Name a prime.", reference="7"))
    assert one == [[Message(role="user", content="Name a prime.")]]


def test_missing_packages_say_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)  # Python's way to say: not installed
    overlap_scorers.cache_clear()
    with pytest.raises(UsageError, match="pip install sacrebleu rouge-score"):
        labelled_values("a", "b")


def test_overlap_packages_are_imported_only_where_they_score() -> None:
    code = (
        "import sys, eval.suites.kinds.labelled; assert not {'sacrebleu', 'rouge_score'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bits_per_byte_by_hand() -> None:
    """log 2 nats are one bit, and "é" has two bytes: 10 bits and 90 bits, over 10 and 30 bytes."""
    one, other = TextRow(id="a", text="é" * 5), TextRow(id="b", text="x" * 30)
    parts = [
        text.KIND.values(row, scored(-bits * math.log(2)))["bits_per_byte"]
        for row, bits in ((one, 10), (other, 90))
    ]
    assert [tuple(part) for part in parts if isinstance(part, Ratio)] == [
        (pytest.approx(10), 10),
        (pytest.approx(90), 30),
    ]


def test_uniform_predictions_of_bytes_cost_as_many_bits_as_there_are_tokens(tiny_model: Model) -> None:
    """With its head at zero, the byte-level model gives each of its V tokens 1/V: log2 V bits for each byte."""
    policy, tokenizer = load_policy(tiny_model).eval(), load_tokenizer(tiny_model)
    policy.get_output_embeddings().weight.data.zero_()
    row = TextRow(id="a", text="Any text at all, naïve or not.")
    value = text.KIND.values(row, [log_likelihoods(policy, tokenizer, text.KIND.items(row, no_template))[0]])
    bits, size = value["bits_per_byte"]  # type: ignore[misc]
    assert bits / size == pytest.approx(math.log2(policy.config.vocab_size))


def choice(**changes: Any) -> ChoiceRow:
    fields = {"id": "a", "question": "Which one?", "answers": ["\u00e9", "ok"], "label": 0}
    return ChoiceRow(**(fields | changes))


def test_a_choice_by_nats_and_by_byte() -> None:
    """-3 nats for "ok" and -2.5 for three bytes more: the sum favours the latter by 0.5, a byte -1.5 and -0.5."""
    row = choice(answers=["ok", "okays"], label=1)
    values = multiple_choice.KIND.values
    assert values(row, scored(-3, -2.5)) == {"accuracy": 1.0, "accuracy_by_byte": 1.0, "margin": 0.5}
    assert values(row, scored(-3, -5)) == {"accuracy": 0.0, "accuracy_by_byte": 1.0, "margin": -2.0}
    assert values(row, scored(-3, -3)) == {"accuracy": 0.0, "accuracy_by_byte": 1.0, "margin": 0.0}


def test_bytes_and_characters_as_in_the_docstring() -> None:
    assert multiple_choice.KIND.values(choice(), scored(-2, -3))["accuracy_by_byte"] == 1.0
    per_character = [-2 / len("\u00e9"), -3 / len("ok")]
    assert max(per_character) == per_character[1]


def test_the_margin_is_to_the_best_wrong_answer() -> None:
    row = choice(answers=["a", "b", "c"], label=0)
    assert multiple_choice.KIND.values(row, scored(-2, -7, -4))["margin"] == 2.0


def test_a_question_and_a_prefix_become_text() -> None:
    assert multiple_choice.KIND.items(choice(), no_template)[0].prefix == "Question: Which one?\nAnswer:"
    going_on = multiple_choice.KIND.items(choice(question=None, prefix="She left because"), no_template)[0]
    assert (going_on.prefix, going_on.continuations) == ("She left because", (" \u00e9", " ok"))


@pytest.mark.parametrize(
    ("row", "fields", "message"),
    [
        (ChoiceRow, {"question": "Q", "prefix": "P", "answers": ["a", "b"], "label": 0}, "question: "),
        (ChoiceRow, {"answers": ["a", "b"], "label": 0}, "question: "),
        (ChoiceRow, {"question": "Q", "answers": ["a", "b"], "label": 2}, "label: is 2"),
        (ChoiceRow, {"question": "Q", "answers": ["a", "a"], "label": 0}, "answers: two"),
        (ChoiceRow, {"question": "Q", "answers": ["a"], "label": 0}, "answers"),
        (LabelledRow, {"prompt": "A", "reference": []}, "reference"),
        (LabelledRow, {"prompt": "A", "reference": [" "]}, "reference: is empty"),
        (
            LabelledRow,
            {"prompt": [{"role": "assistant", "content": "A"}], "reference": "B"},
            "prompt: the last",
        ),
        (TextRow, {"text": ""}, "text"),
    ],
)
def test_a_bad_row_names_file_line_and_field(
    row: type[Row], fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text(json.dumps({"id": "a", **fields}))
    with pytest.raises(DataError, match=rf"items\.jsonl.*1.*{message}"):
        read_jsonl(file, row)


def test_the_suite_of_choices_favours_no_place() -> None:
    rows = read_jsonl(DATA / "retention_choices" / "items.jsonl", ChoiceRow)
    assert len({row.id for row in rows}) == len({row.question for row in rows}) == 120
    assert {len(row.answers) for row in rows} == {4}
    assert Counter(row.label for row in rows) == dict.fromkeys(range(4), 30)
    assert set(Counter(row.group for row in rows).values()) == {20}
    for row in rows:  # what begins another answer is never less likely than that
        assert not any(b.startswith(a) for a in row.answers for b in row.answers if a != b), row.id


def test_the_suite_of_texts() -> None:
    rows = read_jsonl(DATA / "retention_text" / "items.jsonl", TextRow)
    assert len({row.id for row in rows}) == len({row.text for row in rows}) == 60
    assert list(Counter(row.group for row in rows).values()) == [6] * 10
    assert all(55 <= len(row.text.split()) <= 120 for row in rows)
