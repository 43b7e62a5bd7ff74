"""Whether the weights in a folder are those that its model needs.

transformers makes up at random what is missing, leaves out what it has no use for, and says so in a log only. Here
both are refused, with names: by the headers of the files before anything is loaded (`check_files`), and by what
transformers itself found to fit, renamed, fused and tied weights among it (`check_fit`, `refuse_misfits`).
"""

import json
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


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
    except (OSError, ValueError) as error:
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
    """Refuse a config.json that is none, and quantised weights.

    Raises:
        UsageError: with the way out.
    """
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
    if not isinstance(index, dict):
        raise UsageError(f"{folder / INDEX} has no weight_map; copy it again from where the model came from")
    shards = sorted({str(shard) for shard in index.values()})
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
    size = file.stat().st_size
    try:
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
        raise UsageError(f"model folder {folder} has no safetensors weights (accord loads no pickled ones)")
    raise UsageError(
        f"model folder {folder} has no safetensors weights but {names(pickled)} (accord loads no pickled ones, which "
        'may run code); if you trust it, convert it: python -c "import transformers as t; '
        f"t.AutoModelForCausalLM.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}')\""
    )


def stored_dtype(folder: Path) -> str:
    """The dtype that most of a folder's weights have on disk: float32, bfloat16 or float16."""
    bytes_of = dict.fromkeys(FLOATS, 0)
    for file in folder.glob("*.safetensors"):
        for tensor in header(file).values():
            begin, end = tensor["data_offsets"]
            if tensor["dtype"] in bytes_of:
                bytes_of[tensor["dtype"]] += end - begin
    return FLOATS[max(bytes_of, key=lambda dtype: bytes_of[dtype])]


def check_fit(reference: str, folder: Path) -> None:
    """Whether a language model's weights are all there and all used; their shapes are read, not their values.

    Raises:
        UsageError: some are not, or transformers knows no such model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    check_is_policy(reference, folder)
    try:
        with without_load_report(), without_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, device_map="meta", use_safetensors=True, ignore_mismatched_sizes=True,
                output_loading_info=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        why = " ".join(str(error).split())
        raise UsageError(
            f"{reference} cannot be loaded as a language model: {why[:300]}{'...' if len(why) > 300 else ''}"
        ) from None
    refuse_misfits(reference, *loaded)


@contextmanager
def without_load_report() -> Iterator[None]:
    """Keep back what transformers says of weights that do not fit: `refuse_misfits` says it."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers' progress bars back where nothing takes long."""
    from transformers.utils import logging

    had_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if had_bars:
            logging.enable_progress_bar()


def refuse_misfits(
    reference: str, model: "PreTrainedModel", info: dict[str, Any], new_head: bool = False
) -> None:
    """Refuse a model that was loaded with weights made up, left out or of other shapes.

    Args:
        reference: of the model, for the message.
        model: that was loaded.
        info: transformers' `output_loading_info`.
        new_head: whatever is outside the model's body may be new, and what was there before may be left out.

    Raises:
        UsageError: with the names of up to three weights of each kind.
    """
    body = f"{model.base_model_prefix}."

    def of(kind: str) -> list[str]:
        found = [each if isinstance(each, str) else str(each[0]) for each in info[kind]]
        return [name for name in found if name.startswith(body)] if new_head else found

    missing, unexpected, misshapen = of("missing_keys"), of("unexpected_keys"), of("mismatched_keys")
    missing = [name for name in missing if name not in misshapen]
    parts = [
        f"{len(found)} {what} ({names(found)})"
        for found, what in (
            (missing, "of its weights are missing"),
            (unexpected, "in the folder are none of its"),
            (misshapen, "have another shape than config.json says"),
        )
        if found
    ]
    if parts:
        raise UsageError(
            f"the weights of {reference} do not fit its architecture {type(model).__name__}: {', '.join(parts)}; "
            f"{_way_out(missing, unexpected)}"
        )
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = getattr(model.config, "tie_word_embeddings", False) and head is not None
    if tied and not head.weight.is_meta and head.weight is not embeddings.weight:
        raise UsageError(
            f"the config.json of {reference} ties the output head to the embeddings, and its weights hold two "
            "different ones; set tie_word_embeddings to false there if the head is the right one, or remove the "
            "head from the weights"
        )


def _way_out(missing: list[str], unexpected: list[str]) -> str:
    if any("base_layer" in name or name.startswith("base_model.") for name in unexpected):
        return "they were saved within an adapter's wrapper; load both there and save `merge_and_unload()`"
    if unexpected == ["score.weight"]:
        return "they are a reward model's, which writes no text; name the language model that it was trained from"
    if missing:
        return "what is missing would be made up at random; copy or save the whole model again"
    return "what is left over may be an adapter's, or another model's; save the model again without it"
