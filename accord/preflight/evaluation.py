"""A look at what the evaluation will need."""

from pathlib import Path

from accord.bundled import data_path
from accord.errors import DataError, UsageError
from accord.models.references import locate
from accord.preflight.shared import Faults, Prompts, ask_scoring_server, is_finished
from accord.round_config import RoundConfig
from accord.runs import Runs
from eval.config import EvalConfig, LmEval
from eval.measuring.annotators import Annotators, annotators_behind
from eval.measuring.answers import read_groups, read_prompts
from eval.measuring.lm_eval import files_of
from eval.measuring.lm_eval_samples import pair_samples, read_samples
from eval.measuring.lm_eval_tasks import find_task
from eval.measuring.raters import rater_of, read_labelled
from eval.review.take_over import ANSWERS_FOLLOW_FROM, finished_review
from eval.suites.suite import find_suite, read_items
from eval.verdict.floors import check_floors
from eval.verdict.margins import check_prompt_slices, check_slices, check_sources
from eval.verdict.signing import signing_key
from reward.scorers import scorer_of


def look_at_evaluation(
    config: EvalConfig, runs: Runs, has_reward_model: bool, faults: Faults
) -> Prompts | None:
    """Returns the prompts, where they can be read."""
    prompts: Prompts | None = None
    with faults.of("eval.prompts"):
        prompts = prompts_of(config)
        groups = read_groups(data_path(config.prompts), config.prompt_group)
        with faults.of("eval.gate"):
            check_prompt_slices(config.rules, prompts, groups)
    for reference in config.suites:
        with faults.of("eval.suites"):
            suite = find_suite(reference)
            rows = read_items(suite, config.max_suite_items)
            clusters, groups_of_rows = [row.template or row.id for row in rows], [row.group for row in rows]
            with faults.of("eval.gate"):
                for name in config.gate.keys() & suite.metrics.keys():
                    check_slices(config.rules, name, clusters, groups_of_rows)
                    check_floors(config.rules, name, clusters)
    for task, settings in config.lm_eval.items():
        with faults.of(f"eval.lm_eval.{task}"):
            _look_at_task(task, settings)
    if config.judge:
        with faults.of("eval.judge"):
            judge = scorer_of(config.judge, runs, find=locate)
            if judge.judge is None:
                raise UsageError(f"'{config.judge}' is no judge; write judge:<model reference>")
            if not is_finished(runs, "eval", config):
                ask_scoring_server(judge)
    for what, rater in config.raters.items():
        with faults.of(f"eval.raters.{what}"):
            rater_of(what, rater.by, runs, rater.label, find=locate)
            if rater.labelled:
                read_labelled(Path(rater.labelled), what)
    if config.review:
        with faults.of("eval.review"):
            finished_review(config.review, runs, config.model_dump(include=set(ANSWERS_FOLLOW_FROM)))
    with faults.of("eval.gate"):
        check_sources(config, has_reward_model)
    with faults.of("eval"):
        signing_key()
    return prompts


def prompts_of(config: EvalConfig) -> Prompts:
    """Those that both models answer, by id."""
    return dict(list(read_prompts(data_path(config.prompts)).items())[: config.max_prompts])


def _look_at_task(task: str, settings: LmEval) -> None:
    if settings.folder:
        find_task(task, Path(settings.folder))
        return
    before, after = (read_samples(file) for file in files_of(task, settings).values())
    found = pair_samples(before, after, (str(settings.baseline), str(settings.candidate)))
    if missing := sorted(settings.metrics.keys() - found.keys()):
        raise DataError(f"{settings.baseline}: has no metric '{missing[0]}', only {', '.join(sorted(found))}")


def annotators_of(config: RoundConfig, runs: Runs) -> set[Annotators]:
    """Who judged, or will judge, what the round's models are made from."""
    references = (config.model, config.preferences or "")
    try:
        found = annotators_behind([each for each in references if each.startswith("run:")], runs)
    except UsageError:  # there is no such run, which is said where it is looked for
        found = set()
    if config.feedback:
        found.add(config.feedback.annotators)
    elif config.preferences and not config.preferences.startswith("run:"):
        found.add("unknown")
    if getattr(config.rl, "feedback", None):  # labels in a file
        found.add("unknown")
    return found
