"""How much of a file is of which kind: what `accord data check --quality` says."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from accord.data.quality.findings import Finding
from accord.data.quality.held_out import HeldOut
from accord.data.quality.kinds import AGAINST, KINDS, OF_OTHER_ROWS, find
from accord.data.quality.language import languages
from accord.data.quality.near import NearDuplicates
from accord.data.reading import Reading

EXAMPLES = 3


@dataclass
class Share:
    """So many rows of a file, and which share of it."""

    what: str
    label: str
    rows: int
    share: float
    low: float | None
    high: float | None
    """Wilson's 95% interval of the share in what the file is a sample of; None where rows hang on one another."""
    examples: list[tuple[str, str]]
    """Places, and what was found there."""


@dataclass
class Quality:
    """The good rows of a file."""

    shares: list[Share]
    languages: list[Share]


def survey(reading: Reading, near: NearDuplicates, held_out: HeldOut | None) -> Quality:
    """Look for everything; changes nothing.

    Args:
        reading: the file.
        near: the rows of the files before it; its own are added.
        held_out: of `--against`.

    Raises:
        UsageError: a library is missing.
    """
    rows, places = reading.rows, reading.places
    by_kind: dict[str, list[Finding]] = {
        what: [] for what in KINDS if what != "duplicates" and (held_out or what not in AGAINST)
    }
    for finding in find(rows, places, list(by_kind), near, held_out):
        by_kind[finding.what].append(finding)
    shares = [_share(what, KINDS[what], found, places) for what, found in by_kind.items()]
    spoken: Counter[str] = Counter()
    first: dict[str, list[Finding]] = {}
    for i, name in enumerate(languages(rows)):
        spoken[name] += 1
        first.setdefault(name, []).append(Finding("language", i, name))
    return Quality(
        shares, [_share("language", name, first[name], places) for name, _ in spoken.most_common()]
    )


def _share(what: str, label: str, found: Sequence[Finding], places: Sequence[str]) -> Share:
    from accord.statistics import wilson

    share = len(found) / len(places) if places else 0.0
    low = high = None
    if places and what not in OF_OTHER_ROWS:
        estimate = wilson(share, len(places))
        low, high = estimate.low, estimate.high
    examples = [(places[finding.row], finding.detail) for finding in found[:EXAMPLES]]
    return Share(what, label, len(found), share, low, high, examples)
