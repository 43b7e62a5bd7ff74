"""A Python function that scores answers: PPO's reward, the gate's, or that of `accord reward score`.

    def brevity(prompts, completions, **_):
        return [-len(completion[0]["content"]) / 100 for completion in completions]

A function is called as TRL's trainers call theirs, so theirs can be used: `prompts` and `completions` are lists of
conversations, whose messages are {"role": ..., "content": ...}; it returns a number for each. From PPO it also gets
`completion_ids`, lists of token ids, and `reward_model_scores`, numbers, and may ignore them.
"""

import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.errors import AccordError, UsageError
from accord.records import Message, messages_as_dicts
from accord.runs import DataFile


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

    def __call__(
        self, prompts: Sequence[Sequence[Message]], responses: Sequence[str], **extra: Sequence[Any]
    ) -> list[float]:
        """The reward of every answer.

        Args:
            prompts: the conversations before the answers.
            responses: the answers.
            extra: what the function gets besides, one for each answer.

        Raises:
            AccordError: the function fails, or returns anything but a finite number for each answer.
        """
        try:
            found = self.function(
                prompts=[messages_as_dicts(prompt) for prompt in prompts],
                completions=[[{"role": "assistant", "content": response}] for response in responses],
                **extra,
            )
            rewards = [float(reward) for reward in found]
        except Exception as error:
            raise AccordError(
                f"the reward function {self.reference} failed: {type(error).__name__}: {error}; it must take prompts "
                "and completions (and **kwargs for the rest) and return a number for each completion"
            ) from error
        if len(rewards) != len(responses):
            raise AccordError(
                f"the reward function {self.reference} gave {len(rewards)} rewards for {len(responses)} answers"
            )
        for response, reward in zip(responses, rewards, strict=True):
            if not math.isfinite(reward):
                raise AccordError(
                    f"the reward function {self.reference} gave {reward} for the answer {response!r}"
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
            f"reward function '{reference}' is no function; write file.py:function or module:function"
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
            f"reward function '{reference}': {place} cannot be loaded ({type(error).__name__}: {error})"
        ) from error
    function = getattr(module, name, None)
    if not callable(function) or file is None:
        raise UsageError(f"reward function '{reference}': {place} has no function '{name}'")
    return RewardFunction(reference, Path(file), function)


def digest_without_running(reference: str) -> str:
    """The digest that `load_reward_function(reference)` would have, before any code is run to load it.

    The file of `my_package.rewards:brevity` is looked for as an import would, but neither `my_package` nor
    `my_package.rewards` is imported.

    Raises:
        UsageError: there is no such module.
        DataError: there is no such file.
    """
    place, _, name = reference.rpartition(":")
    file = Path(place) if place.endswith(".py") else _file_of_module(place)
    if file is None:
        raise UsageError(f"reward function '{reference}': there is no module {place}; install what it is in")
    return f"{name}@sha256:{DataFile(file).digest}"


def _file_of_module(module: str) -> Path | None:
    """Where a module's code is; `importlib.util.find_spec` would import the packages that the module is in."""
    folders: list[str] | None = None  # those of sys.path
    origin = None
    parts = module.split(".")
    for end, part in enumerate(parts, start=1):
        specs = (finder.find_spec(".".join(parts[:end]), folders) for finder in sys.meta_path)
        try:
            spec = next((spec for spec in specs if spec is not None), None)
        except (
            KeyError
        ):  # a folder without __init__.py in another package, which has to be imported to say more
            origin, folders = None, [str(Path(folder, part)) for folder in folders or ()]
            continue
        if spec is None:
            return None
        origin, folders = spec.origin, list(spec.submodule_search_locations or ())
    return Path(origin) if origin else None
