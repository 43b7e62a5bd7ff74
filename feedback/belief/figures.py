"""What is counted about one annotator."""

from dataclasses import dataclass

from accord.statistics import Estimate
from feedback.belief.reliability import AnnotatorReliability


@dataclass(frozen=True)
class FirstPosition:
    """How often the response that stood first was ranked best, alone or shared, and how often that is by chance.

    By chance, each of k responses stands first equally often: a record whose best rank is shared by g has it with
    g / k. `p_value` is two-sided, exact, and corrected for the number of annotators. Records that tie everything say
    nothing and are left out.
    """

    share: Estimate
    by_chance: float
    p_value: float


@dataclass(frozen=True)
class LengthPreference:
    """How often the longer of two strictly ordered responses is the better one, by this annotator and by the others.

    `excess` is the difference, `p_value` two-sided (the jackknife's standard error) and corrected for the number of
    annotators.
    """

    share: Estimate
    others: float
    excess: Estimate
    p_value: float


@dataclass(frozen=True)
class AnnotatorFigures:
    """One annotator; figures are None where there was nothing to count."""

    submitted: int
    discarded: int
    skipped: int
    """Records assigned to the annotator, or begun, and neither submitted nor discarded."""
    gold: Estimate | None
    """Share of gold pairs ordered as known (a tie is not); `items` counts gold records, and so does the interval."""
    self_consistency: Estimate | None
    """Share of pairs of duplicates ordered as in the original, half for a tie in one of them; `items` and interval
    count duplicates."""
    with_others: Estimate | None
    """Of pairs ordered strictly by this annotator and another: the share ordered alike. Half is chance."""
    first_position: FirstPosition | None
    length: LengthPreference | None
    ties: float | None
    """Share of pairs tied."""
    median_seconds: float | None
    reliability: AnnotatorReliability | None
