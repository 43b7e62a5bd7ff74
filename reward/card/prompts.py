"""Figures of rows whose 95% intervals resample whole prompts."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from accord.records import Message, conversation_id
from accord.statistics import Bootstrap, Estimate, wilson
from feedback.belief.coefficients import ratio


class Prompts:
    """Which prompt each row belongs to, and figures of rows whose intervals resample whole prompts."""

    def __init__(self, prompts: Sequence[Sequence[Message]]) -> None:
        """Number the prompts by their content, so that the order of rows changes nothing."""
        ids = [conversation_id(prompt) for prompt in prompts]
        place = {id_: i for i, id_ in enumerate(sorted(set(ids)))}
        self.count = len(place)
        self.of = np.array([place[id_] for id_ in ids], dtype=int)
        """The number of each row's prompt [rows]."""
        self._bootstrap = Bootstrap(self.count)

    def estimate(
        self,
        contributions: np.ndarray,
        statistic: Callable[[np.ndarray], np.ndarray],
        rows: np.ndarray | None = None,
    ) -> Estimate | None:
        """A statistic of sums over rows.

        Args:
            contributions: what each row adds [rows, F].
            statistic: takes sums [..., F] and gives values [...], NaN where it is undefined.
            rows: which rows these are, indices or a mask; None: all.

        Returns:
            The estimate with its interval, or None where the statistic is undefined.
        """
        of = self.of if rows is None else self.of[rows]
        added = np.zeros((max(1, self.count), contributions.shape[1]))
        np.add.at(added, of, contributions)
        return self._bootstrap.estimate(added, statistic, len(contributions))

    def mean(self, values: np.ndarray, rows: np.ndarray | None = None) -> Estimate:
        """The mean of some rows' values [rows]; there must be one at least."""
        found = self.estimate(np.column_stack([values, np.ones(len(values))]), ratio, rows)
        assert found is not None
        return found

    def share(self, right: np.ndarray, rows: np.ndarray | None = None) -> Estimate:
        """The same for values between 0 and 1.

        Where all are 0, or all 1, resampling finds no spread; then the interval is Wilson's, of as many independent
        items as there are prompts.
        """
        found = self.mean(right, rows)
        if found.low is not None and found.low == found.high and found.value in (0.0, 1.0):
            return replace(wilson(found.value, self.among(rows)), items=found.items)
        return found

    def among(self, rows: np.ndarray | None) -> int:
        """How many prompts these rows have."""
        return len(np.unique(self.of if rows is None else self.of[rows]))


def rightness(differences: np.ndarray) -> np.ndarray:
    """1 where the difference is positive, 1/2 where it is zero, 0 where it is negative."""
    return (np.sign(differences) + 1) / 2
