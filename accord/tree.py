"""What is below a folder, so that nothing which could be read there goes unseen.

Runs refuse symbolic links: what a link leads to can change without the run. A model's folder from outside may have
them, as the hub's cache does; there they are followed, and what they lead to is hashed.
"""

import os
import stat
from pathlib import Path

from accord.errors import UsageError


def entries_below(folder: Path) -> tuple[list[str], list[str]]:
    """The names of all files below a folder, and of all that is neither file nor folder, symbolic links among it.

    Nothing is followed. Both are sorted, relative to the folder, with `/` between their parts.
    """
    files: list[str] = []
    others: list[str] = []
    for place, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(place, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                files.append(path.relative_to(folder).as_posix())
            elif not stat.S_ISDIR(mode):
                others.append(path.relative_to(folder).as_posix())
    return sorted(files), sorted(others)


def files_of_model(folder: Path) -> dict[str, Path]:
    """All that transformers, tokenizers or vLLM could read below a model's folder: by name, the file it is.

    Links are followed. Folders whose name begins with a dot, such as `.git`, are left out.

    Raises:
        UsageError: a link leads nowhere or in a circle, or something is neither file nor folder.
    """
    found: dict[str, Path] = {}

    def walk(place: Path, above: tuple[Path, ...]) -> None:
        for path in sorted(place.iterdir()):
            name = path.relative_to(folder).as_posix()
            try:
                real = path.resolve(strict=True)
            except (OSError, RuntimeError):  # before Python 3.13, a circle of links is a RuntimeError
                raise UsageError(
                    f"{path} is a symbolic link that leads nowhere; remove it, or copy the file that is meant"
                ) from None
            if real.is_dir():
                if real in above:
                    raise UsageError(f"{path} is a symbolic link to a folder that it is in; remove it")
                if not path.name.startswith("."):
                    walk(path, (*above, real))
            elif real.is_file():
                found[name] = real
            else:
                raise UsageError(f"{path} is neither a file nor a folder; remove it")

    walk(folder, (folder.resolve(),))
    return found
