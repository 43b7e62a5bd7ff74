"""The held-out loss: of the tuned model, of the base, and of the base with demonstrations in its prompt."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from accord.statistics import Bootstrap, Estimate
from sft.card.scores import Score

ALL = "all"
MODELS = ("tuned", "base", "few_shot")
"""The three whose scores are compared; `few_shot` is the base with demonstrations in its prompt."""


class Part(BaseModel):
    """What the three make of some rows. Losses in nats a token, token accuracies as shares; see `MODELS`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: str
    """The file that they are from; "all" for all of them."""
    rows: int
    tokens: int
    """That are predicted."""
    loss: dict[str, Estimate]
    accuracy: dict[str, Estimate]
    change: Estimate
    """The tuned model's loss minus the base's: below zero where training helped."""
    accuracy_change: Estimate
    above_few_shot: Estimate | None
    """The tuned model's loss minus that of the base with demonstrations: below zero where training is worth it."""


def parts(scores: Mapping[str, Sequence[Score | None]], sources: Sequence[str]) -> list[Part]:
    """All rows, and those of each source where there are several.

    Args:
        scores: by model; a row without a score under `few_shot` (too long, or no conversation) is left out of it.
        sources: of each row.
    """
    names = sorted(set(sources))
    groups = [(ALL, range(len(sources)))] if len(sources) else []
    if len(names) > 1:
        groups += [(name, [i for i, each in enumerate(sources) if each == name]) for name in names]  # type: ignore[misc]
    return [
        part(name, {model: [given[i] for i in rows] for model, given in scores.items()})
        for name, rows in groups
    ]


def part(source: str, scores: Mapping[str, Sequence[Score | None]]) -> Part:
    """The figures of some rows, each a cluster of its own in the bootstrap."""
    tuned, base, few_shot = (scores.get(model, ()) for model in MODELS)
    bootstrap = Bootstrap(len(tuned))
    shown = {"tuned": tuned, "base": base} | ({"few_shot": few_shot} if any(few_shot) else {})
    both = [(a, b) for a, b in zip(tuned, few_shot, strict=True) if a and b] if any(few_shot) else []
    return Part(
        source=source, rows=len(tuned), tokens=sum(each.tokens for each in tuned if each),
        loss={model: _needed(_mean(bootstrap, given, _nats)) for model, given in shown.items()},
        accuracy={model: _needed(_mean(bootstrap, given, _right)) for model, given in shown.items()},
        change=_needed(_difference(bootstrap, list(zip(tuned, base, strict=True)), _nats)),
        accuracy_change=_needed(_difference(bootstrap, list(zip(tuned, base, strict=True)), _right)),
        above_few_shot=_difference(Bootstrap(len(both)), both, _nats) if both else None,
    )  # fmt: skip


def _nats(score: Score) -> float:
    return score.nats


def _right(score: Score) -> float:
    return score.right


def _mean(
    bootstrap: Bootstrap, given: Sequence[Score | None], figure: Callable[[Score], float]
) -> Estimate | None:
    sums = np.array([[figure(each), each.tokens] if each else [0, 0] for each in given], dtype=float)
    return bootstrap.estimate(sums, lambda s: s[..., 0] / s[..., 1], int(sums[:, 1].sum()))


def _difference(
    bootstrap: Bootstrap, pairs: Sequence[tuple[Score | None, Score | None]], figure: Callable[[Score], float]
) -> Estimate | None:
    """The first's figure a token minus the second's, on the same rows."""
    sums = np.array(
        [[figure(a), a.tokens, figure(b), b.tokens] if a and b else [0] * 4 for a, b in pairs], dtype=float
    )
    return bootstrap.estimate(
        sums, lambda s: s[..., 0] / s[..., 1] - s[..., 2] / s[..., 3], int(sums[:, 1].sum())
    )


def _needed(estimate: Estimate | None) -> Estimate:
    return estimate or Estimate(float("nan"), None, None, 0)
