"""What the files in a model's folder say before anything is loaded: settings, names, sizes and headers."""

import json
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any

from accord.errors import UsageError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE = "base"
"""The folder of a model with virtual tokens that holds the weights; the virtual tokens' are beside it."""
FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


SETTINGS = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
)
"""Files that a model's folder may have besides its config.json, each one JSON object."""


def names(found: Collection[str]) -> str:
    """Up to three of them."""
    first = sorted(found)[:3]
    return ", ".join(first) + (", ..." if len(found) > 3 else "")


def read_settings(file: Path) -> dict[str, Any]:
    """A JSON file of a model's folder, which must hold an object.

    Raises:
        UsageError: it does not.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{file} cannot be read as JSON ({error}); put the file that came with the model there"
        ) from None
    if not isinstance(found, dict):
        raise UsageError(f"{file} holds no JSON object; put the file that came with the model there")
    return found


def is_reward_model(folder: Path) -> bool:
    """Whether a folder's config.json says that its model classifies sequences."""
    architectures = read_settings(folder / "config.json").get("architectures") or []
    return any(name.endswith("ForSequenceClassification") for name in architectures)


def has_virtual_tokens(folder: Path) -> bool:
    """Whether a folder holds a model with virtual tokens before every sequence, which no weights can be merged with."""
    return (folder / ADAPTER).exists() and (folder / BASE / "config.json").exists()


def weights_folder(folder: Path) -> Path:
    """Where a model's own weights are, without virtual tokens."""
    return folder / BASE if has_virtual_tokens(folder) else folder


def check_is_policy(reference: str, folder: Path) -> None:
    """Refuse a reward model where a language model is wanted.

    Raises:
        UsageError: it is one.
    """
    if is_reward_model(folder):
        raise UsageError(
            f"{reference} is a reward model (its architecture ends in ForSequenceClassification), which writes no "
            "text; name the language model that it was trained from, or another one"
        )


def check_config(folder: Path) -> None:
    """Refuse a config.json, or another file of settings, that is none, and quantised weights.

    Raises:
        UsageError: with the way out.
    """
    for name in SETTINGS:  # transformers takes what it cannot read of them for not there
        if (folder / name).exists():
            read_settings(folder / name)
    quantised = read_settings(folder / "config.json").get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise UsageError(
            f"model folder {folder} holds quantised weights ({method or 'quantization_config in its config.json'}), "
            "which cannot be trained or compared exactly; name the model that it was made from (lora.quantize_base "
            "quantises that one while it is trained), or a copy in bfloat16"
        )


def check_files(folder: Path) -> None:
    """Look at the names, sizes and headers of a folder's weight files, and at their index.

    Raises:
        UsageError: there are none, or two sets; the index names what is not there; a file is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        _refuse_no_safetensors(folder)
    if not (folder / INDEX).exists():
        if not (folder / SINGLE).exists():
            raise UsageError(
                f"model folder {folder} has {names([file.name for file in files])}, and neither {SINGLE} nor {INDEX}, "
                "which would say what is in which file; copy that from where the model came from, too"
            )
        header(folder / SINGLE)
        return
    index = read_settings(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise UsageError(
            f"{folder / INDEX} has no weight_map, or an empty one; copy it again from where the model came from"
        )
    shards = sorted({str(shard) for shard in index.values()})
    if outside := [shard for shard in shards if Path(shard).name != shard or shard.startswith(".")]:
        raise UsageError(
            f"{folder / INDEX} names {names(outside)}, and weights are files of this very folder; copy index and files "
            "from where the model came from"
        )
    if missing := [shard for shard in shards if not (folder / shard).exists()]:
        raise UsageError(
            f"model folder {folder} lacks {len(missing)} of the {len(shards)} files that {INDEX} names "
            f"({names(missing)}); copy them from where the model came from"
        )
    if (folder / SINGLE).exists() and SINGLE not in shards:
        raise UsageError(
            f"model folder {folder} holds two sets of weights, {SINGLE} and those that {INDEX} names "
            f"({names(shards)}), and one of them is old; remove that one"
        )
    held = {shard: header(folder / shard) for shard in shards}
    if lost := [weight for weight, shard in index.items() if weight not in held[shard]]:
        raise UsageError(
            f"{folder / INDEX} names {len(lost)} weights that are not in their files ({names(lost)}); copy index and "
            "files from one place"
        )


def check_adapter_file(folder: Path) -> None:
    """Look at the name and the header of an adapter's weights.

    Raises:
        UsageError: there are none, pickled ones, or damaged ones.
    """
    if not (folder / ADAPTER_WEIGHTS).exists():
        raise UsageError(
            f"{folder} has {ADAPTER} and no {ADAPTER_WEIGHTS} (accord loads no pickled weights); save the adapter "
            "there with PEFT's `save_pretrained`"
        )
    header(folder / ADAPTER_WEIGHTS)


def header(file: Path) -> dict[str, Any]:
    """What a safetensors file says of its tensors, by name.

    Raises:
        UsageError: it is damaged, cut off, or only a pointer to a file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(8)
            if start == b"version ":
                raise UsageError(
                    f"{file} is a pointer of Git LFS and no weights; run `git lfs pull` in its folder"
                )
            (length,) = struct.unpack("<Q", start)
            if length > size:
                raise ValueError("its header is longer than the file")
            tensors = json.loads(opened.read(length))
        tensors.pop("__metadata__", None)
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{file} is damaged and no safetensors file ({error}); copy it again from where the model came from"
        ) from None
    if end != size:
        raise UsageError(
            f"{file} has {size:,} bytes where its header says {end:,}, so it was cut off or damaged; copy it again "
            "from where the model came from"
        )
    return dict(tensors)


def _refuse_no_safetensors(folder: Path) -> None:
    pickled = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
    if not pickled:
        raise UsageError(
            f"model folder {folder} has no safetensors weights (accord loads no pickled ones; docs/bring-your-model.md "
            "says how to convert them)"
        )
    raise UsageError(
        f"model folder {folder} has no safetensors weights but {names(pickled)} (accord loads no pickled ones, which "
        'may run code); if you trust it, convert it: python -c "import transformers as t; '
        f"t.AutoModelForCausalLM.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}')\""
    )


def stored_dtype(folder: Path) -> str:
    """The dtype that most of a folder's weights have on disk: float32, bfloat16 or float16."""
    bytes_of = dict.fromkeys(FLOATS, 0)
    for file in weights_folder(folder).glob("*.safetensors"):
        for tensor in header(file).values():
            begin, end = tensor["data_offsets"]
            if tensor["dtype"] in bytes_of:
                bytes_of[tensor["dtype"]] += end - begin
    return FLOATS[max(bytes_of, key=lambda dtype: bytes_of[dtype])]
