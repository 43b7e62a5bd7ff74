"""All kinds of findings, how each is looked for, and what is said of it."""

from collections.abc import Iterable, Sequence

from accord.data.quality import answers, encoding
from accord.data.quality.findings import Finding
from accord.data.quality.held_out import HeldOut
from accord.data.quality.near import NearDuplicates
from accord.data.quality.personal import PLACEHOLDERS, personal_data
from accord.data.quality.same import Disagreements, Duplicates
from accord.data.quality.toxicity import toxic_answers
from accord.errors import UsageError
from accord.records import Row

KINDS = {
    "duplicates": "rows that repeat an earlier one",
    "near_duplicates": "rows nearly the same as an earlier one, the same among them",
    "near_heldout": "rows whose question is nearly a held-out one",
    "contamination": "rows that hold a held-out question or a suite's item, edited or reordered ones among them",
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
    "toxicity": "rows with a toxic answer",
    "disagreement": "rows that answer an earlier prompt otherwise",
    "length": "rows with an answer of unusual length",
    "repetition": "rows with an answer that repeats itself",
}
GROUPS = {"pii": tuple(PLACEHOLDERS)}
AGAINST = ("near_heldout", "contamination")
"""Kinds that need to be told what is held out."""
OF_OTHER_ROWS = ("duplicates", "near_duplicates", *AGAINST, "disagreement")
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


class Finder:
    """Looks through rows part by part; what it finds is the same, however they are cut into parts.

    It holds what later rows must be compared with: 64-bit hashes, signatures, and how many answers are of which length.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        near: NearDuplicates | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        """Nothing is looked at yet.

        Args:
            kinds: of `KINDS`.
            near: the rows of the files before, to which further ones are added.
            held_out: what none of the rows should hold; None if there is nothing.

        Raises:
            UsageError: a library is missing.
        """
        self._wanted = frozenset(kinds)
        self._near = near or (NearDuplicates() if "near_duplicates" in self._wanted else None)
        self._held_out = held_out
        self._duplicates, self._disagreements = Duplicates(), Disagreements()
        self._lengths = answers.Lengths()

    @property
    def looks_first(self) -> bool:
        """Whether all rows must be shown to `look` before the first is shown to `find`."""
        return "length" in self._wanted

    def look(self, rows: Sequence[Row]) -> None:
        """Learn what is usual."""
        if self.looks_first:
            self._lengths.add(rows)

    def find(self, rows: Sequence[Row], places: Sequence[str]) -> list[Finding]:
        """All that is found in the next rows, in the order of `KINDS`.

        Raises:
            UsageError: a library is missing.
        """
        wanted, found = self._wanted, list[Finding]()
        if "duplicates" in wanted:
            found += self._duplicates.find(rows, places)
        if "near_duplicates" in wanted and self._near:
            found += self._near.find(rows, places)
        if "near_heldout" in wanted and self._held_out:
            found += self._held_out.near(rows)
        if "contamination" in wanted and self._held_out:
            found += self._held_out.contaminated(rows)
        if wanted & set(PLACEHOLDERS):
            found += personal_data(rows)
        if "encoding" in wanted:
            found += encoding.damaged(rows)
        if "invisible" in wanted:
            found += encoding.invisible(rows)
        if wanted & {"refusals", "boilerplate"}:
            found += answers.stock_phrases(rows)
        if "toxicity" in wanted:
            found += toxic_answers(rows)
        if "disagreement" in wanted:
            found += self._disagreements.find(rows, places)
        if "length" in wanted:
            found += self._lengths.unusual(rows)
        if "repetition" in wanted:
            found += answers.repeated(rows)
        order = list(KINDS)
        return sorted(
            (each for each in found if each.what in wanted), key=lambda each: order.index(each.what)
        )


def find(
    rows: Sequence[Row],
    places: Sequence[str],
    kinds: Sequence[str],
    near: NearDuplicates | None = None,
    held_out: HeldOut | None = None,
) -> list[Finding]:
    """All that is found in the rows of one file; see `Finder`.

    Raises:
        UsageError: a library is missing.
    """
    finder = Finder(kinds, near, held_out)
    finder.look(rows)
    return finder.find(rows, places)
