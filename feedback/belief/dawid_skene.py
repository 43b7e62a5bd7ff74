"""Dawid and Skene's (1979) model of labels: every annotator has a rate of taking each true label for each other.

    labels = [("c-1:0,1", "ann-1", "first"), ("c-1:0,1", "ann-2", "tie"), ...]
    dawid_skene(labels).probabilities["c-1:0,1"]["first"]

Maximum likelihood by EM from the majority's shares, without priors: A. P. Dawid and A. M. Skene, "Maximum likelihood
estimation of observer error-rates using the EM algorithm", Applied Statistics 28 (1979).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import sparse

from accord.records import Comparison
from feedback.belief.rankings import counts, vote

LABELS = {1: "first", 0: "tie", -1: "second"}
SMALLEST = 1e-10
"""Probabilities and counts are kept from zero, so that their logarithms exist."""


@dataclass(frozen=True)
class DawidSkene:
    """The fitted model: tasks, annotators and labels by name."""

    probabilities: dict[str, dict[str, float]]
    """By task: the probability of each label being the true one."""
    confusion: dict[str, dict[str, dict[str, float]]]
    """By annotator, true label and given label: how probable that answer is."""
    prevalence: dict[str, float]
    """How frequent each true label is."""
    iterations: int


def dawid_skene(
    labels: Sequence[tuple[str, str, str]], max_iterations: int = 1_000, tolerance: float = 1e-9
) -> DawidSkene:
    """Fit the model by EM.

    Args:
        labels: (task, annotator, label) triples.
        max_iterations: after so many it ends in any case.
        tolerance: it ends when no task's probability changes by more.

    Raises:
        ValueError: there are no labels.
    """
    if not labels:
        raise ValueError("Dawid and Skene's model needs at least one label")
    (tasks, t), (annotators, a), (values, v) = (
        np.unique(np.array(column), return_inverse=True) for column in zip(*labels, strict=True)
    )
    shape = (len(annotators), len(values), len(values))  # [annotator, given, true]
    votes = np.bincount(t * len(values) + v, minlength=len(tasks) * len(values)).reshape(len(tasks), -1)
    probabilities = votes / votes.sum(axis=1, keepdims=True)
    columns = (len(tasks), len(annotators) * len(values))
    given = sparse.coo_array((np.ones(len(t)), (t, a * len(values) + v)), shape=columns).tocsr()
    by_answer = given.T.tocsr()  # [annotators x given, tasks]
    iterations = 0
    while iterations < max_iterations:
        iterations += 1
        prevalence, confusion = _maximise(probabilities, by_answer, shape)
        logs = np.log(np.maximum(prevalence, SMALLEST)) + given @ np.log(confusion).reshape(-1, len(values))
        logs = np.exp(logs - logs.max(axis=1, keepdims=True))
        before, probabilities = probabilities, logs / logs.sum(axis=1, keepdims=True)
        if np.abs(probabilities - before).max() < tolerance:
            break
    prevalence, confusion = _maximise(probabilities, by_answer, shape)

    def named(row: np.ndarray) -> dict[str, float]:
        return dict(zip(values.tolist(), row.tolist(), strict=True))

    return DawidSkene(
        probabilities={str(task): named(row) for task, row in zip(tasks, probabilities, strict=True)},
        confusion={
            str(annotator): {
                str(true): named(matrix[:, i]) for i, true in enumerate(values)
            }
            for annotator, matrix in zip(annotators, confusion, strict=True)
        },
        prevalence=named(prevalence),
        iterations=iterations,
    )  # fmt: skip


def _maximise(
    probabilities: np.ndarray, by_answer: sparse.csr_array, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The M-step: the labels' prevalence, and every annotator's P(given | true) [annotator, given, true]."""
    counts = np.maximum((by_answer @ probabilities).reshape(shape), SMALLEST)
    return probabilities.mean(axis=0), counts / counts.sum(axis=1, keepdims=True)


def pair_labels(comparisons: Sequence[Comparison]) -> list[tuple[str, str, str]]:
    """Submitted rankings as labels of pairs: "first", "tie" or "second" for the task `<comparison>:<i>,<j>`, i < j.

    Probes and adjudications are left out.
    """
    return [
        (f"{comparison.id}:{i},{j}", ranking.annotator, LABELS[vote(ranking.ranks, i, j)])
        for comparison in comparisons
        if not comparison.is_probe
        for ranking in comparison.rankings
        if counts(ranking) and ranking.ranks is not None
        for i, j in combinations(range(len(ranking.ranks)), 2)
    ]
