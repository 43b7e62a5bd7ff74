"""Settings of the feedback stage and of reviews: who annotates answers, how, and where."""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from accord.config import Config, Seed
from accord.records import Prompt, Row

Selection = Literal["random", "length_balanced", "uncertainty"]


class AnnotationConfig(Config):
    """Who annotates answers, how, and where: what the feedback stage and reviews have in common."""

    not_identity = frozenset({"port"})

    task: Literal["ranking", "pairwise", "rating"] = "ranking"
    """Rank all answers; choose between two, with strength and tie; or rate each from 1 to 5 on every criterion."""
    criteria: tuple[str, ...] = ("helpful", "honest", "harmless")
    """Of ratings: single words."""
    guidelines: str | None = None
    """A Markdown file for the page, in place of accord's own guidelines."""

    annotators: Literal["simulated", "human"] = "simulated"
    """Programs that are named simulated_..., or people in the browser."""
    human_annotators: tuple[str, ...] = ("annotator",)
    """Names of the accounts that are made for people, where `annotators` is human."""
    users: str | None = None
    """A YAML file of people (name, role, workspaces), in place of `human_annotators`; see docs/collect-feedback.md."""
    annotators_per_record: int = Field(default=4, ge=1, le=1000)
    """A record is done when so many have answered it."""
    assignment: Literal["pool", "balanced"] = "pool"
    """Records go to whoever comes first, or each to `annotators_per_record` named annotators, all with equal loads."""
    duplicate_rate: float = Field(default=0.05, ge=0, le=1)
    """Share of records that are asked a second time with the answers in the opposite order."""
    gold: str | None = None
    """JSON Lines file of comparisons with known ranks, mixed in to check attention; or bundled:demo/gold.jsonl."""
    gold_rate: float = Field(default=0.05, ge=0, le=1)
    """Gold records, as a share of the other records; none without a `gold` file."""
    adjudicators: tuple[str, ...] = ()
    """People who settle, in a queue of their own, what annotators disagree on; nobody does where this is empty."""

    argilla_url: str | None = None
    """An Argilla 2.8 to use instead of the embedded one; its owner's key is read from ARGILLA_API_KEY."""
    port: int = Field(default=6900, ge=1, le=65535)
    """Port of the embedded Argilla on the loopback interface."""
    seed: Seed = 0
    """Of everything drawn: sampled answers, selection, order and assignment of records, simulated annotators."""

    @model_validator(mode="after")
    def _annotators_fit_together(self) -> Self:
        if not self.criteria or not all(criterion.isidentifier() for criterion in self.criteria):
            raise ValueError("criteria: give at least one, each a single word")
        if self.annotators == "simulated" and (self.users or self.adjudicators):
            raise ValueError("users and adjudicators: need annotators: human")
        return self


class FeedbackConfig(AnnotationConfig):
    """Which answers are sampled, who annotates them, how, and where."""

    row_files: ClassVar[Mapping[str, type[Row]]] = {"prompts": Prompt}
    needed_files = ("prompts",)

    prompts: str = ""
    """JSON Lines file of prompts that the policy answers."""
    max_prompts: int | None = Field(default=None, ge=1)
    """Use only so many prompts, the first ones of the file."""
    responses_per_prompt: int = Field(default=3, ge=2, le=8)
    """Answers in one record, which are ranked against each other."""
    max_response_tokens: int = Field(default=96, ge=1, le=1_000_000)
    """Longer answers are cut off here."""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """Of sampling; 1 is the policy's own distribution."""

    selection: Selection = "random"
    """How the comparisons to ask about are chosen where `max_comparisons` is less than the number of prompts:
    each as likely; short and long differences in length alike; or those that a reward model is unsure of."""
    max_comparisons: int | None = Field(default=None, ge=1)
    """Ask about only so many comparisons."""
    selection_reward_model: str | None = None
    """For `uncertainty`: the reward model, as `run:<id>` or a folder."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.task == "pairwise" and self.responses_per_prompt != 2:
            raise ValueError("task: a pairwise comparison needs responses_per_prompt: 2")
        if (self.selection == "uncertainty") != (self.selection_reward_model is not None):
            raise ValueError("selection_reward_model: goes with selection: uncertainty")
        if self.selection != "random" and self.max_comparisons is None:
            raise ValueError("max_comparisons: says how many comparisons are selected")
        return self


class ReviewConfig(AnnotationConfig):
    """Which answers of an evaluation are reviewed; see eval/review/ask.py."""

    task: Literal["pairwise"] = "pairwise"
    items: int = Field(default=40, ge=1)
    """How many pairs of answers are asked about, at most."""
    random_share: float = Field(default=0.5, ge=0, le=1)
    """Of them, the share that is drawn by chance; the others are those that got worst or are most uncertain."""

    @model_validator(mode="after")
    def _draw_tells_something(self) -> Self:
        if self.random_share and self.random_items < 2:
            raise ValueError(
                f"random_share: {self.random_share:g} of {self.items} items leaves fewer than 2 to draw, from which "
                "nothing can be estimated; review more items, or draw none (0)"
            )
        return self

    @property
    def random_items(self) -> int:
        """How many of `items` are drawn by chance."""
        return round(self.random_share * self.items)
