"""A gate with reviewers' labels: the evaluation that they reviewed is taken over, not measured again.

    accord gate ... --config gate.yaml review=run:feedback-0123456789ab

The labels are about certain answers, so the new evaluation has to have these very answers: it takes them, their scores
and the suites' outcomes from the reviewed run, as the parts that a killed evaluation would have left.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from accord.errors import UsageError
from accord.records import read_jsonl
from accord.runs import Run, Runs, Source
from accord.text_files import write_jsonl
from eval.rows import Answer, MeasuredAnswer, Outcome, Reward, Sample, SuiteItem

ANSWERS_FOLLOW_FROM = (
    "max_prompts", "prompt_group", "samples_per_prompt", "max_response_tokens", "temperature", "seed"
)  # fmt: skip
"""The settings that the answers depend on, beside models, prompts and scorer, whose digests are compared."""
ROLES = ("baseline", "candidate")


def reviewed_evaluation(
    reference: str, runs: Runs, settings: Mapping[str, object], sources: Mapping[str, Source]
) -> tuple[Run, Run]:
    """A review, and the evaluation that was reviewed.

    Args:
        reference: the review, as `run:feedback-<id>`.
        runs: where both are.
        settings: `ANSWERS_FOLLOW_FROM` of the new evaluation, which have to be those of the reviewed one.
        sources: of the new evaluation; models, prompts and scorer have to be those of the reviewed one, too.

    Raises:
        UsageError: it is no finished review, or the reviewed evaluation is of other models, prompts or settings.
    """
    review, earlier = finished_review(reference, runs, settings)
    for role in (*ROLES, "prompts", "reward_model"):
        source = sources.get(role)
        if (source.run_id or source.digest if source else None) != _identity(earlier, role):
            raise UsageError(
                f"eval.review: {earlier.id}, which was reviewed, has another {role.replace('_', ' ')}; name the one "
                "that was reviewed, or have this evaluation reviewed"
            )
    return review, earlier


def finished_review(reference: str, runs: Runs, settings: Mapping[str, object]) -> tuple[Run, Run]:
    """The review and the evaluation that was reviewed, as far as the configuration tells whether they fit.

    Raises:
        UsageError: it is no finished review, or the reviewed evaluation is of other settings.
        TamperedError: the evaluation's files are not the recorded ones.
    """
    name = reference.removeprefix("run:")
    review = runs.load(name)
    if "evaluation" not in review.record.parents or not review.is_done:
        raise UsageError(
            f"eval.review: {name} is no finished review; make one with `accord feedback review EVAL_RUN CONFIG`"
        )
    earlier = runs.load(review.record.parents["evaluation"])
    earlier.check_outputs()
    for key in ANSWERS_FOLLOW_FROM:
        then, now = earlier.record.config[key], settings[key]
        if then != now:
            raise UsageError(
                f"eval.review: {earlier.id}, which was reviewed, has {key}: {then}, and this evaluation {now}; the "
                "answers would be others"
            )
    return review, earlier


def take_over(earlier: Run, parts: Path, sources: Mapping[str, Source], max_suite_items: int | None) -> None:
    """Write an earlier evaluation's measurements where those of a killed one would be.

    Args:
        earlier: the evaluation.
        parts: the folder to write to.
        sources: of the new evaluation; suites whose items are others now are left out.
        max_suite_items: of the new evaluation; where the earlier one took more or fewer, or what rates the answers is
            another one now, all suites are left out.
    """
    samples = read_jsonl(earlier.output("samples.jsonl"), Sample)
    for role in ROLES:
        measured: list[MeasuredAnswer] = [getattr(sample, role) for sample in samples]
        write_jsonl(
            parts / f"answers.{role}.jsonl", [Answer.model_validate(_only(a, Answer)) for a in measured]
        )
        if sources.get("reward_model"):
            rewards = [Reward.model_validate(_only(a, Reward)) for a in measured]
            write_jsonl(parts / f"rewards.{role}.jsonl", rewards)
    raters = {
        role
        for role in (*sources, *earlier.record.inputs, *earlier.record.parents)
        if role.startswith("rater:")
    }
    if earlier.record.config["max_suite_items"] != max_suite_items or any(
        _identity(earlier, role)
        != (sources[role].run_id or sources[role].digest if role in sources else None)
        for role in raters
    ):
        return
    outcomes: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for item in read_jsonl(earlier.output("suites.jsonl"), SuiteItem):
        for role in ROLES:
            outcomes[item.suite, role].append(getattr(item, role))
    for (suite, role), its in outcomes.items():
        roles = (f"suite:{suite}", f"suite:{suite}/kind")
        now = [sources[part].digest if part in sources else None for part in roles]
        if any(now) and now == [earlier.record.inputs.get(part) for part in roles]:
            write_jsonl(parts / f"suite.{suite}.{role}.jsonl", its)


def _identity(run: Run, role: str) -> str | None:
    return run.record.parents.get(role) or run.record.inputs.get(role)


def _only(row: MeasuredAnswer, kind: type[Answer] | type[Reward]) -> dict[str, object]:
    return {name: getattr(row, name) for name in kind.model_fields}
