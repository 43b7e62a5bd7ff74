"""Configuration: one YAML file a round, one frozen pydantic model a stage, overrides as `rl.learning_rate=1e-6`.

A key that nothing reads is an error, at every level, because a typo that is ignored costs a training run.
"""

import ast
import dataclasses
import difflib
import inspect
import itertools
import json
import re
import textwrap
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError, core_schema

from accord.errors import DataError, UsageError
from accord.records import Row
from accord.text_files import beginning, decode, is_deeper

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Of random numbers; torch, NumPy and transformers all take such ones."""
LONGEST_SHOWN = 200
"""Characters of a value in a message."""
LARGEST = 10**10
"""No number of a configuration may be further from zero."""
DEEPEST = 64
"""How many levels of sections and lists a configuration may have."""
MOST_VALUES = 1_000_000
"""How many values a YAML file may hold."""


class Config(BaseModel):
    """A part of the configuration: immutable, closed to keys it does not know, and without infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)
    not_identity: ClassVar[frozenset[str]] = frozenset()
    """Settings that may differ between two tries of the same run, because the result does not depend on them."""
    row_files: ClassVar[Mapping[str, type[Row]]] = {}
    """Settings that name files of rows, and what their rows are; from Python, rows can be passed in their place."""
    reads_files_itself: ClassVar[bool] = False
    """Whether the stage reads files of every kind and convention as they are; otherwise they are converted for it."""
    needed_files: ClassVar[tuple[str, ...]] = ()
    """Those of them without which there is nothing to read; a configuration file must name them."""
    other_files: ClassVar[Mapping[str, str]] = {}
    """Settings that do in the place of one that is needed."""

    @model_validator(mode="after")
    def _holds_no_giant_number(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, int | float) and abs(value) > LARGEST:
                raise ValueError(f"{name}: is {value:.3g}, and no setting is beyond {LARGEST:g}")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """With what each setting means, and the files that must be named."""
        schema = handler(core)
        own = handler.resolve_ref_schema(schema)
        for name, meaning in setting_docs(cls).items():
            if name in own["properties"]:
                own["properties"][name]["description"] = meaning
        needed = [name for name in cls.needed_files if name not in cls.other_files]
        if needed := [*own.get("required", ()), *needed]:
            own["required"] = list(dict.fromkeys(needed))
        for name, other in cls.other_files.items():
            own["anyOf"] = [{"required": [name]}, {"required": [other]}]
        return schema

    @classmethod
    def lacks(cls, name: str, has: Callable[[str], Any]) -> bool:
        """Whether neither a needed file nor one in its place is there; `has` says which are."""
        return not (has(name) or (name in cls.other_files and has(cls.other_files[name])))


def setting_docs(config: type[BaseModel]) -> dict[str, str]:
    """The text under each setting of a class, by its name."""
    found: dict[str, str] = {}
    for each in reversed(config.__mro__):
        if not issubclass(each, BaseModel) or each is BaseModel:
            continue
        try:
            statement = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        except OSError:  # a class that was typed in
            continue
        assert isinstance(statement, ast.ClassDef)
        for line, after in itertools.pairwise(statement.body):
            if (
                isinstance(line, ast.AnnAssign)
                and isinstance(line.target, ast.Name)
                and isinstance(after, ast.Expr)
            ):
                found[line.target.id] = " ".join(ast.literal_eval(after.value).split())
    return found


@dataclasses.dataclass(frozen=True)
class ChosenBy:
    """Marks a section whose class follows from one of its keys: `Annotated[Base, ChosenBy("kind", find, "plain")]`.

    Unlike a tagged union, it asks for the class when a section is read: classes may come from a user's file. Where the
    annotation is `Base | None`, there may be no section.
    """

    key: str
    find: Callable[[Any], type[BaseModel]]
    """From the value of the key to the class; raises UsageError, which then is said of the key."""
    default: Any
    """The value where the key is left out."""
    known: Callable[[], Iterable[str]] = tuple
    """The values that are known without a user's file, for editors."""

    def class_of(self, section: Mapping[str, Any]) -> type[BaseModel]:
        """The class of a section that was written as a mapping."""
        return self.find(section.get(self.key, self.default))

    def __get_pydantic_core_schema__(self, source: type[BaseModel], handler: Any) -> core_schema.CoreSchema:
        def read(section: Any) -> BaseModel | None:
            if isinstance(section, source):
                return section
            if not isinstance(section, Mapping):
                raise ValueError("must be a section of settings")
            try:
                chosen = self.class_of(section)
            except UsageError as error:
                said = PydanticCustomError("choice", "{reason}", {"reason": str(error)})
                place = (self.key,)
                found = section.get(self.key, self.default)
                raise ValidationError.from_exception_data(
                    self.key, [{"type": said, "loc": place, "input": found}]
                ) from error
            return chosen.model_validate(section)

        def written(section: BaseModel | None, info: Any) -> dict[str, Any] | None:
            return None if section is None else section.model_dump(mode=info.mode)

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(written, info_arg=True)
        )

    def __get_pydantic_json_schema__(self, _: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """An object whose other keys follow from the one that chooses; all of them are open for a user's own class."""
        known = list(self.known())
        chosen = [
            {
                "if": {"properties": {self.key: {"const": value}}}
                | ({} if value == self.default else {"required": [self.key]}),
                # inside a union, the class's own changes to its schema count
                "then": handler(core_schema.union_schema([self.find(value).__pydantic_core_schema__])),
            }
            for value in known
        ]
        key = {"anyOf": [{"enum": known}, {"type": "string", "pattern": ":"}], "default": self.default}
        section = {"type": "object", "properties": {self.key: key}, "allOf": chosen}
        return {"anyOf": [section, {"type": "null"}]}


class LoraConfig(Config):
    """Low-rank adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685) in place of full fine-tuning."""

    rank: int = Field(default=16, ge=1, le=65_536)
    """Of every adapter; all linear modules get one."""
    alpha: int = Field(default=32, ge=1, le=1_000_000)
    """The adapter's output is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the adapter's input, while it is trained."""
    top_layers: int | None = Field(default=None, ge=1)
    """Adapters in the last so many layers only; PPO then computes the layers beneath once for all models and epochs."""
    quantize_base: bool = False
    """QLoRA (Dettmers et al. 2023): the frozen base in 4-bit NF4; needs a bitsandbytes that works here."""
    rank_stabilized: bool = False
    """Scale by alpha / sqrt(rank) instead, so that a high rank learns as fast as a low one (Kalajdzievski 2023,
    https://arxiv.org/abs/2312.03732)."""
    dora: bool = False
    """Learn the lengths of the weights' rows apart from their directions (DoRA: Liu et al. 2024,
    https://arxiv.org/abs/2402.09353); each update takes longer."""
    start: Literal["zero", "pissa", "olora"] = "zero"
    """What adapters start from. zero: they change nothing yet. pissa: the largest singular values of each weight (Meng
    et al. 2024, https://arxiv.org/abs/2404.02948), olora: its QR decomposition (Buyukakyuz 2024,
    https://arxiv.org/abs/2406.01775); both are taken out of the frozen weights, so that the model starts as it was. The
    saved adapter fits the base as it was, with twice the rank."""

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.start != "zero":
            for key in ("dora", "quantize_base"):
                if getattr(self, key):
                    raise ValueError(
                        f"start: {self.start} takes a part out of the frozen weights, which does not go with {key}; "
                        f"set {key} to false or start to zero"
                    )
        return self


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
        values = load_yaml(decode(path.read_bytes(), str(path)))
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); name an existing configuration file"
        ) from None
    except DataError as error:
        raise UsageError(str(error)) from None
    except ValueError as error:
        raise UsageError(f"{path}: is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: must hold a mapping of stage names to settings")
    for override in overrides:
        _apply_override(values, override)
    try:
        return config_type.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{path}: {_describe(error, config_type, values)}") from None


def load_yaml(text: str) -> Any:
    """What a YAML text holds, strictly: no key twice, no code, nothing that has no end.

    Raises:
        ValueError: it is no such text; the message says why in one line.
    """
    try:
        values = yaml.load(text, _StrictLoader)
        too_deep = is_deeper(values, DEEPEST)
    except RecursionError:
        too_deep = True
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:  # what its parts are made by raises these
        raise ValueError(" ".join(str(error).split())) from None
    if too_deep:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep, or an alias refers to what it is in")
    if _written_out(values, {}) > MOST_VALUES:
        raise ValueError(f"its aliases stand for more than {MOST_VALUES:,} values; write out what is meant")
    try:
        json.dumps(values, ensure_ascii=False, default=str, skipkeys=True).encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair, which is no character") from None
    return values


def _written_out(value: Any, known: dict[int, int]) -> int:
    """How many values there are where every alias stands for what it names."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_written_out(each, known) for each in parts)
    return known[id(value)]


def _apply_override(values: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not all(dotted.split(".")):
        raise UsageError(f"'{override}' is no override; write key=value, for example rl.learning_rate=1e-6")
    try:
        value = load_yaml(text)
    except ValueError as error:
        written = override if len(override) <= LONGEST_SHOWN else f"{override[:LONGEST_SHOWN]}..."
        why = str(error)
        why = why if len(why) <= LONGEST_SHOWN else f"{why[:LONGEST_SHOWN]}..."
        raise UsageError(f"'{written}': the value is not valid YAML ({why}); quote it") from None
    *parents, last = dotted.split(".")
    target = values
    for key in parents:
        if target.get(key) is None:
            target[key] = {}
        target = target[key]
        if not isinstance(target, dict):
            raise UsageError(f"'{override}': '{key}' is a value, not a section, so it has no '{last}'")
    target[last] = value


def _describe(error: ValidationError, config_type: type[BaseModel], values: Any) -> str:
    sentences = []
    for problem in error.errors():
        place = problem["loc"]
        key = ".".join(str(part) for part in place)
        if problem["type"] == "extra_forbidden":
            known = _known_keys(config_type, place[:-1], values)
            close = difflib.get_close_matches(str(place[-1]), known, n=1)
            sentences.append(f"unknown key '{key}'" + (f"; did you mean '{close[0]}'?" if close else ""))
        elif problem["type"] == "missing":
            sentences.append(f"'{key}' is missing")
        else:
            is_section = problem["type"] == "model_type"
            reason = (
                "must be a section of settings"
                if is_section
                else problem["msg"].removeprefix("Value error, ")
            )
            reason = reason[0].lower() + reason[1:]
            # A check over a whole section would show all of it as what was found.
            found = "" if isinstance(problem["input"], dict) else f", found {_shown(problem['input'])}"
            sentences.append((f"'{key}': " if key else "") + reason + found)
    return "; ".join(sentences)


def _shown(value: Any) -> str:
    text = repr(beginning(value, LONGEST_SHOWN))
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _known_keys(config_type: Any, place: Sequence[Any], values: Any) -> list[str]:
    """What may stand at a place of a configuration that was written as these values."""
    for key in place:
        if not isinstance(key, int):
            values = values.get(key) if isinstance(values, Mapping) else None
        elif isinstance(values, Sequence) and not isinstance(
            values, str
        ):  # else a list of one, written without
            values = values[key]
        if isinstance(key, str):  # a number is the place in a list, whose items are all of one class
            config_type = _section(config_type, key, values)
    return list(getattr(config_type, "model_fields", {}))


def _section(config_type: Any, key: str, values: Any) -> Any:
    """The class of what stands under a key; None where that is no section."""
    field = getattr(config_type, "model_fields", {}).get(key)
    if field is None:
        return None
    for mark in field.metadata:
        if isinstance(mark, ChosenBy):
            return mark.class_of(values)
    annotations = (field.annotation, *getattr(field.annotation, "__args__", ()))
    return next(
        (each for each in annotations if isinstance(each, type) and issubclass(each, BaseModel)), None
    )


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
        UsageError: a key is no field of `target`, or is one that accord sets, or its value is of another type.
    """
    fields = [field.name for field in dataclasses.fields(target)]
    for key in arguments:
        if key in ours:
            raise UsageError(f"{section}.{key}: accord sets this one; use the key of the section itself")
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise UsageError(f"{section}.{key}: {target.__name__} has no such argument{hint}")
    types = typing.get_type_hints(target)
    for key, value in arguments.items():
        settings = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
        try:
            TypeAdapter(dict[str, types[key]], config=settings).validate_python({key: value}, strict=True)  # type: ignore[valid-type]
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise UsageError(
                f"{section}.{key}: {reason[0].lower()}{reason[1:]}, found {_shown(value)}"
            ) from None
