"""How far annotators agree with one another, with known answers and with themselves, and what else moves them.

    agreement = measure_agreement(comparisons, fit_reliability(comparisons))
    agreement.alpha_ranks.value      # Krippendorff's alpha of the ranks: 1 is perfect, 0 is chance
    agreement.annotators["ann-3"].first_position.share
    agreement.warnings               # who should be looked at, and why

Agreement is measured over records that are no probes, and over submitted rankings that do not adjudicate. How the
rankings become units and values:

- *ranks*: a unit is a response of a comparison, and the value that an annotator gives it is its mid-rank (tied
  responses share the mean of their places) scaled to 0 for the best place and 1 for the last. Alpha is ordinal.
- *pairs*: a unit is a pair of responses of a comparison, and the value is "first", "tie" or "second". Alpha is
  nominal.

Units with fewer than two values say nothing of agreement and are left out, which is how alpha treats missing data.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np

from accord.records import Comparison
from accord.statistics import Bootstrap, Estimate, holm
from feedback.belief.counted import CountedRankings
from feedback.belief.figures import AnnotatorFigures, FirstPosition, LengthPreference
from feedback.belief.measures import Measured
from feedback.belief.reliability import Reliability
from feedback.belief.suspicion import Suspicion, suspicious


@dataclass(frozen=True)
class Agreement:
    """All figures of a set of comparisons."""

    comparisons: int
    """Records that are no probes."""
    gold_records: int
    duplicates: int
    overlapping: int
    """Records, no probes, that two or more annotators submitted."""
    alpha_ranks: Estimate | None
    alpha_ranks_of_rest: Estimate | None
    """The same without the annotators that `warnings` names; None where there are none, or fewer than two others."""
    alpha_pairs: Estimate | None
    kendall_w: Estimate | None
    """Mean over overlapping records of Kendall's W, corrected for ties."""
    kendall_w_by_chance: float | None
    """What it would be if annotators ranked independently: the mean of 1 / annotators."""
    kappa: dict[tuple[str, str], Estimate]
    """Cohen's kappa of pair labels, by pair of annotators with records in common."""
    annotators: dict[str, AnnotatorFigures]
    warnings: list[Suspicion]

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        values = asdict(self)
        values["kappa"] = [{"annotators": list(names), **asdict(each)} for names, each in self.kappa.items()]
        return values


def measure_agreement(
    comparisons: Sequence[Comparison], reliability: Reliability | None = None, seed: int = 0
) -> Agreement:
    """Every figure of agreement, with bootstrap intervals over prompts.

    Args:
        comparisons: with their rankings, probes included.
        reliability: of the same comparisons; adds its figures and sharpens the warnings.
        seed: of the bootstrap.
    """
    counted = CountedRankings(comparisons)
    measured = Measured(counted, Bootstrap(counted.clusters, seed))
    everyone = counted.names
    first_position = _corrected(measured.first_position())
    length = _corrected(measured.length_preference())
    gold, self_consistency = measured.gold(), measured.self_consistency()
    with_others, ties, seconds = measured.with_others(), measured.ties(), measured.median_seconds()
    submitted = counted.count(np.arange(len(counted.who)))
    discarded, skipped = _discarded(comparisons), _skipped(comparisons)
    by_annotator = {
        name: AnnotatorFigures(
            submitted=submitted[i],
            discarded=discarded[name],
            skipped=skipped[name],
            gold=gold[i],
            self_consistency=self_consistency[i],
            with_others=with_others[i],
            first_position=first_position[i],
            length=length[i],
            ties=ties[i],
            median_seconds=seconds[i],
            reliability=reliability.annotators.get(name) if reliability else None,
        )
        for i, name in enumerate(everyone)
    }
    warnings = suspicious(by_annotator, has_gold=any(a.gold for a in by_annotator.values()))
    named = frozenset(warning.annotator for warning in warnings)
    w, by_chance = measured.kendall_w()
    return Agreement(
        comparisons=sum(not comparison.is_probe for comparison in comparisons),
        gold_records=sum(comparison.gold_ranks is not None for comparison in comparisons),
        duplicates=sum(comparison.duplicate_of is not None for comparison in comparisons),
        overlapping=int((measured.together > 1).sum()),
        alpha_ranks=measured.alpha_of_ranks(),
        alpha_ranks_of_rest=measured.alpha_of_ranks(named)
        if named and len(everyone) > len(named) + 1
        else None,
        alpha_pairs=measured.alpha_of_pairs(),
        kendall_w=w,
        kendall_w_by_chance=by_chance,
        kappa=measured.kappa(),
        annotators=by_annotator,
        warnings=warnings,
    )


Tested = TypeVar("Tested", FirstPosition, LengthPreference)


def _corrected(found: list[tuple[Tested, float] | None]) -> list[Tested | None]:
    """Figures with their p-values after Holm's correction for the number of annotators."""
    p_values = holm([each[1] if each else None for each in found])
    return [
        replace(each[0], p_value=p) if each and p is not None else None
        for each, p in zip(found, p_values, strict=True)
    ]


def _discarded(comparisons: Sequence[Comparison]) -> Counter[str]:
    return Counter(r.annotator for c in comparisons for r in c.rankings if r.status == "discarded")


def _skipped(comparisons: Sequence[Comparison]) -> Counter[str]:
    """Records that were assigned to an annotator or begun, without a ranking or a discard."""
    skipped: Counter[str] = Counter()
    for comparison in comparisons:
        given = [(r.annotator, r.status) for r in comparison.rankings if not r.adjudicates]
        asked = {*(comparison.assigned_to or []), *(who for who, status in given if status == "draft")}
        skipped.update(asked - {who for who, status in given if status in ("submitted", "discarded")})
    return skipped
