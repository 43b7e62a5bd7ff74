"""Model references: `run:<id>`, a local folder, a hub id, or `bundled:smollm2-135m-instruct`.

Only safetensors weights are loaded, and never code that comes with a model.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord import bundled
from accord.config import LoraConfig
from accord.errors import UsageError
from accord.records import content_id
from accord.runs import Run, Runs, file_digest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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


def resolve(reference: str | Run, runs: Runs) -> Model:
    """Find a model by reference or as what a run made, and check that its folder holds what a model needs.

    Raises:
        UsageError: nothing has this name, or the folder lacks config, safetensors weights or tokenizer.
        TamperedError: the run's weights were changed after it finished.
    """
    if isinstance(reference, Run):
        reference = f"run:{reference.id}"
    return _found(reference, runs, with_weights=True)


def locate(reference: str, runs: Runs) -> Model:
    """As `resolve`, but in no time: weights are neither downloaded nor hashed, so a model from outside has no digest.

    Raises:
        UsageError: as `resolve`.
    """
    return _found(reference, runs, with_weights=False)


def _found(reference: str, runs: Runs, with_weights: bool) -> Model:
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
            _check_folder(folder)
        return Model(f"run:{run.id}", folder, run.digest, run.id)
    if Path(reference).exists():
        folder = Path(reference)
        _check_folder(folder)
        return Model(reference, folder, f"sha256:{_folder_digest(folder)}" if with_weights else "")
    folder = _download(reference, WEIGHT_AND_TOKENIZER_FILES if with_weights else SMALL_FILES)
    _check_folder(folder, with_weights)
    return Model(reference, folder, f"{reference}@{folder.name}" if with_weights else "")


def _check_folder(folder: Path, has_weights: bool = True) -> None:
    for patterns, what in (
        (["config.json"], "config.json"),
        (WEIGHTS, "safetensors weights (accord loads no pickled ones)"),
        (["tokenizer.*", "vocab.*"], "tokenizer; save it there with `tokenizer.save_pretrained`"),
    ):
        if patterns is WEIGHTS and not has_weights:
            continue
        if not any(list(folder.glob(pattern)) for pattern in patterns):
            raise UsageError(f"model folder {folder} has no {what}")


def _folder_digest(folder: Path) -> str:
    """Of all files, and of the weights beneath: those of an ensemble's heads."""
    files = [*(p for p in folder.iterdir() if p.is_file()), *folder.glob("*/*.safetensors")]
    return content_id({p.relative_to(folder).as_posix(): file_digest(p) for p in sorted(files)}, 64)


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


def load_tokenizer(model: Model) -> "PreTrainedTokenizerBase":
    """The model's tokenizer, checked and prepared for conversations (`chat.prepare_tokenizer`)."""
    from transformers import AutoTokenizer

    from accord.chat import prepare_tokenizer

    return prepare_tokenizer(AutoTokenizer.from_pretrained(model.folder), model.reference)


def check_same_tokens(ours: "PreTrainedTokenizerBase", policy: Model, reward_model: Model) -> None:
    """A reward model that reads the token ids of a policy, whose tokenizer is `ours`, must mean the same by them.

    Raises:
        UsageError: its tokenizer or its chat template is another one.
    """
    theirs = load_tokenizer(reward_model)
    probe = [{"role": "user", "content": "Is 1 + 1 = 2?\n\nYes"}]
    if (
        ours.get_vocab() != theirs.get_vocab()
        or ours.eos_token_id != theirs.eos_token_id
        or ours.apply_chat_template(probe) != theirs.apply_chat_template(probe)
    ):
        raise UsageError(
            f"the reward model {reward_model.reference} has another tokenizer or chat template than the policy "
            f"{policy.reference}, whose tokens it must read; train the reward model from this policy"
        )


def load_policy(model: Model, dtype: "torch.dtype | None" = None, **options: Any) -> "PreTrainedModel":
    """The model with its language-model head, in `dtype` (default float32).

    Attention is transformers' own ("eager") on CPU, where torch's fused backward pass is slower, and sdpa on GPU.
    """
    import torch
    from transformers import AutoModelForCausalLM

    _no_bars_in_log_files()
    return AutoModelForCausalLM.from_pretrained(
        model.folder,
        dtype=dtype or torch.float32,
        attn_implementation=attention_implementation(),
        use_safetensors=True,
        **options,
    )


def load_reward_model(model: Model, dtype: "torch.dtype | None" = None, **options: Any) -> "PreTrainedModel":
    """The model with a scalar head; a new head (zero bias, one row) where the model has none yet."""
    import torch
    from transformers import AutoModelForSequenceClassification

    _no_bars_in_log_files()
    return AutoModelForSequenceClassification.from_pretrained(
        model.folder,
        num_labels=1,
        dtype=dtype or torch.float32,
        attn_implementation=attention_implementation(),
        use_safetensors=True,
        **options,
    )


def _no_bars_in_log_files() -> None:
    """Loading and saving weights draw progress bars, which are of use on a terminal only."""
    import transformers

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()


def attention_implementation() -> str:
    """The attention that is fastest to train with here (docs/decisions/0005-speed-on-cpu.md)."""
    import torch

    return "sdpa" if torch.cuda.is_available() else "eager"


def peft_config(model: Model, lora: LoraConfig | None, task: str, **options: Any) -> Any:
    """The PEFT configuration of adapters for `model` from an accord one, or None for full fine-tuning.

    Raises:
        UsageError: the model has fewer layers than `top_layers`.
    """
    if lora is None:
        return None
    import peft

    targets: dict[str, Any] = {"target_modules": "all-linear"}
    if lora.top_layers is not None:
        targets = _targets_in_top_layers(model, lora.top_layers)
    return peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, task_type=task, **targets, **options,
    )  # fmt: skip


def _targets_in_top_layers(model: Model, top_layers: int) -> dict[str, Any]:
    """What "all-linear" is within some layers, which PEFT does not take together."""
    import torch
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):  # names only, no weights
        layers = AutoModel.from_config(AutoConfig.from_pretrained(model.folder)).layers
    if top_layers > len(layers):
        raise UsageError(f"lora.top_layers is {top_layers}, and {model.reference} has {len(layers)} layers")
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in layers.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    return {
        "target_modules": sorted(linear), "layers_pattern": "layers",
        "layers_to_transform": list(range(len(layers) - top_layers, len(layers))),
    }  # fmt: skip
