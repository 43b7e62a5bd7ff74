"""PPO's arithmetic a second time: float64 NumPy, one answer and one token at a time, nothing padded or vectorised.

Written from the papers, not from rl/: it is what rl/maths/advantages.py and rl/maths/losses.py are compared with.
"""

import math
from collections.abc import Sequence

import numpy as np

Ragged = Sequence[np.ndarray]


def shaped_scores(
    scores: Sequence[float], lengths: Sequence[int], ended: Sequence[bool], shift: float, clip: float | None,
    missing_eos: str, penalty: float, per_token: float,
) -> list[float]:  # fmt: skip
    shaped = []
    for score, length, has_eos in zip(scores, lengths, ended, strict=True):
        value = score - shift
        if clip is not None:
            value = max(-clip, min(clip, value))
        if not has_eos:
            value = -penalty if missing_eos == "replace" else value - penalty
        shaped.append(value - per_token * length)
    return shaped


def rewards(
    scores: Sequence[float], log_p: Ragged, reference: Ragged, coefficient: float
) -> list[np.ndarray]:
    result = []
    for score, p, q in zip(scores, log_p, reference, strict=True):
        row = [-coefficient * (p[t] - q[t]) for t in range(len(p))]
        result.append(np.array([*row, score]))
    return result


def advantages(rewards: Ragged, values: Ragged, discount: float, trace: float) -> list[np.ndarray]:
    """By the definition, the sum over all later temporal differences, instead of the recursion."""
    result = []
    for r, v in zip(rewards, values, strict=True):
        n = len(r)
        after = [*v[1:], 0.0]
        delta = [r[t] + discount * after[t] - v[t] for t in range(n)]
        result.append(
            np.array([sum((discount * trace) ** (s - t) * delta[s] for s in range(t, n)) for t in range(n)])
        )
    return result


def whitened(rows: Ragged, shift_mean: bool) -> list[np.ndarray]:
    every = [x for row in rows for x in row]
    mean = math.fsum(every) / len(every)
    variance = math.fsum((x - mean) ** 2 for x in every) / (len(every) - 1)
    return [(row - mean) / math.sqrt(variance + 1e-8) + (0 if shift_mean else mean) for row in rows]


def policy_loss(
    new: Ragged, old: Ragged, advantage: Ragged, clip: float, dual_clip: float | None, weight: Ragged | None
) -> float:
    total, tokens = 0.0, 0
    for i in range(len(new)):
        for t in range(len(new[i])):
            ratio = math.exp(new[i][t] - old[i][t])
            a = advantage[i][t]
            objective = min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a)
            if dual_clip is not None and a < 0:
                objective = max(objective, dual_clip * a)
            total += objective * (weight[i][t] if weight is not None else 1.0)
            tokens += 1
    return -total / tokens


def policy_gradient(
    new: Ragged, old: Ragged, advantage: Ragged, clip: float, dual_clip: float | None, weight: Ragged | None
) -> list[np.ndarray]:
    """d loss / d new: -w * ratio * A / tokens where the ratio is inside its range or A pulls it back, else 0."""
    tokens = sum(len(row) for row in new)
    gradient = []
    for i in range(len(new)):
        row = np.zeros(len(new[i]))
        for t in range(len(row)):
            ratio, a = math.exp(new[i][t] - old[i][t]), advantage[i][t]
            stopped = (ratio > 1 + clip and a > 0) or (ratio < 1 - clip and a < 0)
            if dual_clip is not None and a < 0 and ratio > dual_clip:
                stopped = True
            if not stopped:
                row[t] = -ratio * a * (weight[i][t] if weight is not None else 1.0) / tokens
        gradient.append(row)
    return gradient


def value_loss(new: Ragged, old: Ragged, returns: Ragged, clip: float) -> float:
    total, slots = 0.0, 0
    for v, before, r in zip(new, old, returns, strict=True):
        for t in range(len(v)):
            cut = min(max(v[t], before[t] - clip), before[t] + clip)
            total += 0.5 * max((v[t] - r[t]) ** 2, (cut - r[t]) ** 2)
            slots += 1
    return total / slots


def value_gradient(new: Ragged, old: Ragged, returns: Ragged, clip: float) -> list[np.ndarray]:
    slots = sum(len(row) for row in new)
    gradient = []
    for v, before, r in zip(new, old, returns, strict=True):
        row = np.zeros(len(v))
        for t in range(len(v)):
            cut = min(max(v[t], before[t] - clip), before[t] + clip)
            if (v[t] - r[t]) ** 2 >= (cut - r[t]) ** 2:
                row[t] = (v[t] - r[t]) / slots
        gradient.append(row)
    return gradient
