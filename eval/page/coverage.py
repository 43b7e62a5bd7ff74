"""What an evaluation says of which risk, what it does not, and what a reader has to know before the verdict."""

from dataclasses import dataclass

from accord.page.words import number
from eval.page.floors import distance_text, required
from eval.page.metrics import change_text, short_name, tolerated, value_text
from eval.suites.metrics import METRICS, SAFETY
from eval.suites.risks import RISKS, Risk
from eval.verdict.gate import Verdict
from eval.verdict.rule import MetricResult


@dataclass(frozen=True)
class CoverageRow:
    """One risk: by what it was measured, what decides, and how much would be seen."""

    risk: Risk
    title: str
    measured: list[str]
    gated: list[str]
    """Margins and floors, in words."""
    power: list[str]
    """What would be seen in 8 of 10 evaluations like this one: of each margin and floor, or of the leading metric."""


def coverage(verdict: Verdict) -> list[CoverageRow]:
    """Every risk of eval/suites/risks.py, in that order."""
    return [_row(verdict, risk) for risk in RISKS]


def _row(verdict: Verdict, risk: Risk) -> CoverageRow:
    about, suites = RISKS[risk], [suite for suite in verdict.suites if suite.risk == risk]
    measured = [suite.title for suite in suites]
    if risk == "multi_turn" and verdict.conversations:
        measured.append(f"{number(verdict.conversations)} of the held-out prompts, among the others")
    names = {suite.name for suite in suites}
    metrics = [each for each in verdict.metrics if each.name.split("/")[0] in names and "/" in each.name]
    floors = [each for each in verdict.floors if each.name.split("/")[0] in names and "/" in each.name]
    gated = [f"{short_name(each)}: {tolerated(each)}" for each in metrics if each.margin is not None]
    power = [f"{short_name(each)}: {_smallest(each)}" for each in metrics if each.margin is not None]
    gated += [f"{short_name(each)}: {required(each)}" for each in floors]
    power += [f"{short_name(each)}: {distance_text(each)}" for each in floors]
    if not gated:
        leading = [each for each in metrics if each.name.endswith(f"/{about.share}")] or metrics
        power = [f"{short_name(each)}: {_smallest(each)}" for each in leading[:1]]
    return CoverageRow(risk, about.title, measured, gated, power)


def _smallest(metric: MetricResult) -> str:
    """The smallest change that would be seen."""
    amount = change_text(metric, metric.minimum_detectable_effect).removeprefix("+")
    return f"a change of {amount}"


def notices(verdict: Verdict) -> list[str]:
    """What the verdict does not say and a reader would take for granted: sentences for the first screen."""
    found = []
    confidence = f"{100 * verdict.confidence_level:g}%"
    of_suite = {suite.name: suite for suite in verdict.suites}
    floors = {floor.name: floor for floor in verdict.floors}
    for metric in verdict.metrics:
        suite = of_suite.get(metric.name.split("/")[0])
        about = RISKS[suite.risk] if suite and suite.risk else None
        low, high = metric.candidate_low, metric.candidate_high
        if (
            about is None
            or metric.slice
            or metric.name.split("/")[-1] != about.share
            or low is None
            or high is None
        ):
            continue
        floor = floors.get(metric.name)
        if floor and floor.verdict != "PASS":  # the verdict itself says it
            continue
        if (high < 0.5) if about.better == "higher" else (low > 0.5):
            said = about.says.format(
                "none" if metric.candidate == 0 else value_text(metric, metric.candidate)
            )
            rest = (
                f"Its floor asks for no more: {required(floor)}."
                if floor
                else "The verdict does not depend on that, as the gate has no floor for it; a margin only compares "
                "with the baseline."
            )
            found.append(
                f"The candidate {said} ({number(metric.clusters)} asked, {confidence} interval "
                f"{value_text(metric, low)} to {value_text(metric, high)}; the baseline: "
                f"{value_text(metric, metric.baseline)}). {rest}"
            )
    if not any(suite.family == SAFETY for suite in verdict.suites):
        found.append("Nothing about safety was measured: no suite of this family was gone through.")
    elif not any(
        _family(each.name, verdict) == SAFETY for each in (*verdict.metrics, *verdict.floors) if each.verdict
    ):
        found.append(
            "Safety was measured and decides nothing: no metric of a safety suite has a margin or a floor."
        )
    return found


def _family(name: str, verdict: Verdict) -> str | None:
    if name in METRICS:
        return METRICS[name].family
    return next((suite.family for suite in verdict.suites if suite.name == name.split("/")[0]), None)
