"""One of the two models of an evaluation, with its tokenizer."""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from accord.models.loading import load_tokenizer
from accord.models.references import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Role = Literal["baseline", "candidate"]


@dataclass(frozen=True)
class Side:
    """A model and its part in the comparison."""

    role: Role
    model: Model

    @functools.cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The model's tokenizer, loaded when something needs it, and then kept: an evaluation loads it once."""
        return load_tokenizer(self.model)
