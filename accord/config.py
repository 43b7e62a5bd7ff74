"""Configuration: one YAML file a round, one frozen pydantic model a stage, overrides as `rl.learning_rate=1e-6`.

A key that nothing reads is an error, at every level, because a typo that is ignored costs a training run.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, Tag, ValidationError

from accord.errors import UsageError
from accord.records import Row


class Config(BaseModel):
    """A part of the configuration: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    not_identity: ClassVar[frozenset[str]] = frozenset()
    """Settings that may differ between two tries of the same run, because the result does not depend on them."""
    row_files: ClassVar[Mapping[str, type[Row]]] = {}
    """Settings that name files of rows, and what their rows are; from Python, rows can be passed in their place."""
    needed_files: ClassVar[tuple[str, ...]] = ()
    """Those of them without which there is nothing to read; a configuration file must name them."""


class LoraConfig(Config):
    """Low-rank adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685) in place of full fine-tuning."""

    rank: int = 16
    """Of every adapter; all linear modules get one."""
    alpha: int = 32
    """The adapter's output is scaled by alpha / rank."""
    dropout: float = 0.0
    """Of the adapter's input, while it is trained."""
    top_layers: int | None = Field(default=None, ge=1)
    """Adapters in the last so many layers only; PPO then computes the layers beneath once for all models and epochs."""
    quantize_base: bool = False
    """QLoRA (Dettmers et al. 2023): the frozen base in 4-bit NF4; needs a bitsandbytes that works here."""


ConfigT = TypeVar("ConfigT", bound=Config)


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key written twice (plain YAML lets the last one win) and reads 1e-6 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"line {node.start_mark.line + 1}: the key '{key}' is written twice")
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML reads, takes 1e-6 for a string: it wants 1.0e-6.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_config(path: Path, config_type: type[ConfigT], overrides: Sequence[str] = ()) -> ConfigT:
    """Read a YAML file, apply `key.path=value` overrides, and check every key and value.

    Raises:
        UsageError: unreadable file, bad YAML, unknown key, wrong value or malformed override; the message names
            the file and the key, and the closest known key for a typo.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); name an existing configuration file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: must hold a mapping of stage names to settings")
    for override in overrides:
        _apply_override(values, override)
    try:
        return config_type.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{path}: {_describe(error, config_type)}") from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise UsageError(f"'{override}' is no override; write key=value, for example rl.learning_rate=1e-6")
    try:
        value = yaml.load(text, _StrictLoader)
    except yaml.YAMLError:
        raise UsageError(f"'{override}': the value is not valid YAML; quote it") from None
    *parents, last = dotted.split(".")
    target = values
    for key in parents:
        if target.get(key) is None:
            target[key] = {}
        target = target[key]
        if not isinstance(target, dict):
            raise UsageError(f"'{override}': '{key}' is a value, not a section, so it has no '{last}'")
    target[last] = value


def _describe(error: ValidationError, config_type: type[BaseModel]) -> str:
    sentences = []
    for problem in error.errors():
        place = _without_tags(config_type, problem["loc"])
        key = ".".join(str(part) for part in place)
        if problem["type"] == "extra_forbidden":
            close = difflib.get_close_matches(place[-1], _known_keys(config_type, problem["loc"][:-1]), n=1)
            sentences.append(f"unknown key '{key}'" + (f"; did you mean '{close[0]}'?" if close else ""))
        elif problem["type"] == "missing":
            sentences.append(f"'{key}' is missing")
        elif problem["type"] == "union_tag_invalid":
            context = problem["ctx"]
            known = context["expected_tags"].replace("'", "")
            sentences.append(f"'{key}.algorithm' must be one of {known}, found '{context['tag']}'")
        elif problem["type"] == "union_tag_not_found":
            sentences.append(f"'{key}' must be a section of settings, found {problem['input']!r}")
        else:
            reason = problem["msg"].removeprefix("Value error, ")
            reason = reason[0].lower() + reason[1:]
            # A check over a whole section would show all of it as what was found.
            found = "" if isinstance(problem["input"], dict) else f", found {problem['input']!r}"
            sentences.append((f"'{key}': " if key else "") + reason + found)
    return "; ".join(sentences)


def _known_keys(config_type: Any, place: Sequence[Any]) -> list[str]:
    """What may stand at a place of a configuration; the place may name the class that a tagged union took."""
    choices: dict[str, Any] = {"": config_type}
    for key in place:
        if key in choices:
            choices = {"": choices[key]}
        elif isinstance(key, str):  # a number is the place in a list, whose items are all of one class
            choices = _sections(next(iter(choices.values()), None), key)
    return list(getattr(next(iter(choices.values()), None), "model_fields", {}))


def _without_tags(config_type: Any, place: Sequence[Any]) -> list[Any]:
    """The place of an error as keys and indices only: a tagged union also names the class that it took."""
    keys: list[Any] = []
    choices: dict[str, Any] = {"": config_type}
    for key in place:
        if key in choices:
            choices = {"": choices[key]}
            continue
        keys.append(key)
        if isinstance(key, str):
            choices = _sections(next(iter(choices.values()), None), key)
    return keys


def _sections(config_type: Any, key: Any) -> dict[str, Any]:
    """The classes that a key of a section may hold, by tag where it is a tagged union."""
    field = getattr(config_type, "model_fields", {}).get(key)
    annotations = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
    found = {}
    for each in annotations:
        plain = getattr(each, "__origin__", each)  # without `Annotated`
        if isinstance(plain, type) and issubclass(plain, BaseModel):
            tag = next((m.tag for m in getattr(each, "__metadata__", ()) if isinstance(m, Tag)), "")
            found[tag] = plain
    return found


def check_trainer_arguments(
    section: str, arguments: Mapping[str, Any], target: type, ours: Sequence[str]
) -> None:
    """Check a `trainer:` mapping against the dataclass that it is passed on to.

    Args:
        section: where the mapping stands, for the message ("sft.trainer").
        arguments: the user's mapping.
        target: a dataclass such as `trl.SFTConfig`.
        ours: fields that accord sets itself from named keys and that may therefore not be set twice.

    Raises:
        UsageError: a key is no field of `target`, or is one that accord sets.
    """
    fields = [field.name for field in dataclasses.fields(target)]
    for key in arguments:
        if key in ours:
            raise UsageError(f"{section}.{key}: accord sets this one; use the key of the section itself")
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise UsageError(f"{section}.{key}: {target.__name__} has no such argument{hint}")
