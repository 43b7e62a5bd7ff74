"""Each figure of agreement as sums over counted rankings, with its interval or its test.

measured = Measured(counted, Bootstrap(counted.clusters))
measured.alpha_of_ranks()       # an Estimate
measured.gold()                 # of every annotator, in the order of counted.names
"""

from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
from jaxtyping import Int, Num
from scipy.stats import norm

from accord.statistics import (
    FEWEST_CLUSTERS,
    Bootstrap,
    Estimate,
    interval,
    two_sided_poisson_binomial,
    wilson,
)
from feedback.belief.coefficients import alpha, cohens_kappa, ratio
from feedback.belief.counted import CountedRankings, summed
from feedback.belief.figures import FirstPosition, LengthPreference
from feedback.belief.rankings import same_responses, vote

NUMBERS = 1 << 20
"""Worked on at a time, where each of many units has a table."""


class Measured:
    """The figures of counted rankings; those of annotators are in the order of their names."""

    def __init__(self, counted: CountedRankings, bootstrap: Bootstrap) -> None:
        self.counted, self.bootstrap = counted, bootstrap
        self.together = np.bincount(counted.record[counted.asked], minlength=len(counted.comparisons))
        """How many rankings each comparison has that is no probe."""

    def alpha_of_ranks(self, without: frozenset[str] = frozenset()) -> Estimate | None:
        """Krippendorff's alpha of scaled mid-ranks, by response."""
        c = self.counted
        kept = (c.asked & ~np.isin(c.who, [i for i, name in enumerate(c.names) if name in without]))[
            c.ranking_of_value
        ]
        scaled = (c.middle - 1) / (c.size[c.ranking_of_value] - 1)
        domain, values = np.unique(scaled[kept], return_inverse=True)
        return self._alpha(c.response[kept], c.ranking_of_value[kept], values, len(domain), ordinal=True)

    def alpha_of_pairs(self) -> Estimate | None:
        """Krippendorff's alpha of first, tie and second, by pair of responses."""
        c = self.counted
        kept = c.asked[c.ranking_of_vote]
        return self._alpha(c.pair[kept], c.ranking_of_vote[kept], 1 + c.votes[kept], 3, ordinal=False)

    def _alpha(
        self, unit: np.ndarray, ranking: np.ndarray, values: np.ndarray, count: int, ordinal: bool
    ) -> Estimate | None:
        """Alpha of values in 0 ... count - 1; a unit adds each ordered pair of its m values with 1 / (m - 1)."""
        if not len(unit):
            return None
        units, first, number = np.unique(unit, return_index=True, return_inverse=True)
        clusters = self.counted.cluster[ranking[first]]
        n = np.bincount(number * count + values, minlength=len(units) * count).reshape(-1, count)
        several = n.sum(axis=1) > 1
        n, clusters = n[several].astype(float), clusters[several]
        added = np.zeros((self.bootstrap.clusters, count**2))
        block = max(1, NUMBERS // max(1, count**2))
        for start in range(0, len(n), block):
            of = n[start : start + block]
            pairs = of[:, :, None] * of[:, None, :] - of[:, :, None] * np.eye(count)
            pairs /= of.sum(axis=1)[:, None, None] - 1
            added += self.counted.by_prompt(clusters[start : start + block], pairs.reshape(len(of), -1))
        return self.bootstrap.estimate(
            added, lambda sums: alpha(sums.reshape(*sums.shape[:-1], count, count), ordinal), len(n)
        )

    def kendall_w(self) -> tuple[Estimate | None, float | None]:
        """W = 12 S / (m^2 (k^3 - k) - m sum (t^3 - t)), as in `coefficients.kendalls_w`, of every record."""
        c = self.counted
        kept = c.asked[c.ranking_of_value]
        sums = np.bincount(c.response[kept], c.middle[kept], c.first_response[-1])
        k = np.diff(c.first_response)
        m = self.together
        deviations = sums - np.repeat(m * (k + 1) / 2, k)
        record_of_response = np.repeat(np.arange(len(k)), k)
        squares = np.bincount(record_of_response, deviations**2, len(k))
        # each of t tied responses adds t^2 - 1 of the group's t^3 - t
        ties = np.bincount(c.record[c.ranking_of_value[kept]], c.tied[kept] ** 2 - 1, len(k))
        possible = m**2 * (k.astype(float) ** 3 - k) - m * ties
        at = np.flatnonzero((m > 1) & (possible > 0))
        if not len(at):
            return None, None
        w = 12 * squares[at] / possible[at]
        added = c.by_prompt(c.cluster_of[at], np.column_stack([w, np.ones(len(w))]))
        return self.bootstrap.estimate(added, ratio, len(at)), float(np.mean(1 / m[at]))

    def kappa(self) -> dict[tuple[str, str], Estimate]:
        """Of each two annotators with records in common."""
        c = self.counted
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for together in _answered_together(c, self.together):
            found += [
                self._confusions(together[:, pair]) for pair in combinations(range(together.shape[1]), 2)
            ]
        if not found:
            return {}
        pairs, clusters, tables = summed(*(np.concatenate(each) for each in zip(*found, strict=True)))
        keys, starts = np.unique(pairs, return_index=True)
        totals = np.add.reduceat(tables, starts, axis=0)
        with np.errstate(all="ignore"):
            values = cohens_kappa(totals.reshape(-1, 3, 3))
        kappas = {}
        for key, value, total, (start, end) in zip(
            keys.tolist(), values.tolist(), totals, pairwise([*starts.tolist(), len(pairs)]), strict=True
        ):
            if np.isfinite(value):
                items = int(total.sum())
                estimate: Estimate | None = Estimate(value, None, None, items)
                if end - start >= FEWEST_CLUSTERS:
                    estimate = self.bootstrap.estimate(
                        tables[start:end],
                        lambda sums: cohens_kappa(sums.reshape(*sums.shape[:-1], 3, 3)),
                        items,
                        clusters[start:end],
                    )
                if estimate:
                    kappas[c.names[key // len(c.names)], c.names[key % len(c.names)]] = estimate
        return kappas

    def _confusions(
        self, rankings: Int[np.ndarray, "records 2"]
    ) -> tuple[Int[np.ndarray, " records"], Int[np.ndarray, " records"], Num[np.ndarray, "records 9"]]:
        """Of two rankings of each record, equally many responses each: the annotators as one number, the prompt, and
        how often which labels of a pair met."""
        c = self.counted
        k = int(c.size[rankings[0, 0]])
        votes = c.votes[c.first_vote[rankings, None] + np.arange(k * (k - 1) // 2)].astype(
            int
        )  # [records, 2, pairs]
        cells = 9 * np.arange(len(rankings))[:, None] + 3 * (1 + votes[:, 0]) + 1 + votes[:, 1]
        tables = np.bincount(cells.ravel(), minlength=9 * len(rankings)).reshape(-1, 9)
        whose = c.who[rankings]
        return whose[:, 0] * len(c.names) + whose[:, 1], c.cluster[rankings[:, 0]], tables.astype(np.int16)

    def gold(self) -> list[Estimate | None]:
        """The share of gold pairs ordered as known."""
        c = self.counted
        known = np.zeros(c.first_pair[-1], np.int8)
        informative = np.zeros(len(c.comparisons), bool)
        for record, comparison in enumerate(c.comparisons):
            ranks = comparison.gold_ranks
            if ranks is not None and len(set(ranks)) > 1:
                informative[record] = True
                known[c.first_pair[record] : c.first_pair[record + 1]] = [
                    vote(ranks, i, j) for i, j in combinations(range(len(ranks)), 2)
                ]
        of_vote = known[c.pair]
        pairs = c.count(c.ranking_of_vote[of_vote != 0])
        right = c.count(c.ranking_of_vote[(of_vote != 0) & (of_vote == c.votes)])
        records = c.count(np.flatnonzero(informative[c.record]))
        return [wilson(r / p, n) if n else None for r, p, n in zip(right, pairs, records, strict=True)]

    def self_consistency(self) -> list[Estimate | None]:
        """The share of pairs of duplicates ordered as in the original."""
        c = self.counted
        by_id = {comparison.id: comparison for comparison in c.comparisons}
        is_duplicate = np.array([comparison.duplicate_of is not None for comparison in c.comparisons], bool)
        found = np.zeros((len(c.names), 3))  # half agreements count half; pairs; records
        for again in np.flatnonzero(is_duplicate[c.record]):
            who, duplicate = int(c.who[again]), c.comparisons[c.record[again]]
            original = by_id.get(duplicate.duplicate_of or "")
            before = c.place.get((who, duplicate.duplicate_of or ""))
            places = same_responses(duplicate, original) if original and before is not None else None
            if before is None or places is None:
                continue
            found[who, 2] += 1
            for i, j in combinations(range(len(places)), 2):
                now, then = vote(c.ranks[again], i, j), vote(c.ranks[before], places[i], places[j])
                found[who, :2] += (1 - abs(now - then) / 2, 1)
        return [wilson(float(same / pairs), int(n)) if n else None for same, pairs, n in found]

    def with_others(self) -> list[Estimate | None]:
        """Of pairs that an annotator and another order strictly, the share that both order alike."""
        c = self.counted
        kept = np.flatnonzero((c.votes != 0) & c.asked[c.ranking_of_vote])
        votes, pair, ranking = c.votes[kept], c.pair[kept], c.ranking_of_vote[kept]
        better, worse = (np.bincount(pair[votes == sign], minlength=c.first_pair[-1]) for sign in (1, -1))
        alike = np.where(votes > 0, better[pair], worse[pair]) - 1
        others = better[pair] + worse[pair] - 1
        items = c.count(ranking[others > 0])
        of_annotators = c.of_annotators(ranking, np.column_stack([alike, others]))
        return [
            self.bootstrap.estimate(sums, ratio, count, clusters)
            for (clusters, sums), count in zip(of_annotators, items, strict=True)
        ]

    def first_position(self) -> list[tuple[FirstPosition, float] | None]:
        """How often what stood first was ranked best, and the exact test's p-value."""
        c = self.counted
        seen: list[list[tuple[bool, float]]] = [[] for _ in c.names]
        for who, record, ranks in zip(c.who.tolist(), c.record.tolist(), c.ranks, strict=True):
            order, best = c.comparisons[record].display_order, ranks.count(min(ranks))
            if order is not None and best < len(ranks):
                seen[who].append((ranks[order[0]] == min(ranks), best / len(ranks)))
        found: list[tuple[FirstPosition, float] | None] = []
        for each in seen:
            count, chances = sum(hit for hit, _ in each), [chance for _, chance in each]
            if not each:
                found.append(None)
                continue
            figures = FirstPosition(wilson(count / len(each), len(each)), float(np.mean(chances)), 1.0)
            found.append((figures, two_sided_poisson_binomial(count, chances)))
        return found

    def length_preference(self) -> list[tuple[LengthPreference, float] | None]:
        """Each annotator's pairs, and those of all the others: all pairs, less this annotator's."""
        c = self.counted
        lengths = np.array([len(r.text) for each in c.comparisons for r in each.responses], int)
        difference = np.sign(lengths[c.one] - lengths[c.other])
        kept = np.flatnonzero((c.votes != 0) & (difference != 0))
        ranking = c.ranking_of_vote[kept]
        values = np.column_stack([c.votes[kept] == difference[kept], np.ones(len(kept), bool)])
        everyone = _EverybodysPairs(c.by_prompt(c.cluster[ranking], values), self.bootstrap)
        return [everyone.against(own, clusters) for clusters, own in c.of_annotators(ranking, values)]

    def ties(self) -> list[float | None]:
        """The share of pairs tied."""
        c = self.counted
        every, tied = c.count(c.ranking_of_vote), c.count(c.ranking_of_vote[c.votes == 0])
        return [t / n if n else None for t, n in zip(tied, every, strict=True)]

    def median_seconds(self) -> list[float | None]:
        """Of the rankings whose time is known."""
        c = self.counted
        known = np.flatnonzero(~np.isnan(c.seconds))
        known = known[np.argsort(c.who[known], kind="stable")]
        ends = np.searchsorted(c.who[known], np.arange(len(c.names) + 1))
        return [
            float(np.median(c.seconds[known[start:end]])) if end > start else None
            for start, end in pairwise(ends.tolist())
        ]


class _EverybodysPairs:
    """How often the longer response is the better one, by everybody and prompt (longer, all)."""

    def __init__(self, by_prompt: np.ndarray, bootstrap: Bootstrap) -> None:
        self.by_prompt, self.bootstrap = by_prompt, bootstrap
        self.total = by_prompt.sum(axis=0)
        involved = np.flatnonzero(by_prompt[:, 1])
        self.resampled = bootstrap.sums(by_prompt[involved], involved)
        # prompts with the same counts are one, as far as leaving one out goes
        self.kinds, self.kind = np.unique(by_prompt, axis=0, return_inverse=True)
        self.prompts = np.where(self.kinds[:, 1] > 0, np.bincount(self.kind, minlength=len(self.kinds)), 0)

    def against(self, own: np.ndarray, clusters: np.ndarray) -> tuple[LengthPreference, float] | None:
        """One annotator's preference, and its p-value by the jackknife's standard error."""
        total = np.concatenate([own.sum(axis=0), self.total - own.sum(axis=0)])

        def excess(sums: np.ndarray) -> np.ndarray:
            return ratio(sums[..., :2]) - ratio(sums[..., 2:])

        share = self.bootstrap.estimate(own, ratio, int(total[1]), clusters)
        value = float(excess(total))
        if share is None or not np.isfinite(value):
            return None
        here = np.column_stack([own, self.by_prompt[clusters] - own])
        elsewhere = np.column_stack([np.zeros_like(self.kinds), self.kinds])
        counts = self.prompts - np.bincount(self.kind[clusters], minlength=len(self.kinds))
        left_out = excess(total - np.concatenate([here, elsewhere]))
        counts = np.concatenate([np.ones(len(here), int), counts])
        left_out, counts = left_out[counts > 0], counts[counts > 0]
        difference = Estimate(value, None, None, share.items)
        m = counts.sum()
        if m >= FEWEST_CLUSTERS:
            resampled = self.bootstrap.sums(own, clusters)
            resampled = excess(np.column_stack([resampled, self.resampled - resampled]))
            difference = interval(value, resampled, left_out, share.items, counts)
        mean = (counts * left_out).sum() / m
        error = np.sqrt((m - 1) / m * (counts * (left_out - mean) ** 2).sum())
        p = 2 * norm.sf(abs(value) / error) if error > 0 else float(value == 0)
        return LengthPreference(share, float(ratio(total[2:])), difference, 1.0), float(p)


def _answered_together(
    c: CountedRankings, together: np.ndarray
) -> Iterator[Int[np.ndarray, "records rankings"]]:
    """The rankings of the comparisons that are no probes, in blocks of equally many responses and rankings each."""
    kept = np.flatnonzero(c.asked)
    kept = kept[np.lexsort((c.who[kept], c.record[kept]))]
    m, k = together[c.record[kept]], c.size[kept]
    for rankings, responses in sorted({*zip(m.tolist(), k.tolist(), strict=True)}):
        if rankings > 1:
            yield kept[(m == rankings) & (k == responses)].reshape(-1, rankings)
