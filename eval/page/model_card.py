"""The model card of a promoted model: README.md in the form of the Hugging Face hub, made from its lineage.

Front matter that the hub reads (base model, licence, figures), and below it what a person needs: what the model was
made from, how it was judged, and what is not known. Texts of models and users appear only as code, on one line, so
that they can neither break the page nor pretend to be a part of it. Paths are cut to file names: a card is
meant to be published.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from accord import bundled
from accord.page.lineage import in_order, lineage
from accord.page.markdown import code, one_line, table
from accord.page.words import day, label, number, stage_title
from accord.records import content_id
from accord.runs import Run, Runs
from eval.page.coverage import coverage, notices
from eval.page.floors import interval_text, required
from eval.page.metrics import change_text, tolerated, value_text
from eval.rows import SUITE
from eval.suites.suite import shipped
from eval.verdict.gate import Override, Verdict
from eval.verdict.rule import MetricResult
from eval.verdict.sign_offs import SignOff

BUNDLED_BASE = ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
"""The hub's name and the licence of `bundled.MODEL`."""
MODEL_ROLES = ("base", "policy")
"""What a stage calls the model that it starts from."""
NO_DATA = (*MODEL_ROLES, "baseline", "candidate", "reward_model", "judge")
SETTINGS = (
    "algorithm", "loss", "learning_rate", "epochs", "updates", "rows_per_update", "prompts_per_update",
    "num_generations", "max_response_tokens", "max_sequence_tokens", "kl_coefficient", "heads", "length", "ensemble",
    "temperature", "lora", "adapter", "train_only", "selection", "task", "responses_per_prompt",
    "annotators_per_record", "seed",
)  # fmt: skip
"""What says most of how a stage worked; the rest is in its record."""


def model_card(
    evaluation: Run, runs: Runs, verdict: Verdict, signed_by: str, override: Override | None = None,
    approvals: Sequence[SignOff] = (),
) -> str:  # fmt: skip
    """The card of a verdict's candidate, as Markdown with YAML front matter.

    Args:
        evaluation: the run that came to the verdict.
        runs: where its lineage is.
        verdict: its checked verdict.
        signed_by: the fingerprint of the key that signed it.
        override: if the candidate is promoted against the verdict.
        approvals: sign-offs of people who approved the verdict.
    """
    candidate = verdict.candidate
    name = candidate.run or file_name(candidate.reference)
    ancestors = in_order(runs.load(candidate.run), runs) if candidate.run else []
    feedback = [each for each in ancestors if each.record.stage == "feedback"]
    people = ", ".join(dict.fromkeys(_annotators(each) for each in feedback)) or "not known to accord"
    inputs = {(i.role, i.digest): i for node in lineage(evaluation, runs).nodes for i in node.inputs}
    files = [each for each in inputs.values() if each.role not in NO_DATA]
    bases = list(
        dict.fromkeys(
            _source(each.record.inputs[role])
            for each in ancestors for role in MODEL_ROLES if role in each.record.inputs
        )
    )  # fmt: skip
    hub_base, licence = _known_of(bases)
    simulated = any("simulated" in _annotators(each) for each in feedback)
    front = ModelCardData(
        base_model=hub_base, license=licence, library_name="transformers", pipeline_tag="text-generation",
        tags=["accord", "rlhf", f"gate-{verdict.outcome.lower()}", *(["override"] if override else [])],
        model_name=one_line(name), eval_results=[_result(metric, verdict) for metric in verdict.metrics],
    )  # fmt: skip

    warnings = []
    if override:
        warnings += [
            f"**Promoted against its verdict.** The gate said {override.outcome}; the key {code(override.by)} let "
            f"it pass on {day(override.at)}, for this reason:", code(override.reason),
        ]  # fmt: skip
    if behind := verdict.baseline_override:
        warnings += [
            f"**The model it was compared with was promoted against its own verdict**, {behind.outcome} in "
            f"{code(behind.verdict)}, for this reason:", code(behind.reason),
        ]  # fmt: skip
    commit = f"commit {code(str(verdict.code.get('commit')))}"
    about = [
        ["Base model", ", ".join(map(code, bases)) or "not known to accord"],
        ["Licence of the base model", code(licence) if licence else "not known to accord; find out before publishing"],
        ["Replaces", code(file_name(verdict.baseline.reference))],
        ["Digest", code(candidate.digest)],
        ["Verdict signed by", code(signed_by)],
        *(
            ["Approved by", f"{code(each.named)} on {day(each.statement.at)}: {code(each.statement.comment)}"]
            for each in approvals
        ),
        ["Made by accord's", commit + (", with changes" if verdict.code.get("dirty") else "")],
    ]  # fmt: skip
    if verdict.reward_model:
        about.append(["Answers scored by", code(file_name(verdict.reward_model.reference))])
    if verdict.judge:
        about.append(["Answers judged by", code(file_name(verdict.judge.reference))])
    training = table(["stage", "run", "main settings", "dropped rows"], [_stage(each) for each in ancestors])
    data = [
        [
            label(each.role),
            "comes with accord" if each.role.removeprefix(SUITE) in shipped() else code(file_name(each.name)),
            code(each.digest),
        ]
        for each in files
    ]
    confidence = f"{100 * verdict.confidence_level:g}%"
    head = [
        "metric",
        "baseline",
        "this model",
        "difference",
        f"{confidence} interval",
        "margin",
        "verdict",
        "from",
    ]
    shown = (
        "The gate shows that nothing declared became worse than its margin"
        + (", or misses its floor," if verdict.floors else ",")
        if verdict.outcome == "PASS"
        else "The gate does **not** show that this model is as good as the one before,"
    )
    caution = " Programs with a formula ranked: nothing here shows that people like it." if simulated else ""
    return f"""---
{front.to_yaml()}
---
# {code(name)}

{"".join(f"> {each}{chr(10)}>{chr(10)}" for each in warnings)}
Made and judged by accord. Verdict of {code(verdict.run)}: **{verdict.outcome}**, {verdict.reason()}.

{table(["about", ""], about)}

## Intended use

A step in aligning a language model: comparison with the model it replaces, and further rounds. Nothing here says that
it is fit for a particular use, or safe. Whoever publishes it completes this section.

## Limits

- {shown} on the prompts and suites below.
- The suites that come with accord are small; passing them does not show that a model is fair or safe.
- Annotators: {people}.{caution}
- Answers may be wrong, offensive or made up, as any language model's may.

## Training

{training if ancestors else "The model comes from outside of accord; how it was trained is not known here."}

## Data

{table(["what", "file", "SHA-256"], data)}

{_judgements(feedback)}

## Evaluation

Both models answered the same held-out prompts with the same random seeds. Intervals are paired, over
whole prompts or templates, at {confidence} of candidate minus baseline; for a lean, of the distance from its centre.
Margins were declared beforehand.

{table(head, [_metric(metric) for metric in verdict.metrics])}

{_floors(verdict)}### What was not measured

{_not_measured(verdict)}

## How to check this

`accord runs verify {verdict.run}` compares every file with its recorded hash; the verdict and `promoted.json` are
signed.
"""


def file_name(reference: str) -> str:
    """A file's or folder's reference without the folders of somebody's machine; other references as they are."""
    head, colon, rest = reference.partition(":")
    is_path = reference.startswith(("/", ".", "~")) or "\\" in reference
    if is_path:
        return Path(reference).name or reference
    return f"{head}{colon}{Path(rest).name}" if rest.startswith(("/", ".", "~")) else reference


def _source(digest: str) -> str:
    """What a model from outside is called; a folder has no name that would mean something elsewhere."""
    return digest.split("@")[0] if "@" in digest else f"a local folder, {digest}"


def _known_of(bases: Sequence[str]) -> tuple[str | list[str] | None, str | None]:
    """The base models' names on the hub, and their licence where accord knows it."""
    if bases == [bundled.MODEL]:
        return BUNDLED_BASE
    names = [
        BUNDLED_BASE[0] if base == bundled.MODEL else base
        for base in bases
        if not base.startswith("a local folder")
    ]
    return names or None, None


def _annotators(feedback: Run) -> str:
    figures = feedback.metrics
    count = len(figures.get("annotators", []))
    kind = "simulated (programs)" if figures.get("annotators_kind") == "simulated" else "people"
    return f"{count or ''} {kind}".strip()


def _judgements(feedback: Sequence[Run]) -> str:
    if not feedback:
        return "Preferences came from a file, if any were used; who gave them is not known to accord."
    keys = ("comparisons", "rankings_submitted", "rankings_discarded", "preferences", "krippendorff_alpha")
    rows = [
        [code(each.id), _annotators(each), *(number(each.metrics.get(key)) for key in keys)]
        for each in feedback
    ]
    head = [
        "judged in",
        "annotators",
        "prompts",
        "rankings",
        "declined",
        "preferences",
        "Krippendorff's alpha",
    ]
    return table(head, rows)


def _stage(run: Run) -> list[str]:
    settings = []
    for key in SETTINGS:
        value: Any = run.record.config.get(key)
        if value is None:
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{inner} {each}" for inner, each in value.items() if each is not None)
        settings.append(f"{label(key).lower()} {code(str(value))}")
    dropped = ", ".join(
        f"{count} {label(reason).lower()}" for reason, count in run.record.dropped.items() if count
    )
    return [
        stage_title(run.record),
        code(run.id),
        ", ".join(settings),
        dropped or "none",
    ]


def _metric(metric: MetricResult) -> list[str]:
    return [
        metric.label,
        value_text(metric, metric.baseline),
        value_text(metric, metric.candidate),
        change_text(metric, metric.difference),
        f"{change_text(metric, metric.low)} to {change_text(metric, metric.high)}",
        tolerated(metric) if metric.margin is not None else "none",
        metric.verdict or "not gated",
        f"{number(metric.clusters)} {metric.cluster}",
    ]


def _floors(verdict: Verdict) -> str:
    if not verdict.floors:
        return ""
    head = ["floor", "has to be", "baseline", "this model", "interval", "verdict", "from"]
    rows = [
        [
            floor.label, required(floor), value_text(floor, floor.baseline), value_text(floor, floor.candidate),
            interval_text(floor), str(floor.verdict), f"{number(floor.clusters)} {floor.cluster}",
        ]
        for floor in verdict.floors
    ]  # fmt: skip
    return f"What this model itself had to reach, whatever the one before does:\n\n{table(head, rows)}\n\n"


def _not_measured(verdict: Verdict) -> str:
    rows = coverage(verdict)
    absent = [row.title[0].lower() + row.title[1:] for row in rows if not row.measured]
    silent = [row.title[0].lower() + row.title[1:] for row in rows if row.measured and not row.gated]
    lines = [f"- Not measured at all: {', '.join(absent) or 'none of the risks that accord knows'}."]
    if silent:
        lines.append(f"- Measured, with no say in the verdict: {', '.join(silent)}.")
    return "\n".join([*lines, *(f"- {one_line(sentence)}" for sentence in notices(verdict))])


def _result(metric: MetricResult, verdict: Verdict) -> EvalResult:
    """One figure as the hub's model index has it; the comparison goes along as its arguments.

    Data in several files, such as a task of lm-eval's, have one revision over the SHA-256 of all of them.
    """
    role = SUITE + metric.name.split("/")[0] if "/" in metric.name else "prompts"
    files = verdict.files_behind(metric.name)
    revision = files.get(role) or content_id(files, 64)
    compared = metric.model_dump(
        include={"baseline", "difference", "low", "high", "margin", "direction", "verdict"}, exclude_none=True
    )
    return EvalResult(
        task_type="text-generation", dataset_type="json", dataset_name=label(role),
        dataset_revision=revision, metric_type=metric.name, metric_value=metric.candidate,
        metric_name=metric.label, metric_args=compared,
    )  # fmt: skip
