"""Settings of supervised fine-tuning."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from accord.config import Config
from accord.records import Demonstration, Row
from sft.card.config import CardConfig
from sft.methods import MethodConfig, check_methods


class WeightedFile(Config):
    """A file of rows and how often they count: 2 shows each row twice an epoch, 0.5 half of them."""

    path: str
    weight: float = Field(default=1.0, ge=0, le=1000)
    at_most: int | None = Field(default=None, ge=1)
    """So many of its rows, chosen by the seed, before the weight."""


class Replay(Config):
    """Rows of an earlier training among the new ones, against forgetting."""

    source: str
    """An earlier round's sft or data run as `run:<id>`, whose training rows are taken, or a file of demonstrations."""
    share: float = Field(default=0.1, gt=0, lt=1)
    """Of the rows that an epoch shows; each is shown once, unless there are too few of them."""


class Curriculum(Config):
    """Rows in the order of a column of numbers, in place of a new random order each epoch."""

    column: str
    order: Literal["ascending", "descending"] = "ascending"


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
    other_files: ClassVar[Mapping[str, str]] = {"demonstrations": "documents"}
    reads_files_itself = True
    not_identity = frozenset({"card"})

    demonstrations: list[WeightedFile] = Field(default_factory=list)
    """One file, or a list of files, each as its path or with a weight."""
    documents: list[WeightedFile] = Field(default_factory=list)
    """Raw text for continued pretraining: `.txt` and `.md` files, folders of them, and files of rows with a column
    `text`; alone, or beside demonstrations."""
    heldout: str | None = None
    """A demonstration file for the held-out loss; without it, `heldout_fraction` of the rows of each file are set
    aside. Of documents, that share is set aside in any case."""
    heldout_fraction: float = Field(default=0.1, ge=0, lt=1)
    mixing_temperature: float = Field(default=1.0, ge=1, le=1000)
    """Above 1, small files are shown more often and large ones less: a file of n rows counts as n to the power of 1 /
    temperature, and an epoch stays as long as it is at 1."""
    replay: Replay | None = None
    curriculum: Curriculum | None = None
    thinking: Literal["learn", "keep", "cut"] = "learn"
    """Of thinking parts (`reasoning_content`, or `<think>` at the beginning of an answer): learn them with the answer,
    keep them in the text and learn what comes behind, or cut them."""
    packing: bool = False
    """Several conversations in one sequence; they never see one another, and no padding is computed."""
    early_stopping_evaluations: int | None = Field(default=None, ge=1)
    """Stop after this many evaluations without a better held-out loss, and keep the best model. Checkpoints are then
    written at evaluations only."""
    card: CardConfig | None = Field(default_factory=CardConfig)
    """The report card; `null` or `false` leaves it out. Another card is no other run: a finished one keeps its own."""

    @field_validator("card", mode="before", json_schema_input_type=CardConfig | Literal[False] | None)
    @classmethod
    def _without_card(cls, written: Any) -> Any:
        return None if written is False else written

    @field_validator("demonstrations", "documents", mode="before", json_schema_input_type=WrittenFiles)
    @classmethod
    def _as_weighted_files(cls, written: Any) -> Any:
        files = [written] if isinstance(written, str | Mapping) else written
        if not isinstance(files, list):
            return files
        return [{"path": file} if isinstance(file, str) else file for file in files]

    @model_validator(mode="after")
    def _mixes_something(self) -> Self:
        files = [*self.demonstrations, *self.documents]
        if files and not any(file.weight for file in files):
            raise ValueError(
                "all files of demonstrations and documents have weight 0; nothing would be left to learn"
            )
        if self.curriculum and (self.documents or self.packing or self.replay):
            raise ValueError(
                "curriculum: orders single demonstrations by a column, and goes with no documents, packing or replay"
            )
        return self

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


DATA_VERSION = 1
"""Raise it with every change to how rows are encoded or mixed: prepared data are found again by it."""


class DataSettings(Config):
    """All that prepared data depend on, but for the files."""

    demonstrations: list[WeightedFile]
    documents: list[WeightedFile]
    heldout: str | None
    heldout_fraction: float
    thinking: Literal["learn", "keep", "cut"]
    mixing_temperature: float
    replay: Replay | None
    curriculum: Curriculum | None
    packing: bool
    max_sequence_tokens: int
    seed: int
    columns: Mapping[str, Mapping[str, str]]
    system: Literal["keep", "merge_into_user"]
    drop: str
    redact: str
    repair: str
    against: str | None
    """What identifies what must not be learned."""
    tokenizer: str
    """What `tokenizer_digest` gives."""
    version: int = DATA_VERSION
