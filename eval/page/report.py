"""The round's page, `report.html`: the verdict in words, the evidence under it, and where everything comes from.

It is built from the files of the evaluation and of the runs it descends from, and from nothing else, so
`accord report RUN` builds the same bytes again. A reader should need no other page, and no terminal.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accord.errors import AccordError
from accord.page.lineage import in_order, lineage
from accord.page.plots import training_curves
from accord.page.render import render, run_page
from accord.page.words import stage_title
from accord.records import read_jsonl
from accord.runs import SIGNED_PAGE, Run, Runs
from accord.text_files import write_atomically
from eval.checks.contamination import PROMPTS
from eval.measuring.annotators import FORMULA, annotators_behind
from eval.page.answers import measures_of, sample_views
from eval.page.coverage import coverage, notices
from eval.page.drift import chain
from eval.page.drift_page import drift_view
from eval.page.floors import explain_floor, floor_rows
from eval.page.metrics import Axis, explain, families, gated_rows, scale, too_small
from eval.page.suites import GroupRow, suite_views
from eval.rows import Sample, SuiteItem
from eval.suites.metrics import METRICS
from eval.verdict.gate import SIGNATURE, Subject, read_verdict
from eval.verdict.margins import SMALLEST_SLICE
from eval.verdict.rule import Outcome, Result
from eval.verdict.sign_offs import SignOff, read_sign_offs, standing
from eval.verdict.signing import read_signature
from reward.page.report import page as page_of_reward
from sft.page.data import page as data_page
from sft.page.report import page as page_of_sft

HEADLINES: dict[Outcome, str] = {
    "PASS": "The candidate may replace the baseline.",
    "FAIL": "The candidate must not replace the baseline.",
    "INCONCLUSIVE": "The evidence does not decide, so the candidate stays out.",
}
SAMPLES_SHOWN = 8
REWARD_FIGURES = (
    "pairs", "heldout_pairs", "heldout_prompts", "prefer_longer_accuracy", "length_only_accuracy",
    "annotator_agreement", "heldout_ece_after_temperature", "score_length_correlation_within_prompts",
    "disagreement_auroc", "best_of_n_gain",
)  # fmt: skip
"""What a reviewer needs of a reward model's figures; the others are in its own report card."""


def write_report(run: Run, runs: Runs) -> Path:
    """Write `report.html` into the evaluation's folder."""
    path = run.path / "report.html"
    write_atomically(path, page(run, runs))
    return path


def rebuild(run: Run, runs: Runs, output: Path | None = None) -> Path:
    """Build a run's page again.

    Args:
        run: an evaluation, a fine-tuning or a reward model with its report card, or any other finished run (which
            then needs `output`).
        runs: where its ancestors are.
        output: where to write the page. By default a run's own page stays, and is only compared.

    Returns:
        Where the page is. An evaluation that reviewers signed off has one more, which shows that, beside its own.

    Raises:
        AccordError: the run is not finished, or its page was built by other versions and differs.
    """
    if not run.is_done:
        raise AccordError(
            f"run {run.id} is {run.record.status}, not done; finish it first with the command it came from"
        )
    has_own = True
    if run.record.stage == "eval":
        text = page(run, runs, read_sign_offs(run) if output else ())
    elif run.record.stage == "reward" and "report_card.json" in run.record.outputs:
        text = page_of_reward(run, runs)
    elif run.record.stage == "sft" and "report_card.json" in run.record.outputs:
        text = page_of_sft(run, runs)
    elif run.record.stage == "data":
        text = data_page(run, run.metrics)
    else:
        has_own, text = False, run_page(run, runs)
    if output is None:
        own = run.path / "report.html"
        if not has_own:
            raise AccordError(f"run {run.id} keeps no page of its own; say where to write one with --output")
        if own.read_text(encoding="utf-8") == text:
            sign_offs = read_sign_offs(run) if run.record.stage == "eval" else []
            if not sign_offs:
                return own
            signed = run.path / SIGNED_PAGE
            write_atomically(signed, page(run, runs, sign_offs))
            return signed
        raise AccordError(
            f"the page of {run.id} differs from what this version of accord builds, and is kept as it was hashed; "
            "write the new one elsewhere with --output"
        )
    write_atomically(output, text)
    return output


def page(run: Run, runs: Runs, sign_offs: Sequence[SignOff] = ()) -> str:
    """The page as text, with what reviewers signed since the evaluation was finished."""
    verdict = read_verdict(run)
    samples = read_jsonl(run.path / "samples.jsonl", Sample)
    items = read_jsonl(run.path / "suites.jsonl", SuiteItem) if verdict.suites else []
    ancestors = in_order(run, runs)[:-1]
    # a review is feedback on the answers of an evaluation, not what the candidate learned from
    by_stage = {each.record.stage: each for each in ancestors if "evaluation" not in each.record.parents}
    tags = {
        subject.run: role
        for role, subject in (
            ("reward model", verdict.reward_model), ("candidate", verdict.candidate), ("baseline", verdict.baseline),
        )
        if subject and subject.run
    }  # fmt: skip
    feedback = by_stage.get("feedback")
    reward = by_stage.get("reward")
    gated = [metric for metric in verdict.metrics if metric.verdict]
    nearest = sorted(
        (metric for metric in gated if metric.verdict == verdict.outcome),
        key=lambda metric: -metric.worsening[2] / scale(metric),
    )
    floors = sorted(
        (floor for floor in verdict.floors if floor.verdict == verdict.outcome),
        key=lambda floor: -(floor.p_within or 0.0),
    )
    # For a PASS all of them decide; the one that came closest to its margin, or its floor, tells most.
    at_most = 1 if verdict.outcome == "PASS" else None
    because = [explain_floor(floor, verdict.confidence_level) for floor in floors[:at_most]]
    because += [explain(metric, verdict.confidence_level) for metric in nearest[:at_most]]
    axis = Axis.around(gated)
    rows, without_margin = gated_rows(gated, axis), families(verdict, axis)
    views = sample_views(samples)
    measures = measures_of(samples)
    people_judged = "human" in annotators_behind([verdict.baseline.run, verdict.candidate.run], runs)
    has_formula = FORMULA in measures
    of_answers = [each for each in verdict.slices if each.name in METRICS]
    values: dict[str, Any] = {
        "run": run.record,
        "verdict": verdict,
        "signed_by": read_signature(run.path / SIGNATURE).fingerprint,
        "headline": HEADLINES[verdict.outcome],
        "names": {"baseline": _name(verdict.baseline), "candidate": _name(verdict.candidate)},
        "because": because,
        "notices": notices(verdict),
        "sign_offs": sign_offs,
        "blocks": standing(sign_offs, "block"),
        "approvals_needed": run.record.config.get("approvals") or 0,
        "coverage": coverage(verdict),
        "floors": floor_rows(verdict.floors),
        "confidence": f"{100 * verdict.confidence_level:g}%",
        "prompts": len({sample.id for sample in samples}),
        "samples_per_prompt": run.record.config["samples_per_prompt"],
        "chance_of_error": round(1 / (1 - verdict.confidence_level)),
        "axis": axis,
        "gated": rows,
        "everything": [*(each.row for each in rows), *(each.row for family in without_margin for each in family.rows)],
        "counts": Counter(each.verdict for each in (*gated, *verdict.floors)),
        "ungated": without_margin,
        "slices": [GroupRow.of(each) for each in of_answers if each.low is not None],
        "too_small": too_small(of_answers),
        "smallest_slice": SMALLEST_SLICE,
        "corrected": _corrected([*gated, *verdict.floors]),
        "suites": suite_views(verdict, items, axis),
        "titles": {PROMPTS: "Held-out prompts"} | {suite.name: suite.title for suite in verdict.suites},
        "drift": drift_view(chain(run, runs)),
        "samples": views,
        "tally": Counter(view.changes[0].kind for view in views if view.changes),
        "measures": measures,
        "groups": list(dict.fromkeys(sample.group for sample in samples if sample.group is not None)),
        "shown": SAMPLES_SHOWN,
        "has_rewards": verdict.reward_model is not None,
        "feedback": _shown(feedback.metrics, has_formula) if feedback else None,
        "people_judged": people_judged,
        "feedback_dropped": feedback.record.dropped if feedback else {},
        "reward": reward.metrics if reward else None,
        "reward_figures": _reward_figures(reward.metrics) if reward else {},
        "reward_page": f"../{reward.id}/report.html" if reward and "report.html" in reward.record.outputs else None,
        "stages": [
            {"title": stage_title(each.record), "id": each.id,
             "metrics": _scalars(each, has_formula), "stop_reason": each.metrics.get("stop_reason"),
             "curves": training_curves(each),
             "page": f"../{each.id}/report.html" if "report_card.json" in each.record.outputs else None}
            for each in ancestors if each.record.stage not in ("feedback",)
        ],
        "lineage": lineage(run, runs, tags),
        "config": {key: value for key, value in run.record.config.items() if value is not None},
    }  # fmt: skip
    folder = Path(__file__).parent
    return render(folder, "report.html.jinja", values, (folder / "report.js").read_text(encoding="utf-8"))


def _corrected(gated: Sequence[Result]) -> list[str]:
    """The families in which more than one metric or floor decides, so that their p-values were corrected."""
    names = [metric.family for metric in gated if metric.family]
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def _name(subject: Subject) -> str:
    return subject.run or subject.reference


def _shown(figures: Mapping[str, Any], has_formula: bool) -> dict[str, Any]:
    """An earlier run's figures; those of the simulated annotators' formula only where these answers have it, too."""
    return {name: value for name, value in figures.items() if has_formula or FORMULA not in name}


def _scalars(run: Run, has_formula: bool) -> dict[str, Any]:
    figures = _shown(run.metrics, has_formula)
    return {key: value for key, value in figures.items() if isinstance(value, int | float)}


def _reward_figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Those a reviewer needs, as far as the run has them, by the names of their labels."""
    return {
        "training_pairs" if name == "pairs" else name: metrics[name]
        for name in REWARD_FIGURES
        if metrics.get(name) is not None
    }
