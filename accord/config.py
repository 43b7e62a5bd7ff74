"""Configuration: one YAML file a round, one frozen pydantic model a stage, overrides as `rl.learning_rate=1e-6`.

A key that nothing reads is an error, at every level, because a typo that is ignored costs a training run.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from accord.errors import UsageError


class Config(BaseModel):
    """A part of the configuration: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class LoraConfig(Config):
    """Low-rank adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685) in place of full fine-tuning."""

    rank: int = 16
    """Of every adapter; all linear layers get one."""
    alpha: int = 32
    """The adapter's output is scaled by alpha / rank."""
    dropout: float = 0.0
    """Of the adapter's input, while it is trained."""
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
        location = [part for part in problem["loc"] if isinstance(part, str)]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            close = difflib.get_close_matches(location[-1], _known_keys(config_type, location[:-1]), n=1)
            sentences.append(f"unknown key '{key}'" + (f"; did you mean '{close[0]}'?" if close else ""))
        elif problem["type"] == "missing":
            sentences.append(f"'{key}' is missing")
        else:
            reason = problem["msg"].removeprefix("Value error, ")
            reason = reason[0].lower() + reason[1:]
            # A check over a whole section would show all of it as what was found.
            found = "" if isinstance(problem["input"], dict) else f", found {problem['input']!r}"
            sentences.append((f"'{key}': " if key else "") + reason + found)
    return "; ".join(sentences)


def _known_keys(config_type: Any, location: Sequence[str]) -> list[str]:
    for key in location:
        field = getattr(config_type, "model_fields", {}).get(key)
        candidates = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        config_type = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return list(getattr(config_type, "model_fields", {}))


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
