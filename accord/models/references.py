"""Model references: `run:<id>`, a local folder, a hub id, or `bundled:smollm2-135m-instruct`.

Only safetensors weights are loaded, and never code that comes with a model.
"""

from dataclasses import dataclass
from pathlib import Path

from accord import bundled
from accord.digests import file_digest
from accord.errors import UsageError
from accord.models.files import (
    ADAPTER,
    INDEX,
    SINGLE,
    check_adapter_file,
    check_config,
    check_files,
    has_virtual_tokens,
    read_settings,
    weights_folder,
)
from accord.records import content_id
from accord.runs import Run, Runs
from accord.tree import files_of_model

WEIGHTS = ["*.safetensors"]
SMALL_FILES = ["*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt"]
"""What a model's folder has beside its weights."""
WEIGHT_AND_TOKENIZER_FILES = [*WEIGHTS, *SMALL_FILES]


@dataclass(frozen=True)
class Model:
    """A model that was found: where it is and what identifies it (a `runs.Source`)."""

    reference: str
    folder: Path
    digest: str
    run_id: str | None = None

    @property
    def is_adapter(self) -> bool:
        """Whether the folder holds a PEFT adapter and no model (`accord.models.base` makes one of it)."""
        return holds_adapter(self.folder)


def resolve(reference: str | Run, runs: Runs, adapter_too: bool = False) -> Model:
    """Find a model by reference or as what a run made, and check that its folder holds what a model needs.

    Args:
        reference: see above.
        runs: where `run:...` is looked for.
        adapter_too: take a folder with a PEFT adapter alone.

    Raises:
        UsageError: nothing has this name, or the folder lacks config, safetensors weights or tokenizer, or has two sets
            of weights, damaged or quantised ones.
        TamperedError: the run's weights were changed after it finished.
    """
    if isinstance(reference, Run):
        reference = f"run:{reference.id}"
    return _found(reference, runs, with_weights=True, adapter_too=adapter_too)


def locate(reference: str, runs: Runs, adapter_too: bool = False) -> Model:
    """As `resolve`, but in no time: weights are neither downloaded nor hashed, so a model from outside has no digest.

    Raises:
        UsageError: as `resolve`.
    """
    return _found(reference, runs, with_weights=False, adapter_too=adapter_too)


def _found(reference: str, runs: Runs, with_weights: bool, adapter_too: bool) -> Model:
    if reference == bundled.MODEL:
        folder = bundled.smollm2_135m_instruct()
        return Model(reference, folder, f"{reference}@{_folder_digest(folder)}" if with_weights else "")
    if reference.startswith(bundled.PREFIX):
        raise UsageError(f"'{reference}' is not bundled; {bundled.MODEL} is")
    if reference.startswith("run:"):
        run = runs.load(reference)
        folder = run.output("model")
        if with_weights:
            runs.check(run)
        else:
            _check_folder(folder, has_weights=False)
        return Model(f"run:{run.id}", folder, run.digest, run.id)
    if Path(reference).exists():
        folder = Path(reference)
        _check_folder(folder, adapter_too=adapter_too)
        return Model(reference, folder, f"sha256:{_folder_digest(folder)}" if with_weights else "")
    folder = _download(reference, WEIGHT_AND_TOKENIZER_FILES if with_weights else SMALL_FILES)
    _check_folder(folder, with_weights, adapter_too)
    return Model(
        reference, folder, f"{reference}@{folder.name}:{_folder_digest(folder)}" if with_weights else ""
    )


def holds_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter and no whole model."""
    return (
        (folder / ADAPTER).exists()
        and not has_virtual_tokens(folder)
        and not any((folder / name).exists() for name in (SINGLE, INDEX))
    )


def _check_folder(folder: Path, has_weights: bool = True, adapter_too: bool = False) -> None:
    if holds_adapter(folder):
        settings = read_settings(folder / ADAPTER)
        if not adapter_too:
            raise UsageError(
                f"{folder} holds an adapter of {settings.get('base_model_name_or_path')} and no model of its own; as "
                "`model` of a configuration, or in `accord gate`, it is merged with that"
            )
        if has_weights:
            check_adapter_file(folder)
        return
    if (folder / ADAPTER).exists() and not has_virtual_tokens(folder):
        raise UsageError(
            f"model folder {folder} holds both a whole model and an adapter ({ADAPTER}), and which of them is meant "
            "cannot be told; move one of them to a folder of its own"
        )
    if not (folder / "config.json").exists():
        raise UsageError(f"model folder {folder} has no config.json")
    check_config(folder)
    if has_weights:
        check_files(weights_folder(folder))
    if not any(list(folder.glob(pattern)) for pattern in ("tokenizer.*", "vocab.*")):
        raise UsageError(
            f"model folder {folder} has no tokenizer; save it there with `tokenizer.save_pretrained`"
        )


def _folder_digest(folder: Path) -> str:
    """Of all that could be read there, weights, tokenizer, and templates beneath among it."""
    return content_id({name: file_digest(path) for name, path in files_of_model(folder).items()}, 64)


def _download(reference: str, patterns: list[str]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{reference}"
    ways = f"give run:<id>, an existing folder, a hub id such as organisation/name, or {bundled.MODEL}"
    try:
        return Path(snapshot_download(reference, allow_patterns=patterns))
    except HFValidationError:
        why = f"there is no folder of this name here, and a hub id is written in another way; {ways}"
    except GatedRepoError:
        why = f"it is for those who accept its terms; do so at {page}, then log in with `hf auth login`"
    except RepositoryNotFoundError:
        why = (
            f"neither a folder here nor the hub has this name; check the spelling ({ways}), or, if {page} is private, "
            "log in with `hf auth login`"
        )
    except LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            why = (
                "there is no folder of this name here, it was not downloaded before, and HF_HUB_OFFLINE says not to "
                f"ask the hub; unset it, or {ways}"
            )
        else:
            reason = type(error.__cause__ or error).__name__
            why = (
                f"there is no folder of this name here, and the hub at {constants.ENDPOINT} cannot be reached "
                f"({reason}); look to the network and run this again, or {ways}"
            )
    except Exception as error:  # the hub's client and its transport have dozens more
        why = f"it could not be had from the hub ({type(error).__name__}: {error}); run this again, or {ways}"
    raise UsageError(f"'{reference}': {' '.join(why.split())}")
