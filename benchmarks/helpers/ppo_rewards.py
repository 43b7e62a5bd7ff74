"""The reward of benchmarks/ppo_learning.py, and an example of a `rl.reward_function`."""

from typing import Any

WORDS = {"you", "your"}
MOST = 4


def second_person(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """How often an answer addresses the reader, at most four times, divided by four."""
    found = []
    for completion in completions:
        words = "".join(c if c.isalpha() else " " for c in completion[0]["content"].lower()).split()
        found.append(min(sum(word in WORDS for word in words), MOST) / MOST)
    return found


def vowels(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """The share of vowels among an answer's characters, which a random model can learn in a few updates."""
    texts = [completion[0]["content"].lower() for completion in completions]
    return [sum(text.count(vowel) for vowel in "aeiou") / max(1, len(text)) for text in texts]
