"""Code that a user names in a configuration: `file.py:NAME` or `module:NAME`.

    rl.reward_function: rewards.py:brevity      rl.algorithm: my_algorithms.py:BEST_OF_N

Nothing is imported before it is named, and a file is run once in a process for as long as its content is the same.
"""

import importlib
import importlib.util
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from accord.digests import file_digest
from accord.errors import UsageError
from accord.records import content_id

FORBIDDEN = "ACCORD_NO_CODE"
"""The environment variable by which nothing of a user's is run, in processes that this one starts either."""
logger = logging.getLogger(__name__)
_said: set[str] = set()


def forbid() -> None:
    """Have every attempt to run a user's code refused from now on."""
    os.environ[FORBIDDEN] = "1"


def announce(what: str, reference: str) -> None:
    """Say, once a process, that code runs which the configuration brings.

    Raises:
        UsageError: such code is forbidden.
    """
    if os.environ.get(FORBIDDEN):
        raise UsageError(
            f"{what} '{reference}' is code that the configuration brings, and --no-code (or {FORBIDDEN}) forbids to "
            "run such; read it first, and run this again without"
        )
    if reference not in _said:
        _said.add(reference)
        logger.info("%s %s: this code of yours runs now, with your rights", what, reference)


@dataclass(frozen=True)
class Place:
    """Where something stands that a reference names."""

    reference: str
    module: str
    """As the reference has it: the path of a .py file, or a module's dotted name."""
    name: str
    file: Path

    @property
    def digest(self) -> str:
        """The name and its file's SHA-256; what the file imports is not in it."""
        return f"{self.name}@sha256:{file_digest(self.file)}"


def locate(reference: str, what: str) -> Place:
    """Find the file of a reference without running it.

    Args:
        reference: `file.py:NAME` or `module:NAME`.
        what: the kind of thing, for messages: "reward function".

    Raises:
        UsageError: the reference has another form, or there is no such file or module.
    """
    module, colon, name = reference.rpartition(":")
    if not colon or not module or not name.isidentifier():
        raise UsageError(f"{what} '{reference}': write file.py:name or module:name")
    if module.endswith(".py"):
        if not Path(module).is_file():
            raise UsageError(f"{what} '{reference}': {module} cannot be loaded (there is no such file)")
        return Place(reference, module, name, Path(module))
    file = _file_of_module(module)
    if file is None:
        raise UsageError(f"{what} '{reference}': there is no module {module} with a source file")
    return Place(reference, module, name, file)


def _file_of_module(module: str) -> Path | None:
    """Where a module's code is; `importlib.util.find_spec` would import the packages that the module is in."""
    folders: list[str] | None = None  # those of sys.path
    origin = None
    parts = module.split(".")
    for end, part in enumerate(parts, start=1):
        specs = (finder.find_spec(".".join(parts[:end]), folders) for finder in sys.meta_path)
        try:
            spec = next((spec for spec in specs if spec is not None), None)
        except (
            KeyError
        ):  # a folder without __init__.py in a package, which would have to be imported to say more
            origin, folders = None, [str(Path(folder, part)) for folder in folders or ()]
            continue
        if spec is None:
            return None
        origin = spec.origin if spec.has_location else None
        folders = list(spec.submodule_search_locations or ())
    return Path(origin) if origin else None


def load(place: Place, what: str) -> Any:
    """What stands there.

    Raises:
        UsageError: importing the file fails, or it has nothing of that name; or code of a user's is forbidden.
    """
    announce(what, place.reference)
    try:
        module = (
            _run_file(place.file) if place.module.endswith(".py") else importlib.import_module(place.module)
        )
    except Exception as error:
        raise _not_loaded(place.reference, what, place.module, error) from error
    if not hasattr(module, place.name):
        raise UsageError(f"{what} '{place.reference}': {place.module} has no '{place.name}'")
    return getattr(module, place.name)


def _run_file(file: Path) -> ModuleType:
    """A file as a module of its own; in `sys.modules`, where dataclasses, pydantic and pickle look for it."""
    name = f"{file.stem}_{content_id([str(file.resolve()), file_digest(file)])}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _not_loaded(reference: str, what: str, module: str, error: Exception) -> UsageError:
    return UsageError(f"{what} '{reference}': {module} cannot be loaded ({type(error).__name__}: {error})")
