"""Floors in words for readers, and the rows of the page's table of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from accord.page.render import number
from eval.page.metrics import RANKS, change_text, p_text, value_text
from eval.verdict.floors import FloorResult
from eval.verdict.rule import two_digits


def required(floor: FloorResult) -> str:
    """What the candidate has to reach."""
    return f"{floor.side.replace('_', ' ')} {value_text(floor, floor.bound)}{_unit(floor)}"


def interval_text(floor: FloorResult) -> str:
    """The interval of the candidate's own value."""
    return f"{value_text(floor, floor.low)} to {value_text(floor, floor.high)}{_unit(floor)}"


def needed_text(floor: FloorResult) -> str:
    """What a candidate must truly reach to pass in 8 of 10 evaluations like this one."""
    return "more than these items can show" if floor.needed is None else value_text(floor, floor.needed)


def distance_text(floor: FloorResult) -> str:
    """The same as a distance from the floor."""
    if floor.needed is None:
        return "nothing: too few items"
    amount = change_text(floor, abs(floor.needed - floor.bound)).removeprefix("+")
    return f"{amount} {'above' if floor.side == 'at_least' else 'below'} it"


def would_decide(floor: FloorResult) -> str:
    """For an undecided floor, how many items would decide; empty where nothing says."""
    if floor.clusters_to_decide is None:
        return ""
    return (
        f"about {number(two_digits(floor.clusters_to_decide))} {floor.cluster} would decide, and there were "
        f"{number(floor.clusters)}"
    )


def explain_floor(floor: FloorResult, confidence_level: float) -> str:
    """How the candidate stands to a floor, and why it got its verdict, in sentences for someone who does not code."""
    sentences = [
        f"{floor.label}: has to be {required(floor)}, and is {value_text(floor, floor.candidate)} "
        f"(the baseline: {value_text(floor, floor.baseline)}).",
        f"With {100 * confidence_level:g}% confidence the candidate's true value is {interval_text(floor)}.",
    ]
    if floor.cannot_decide:
        sentences.append(f"It cannot decide: {floor.cannot_decide}.")
    elif floor.verdict == "FAIL":
        sentences.append("Even the best of these values misses the floor.")
    elif floor.verdict == "PASS":
        sentences.append("Even the worst of these values meets the floor.")
    elif floor.p_beyond_corrected is not None and not floor.low <= floor.bound <= floor.high:
        sentences.append(
            "All of these values miss the floor, but one of several tests may say so by chance (p "
            f"{p_text(floor.p_beyond_corrected)}, corrected for the family “{floor.family}”)."
        )
    else:
        sentences.append("Some of these values meet the floor and some do not.")
    if floor.verdict == "INCONCLUSIVE" and not floor.cannot_decide:
        decides = (
            would_decide(floor)
            or "what was observed lies so close to the floor that more data would hardly decide"
        )
        sentences.append(f"{decides[:1].upper()}{decides[1:]}.")
    return " ".join(sentences)


@dataclass(frozen=True)
class FloorRow:
    """One row of the table of floors; positions are percent of the plot's width, higher values on the right."""

    name: str
    label: str
    short_label: str
    meaning: str
    required: str
    baseline: str
    candidate: str
    interval: str
    verdict: str
    rank: int
    basis: str
    needed: str
    family: str
    p_within: str
    p_beyond: str
    p_beyond_corrected: str
    left: float
    right: float
    dot: float
    bound: float
    good_is_right: bool

    @classmethod
    def of(cls, floor: FloorResult) -> "FloorRow":
        """A floor's row; a share is drawn on its whole scale, another mean on one that holds all that is shown."""
        start, end = floor.ends or _around(floor)

        def x(value: float) -> float:
            return round(2 + 96 * min(max((value - start) / (end - start), 0.0), 1.0), 2)

        return cls(
            name=floor.name, label=floor.label, short_label=floor.label.split(": ", 1)[-1], meaning=floor.meaning,
            required=required(floor), baseline=value_text(floor, floor.baseline),
            candidate=value_text(floor, floor.candidate), interval=interval_text(floor), verdict=floor.verdict or "",
            rank=RANKS[floor.verdict or "PASS"], basis=f"{number(floor.clusters)} {floor.cluster}",
            needed=needed_text(floor), family=floor.family or "", p_within=p_text(floor.p_within),
            p_beyond=p_text(floor.p_beyond), p_beyond_corrected=p_text(floor.p_beyond_corrected),
            left=x(floor.low), right=x(floor.high), dot=x(floor.candidate), bound=x(floor.bound),
            good_is_right=floor.side == "at_least",
        )  # fmt: skip


def floor_rows(floors: Sequence[FloorResult]) -> list[FloorRow]:
    """Those that failed first, then the undecided; in each, the one that is surest to be missed first."""
    ordered = sorted(floors, key=lambda each: (RANKS[each.verdict or "PASS"], -(each.p_within or 0.0)))
    return [FloorRow.of(each) for each in ordered]


def _around(floor: FloorResult) -> tuple[float, float]:
    shown = (floor.low, floor.high, floor.bound, floor.candidate)
    room = 0.15 * (max(shown) - min(shown)) or 1.0
    return min(shown) - room, max(shown) + room


def _unit(floor: FloorResult) -> str:
    return "" if value_text(floor, floor.bound).endswith("%") else f" {floor.unit}"
