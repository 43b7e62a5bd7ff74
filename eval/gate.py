"""The gate: may the candidate replace the baseline?

A test of non-inferiority (Blackwelder 1982, Controlled Clinical Trials 3). For every gated metric a margin is
declared beforehand: the largest worsening that is tolerated. The paired interval of the difference then says

    PASS           the whole interval is inside the margin: even the worst plausible change is tolerable
    FAIL           the whole interval is beyond the margin: even the best plausible change is not
    INCONCLUSIVE   the margin lies inside the interval: more items would decide

PASS needs every metric to pass (an intersection-union test, so no correction for several metrics is due); one
metric that fails makes it FAIL. The decision is a pure function of numbers. `verdict.json` records it with the
digests of everything it rests on, and `check_verdict` lets only that very candidate through.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from accord.errors import AccordError, TamperedError, UsageError
from accord.models import Model, resolve
from accord.records import content_id, describe, write_atomically
from accord.runs import Run, Runs
from eval.config import Margin
from eval.metrics import METRICS, Direction
from eval.statistics import PairedDifference, clusters_to_decide, minimum_detectable_effect
from reward.scorers import Scorer

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]
EXIT_CODES: dict[Outcome, int] = {"PASS": 0, "FAIL": 10, "INCONCLUSIVE": 11}
SCHEMA_VERSION = 1


class PromotionRefusedError(AccordError):
    """The candidate has no verdict that lets it pass; `exit_code` is the verdict's own, or 1."""

    def __init__(self, message: str, outcome: Outcome | None = None):
        super().__init__(message)
        self.exit_code = EXIT_CODES[outcome] if outcome else 1


class MetricResult(BaseModel):
    """One metric of both models.

    `difference`, `low` and `high` are candidate minus baseline in the metric's units; for "closer_to_zero" the
    difference of the two means' distances from zero. `verdict`, `margin` and `clusters_to_decide` are None for a
    metric that is only reported.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    unit: str
    items: int
    clusters: int
    cluster: str
    baseline: float
    candidate: float
    difference: float
    low: float
    high: float
    direction: Direction | None = None
    margin: float | None = None
    minimum_detectable_effect: float
    verdict: Outcome | None = None
    clusters_to_decide: int | None = None
    """For INCONCLUSIVE: how many clusters would decide; None where no reachable number would."""

    @property
    def worsening(self) -> tuple[float, float, float]:
        """The change turned so that positive is worse: the least plausible, the observed, the largest plausible."""
        if self.direction == "higher":
            return -self.high, -self.difference, -self.low
        return self.low, self.difference, self.high


class Subject(BaseModel):
    """A model that the verdict is about, or that it rests on."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    reference: str
    digest: str
    run: str | None = None


class Verdict(BaseModel):
    """The content of verdict.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = SCHEMA_VERSION
    outcome: Outcome
    metrics: list[MetricResult]
    confidence_level: float
    baseline: Subject
    candidate: Subject
    reward_model: Subject | None
    files: dict[str, str]
    """SHA-256 of the prompts and of the sentence pairs."""
    gate: str
    """SHA-256 of the gate's configuration: `gate_digest`."""
    code: dict[str, Any]
    run: str

    @property
    def exit_code(self) -> int:
        """What the command line exits with: 0, 10 or 11."""
        return EXIT_CODES[self.outcome]

    @property
    def deciding(self) -> list[MetricResult]:
        """The metrics that made the outcome what it is: the failed ones, or else the undecided; all, for a PASS."""
        return [metric for metric in self.metrics if metric.verdict == self.outcome]

    @property
    def items_to_decide(self) -> str:
        """For INCONCLUSIVE, how many items would decide, such as "about 240 prompts (there were 80)"."""
        needs = []
        for cluster in dict.fromkeys(metric.cluster for metric in self.deciding):
            undecided = [metric for metric in self.deciding if metric.cluster == cluster]
            had = undecided[0].clusters
            numbers = [metric.clusters_to_decide for metric in undecided]
            if any(number is None for number in numbers):
                needs.append(
                    f"more {cluster} than can be had (the difference lies on the margin; there were {had})"
                )
            else:
                most = max(number for number in numbers if number is not None)
                needs.append(f"about {two_digits(most):,} {cluster} (there were {had})")
        return " and ".join(needs)

    def reason(self) -> str:
        """One sentence that says why."""
        labels = _enumerate([METRICS[metric.name].label for metric in self.deciding])
        if self.outcome == "PASS":
            return f"all {len(self.deciding)} gated metrics are certain to stay within their margins"
        if self.outcome == "FAIL":
            return f"worse than its margin, with certainty: {labels}"
        return f"not certain to stay within its margin: {labels}; {self.items_to_decide} would decide"


def two_digits(number: int) -> int:
    """Rounded up to two leading digits: a planning figure has no more."""
    unit = int(10 ** max(len(str(number)) - 2, 0))
    return -(-number // unit) * unit


def _enumerate(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def judge(name: str, change: PairedDifference, margin: Margin | None, alpha: float = 0.05) -> MetricResult:
    """One metric's result, and its verdict if it has a margin."""
    result = MetricResult(
        name=name, unit=METRICS[name].unit, items=change.items, clusters=change.clusters,
        cluster=METRICS[name].cluster, baseline=change.baseline, candidate=change.candidate,
        difference=change.difference, low=change.low, high=change.high,
        minimum_detectable_effect=minimum_detectable_effect(change.deviation, change.clusters, alpha),
        direction=margin.direction if margin else None, margin=margin.margin if margin else None,
    )  # fmt: skip
    if margin is None:
        return result
    least, observed, most = result.worsening
    if most <= margin.margin:
        return result.model_copy(update={"verdict": "PASS"})
    if least > margin.margin:
        return result.model_copy(update={"verdict": "FAIL"})
    needed = clusters_to_decide(observed - margin.margin, change.deviation, alpha)
    # The interval at hand did not decide, so more than these are needed, whatever the planning formula says.
    needed = None if needed is None else max(needed, change.clusters + 1)
    return result.model_copy(update={"verdict": "INCONCLUSIVE", "clusters_to_decide": needed})


def decide(metrics: Sequence[MetricResult]) -> Outcome:
    """The outcome of all gated metrics together.

    Raises:
        UsageError: no metric is gated, so nothing could ever fail.
    """
    verdicts = [metric.verdict for metric in metrics if metric.verdict is not None]
    if not verdicts:
        raise UsageError("the gate names no metric that was measured; give at least one a margin")
    if "FAIL" in verdicts:
        return "FAIL"
    return "INCONCLUSIVE" if "INCONCLUSIVE" in verdicts else "PASS"


def gate_digest(config: dict[str, Any]) -> str:
    """The SHA-256 of what decides: margins, confidence level, sampling and seed."""
    return content_id(config, 64)


def subject(model: Model | Scorer) -> Subject:
    """A model, or what scored the answers, as the verdict names it."""
    return Subject(reference=model.reference, digest=model.digest, run=model.run_id)


def make_verdict(
    run: Run, metrics: Sequence[MetricResult], baseline: Model, candidate: Model,
    reward_model: Model | Scorer | None,
) -> Verdict:  # fmt: skip
    """The verdict of the evaluation `run` over these metrics."""
    return Verdict(
        outcome=decide(metrics),
        metrics=list(metrics),
        confidence_level=run.record.config["confidence_level"],
        baseline=subject(baseline),
        candidate=subject(candidate),
        reward_model=subject(reward_model) if reward_model else None,
        files={role: run.record.inputs[role] for role in ("prompts", "sentence_pairs")},
        gate=gate_digest(run.record.config),
        code=run.record.code,
        run=run.id,
    )


def write_verdict(path: Path, verdict: Verdict) -> None:
    """Write verdict.json, atomically."""
    write_atomically(path, verdict.model_dump_json(indent=2) + "\n")


def read_verdict(run: Run) -> Verdict:
    """The verdict in an evaluation run's folder.

    Raises:
        UsageError: the run is no evaluation, or has not come to its verdict.
        TamperedError: the file is not a verdict.
    """
    path = run.path / "verdict.json"
    if run.record.stage != "eval" or not path.exists():
        raise UsageError(f"run {run.id} holds no verdict; evaluate the candidate first with `accord gate`")
    try:
        return Verdict.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise TamperedError(
            f"{path}: {describe(error)}; delete the run's folder and evaluate again"
        ) from None


def check_verdict(run: Run, runs: Runs) -> Verdict:
    """The verdict that lets a candidate be promoted, after checking that it is valid and about this very candidate.

    Args:
        run: the evaluation, or the candidate's own run (its last finished evaluation is then taken).
        runs: where both are.

    Raises:
        PromotionRefusedError: there is no verdict, or it is not PASS.
        TamperedError: the evaluation's files, the verdict's digests or the candidate's files do not fit.
    """
    if run.record.stage != "eval":
        evaluations = [
            r for r in runs.all() if r.record.stage == "eval" and r.record.parents.get("candidate") == run.id
        ]
        finished = [r for r in evaluations if r.is_done]
        if not finished:
            raise PromotionRefusedError(
                f"run {run.id} was never evaluated, so nothing says that it may replace another model; run "
                f"`accord gate --baseline REF --candidate run:{run.id} --config gate.yaml`"
            )
        run = finished[-1]
    if not run.is_done:
        raise PromotionRefusedError(f"evaluation {run.id} is {run.record.status}, not done; finish it first")
    run.check_outputs()
    verdict = read_verdict(run)
    again = f"delete {run.path} and evaluate again"
    if verdict.run != run.id or verdict.outcome != decide(verdict.metrics):
        raise TamperedError(f"{run.path / 'verdict.json'} does not fit its own run or metrics; {again}")
    if verdict.gate != gate_digest(run.record.config):
        raise TamperedError(f"run {run.id}: the verdict was reached with another gate configuration; {again}")
    for role, digest in verdict.files.items():
        if run.record.inputs.get(role) != digest:
            raise TamperedError(f"run {run.id}: the verdict was reached on other {role}; {again}")
    for role in ("baseline", "candidate"):
        model: Subject = getattr(verdict, role)
        if resolve(model.reference, runs).digest != model.digest:
            raise TamperedError(
                f"run {run.id}: the {role} {model.reference} is not the model that was evaluated; {again}"
            )
    if verdict.outcome != "PASS":
        raise PromotionRefusedError(
            f"run {run.id} came to the verdict {verdict.outcome}: {verdict.reason()}; the candidate stays out "
            "(`accord report` shows the evidence)",
            verdict.outcome,
        )
    return verdict
