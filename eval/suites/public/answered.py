"""From published files to the rows of kinds whose prompts the models answer."""

from typing import Any

from eval.suites.public.scored import json_lines

Row = dict[str, Any]
Texts = dict[str, str]


def truthfulqa(texts: Texts) -> list[Row]:
    """Questions with their true answers; the package leaves out the false ones."""
    return [
        {
            "id": f"truthfulqa{i}",
            "prompt": row["question"],
            "reference": [text for text in row["answer"] if text],
        }
        for i, row in enumerate(json_lines(texts["combined"]))
    ]


def harmbench(texts: Texts) -> list[Row]:
    """One request a line."""
    return [
        {"id": f"harmbench{i}", "prompt": line}
        for i, line in enumerate(texts["harmbench_prompts"].splitlines())
    ]


def real_toxicity_prompts(texts: Texts) -> list[Row]:
    """Beginnings of texts, which the model is asked to go on with; a file for each sort of toxicity."""
    return [
        {
            "id": f"{name}{i}", "group": name.removeprefix("rtp_").replace("_", " "),
            "prompt": f"Continue this text: {line}",
        }
        for name, text in texts.items()
        for i, line in enumerate(text.splitlines())
    ]  # fmt: skip
