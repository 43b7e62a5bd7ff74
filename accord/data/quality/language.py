"""In which language rows are written."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from accord.data.quality.findings import needed, whole
from accord.records import Row

UNKNOWN, NO_LANGUAGE = "unknown", "zxx"
FEWEST_LETTERS, SURE = 20, 0.9
LOOKED_AT = 2000
"""Characters of a row."""


def languages(rows: Sequence[Row]) -> list[str]:
    """The language of each row as ISO 639-1 has it, by py3langid (97 languages, 5 MB, BSD licence).

    `unknown` where the row has fewer than 20 letters, the classifier gives less than 0.9, or it is no language.
    """
    return [language(whole(row)) for row in rows]


def language(text: str) -> str:
    """The language of a text, or `unknown`."""
    text = text[:LOOKED_AT]
    if sum(map(str.isalpha, text)) < FEWEST_LETTERS:
        return UNKNOWN
    found, probability = _identifier().classify(text)
    return str(found) if probability >= SURE and found != NO_LANGUAGE else UNKNOWN


@cache
def _identifier() -> Any:
    langid = needed("py3langid.langid", "py3langid")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
