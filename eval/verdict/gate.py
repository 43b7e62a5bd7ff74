"""The gate: may the candidate replace the baseline?

A test of non-inferiority (Blackwelder 1982, Controlled Clinical Trials 3). For every gated metric a margin is
declared beforehand: the largest worsening that is tolerated. The paired interval of the difference then says

    PASS           the whole interval is inside the margin: even the worst plausible change is tolerable
    FAIL           the whole interval is beyond the margin: even the best plausible change is not
    INCONCLUSIVE   the margin lies inside the interval: more items would decide

A floor is for the candidate alone, and the interval of its own value says the same three things of it
(eval/verdict/floors.py). PASS needs every metric and floor to pass; one that fails makes it FAIL.
eval/verdict/rule.py decides, as a pure function of numbers. `verdict.json` records it with the digests of everything it
rests on, and `check_verdict` lets only that very candidate through.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from accord.digests import file_digest
from accord.errors import AccordError, TamperedError, UsageError
from accord.models.references import Model
from accord.records import content_id
from accord.run_record import RunRecord
from accord.runs import Run, Runs
from accord.text_files import describe, write_atomically
from accord.tree import files_of_model
from eval.checks.audit import Audit
from eval.checks.contamination import Contamination
from eval.rows import SUITE, SuiteSubject
from eval.verdict.floors import FloorResult
from eval.verdict.rule import MetricResult, Outcome, Result, SliceResult, decide, two_digits
from eval.verdict.signing import canonical, sign
from reward.scorers import Scorer

EXIT_CODES: dict[Outcome, int] = {"PASS": 0, "FAIL": 10, "INCONCLUSIVE": 11}
SCHEMA_VERSION: Literal[5] = 5
"""1 was unsigned; 2 had no p-values and no slices; 3 had one suite, of sentence pairs; 4 had no floors."""
SIGNATURE = "verdict.sig.json"
EVIDENCE = ("samples.jsonl", "suites.jsonl")
PACKAGES = ("accord", "sft", "feedback", "reward", "rl", "eval")


@dataclass(frozen=True)
class Compared:
    """The models of an evaluation, and what scored and judged their answers."""

    baseline: Model
    candidate: Model
    reward_model: Model | Scorer | None = None
    judge: Scorer | None = None
    review: Run | None = None
    """Of these very answers, by people."""


class Subject(BaseModel):
    """A model that the verdict is about, or that it rests on."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    reference: str
    digest: str
    run: str | None = None
    weights: dict[str, str] = {}
    """SHA-256 of each file of weights, for a model from outside, so that the one that changed can be named."""


class Override(BaseModel):
    """A promotion that went against its verdict."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    verdict: str
    """The evaluation's run."""
    outcome: Outcome
    reason: str
    by: str
    """The fingerprint of the key that signed the promotion."""
    at: str


class Verdict(BaseModel):
    """The content of verdict.json; every digest is a SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[5] = SCHEMA_VERSION
    outcome: Outcome
    metrics: list[MetricResult]
    floors: list[FloorResult] = []
    """What the candidate itself had to reach."""
    slices: list[SliceResult] = []
    """Every metric by group; they decide nothing, and those that do are among the metrics, too."""
    suites: list[SuiteSubject]
    conversations: int = 0
    """Held-out prompts in which the user speaks more than once."""
    confidence_level: float
    baseline: Subject
    candidate: Subject
    reward_model: Subject | None
    judge: Subject | None = None
    contamination: Contamination
    """What the candidate was trained on, compared with what it was evaluated on."""
    audit: Audit
    """Signs that the candidate pleases its reward model rather than people; they decide nothing."""
    files: dict[str, str]
    """Of the prompts, of every suite's items as `suite:<name>`, and of a task of lm-eval's as `suite:<task>/<file>`."""
    evidence: dict[str, str]
    """Of the files with what was measured: `EVIDENCE`."""
    gate: str
    """Of the gate's configuration: `gate_digest`."""
    code: dict[str, Any]
    """The commit, and whether anything in the checkout differed from it."""
    sources: dict[str, str]
    """Of each of accord's packages: `source_digests`."""
    lineage: dict[str, str]
    """Of record.json of every run that the evaluation descends from, by id."""
    record: str
    """Of the evaluation's own record, as far as it was known: `record_digest`."""
    baseline_override: Override | None = None
    """If the baseline itself came into use against a verdict."""
    run: str

    @property
    def exit_code(self) -> int:
        """What the command line exits with: 0, 10 or 11."""
        return EXIT_CODES[self.outcome]

    def files_behind(self, metric: str) -> dict[str, str]:
        """Those of `files` that hold the items of a metric: `<suite>/<name>`, or `<name>` for one of answers."""
        suite, has_suite, _ = metric.partition("/")
        role = SUITE + suite if has_suite else "prompts"
        return {
            name: digest for name, digest in self.files.items() if name == role or name.startswith(f"{role}/")
        }

    @property
    def deciding(self) -> list[Result]:
        """What made the outcome what it is, floors first: the failed ones, or else the undecided; all, for a PASS."""
        return [each for each in (*self.floors, *self.metrics) if each.verdict == self.outcome]

    @property
    def items_to_decide(self) -> str:
        """For INCONCLUSIVE, how many items would decide, such as "about 240 prompts (there were 80)"."""
        needs = []
        movable = [metric for metric in self.deciding if metric.cannot_decide is None]
        for cluster in dict.fromkeys(metric.cluster for metric in movable):
            undecided = [metric for metric in movable if metric.cluster == cluster]
            had = undecided[0].clusters
            numbers = [metric.clusters_to_decide for metric in undecided]
            if any(number is None for number in numbers):
                needs.append(
                    f"more {cluster} than can be had (what was observed lies on the margin or floor; there were {had})"
                )
            else:
                most = max(number for number in numbers if number is not None)
                needs.append(f"about {two_digits(most):,} {cluster} (there were {had})")
        return " and ".join(needs)

    def reason(self) -> str:
        """One sentence that says why."""
        floors = [each for each in self.deciding if isinstance(each, FloorResult)]
        metrics = [each for each in self.deciding if not isinstance(each, FloorResult)]
        parts = []
        if self.outcome == "PASS":
            if metrics:
                parts.append(f"all {len(metrics)} gated metrics are certain to stay within their margins")
            if floors:
                count = "the floor is" if len(floors) == 1 else f"all {len(floors)} floors are"
                parts.append(f"{count} certain to be met")
            return ", and ".join(parts)
        if self.outcome == "FAIL":
            if floors:
                parts.append(f"not up to its floor, with certainty: {_enumerate(_labels(floors))}")
            if metrics:
                parts.append(f"worse than its margin, with certainty: {_enumerate(_labels(metrics))}")
            return "; ".join(parts)
        if open_floors := [each for each in floors if each.cannot_decide is None]:
            parts.append(f"not certain to meet its floor: {_enumerate(_labels(open_floors))}")
        if open_metrics := [each for each in metrics if each.cannot_decide is None]:
            parts.append(f"not certain to stay within its margin: {_enumerate(_labels(open_metrics))}")
        if parts:
            parts.append(f"{self.items_to_decide} would decide")
        stuck = [each for each in self.deciding if each.cannot_decide]
        parts += [
            f"{_enumerate(_labels([each for each in stuck if each.cannot_decide == why]))}: {why}"
            for why in dict.fromkeys(each.cannot_decide for each in stuck)
        ]
        return "; ".join(parts)


def _labels(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(each.label for each in results))


def _enumerate(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def gate_digest(config: dict[str, Any]) -> str:
    """The SHA-256 of what decides: margins and floors, confidence level, sampling and seed."""
    return content_id(config, 64)


def record_digest(record: RunRecord) -> str:
    """The SHA-256 of what an evaluation's record says before the evaluation is finished."""
    later = {"status", "outputs", "ended_at", "dropped", "error"}
    return content_id(record.model_dump(mode="json", exclude=later), 64)


def source_digests() -> dict[str, str]:
    """The SHA-256 over the Python files of each of accord's packages, as they are installed."""
    root = Path(__file__).parents[2]
    return {
        name: content_id(
            {file.relative_to(root).as_posix(): file_digest(file) for file in (root / name).rglob("*.py")}, 64
        )
        for name in PACKAGES
    }


def weights_digests(model: Model) -> dict[str, str]:
    """The SHA-256 of each file of weights of a model from outside; none for a run's, whose digest covers them."""
    if model.run_id:
        return {}
    files = files_of_model(model.folder)
    return {name: file_digest(path) for name, path in files.items() if name.endswith(".safetensors")}


def subject(model: Model | Scorer) -> Subject:
    """A model, or what scored the answers, as the verdict names it."""
    weights = weights_digests(model) if isinstance(model, Model) else {}
    return Subject(reference=model.reference, digest=model.digest, run=model.run_id, weights=weights)


def make_verdict(
    run: Run, runs: Runs, metrics: Sequence[MetricResult], floors: Sequence[FloorResult],
    slices: Sequence[SliceResult], compared: Compared, suites: Sequence[SuiteSubject], contamination: Contamination,
    audit: Audit, conversations: int = 0, baseline_override: Override | None = None,
) -> Verdict:  # fmt: skip
    """The verdict of the evaluation `run` over these results; the evidence is in its folder already."""
    return Verdict(
        outcome=decide([*metrics, *floors]),
        metrics=list(metrics),
        floors=list(floors),
        slices=list(slices),
        suites=list(suites),
        conversations=conversations,
        confidence_level=run.record.config["confidence_level"],
        baseline=subject(compared.baseline),
        candidate=subject(compared.candidate),
        reward_model=subject(compared.reward_model) if compared.reward_model else None,
        judge=subject(compared.judge) if compared.judge else None,
        contamination=contamination,
        audit=audit,
        files={
            role: digest
            for role, digest in run.record.inputs.items()
            if role == "prompts" or role.startswith(SUITE)
        },
        evidence={name: file_digest(run.path / name) for name in EVIDENCE},
        gate=gate_digest(run.record.config),
        code=run.record.code,
        sources=source_digests(),
        lineage={
            each.id: file_digest(each.path / "record.json") for each in runs.lineage(run) if each.id != run.id
        },
        record=record_digest(run.record),
        baseline_override=baseline_override,
        run=run.id,
    )


def write_verdict(path: Path, verdict: Verdict) -> None:
    """Write verdict.json, and beside it the user's signature of it."""
    content = verdict.model_dump(mode="json")
    write_atomically(path, canonical(content))
    write_atomically(path.with_name(SIGNATURE), canonical(sign("verdict", content).model_dump()))


def read_verdict(run: Run) -> Verdict:
    """The verdict in an evaluation run's folder, as it stands there; `promotion.check_verdict` checks it.

    Raises:
        UsageError: the run is no evaluation, or has not come to its verdict.
        AccordError: another version of accord wrote it.
        TamperedError: the file is not a verdict.
    """
    path = run.path / "verdict.json"
    if run.record.stage != "eval" or not path.exists():
        raise UsageError(f"run {run.id} holds no verdict; evaluate the candidate first with `accord gate`")
    try:
        return Verdict.model_validate_json(path.read_bytes())
    except ValidationError as error:
        if any(each["loc"] == ("schema_version",) for each in error.errors()):
            raise AccordError(
                f"{path} is the unsigned verdict of an earlier accord, or another version's; delete {run.path} and "
                "evaluate again"
            ) from None
        raise TamperedError(
            f"{path}: {describe(error)}; delete the run's folder and evaluate again"
        ) from None
