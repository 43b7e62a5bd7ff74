"""Both models' answers to one prompt, and by which measure the candidate's got better or worse."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from accord.page.words import number
from eval.rows import Sample

Kind = Literal["worse", "better", "same", "unknown"]
MEASURES = {"utility": "Utility", "reward": "Reward", "judge": "Judge"}


@dataclass(frozen=True)
class Change:
    """What became of an answer by one measure."""

    by: str
    amount: float | None
    """Positive is better; None where the judge could not be read."""
    kind: Kind
    words: str


@dataclass(frozen=True)
class SampleView:
    """A sample with its changes by every measure, in the order of `MEASURES`."""

    sample: Sample
    changes: list[Change]
    growth: int
    """Tokens that the candidate's answer is longer by."""


def measures_of(samples: Sequence[Sample]) -> dict[str, str]:
    """The measures that there are, by key, with their names."""
    has = {
        "utility": all(s.baseline.utility is not None and s.candidate.utility is not None for s in samples),
        "reward": all(each.baseline.reward is not None and each.candidate.reward is not None for each in samples),
        "judge": any(each.judgement is not None for each in samples),
    }  # fmt: skip
    return {key: name for key, name in MEASURES.items() if has[key]}


def sample_views(samples: Sequence[Sample]) -> list[SampleView]:
    """All answers, those that got worse the most by the first measure first; without any, by prompt."""
    measures = measures_of(samples)
    views = [
        SampleView(
            sample, [_change(sample, by) for by in measures], sample.candidate.tokens - sample.baseline.tokens
        )
        for sample in samples
    ]
    return sorted(views, key=_how_much_better)


def _change(sample: Sample, by: str) -> Change:
    b, c = sample.baseline, sample.candidate
    if by == "judge":
        better = sample.judgement.candidate_is_better if sample.judgement else None
        if better is None:
            return Change(by, None, "unknown", "Judge could not be read")
        kind = _kind(better - 0.5)
        words = (
            "Judge undecided"
            if kind == "same"
            else f"Judge: {kind}, {100 * max(better, 1 - better):.0f}% sure"
        )
        return Change(by, better - 0.5, kind, words)
    amount = (getattr(c, by) or 0.0) - (getattr(b, by) or 0.0)
    kind, name = _kind(amount), MEASURES[by]
    return Change(
        by,
        amount,
        kind,
        f"{name} unchanged" if kind == "same" else f"{name} {number(amount, signed=True)}, {kind}",
    )


def _kind(amount: float) -> Kind:
    return "worse" if amount < 0 else "better" if amount > 0 else "same"


def _how_much_better(view: SampleView) -> tuple[float, float, str, int]:
    b, c = view.sample.baseline, view.sample.candidate
    amount = view.changes[0].amount if view.changes else 0.0
    reward = (c.reward or 0) - (b.reward or 0)
    return math.inf if amount is None else amount, reward, view.sample.id, view.sample.sample
