"""A Python function as PPO's reward, in place of the reward model's score.

    def brevity(prompts, completions, **_):
        return [-len(completion[0]["content"]) / 100 for completion in completions]

A function is called as TRL's trainers call theirs, so theirs can be used: `prompts` and `completions` are lists of
conversations, whose messages are {"role": ..., "content": ...}; it returns a number for each. Besides it gets
`completion_ids`, lists of token ids, and `reward_model_scores`, numbers, and may ignore them.
"""

import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.errors import AccordError, UsageError
from accord.records import Message


@dataclass(frozen=True)
class RewardFunction:
    """A function that was found, and the file that it stands in, which belongs to what identifies a run."""

    name: str
    file: Path
    function: Callable[..., Any]

    def __call__(
        self,
        prompts: Sequence[Sequence[Message]],
        responses: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        reward_model_scores: Sequence[float],
    ) -> list[float]:
        """The reward of every answer.

        Raises:
            AccordError: the function fails, or returns anything but a finite number for each answer.
        """
        try:
            found = self.function(
                prompts=[[{"role": m.role, "content": m.content} for m in prompt] for prompt in prompts],
                completions=[[{"role": "assistant", "content": response}] for response in responses],
                completion_ids=[list(ids) for ids in completion_ids],
                reward_model_scores=list(reward_model_scores),
            )
            rewards = [float(reward) for reward in found]
        except Exception as error:
            raise AccordError(
                f"the reward function {self.name} failed: {type(error).__name__}: {error}; it must take prompts and "
                "completions (and **kwargs for the rest) and return a number for each completion"
            ) from error
        if len(rewards) != len(responses):
            raise AccordError(
                f"the reward function {self.name} gave {len(rewards)} rewards for {len(responses)} answers"
            )
        for response, reward in zip(responses, rewards, strict=True):
            if not math.isfinite(reward):
                raise AccordError(
                    f"the reward function {self.name} gave {reward} for the answer {response!r}"
                )
        return rewards


def load_reward_function(reference: str) -> RewardFunction:
    """The function of a reference like `rewards.py:brevity` or `my_package.rewards:brevity`.

    Raises:
        UsageError: there is no such file, module or function, or importing it fails.
    """
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise UsageError(
            f"rl.reward_function: '{reference}' is no function; write file.py:function or module:function"
        )
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        file = inspect.getsourcefile(module)
    except Exception as error:
        raise UsageError(
            f"rl.reward_function: {place} cannot be loaded ({type(error).__name__}: {error})"
        ) from error
    function = getattr(module, name, None)
    if not callable(function) or file is None:
        raise UsageError(f"rl.reward_function: {place} has no function '{name}'")
    return RewardFunction(reference, Path(file), function)
