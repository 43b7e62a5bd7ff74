"""A Python function that scores answers: the reward of PPO, RLOO or GRPO, the gate's, or that of `accord reward score`.

    def brevity(prompts, completions, **_):
        return [-len(completion[0]["content"]) / 100 for completion in completions]

    def is_right(completions, solution, **_):  # `solution`: a column of the prompts' file
        return [float(c[0]["content"] == s) if s else None for c, s in zip(completions, solution)]

A function is called as TRL's trainers call theirs, so theirs can be used. It gets lists, by keyword: `prompts` and
`completions`, conversations whose messages are {"role": ..., "content": ...}, and every other column of the rows
that the prompts come from, None where a row lacks it. It returns a number for each completion, or None: no opinion.
Training leaves out, and counts, the prompts that lack a column for which the function has no default.
In training it also gets `completion_ids`, lists of token ids; from PPO, `reward_model_scores`, numbers; from RLOO and
GRPO, TRL's `trainer_state`, `log_extra` and `log_metric`. What it does not use, `**_` takes.
"""

import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord import user_code
from accord.errors import AccordError, UsageError
from accord.records import Message, messages_as_dicts
from accord.runs import DataFile

Columns = Mapping[str, Sequence[Any]]
"""By name, a value for each answer."""
NO_COLUMNS = frozenset(
    (
        "prompts",
        "completions",
        "completion_ids",
        "reward_model_scores",
        "trainer_state",
        "log_extra",
        "log_metric",
    )
)
"""Arguments that whoever calls a function may give it, and that are therefore no columns."""
WHAT = "reward function"


@dataclass(frozen=True)
class RewardFunction:
    """A function that was found, and the file that it stands in, which belongs to what identifies a run."""

    reference: str
    file: Path
    function: Callable[..., Any]

    @property
    def digest(self) -> str:
        """The function's name and its file's SHA-256; what the file imports is not in it."""
        return f"{self.reference.rpartition(':')[2]}@sha256:{DataFile(self.file).digest}"

    @property
    def needs(self) -> frozenset[str]:
        """The columns without which it cannot be called: its arguments that have no default."""
        try:
            arguments = inspect.signature(self.function).parameters.values()
        except ValueError:  # written in C, say
            return frozenset()
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        needed = {each.name for each in arguments if each.kind in named and each.default is each.empty}
        return frozenset(needed - NO_COLUMNS)

    def __call__(
        self,
        prompts: Sequence[Sequence[Message]],
        responses: Sequence[str],
        columns: Columns | None = None,
        **extra: Any,
    ) -> list[float | None]:
        """The reward of every answer, None where the function has no opinion.

        Args:
            prompts: the conversations before the answers.
            responses: the answers.
            columns: of the rows that the prompts come from.
            extra: what the function gets besides.

        Raises:
            UsageError: a package that the function uses is not installed.
            AccordError: the function fails, or returns anything but a finite number or None for each answer.
        """
        try:
            found = self.function(
                **{
                    **(columns or {}),
                    **extra,
                    "prompts": [messages_as_dicts(prompt) for prompt in prompts],
                    "completions": [[{"role": "assistant", "content": response}] for response in responses],
                }
            )
            rewards = [None if reward is None else float(reward) for reward in found]
        except ImportError as error:
            raise UsageError(
                f"the reward function {self.reference} uses a package that is not installed ({error})"
            ) from error
        except Exception as error:
            raise AccordError(
                f"the reward function {self.reference} failed: {type(error).__name__}: {error}; it must take prompts "
                "and completions (and **kwargs for the rest) and return a number, or None, for each completion"
            ) from error
        if len(rewards) != len(responses):
            raise AccordError(
                f"the reward function {self.reference} gave {len(rewards)} rewards for {len(responses)} answers"
            )
        for response, reward in zip(responses, rewards, strict=True):
            if reward is not None and not math.isfinite(reward):
                raise AccordError(
                    f"the reward function {self.reference} gave {reward} for the answer {response!r}"
                )
        return rewards


def load_reward_function(reference: str) -> RewardFunction:
    """The function of a reference like `rewards.py:brevity` or `my_package.rewards:brevity`.

    Raises:
        UsageError: there is no such file, module or function, importing it fails, or it needs what is not installed.
    """
    place = user_code.locate(reference, WHAT)
    function = user_code.load(place, WHAT)
    if not callable(function):
        raise UsageError(f"{WHAT} '{reference}': {place.module} has no function '{place.name}'")
    # TRL's would say so after the first answers only.
    if (
        place.module.startswith("trl.")
        and "accuracy" in place.name
        and not importlib.util.find_spec("math_verify")
    ):
        raise UsageError(
            f"{WHAT} '{reference}' needs the package math-verify; install it with pip install 'accord[math]'"
        )
    return RewardFunction(reference, place.file, function)


def digest_without_running(reference: str) -> str:
    """The digest that `load_reward_function(reference)` would have, before any code is run to load it.

    Raises:
        UsageError: there is no such file or module.
    """
    return user_code.locate(reference, WHAT).digest
