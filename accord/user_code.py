"""Python that a user wrote and a setting names: `file.py:name` or `module:name`. A suite's kind, a reader of files.

    load_user_code("readers.py:chats").value(Path("export.xml"))

What is run is exactly what `digest` says: a file is read once, and its bytes are both hashed and executed.
"""

import hashlib
import importlib
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from accord.errors import UsageError


@dataclass(frozen=True)
class UserCode:
    """Something that a user's file or module defines: a `runs.Source`."""

    reference: str
    value: Any
    digest: str
    """The SHA-256 of the file that it stands in; what the file imports is not in it."""
    run_id: None = None


def load_user_code(reference: str, what: str, folder: Path = Path()) -> UserCode:
    """What a reference like `readers.py:chats` or `my_package.readers:chats` names.

    Args:
        reference: a file and a name in it, or a module and a name.
        what: it is, for the messages: "reader".
        folder: which the file's path is relative to.

    Raises:
        UsageError: there is no such file, module or name, or running it fails.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name.isidentifier():
        raise UsageError(f"{what} '{reference}' names no Python; write file.py:name or module:name")
    try:
        if place.endswith(".py"):
            source = (folder / place).read_bytes()
            module = _executed(folder / place, source)
        else:
            module = importlib.import_module(place)
            source = Path(inspect.getsourcefile(module) or "").read_bytes()
    except Exception as error:
        raise UsageError(
            f"{what} '{reference}': {folder / place if place.endswith('.py') else place} cannot be loaded "
            f"({type(error).__name__}: {error})"
        ) from error
    if not hasattr(module, name):
        raise UsageError(f"{what} '{reference}': {place} defines no '{name}'")
    return UserCode(reference, getattr(module, name), hashlib.sha256(source).hexdigest())


def _executed(file: Path, source: bytes) -> ModuleType:
    """A module of these bytes; dataclasses and pydantic look for the module of a class by its name."""
    module = ModuleType(f"accord_user_code_{file.stem}_{hashlib.sha256(source).hexdigest()[:12]}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module
