"""From published files to the rows of kinds that are scored by log-likelihood."""

import csv
import io
import json
import re
from typing import Any

Row = dict[str, Any]
Texts = dict[str, str]

_NAMED = re.compile(r"\[((?:the|an?) ([^\]]+))\]", re.IGNORECASE)
"""The person whom WinoBias's pronoun means."""
_WOMEN, _MEN = ("F", "woman", "girl"), ("M", "man", "boy")
"""What BBQ calls an answer's person."""


def json_lines(text: str) -> list[Row]:
    """One object a line."""
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def crows_pairs(texts: Texts) -> list[Row]:
    """The word of `mask1` makes the sentence that CrowS-Pairs calls more stereotyping. A pair that stands there twice
    is taken once."""
    found: dict[tuple[str, str], Row] = {}
    for row in csv.DictReader(io.StringIO(texts["test"], newline="")):
        more, less = (row["sentence"].replace("[MASK]", row[mask]) for mask in ("mask1", "mask2"))
        found.setdefault(
            (more, less),
            {
                "id": f"crows{row['']}", "group": row["bias_type"],
                "more_stereotyping": more, "less_stereotyping": less,
            },
        )  # fmt: skip
    return list(found.values())


def stereoset(texts: Texts) -> list[Row]:
    """Whole sentences, or second sentences after their first one. Those about one person or people are one template."""
    found = []
    for i, row in enumerate(json_lines(texts["test"])):
        before = f"{row['context']} " if row["type"] == "intersentence" else ""
        found.append(
            {
                "id": f"stereoset{i}", "group": row["bias_type"], "template": row["target"].lower(),
                "more_stereotyping": before + row["stereotype"],
                "less_stereotyping": before + row["anti-stereotype"],
            }
        )  # fmt: skip
    return found


def bbq_gender(texts: Texts) -> list[Row]:
    """Which answer is the stereotype's follows from the question's polarity: asked for the bad trait, it is the person
    of the stereotyped group; asked for the good one, it is the other. Questions where none or both of the people are
    of that group have no such answer and are left out."""
    found = []
    for row in json_lines(texts["Gender_identity"]):
        tags = [row["answer_info"][f"ans{i}"][1] for i in range(3)]
        unknown = tags.index("unknown")
        groups = row["additional_metadata"]["stereotyped_groups"]
        people = [i for i in range(3) if i != unknown]
        stereotyped = [i for i in people if _is_of(tags[i], groups)]
        if len(stereotyped) != 1:
            continue
        other = next(i for i in people if i not in stereotyped)
        version = row["additional_metadata"]["version"]
        found.append(
            {
                "id": f"bbq{row['example_id']}", "template": f"{row['question_index']}{version}",
                "group": "transgender" if "trans" in groups else "gender",
                "context": row["context"], "question": row["question"],
                "answers": [row[f"ans{i}"] for i in range(3)], "label": row["label"], "unknown": unknown,
                "stereotyped": stereotyped[0] if row["question_polarity"] == "neg" else other,
                "condition": "ambiguous" if row["context_condition"] == "ambig" else "disambiguated",
            }
        )  # fmt: skip
    return found


def _is_of(tag: str, groups: list[str]) -> bool:
    if "trans" in groups:
        return tag.startswith("trans")
    return tag in (_WOMEN if "F" in groups else _MEN)


def bbq_accuracy(texts: Texts) -> list[Row]:
    """Without the columns that say which answer is the stereotype's, only whether the right one is chosen."""
    found = []
    for i, row in enumerate(json_lines(texts["test"])):
        answers = [option.split(". ", 1)[1].strip() for option in row["options"].splitlines()]
        question = row["question"].splitlines()[0]
        found.append(
            {
                "id": f"bbq{i}", "prefix": f"{row['passage']}\nQuestion: {question}\nAnswer:",
                "answers": answers, "label": answers.index(row["answer"][0].strip()),
            }
        )  # fmt: skip
    return found


def winobias(texts: Texts) -> list[Row]:
    """The data name the person whom the pronoun means. The other is the one of the set's other occupations that the
    sentence names; sentences without one are left out. Those about the same two are one template."""
    read = json_lines(texts["test"])
    occupations = {name.lower() for row in read for _, name in _NAMED.findall(row["text"])}
    found = []
    for i, row in enumerate(read):
        text = _NAMED.sub(r"\1", row["text"].strip())
        ((_, referent),) = _NAMED.findall(row["text"])
        others = [
            match.group()
            for name in sorted(occupations - {referent.lower()})
            for match in [re.search(rf"\b{name}\b", text, re.IGNORECASE)]
            if match
        ]
        pronouns = [option.split(". ", 1)[1] for option in row["options"].splitlines()[:2]]
        if len(others) != 1 or text.count("[") != 1:  # some mark another pronoun, too
            continue
        pro = row["pro_stereotyped"]
        found.append(
            {
                "id": f"winobias{i}", "template": " and ".join(sorted((referent.lower(), others[0].lower()))),
                "group": "held by men" if pro in ("he", "his", "him") else "held by women",
                "text": text.replace("[MASK]", "{pronoun}"), "stem": 'Here "{pronoun}" means the',
                "pro": pro, "anti": next(each for each in pronouns if each != pro),
                "referent": referent, "other": others[0],
            }
        )  # fmt: skip
    return found


def discrim_eval(texts: Texts) -> list[Row]:
    """Each decision about a person who differs in one thing from the paper's person of reference, a white man of 60.

    The texts of one decision also differ in pronouns and some wording, so the whole text is put in for the person.
    """
    asked: dict[tuple[int, int, str, str], str] = {
        (row["decision_question_id"], int(row["age"]), row["gender"], row["race"]): row["filled_template"]
        for row in json_lines(texts["explicit"])
    }
    found = []
    for (decision, age, gender, race), text in asked.items():
        differs = {"age": age != 60, "gender": gender != "male", "race": race != "white"}
        if sum(differs.values()) == 1:
            found.append(
                {
                    "id": f"discrim{decision}-{age}-{gender}-{race}".replace(" ", "-").lower(),
                    "template": f"decision {decision}", "group": next(name for name in differs if differs[name]),
                    "question": "{person}", "person": text, "reference": asked[decision, 60, "male", "white"],
                }
            )  # fmt: skip
    return found
