"""Whether the model's chat template takes the rows of every file that a stage reads."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from accord.bundled import data_path
from accord.data.rendering import check_template_takes
from accord.preflight.shared import Faults
from accord.records import Comparison, Preference, Row, holds_comparisons, read_jsonl
from accord.round_config import RoundConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def look_at_rendering(
    config: RoundConfig, tokenizer: "PreTrainedTokenizerBase", sections: Sequence[str], faults: Faults
) -> None:
    """Encode a row of each pattern of turns in each file."""
    for key, reference, row_type in _files(config, sections):
        with faults.of(key):
            check_template_takes(tokenizer, read_jsonl(data_path(reference), row_type))


def _files(config: RoundConfig, sections: Sequence[str]) -> Iterator[tuple[str, str, type[Row]]]:
    """Every file of rows: the key that names it, the file, and what its rows are."""
    preferences = config.preferences
    if preferences and not preferences.startswith("run:") and {"reward", "rl"} & set(sections):
        yield (
            "preferences",
            preferences,
            Comparison if holds_comparisons(data_path(preferences)) else Preference,
        )
    for name in sections:
        section = getattr(config, name)
        if type(section).reads_files_itself:  # and says itself what it finds
            continue
        for setting, row_type in type(section).row_files.items():
            value = getattr(section, setting)
            for reference in [file.path for file in value] if isinstance(value, list) else [value]:
                if reference:
                    yield f"{name}.{setting}", reference, row_type
