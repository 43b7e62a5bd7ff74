"""All kinds of findings, how each is looked for, and what is said of it."""

from collections.abc import Iterable, Sequence

from accord.data.quality import answers, encoding
from accord.data.quality.findings import Finding, answer_turns, question
from accord.data.quality.near import HeldOut, NearDuplicates
from accord.data.quality.personal import PLACEHOLDERS, personal_data
from accord.errors import UsageError
from accord.records import Row, conversation_id

KINDS = {
    "duplicates": "rows that repeat an earlier one",
    "near_duplicates": "rows nearly the same as an earlier one, the same among them",
    "near_heldout": "rows whose question is nearly a held-out one",
    "secret": "rows with keys or tokens",
    "email": "rows with e-mail addresses",
    "iban": "rows with account numbers (IBAN)",
    "card": "rows with card numbers",
    "phone": "rows with phone numbers",
    "ip": "rows with public IP addresses",
    "encoding": "rows with text in a wrong encoding",
    "invisible": "rows with control or invisible characters",
    "refusals": "rows whose answer refuses",
    "boilerplate": "rows with stock phrases in an answer",
    "disagreement": "rows that answer an earlier prompt otherwise",
    "length": "rows with an answer of unusual length",
    "repetition": "rows with an answer that repeats itself",
}
GROUPS = {"pii": tuple(PLACEHOLDERS)}
OF_OTHER_ROWS = ("duplicates", "near_duplicates", "near_heldout", "disagreement")
"""Whether a row is one of these depends on other rows, so that their share has no interval of independent draws."""


def chosen(names: Iterable[str], known: Sequence[str], option: str) -> list[str]:
    """The kinds that a list like `near_duplicates,pii` names.

    Raises:
        UsageError: there is no such kind.
    """
    found: list[str] = []
    for name in names:
        if name not in known and name not in GROUPS:
            groups = [group for group, kinds in GROUPS.items() if set(kinds) <= set(known)]
            raise UsageError(
                f"{option} {name}: there is no such kind; there are {', '.join([*groups, *known])}"
            )
        found += [kind for kind in GROUPS.get(name, (name,)) if kind not in found]
    return found


def find(
    rows: Sequence[Row],
    places: Sequence[str],
    kinds: Sequence[str],
    near: NearDuplicates | None = None,
    held_out: HeldOut | None = None,
) -> list[Finding]:
    """All that is found in rows of some kinds, in the order of `KINDS`.

    Args:
        rows: of one file.
        places: of each, for what is said.
        kinds: of `KINDS`.
        near: the rows of the files before, to which these are added.
        held_out: questions that none of these should ask; None if there are none.

    Raises:
        UsageError: a library is missing.
    """
    wanted = set(kinds)
    found: list[Finding] = []
    if "duplicates" in wanted:
        found += _duplicates(rows, places)
    if "near_duplicates" in wanted:
        found += (near or NearDuplicates()).find(rows, places)
    if "near_heldout" in wanted and held_out:
        found += held_out.find(rows)
    if wanted & set(PLACEHOLDERS):
        found += personal_data(rows)
    if "encoding" in wanted:
        found += encoding.damaged(rows)
    if "invisible" in wanted:
        found += encoding.invisible(rows)
    if wanted & {"refusals", "boilerplate"}:
        found += answers.stock_phrases(rows)
    if "disagreement" in wanted:
        found += answers.disagreeing(rows, places)
    if "length" in wanted:
        found += answers.unusual_lengths(rows)
    if "repetition" in wanted:
        found += answers.repeated(rows)
    order = list(KINDS)
    return sorted((each for each in found if each.what in wanted), key=lambda each: order.index(each.what))


def _duplicates(rows: Sequence[Row], places: Sequence[str]) -> list[Finding]:
    first: dict[tuple[object, ...], str] = {}
    found = []
    for i, (row, place) in enumerate(zip(rows, places, strict=True)):
        turns = [conversation_id(each) for each in [question(row), *answer_turns(row)]]
        identity = (*turns, getattr(row, "label", None))
        if (earlier := first.setdefault(identity, place)) != place:
            found.append(Finding("duplicates", i, f"the same as {earlier}"))
    return found
