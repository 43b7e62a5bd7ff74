"""Importing this has the shapes checked in the modules of `CHECKED`: a wrong one, or a wrong type, is an error.

It has to come before any of them is imported. Programs that tests start are not checked. A check costs tenths of a
millisecond a call, and more for functions that are made within functions; so small functions that are called in loops
stay out of the list, and are checked where a test asks for it (`checked`).
"""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook, jaxtyped

CHECKED = (
    "accord.packing",
    "accord.statistics",
    "feedback.belief.coefficients",
    "feedback.belief.likelihood",
    "reward.loss",
    "rl.maths.advantages",
    "rl.maths.losses",
    "rl.maths.token_statistics",
    "rl.policy_gradient.actors",
    "rl.policy_gradient.kl",
    "rl.policy_gradient.rows",
)
"""Modules whose annotations are checked in all tests."""

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # where a float is wanted, an int will do


@contextmanager
def checked(*modules: ModuleType) -> Iterator[None]:
    """Within it, the public functions of these modules are checked, wherever they are called from by module."""
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            for name, function in inspect.getmembers(module, inspect.isfunction):
                if function.__module__ == module.__name__ and not name.startswith("_"):
                    patch.setattr(module, name, jaxtyped(typechecker=typechecker)(function))
        yield


early = [name for name in CHECKED if name in sys.modules]
assert not early, f"imported before their shapes can be checked: {early}"
install_import_hook(CHECKED, "shapes.typechecker")
