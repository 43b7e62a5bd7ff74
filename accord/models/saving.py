"""Models written to a folder as other programs load them."""

import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.models.files import BASE

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def write_model(model: Any, tokenizer: "PreTrainedTokenizerBase", folder: Path, dtype: "torch.dtype") -> None:
    """Write weights, configuration and tokenizer; the model in memory has the dtype, too, afterwards.

    The generation settings name the EOS that was taught, and nothing that cuts or bends the distribution that was
    evaluated: whatever the base had of temperature, top-p or penalties is left out.

    Args:
        model: without adapters.
        tokenizer: whose EOS and padding the model ends and is padded with.
        folder: is replaced.
        dtype: of the weights on disk.
    """
    from transformers import GenerationConfig

    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model.config.use_cache = True
    for config in {id(each): each for each in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id, config.eos_token_id = ids["pad_token_id"], ids["eos_token_id"]
    if model.can_generate():
        model.generation_config = GenerationConfig(**ids)
    _cast(model, dtype)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    for how_it_was_loaded in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(how_it_was_loaded, None)
    tokenizer.save_pretrained(folder)
    readable_as_neighbours(folder)


def save_with_virtual_tokens(
    tuned: Any, base: Any, tokenizer: "PreTrainedTokenizerBase", folder: Path, dtype: "torch.dtype"
) -> None:
    """Write a model whose virtual tokens stand before every sequence: beside them `base/` has the weights.

    Without weights in `folder` itself, no other program can take it for the base without them.

    Args:
        tuned: the PEFT model.
        base: whose weights are written.
        tokenizer: as for `write_model`.
        folder: is replaced.
        dtype: of the base's weights on disk; the virtual tokens are kept as they are.
    """
    write_model(base, tokenizer, folder, dtype)
    (folder / BASE).mkdir()
    for file in folder.glob("model*.safetensors*"):
        file.rename(folder / BASE / file.name)
    shutil.copy(folder / "config.json", folder / BASE)
    tuned.save_pretrained(folder, selected_adapters=["default"])
    (folder / "README.md").unlink(missing_ok=True)
    readable_as_neighbours(folder)


def readable_as_neighbours(folder: Path) -> None:
    """Give every file the mode of its neighbours: safetensors' own are readable to their owner only."""
    files = [file for file in folder.iterdir() if file.is_file()]
    mode = max(stat.S_IMODE(file.stat().st_mode) for file in files)
    for file in files:
        file.chmod(mode)


def _cast(model: Any, dtype: "torch.dtype") -> None:
    """All weights but those that the architecture keeps in float32."""
    kept = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not any(part in name for part in kept):
            tensor.data = tensor.data.to(dtype)
