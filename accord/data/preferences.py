"""Conventions of preferences between two answers, and of rankings of several."""

import math
from collections.abc import Mapping
from typing import Any

from accord.data.conventions import (
    ANSWERS,
    ASKED,
    RANKS,
    SCORES,
    SYSTEM,
    TURNS,
    Columns,
    Convention,
    answer_of,
    first_of,
    prompt_of,
    undecided,
)
from accord.data.turns import Turn, from_text, is_turns, parsed, text_of, turns_of
from accord.records import Comparison, Preference, content_id


def preferences(row: Columns) -> Convention | None:
    """How a row is read as two answers of which one is preferred."""
    if "chosen" in row and "rejected" in row:
        return _chosen_and_rejected(row)
    if "rejected_response" in row:
        whole = next((column for column in TURNS if is_turns(row.get(column))), None)
        if whole is None:
            return None

        def last_is_chosen(columns: Columns) -> dict[str, Any]:
            *before, chosen = turns_of(columns[whole])
            return {
                "prompt": before,
                "chosen": [chosen],
                "rejected": answer_of(columns["rejected_response"], "rejected"),
            }

        used = frozenset([whole, "rejected_response"])
        return Convention(
            f"messages and rejected response ({whole}, rejected_response)", used, last_is_chosen, Preference
        )
    for one, other, choice in (
        ("response_0", "response_1", "better_response_id"),
        ("response_a", "response_b", "winner"),
        ("response_a", "response_b", "preference"),
        ("conversation_a", "conversation_b", "winner"),
    ):
        if {one, other, choice} <= row.keys():
            return _one_of_two(row, one, other, choice)
    return None


def _chosen_and_rejected(row: Columns) -> Convention | None:
    chosen, rejected = row["chosen"], row["rejected"]
    asked = [column for column in (*ASKED, *TURNS) if row.get(column) not in (None, "", [])]
    if is_turns(chosen) and is_turns(rejected) and len(turns_of(chosen)) > 1:
        # Whole conversations: what they have in common is the prompt, whatever a column of that name repeats.
        prompt = next((column for column in asked if column in ("prompt", "instruction", "question")), None)
        used = frozenset(["chosen", "rejected", *([prompt] if prompt else [])])

        def divided(columns: Columns) -> dict[str, Any]:
            return _divided(
                turns_of(columns["chosen"]), turns_of(columns["rejected"]), columns.get(prompt or "")
            )

        return Convention(
            f"preferences with the prompt inside ({', '.join(sorted(used))})", used, divided, Preference
        )
    asked = [each for each in asked if each not in TURNS] or asked
    if len(asked) > 1:
        raise undecided("prompt", asked)
    if not asked:
        if not (
            isinstance(chosen, str)
            and isinstance(rejected, str)
            and from_text(chosen)
            and from_text(rejected)
        ):
            return None

        def spoken(columns: Columns) -> dict[str, Any]:
            both = [from_text(text_of(columns.get(name, ""), name)) for name in ("chosen", "rejected")]
            for name, turns in zip(("chosen", "rejected"), both, strict=True):
                if turns is None:
                    raise ValueError(
                        f"{name}: is no transcript whose turns begin with 'Human:' and 'Assistant:'"
                    )
            return _divided(both[0] or [], both[1] or [], None)

        return Convention(
            "transcripts (chosen, rejected)", frozenset(["chosen", "rejected"]), spoken, Preference
        )
    column = asked[0]
    system = first_of(row, SYSTEM)
    extra = "input" if column == "instruction" and "input" in row else None
    used = frozenset(["chosen", "rejected", column, *(each for each in (system, extra) if each)])

    def explicit(columns: Columns) -> dict[str, Any]:
        prompt = prompt_of(columns, column, system, extra)
        return {
            "prompt": prompt,
            **{name: answer_of(columns.get(name), name) for name in ("chosen", "rejected")},
        }

    return Convention(f"preferences ({', '.join(sorted(used))})", used, explicit, Preference)


def _divided(chosen: list[Turn], rejected: list[Turn], prompt: Any) -> dict[str, Any]:
    """Two conversations as the beginning that they share and the rest of each (as TRL's `extract_prompt`).

    A prompt beside them must be what they share, or its last turn's words.
    """
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    shared, rests = chosen[:same], (chosen[same:], rejected[same:])
    for name, rest in zip(("chosen", "rejected"), rests, strict=True):
        if not rest:
            raise ValueError(
                f"{name}: ends where chosen and rejected are still equal, so the row states no preference"
            )
        if rest[0]["role"] != "assistant":
            raise ValueError(
                f"{name}: after the {same} turns that both share comes '{rest[0]['role']}', not the assistant's answer"
            )
    if prompt:
        if is_turns(prompt):
            given = turns_of(prompt)
            agrees = given == shared or given == shared[-len(given) :]
        else:
            words = text_of(prompt, "prompt").strip()
            agrees = any(turn["content"].strip() == words for turn in shared)
        if not agrees:
            raise ValueError("prompt: is not what chosen and rejected begin with; leave one of them out")
    return {"prompt": shared, "chosen": rests[0], "rejected": rests[1]}


def _one_of_two(row: Columns, one: str, other: str, choice: str) -> Convention | None:
    asked = [column for column in ASKED if row.get(column)]
    whole = is_turns(row.get(one))
    if not whole and len(asked) != 1:
        if asked:
            raise undecided("prompt", asked)
        return None
    used = frozenset([one, other, choice, *([] if whole else asked)])

    def choose(columns: Columns) -> dict[str, Any]:
        said = str(columns.get(choice)).strip().lower()
        first = said in ("0", one.lower(), "a", "model_a")
        if not first and said not in ("1", other.lower(), "b", "model_b"):
            raise ValueError(f"{choice}: is '{columns.get(choice)}', which prefers neither of the two")
        better, worse = (one, other) if first else (other, one)
        if whole:
            return _divided(turns_of(columns[better]), turns_of(columns[worse]), None)
        return {
            "prompt": prompt_of(columns, asked[0], None, None),
            "chosen": answer_of(columns.get(better), better), "rejected": answer_of(columns.get(worse), worse),
        }  # fmt: skip

    return Convention(f"two answers and a choice ({', '.join(sorted(used))})", used, choose, Preference)


def comparisons(row: Columns) -> Convention | None:
    """How a row is read as several answers with ranks or scores."""
    many = [column for column in ANSWERS if isinstance(parsed(row.get(column)), list)]
    asked = [column for column in (*ASKED, *TURNS) if row.get(column) not in (None, "", [])]
    if not many or not asked:
        return None
    if len(many) > 1 or len(asked) > 1:
        part, columns = ("responses", many) if len(many) > 1 else ("prompt", asked)
        raise undecided(part, columns)
    ranks, scores = first_of(row, RANKS), first_of(row, SCORES)
    used = frozenset([many[0], asked[0], *(each for each in (ranks, scores) if each), *({"id"} & row.keys())])

    def convert(columns: Columns) -> dict[str, Any]:
        answers = parsed(columns[many[0]])
        texts, inside = [], []
        for answer in answers:
            if isinstance(answer, Mapping):
                texts.append(answer.get("response", answer.get("text", answer.get("content"))))
                inside.append(answer.get("overall_score", answer.get("score", answer.get("rating"))))
            else:
                texts.append(answer)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{many[0]}: an answer has no text")
        prompt = prompt_of(columns, asked[0], None, None)
        found = {
            "id": columns.get("id", content_id([prompt, texts])),
            "prompt": prompt,
            "responses": [{"text": text, "run": "outside", "seed": i} for i, text in enumerate(texts)],
        }
        given = _ranks(columns, ranks, scores, inside)
        who = text_of(columns.get("annotator") or "unknown", "annotator")
        return found | ({"rankings": [{"annotator": who, "ranks": given}]} if given else {})

    return Convention(f"rankings ({', '.join(sorted(used - {'id'}))})", used, convert, Comparison)


def _ranks(columns: Columns, ranks: str | None, scores: str | None, inside: list[Any]) -> list[int] | None:
    """Ranks as given, 1 for the best, or those that follow from scores, of which the highest is the best."""
    if ranks:
        given = parsed(columns[ranks])
        if not isinstance(given, list) or not all(type(rank) is int for rank in given):
            raise ValueError(f"{ranks}: is no list of whole numbers, 1 for the best answer")
        return [rank + 1 for rank in given] if min(given, default=1) == 0 else given
    values = parsed(columns[scores]) if scores else inside
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        return None
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{scores or 'scores'}: holds {values}, not finite numbers only")
    best_first = sorted({*values}, reverse=True)
    return [best_first.index(value) + 1 for value in values]
