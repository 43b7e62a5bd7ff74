"""The figures of agreement as one would write them down: a loop over annotators and comparisons for each of them.

An oracle for feedback/belief/measures.py, which counts over arrays. Nothing here is fast.
"""

from collections import defaultdict
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import norm, rankdata

from accord.records import Comparison, Ranking, conversation_id
from accord.statistics import CONFIDENCE, FEWEST_CLUSTERS, RESAMPLES, Estimate, holm, wilson
from feedback.belief.coefficients import alpha, cohens_kappa, coincidences, kendalls_w, ratio
from feedback.belief.rankings import counts, same_responses, vote


class Plain:
    """All figures, by annotator where they are an annotator's."""

    def __init__(self, comparisons: list[Comparison], seed: int = 0) -> None:
        self.comparisons = comparisons
        self.by_id = {each.id: each for each in comparisons}
        clusters: dict[str, int] = {}
        self.cluster = {
            each.id: clusters.setdefault(conversation_id(each.prompt), len(clusters)) for each in comparisons
        }
        n = len(clusters)
        self.times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float)
        self.of: dict[str, dict[str, Ranking]] = defaultdict(dict)
        for comparison in comparisons:
            for ranking in comparison.rankings:
                if counts(ranking):
                    self.of[ranking.annotator][comparison.id] = ranking
        self.together = {
            each.id: [r for r in each.rankings if counts(r)] for each in comparisons if not each.is_probe
        }

    def estimate(self, added: np.ndarray, statistic: Any, items: int) -> Estimate | None:
        total = added.sum(axis=0)
        with np.errstate(all="ignore"):
            value = float(statistic(total))
            if not np.isfinite(value):
                return None
            involved = added.any(axis=1)
            if involved.sum() < FEWEST_CLUSTERS:
                return Estimate(value, None, None, items)
            resampled, left_out = statistic(self.times @ added), statistic(total - added[involved])
        resampled, left_out = resampled[np.isfinite(resampled)], left_out[np.isfinite(left_out)]
        if np.ptp(resampled) < 1e-12:
            return Estimate(value, value, value, items)
        pull = left_out.mean() - left_out
        spread = (pull**2).sum() ** 1.5
        acceleration = (pull**3).sum() / (6 * spread) if spread > 0 else 0.0
        below = ((resampled < value).mean() + (resampled <= value).mean()) / 2
        bias = norm.ppf(np.clip(below, 1 / len(resampled), 1 - 1 / len(resampled)))
        limits = bias + norm.ppf([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        low, high = np.quantile(resampled, norm.cdf(bias + limits / (1 - acceleration * limits)))
        return Estimate(value, float(low), float(high), items)

    def zeros(self, *shape: int) -> np.ndarray:
        return np.zeros((self.times.shape[1], *shape))

    def alpha(self, ordinal: bool, without: frozenset[str] = frozenset()) -> Estimate | None:
        units = []
        for id_, rankings in self.together.items():
            kept = [r.ranks or [] for r in rankings if r.annotator not in without]
            if ordinal:
                scaled = [((rankdata(ranks) - 1) / (len(ranks) - 1)).tolist() for ranks in kept]
                units += [(id_, list(unit)) for unit in zip(*scaled, strict=True)]
            elif kept:
                pairs = combinations(range(len(kept[0])), 2)
                units += [(id_, [vote(ranks, i, j) for ranks in kept]) for i, j in pairs]
        domain = sorted({value for _, values in units for value in values})
        units = [(id_, values) for id_, values in units if len(values) > 1]
        v = len(domain)
        added = self.zeros(v, v)
        for id_, values in units:
            added[self.cluster[id_]] += coincidences([domain.index(value) for value in values], v)
        return self.estimate(
            added.reshape(-1, v * v), lambda s: alpha(s.reshape(*s.shape[:-1], v, v), ordinal), len(units)
        )

    def kendall_w(self) -> tuple[Estimate | None, float]:
        added, chance = self.zeros(2), []
        for id_, rankings in self.together.items():
            if len(rankings) > 1 and np.isfinite(w := kendalls_w([r.ranks or [] for r in rankings])):
                added[self.cluster[id_]] += (w, 1)
                chance.append(1 / len(rankings))
        return self.estimate(added, ratio, len(chance)), float(np.mean(chance))

    def kappa(self, one: str, other: str) -> Estimate | None:
        added, items = self.zeros(3, 3), 0
        for id_ in self.of[one].keys() & self.of[other].keys() & self.together.keys():
            a, b = self.of[one][id_].ranks or [], self.of[other][id_].ranks or []
            for i, j in combinations(range(len(a)), 2):
                added[self.cluster[id_], 1 + vote(a, i, j), 1 + vote(b, i, j)] += 1
                items += 1
        return self.estimate(
            added.reshape(-1, 9), lambda s: cohens_kappa(s.reshape(*s.shape[:-1], 3, 3)), items
        )

    def gold(self, who: str) -> Estimate | None:
        right, records = [], 0
        for id_, ranking in self.of[who].items():
            known = self.by_id[id_].gold_ranks
            if known and len(set(known)) > 1:
                records += 1
                right += [
                    vote(ranking.ranks or [], i, j) == vote(known, i, j)
                    for i, j in combinations(range(len(known)), 2)
                    if known[i] != known[j]
                ]
        return wilson(float(np.mean(right)), records) if records else None

    def self_consistency(self, who: str) -> Estimate | None:
        same, records = [], 0
        for id_, again in self.of[who].items():
            before = self.of[who].get(self.by_id[id_].duplicate_of or "")
            if before is None:
                continue
            places = same_responses(self.by_id[id_], self.by_id[self.by_id[id_].duplicate_of or ""])
            if places is None:
                continue
            records += 1
            for i, j in combinations(range(len(places)), 2):
                then = vote(before.ranks or [], places[i], places[j])
                same.append(1 - abs(vote(again.ranks or [], i, j) - then) / 2)
        return wilson(float(np.mean(same)), records) if records else None

    def with_others(self, who: str) -> Estimate | None:
        added, items = self.zeros(2), 0
        for id_, rankings in self.together.items():
            if id_ not in self.of[who]:
                continue
            own = self.of[who][id_].ranks or []
            for i, j in combinations(range(len(own)), 2):
                votes = [vote(r.ranks or [], i, j) for r in rankings if r.annotator != who]
                strict = [each for each in votes if each] if vote(own, i, j) else []
                added[self.cluster[id_]] += (strict.count(vote(own, i, j)), len(strict))
                items += bool(strict)
        return self.estimate(added, ratio, items)

    def length(self, who: str) -> tuple[Estimate, float, Estimate, float] | None:
        added, items = self.zeros(4), 0
        for name, rankings in self.of.items():
            column = 0 if name == who else 2
            for id_, ranking in rankings.items():
                sizes = [len(response.text) for response in self.by_id[id_].responses]
                for i, j in combinations(range(len(sizes)), 2):
                    better = vote(ranking.ranks or [], i, j)
                    if better and sizes[i] != sizes[j]:
                        longer = better == np.sign(sizes[i] - sizes[j])
                        added[self.cluster[id_], column : column + 2] += (longer, 1)
                        items += name == who

        def excess(sums: np.ndarray) -> np.ndarray:
            return ratio(sums[..., :2]) - ratio(sums[..., 2:])

        share, difference = (
            self.estimate(added[:, :2], ratio, items),
            self.estimate(added, excess, items),
        )
        if share is None or difference is None:
            return None
        total = added.sum(axis=0)
        left_out = excess(total - added[added.any(axis=1)])
        m = len(left_out)
        error = np.sqrt((m - 1) / m * ((left_out - left_out.mean()) ** 2).sum())
        p = 2 * norm.sf(abs(difference.value) / error) if error > 0 else float(difference.value == 0)
        return share, float(ratio(total[2:])), difference, float(p)

    def first_position(self, who: str) -> tuple[float, float, float] | None:
        hits, chances = 0, []
        for id_, ranking in self.of[who].items():
            ranks, order = ranking.ranks or [], self.by_id[id_].display_order
            best = ranks.count(min(ranks))
            if order is not None and best < len(ranks):
                hits += ranks[order[0]] == min(ranks)
                chances.append(best / len(ranks))
        if not chances:
            return None
        distribution = np.ones(1)
        for p in chances:
            distribution = np.convolve(distribution, [1 - p, p])
        tail = min(distribution[: hits + 1].sum(), distribution[hits:].sum())
        return hits / len(chances), float(np.mean(chances)), float(min(1.0, 2 * tail))

    def ties(self, who: str) -> float | None:
        votes = [
            vote(r.ranks or [], i, j)
            for r in self.of[who].values()
            for i, j in combinations(range(len(r.ranks or [])), 2)
        ]
        return votes.count(0) / len(votes) if votes else None

    def median_seconds(self, who: str) -> float | None:
        seconds = [r.seconds for r in self.of[who].values() if r.seconds is not None]
        return median(seconds) if seconds else None

    def skipped(self, who: str) -> int:
        found = 0
        for comparison in self.comparisons:
            statuses = {r.status for r in comparison.rankings if r.annotator == who and not r.adjudicates}
            asked = "draft" in statuses or who in (comparison.assigned_to or [])
            found += asked and not statuses & {"submitted", "discarded"}
        return found

    def corrected(self, p_values: list[float | None]) -> list[float | None]:
        return holm(p_values)
