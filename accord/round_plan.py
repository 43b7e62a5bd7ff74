"""Which stages of a round a command runs, and what it asks of the configuration for them.

    stages_until(config, "dpo")     # ["sft", "rl"]: no reward model is trained for DPO
    stages_until(config, None)      # `accord round`: whatever sections there are

A section that is missing is asked for only by the command that needs it.
"""

from accord.errors import UsageError
from accord.round_config import RoundConfig, StageName
from rl.algorithms import ALGORITHMS, Algorithm, algorithm_named

SECTIONS = ("sft", "feedback", "reward", "rl", "eval")
"""Of a round's configuration, in the order in which they are needed; all but rl are called as their stages."""
MISSING = {
    "sft": "add one with sft.demonstrations, or run the next stage: without it, the model itself is aligned",
    "feedback": "its preferences come from `preferences`; add one, or run `accord reward CONFIG`",
    "reward": "add one (`reward: {}` takes what every setting is by default)",
    "rl": "add one, such as `rl: {algorithm: dpo}`",
    "eval": "add one with the margins of eval.gate, or compare two models with `accord gate`",
}
"""What to do where a section is not there."""
WHY_REWARD = {
    "ppo": "its critic starts from the reward model, whatever gives the scores",
    "rloo": "it optimises the reward model's scores, where there is no rl.reward_function",
    "grpo": "it optimises the reward model's scores, where there is no rl.reward_function",
    "best_of_n": "its scores choose the answers, where there is no rl.reward_function",
}
"""What an algorithm needs a reward model for."""


def stages_until(config: RoundConfig, until: StageName | None) -> list[str]:
    """The sections of the stages that a command runs or needs to be finished, in order.

    Args:
        config: of the round.
        until: the last stage, which then is run by itself; None: all that the configuration has sections for.

    Raises:
        UsageError: there is no such stage, or the configuration lacks what the command needs.
    """
    algorithm = algorithm_named(config.rl.algorithm) if config.rl else None
    section = _last_section(config, until, algorithm)
    command = command_of(until)
    if getattr(config, section) is None:
        raise UsageError(
            f"this configuration has no {section} section, which `{command}` needs; {MISSING[section]}"
        )
    wanted = SECTIONS[: SECTIONS.index(section) + 1]
    found = [name for name in wanted if getattr(config, name) is not None]
    if section == "eval" and not {"sft", "rl"} & set(found):
        raise UsageError(
            f"`{command}` compares a new policy with the one before it, and this configuration makes none; add an rl "
            "or an sft section, or compare two models with `accord gate`"
        )
    needs = algorithm.needs(config.rl) if algorithm and "rl" in found else ()
    if "reward" in found and not _is_reward_model_used(config, until, algorithm, needs):
        found.remove("reward")
    if "reward" in needs and config.reward is None:
        assert algorithm is not None
        why = WHY_REWARD.get(algorithm.name, "its algorithm takes one")
        raise UsageError(
            f"this configuration has no reward section, which `{command}` needs: {why}; {MISSING['reward']}"
        )
    if not has_preferences(config) and ("reward" in found or "preferences" in needs):
        raise UsageError(
            f"`{command}` needs preferences, and this configuration names none; set `preferences` to a file of pairs, "
            "or add a feedback section"
        )
    return found


def has_preferences(config: RoundConfig) -> bool:
    """Whether the configuration says where preferences come from."""
    return config.preferences is not None or config.feedback is not None


def command_of(until: StageName | None) -> str:
    """The command that runs a stage by itself; None: the one that runs all of them."""
    if until is None:
        return "accord round"
    return "accord feedback pull" if until == "feedback" else f"accord {until}"


def _last_section(config: RoundConfig, until: StageName | None, algorithm: Algorithm | None) -> str:
    """The section of the last stage.

    Raises:
        UsageError: there is none, or the configuration is for another algorithm.
    """
    if until is None:
        found = [name for name in SECTIONS if getattr(config, name) is not None]
        if not found:
            raise UsageError(
                "this configuration has no section of a stage, so there is nothing to run; add one or more of "
                f"{', '.join(SECTIONS)}"
            )
        return found[-1]
    if until in SECTIONS and until != "rl":
        return until
    named = [algorithm.name] if algorithm else list(ALGORITHMS)
    if until not in {*ALGORITHMS, *named}:
        stages = ", ".join([*(name for name in SECTIONS if name != "rl"), *named])
        raise UsageError(f"there is no stage '{until}'; name one of {stages}")
    if algorithm and until != algorithm.name and config.rl:
        command = algorithm.name if config.rl.algorithm in ALGORITHMS else "round"
        raise UsageError(
            f"this configuration says rl.algorithm: {config.rl.algorithm}; run `accord {command}`, or change the "
            "algorithm"
        )
    return "rl"


def _is_reward_model_used(
    config: RoundConfig, until: StageName | None, algorithm: Algorithm | None, needs: tuple[str, ...]
) -> bool:
    """Whether a reward section's model is wanted for itself, by the algorithm, or by the evaluation."""
    evaluates = config.eval is not None if until is None else until == "eval"
    if evaluates or until == "reward" or algorithm is None or "reward" in needs:
        return True
    if algorithm.name not in ALGORITHMS:  # a user's own may take it, where there is one
        return True
    replaced = getattr(config.rl, "reward_function", None) is not None
    return until is None and not replaced
