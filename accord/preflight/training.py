"""A look at what the policy's optimisation will need, and whether TRL takes the settings of a stage."""

from typing import Any

from accord import parallel
from accord.errors import UsageError
from accord.models.references import locate
from accord.preflight.shared import Faults, ask_scoring_server, is_finished, read_rows
from accord.records import Demonstration, Prompt, UnpairedFeedback
from accord.round_config import RoundConfig
from accord.runs import Runs
from accord.training_config import TrainingConfig
from reward.scorers import scorer_of
from rl.algorithms import ALGORITHMS, algorithm_named
from rl.config import BestOfNConfig, DPOConfig, KTOConfig, OnlineConfig, PPOConfig


def look_at_algorithm(config: RoundConfig, runs: Runs, faults: Faults) -> None:
    """Whatever of these keys an algorithm has."""
    section: Any = config.rl
    if section.algorithm not in ALGORITHMS:  # a user's own
        with faults.of("rl"):
            algorithm_named(section.algorithm).check(section)
    if prompts := getattr(section, "prompts", None):
        with faults.of("rl.prompts"):
            read_rows(prompts, Prompt)
    if demonstrations := getattr(section, "demonstrations", None):
        with faults.of("rl.demonstrations"):
            read_rows(demonstrations, Demonstration)
    if isinstance(section, KTOConfig) and section.labels == "ratings" and config.feedback:
        with faults.of("rl.labels"):
            if config.feedback.task != "rating":
                raise UsageError(
                    f"is ratings, and feedback.task: {config.feedback.task} asks for none; set that to rating, or "
                    "rl.labels to pairs"
                )
    if feedback := getattr(section, "feedback", None):
        with faults.of("rl.feedback"):
            read_rows(feedback, UnpairedFeedback)
    if function := getattr(section, "reward_function", None):
        with faults.of("rl.reward_function"):
            scorer = scorer_of(function, runs, find=locate)
            if not is_finished(runs, section.algorithm, section):
                ask_scoring_server(scorer)
    if isinstance(section, PPOConfig):
        if config.compute.sharding not in ("none", "fsdp2"):
            with faults.of("compute.sharding"):
                raise UsageError(
                    f"is {config.compute.sharding}, and PPO shards by fsdp2 only; set it to that"
                )
        if section.report_to:
            with faults.of("rl.report_to"):
                from rl.trackers import check_trackers

                check_trackers(section.report_to)
        if section.shared_base and config.reward and config.reward.lora is None:
            with faults.of("rl.shared_base"):
                raise UsageError(
                    "needs a reward model that is trained with lora, and there is no reward.lora; set that, or "
                    "shared_base to false"
                )


def look_at_trainer(name: str, section: Any, processes: int, faults: Faults) -> None:
    """Whether a stage's rows divide evenly over processes, and TRL takes what the user passes on to it."""
    if not isinstance(section, TrainingConfig):
        return
    with faults.of(f"{name}.rows_per_update"):
        section.passes_per_update(processes)
        if section.trainer:  # the import takes seconds
            with faults.of(f"{name}.trainer"):
                _check_trainer(name, section)


def _check_trainer(name: str, section: TrainingConfig) -> None:
    if isinstance(section, OnlineConfig):
        from rl.online import check_arguments as check_online

        check_online(section)
        return  # values depend on one another there, and TRL sees them all together
    check: Any
    target: Any
    if name == "sft":
        import sft.train

        check, target = sft.train.check_arguments, sft.train.TrlSFTConfig
    elif name == "reward":
        import reward.train

        check, target = reward.train.check_arguments, reward.train.TrlRewardConfig
    elif isinstance(section, DPOConfig):
        import rl.dpo

        check, target = rl.dpo.check_arguments, rl.dpo.TrlDPOConfig
    elif isinstance(section, KTOConfig):
        import rl.kto

        check, target = rl.kto.check_arguments, rl.kto.TrlKTOConfig
    elif isinstance(section, BestOfNConfig):
        import rl.best_of_n

        check, target = rl.best_of_n.check_arguments, rl.best_of_n.TrlSFTConfig
    else:
        return
    from accord.training import build_arguments, trainer_arguments

    check(section.trainer)
    if parallel.count() == 1:
        build_arguments(
            name, target, trainer_arguments(section, None, evaluate=not isinstance(section, BestOfNConfig))
        )
