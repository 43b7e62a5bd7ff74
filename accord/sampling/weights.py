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


def merged(policy: "PreTrainedModel") -> "PreTrainedModel":
    """The policy itself or, with a PEFT adapter, a copy with the adapter merged in.

    A copy, because merging in place and undoing it afterwards changes the weights by rounding, and a resumed run
    would no longer equal an uninterrupted one.
    """
    from peft import PeftModel

    model: Any = policy
    return copy.deepcopy(model).merge_and_unload() if isinstance(model, PeftModel) else policy


@contextmanager
def saved_weights(policy: "PreTrainedModel") -> Iterator[Path]:
    """A folder with the policy's weights as safetensors, in shared memory if they fit, gone afterwards."""
    model = merged(policy)
    size = sum(parameter.nbytes for parameter in model.parameters())
    roomy = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * size
    with tempfile.TemporaryDirectory(
        prefix="accord-weights-", dir=SHARED_MEMORY if roomy else None
    ) as folder:
        model.save_pretrained(folder)
        yield Path(folder)
