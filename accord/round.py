"""One alignment round, from a base model to a verdict on its successor.

    accord round configs/demo.yaml

Every stage is a run whose id follows from its configuration and inputs: what is finished is reused, what was
killed continues, and while annotators are at work the command leaves with exit code 75 and may be repeated.
"""

from pathlib import Path

import reward.train
import rl.dpo
import sft.train
from accord.models import resolve
from accord.round_config import RoundConfig, StageName
from accord.runs import DataFile, Run, Runs
from accord.sampling.shared import SharedSampler
from eval.evaluate import evaluate
from feedback.stage import gather_preferences
from reward.train import train_reward_model
from rl.dpo import train_dpo
from sft.train import fine_tune


def run_round(config: RoundConfig, runs: Runs, until: StageName = "eval", wait: bool = False) -> Run:
    """Run or continue a round, and return the run of its last stage.

    Args:
        config: see `RoundConfig`.
        runs: where runs are kept and found again.
        until: the last stage to run.
        wait: stay while people rank, instead of raising.

    Raises:
        WaitingForAnnotatorsError: people have not ranked everything yet.
        AccordError: whatever else a stage finds wrong; what was finished stays.
    """
    if config.sft:
        sft.train.check_arguments(config.sft.trainer)
    reward.train.check_arguments(config.reward.trainer)
    rl.dpo.check_arguments(config.rl.trainer)

    with SharedSampler(config.sampling, log=runs.root / "vllm.log") as sampler:
        # The base model learns the form of good answers from demonstrations.
        policy = resolve(config.model, runs)
        if config.sft:
            sft_run = fine_tune(config.sft, runs, policy)
            if until == "sft":
                return sft_run
            policy = resolve(f"run:{sft_run.id}", runs)

        # People rank what this policy answers.
        preferences: Run | DataFile
        if config.feedback:
            preferences = gather_preferences(config.feedback, runs, policy, sampler, wait)
            if until == "feedback":
                return preferences
        else:
            preferences = DataFile(Path(str(config.preferences)))

        # A reward model learns from the rankings which answers people prefer.
        reward_run = train_reward_model(config.reward, runs, policy, preferences)
        if until == "reward":
            return reward_run

        # The policy is optimised towards what they prefer.
        new_policy_run = train_dpo(config.rl, runs, policy, preferences)
        if until == "dpo":
            return new_policy_run

        # The gate decides whether the new policy may replace the old one.
        return evaluate(
            config.eval,
            runs,
            sampler,
            baseline=policy,
            candidate=resolve(f"run:{new_policy_run.id}", runs),
            reward_model=resolve(f"run:{reward_run.id}", runs),
        )
