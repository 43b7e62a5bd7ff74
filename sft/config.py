"""Settings of supervised fine-tuning."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from accord.config import Config
from accord.records import Demonstration, Row
from sft.methods import MethodConfig, check_methods


class WeightedFile(Config):
    """A demonstration file and how often its rows count: 2 shows each row twice an epoch, 0.5 half of them."""

    path: str
    weight: float = Field(default=1.0, gt=0)


WrittenFiles = str | WeightedFile | list[str | WeightedFile]
"""What `demonstrations` may be in a configuration."""


class SFTConfig(MethodConfig):
    """Supervised fine-tuning on demonstrations with TRL's SFTTrainer; the loss covers the assistant's turns only."""

    row_files: ClassVar[Mapping[str, type[Row]]] = {
        "demonstrations": Demonstration,
        "heldout": Demonstration,
        "retention": Demonstration,
    }
    needed_files = ("demonstrations",)

    demonstrations: list[WeightedFile] = Field(default_factory=list)
    """One file, or a list of files, each as its path or with a weight."""
    heldout: str | None = None
    """A demonstration file for the held-out loss; without it, `heldout_fraction` of the rows are set aside."""
    heldout_fraction: float = Field(default=0.1, ge=0, lt=1)
    thinking: Literal["learn", "keep", "cut"] = "learn"
    """Of thinking parts (`reasoning_content`, or `<think>` at the beginning of an answer): learn them with the answer,
    keep them in the text and learn what comes behind, or cut them."""
    packing: bool = False
    """Several conversations in one sequence; they never see one another, and no padding is computed."""
    early_stopping_evaluations: int | None = Field(default=None, ge=1)
    """Stop after this many evaluations without a better held-out loss, and keep the best model. Checkpoints are then
    written at evaluations only."""

    @field_validator("demonstrations", mode="before", json_schema_input_type=WrittenFiles)
    @classmethod
    def _as_weighted_files(cls, written: Any) -> Any:
        files = [written] if isinstance(written, str | Mapping) else written
        if not isinstance(files, list):
            return files
        return [{"path": file} if isinstance(file, str) else file for file in files]

    @model_validator(mode="after")
    def _can_stop_early(self) -> Self:
        if self.early_stopping_evaluations is None:
            return self
        if self.evaluate_every_updates is None:
            raise ValueError("early_stopping_evaluations needs evaluate_every_updates")
        if self.heldout is None and self.heldout_fraction == 0:
            raise ValueError(
                "early_stopping_evaluations needs held-out rows: a heldout file or a heldout_fraction"
            )
        return self

    @model_validator(mode="after")
    def _methods_go_together(self) -> Self:
        check_methods(self, self.packing, self.heldout is not None or self.heldout_fraction > 0)
        return self
