"""What counts as the same text: against brute force, planted overlaps, and texts that have nothing in common."""

import random
import unicodedata

import pytest

from accord.bundled import data_path
from accord.data.quality.overlap import Overlap, TrainingText, fewest_edits, find_overlaps, words_of
from accord.records import Prompt, read_jsonl

VOCABULARY = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "el", "in", "ot", "ur", "eva", "ilo", "ond")]
WEIGHTS = [1 / rank for rank in range(1, len(VOCABULARY) + 1)]
QUESTION = "Why do the leaves of some trees turn red in autumn while those of others stay green until the snow falls?"


def rows(*texts: str) -> list[TrainingText]:
    return [TrainingText((text,), "train.jsonl", line) for line, text in enumerate(texts, start=1)]


def one(item: str, *texts: str) -> Overlap | None:
    return find_overlaps([item], rows(*texts))[0]


def sentence(chance: random.Random, words: int) -> list[str]:
    """Words with very unequal frequencies, as in a language."""
    return chance.choices(VOCABULARY, WEIGHTS, k=words)


def edits_by_table(pattern: list[str], text: list[str]) -> int:
    """Sellers 1980: the whole table."""
    above = [0] * (len(text) + 1)
    for i, word in enumerate(pattern, start=1):
        row = [i]
        for j, other in enumerate(text, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (word != other)))
        above = row
    return min(above)


def brute_force(item: list[str], training: list[list[str]]) -> tuple[str, float] | None:
    """The rules as they are written down, on lists of words."""

    def sequences(words: list[str], length: int) -> list[tuple[str, ...]]:
        return [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]

    long = sequences(item, 13)
    everywhere = {sequence for row in training for sequence in sequences(row, 13)}
    share = sum(sequence in everywhere for sequence in long) / len(long) if long else 0.0
    if share >= 0.5:
        return "exact", share
    edits = min(edits_by_table(item, row) for row in training)
    if edits == 0:
        return "exact", 1.0
    if len(item) >= 8 and edits <= (1 if len(item) < 16 else (len(item) + 7) // 8):
        return "edited", 1 - edits / len(item)
    own, room = set(sequences(item, 3)), 2 * len(item)
    densest = max(
        len(own & set(sequences(row, 3)[i : i + room]))
        for row in training
        for i in range(max(1, len(row) - 2))
    )
    if len(item) >= 8 and densest >= 0.75 * len(own):
        return "reordered", densest / len(own)
    return None


def planted(chance: random.Random, item: list[str]) -> list[str]:
    """A row with the item in it, more or less changed, or without it."""
    copy = list(item)
    way = chance.choice(["verbatim", "edited", "halves", "part", "absent"])
    if way == "edited":
        places = chance.sample(range(len(copy)), chance.randint(1, max(1, len(copy) // 5)))
        for place in sorted(places, reverse=True):
            copy[place : place + 1] = chance.choice([["other"], [], [copy[place], "more"]])
    elif way == "halves":
        middle = chance.randrange(len(copy))
        copy = copy[middle:] + copy[:middle]
    elif way == "part":
        copy = copy[: chance.randrange(len(copy))]
    elif way == "absent":
        copy = []
    return sentence(chance, chance.choice([0, 5, 40])) + copy + sentence(chance, chance.choice([0, 5, 40]))


def test_it_finds_what_brute_force_finds() -> None:
    seen = {"exact": 0, "edited": 0, "reordered": 0, "nothing": 0}
    for seed in range(40):
        chance = random.Random(seed)
        items = [sentence(chance, chance.choice([5, 6, 7, 8, 9, 12, 13, 15, 16, 24, 40])) for _ in range(12)]
        training = [planted(chance, item) for item in items for _ in range(2)]
        chance.shuffle(training)
        found = find_overlaps([" ".join(item) for item in items], rows(*(" ".join(row) for row in training)))
        for item, overlap in zip(items, found, strict=True):
            expected = brute_force(item, training)
            assert (overlap and (overlap.how, pytest.approx(overlap.share))) == expected, (seed, item)
            seen[expected[0] if expected else "nothing"] += 1
    assert min(seen.values()) > 10, seen


def test_edits_are_those_of_the_table() -> None:
    chance = random.Random(0)
    for _ in range(300):
        pattern = chance.choices(range(1, 5), k=chance.randint(1, 80))
        text = chance.choices(range(5), k=chance.randint(0, 120))
        assert fewest_edits(pattern, text)[0] == edits_by_table([*map(str, pattern)], [*map(str, text)])


def test_where_a_match_ends() -> None:
    assert fewest_edits([1, 2, 3], [9, 9, 1, 2, 3, 9]) == (0, 5)


@pytest.mark.parametrize("seed", range(20))
def test_one_word_in_eight_changed_is_found_inside_a_longer_text(seed: int) -> None:
    chance = random.Random(seed)
    item = sentence(chance, chance.randint(8, 120))
    copy = list(item)
    for place in chance.sample(range(len(item)), len(item) // 8):
        copy[place] = f"changed{place}"
    overlap = one(" ".join(item), " ".join(sentence(chance, 300) + copy + sentence(chance, 300)))
    assert overlap is not None and overlap.how in ("exact", "edited")


def test_a_changed_word_every_eighth_place() -> None:
    words = words_of(QUESTION)
    changed = ["other" if i % 8 == 3 else word for i, word in enumerate(words)]
    overlap = one(QUESTION, "Tell me, please. " + " ".join(changed) + "? I saw it in the park.")
    assert overlap is not None
    assert (overlap.how, overlap.share) == ("edited", 1 - 3 / 21)
    assert overlap.text == " ".join(changed)


def test_reordered_sentences() -> None:
    item = "The shop opens at nine in the morning. On Sundays it stays closed. Bring the receipt if you return a lamp."
    copy = "Bring the receipt if you return a lamp. The shop opens at nine in the morning. On Sundays it stays closed."
    overlap = one(item, "A notice on the door. " + copy)
    # 21 words, 19 sequences of three; the seam that is gone had two
    assert overlap is not None
    assert (overlap.how, overlap.share) == ("reordered", pytest.approx(17 / 19))


def test_unrelated_texts_of_the_same_words_raise_no_alarm() -> None:
    chance = random.Random(1)
    items = [" ".join(sentence(chance, chance.randint(5, 60))) for _ in range(400)]
    training = [" ".join(sentence(chance, chance.randint(20, 200))) for _ in range(3000)]
    alarms = [
        item for item, overlap in zip(items, find_overlaps(items, rows(*training)), strict=True) if overlap
    ]
    # Of so few words, the most frequent ones follow each other by chance in the shortest items.
    assert all(len(item.split()) < 8 for item in alarms)
    assert len(alarms) < 0.05 * len(items)


def test_what_a_template_shares_is_no_contamination() -> None:
    wrapper = "Answer the question with one word and give no reason, as the answers are read by a program."
    items = [
        f"{wrapper} {what}"
        for what in (QUESTION, "Which of two rooms with one heater each cools down sooner?")
    ]
    assert find_overlaps(
        items, rows(f"{wrapper} What is the name of a small hill made of sand by the wind?")
    ) == [
        None,
        None,
    ]


def test_a_short_question_with_another_word_is_another_question() -> None:
    assert one("What does the word stubborn mean?", "What does the word fragile mean?") is None


@pytest.mark.parametrize(
    ("item", "row", "is_found"),
    [
        (
            "Why is the sky blue?",
            "Today a child asked: why is the sky blue, and why is it dark at night?",
            True,
        ),
        ("Name a prime.", "Name a prime.", True),
        ("Name a prime.", "Name a prime minister of Canada.", False),
        ("Yes", "yes!", True),
        ("", "", False),
        ("...", "...", False),
    ],
)
def test_short_items(item: str, row: str, is_found: bool) -> None:
    assert (one(item, row) is not None) == is_found


def test_an_item_over_two_turns_of_one_row() -> None:
    turns = ("Why do the leaves of some trees turn red?", "Because the green in them fades when it is cold.")
    assert find_overlaps([" ".join(turns)], [TrainingText(turns, "train.jsonl", 1)])[0] is not None


def test_half_of_an_item_is_exact_and_less_is_not() -> None:
    words = words_of(QUESTION)  # 21 words, 9 sequences of 13
    assert one(QUESTION, " ".join(words[:16])) is None
    overlap = one(QUESTION, " ".join(words[:17]), "something else")
    assert overlap == Overlap("exact", 5 / 9, "train.jsonl", 1, " ".join(words[:17]))


def test_parts_in_several_rows_count_together() -> None:
    words = words_of(QUESTION)
    overlap = one(QUESTION, " ".join(words[:15]), " ".join(words[6:]))
    assert overlap is not None
    assert (overlap.how, overlap.share, overlap.line) == ("exact", pytest.approx(6 / 9), 1)


@pytest.mark.parametrize(
    "variant",
    [
        QUESTION.upper(),
        QUESTION.replace(" ", "\u00a0\n "),
        QUESTION.replace("leaves", "leav\u00ades").replace("autumn", "\u200bautumn"),
        "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in QUESTION),
        QUESTION.replace(" ", ", "),
    ],
    ids=["capitals", "spaces", "invisible", "fullwidth", "commas"],
)
def test_variants_of_writing_are_the_same_text(variant: str) -> None:
    overlap = one(QUESTION, variant)
    assert overlap is not None
    assert (overlap.how, overlap.share) == ("exact", 1.0)


def test_accents_and_sharp_s() -> None:
    item = "Das Café in der Großen Straße öffnet früh."
    assert one(item, unicodedata.normalize("NFD", item).replace("ß", "ss")) is not None
    assert words_of("Don’t") == words_of("DON'T")


def test_texts_without_spaces() -> None:
    assert one("为什么天空是蓝色的?", "老师问:为什么天空是蓝色的?因为光。") is not None
    assert one("为什么天空是蓝色的?", "老师问:为什么海水是咸的?因为盐。") is None


def test_heldout_demo_prompts_are_new_although_topics_and_templates_are_shared() -> None:
    heldout = read_jsonl(data_path("bundled:demo/prompts.heldout.jsonl"), Prompt)
    train = read_jsonl(data_path("bundled:demo/prompts.train.jsonl"), Prompt)
    items = [row.prompt[-1].content for row in heldout]
    texts = [row.prompt[-1].content for row in train]
    assert find_overlaps(items, rows(*texts)) == [None] * len(items)
    found = find_overlaps(items, rows(*texts, f"Here is my question. {items[7]}"))
    assert [i for i, overlap in enumerate(found) if overlap] == [7]
