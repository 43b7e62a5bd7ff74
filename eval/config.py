"""Settings of the evaluation and the gate."""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from accord.config import Config, Seed
from accord.errors import AccordError
from accord.records import Prompt, Row
from eval.profiles import ProfileName, written_out
from eval.suites.kind import RULES, Rated
from eval.suites.metrics import METRICS, QUALITY, Direction, Metric
from eval.suites.suite import find_suite

Side = Literal["at_least", "at_most"]
"""Which values meet a floor: those from it upwards, or those from it downwards."""
JUDGED = frozenset({"judge_win_rate", "judge_win_rate_length_controlled"})


def _is_none(value: object) -> bool:
    return value is None


class Margin(Config):
    """What one metric has to keep to pass, declared before the candidate is seen: a margin, a floor, or both.

    `margin` is the largest tolerated worsening, in the metric's own units. What is worse follows from `direction`:
    a fall for "higher", a rise for "lower", a larger distance from zero for "closer_to_zero". A floor, `at_least` or
    `at_most`, is for the candidate alone, whatever the baseline does.
    """

    direction: Direction | None = None
    """Which values are better; needed only for the margin of a metric that has no direction of its own."""
    margin: float | None = Field(default=None, ge=0)
    """The largest tolerated worsening, in the metric's own units."""
    at_least: float | None = Field(default=None, ge=-1e10, le=1e10, exclude_if=_is_none)
    """A floor: what the candidate's own value must reach, with certainty, in the metric's own units."""
    at_most: float | None = Field(default=None, ge=-1e10, le=1e10, exclude_if=_is_none)
    """The same from above: what the candidate's own value must not exceed."""

    family: str | None = None
    """Metrics of one family share the risk of a wrong FAIL (Holm); by default that of the metric or its suite."""
    slices: dict[str, float] = Field(default_factory=dict)
    """Margins for single groups of items, by the group's name; each then decides like a metric of its own."""

    @field_validator("margin", "slices")
    @classmethod
    def _is_finite(cls, value: float | dict[str, float] | None) -> float | dict[str, float] | None:
        for margin in value.values() if isinstance(value, dict) else [value]:
            if margin is not None and (not math.isfinite(margin) or margin < 0):
                raise ValueError(
                    "must be a finite number, 0 or more; leave it out of the gate to tolerate anything"
                )
        return value

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if self.margin is None and not self.slices and not self.floors:
            raise ValueError("give a margin, such as margin: 0.1, or a floor: at_least or at_most")
        if self.at_least is not None and self.at_most is not None and self.at_least >= self.at_most:
            raise ValueError(
                f"no value is at least {self.at_least:g} and at most {self.at_most:g}; swap them, or leave one out"
            )
        return self

    @property
    def kind(self) -> str:
        """What to call it in a sentence."""
        return "floor" if self.margin is None and self.floors else "margin"

    @property
    def floors(self) -> dict[Side, float]:
        """What the candidate itself has to keep, by the side that is the good one."""
        given: dict[Side, float | None] = {"at_least": self.at_least, "at_most": self.at_most}
        return {side: bound for side, bound in given.items() if bound is not None}


class LmEval(Config):
    """A task of lm-evaluation-harness: run here (`folder`), or from what `lm_eval --log_samples` wrote elsewhere."""

    metrics: dict[str, Direction] = Field(min_length=1)
    """Those to compare, as lm-eval names them, and which values are better."""
    folder: str | None = None
    """Of task files; the task is run on both models in float32, which needs `pip install 'lm-eval[hf]==0.4.13'`."""
    limit: int | None = Field(default=None, ge=2)
    """Use only so many documents, the first ones."""
    baseline: str | None = None
    """The baseline's `samples_<task>_<time>.jsonl`."""
    candidate: str | None = None
    """The candidate's."""

    @model_validator(mode="after")
    def _has_one_origin(self) -> Self:
        files = [self.baseline, self.candidate]
        if (self.folder is None) != all(files) or (self.folder and any(files)):
            raise ValueError("give either folder, or the files of both baseline and candidate")
        return self


class RaterConfig(Config):
    """What says whether an answer refuses, or how toxic it is, in place of a rule (eval/measuring/raters.py)."""

    by: str
    """A text classifier by folder, hub id or `run:<id>`, or `judge:<model reference>`."""
    label: str | None = None
    """The classifier's class that is meant, where the names of its classes do not tell."""
    labelled: str | None = None
    """JSON Lines file of answers that people labelled, `{"prompt", "completion", "refused"}` or `"toxic"`: how often
    the rater and the rule err on them is measured, and said on the page."""


@dataclass(frozen=True)
class Sampling:
    """How a model answers: `samples_per_prompt` times each held-out prompt, and once each prompt of a suite."""

    samples_per_prompt: int
    max_response_tokens: int
    temperature: float
    seed: int
    """Each answer's own seed follows from it (`eval.rows.seed_for`)."""


@dataclass(frozen=True)
class Rules:
    """What is declared before anything is measured: which metrics decide, by which margins and floors, how surely."""

    metrics: Mapping[str, Metric]
    """All that may be measured, by name."""
    gate: Mapping[str, Margin]
    """Those that decide."""
    confidence_level: float
    resamples: int
    """Of the tests that nothing changed."""
    seed: int
    """Of everything that is resampled."""


class EvalConfig(Config):
    """Evaluation of a candidate against the baseline that it would replace, and the margins of the gate."""

    row_files: ClassVar[Mapping[str, type[Row]]] = {"prompts": Prompt}

    prompts: str = "bundled:demo/prompts.heldout.jsonl"
    """JSON Lines file of prompts that no training saw."""
    max_prompts: int | None = Field(default=None, ge=2)
    """Use only so many prompts, the first ones of the file."""
    prompt_group: str = "topic"
    """The column of the prompt file that groups prompts, for the differences by group; it may be missing."""
    samples_per_prompt: int = Field(default=2, ge=1, le=10_000)
    """Answers of each model to each prompt; intervals are over prompts."""
    max_response_tokens: int = Field(default=96, ge=1, le=1_000_000)
    """Longer answers are cut off here, which lowers `eos_rate`."""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """Of sampling; 1 is the model's own distribution."""
    seed: Seed = 0
    """Of the answers, the same for both models, and of the resampling."""
    confidence_level: float = Field(default=0.95, gt=0.5, lt=1)
    """Of every interval."""
    bootstrap_resamples: int = Field(default=9_999, ge=999, le=1_000_000)
    """Swaps behind the p-value of "nothing changed"; intervals are computed without resampling."""
    judge: str | None = None
    """Says which answers are better, independently of the reward model, which the candidate may have been optimised
    against: `judge:<model reference>` or `judge:https://host/v1#model-name`."""
    review: str | None = None
    """A finished review of an evaluation of the same models, as `run:feedback-<id>`: its answers are taken over, and
    what reviewers prefer is measured as `adjudicated`."""
    suites: list[str] = Field(default_factory=lambda: ["sentence_pairs"])
    """What else both models go through: names of accord's suites, folders of your own, `public:<name>`."""
    raters: dict[Rated, RaterConfig] = Field(default_factory=dict)
    """What counts `refusals` and `toxicity` in the suites, in place of their rules."""
    lm_eval: dict[str, LmEval] = Field(default_factory=dict)
    """Tasks of lm-evaluation-harness as further suites, by the task's name."""
    max_suite_items: int | None = Field(default=None, ge=2)
    """Use only so many items of each suite, the first ones of its file."""
    max_contaminated_share: float = Field(default=0.01, ge=0, le=1)
    """A suite with more of its items in the candidate's training data cannot pass; `prompts` counts as a suite."""
    profile: ProfileName | None = Field(default=None, exclude_if=_is_none)
    """A ready-made gate: suites, margins and floors for one use of a model; what else is written here comes before it.
    It is written out at once, so that a run's record has what it stands for. See
    [gate-profiles.md](gate-profiles.md)."""
    gate: dict[str, Margin] = Field(default_factory=dict, validate_default=True)
    """The metrics that decide. The others are measured and shown, and decide nothing. A margin of `null` takes a metric
    out again, on the command line. `approvals` may stand among them."""
    approvals: int | None = Field(default=None, ge=1, exclude_if=_is_none)
    """How many people other than the signer of the verdict have to approve it before `accord promote`, each with a
    trusted key (`accord review`); usually written as `gate.approvals`."""

    @model_validator(mode="before")
    @classmethod
    def _writes_out(cls, settings: Any) -> Any:
        if not isinstance(settings, Mapping):
            return settings
        settings = dict(settings)
        try:
            settings = written_out(settings)
        except AccordError as error:
            raise ValueError(str(error)) from None
        gate = settings.get("gate")
        if isinstance(gate, Mapping) and "approvals" in gate:
            settings["gate"] = {name: each for name, each in gate.items() if name != "approvals"}
            settings["approvals"] = gate["approvals"]
        return settings

    @field_validator("suites")
    @classmethod
    def _finds_suites(cls, suites: list[str]) -> list[str]:
        names: dict[str, str] = {}
        for reference in suites:
            try:
                name = find_suite(reference).name
            except AccordError as error:
                raise ValueError(str(error)) from None
            if name in names:
                raise ValueError(
                    f"'{reference}' and '{names[name]}' are both named '{name}'; rename a folder"
                )
            names[name] = reference
        return suites

    @field_validator("gate", mode="before", json_schema_input_type=dict[str, Margin | int | None])
    @classmethod
    def _without_nulls(cls, gate: Any) -> Any:
        if not isinstance(gate, dict | None):
            return gate
        margins = {name: margin for name, margin in (gate or {}).items() if margin is not None}
        if not margins:
            raise ValueError(
                "names no metric that decides, so there would be no verdict; give one a margin, such as "
                "{eos_rate: {margin: 0.1}}"
            )
        return margins

    @field_validator("gate")
    @classmethod
    def _knows_metrics(cls, gate: dict[str, Margin], info: ValidationInfo) -> dict[str, Margin]:
        if "suites" not in info.data:
            return gate
        known = metrics_of(info.data["suites"], info.data.get("lm_eval"), info.data.get("raters"))
        for name, margin in gate.items():
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}"
                raise ValueError(f"unknown metric '{name}'; {hint}")
            direction = margin.direction or known[name].direction
            if (reason := _no_floor(known[name], margin, direction)) is not None:
                raise ValueError(f"{name}: {reason}")
            if direction is None and (margin.margin is not None or margin.slices):
                raise ValueError(f"{name}: say which direction is better: higher, lower or closer_to_zero")
        if JUDGED & gate.keys() and "judge_unparsed" not in gate:
            raise ValueError(
                "pairs that the judge leaves undecided count as ties, so a gate on its win rate needs a margin for "
                "'judge_unparsed', too"
            )
        return {
            name: margin.model_copy(update={"direction": margin.direction or known[name].direction})
            for name, margin in gate.items()
        }

    @property
    def metrics(self) -> dict[str, Metric]:
        """Every metric that these settings measure, by name."""
        return metrics_of(self.suites, self.lm_eval, self.raters)

    @property
    def sampling(self) -> Sampling:
        """How both models answer."""
        return Sampling(self.samples_per_prompt, self.max_response_tokens, self.temperature, self.seed)

    @property
    def rules(self) -> Rules:
        """What decides."""
        return Rules(self.metrics, self.gate, self.confidence_level, self.bootstrap_resamples, self.seed)


def _no_floor(metric: Metric, margin: Margin, direction: Direction | None) -> str | None:
    """Why a floor of this metric decides nothing, or is a slip; None if it is none."""
    for side, bound in margin.floors.items():
        if metric.ends and not metric.ends[0] < bound < metric.ends[1]:
            low, high = metric.ends
            return (
                f"its values are from {low:g} to {high:g}, so {side}: {bound:g} is met by every model or by none; name "
                "a value between them"
            )
        if direction == {"at_least": "lower", "at_most": "higher"}[side]:
            other = {"at_least": "at_most", "at_most": "at_least"}[side]
            return (
                f"{direction} values are better, so {side}: {bound:g} asks for bad ones; write {other}, or name "
                "another direction"
            )
    return None


def metrics_of(
    suites: Sequence[str], lm_eval: Mapping[str, LmEval] | None = None,
    raters: Mapping[Rated, RaterConfig] | None = None,
) -> dict[str, Metric]:  # fmt: skip
    """The metrics of the answers, of these suites and of these tasks, by name."""
    of_suites = {}
    for suite in map(find_suite, suites):
        for name, metric in suite.metrics.items():
            of_suites[name] = metric
            if suite.rates and raters and suite.rates in raters:
                meaning = metric.meaning.replace(RULES[suite.rates], raters[suite.rates].by)
                of_suites[name] = dataclasses.replace(metric, meaning=meaning)
    of_tasks = {
        f"{task}/{name}": Metric(
            f"{task}/{name}", f"{task}: {name}", "lm-eval's units", "documents",
            f"{name} of lm-eval's task {task}, a mean over its documents", QUALITY, direction=direction,
        )
        for task, settings in (lm_eval or {}).items()
        for name, direction in settings.metrics.items()
    }  # fmt: skip
    return METRICS | of_suites | of_tasks
