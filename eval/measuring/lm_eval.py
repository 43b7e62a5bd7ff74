"""Tasks of lm-evaluation-harness as suites: run on both models here, or from the samples that it logged elsewhere."""

from collections.abc import Sequence
from pathlib import Path

from eval.config import LmEval
from eval.measuring.lm_eval_samples import pair_samples, read_samples
from eval.measuring.lm_eval_tasks import run_task
from eval.measuring.side import Side
from eval.rows import SUITE, Outcome, SuiteItem, SuiteSubject


def files_of(task: str, settings: LmEval) -> dict[str, Path]:
    """The files that a task's values depend on, by their part in the evaluation."""
    if settings.folder:
        files = {file.name: file for file in sorted(Path(settings.folder).glob("*.yaml"))}
    else:
        files = {"baseline": Path(str(settings.baseline)), "candidate": Path(str(settings.candidate))}
    return {f"{SUITE}{task}/{name}": file for name, file in files.items()}


def items_of(task: str, settings: LmEval, sides: Sequence[Side]) -> list[SuiteItem]:
    """A task's documents with the values of the named metrics under both models, the baseline first.

    Raises:
        UsageError: lm-eval is not installed, or has no such task in the folder.
        DataError: the two files are not about the same documents, or a metric has no numbers.
    """
    if settings.folder:
        folder = Path(settings.folder)
        before, after = (run_task(each.model, each.tokenizer, task, folder, settings.limit) for each in sides)
        names = ("baseline", "candidate")
    else:
        names = (str(settings.baseline), str(settings.candidate))
        before, after = (read_samples(Path(name)) for name in names)
    values: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
    for metric, paired in pair_samples(before, after, names).items():
        if metric in settings.metrics:
            for doc, b, c in zip(paired.ids, paired.before, paired.after, strict=True):
                of_baseline, of_candidate = values.setdefault(doc, ({}, {}))
                of_baseline[metric], of_candidate[metric] = b, c
    return [
        SuiteItem(
            suite=task, id=doc, item={}, baseline=Outcome(id=doc, values=dict(b)),
            candidate=Outcome(id=doc, values=dict(c)),
        )
        for doc, (b, c) in values.items()
    ]  # fmt: skip


def about(task: str, items: int) -> SuiteSubject:
    """What the verdict says of a task."""
    return SuiteSubject(
        name=task, title=task, family="quality", license="as the task says", source="lm-evaluation-harness",
        measures="A task of lm-evaluation-harness, whose own page says what it measures.", items=items,
    )  # fmt: skip
