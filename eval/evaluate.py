"""The evaluation stage: both models answer the same held-out prompts, and the gate decides.

Baseline and candidate get the same prompts with the same seeds (common random numbers), so that what differs is the
models. Each answer is measured by the simulated annotators' utility, the reward model's score, its length, whether
it ended by itself, and how much it repeats itself. Both models also go through the suites that the configuration names.

    accord gate --baseline run:sft-... --candidate run:dpo-... --config gate.yaml

The run holds `samples.jsonl` (one row a prompt and sample), `suites.jsonl` (one row an item of a suite), `verdict.json`
with its signature, `metrics.json` and the page `report.html`. A killed evaluation continues with the parts it has.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import click

from accord.bundled import data_path
from accord.errors import UsageError
from accord.models import Model
from accord.records import Row, read_jsonl, write_jsonl
from accord.runs import DataFile, Run, Runs, Source
from accord.sampling.shared import SharedSampler
from eval.conclude import conclude
from eval.config import EvalConfig
from eval.likelihood.cache import LIKELIHOODS
from eval.measuring import lm_eval
from eval.measuring.answers import (
    judge_answers,
    measure_answers,
    pair_up,
    read_groups,
    read_prompts,
    sample_answers,
    score_answers,
)
from eval.measuring.suites import loaded_once, measure_by_likelihood, sample_replies
from eval.promotion import override_behind
from eval.review.take_over import reviewed_evaluation, take_over
from eval.rows import SUITE, Answer, Judgement, MeasuredAnswer, Outcome, Reward, SuiteItem
from eval.suites.kind import SuiteRow
from eval.suites.suite import Suite, find_suite, read_items
from eval.verdict.gate import Compared
from eval.verdict.margins import check_prompt_slices, check_slices, check_sources
from eval.verdict.signing import signing_key
from reward.scorers import Scorer, scorer_of, scorer_of_model


def evaluate(
    config: EvalConfig,
    runs: Runs,
    sampler: SharedSampler,
    baseline: Model,
    candidate: Model,
    reward_model: Model | Scorer | None = None,
    show: Callable[[str], None] = click.echo,
) -> Run:
    """Compare `candidate` with `baseline`; returns the finished run, whose `verdict.json` holds the decision.

    Args:
        config: what to measure, and the gate's margins.
        runs: where the run goes, and where those of the lineage are.
        sampler: the round's sampler, which takes over each model's weights in turn.
        baseline: the model that the candidate would replace.
        candidate: the model to decide on.
        reward_model: scores the answers, and may be a judge or a function; without it there is no "reward" metric.
        show: takes a line of progress now and then.

    Raises:
        DataError: a bad prompt file, or a prompt that stands in it twice.
        UsageError: the reward is gated, and there is no reward model, or a model that is none; a margin is for a group
            that is not there or too small; the user's key to sign the verdict with cannot be used.
        TamperedError: promoted.json, which says how the baseline came into use, was changed.
    """
    scorer = scorer_of_model(reward_model) if isinstance(reward_model, Model) else reward_model
    prompt_file = data_path(config.prompts)
    prompts = dict(list(read_prompts(prompt_file).items())[: config.max_prompts])
    groups = read_groups(prompt_file, config.prompt_group)
    check_prompt_slices(config, prompts, groups)
    suites = [(suite, read_items(suite, config.max_suite_items)) for suite in map(find_suite, config.suites)]
    for suite, rows in suites:
        for name in config.gate.keys() & suite.metrics.keys():
            check_slices(config, name, [row.template or row.id for row in rows], [row.group for row in rows])
    sources: dict[str, Source] = {"baseline": baseline, "candidate": candidate}
    if scorer:
        sources["reward_model"] = scorer
    check_sources(config, has_reward_model=scorer is not None)
    judge = scorer_of(config.judge, runs) if config.judge else None
    if judge:
        if judge.judge is None:
            raise UsageError(f"eval.judge: '{config.judge}' is no judge; write judge:<model reference>")
        sources["judge"] = judge
    sources |= {"prompts": DataFile(prompt_file)}
    sources |= {SUITE + suite.name: DataFile(suite.file) for suite, _ in suites}
    for task, settings in config.lm_eval.items():
        sources |= {role: DataFile(file) for role, file in lm_eval.files_of(task, settings).items()}
    review = earlier = None
    if config.review:
        review, earlier = reviewed_evaluation(config, runs, sources)
        sources["review"] = review

    with runs.begin("eval", config, sources) as run:
        if run.is_done:
            return run
        # Needed at the end only; what is wrong with them should not show after hours.
        signing_key()
        override_behind(baseline, runs)

        # measure: every part is written when it is complete, and reused after a kill
        parts = run.path / "checkpoints"
        if earlier:
            take_over(earlier, config, sources, parts)
        measured: dict[str, list[MeasuredAnswer]] = {}
        outcomes: dict[str, list[list[Outcome]]] = {}
        for role, model in (("baseline", baseline), ("candidate", candidate)):
            show(f"{role}: {len(prompts) * config.samples_per_prompt} answers of {model.reference}")
            sample = functools.partial(sample_answers, model, sampler, prompts, config)
            answers = _part(parts / f"answers.{role}.jsonl", Answer, sample)
            rewards: list[Reward] = []
            if scorer:
                show(f"{role}: scoring {len(answers)} answers with {scorer.reference}")
                score = functools.partial(score_answers, scorer, prompts, answers)
                rewards = _part(parts / f"rewards.{role}.jsonl", Reward, score)
            measured[role] = measure_answers(prompts, answers, rewards)
            outcomes[role] = _go_through(suites, model, sampler, config, scorer, role, runs, parts, show)

        samples = pair_up(prompts, groups, measured["baseline"], measured["candidate"])
        if judge and judge.judge:
            show(f"{judge.reference} judges {len(samples)} pairs of answers")
            ask = functools.partial(judge_answers, judge.judge, samples)
            judgements = _part(parts / "judgements.jsonl", Judgement, ask)
            samples = [
                sample.model_copy(update={"judgement": each})
                for sample, each in zip(samples, judgements, strict=True)
            ]
        items = [
            SuiteItem(
                suite=suite.name, id=row.id, template=row.template, group=row.group,
                item=row.model_dump(exclude={"id", "template", "group"}), baseline=b, candidate=c,
            )
            for (suite, rows), before, after in zip(suites, *outcomes.values(), strict=True)
            for row, b, c in zip(rows, before, after, strict=True)
        ]  # fmt: skip
        for task, settings in config.lm_eval.items():
            show(f"lm-eval's task {task}")
            run_both = functools.partial(lm_eval.items_of, task, settings, baseline, candidate)
            items += _part(parts / f"lm_eval.{task}.jsonl", SuiteItem, run_both)
        conclude(config, run, runs, samples, items, Compared(baseline, candidate, scorer, judge, review))
    return run


def _go_through(
    suites: Sequence[tuple[Suite, list[SuiteRow]]], model: Model, sampler: SharedSampler, config: EvalConfig,
    scorer: Scorer | None, role: str, runs: Runs, parts: Path, show: Callable[[str], None],
) -> list[list[Outcome]]:  # fmt: skip
    """The outcomes of every suite under one model, each suite's written when it is complete."""
    policy = loaded_once(model)

    def outcomes(suite: Suite, rows: list[SuiteRow]) -> list[Outcome]:
        show(f"{role}: {suite.name}, {len(rows)} items")
        if suite.is_by_likelihood:
            return measure_by_likelihood(suite, rows, model, policy, runs.root / LIKELIHOODS)
        return sample_replies(suite, rows, model, sampler, config, scorer)

    return [
        _part(parts / f"suite.{suite.name}.{role}.jsonl", Outcome, functools.partial(outcomes, suite, rows))
        for suite, rows in suites
    ]


RowT = TypeVar("RowT", bound=Row)


def _part(path: Path, row_type: type[RowT], make: Callable[[], list[RowT]]) -> list[RowT]:
    """The rows that an earlier, killed evaluation left at `path`, or else new ones, written there."""
    if path.exists():
        return read_jsonl(path, row_type)
    rows = make()
    write_jsonl(path, rows)
    return rows
