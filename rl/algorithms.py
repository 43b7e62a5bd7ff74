"""The algorithms that `rl.algorithm` may name, each in one row.

The command line reads this table to print its help, so each row imports what it needs when it is used.

    dpo, kto, ppo, rloo, grpo, best_of_n the rows of `ALGORITHMS`
    my_algorithms.py:IMITATION           an `Algorithm` in a file of the user's; also module:NAME

A new algorithm is a configuration (a subclass of `rl.config.AlgorithmConfig`) and a function that trains, in a file of
their own, and a row here.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accord.errors import UsageError

if TYPE_CHECKING:
    from accord.models.references import Model
    from accord.runs import DataFile, Run, Runs
    from accord.sampling.shared import SharedSampler
    from rl.config import AlgorithmConfig, BestOfNConfig, DPOConfig, KTOConfig, OnlineConfig, PPOConfig


PREFERENCES, REWARD = "preferences", "reward"


@dataclass(frozen=True)
class Inputs:
    """What a round has when it comes to its policy; an algorithm takes of it what it needs."""

    runs: "Runs"
    """Where the algorithm's run is kept."""
    policy: "Model"
    """What is optimised; the reference, too."""
    reward_model: "Model | None"
    """Trained from this policy on these preferences; None where the round has none, and the algorithm needs none."""
    preferences: "Run | DataFile | None"
    """`accord.runs.file_of(preferences, "preferences.jsonl")` is the file; None as for the reward model."""
    sampler: "SharedSampler"
    """The round's."""


@dataclass(frozen=True)
class Algorithm:
    """One way to optimise a policy."""

    name: str
    """The stage: its runs are called `<name>-<12 hex digits>`."""
    does: str
    """What it does, in a sentence: the help of its command."""
    config: "Callable[[], type[AlgorithmConfig]]"
    """Gives the class of the settings under `rl:`."""
    train: "Callable[[Any, Inputs], Run]"
    """From an instance of that class, train and return the finished run, whose `model/` is the new policy."""
    check: Callable[[Any], None] = lambda config: None
    """Look at such an instance before anything starts; raises UsageError for what can be known to fail."""
    needs: Callable[[Any], tuple[str, ...]] = lambda config: (PREFERENCES,)
    """What such an instance cannot do without: "preferences", "reward" (a reward model)."""


def _config_of_dpo() -> "type[AlgorithmConfig]":
    from rl.config import DPOConfig

    return DPOConfig


def _train_dpo(config: "DPOConfig", inputs: Inputs) -> "Run":
    from rl.dpo import train_dpo

    assert inputs.preferences is not None
    return train_dpo(config, inputs.runs, inputs.policy, inputs.preferences)


def _check_dpo(config: "DPOConfig") -> None:
    from rl.dpo import check_arguments

    check_arguments(config.trainer)


def _config_of_kto() -> "type[AlgorithmConfig]":
    from rl.config import KTOConfig

    return KTOConfig


def _train_kto(config: "KTOConfig", inputs: Inputs) -> "Run":
    from rl.kto import train_kto

    return train_kto(config, inputs.runs, inputs.policy, inputs.preferences)


def _check_kto(config: "KTOConfig") -> None:
    from rl.kto import check_arguments

    check_arguments(config.trainer)


def _needs_of_kto(config: "KTOConfig") -> tuple[str, ...]:
    return () if config.feedback else (PREFERENCES,)


def _config_of_ppo() -> "type[AlgorithmConfig]":
    from rl.config import PPOConfig

    return PPOConfig


def _train_ppo(config: "PPOConfig", inputs: Inputs) -> "Run":
    from rl.ppo import train_ppo

    assert inputs.reward_model is not None and inputs.preferences is not None
    return train_ppo(
        config, inputs.runs, inputs.policy, inputs.reward_model, inputs.preferences, inputs.sampler
    )


def _check_ppo(config: "PPOConfig") -> None:
    from rl.trackers import check_trackers

    check_trackers(config.report_to)
    _check_reward_function(config.reward_function)


def _config_of_online() -> "type[AlgorithmConfig]":
    from rl.config import OnlineConfig

    return OnlineConfig


def _train_online(config: "OnlineConfig", inputs: Inputs) -> "Run":
    from rl.online import train_online

    return train_online(config, inputs.runs, inputs.policy, inputs.reward_model, inputs.preferences)


def _check_online(config: "OnlineConfig") -> None:
    from rl.online import check_arguments

    check_arguments(config)
    _check_reward_function(config.reward_function)


def _config_of_best_of_n() -> "type[AlgorithmConfig]":
    from rl.config import BestOfNConfig

    return BestOfNConfig


def _train_best_of_n(config: "BestOfNConfig", inputs: Inputs) -> "Run":
    from rl.best_of_n import train_best_of_n

    return train_best_of_n(
        config, inputs.runs, inputs.policy, inputs.reward_model, inputs.preferences, inputs.sampler
    )


def _check_best_of_n(config: "BestOfNConfig") -> None:
    from rl.best_of_n import check_arguments

    check_arguments(config.trainer)
    _check_reward_function(config.reward_function)


def _needs_unless_own_reward(config: "OnlineConfig | BestOfNConfig") -> tuple[str, ...]:
    return () if config.reward_function else (PREFERENCES, REWARD)


def _check_reward_function(reference: str | None) -> None:
    from reward.function import load_reward_function
    from reward.scorers import names_a_function

    if reference and names_a_function(reference):
        load_reward_function(reference)


_OF_SCORES = "Optimise the policy on the reward model's scores"
ALGORITHMS = {
    each.name: each
    for each in (
        Algorithm(
            "dpo", "Optimise the policy on the round's preferences", _config_of_dpo, _train_dpo, _check_dpo
        ),
        Algorithm(
            "kto",
            "Optimise the policy on answers that are desirable or not",
            _config_of_kto,
            _train_kto,
            _check_kto,
            _needs_of_kto,
        ),
        # the critic starts from the reward model, whatever gives the scores
        Algorithm(
            "ppo", _OF_SCORES, _config_of_ppo, _train_ppo, _check_ppo, lambda config: (PREFERENCES, REWARD)
        ),
        Algorithm(
            "rloo", _OF_SCORES, _config_of_online, _train_online, _check_online, _needs_unless_own_reward
        ),
        Algorithm(
            "grpo", _OF_SCORES, _config_of_online, _train_online, _check_online, _needs_unless_own_reward
        ),
        Algorithm(
            "best_of_n",
            "Fine-tune the policy on the best of its own answers",
            _config_of_best_of_n,
            _train_best_of_n,
            _check_best_of_n,
            _needs_unless_own_reward,
        ),
    )
}
OTHER_STAGES = ("base", "sft", "feedback", "reward", "eval")
DEFAULT = "dpo"
"""What `rl` is about where it does not say."""


def algorithm_named(reference: Any) -> Algorithm:
    """The algorithm that `rl.algorithm` says; a user's file is run only if it is named.

    Raises:
        UsageError: there is none of this name, or what stands in the user's file is none.
    """
    if isinstance(reference, str) and reference in ALGORITHMS:
        return ALGORITHMS[reference]
    if not isinstance(reference, str) or ":" not in reference:
        raise UsageError(f"must be one of {', '.join(ALGORITHMS)}, or file.py:NAME for your own")
    from accord import user_code

    found = user_code.load(user_code.locate(reference, "algorithm"), "algorithm")
    if not isinstance(found, Algorithm):
        raise UsageError(f"algorithm '{reference}': is {type(found).__name__}, not rl.algorithms.Algorithm")
    if not re.fullmatch("[a-z][a-z0-9_]*", found.name) or found.name in (*ALGORITHMS, *OTHER_STAGES):
        raise UsageError(
            f"algorithm '{reference}': its runs cannot be called '{found.name}'; give it a name of small letters that "
            f"is none of {', '.join((*ALGORITHMS, *OTHER_STAGES))}"
        )
    return found


def config_class(reference: Any) -> "type[AlgorithmConfig]":
    """The class of the section `rl` whose `algorithm` says this."""
    return algorithm_named(reference).config()
