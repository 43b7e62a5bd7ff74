"""Which convention a row is in, and what it is in accord's own form.

A convention is recognised by its columns, never by a guess: where two readings are possible, the row is refused with
both. `columns` (docs/bring-your-data.md) says which column is what where names alone do not. Columns that no convention
uses stay as they are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from accord.data.turns import Turn, from_text, history_of, is_turns, parsed, tools_of, turns_of
from accord.errors import UsageError
from accord.records import Comparison, Demonstration, Preference, Prompt, Row, UnpairedFeedback, content_id

TURNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
ASKED = ("prompt", "instruction", "question", "query")
ANSWERED = ("completion", "response", "output", "answer")
ANSWERS = ("responses", "completions", "answers")
RANKS = ("ranks", "ranking", "rank")
SCORES = ("scores", "overall_scores", "ratings")
SYSTEM = ("system", "system_prompt")
PARTS = (
    "messages", "prompt", "input", "completion", "text", "system", "history", "tools", "chosen", "rejected",
    "responses", "ranks", "scores", "label", "id",
)  # fmt: skip
"""What `columns` may name: the part that a column is."""
PLURALS: dict[type[Row], str] = {
    Demonstration: "demonstrations", Prompt: "prompts", Preference: "preferences", Comparison: "comparisons",
    UnpairedFeedback: "feedback",
}  # fmt: skip

Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Convention:
    """A way in which rows are written."""

    name: str
    used: frozenset[str]
    """The columns that it reads; others stay."""
    convert: Callable[[Columns], dict[str, Any]]
    """A row's columns to those of accord; raises ValueError for what it has no form for."""
    gives: type[Row]


class AmbiguousError(ValueError):
    """A row can be read in more than one way."""


def mapped(row: Columns, columns: Mapping[str, str], name: str) -> dict[str, Any]:
    """A row with the columns that the user named under the names of the parts that they are.

    Of the columns that were not named, those that would be taken for a part are put aside as `column_<name>`.

    Raises:
        UsageError: a part that there is not.
    """
    if unknown := sorted(set(columns) - set(PARTS)):
        raise UsageError(f"columns of {name}: '{unknown[0]}' is no part of a row; {', '.join(PARTS)} are")
    if not columns:
        return dict(row)
    known = {*PARTS, *TURNS, *ASKED, *ANSWERED, *ANSWERS, *RANKS, *SCORES, *SYSTEM}
    renamed = {part: row[column] for part, column in columns.items() if column in row}
    rest = {key: value for key, value in row.items() if key not in columns.values()}
    return renamed | {f"column_{key}" if key in known else key: value for key, value in rest.items()}


def recognise(row: Columns, wanted: type[Row]) -> Convention | None:
    """The convention of a row that shall give a `wanted`; None where it is in none that accord knows.

    Raises:
        AmbiguousError: two readings are possible; the message names both.
    """
    if wanted is Preference:
        return _preferences(row)
    if wanted is Comparison:
        return _comparisons(row)
    if wanted is UnpairedFeedback:
        return _unpaired(row)
    return _conversations(row, wanted)


# --- conversations: demonstrations and prompts


def _conversations(row: Columns, wanted: type[Row]) -> Convention | None:
    found = _dialogue(row)
    if found is None or (wanted is Demonstration and not found.has_answers):
        return None
    convert = found.turns

    def demonstration(columns: Columns) -> dict[str, Any]:
        return {"messages": convert(columns)}

    def prompt(columns: Columns) -> dict[str, Any]:
        turns = convert(columns)
        while turns and turns[-1]["role"] == "assistant":  # the answer, which is not asked for
            turns = turns[:-1]
        return {"prompt": turns}

    return Convention(found.name, found.used, demonstration if wanted is Demonstration else prompt, wanted)


@dataclass(frozen=True)
class _Dialogue:
    """How the one conversation of a row is to be read."""

    name: str
    used: frozenset[str]
    turns: Callable[[Columns], list[Turn]]
    has_answers: bool = True


def _dialogue(row: Columns) -> _Dialogue | None:
    whole = [column for column in TURNS if is_turns(row.get(column))]
    asked = [column for column in ASKED if row.get(column) not in (None, "")]
    answered = [column for column in ANSWERED if column in row]
    if not asked and answered and row.get("input"):
        asked = ["input"]
    text = ["text"] if isinstance(row.get("text"), str) and from_text(row["text"]) else []
    ways = [*([whole[0]] if whole else []), *(["+".join([*asked, *answered])] if asked else []), *text]
    if len(whole) > 1:
        ways = [*whole, *ways[1:]]
    if len(ways) > 1 or len(asked) > 1 or len(answered) > 1:
        _say_ambiguous(whole, asked, answered, text)
    system, tools = _one(row, SYSTEM), _one(row, ("tools",))
    around = [column for column in (system, tools) if column]

    def complete(columns: Columns, turns: list[Turn]) -> list[Turn]:
        if system and (words := columns.get(system)):
            turns = [{"role": "system", "content": str(words)}, *turns]
        if tools and columns.get(tools):
            turns = [{**turns[0], "tools": tools_of(columns[tools])}, *turns[1:]]
        return turns

    if whole:
        (column,) = whole
        first = parsed(row[column])[0]
        form = "ShareGPT" if "from" in first else "OpenAI messages"
        name = f"{form} ({', '.join([column, *around])})"
        return _Dialogue(
            name,
            frozenset([column, *around]),
            lambda columns: complete(columns, turns_of(columns.get(column) or [])),
        )
    if asked:
        used = [*asked, *answered]
        extra = "input" if asked[0] == "instruction" and "input" in row else None
        history = "history" if "history" in row else None
        used += [each for each in (extra, history) if each]
        form = {"instruction": "Alpaca", "query": "query and response"}.get(asked[0], "prompt and completion")

        def one_turn(columns: Columns) -> list[Turn]:
            question = columns.get(asked[0])
            if is_turns(question):
                turns = turns_of(question)
            else:
                words = str(question or "") + (f"\n{columns[extra]}" if extra and columns.get(extra) else "")
                turns = [{"role": "user", "content": words}]
            if answered:
                turns += _answer(columns.get(answered[0]), answered[0])
            return complete(columns, [*(history_of(columns.get(history)) if history else []), *turns])

        name = f"{form} ({', '.join([*used, *around])})"
        return _Dialogue(
            name, frozenset([*used, *around]), one_turn, bool(answered) or is_turns(row[asked[0]])
        )
    if text:

        def spoken(columns: Columns) -> list[Turn]:
            turns = from_text(str(columns.get("text", "")))
            if turns is None:
                raise ValueError(
                    "text: is no transcript whose turns begin with 'Human:' and 'Assistant:', nor ChatML"
                )
            return complete(columns, turns)

        return _Dialogue(f"transcript ({', '.join(['text', *around])})", frozenset(["text", *around]), spoken)
    return None


def _say_ambiguous(whole: list[str], asked: list[str], answered: list[str], text: list[str]) -> None:
    if len(asked) > 1 or (len(answered) > 1 and not whole):
        many = asked if len(asked) > 1 else answered
        part = "prompt" if many is asked else "completion"
        raise _many(part, many)
    if len(whole) + len(text) + bool(asked) > 1:
        ways = [*whole, *([" and ".join([*asked, *answered])] if asked else []), *text]
        raise AmbiguousError(
            f"the conversation may be in {' or in '.join(ways)}; say which, with data.columns: {{messages: ...}} "
            "or "
            "{prompt: ..., completion: ...}"
        )


def _many(part: str, columns: list[str]) -> AmbiguousError:
    return AmbiguousError(
        f"the {part} may be in {' or in '.join(columns)}; say which, with data.columns: {{{part}: {columns[0]}}} or so"
    )


def _one(row: Columns, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if row.get(name)), None)


def _answer(value: Any, column: str) -> list[Turn]:
    if is_turns(value) or isinstance(value, Mapping):
        return turns_of(value)
    if value is None:
        raise ValueError(f"{column}: there is no answer")
    if not isinstance(value, str):
        raise ValueError(f"{column}: is {type(value).__name__}, not text or turns")
    return turns_of(
        [{"role": "assistant", "content": value or " "}]
    )  # as `chat.answer`: an empty one is a blank


def _unpaired(row: Columns) -> Convention | None:
    found = _dialogue(row)
    if found is None or not found.has_answers or "label" not in row:
        return None

    def convert(columns: Columns) -> dict[str, Any]:
        *prompt, completion = found.turns(columns)
        label = columns.get("label")
        if str(label).lower() not in ("true", "false", "1", "0"):
            raise ValueError(
                f"label: is {label!r}; true says that the answer is desirable, false that it is not"
            )
        return {"prompt": prompt, "completion": [completion], "label": str(label).lower() in ("true", "1")}

    name = f"{found.name.partition(' (')[0]} with a label ({', '.join([*sorted(found.used), 'label'])})"
    return Convention(name, found.used | {"label"}, convert, UnpairedFeedback)


# --- preferences


def _preferences(row: Columns) -> Convention | None:
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
                "rejected": _answer(columns["rejected_response"], "rejected"),
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
        raise _many("prompt", asked)
    if not asked:
        if not (
            isinstance(chosen, str)
            and isinstance(rejected, str)
            and from_text(chosen)
            and from_text(rejected)
        ):
            return None

        def spoken(columns: Columns) -> dict[str, Any]:
            both = [from_text(str(columns.get(name, ""))) for name in ("chosen", "rejected")]
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
    system = _one(row, SYSTEM)
    extra = "input" if column == "instruction" and "input" in row else None
    used = frozenset(["chosen", "rejected", column, *(each for each in (system, extra) if each)])

    def explicit(columns: Columns) -> dict[str, Any]:
        prompt = _asked(columns, column, system, extra)
        return {
            "prompt": prompt,
            **{name: _answer(columns.get(name), name) for name in ("chosen", "rejected")},
        }

    return Convention(f"preferences ({', '.join(sorted(used))})", used, explicit, Preference)


def _asked(columns: Columns, column: str, system: str | None, extra: str | None) -> list[Turn]:
    value = columns.get(column)
    if value in (None, ""):
        raise ValueError(f"{column}: there is no prompt")
    turns: list[Turn]
    if is_turns(value):
        turns = turns_of(value)
    else:
        words = str(value) + (f"\n{columns[extra]}" if extra and columns.get(extra) else "")
        turns = from_text(words) or [{"role": "user", "content": words}]
    if system and columns.get(system):
        turns = [{"role": "system", "content": str(columns[system])}, *turns]
    return turns


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
            agrees = any(turn["content"].strip() == str(prompt).strip() for turn in shared)
        if not agrees:
            raise ValueError("prompt: is not what chosen and rejected begin with; leave one of them out")
    return {"prompt": shared, "chosen": rests[0], "rejected": rests[1]}


def _one_of_two(row: Columns, one: str, other: str, choice: str) -> Convention | None:
    asked = [column for column in ASKED if row.get(column)]
    whole = is_turns(row.get(one))
    if not whole and len(asked) != 1:
        if asked:
            raise _many("prompt", asked)
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
            "prompt": _asked(columns, asked[0], None, None),
            "chosen": _answer(columns.get(better), better), "rejected": _answer(columns.get(worse), worse),
        }  # fmt: skip

    return Convention(f"two answers and a choice ({', '.join(sorted(used))})", used, choose, Preference)


# --- rankings


def _comparisons(row: Columns) -> Convention | None:
    many = [column for column in ANSWERS if isinstance(parsed(row.get(column)), list)]
    asked = [column for column in (*ASKED, *TURNS) if row.get(column) not in (None, "", [])]
    if not many or not asked:
        return None
    if len(many) > 1 or len(asked) > 1:
        part, columns = ("responses", many) if len(many) > 1 else ("prompt", asked)
        raise _many(part, columns)
    ranks, scores = _one(row, RANKS), _one(row, SCORES)
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
        prompt = _asked(columns, asked[0], None, None)
        found = {
            "id": columns.get("id", content_id([prompt, texts])),
            "prompt": prompt,
            "responses": [{"text": text, "run": "outside", "seed": i} for i, text in enumerate(texts)],
        }
        given = _ranks(columns, ranks, scores, inside)
        who = str(columns.get("annotator", "unknown"))
        return found | ({"rankings": [{"annotator": who, "ranks": given}]} if given else {})

    return Convention(f"rankings ({', '.join(sorted(used - {'id'}))})", used, convert, Comparison)


def _ranks(columns: Columns, ranks: str | None, scores: str | None, inside: list[Any]) -> list[int] | None:
    """Ranks as given, 1 for the best, or those that follow from scores, of which the highest is the best."""
    if ranks:
        given = parsed(columns[ranks])
        if not isinstance(given, list) or not all(isinstance(rank, int) for rank in given):
            raise ValueError(f"{ranks}: is no list of whole numbers, 1 for the best answer")
        return [rank + 1 for rank in given] if min(given, default=1) == 0 else given
    values = parsed(columns[scores]) if scores else inside
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        return None
    best_first = sorted({*values}, reverse=True)
    return [best_first.index(value) + 1 for value in values]
