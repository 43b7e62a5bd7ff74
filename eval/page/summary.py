"""An evaluation in a few lines: for the console's end, and as Markdown for a comment under a pull request."""

from eval.page.coverage import coverage, notices
from eval.verdict.gate import Verdict


def text_summary(verdict: Verdict) -> list[str]:
    """The verdict, what it does not say, and what was measured of which risk: lines of text."""
    rows = coverage(verdict)
    lines = [f"verdict: {verdict.outcome}: {verdict.reason()}"]
    lines += [f"note:    {sentence}" for sentence in notices(verdict)]
    for head, chosen in (
        ("decides:", [row for row in rows if row.gated]),
        ("decides nothing:", [row for row in rows if row.measured and not row.gated]),
        ("not measured:", [row for row in rows if not row.measured]),
    ):
        if chosen:
            lines.append(f"{head} {', '.join(row.title.lower() for row in chosen)}")
    return lines
