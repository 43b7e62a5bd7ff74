"""An evaluation in a few lines: for the console's end, and as Markdown for a comment under a pull request."""

from collections.abc import Sequence

from accord.page.markdown import code, one_line, table
from accord.page.words import number
from eval.page.coverage import coverage, notices
from eval.page.floors import interval_text, required
from eval.page.metrics import change_text, tolerated, value_text
from eval.verdict.gate import Verdict
from eval.verdict.sign_offs import SignOff

SIGNS = {"PASS": "\u2705", "FAIL": "\u274c", "INCONCLUSIVE": "\u2754"}
ORDER = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}


def text_summary(verdict: Verdict) -> list[str]:
    """The verdict, what it does not say, and what was measured of which risk: lines of text."""
    lines = [f"verdict: {verdict.outcome}: {verdict.reason()}"]
    lines += [f"note:    {sentence}" for sentence in notices(verdict)]
    return lines + [f"{head}: {said}" for head, said in _coverage(verdict)]


def _coverage(verdict: Verdict) -> list[tuple[str, str]]:
    rows = coverage(verdict)
    parts = [
        ("decides", [row for row in rows if row.gated]),
        ("measured, decides nothing", [row for row in rows if row.measured and not row.gated]),
        ("not measured", [row for row in rows if not row.measured]),
    ]
    return [
        (head, ", ".join(row.title[0].lower() + row.title[1:] for row in chosen))
        for head, chosen in parts
        if chosen
    ]


def markdown_summary(verdict: Verdict, sign_offs: Sequence[SignOff] = ()) -> str:
    """The same with every metric and floor that decides, as Markdown."""
    confidence = f"{100 * verdict.confidence_level:g}%"
    rows = [
        (
            each.verdict or "", [
                each.label, required(each), value_text(each, each.baseline), value_text(each, each.candidate),
                interval_text(each),
            ],
        )
        for each in verdict.floors
    ] + [
        (
            each.verdict, [
                each.label, tolerated(each), value_text(each, each.baseline), value_text(each, each.candidate),
                f"{change_text(each, each.low)} to {change_text(each, each.high)}",
            ],
        )
        for each in verdict.metrics if each.verdict
    ]  # fmt: skip
    rows.sort(key=lambda row: ORDER[row[0]])
    parts = [
        f"### {SIGNS[verdict.outcome]} accord: {verdict.outcome}",
        f"{code(verdict.candidate.reference)} against {code(verdict.baseline.reference)}: {verdict.reason()}.",
        *(f"> {one_line(sentence)}" for sentence in notices(verdict)),
        table(
            [
                "",
                "metric",
                "tolerated, or has to be",
                "baseline",
                "candidate",
                f"change, or value ({confidence})",
            ],
            [[f"{SIGNS[outcome]} {outcome}", *cells] for outcome, cells in rows],
        ),
        "\n".join(f"- {head}: {said}" for head, said in _coverage(verdict)),
    ]
    if sign_offs:
        parts.append(
            "\n".join(
                f"- {each.statement.decision} by {code(each.named)}{'' if each.is_trusted else ' (not trusted)'}: "
                f"{code(each.statement.comment)}"
                for each in sign_offs
            )
        )
    contaminated = sum(suite.exact + suite.near for suite in verdict.contamination.suites)
    parts.append(
        f"<sub>{code(verdict.run)}, {number(contaminated)} items found in the training data; "
        f"`accord report {verdict.run}` builds the page, `accord promote {verdict.run}` lets the candidate replace the "
        "baseline where the verdict is PASS.</sub>"
    )
    return "\n\n".join(parts) + "\n"
