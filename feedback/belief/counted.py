"""The rankings that count, as long arrays: what every figure of agreement is a sum over.

    counted = CountedRankings(comparisons)
    counted.votes                   # of every ranking and pair of responses: 1, 0 or -1
    counted.names[counted.who[counted.ranking_of_vote]]             # whose they are

A comparison of k responses has k of them and k (k - 1) / 2 pairs, numbered through all comparisons, so sums over
annotators, pairs or prompts are counts of numbers (`numpy.bincount`), and nothing is as large as annotators times
comparisons.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int, Num
from scipy import sparse

from accord.records import Comparison, Ranking, conversation_id
from feedback.belief.rankings import counts


class CountedRankings:
    """A rankings, V votes (one a ranking and pair of responses), and as many values as responses were ranked.

    Of an annotator who ranked a comparison twice the last ranking counts.
    """

    def __init__(self, comparisons: Sequence[Comparison]) -> None:
        """Arrange the rankings of these comparisons."""
        self.comparisons = comparisons
        self.names = sorted({r.annotator for c in comparisons for r in c.rankings if not r.adjudicates})
        number = {name: i for i, name in enumerate(self.names)}
        prompts: dict[str, int] = {}
        self.cluster_of = np.array(
            [prompts.setdefault(conversation_id(each.prompt), len(prompts)) for each in comparisons], int
        )
        self.clusters = len(prompts)
        self.place: dict[tuple[int, str], int] = {}
        """By annotator and comparison, which ranking it is."""
        given: list[Ranking] = []
        records: list[int] = []
        for record, comparison in enumerate(comparisons):
            for name, ranking in {
                each.annotator: each for each in comparison.rankings if counts(each)
            }.items():
                self.place[number[name], comparison.id] = len(given)
                given.append(ranking)
                records.append(record)
        self.ranks = [ranking.ranks or [] for ranking in given]
        self.record = np.array(records, int)  # [A]
        self.who = np.array([number[ranking.annotator] for ranking in given], int)
        self.cluster = self.cluster_of[self.record]
        self.asked = np.array([not comparisons[record].is_probe for record in records], bool)
        """Whether the comparison is no probe."""
        self.seconds = np.array([np.nan if r.seconds is None else r.seconds for r in given], float)
        self._lay_out(np.array([len(comparison.responses) for comparison in comparisons], int))

    def _lay_out(self, sizes: Int[np.ndarray, " comparisons"]) -> None:
        self.first_response = np.concatenate([[0], np.cumsum(sizes)])
        self.first_pair = np.concatenate([[0], np.cumsum(sizes * (sizes - 1) // 2)])
        self.size = sizes[self.record]  # [A]
        self.first_vote = np.concatenate([[0], np.cumsum(self.size * (self.size - 1) // 2)])
        first_value = np.concatenate([[0], np.cumsum(self.size)])
        votes = int(self.first_vote[-1])
        self.votes = np.empty(votes, np.int8)
        self.ranking_of_vote, self.pair = np.empty(votes, int), np.empty(votes, int)
        self.one, self.other = np.empty(votes, int), np.empty(votes, int)
        """The responses of the vote's pair."""
        values = int(first_value[-1])
        self.middle, self.tied = np.empty(values), np.empty(values)
        """Of every response in every ranking: its mid-rank, and how many share it."""
        self.ranking_of_value, self.response = np.empty(values, int), np.empty(values, int)
        for k in np.unique(self.size).tolist():
            at = np.flatnonzero(self.size == k)
            ranks = np.array([self.ranks[i] for i in at])  # [rankings, k]
            first, second = np.triu_indices(k, 1)
            places = self.first_vote[at, None] + np.arange(len(first))
            self.votes[places] = np.sign(ranks[:, second] - ranks[:, first])
            self.ranking_of_vote[places] = at[:, None]
            self.pair[places] = self.first_pair[self.record[at], None] + np.arange(len(first))
            response = self.first_response[self.record[at], None] + np.arange(k)
            self.one[places], self.other[places] = response[:, first], response[:, second]
            places = first_value[at, None] + np.arange(k)
            before = (ranks[:, :, None] > ranks[:, None, :]).sum(axis=2)
            self.tied[places] = tied = (ranks[:, :, None] == ranks[:, None, :]).sum(axis=2)
            self.middle[places] = before + (tied + 1) / 2
            self.ranking_of_value[places], self.response[places] = at[:, None], response

    def by_prompt(
        self, clusters: Int[np.ndarray, " items"], values: Num[np.ndarray, "items figures"]
    ) -> Float[np.ndarray, "clusters figures"]:
        """The sums of some items' values by prompt."""
        rows = np.arange(len(clusters))
        shape = (max(1, self.clusters), len(clusters))
        return np.asarray(
            sparse.csr_array((np.ones(len(clusters)), (clusters, rows)), shape=shape) @ values, float
        )

    def of_annotators(
        self, rankings: Int[np.ndarray, " items"], values: Num[np.ndarray, "items figures"]
    ) -> Iterator[tuple[Int[np.ndarray, " own"], Float[np.ndarray, "own figures"]]]:
        """For each annotator the prompts of his rankings, each once, and the sums of the items' values by prompt."""
        whose, clusters, sums = summed(self.who[rankings], self.cluster[rankings], values)
        for start, end in pairwise(np.searchsorted(whose, np.arange(len(self.names) + 1)).tolist()):
            yield clusters[start:end], sums[start:end]

    def count(self, rankings: Int[np.ndarray, " items"]) -> list[int]:
        """How many of these items each annotator has."""
        return np.bincount(self.who[rankings], minlength=len(self.names)).tolist()


def summed(
    first: Int[np.ndarray, " items"],
    second: Int[np.ndarray, " items"],
    values: Num[np.ndarray, "items figures"],
) -> tuple[Int[np.ndarray, " keys"], Int[np.ndarray, " keys"], Float[np.ndarray, "keys figures"]]:
    """The different pairs of numbers, in order, and the sums of the values of each."""
    if not len(first):
        return first, second, np.zeros((0, values.shape[1]))
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    is_new = (np.diff(first, prepend=-1) != 0) | (np.diff(second, prepend=-1) != 0)
    starts = np.flatnonzero(is_new)
    return first[starts], second[starts], np.add.reduceat(values[order].astype(float), starts, axis=0)
