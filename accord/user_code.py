"""Code that a user names in a configuration: `file.py:NAME` or `module:NAME`.

    rl.reward_function: rewards.py:brevity      rl.algorithm: my_algorithms.py:BEST_OF_N

Nothing is imported before it is named, and a file is run once in a process for as long as its content is the same.
"""

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from accord.errors import UsageError
from accord.records import content_id
from accord.runs import file_digest


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
    try:
        spec = importlib.util.find_spec(module)
    except Exception as error:  # a package on the way to it may raise anything
        raise _not_loaded(reference, what, module, error) from error
    if spec is None:
        raise UsageError(f"{what} '{reference}': {module} cannot be loaded (No module named '{module}')")
    if not spec.has_location or spec.origin is None:
        raise UsageError(f"{what} '{reference}': {module} has no source file that could be recorded")
    return Place(reference, module, name, Path(spec.origin))


def load(place: Place, what: str) -> Any:
    """What stands there.

    Raises:
        UsageError: importing the file fails, or it has nothing of that name.
    """
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
