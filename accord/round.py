"""One alignment round, from a base model to a verdict on its successor, or as far as its configuration goes.

    accord round configs/demo.yaml

Every stage is a run whose id follows from its configuration and inputs: what is finished is reused, what was
killed continues, and while annotators are at work the command leaves with exit code 75 and may be repeated.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial

from accord import parallel
from accord.bundled import data_path
from accord.chat.tokens import answer
from accord.compute.launch import Launcher, machines_of
from accord.data.rows import open_data
from accord.models.base import prepare_base
from accord.models.references import Model, resolve
from accord.preflight import check_round
from accord.preflight.preferences import finished_feedback
from accord.records import Comparison
from accord.round_against import held_out_by
from accord.round_config import RoundConfig, StageName
from accord.round_plan import stages_until
from accord.runs import DataFile, Run, Runs
from accord.sampling.shared import SharedSampler
from eval.evaluate import evaluate
from feedback.join import join_feedback
from feedback.stage import gather_preferences
from reward.score import score
from reward.train import tell_whether_guessing, train_reward_model
from rl.algorithms import ALGORITHMS, Inputs, algorithm_named
from sft.train import fine_tune

logger = logging.getLogger(__name__)


def run_round(
    config: RoundConfig, runs: Runs, until: StageName | None = None, wait: bool = False, checked: bool = False
) -> Run:
    """Run or continue a round, and return the run of its last stage.

    Args:
        config: see `RoundConfig`.
        runs: where runs are kept and found again.
        until: the last stage to run; None: the last one that the configuration has a section for.
        wait: stay while people rank, instead of raising.
        checked: `check_round` found nothing wrong with the same arguments, and need not look again.

    Raises:
        UsageError, DataError: something that a stage will need is wrong; nothing was started.
        WaitingForAnnotatorsError: people have not ranked everything yet.
        AccordError: whatever else a stage finds wrong; what was finished stays.
    """
    written = config
    config = open_data(config, runs, keep_fault=lambda *_: None)  # check_round says what is wrong
    runs_made: list[Run] = []
    sampler = SharedSampler(config.sampling, log=runs.root / "vllm.log")
    with sampler, _launching(written, runs, sampler):
        if not checked:
            check_round(config, runs, until)
        stages = stages_until(config, until)

        # The base model learns the form of good answers from demonstrations.
        before = policy = prepare_base(config.model, runs, config.chat_template)
        if config.sft and "sft" in stages:
            held_out = held_out_by(config.data.against, runs) if config.data.against else None
            runs_made.append(fine_tune(config.sft, runs, policy, data=config.data, held_out=held_out))
            policy = resolve(f"run:{runs_made[-1].id}", runs)

        # People rank what this policy answers.
        preferences: Run | DataFile | None = _preferences_given(config, runs)
        if config.feedback and "feedback" in stages:
            doubtful = config.feedback.selection_reward_model
            selection_model = resolve(doubtful, runs) if doubtful else None
            scorer = partial(_scores, selection_model) if selection_model else None
            asked = gather_preferences(config.feedback, runs, policy, sampler, wait, selection_model, scorer)
            if isinstance(preferences, Run):
                asked = join_feedback(runs, [asked, preferences])
            preferences = asked
            runs_made.append(asked)

        # A reward model learns from the rankings which answers people prefer.
        reward_model = None
        if config.reward and "reward" in stages:
            assert preferences is not None
            previous = resolve(config.reward.previous, runs) if config.reward.previous else None
            runs_made.append(train_reward_model(config.reward, runs, policy, preferences, previous))
            if parallel.is_first():
                tell_whether_guessing(runs_made[-1])
            reward_model = resolve(f"run:{runs_made[-1].id}", runs)

        # The policy is optimised towards what they prefer.
        new_policy = policy
        if config.rl and "rl" in stages:
            inputs = Inputs(runs, policy, reward_model, preferences, sampler)
            runs_made.append(algorithm_named(config.rl.algorithm).train(config.rl, inputs))
            before, new_policy = policy, resolve(f"run:{runs_made[-1].id}", runs)

        # The gate decides whether the new policy may replace the old one.
        if config.eval and "eval" in stages:
            runs_made.append(
                evaluate(
                    config.eval,
                    runs,
                    sampler,
                    baseline=before,
                    candidate=new_policy,
                    reward_model=reward_model,
                )
            )
    return runs_made[-1]


@contextlib.contextmanager
def _launching(config: RoundConfig, runs: Runs, sampler: SharedSampler) -> Iterator[None]:
    """Within it, training stages are started in as many processes as the configuration says.

    Not where a launcher of the user's started this process; then it is one of several itself.
    """
    if config.compute.processes == 1 or "LOCAL_RANK" in os.environ:
        yield
        return
    settings = {name: value for name, value in config.model_dump(mode="json").items() if value is not None}
    stages = ("sft", "reward", *ALGORITHMS)
    if config.rl and config.rl.algorithm not in ALGORITHMS:
        logger.info("%s: an algorithm of your own runs in one process", config.rl.algorithm)
    with machines_of(config.compute) as machines:
        runs.launch = Launcher(config.compute, settings, runs.root, stages, sampler.close, machines).start
        try:
            yield
        finally:
            runs.launch = None


def _preferences_given(config: RoundConfig, runs: Runs) -> Run | DataFile | None:
    """Those that `preferences` names: a finished feedback run, or a file."""
    if config.preferences is None:
        return None
    if config.preferences.startswith("run:"):
        return finished_feedback(config.preferences, runs)
    return DataFile(data_path(config.preferences))


def _scores(reward_model: Model, comparisons: Sequence[Comparison]) -> list[list[float]]:
    """The reward of every response of every comparison."""
    conversations = [
        [*comparison.prompt, *answer(response.text)]
        for comparison in comparisons
        for response in comparison.responses
    ]
    scores = iter(score(reward_model, conversations))
    return [[next(scores) for _ in comparison.responses] for comparison in comparisons]
