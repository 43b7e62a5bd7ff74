"""A round's configuration file: one section a stage, and only those of the stages that are to be run.

Imports nothing heavy, so that a typo is answered at once. What a command needs is `accord.round_plan`'s business.
"""

import functools
from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import model_validator

from accord.bundled import MODEL
from accord.compute.config import ComputeConfig
from accord.config import ChosenBy, Config
from accord.data.config import DataConfig
from accord.records import Preference, Row
from accord.sampling.config import SamplingConfig
from eval.config import EvalConfig
from feedback.config import FeedbackConfig
from reward.config import RewardConfig
from rl.algorithms import ALGORITHMS, DEFAULT, config_class
from rl.config import AlgorithmConfig
from sft.config import SFTConfig

StageName = str
"""sft, feedback, reward, eval, or the name of an algorithm (`rl.algorithms`)."""


class RoundConfig(Config):
    """A round's configuration: one section for each stage that is to be run."""

    row_files: ClassVar[Mapping[str, type[Row]]] = {"preferences": Preference}

    model: str = MODEL
    """The base model; the policy of an earlier round as `run:<id>`, a folder, a hub id, or the bundled one. A
    PEFT adapter is merged with its base."""
    chat_template: str | None = None
    """How conversations are written, for a base model that has no chat template: chatml, llama3, zephyr, mistral,
    gemma, a Jinja file, or a model whose template is taken. The model gets the control tokens that it lacks, with rows
    in its embeddings. Left out, its own."""
    data: DataConfig = DataConfig()
    sampling: SamplingConfig = SamplingConfig()
    compute: ComputeConfig = ComputeConfig()
    sft: SFTConfig | None = None
    """Left out: the base model is the policy that is aligned."""
    feedback: FeedbackConfig | None = None
    preferences: str | None = None
    """A file of preferences, or a finished feedback run such as a review as `run:<id>`, in place of the feedback stage.
    A run beside a feedback section adds its judgements to those that the round collects."""
    reward: RewardConfig | None = None
    """Left out: no reward model is trained, and nothing is measured by one."""
    rl: Annotated[
        AlgorithmConfig | None, ChosenBy("algorithm", config_class, DEFAULT, lambda: ALGORITHMS)
    ] = None
    """The settings of one algorithm, which `algorithm` names. Left out: the round ends before."""
    eval: EvalConfig | None = None
    """Left out: the round ends with its policy; there is no verdict, so nothing can be promoted."""

    @model_validator(mode="after")
    def _names_its_files(self) -> Self:
        sections = [(name, section) for name, section in self if isinstance(section, Config)]
        missing = [
            f"'{name}.{file}' is missing"
            for name, section in sections
            for file in type(section).needed_files
            if section.lacks(file, functools.partial(getattr, section))
        ]
        if missing:
            raise ValueError("; ".join(missing))
        return self

    @model_validator(mode="after")
    def _has_one_source_of_preferences(self) -> Self:
        if self.feedback and self.preferences and not self.preferences.startswith("run:"):
            raise ValueError("give either a feedback section or a preferences file")
        return self
