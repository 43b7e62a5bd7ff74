"""Markdown that no text of a model or a user can break: whatever they wrote appears as code, on one line."""

import re
from collections.abc import Iterable, Sequence

JOINERS = "\u200c\u200d"
"""Invisible, and needed to write Persian, Hindi and others."""


def one_line(text: str) -> str:
    """A text without line breaks, control characters and marks that turn the direction of writing."""
    return " ".join("".join(c if c.isprintable() or c in JOINERS else " " for c in text).split())


def code(text: str) -> str:
    """Any text as Markdown code, verbatim but for `one_line` (CommonMark 0.31, 6.1: a longer fence than any inside)."""
    text = one_line(text)
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; its cells are Markdown on one line."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
