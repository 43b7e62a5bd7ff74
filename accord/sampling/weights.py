"""The weights of a policy as a sampler takes them: an adapter is merged, and the policy itself stays untouched."""

import copy
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARED_MEMORY = Path("/dev/shm")

NOT_ARCHITECTURE = {"_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache"}
"""Keys of a model's config.json that may differ between two models that share an engine."""


def merged(policy: "PreTrainedModel") -> "PreTrainedModel":
    """The policy itself or, with a PEFT adapter, a copy with the adapter merged in.

    A copy, because merging in place and undoing it afterwards changes the weights by rounding, and a resumed run
    would no longer equal an uninterrupted one.
    """
    from peft import PeftModel

    model: Any = policy
    return copy.deepcopy(model).merge_and_unload() if isinstance(model, PeftModel) else policy


@contextmanager
def saved_weights(policy: "PreTrainedModel", parent: Path | None = None) -> Iterator[Path]:
    """A folder with the policy's weights as safetensors, gone afterwards.

    It is in `parent` and readable to whoever may read that, or else this user's own, in shared memory if they fit.
    """
    model = merged(policy)
    place = parent
    if place is None and SHARED_MEMORY.is_dir():
        size = sum(parameter.nbytes for parameter in model.parameters())
        place = SHARED_MEMORY if shutil.disk_usage(SHARED_MEMORY).free > 2 * size else None
    with tempfile.TemporaryDirectory(prefix="accord-weights-", dir=place) as folder:
        if parent is not None:
            Path(folder).chmod(parent.stat().st_mode & 0o777)
        model.save_pretrained(folder)
        yield Path(folder)
