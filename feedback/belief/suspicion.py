"""Which annotators should be looked at, and why, in plain words.

Careful annotators must not be accused: every rule needs an effect that matters *and* an interval or a test (corrected
for the number of annotators) that chance does not explain. An annotator is named for one reason only, the most
specific: a liking for a place or a length explains why rankings look random otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from accord.statistics import Estimate
from feedback.belief.figures import AnnotatorFigures
from feedback.belief.reliability import FEWEST_ANNOTATORS

Kind = Literal["position", "length", "adversarial", "random"]

SIGNIFICANCE = 0.01
"""Of the corrected tests of place and length."""
LEAST_POSITION_EFFECT = 0.2
"""How far the share of "first is best" must lie from chance, of what lies between chance and always (or never)."""
LEAST_LENGTH_EFFECT = 0.15
"""By how much the share of "longer is better" must differ from the others'."""
LONGER_IS_BETTER = 0.65
"""And how large it must be by itself (or, for shorter answers, how small: 1 minus it)."""
HARDLY_BETTER_THAN_CHANCE = 0.65
"""An annotator looks random if the interval of their accuracy ends below this."""
ADVERSARIAL = 0.4
"""And adversarial if it ends below one half, with the accuracy itself below this."""


@dataclass(frozen=True)
class Suspicion:
    """An annotator and what is suspicious; `text` says it with the figure and its interval, without the name."""

    annotator: str
    kind: Kind
    text: str


def suspicious(figures: Mapping[str, AnnotatorFigures], has_gold: bool) -> list[Suspicion]:
    """One for each annotator that one of the rules names, in the order of their names."""
    may_use_model = has_gold or len(figures) >= FEWEST_ANNOTATORS
    suspicions = []
    for name, each in sorted(figures.items()):
        found = _position(each) or _length(each) or _accuracy(each, may_use_model)
        if found:
            suspicions.append(Suspicion(name, *found))
    return suspicions


def _position(each: AnnotatorFigures) -> tuple[Kind, str] | None:
    first = each.first_position
    if first is None or first.p_value >= SIGNIFICANCE:
        return None
    difference = first.share.value - first.by_chance
    possible = 1 - first.by_chance if difference > 0 else first.by_chance
    if abs(difference) < LEAST_POSITION_EFFECT * possible:
        return None
    words = "follows the order of display" if difference > 0 else "avoids what stands first"
    return "position", (
        f"{words}: ranked the response that stood first as best in {_share(first.share)} of "
        f"{first.share.items} records, where chance gives {first.by_chance:.0%} (p {_p(first.p_value)})"
    )


def _length(each: AnnotatorFigures) -> tuple[Kind, str] | None:
    length = each.length
    if length is None or length.p_value >= SIGNIFICANCE or abs(length.excess.value) < LEAST_LENGTH_EFFECT:
        return None
    likes_long = length.excess.value > 0
    share = length.share.value if likes_long else 1 - length.share.value
    if share < LONGER_IS_BETTER:
        return None
    return "length", (
        f"prefers {'longer' if likes_long else 'shorter'} responses: ranked the longer of two as better in "
        f"{_share(length.share)} of {length.share.items} pairs, the other annotators in {length.others:.0%} "
        f"(p {_p(length.p_value)})"
    )


def _accuracy(each: AnnotatorFigures, may_use_model: bool) -> tuple[Kind, str] | None:
    """From gold answers, and from the accuracy that the reliability model finds; neither may speak against it."""
    found = []
    if each.gold is not None and each.gold.low is not None and each.gold.high is not None:
        what = f"agrees with the known answers in {_share(each.gold)} of the pairs of {each.gold.items} gold records"
        found.append((each.gold.value, each.gold.low, each.gold.high, what))
    if may_use_model and each.reliability is not None:
        low, high = each.reliability.accuracy_interval
        what = (
            f"orders {each.reliability.accuracy:.0%} ({low:.0%} to {high:.0%}) of pairs as the reliability model "
            f"finds them, from {each.reliability.rankings} rankings (beta {each.reliability.beta:.2f})"
        ).replace("-", "−")
        found.append((each.reliability.accuracy, low, high, what))
    for value, _, high, what in found:
        if value < ADVERSARIAL and high < 0.5 and all(low < 0.5 for _, low, _, _ in found):
            return "adversarial", f"ranks the wrong way round: {what}, where chance gives 50%"
    for _, _, high, what in found:
        if high < HARDLY_BETTER_THAN_CHANCE and all(
            low < HARDLY_BETTER_THAN_CHANCE for _, low, _, _ in found
        ):
            return "random", f"ranks hardly better than chance: {what}, where chance gives 50%"
    return None


def _share(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.0%}"
    return f"{estimate.value:.0%} ({estimate.low:.0%} to {estimate.high:.0%})"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
