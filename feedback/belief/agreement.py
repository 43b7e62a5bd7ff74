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

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from statistics import median
from typing import Any, TypeVar

import numpy as np
from scipy.stats import norm, rankdata

from accord.records import Comparison, conversation_id
from accord.statistics import Bootstrap, Estimate, holm, two_sided_poisson_binomial, wilson
from feedback.belief.coefficients import alpha, cohens_kappa, coincidences, kendalls_w, ratio
from feedback.belief.figures import AnnotatorFigures, FirstPosition, LengthPreference
from feedback.belief.rankings import counts, same_responses, vote
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
    answers = [
        CountedRanking(comparison, ranking.annotator, ranking.ranks, ranking.seconds)
        for comparison in comparisons
        for ranking in comparison.rankings
        if counts(ranking) and ranking.ranks is not None
    ]
    cluster_of: dict[str, int] = {}
    clusters = {
        comparison.id: cluster_of.setdefault(conversation_id(comparison.prompt), len(cluster_of))
        for comparison in comparisons
    }
    measured = _Measured(answers, clusters, Bootstrap(len(cluster_of), seed))
    everyone = sorted({r.annotator for c in comparisons for r in c.rankings if not r.adjudicates})
    first_position = _corrected({name: measured.first_position(name) for name in everyone})
    length = _corrected({name: measured.length_preference(name) for name in everyone})
    seconds = {
        name: [a.seconds for a in answers if a.who == name and a.seconds is not None] for name in everyone
    }
    by_annotator = {
        name: AnnotatorFigures(
            submitted=sum(a.who == name for a in answers),
            discarded=_discarded(comparisons, name),
            skipped=_skipped(comparisons, name),
            gold=measured.gold(name),
            self_consistency=measured.self_consistency(name, comparisons),
            with_others=measured.with_others(name),
            first_position=first_position[name],
            length=length[name],
            ties=measured.ties(name),
            median_seconds=median(seconds[name]) if seconds[name] else None,
            reliability=reliability.annotators.get(name) if reliability else None,
        )
        for name in everyone
    }
    warnings = suspicious(by_annotator, has_gold=any(a.gold for a in by_annotator.values()))
    named = frozenset(warning.annotator for warning in warnings)
    regular = [comparison for comparison in comparisons if not comparison.is_probe]
    w, by_chance = measured.kendall_w()
    return Agreement(
        comparisons=len(regular),
        gold_records=sum(comparison.gold_ranks is not None for comparison in comparisons),
        duplicates=sum(comparison.duplicate_of is not None for comparison in comparisons),
        overlapping=sum(len(each) > 1 for each in measured.together.values()),
        alpha_ranks=measured.alpha_of_ranks(),
        alpha_ranks_of_rest=measured.alpha_of_ranks(named)
        if named and len(everyone) > len(named) + 1
        else None,
        alpha_pairs=measured.alpha_of_pairs(),
        kendall_w=w,
        kendall_w_by_chance=by_chance,
        kappa={
            names: kappa
            for names in combinations(everyone, 2)
            if (kappa := measured.kappa(*names)) is not None
        },
        annotators=by_annotator,
        warnings=warnings,
    )


Tested = TypeVar("Tested", FirstPosition, LengthPreference)


def _corrected(found: dict[str, tuple[Tested, float] | None]) -> dict[str, Tested | None]:
    """Figures with their p-values after Holm's correction for the number of annotators."""
    p_values = holm([each[1] if each else None for each in found.values()])
    return {
        name: replace(each[0], p_value=p) if each and p is not None else None
        for (name, each), p in zip(found.items(), p_values, strict=True)
    }


def _discarded(comparisons: Sequence[Comparison], who: str) -> int:
    return sum(r.annotator == who and r.status == "discarded" for c in comparisons for r in c.rankings)


def _skipped(comparisons: Sequence[Comparison], who: str) -> int:
    """Records that were assigned to this annotator or begun, without a ranking or a discard."""
    skipped = 0
    for comparison in comparisons:
        statuses = {r.status for r in comparison.rankings if r.annotator == who and not r.adjudicates}
        skipped += not statuses & {"submitted", "discarded"} and (
            "draft" in statuses or who in (comparison.assigned_to or [])
        )
    return skipped


# --- measuring


@dataclass(frozen=True)
class CountedRanking:
    """One submitted ranking that counts."""

    comparison: Comparison
    who: str
    ranks: list[int]
    seconds: float | None


class _Measured:
    """The answers, arranged by record and by annotator."""

    def __init__(self, answers: list[CountedRanking], clusters: dict[str, int], bootstrap: Bootstrap) -> None:
        self.clusters, self.bootstrap = clusters, bootstrap
        self.of: dict[str, dict[str, CountedRanking]] = defaultdict(dict)
        self.together: dict[str, list[CountedRanking]] = defaultdict(list)
        for answer in answers:
            self.of[answer.who][answer.comparison.id] = answer
            if not answer.comparison.is_probe:
                self.together[answer.comparison.id].append(answer)

    def _by_cluster(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros((self.bootstrap.clusters, *shape))

    def alpha_of_ranks(self, without: frozenset[str] = frozenset()) -> Estimate | None:
        scaled = {
            id_: [(rankdata(a.ranks) - 1) / (len(a.ranks) - 1) for a in answers if a.who not in without]
            for id_, answers in self.together.items()
        }
        domain = sorted({float(v) for each in scaled.values() for values in each for v in values})
        index = {value: i for i, value in enumerate(domain)}
        units = [
            (id_, [index[float(v)] for v in unit])
            for id_, each in scaled.items() for unit in zip(*each, strict=True)
        ]  # fmt: skip
        return self._alpha(units, len(domain), ordinal=True)

    def alpha_of_pairs(self) -> Estimate | None:
        units = [
            (id_, [1 + vote(a.ranks, i, j) for a in answers])
            for id_, answers in self.together.items()
            for i, j in combinations(range(len(answers[0].ranks)), 2)
        ]
        return self._alpha(units, 3, ordinal=False)

    def _alpha(self, units: list[tuple[str, list[int]]], count: int, ordinal: bool) -> Estimate | None:
        units = [(id_, values) for id_, values in units if len(values) > 1]
        added = self._by_cluster((count, count))
        for id_, values in units:
            added[self.clusters[id_]] += coincidences(values, count)
        return self.bootstrap.estimate(
            added.reshape(len(added), -1),
            lambda sums: alpha(sums.reshape(*sums.shape[:-1], count, count), ordinal),
            len(units),
        )

    def kendall_w(self) -> tuple[Estimate | None, float | None]:
        added, chance = self._by_cluster((2,)), []
        for id_, answers in self.together.items():
            if len(answers) > 1 and np.isfinite(w := kendalls_w([a.ranks for a in answers])):
                added[self.clusters[id_]] += (w, 1)
                chance.append(1 / len(answers))
        return self.bootstrap.estimate(added, ratio, len(chance)), float(np.mean(chance)) if chance else None

    def kappa(self, one: str, other: str) -> Estimate | None:
        added, items = self._by_cluster((3, 3)), 0
        for id_, answer in self.of[one].items():
            if id_ in self.together and id_ in self.of[other]:
                for i, j in combinations(range(len(answer.ranks)), 2):
                    ranks = self.of[other][id_].ranks
                    added[self.clusters[id_], 1 + vote(answer.ranks, i, j), 1 + vote(ranks, i, j)] += 1
                    items += 1
        return self.bootstrap.estimate(
            added.reshape(len(added), 9),
            lambda sums: cohens_kappa(sums.reshape(*sums.shape[:-1], 3, 3)),
            items,
        )

    def gold(self, who: str) -> Estimate | None:
        right = pairs = records = 0
        for answer in self.of[who].values():
            known = answer.comparison.gold_ranks
            if known is None or len(set(known)) < 2:
                continue
            records += 1
            for i, j in combinations(range(len(known)), 2):
                if known[i] != known[j]:
                    pairs += 1
                    right += vote(answer.ranks, i, j) == vote(known, i, j)
        return wilson(right / pairs, records) if records else None

    def self_consistency(self, who: str, comparisons: Sequence[Comparison]) -> Estimate | None:
        by_id = {comparison.id: comparison for comparison in comparisons}
        same, pairs, records = 0.0, 0, 0
        for id_, again in self.of[who].items():
            before = self.of[who].get(by_id[id_].duplicate_of or "")
            places = same_responses(again.comparison, before.comparison) if before else None
            if before is None or places is None:
                continue
            records += 1
            for i, j in combinations(range(len(places)), 2):
                pairs += 1
                same += 1 - abs(vote(again.ranks, i, j) - vote(before.ranks, places[i], places[j])) / 2
        return wilson(same / pairs, records) if records else None

    def with_others(self, who: str) -> Estimate | None:
        added, items = self._by_cluster((2,)), 0
        for id_, answers in self.together.items():
            if who not in {a.who for a in answers}:
                continue
            own = self.of[who][id_].ranks
            for i, j in combinations(range(len(own)), 2):
                votes = [vote(a.ranks, i, j) for a in answers if a.who != who]
                strict = [each for each in votes if each] if vote(own, i, j) else []
                added[self.clusters[id_]] += (strict.count(vote(own, i, j)), len(strict))
                items += bool(strict)
        return self.bootstrap.estimate(added, ratio, items)

    def first_position(self, who: str) -> tuple[FirstPosition, float] | None:
        count, chances = 0, []
        for answer in self.of[who].values():
            best = answer.ranks.count(min(answer.ranks))
            if answer.comparison.display_order is None or best == len(answer.ranks):
                continue
            count += answer.ranks[answer.comparison.display_order[0]] == min(answer.ranks)
            chances.append(best / len(answer.ranks))
        if not chances:
            return None
        figures = FirstPosition(wilson(count / len(chances), len(chances)), float(np.mean(chances)), 1.0)
        return figures, two_sided_poisson_binomial(count, chances)

    def length_preference(self, who: str) -> tuple[LengthPreference, float] | None:
        added, items = (
            self._by_cluster((4,)),
            0,
        )  # longer and all of this annotator's pairs, longer and all of the others' pairs
        for name, answers in self.of.items():
            column = 0 if name == who else 2
            for id_, answer in answers.items():
                sizes = [len(response.text) for response in answer.comparison.responses]
                for i, j in combinations(range(len(sizes)), 2):
                    better = vote(answer.ranks, i, j)
                    if better and sizes[i] != sizes[j]:
                        longer = better == np.sign(sizes[i] - sizes[j])
                        added[self.clusters[id_], column : column + 2] += (longer, 1)
                        items += name == who

        def excess(sums: np.ndarray) -> np.ndarray:
            return ratio(sums[..., :2]) - ratio(sums[..., 2:])

        share = self.bootstrap.estimate(added[:, :2], ratio, items)
        difference = self.bootstrap.estimate(added, excess, items)
        if share is None or difference is None:
            return None
        total = added.sum(axis=0)
        left_out = excess(total - added[added.any(axis=1)])
        m = len(left_out)
        error = np.sqrt((m - 1) / m * ((left_out - left_out.mean()) ** 2).sum())
        p = 2 * norm.sf(abs(difference.value) / error) if error > 0 else float(difference.value == 0)
        return LengthPreference(share, float(ratio(total[2:])), difference, 1.0), float(p)

    def ties(self, who: str) -> float | None:
        votes = [
            vote(a.ranks, i, j)
            for a in self.of[who].values()
            for i, j in combinations(range(len(a.ranks)), 2)
        ]
        return votes.count(0) / len(votes) if votes else None
