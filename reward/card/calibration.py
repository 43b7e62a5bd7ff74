"""Whether the model is right as often as it is sure, and the temperature that would make it so."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import rankdata

from accord.statistics import FEWEST_CLUSTERS, Estimate, wilson
from reward.card.prompts import Prompts

MOST_BINS, PAIRS_PER_BIN = 10, 10
FOLDS = 5


@dataclass(frozen=True)
class Bin:
    """Pairs of like confidence: how sure the model was of its order on average, and how often it was right."""

    pairs: int
    confidence: float
    accuracy: Estimate
    """With Wilson's interval, which takes pairs as independent."""


@dataclass(frozen=True)
class Calibration:
    """Whether the model is right as often as it says; p(chosen is better) = sigmoid(score difference / temperature)."""

    bins: list[Bin]
    """Equally many pairs in each, as far as equal confidences allow; the least confident first."""
    ece: float
    """Expected calibration error: |confidence - accuracy| of a bin, averaged over pairs (Guo et al. 2017,
    https://arxiv.org/abs/1706.04599, with bins of equal mass)."""
    ece_by_chance: float
    """About what a perfectly calibrated model would show on so many independent pairs: sampling noise alone."""
    overconfidence: Estimate
    """Mean confidence minus accuracy: above 0 the model is surer than it should be."""
    brier: Estimate
    """Mean of (1 - p)^2: 0 is perfect, 0.25 is always saying one half (Brier 1950)."""
    log_loss: Estimate
    """Mean of -log p, nats: 0 is perfect, ln 2 = 0.693 is always saying one half."""


def calibration(scaled: np.ndarray, right: np.ndarray, prompts: Prompts) -> Calibration:
    """Whether sigmoid(scaled) is how often the chosen answer is the better one.

    Args:
        scaled: chosen minus rejected score, divided by the temperature [pairs].
        right: 1, 1/2 or 0 [pairs].
        prompts: of the pairs.
    """
    n = len(scaled)
    confidence = expit(np.abs(scaled))
    count = max(1, min(MOST_BINS, n // PAIRS_PER_BIN))
    place = np.minimum(count * (rankdata(confidence) - 0.5) / n, count - 1).astype(int)
    bins, ece, by_chance = [], 0.0, 0.0
    for each in np.unique(place):
        inside = place == each
        size, sure, share = int(inside.sum()), confidence[inside].mean(), right[inside].mean()
        bins.append(Bin(size, float(sure), wilson(float(share), size)))
        ece += size / n * abs(sure - share)
        # a normal variable of variance v has mean absolute value sqrt(2 v / pi)
        variance = (confidence[inside] * (1 - confidence[inside])).mean() / size
        by_chance += size / n * math.sqrt(2 * variance / math.pi)
    return Calibration(
        bins=bins,
        ece=float(ece),
        ece_by_chance=by_chance,
        overconfidence=prompts.mean(confidence - right),
        brier=prompts.mean(expit(-scaled) ** 2),
        log_loss=prompts.mean(np.logaddexp(0, -scaled)),
    )


def fit_temperature(differences: np.ndarray) -> float:
    """The temperature T that minimises the mean of -log sigmoid(difference / T).

    It is looked for between a hundredth and a hundred times the root mean square of the differences; it is at the lower
    end where all are positive, and at the upper end where they are negative on average.
    """
    scale = math.sqrt(float((differences**2).mean()))
    if scale == 0:
        return 1.0
    found = minimize_scalar(
        lambda log_temperature: np.logaddexp(0, -differences / math.exp(log_temperature)).mean(),
        bounds=(math.log(scale / 100), math.log(scale * 100)), method="bounded", options={"xatol": 1e-8},
    )  # fmt: skip
    return math.exp(float(found.x))


def at_limit(temperature: float, differences: np.ndarray) -> bool:
    """Whether the search for the temperature ended at (nearly) the least or the greatest it may be."""
    scale = math.sqrt(float((differences**2).mean()))
    return scale == 0 or not scale / 95 < temperature < scale * 95


def after_temperature(differences: np.ndarray, right: np.ndarray, prompts: Prompts) -> Calibration | None:
    """Calibration where each pair's temperature was fitted on the pairs of other prompts."""
    if prompts.count < FEWEST_CLUSTERS:
        return None
    fold, scaled = prompts.of % FOLDS, np.empty_like(differences)
    for each in range(FOLDS):
        scaled[fold == each] = differences[fold == each] / fit_temperature(differences[fold != each])
    return calibration(scaled, right, prompts)
