"""Settings of how data from outside is read."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from accord.config import Config


class DataConfig(Config):
    """How the files that the stages name are read, where their columns do not say it (docs/bring-your-data.md)."""

    columns: Mapping[str, Mapping[str, str]] = Field(default_factory=dict)
    """By file, as the stages name it: which column is what, for example `{answers.csv: {prompt: Q, completion: A}}`."""
    system: Literal["keep", "merge_into_user"] = "keep"
    """merge_into_user: what a system message says is put before the user's first words, in every file, for models whose
    chat template has no system role."""
