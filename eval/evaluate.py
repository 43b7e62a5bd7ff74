"""The evaluation stage: both models answer the same held-out prompts, and the gate decides.

Baseline and candidate get the same prompts with the same seeds (common random numbers), so that what differs is the
models. Each answer is measured by the reward model's score, its length, whether it ended by itself, and how much it
repeats itself; where simulated annotators judged, and no people did, also by their formula. Both models also go
through the suites that the configuration names.

    accord gate --baseline run:sft-... --candidate run:dpo-... --config gate.yaml

The run holds `samples.jsonl` (one row a prompt and sample), `suites.jsonl` (one row an item of a suite), `verdict.json`
with its signature, `metrics.json` and the page `report.html`. A killed evaluation continues with the parts it has.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from accord.bundled import data_path
from accord.data.rows import Rows, open_data
from accord.errors import UsageError
from accord.models.references import Model
from accord.records import Row, read_jsonl
from accord.runs import DataFile, Run, Runs, Source
from accord.sampling.shared import SharedSampler
from accord.terminal import say
from accord.text_files import write_jsonl
from eval.conclude import Evidence, conclude
from eval.config import EvalConfig, Sampling
from eval.likelihood.cache import LIKELIHOODS
from eval.measuring import lm_eval
from eval.measuring.annotators import annotators_behind, check_formula_is_not_gated, measures_formula
from eval.measuring.answers import (
    judge_answers,
    measure_answers,
    pair_up,
    read_groups,
    read_prompts,
    sample_answers,
    score_answers,
)
from eval.measuring.raters import Rater, raters_of, sources_of, told_of
from eval.measuring.side import Side
from eval.measuring.suites import about, loaded_once, measure_by_likelihood, sample_replies
from eval.promotion import override_behind
from eval.review.take_over import ANSWERS_FOLLOW_FROM, reviewed_evaluation, take_over
from eval.rows import SUITE, Answer, Judgement, MeasuredAnswer, Outcome, Reward, SuiteItem
from eval.suites.kind import Rated, SuiteRow
from eval.suites.suite import Suite, find_suite, read_items
from eval.verdict.floors import check_floors
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
    show: Callable[[str], None] = say,
    prompts: Rows | None = None,
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
        prompts: rows in place of the file that `config` names.

    Raises:
        DataError: a bad prompt file, or a prompt that stands in it twice.
        UsageError: the reward is gated, and there is no reward model, or a model that is none; the simulated
            annotators' formula is gated, and people judged, or nobody; a margin is for a group that is not there or too
            small; the user's key to sign the verdict with cannot be used.
        TamperedError: promoted.json, which says how the baseline came into use, was changed.
    """
    scorer = scorer_of_model(reward_model) if isinstance(reward_model, Model) else reward_model
    config = open_data(config, runs, prompts=prompts)
    sampling, rules = config.sampling, config.rules
    prompt_file = data_path(config.prompts)
    questions = dict(list(read_prompts(prompt_file).items())[: config.max_prompts])
    groups = read_groups(prompt_file, config.prompt_group)
    check_prompt_slices(rules, questions, groups)
    suites = [(suite, read_items(suite, config.max_suite_items)) for suite in map(find_suite, config.suites)]
    for suite, rows in suites:
        for name in config.gate.keys() & suite.metrics.keys():
            clusters = [row.template or row.id for row in rows]
            check_slices(rules, name, clusters, [row.group for row in rows])
            check_floors(rules, name, clusters)
    sources: dict[str, Source] = {"baseline": baseline, "candidate": candidate}
    if scorer:
        sources["reward_model"] = scorer
    check_sources(config, has_reward_model=scorer is not None)
    judge = scorer_of(config.judge, runs) if config.judge else None
    if judge:
        if judge.judge is None:
            raise UsageError(f"eval.judge: '{config.judge}' is no judge; write judge:<model reference>")
        sources["judge"] = judge
    raters = raters_of(config.raters, runs)
    sources |= sources_of(config.raters, raters)
    sources |= {"prompts": DataFile(prompt_file)}
    sources |= {SUITE + name: DataFile(file) for suite, _ in suites for name, file in suite.files.items()}
    for task, of_task in config.lm_eval.items():
        sources |= {role: DataFile(file) for role, file in lm_eval.files_of(task, of_task).items()}
    review = earlier = None
    if config.review:
        settings = config.model_dump(include=set(ANSWERS_FOLLOW_FROM))
        review, earlier = reviewed_evaluation(config.review, runs, settings, sources)
        sources["review"] = review

    judges = annotators_behind([baseline.run_id, candidate.run_id], runs)
    others = annotators_behind([source.run_id for source in sources.values()], runs)
    check_formula_is_not_gated(config.gate, judges, others)

    with runs.begin("eval", config, sources) as run:
        if run.is_done:
            return run
        # Needed at the end only; what is wrong with them should not show after hours.
        signing_key()
        override_behind(baseline, runs)

        # measure: every part is written when it is complete, and reused after a kill
        parts = run.path / "checkpoints"
        if earlier:
            take_over(earlier, parts, sources, config.max_suite_items)
        measured: dict[str, list[MeasuredAnswer]] = {}
        outcomes: dict[str, list[list[Outcome]]] = {}
        sides = [Side("baseline", baseline), Side("candidate", candidate)]
        for side in sides:
            role = side.role
            show(f"{role}: {len(questions) * sampling.samples_per_prompt} answers of {side.model.reference}")
            sample = functools.partial(sample_answers, side, sampler, questions, sampling)
            answers = _part(parts / f"answers.{role}.jsonl", Answer, sample)
            rewards: list[Reward] = []
            if scorer:
                show(f"{role}: scoring {len(answers)} answers with {scorer.reference}")
                score = functools.partial(score_answers, scorer, questions, answers)
                rewards = _part(parts / f"rewards.{role}.jsonl", Reward, score)
            measured[role] = measure_answers(questions, answers, rewards, measures_formula(judges, others))
            outcomes[role] = _go_through(
                suites, side, sampler, sampling, scorer, raters, runs.root / LIKELIHOODS, parts, show
            )

        samples = pair_up(questions, groups, measured["baseline"], measured["candidate"])
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
        told: dict[Rated | None, str] = {}
        for what, rater in raters.items():
            if any(suite.rates == what for suite, _ in suites):
                labelled = config.raters[what].labelled
                told[what] = told_of(what, rater, Path(labelled) if labelled else None)
        subjects = [about(suite, len(rows), told.get(suite.rates, "")) for suite, rows in suites]
        for task, of_task in config.lm_eval.items():
            show(f"lm-eval's task {task}")
            run_both = functools.partial(lm_eval.items_of, task, of_task, sides)
            documents = _part(parts / f"lm_eval.{task}.jsonl", SuiteItem, run_both)
            subjects.append(lm_eval.about(task, len(documents)))
            items += documents
        compared = Compared(baseline, candidate, scorer, judge, review)
        conclude(
            run, runs, rules, compared, Evidence(samples, items, subjects), config.max_contaminated_share
        )
    return run


def _go_through(
    suites: Sequence[tuple[Suite, list[SuiteRow]]], side: Side, sampler: SharedSampler, sampling: Sampling,
    scorer: Scorer | None, raters: Mapping[Rated, Rater], likelihoods: Path, parts: Path,
    show: Callable[[str], None],
) -> list[list[Outcome]]:  # fmt: skip
    """The outcomes of every suite under one model, each suite's written when it is complete."""
    policy = loaded_once(side.model)

    def outcomes(suite: Suite, rows: list[SuiteRow]) -> list[Outcome]:
        show(f"{side.role}: {suite.name}, {len(rows)} items")
        if suite.is_by_likelihood:
            return measure_by_likelihood(suite, rows, side, policy, likelihoods)
        rater = raters.get(suite.rates) if suite.rates else None
        return sample_replies(suite, rows, side, sampler, sampling, scorer, rater)

    return [
        _part(
            parts / f"suite.{suite.name}.{side.role}.jsonl", Outcome, functools.partial(outcomes, suite, rows)
        )
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
