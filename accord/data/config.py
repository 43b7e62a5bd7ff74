"""Settings of how data from outside is read."""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from accord.config import Config, Seed
from accord.records import Prompt, Row


class GenerateConfig(Config):
    """Data that a model makes from seeds (docs/make-data.md): `accord data generate CONFIG`."""

    row_files: ClassVar[Mapping[str, type[Row]]] = {"seeds": Prompt}
    needed_files: ClassVar[tuple[str, ...]] = ("seeds",)
    not_identity: ClassVar[frozenset[str]] = frozenset({"requests_at_a_time"})

    kind: Literal["answers", "paraphrases", "prompts"] = "answers"
    """What is written: an answer to each seed, the seed in other words, or a new prompt of the sort of some seeds."""
    seeds: str = ""
    """JSON Lines file of prompts."""
    model: str | None = None
    """Who writes: a model reference, or `https://host/v1#model-name` of a server that speaks OpenAI's protocol, whose
    key is read from `OPENAI_API_KEY`. Left out, the round's `model`."""
    samples_per_seed: int = Field(default=1, ge=1, le=10_000)
    """How often each seed is used."""
    examples: int = Field(default=3, ge=1)
    """With kind: prompts. How many seeds a request shows, the others at random."""
    instruction: str | None = None
    """With kind: paraphrases and prompts. What is asked, with `{text}` where the seeds stand; accord's own by
    default."""
    max_response_tokens: int = Field(default=256, ge=1, le=1_000_000)
    """Longer texts are cut off, and dropped."""
    temperature: float = Field(default=1.0, ge=0, le=100)
    """Of sampling."""
    seed: Seed = 0
    """Of sampling, and of which seeds are shown together."""
    drop: str = "encoding,invisible,refusals,boilerplate,repetition"
    """Kinds of what is found in texts (docs/bring-your-data.md) that are dropped. Copies, and what is nearly a seed or
    another text, always are."""
    requests_at_a_time: int = Field(default=8, ge=1)
    """To a server."""
    price_of_million_prompt_tokens: float = Field(default=0, ge=0)
    """What a server takes for reading; with the next, the price of the run is told, in the same currency."""
    price_of_million_tokens: float = Field(default=0, ge=0)
    """What it takes for writing."""

    @model_validator(mode="after")
    def _has_a_place_for_the_seeds(self) -> Self:
        if self.instruction is not None and self.kind == "answers":
            raise ValueError(
                "instruction: a model that answers the seeds themselves is not instructed; leave it out"
            )
        if self.instruction is not None and "{text}" not in self.instruction:
            raise ValueError("instruction: must hold {text}, where the seeds are put")
        return self


class DataConfig(Config):
    """How the files that the stages name are read, where their columns do not say it (docs/bring-your-data.md)."""

    columns: Mapping[str, Mapping[str, str]] = Field(default_factory=dict)
    """By file, as the stages name it: which column is what, for example `{answers.csv: {prompt: Q, completion: A}}`."""
    system: Literal["keep", "merge_into_user"] = "keep"
    """merge_into_user: what a system message says is put before the user's first words, in every file, for models whose
    chat template has no system role."""
    drop: str = ""
    """What is left out of the demonstrations, such as `near_duplicates,pii,contamination,language!=en,loss>4`
    (docs/prepare-data.md); by default nothing is."""
    redact: str = ""
    """What is replaced in them, held-out ones included: pii, or some of email, phone, card, iban, ip, secret."""
    repair: str = ""
    """encoding, invisible: mended in them."""
    against: list[str] = Field(default_factory=list)
    """What must not be learned, for drop: near_heldout and contamination. Files, `suite:NAME`, or a round's
    configuration, whose evaluation's prompts and suites count."""
    generate: GenerateConfig | None = None
    """Data that a model makes; no stage of a round reads it."""
