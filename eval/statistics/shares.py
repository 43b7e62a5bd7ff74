"""Paired shares: Tango's score interval of their difference, and McNemar's exact test.

Every item is a yes or a no under either model, and only the items on which the models differ tell them apart. Few
of them do, as a rule, and then neither the normal approximation nor the bootstrap keeps its level. Tango's interval
(1998, Statistics in Medicine 17, 891-908) inverts the score test of the difference, in which the share of differing
items has its maximum-likelihood value under the tested difference; it stays honest down to no differing item at all.
"""

import math

import numpy as np
from jaxtyping import Float, Num
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar


def tango_statistic(
    gained: Num[np.ndarray, "*#outcomes"] | float,
    lost: Num[np.ndarray, "*#outcomes"] | float,
    items: float,
    difference: Float[np.ndarray, "*#outcomes"] | float,
) -> Float[np.ndarray, "*outcomes"]:
    """The score statistic of "the true difference is `difference`"; standard normal if it is.

    Args:
        gained: items that are a yes for the candidate only.
        lost: items that are a yes for the baseline only.
        items: all of them. The counts need not be whole: clustered ones are divided by their design effect.
        difference: strictly between -1 and 1.

    With b gained, c lost and tested difference t, the statistic is (b - c - nt) / sqrt(n (2q + t(1 - t))), where q is
    the likeliest share of lost items: the larger root of 2n q^2 + (-b - c + (2n - b + c) t) q - c t (1 - t) = 0.
    """
    b, c, n, t = np.asarray(gained, float), np.asarray(lost, float), items, difference
    middle = -b - c + (2 * n - b + c) * t
    root = np.sqrt(np.maximum(middle**2 + 8 * n * c * t * (1 - t), 0))
    variance = n * (2 * (root - middle) / (4 * n) + t * (1 - t))
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = (b - c - n * t) / np.sqrt(np.maximum(variance, 0))
    return np.asarray(np.where(b - c == n * t, 0.0, statistic))


def tango_limits(
    gained: Num[np.ndarray, "*outcomes"] | float,
    lost: Num[np.ndarray, "*outcomes"] | float,
    items: float,
    quantile: float,
) -> tuple[Float[np.ndarray, "*outcomes"], Float[np.ndarray, "*outcomes"]]:
    """The differences at which the score statistic is `quantile` and -`quantile`, by halving (0 if below it)."""
    b, c = np.asarray(gained, float), np.asarray(lost, float)
    observed, end = (b - c) / items, 1 - 1e-9

    def limit(sign: int) -> np.ndarray:
        inside, outside = np.clip(observed, -end, end), np.full(observed.shape, -sign * end)
        beyond = sign * tango_statistic(b, c, items, outside) <= quantile
        for _ in range(40):
            middle = (inside + outside) / 2
            within = sign * tango_statistic(b, c, items, middle) <= max(quantile, 0.0)
            inside, outside = np.where(within, middle, inside), np.where(within, outside, middle)
        return np.where(beyond, -sign, inside)

    return limit(1), limit(-1)


def mcnemar_p(gained: int, lost: int) -> float:
    """The exact two-sided p-value of "gained and lost items are equally likely" (McNemar 1947)."""
    return float(mcnemar([[0, lost], [gained, 0]], exact=True).pvalue) if gained + lost else 1.0


def pass_chance_of_share(differing: float, items: int, margin: float, alpha: float) -> float:
    """P(PASS) of independent items when the shares are the same: Tango's test at the margin, summed over all outcomes.

    Args:
        differing: the share of items on which the models differ, half of them in either direction.
        items: how many there are.
        margin: the tolerated worsening.
        alpha: of the one-sided test.
    """
    if not 0 < margin < 1:
        return 1.0 if margin >= 1 else 0.0
    most = int(stats.binom.isf(1e-9, items, differing)) + 1 if differing < 1 else items
    total = np.arange(min(most, items) + 1)
    worse = np.arange(len(total))
    # rows: how many differ; columns: how many of those got worse
    chance = stats.binom.pmf(total, items, differing)[:, None] * stats.binom.pmf(worse, total[:, None], 0.5)
    better = np.maximum(total[:, None] - worse, 0)
    passes = tango_statistic(worse, better, items, margin) <= -stats.norm.isf(alpha)
    return float((chance * passes).sum())


def expected_pass_chance(differing: float, items: int, margin: float, alpha: float) -> float:
    """`pass_chance_of_share` without the bias of its argument, which is itself a share of these items.

    Where the chance bends, its mean over samples is not the chance of their mean. How much that makes is seen by
    drawing the differing items once more, at nine quantiles of their binomial distribution.
    """
    again = np.maximum(stats.binom.ppf((np.arange(9) + 0.5) / 9, items, differing), 1) / items
    drawn = np.mean([pass_chance_of_share(float(each), items, margin, alpha) for each in again])
    return float(np.clip(2 * pass_chance_of_share(differing, items, margin, alpha) - drawn, 0, 1))


def design_effect(variance: float, gained: int, lost: int, items: int) -> float:
    """How many times the variance of a difference of shares exceeds that of independent items, and at least 1.

    Counts divided by it may be treated as independent ones (Rao and Scott 1992, Biometrics 48, 577-585).

    Args:
        variance: of the difference, from whole clusters.
        gained: items that are a yes for the candidate only.
        lost: items that are a yes for the baseline only.
        items: all of them.
    """
    difference = (gained - lost) / items
    independent = ((gained + lost) / items - difference**2) / items
    return max(variance / independent, 1.0) if independent > 0 and math.isfinite(variance) else 1.0
