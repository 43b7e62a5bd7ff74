"""One alignment round, from a base model to a verdict on its successor.

    accord round configs/demo.yaml

Every stage is a run whose id follows from its configuration and inputs: what is finished is reused, what was
killed continues, and while annotators are at work the command leaves with exit code 75 and may be repeated.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from accord.chat import answer
from accord.models.base import prepare_base
from accord.models.references import Model, resolve
from accord.preflight import check_round, finished_feedback
from accord.records import Comparison
from accord.round_config import RoundConfig, StageName
from accord.rows import open_data
from accord.runs import DataFile, Run, Runs
from accord.sampling.shared import SharedSampler
from eval.evaluate import evaluate
from feedback.join import join_feedback
from feedback.stage import gather_preferences
from reward.score import score
from reward.train import train_reward_model
from rl.algorithms import Inputs, algorithm_named
from sft.train import fine_tune


def run_round(
    config: RoundConfig, runs: Runs, until: StageName = "eval", wait: bool = False, checked: bool = False
) -> Run:
    """Run or continue a round, and return the run of its last stage.

    Args:
        config: see `RoundConfig`.
        runs: where runs are kept and found again.
        until: the last stage to run.
        wait: stay while people rank, instead of raising.
        checked: `check_round` found nothing wrong with the same arguments, and need not look again.

    Raises:
        UsageError, DataError: something that a stage will need is wrong; nothing was started.
        WaitingForAnnotatorsError: people have not ranked everything yet.
        AccordError: whatever else a stage finds wrong; what was finished stays.
    """
    config = open_data(config, runs)
    if not checked:
        check_round(config, runs, until)
    earlier = None
    if config.preferences and config.preferences.startswith("run:"):
        earlier = finished_feedback(config.preferences, runs)
    algorithm = algorithm_named(config.rl.algorithm)

    with SharedSampler(config.sampling, log=runs.root / "vllm.log") as sampler:
        # The base model learns the form of good answers from demonstrations.
        policy = prepare_base(config.model, runs, config.chat_template)
        if config.sft:
            sft_run = fine_tune(config.sft, runs, policy)
            if until == "sft":
                return sft_run
            policy = resolve(f"run:{sft_run.id}", runs)

        # People rank what this policy answers.
        preferences: Run | DataFile
        if config.feedback:
            doubtful = config.feedback.selection_reward_model
            selection_model = resolve(doubtful, runs) if doubtful else None
            scorer = partial(_scores, selection_model) if selection_model else None
            preferences = gather_preferences(
                config.feedback, runs, policy, sampler, wait, selection_model, scorer
            )
            if earlier:
                preferences = join_feedback(runs, [preferences, earlier])
            if until == "feedback":
                return preferences
        else:
            preferences = earlier or DataFile(Path(str(config.preferences)))

        # A reward model learns from the rankings which answers people prefer.
        previous = resolve(config.reward.previous, runs) if config.reward.previous else None
        reward_run = train_reward_model(config.reward, runs, policy, preferences, previous)
        if until == "reward":
            return reward_run

        # The policy is optimised towards what they prefer.
        reward_model = resolve(f"run:{reward_run.id}", runs)
        new_policy_run = algorithm.train(config.rl, Inputs(runs, policy, reward_model, preferences, sampler))
        if until == algorithm.name:
            return new_policy_run

        # The gate decides whether the new policy may replace the old one.
        return evaluate(
            config.eval,
            runs,
            sampler,
            baseline=policy,
            candidate=resolve(f"run:{new_policy_run.id}", runs),
            reward_model=reward_model,
        )


def _scores(reward_model: Model, comparisons: Sequence[Comparison]) -> list[list[float]]:
    """The reward of every response of every comparison."""
    conversations = [
        [*comparison.prompt, *answer(response.text)]
        for comparison in comparisons
        for response in comparison.responses
    ]
    scores = iter(score(reward_model, conversations))
    return [[next(scores) for _ in comparison.responses] for comparison in comparisons]
