"""Pairs and rankings as choices between the answers to one prompt: what the loss of `reward.loss` is computed on.

A group is a prompt with its answers, each of which is computed once however many of them name it. From pairs, a
group's choices are between two answers; from rankings, they are the annotators' successive choices of the best.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from accord.chat.tokens import answer
from accord.records import Comparison, Message, Preference, conversation_id
from feedback.belief.reliability import Reliability, choices_given

MOST_ANSWERS = 8
"""A prompt with more answers becomes several groups, so that memory has a bound."""


@dataclass(frozen=True)
class PromptChoices:
    """A prompt, its k answers, and C choices among T alternatives of them (see `reward.loss.Choices`)."""

    prompt: list[Message]
    answers: list[list[Message]]
    chosen: np.ndarray
    """[C, k]"""
    chosen_offsets: np.ndarray
    """[C]"""
    alternatives: np.ndarray
    """[C, T, k]"""
    offsets: np.ndarray
    """[C, T]"""
    weights: np.ndarray
    """[C]"""


def choices_from_pairs(rows: Sequence[Preference], margin_coefficient: float = 0.0) -> list[PromptChoices]:
    """One group for each prompt, or several where it has more than `MOST_ANSWERS` answers.

    A pair's choice is between its answers, with its weight, 1 where it has none. Of k answers only k - 1 comparisons
    can be independent, so where a group has more different pairs than that, all its weights are scaled down to k - 1
    in place of their number: a ranking of 4, which is 6 pairs, counts as 3.

    Args:
        rows: pairs; equal answers to equal prompts are one answer.
        margin_coefficient: what a step of `margin` demands of the difference of scores.
    """
    groups = []
    for same_prompt in _by_prompt(rows):
        for pairs in _at_most(same_prompt, MOST_ANSWERS):
            answers: list[list[Message]] = []
            for side in (side for row in pairs for side in (row.chosen, row.rejected)):
                if side not in answers:
                    answers.append(side)
            sides = [(answers.index(row.chosen), answers.index(row.rejected)) for row in pairs]
            different = len({frozenset(pair) for pair in sides})
            scale = min(1.0, (len(answers) - 1) / different)
            unit = np.eye(len(answers))
            margins = np.array([margin_coefficient * (row.margin or 0.0) for row in pairs])
            alternatives = np.array([[unit[i], unit[j]] for i, j in sides])
            offsets = np.stack([-margins, np.zeros(len(pairs))], axis=1)
            groups.append(
                PromptChoices(
                    pairs[0].prompt, answers, alternatives[:, 0], offsets[:, 0], alternatives, offsets,
                    scale * np.array([1.0 if row.weight is None else row.weight for row in pairs]),
                )
            )  # fmt: skip
    return groups


def choices_from_rankings(
    comparisons: Sequence[Comparison],
    all_comparisons: Sequence[Comparison],
    reliability: Reliability,
) -> list[PromptChoices]:
    """One group for each of `comparisons` that somebody ranked; gold records and duplicates make none of their own.

    Args:
        comparisons: whose choices are wanted.
        all_comparisons: those that `reliability` was fitted to.
        reliability: slopes, biases and tie tendencies of the annotators.
    """
    choices = choices_given(all_comparisons, reliability)
    return [
        PromptChoices(
            comparison.prompt, answers_of(comparison), found.chosen, found.chosen_fixed, found.alternatives,
            found.fixed, np.ones(len(found.chosen)),
        )
        for comparison in comparisons
        if not comparison.is_probe and (found := choices.get(comparison.id)) is not None
    ]  # fmt: skip


def answers_of(comparison: Comparison) -> list[list[Message]]:
    """A comparison's responses as turns."""
    return [answer(each.text) for each in comparison.responses]


def contradictory_pairs(rows: Sequence[Preference]) -> tuple[int, int]:
    """How many pairs have an opposite (the same prompt and answers, the other one chosen), and how many of those are
    undecided: the weights for one answer are as much as those for the other.
    """
    weights: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        prompt, chosen, rejected = (conversation_id(part) for part in (row.prompt, row.chosen, row.rejected))
        weights.setdefault((prompt, chosen, rejected), []).append(1.0 if row.weight is None else row.weight)
    opposed = undecided = 0
    for (prompt, chosen, rejected), of_pair in weights.items():
        if opposite := weights.get((prompt, rejected, chosen)):
            opposed += len(of_pair)
            undecided += len(of_pair) * math.isclose(sum(of_pair), sum(opposite))
    return opposed, undecided


def repeated_pairs(rows: Sequence[Preference]) -> int:
    """How many pairs say what an earlier one said: the same answer to the same prompt over the same other one."""
    said = {tuple(conversation_id(part) for part in (row.prompt, row.chosen, row.rejected)) for row in rows}
    return len(rows) - len(said)


def _by_prompt(rows: Sequence[Preference]) -> Iterable[list[Preference]]:
    """The rows of each prompt, in the order in which prompts occur first."""
    found: dict[str, list[Preference]] = {}
    for row in rows:
        found.setdefault(conversation_id(row.prompt), []).append(row)
    return found.values()


def _at_most(rows: Sequence[Preference], answers: int) -> Iterable[list[Preference]]:
    """The rows in their order, in parts that name at most so many different answers."""
    part: list[Preference] = []
    for row in rows:
        texts = {conversation_id(side) for each in [*part, row] for side in (each.chosen, each.rejected)}
        if part and len(texts) > answers:
            yield part
            part = []
        part.append(row)
    if part:
        yield part
