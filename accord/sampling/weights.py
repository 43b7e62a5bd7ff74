"""The weights of a policy as a sampler takes them: an adapter is merged, and the policy itself stays untouched.

They come one tensor at a time, and are merged one layer at a time, so that no second model is ever in memory.
"""

import copy
import itertools
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

SHARED_MEMORY = Path("/dev/shm")
FILE_BYTES = 2**30
"""About the size of a file of weights on their way to a sampler; there is one at a time."""

NOT_ARCHITECTURE = {"_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache"}
"""Keys of a model's config.json that may differ between two models that share an engine."""


def merged(policy: "PreTrainedModel") -> "PreTrainedModel":
    """The policy itself or, with a PEFT adapter, a copy of the whole with the adapter merged in.

    A copy, because merging in place and undoing it afterwards changes the weights by rounding, and a resumed run
    would no longer equal an uninterrupted one. `merged_weights` copies one layer at a time.
    """
    from peft import PeftModel

    model: Any = policy
    return copy.deepcopy(model).merge_and_unload() if isinstance(model, PeftModel) else policy


def merged_weights(policy: "PreTrainedModel") -> Iterator[tuple[str, "Tensor"]]:
    """Names and tensors of `merged(policy)`, bit by bit, without those that are tied to another one.

    A layer's tensors may be the policy's own: do not change them. Weights that are sharded over processes are gathered
    as they come, so all processes must take all of them, in step.
    """
    from peft import PeftModel
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    model: Any = policy
    layers: set[str] = set()
    if isinstance(model, PeftModel):
        layers = _adapted_layers(model.get_base_model())
        if _are_tied(model.get_base_model(), layers):
            model, layers = merged(policy), set()
        else:
            model = model.get_base_model()
    state: dict[str, Tensor] = remove_tied_weights_from_state_dict(model.state_dict(), model)
    done: set[str] = set()
    for name, tensor in state.items():
        layer = _layer_of(name, layers)
        if layer is None:
            yield name, _whole(tensor)
        elif layer not in done:
            done.add(layer)
            for key, of_layer in _merged_layer(model.get_submodule(layer)).state_dict().items():
                yield f"{layer}.{key}", _whole(of_layer)


def checkpoint_weights(policy: "PreTrainedModel") -> Iterator[tuple[str, "Tensor"]]:
    """The same by the names and in the shapes of the model's files, which a few families' modules do not have."""
    from peft import PeftModel
    from transformers.core_model_loading import revert_weight_conversion

    base: Any = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    for _, block in itertools.groupby(merged_weights(policy), key=lambda pair: _block_of(pair[0])):
        yield from revert_weight_conversion(base, dict(block)).items()


def weight_files(
    policy: "PreTrainedModel", parent: Path | None = None, file_bytes: int = FILE_BYTES
) -> Iterator[Path]:
    """The policy's weights in files of safetensors, one after the other: each is gone when the next is asked for.

    They are in a folder of `parent` and readable to whoever may read that, or else in one of this user's own, in
    shared memory if a file of that size fits.
    """
    from safetensors.torch import save_file

    place = parent
    if place is None and SHARED_MEMORY.is_dir():
        largest = max(p.numel() * p.element_size() for p in policy.parameters())
        place = SHARED_MEMORY if shutil.disk_usage(SHARED_MEMORY).free > 2 * (file_bytes + largest) else None
    with tempfile.TemporaryDirectory(prefix="accord-weights-", dir=place) as folder:
        if parent is not None:
            Path(folder).chmod(parent.stat().st_mode & 0o777)
        for number, tensors in enumerate(in_batches(checkpoint_weights(policy), file_bytes)):
            path = Path(folder) / f"{number}.safetensors"
            save_file(tensors, path)
            tensors.clear()
            if parent is not None:
                path.chmod(parent.stat().st_mode & 0o666)
            yield path
            path.unlink()


def in_batches(
    weights: Iterator[tuple[str, "Tensor"]], most_bytes: int = FILE_BYTES
) -> Iterator[dict[str, "Tensor"]]:
    """Weights some at a time: as many as have so many bytes, but at least one."""
    batch: dict[str, Tensor] = {}
    size = 0
    for name, tensor in weights:
        if batch and size + tensor.nbytes > most_bytes:
            yield batch
            batch, size = {}, 0
        batch[name] = tensor.contiguous()
        size += tensor.nbytes
    if batch:
        yield batch


def _adapted_layers(base: "nn.Module") -> set[str]:
    """The names of the modules that PEFT put in the place of others, of the outermost ones where they are nested."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: set[str] = set()
    for name, module in base.named_modules():
        is_adapted = isinstance(module, BaseTunerLayer) or hasattr(
            module, "unload_and_optionally_merge_module"
        )
        if is_adapted and _layer_of(name, found) is None:
            found.add(name)
    return found


def _are_tied(base: "nn.Module", layers: set[str]) -> bool:
    """Whether a tensor of an adapted layer is another module's too, so that merging it changes both; or the layer's
    own base is adapted once more.
    """
    from transformers.pytorch_utils import id_tensor_storage

    owners: dict[Any, set[str]] = defaultdict(set)
    for name, tensor in base.state_dict().items():
        owners[id_tensor_storage(tensor)].add(_layer_of(name, layers) or name)
    if any(len(names) > 1 and names & layers for names in owners.values()):
        return True
    return any(
        hasattr(getattr(base.get_submodule(layer), "base_layer", None), "base_layer") for layer in layers
    )


def _merged_layer(module: "nn.Module") -> "nn.Module":
    """What PEFT's `merge_and_unload` puts in the place of an adapted module; the module stays as it is."""
    layer: Any = copy.deepcopy(module)
    if hasattr(layer, "unload_and_optionally_merge_module"):
        unloaded: nn.Module = layer.unload_and_optionally_merge_module(
            merge=True, safe_merge=False, adapter_names=None
        )
        return unloaded
    layer.merge(safe_merge=False, adapter_names=None)
    base: nn.Module = layer.get_base_layer()
    return base


def _layer_of(name: str, layers: set[str]) -> str | None:
    """The one of `layers` that a module or tensor of this name is in, or is."""
    starts = itertools.accumulate(name.split("."), "{}.{}".format)
    return next((start for start in starts if start in layers), None)


def _block_of(name: str) -> str:
    """The part of a name up to its first number: `model.layers.3`, in which conversions between names stay."""
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: first + 1])


def _whole(tensor: "Tensor") -> "Tensor":
    """Of a tensor that is sharded over processes all of it."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor
