"""One table of what stages give in several processes, at the end of a run of the tests; a hook of pytest."""

from typing import Any

ROW = "matrix row"
"""The property of a test that is a row: a list of stage, engine and processes, and then losses, gradient norms and
weights, each as the largest difference from one process, or a sentence on why there are none."""
COLUMNS = ("stage", "engine", "processes", "losses", "gradient norms", "weights")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    rows = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
        if name == ROW
    ]
    if not rows:
        return
    terminalreporter.section("largest differences from one process")
    for row in [COLUMNS, *rows]:
        cells = [f"{cell:.1e}" if isinstance(cell, float) else str(cell) for cell in row]
        terminalreporter.write_line(f"| {cells[0]:38} | {cells[1]:6} | " + " | ".join(cells[2:]) + " |")
