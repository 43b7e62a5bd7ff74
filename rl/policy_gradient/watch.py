"""What is watched so that a policy that exploits its reward model is noticed: figures of answers, and stop rules."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rl.policy_gradient.rollout import Rollout
from rl.policy_gradient.settings import StopRules


def answer_figures(rollout: Rollout) -> dict[str, float]:
    """Length, endings and repetition of answers.

    `repetition` is the share of an answer's token bigrams that occurred in it before, averaged over the answers that
    have any; `empty_share` is the share of answers that are nothing but EOS.
    """
    lengths = [len(response) for response in rollout.responses]
    repeated = []
    for response in rollout.responses:
        bigrams = list(itertools.pairwise(response))
        if bigrams:
            repeated.append(1 - len(set(bigrams)) / len(bigrams))
    bare = [ended and length == 1 for ended, length in zip(rollout.ended, lengths, strict=True)]
    return {
        "response_tokens": statistics.fmean(lengths),
        "eos_rate": statistics.fmean(rollout.ended),
        "repetition": statistics.fmean(repeated) if repeated else 0.0,
        "empty_share": statistics.fmean(bare),
    }


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's correlation; 0 where either is constant."""
    if len(x) < 2 or len(set(x)) == 1 or len(set(y)) == 1:
        return 0.0
    return statistics.correlation(x, y)


@dataclass(frozen=True)
class Evaluation:
    """A policy on held-out prompts and preferences."""

    update: int
    score: float
    """Mean score of its answers, shifted."""
    preference_loss: float
    """See `rl.policy_gradient.evaluation.preference_loss`: what the best policy is chosen by."""


def stop_reason(
    kl_nats: float,
    response_tokens: float,
    first_response_tokens: float,
    evaluations: Sequence[Evaluation],
    rules: StopRules,
) -> str | None:
    """Why to stop after this update, in a sentence, or None to go on.

    Args:
        kl_nats: mean KL of this update's answers from the reference (k1).
        response_tokens: their mean length.
        first_response_tokens: that of the first update.
        evaluations: all so far, in order.
        rules: when to stop.
    """
    if kl_nats > rules.kl_nats:
        return (
            f"the answers' KL from the reference, {kl_nats:.1f} nats, went over its budget of {rules.kl_nats:g} "
            "(stop_at_kl_nats)"
        )
    if response_tokens > rules.length_factor * first_response_tokens:
        return (
            f"answers grew from {first_response_tokens:.0f} to {response_tokens:.0f} tokens, more than "
            f"{rules.length_factor:g} times (stop_at_length_factor)"
        )
    if rules.worse_evaluations is not None and evaluations:
        best = min(evaluations, key=lambda each: each.preference_loss)
        latest = evaluations[-rules.worse_evaluations :]
        exploits = [e.score > best.score and e.preference_loss > best.preference_loss for e in latest]
        if len(latest) == rules.worse_evaluations and all(exploits):
            return (
                f"in the last {len(latest)} evaluations the held-out score rose while the held-out preference loss was "
                f"worse than after update {best.update}: the policy exploits the reward model "
                "(stop_after_worse_evaluations)"
            )
    return None
