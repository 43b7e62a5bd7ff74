"""The second half of an evaluation: from what was measured to the verdict, the page and the figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from accord.runs import Run, Runs
from accord.text_files import write_jsonl
from eval.checks.audit import Audit, Independent, audit, training_kl
from eval.checks.contamination import blocks, contamination, evaluated_texts
from eval.config import Rules
from eval.measuring.values import Measured, linear, measured_answers, measured_suites
from eval.page.report import write_report
from eval.promotion import override_behind
from eval.review.adjudicated import adjudicated
from eval.rows import Sample, SuiteItem, SuiteSubject
from eval.verdict.comparison import compare, slices
from eval.verdict.gate import Compared, make_verdict, write_verdict
from eval.verdict.rule import distrust


@dataclass(frozen=True)
class Evidence:
    """All that was measured of both models."""

    samples: Sequence[Sample]
    items: Sequence[SuiteItem]
    suites: Sequence[SuiteSubject]
    """What the items are of."""


def conclude(
    run: Run, runs: Runs, rules: Rules, compared: Compared, evidence: Evidence, max_contaminated_share: float
) -> None:  # fmt: skip
    """Decide on what was measured, and finish the run: rows, verdict, page and figures.

    Args:
        run: the evaluation, begun.
        runs: where the lineage is.
        rules: what decides.
        compared: the models, and what scored and judged their answers.
        evidence: what was measured.
        max_contaminated_share: a suite with more of its items in the candidate's training data cannot pass.
    """
    samples, items = evidence.samples, evidence.items
    write_jsonl(run.path / "samples.jsonl", samples)
    write_jsonl(run.path / "suites.jsonl", items)
    measured = measured_answers(samples) | measured_suites(items)
    if compared.review:
        measured["adjudicated"] = adjudicated(compared.review, samples)
    overlaps = contamination(compared.candidate, runs, evaluated_texts(samples, items))
    found, contaminated = compare(measured, rules), blocks(overlaps, max_contaminated_share)
    metrics, floors = distrust(found.metrics, contaminated), distrust(found.floors, contaminated)
    override = override_behind(compared.baseline, runs)
    by_group = slices(measured, rules)
    findings = _audit(rules, runs, samples, measured, compared)
    conversations = {s.id for s in samples if sum(message.role == "user" for message in s.prompt) > 1}
    verdict = make_verdict(
        run, runs, metrics, floors, by_group, compared, evidence.suites, overlaps, findings, len(conversations),
        override,
    )  # fmt: skip
    write_verdict(run.path / "verdict.json", verdict)
    write_report(run, runs)
    figures: dict[str, object] = {
        "verdict": verdict.outcome, "answers": len(samples), "suite_items": len(items)
    }  # fmt: skip
    for metric in metrics:
        for part in ("baseline", "candidate", "difference", "low", "high"):
            figures["_".join(filter(None, (metric.name, metric.slice, part)))] = getattr(metric, part)
    run.finish(figures)


def _audit(
    rules: Rules, runs: Runs, samples: Sequence[Sample], measured: Mapping[str, Measured], compared: Compared
) -> Audit:
    """The reward-hacking audit, with all that was measured without the reward model's part."""
    of_judge = {"judge_win_rate": "The judge's preference"} if "judge_win_rate" in measured else {}
    checked = {
        name: metric.label
        for name, metric in rules.metrics.items()
        if name.endswith("/followed") and name in measured
    }
    independent = [
        Independent(
            name, label, linear(measured[name].before), linear(measured[name].after), measured[name].clusters,
            of_samples=name in of_judge,
        )
        for name, label in (of_judge | checked).items()
    ]  # fmt: skip
    heads = [
        [each.disagreement for each in side if each.disagreement is not None]
        for side in ([s.baseline for s in samples], [s.candidate for s in samples])
    ]
    run = compared.candidate.run_id
    kl, target = training_kl(runs.load(run)) if run else (None, None)
    both = (heads[0], heads[1]) if len(heads[0]) == len(samples) else None
    return audit(samples, independent, both, kl, target, rules.confidence_level)
