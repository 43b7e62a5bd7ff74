"""One alignment round, from a base model to a verdict on its successor.

    accord round configs/demo.yaml

Every stage is a run whose id follows from its configuration and inputs: what is finished is reused, what was
killed continues, and while annotators are at work the command leaves with exit code 75 and may be repeated.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import reward.train
import sft.train
from accord.bundled import data_path
from accord.chat import answer
from accord.errors import UsageError
from accord.models import Model, resolve
from accord.records import Comparison, conversation_id, read_jsonl
from accord.round_config import RoundConfig, StageName
from accord.rows import open_data
from accord.runs import DataFile, Run, Runs
from accord.sampling.shared import SharedSampler
from eval.evaluate import evaluate
from eval.measuring.annotators import Annotators, annotators_behind, check_formula_is_not_gated
from eval.measuring.answers import read_prompts
from feedback.join import join_feedback
from feedback.stage import gather_preferences
from reward.score import score
from reward.train import train_reward_model
from rl.algorithms import ALGORITHMS, Inputs, algorithm_named
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
    config = open_data(config, runs)
    if config.sft:
        sft.train.check_arguments(config.sft.trainer)
    reward.train.check_arguments(config.reward.trainer)
    algorithm = algorithm_named(config.rl.algorithm)
    algorithm.check(config.rl)
    stages = ("sft", "feedback", "reward", algorithm.name, "eval")
    if until not in stages and until not in ALGORITHMS:
        raise UsageError(f"there is no stage '{until}'; name one of {', '.join(stages)}")
    if until not in stages:
        command = config.rl.algorithm if config.rl.algorithm in ALGORITHMS else "round"
        raise UsageError(
            f"this configuration says rl.algorithm: {config.rl.algorithm}; run `accord {command}`, or change the "
            "algorithm"
        )

    earlier = _earlier_feedback(config, runs)
    check_formula_is_not_gated(config.eval.gate, _annotators(config, runs))

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


def _earlier_feedback(config: RoundConfig, runs: Runs) -> Run | None:
    """The finished feedback run that `preferences` names; None where it names a file, or nothing.

    Raises:
        UsageError: there is no such run, it is no feedback or not finished, or it judged prompts of the evaluation.
    """
    if not config.preferences or not config.preferences.startswith("run:"):
        return None
    run = runs.load(config.preferences)
    if run.record.stage != "feedback":
        raise UsageError(f"preferences: {run.id} is no feedback run; `accord runs list` shows which are")
    comparisons = read_jsonl(run.output("comparisons.jsonl"), Comparison)
    judged = {conversation_id(each.prompt) for each in comparisons if not each.is_probe}
    runs.check(run)
    prompts = list(read_prompts(data_path(config.eval.prompts)).values())[: config.eval.max_prompts]
    if seen := sum(conversation_id(prompt) in judged for prompt in prompts):
        raise UsageError(
            f"{seen} of the evaluation's {len(prompts)} prompts were judged in {run.id}, so training would see what "
            "the gate measures; give eval.prompts a file without them"
        )
    return run


def _annotators(config: RoundConfig, runs: Runs) -> set[Annotators]:
    """Who judged, or will judge, what the round's models are made from."""
    references = (config.model, config.preferences or "")
    found = annotators_behind([each for each in references if each.startswith("run:")], runs)
    if config.feedback:
        found.add(config.feedback.annotators)
    elif not str(config.preferences).startswith("run:"):
        found.add("unknown")
    return found


def _scores(reward_model: Model, comparisons: Sequence[Comparison]) -> list[list[float]]:
    """The reward of every response of every comparison."""
    conversations = [
        [*comparison.prompt, *answer(response.text)]
        for comparison in comparisons
        for response in comparison.responses
    ]
    scores = iter(score(reward_model, conversations))
    return [[next(scores) for _ in comparison.responses] for comparison in comparisons]
