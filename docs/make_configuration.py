"""Writes docs/configuration.md from the configuration's own classes.

.venv/bin/python docs/make_configuration.py
"""

import types
import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from accord.compute.config import ComputeConfig
from accord.config import LoraConfig, setting_docs
from accord.data.config import DataConfig, GenerateConfig
from accord.sampling.config import SamplingConfig
from accord.training_config import TrainingConfig
from eval.config import EvalConfig, Margin
from feedback.config import FeedbackConfig
from reward.config import RewardConfig
from rl.config import BestOfNConfig, DPOConfig, KTOConfig, OnlineConfig, PPOConfig
from sft.card.config import CardConfig
from sft.config import SFTConfig, WeightedFile
from sft.methods import AdapterConfig, TrainedWeights

PAGE = Path(__file__).parent / "configuration.md"

INTRODUCTION = """\
# Configuration

One YAML file a round; `accord init` writes one to start from, [`configs/demo.yaml`](../configs/demo.yaml) is a whole
one. Its top level holds `model` (a model reference), `chat_template` (for a base model without one:
[bring-your-model.md](bring-your-model.md)), `data`,
`sampling`, `compute`, and a section for each stage that is to be run: `sft` (left out: the base model is aligned as it
is), `feedback` or `preferences` (a file in its place), `reward`, `rl` and `eval`. On the command line a setting is
`rl.learning_rate=1e-6`. A key that nothing reads, or that stands twice, is an error. `accord config check` says all
that is wrong, `accord config show` all that is set. Data files inside the package
are `bundled:demo/prompts.train.jsonl` and the like; other paths are relative to the working folder.

This page is written by `docs/make_configuration.py`.
"""
TRAINING = set(TrainingConfig.model_fields)
OTHERS = "[optimise-with-other-algorithms.md](optimise-with-other-algorithms.md)"
AND_TRAINING = "And the settings of every training stage."
SECTIONS: list[tuple[str, type[BaseModel], str, set[str]]] = [
    (
        "data",
        DataConfig,
        "How the files that stages name are read ([bring your data](bring-your-data.md)).",
        set(),
    ),
    (
        "data.generate",
        GenerateConfig,
        "What `accord data generate` makes; see [make-data.md](make-data.md).",
        set(),
    ),
    ("sampling", SamplingConfig, "The engine that samples answers, shared by all stages of a round.", set()),
    (
        "compute",
        ComputeConfig,
        "The devices of the training stages; see [scale.md](scale.md). No run's id depends on it.",
        set(),
    ),
    (
        "Settings of every training stage",
        TrainingConfig,
        "`sft`, `reward` and `rl` (but for PPO) have these. A row is a conversation for `sft`, a prompt with all its "
        "answers for `reward`, a pair for DPO, an answer for KTO, RLOO, GRPO and best_of_n.",
        set(),
    ),
    ("lora", LoraConfig, "`lora:` of a training stage.", set()),
    ("sft", SFTConfig, f"See [fine-tune.md](fine-tune.md). {AND_TRAINING}", TRAINING),
    ("adapter", AdapterConfig, "`adapter:` of `sft`.", set()),
    ("train_only", TrainedWeights, "`train_only:` of `sft`.", set()),
    (
        "card",
        CardConfig,
        "`sft.card`: see [read-a-fine-tuning-card.md](read-a-fine-tuning-card.md); `null` or `false` leaves it out.",
        set(),
    ),
    ("demonstrations", WeightedFile, "Each entry of `sft.demonstrations`.", set()),
    ("feedback", FeedbackConfig, "See [collect-feedback.md](collect-feedback.md).", set()),
    ("reward", RewardConfig, AND_TRAINING, TRAINING - {"save_dtype"}),
    (
        "rl with algorithm: dpo",
        DPOConfig,
        f"What `rl` is where it names no algorithm; see {OTHERS}. {AND_TRAINING}",
        TRAINING - {"learning_rate"},
    ),
    (
        "rl with algorithm: kto",
        KTOConfig,
        f"See {OTHERS}. {AND_TRAINING}",
        TRAINING - {"learning_rate", "rows_per_update", "rows_per_pass"},
    ),
    ("rl with algorithm: ppo", PPOConfig, "See [optimise-with-ppo.md](optimise-with-ppo.md).", set()),
    (
        "rl with algorithm: rloo or grpo",
        OnlineConfig,
        f"See {OTHERS}. {AND_TRAINING}",
        TRAINING - {"learning_rate", "rows_per_update"},
    ),
    ("rl with algorithm: best_of_n", BestOfNConfig, f"See {OTHERS}. {AND_TRAINING}", TRAINING),
    ("eval", EvalConfig, "See [read-a-report.md](read-a-report.md).", set()),
    ("gate", Margin, "Each metric under `eval.gate`.", set()),
]


def page() -> str:
    """The whole page."""
    return INTRODUCTION + "".join(section(*arguments) for arguments in SECTIONS)


def section(title: str, config: type[BaseModel], introduction: str, left_out: set[str]) -> str:
    """One class as a heading and a table."""
    lines = ["", f"## {title}", "", introduction, "", "| setting | type | default | |", "|---|---|---|---|"]
    meaning = setting_docs(config)
    for name, field in config.model_fields.items():
        if name in left_out:
            continue
        default = field.default if field.default is not PydanticUndefined else None
        is_required = field.is_required() or name in getattr(config, "needed_files", ())
        shown = "required" if is_required else "" if default is None else f"`{default}`"
        lines.append(f"| `{name}` | {kind(field.annotation)} | {shown} | {meaning.get(name, '')} |")
    return "\n".join(lines) + "\n"


def kind(annotation: typing.Any) -> str:
    """A type in words."""
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return " or ".join(str(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if each is type(None) else kind(each) for each in arguments)
    if origin in (list, tuple):
        return f"list of {kind(arguments[0])}"
    if origin is dict:
        return f"mapping to {kind(arguments[1])}"
    return {
        "str": "text",
        "int": "whole number",
        "float": "number",
        "bool": "true or false",
        "Any": "anything",
    }.get(annotation.__name__, annotation.__name__.removesuffix("Config").lower())


if __name__ == "__main__":
    PAGE.write_text(page())
