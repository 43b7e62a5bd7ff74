"""What an evaluation of this size can show: the effect it would find, and how many clusters would decide.

The gate's decision is one-sided: a limit of a two-sided interval at level 1 - alpha has to clear the margin, so each
test is one at alpha / 2. The formulas are those of Student's t-test over clusters, by statsmodels.
"""

from statsmodels.stats.power import TTestPower

ALPHA = 0.05
"""1 minus the confidence level of the two-sided interval; each limit misses half as often."""
POWER = 0.8
MOST_CLUSTERS = 1_000_000
"""Where more would be needed to decide, no number is given: it would be no help."""


def minimum_detectable_effect(
    deviation: float, clusters: int, alpha: float = ALPHA, power: float = POWER
) -> float:
    """The smallest margin that would be passed, with this power, by a candidate that is exactly as good.

    It is as well the smallest true worsening, counted from the margin on, that would be found to be beyond it.

    Args:
        deviation: of the clusters' differences, in the metric's units.
        clusters: how many there are.
        alpha: 1 minus the confidence level of the two-sided interval; the test is one-sided, at alpha / 2.
        power: the wanted chance.
    """
    if deviation == 0:
        return 0.0
    test = TTestPower()
    return deviation * float(
        test.solve_power(effect_size=None, nobs=clusters, alpha=alpha / 2, power=power, alternative="larger")
    )


def clusters_to_decide(
    distance: float, deviation: float, alpha: float = ALPHA, power: float = POWER
) -> int | None:
    """How many clusters bring an interval clear of the margin, with this power, if the difference stays as it is.

    Args:
        distance: between the observed difference and the margin, in the metric's units.
        deviation: of the clusters' differences.
        alpha: 1 minus the confidence level of the two-sided interval.
        power: the wanted chance.

    Returns:
        The number, or None above `MOST_CLUSTERS`: the difference sits on the margin, and data hardly help.
    """
    if deviation == 0:
        return 2
    effect = abs(distance) / deviation
    test = TTestPower()
    if effect == 0 or test.power(effect, MOST_CLUSTERS, alpha / 2, alternative="larger") < power:
        return None
    # statsmodels' root finder fails on steep power curves; power grows with the number, so halving finds it
    low, high = 1, MOST_CLUSTERS
    while high - low > 1:
        middle = (low + high) // 2
        if test.power(effect, middle, alpha / 2, df=max(middle - 1, 1), alternative="larger") >= power:
            high = middle
        else:
            low = middle
    return high
