"""How answers are sampled. One engine serves a whole round, so this is a section of the round, not of a stage."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from accord.config import Config


class SamplingConfig(Config):
    """The engine that samples and the room that it may take."""

    engine: Literal["auto", "vllm", "transformers", "server"] = "auto"
    """auto: vLLM where it is installed and computes the model as the trainer does, else transformers. server: a
    `vllm serve` that was started elsewhere."""

    server_url: str | None = Field(None, pattern=r"^https?://[^/]+")
    """With engine: server. Of the server, as in `http://127.0.0.1:8000`; its API key is read from `VLLM_API_KEY`."""

    server_weights_folder: Path | None = None
    """With engine: server. A folder that both sides see under the same path: weights are handed over in it."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """In float32 the sampler's log-probabilities are the trainer's to 1e-3; bfloat16 moves single ones by 0.15."""

    max_sequence_tokens: int = Field(1024, ge=2)
    """The longest prompt and answer together."""

    answers_at_once: int = Field(128, ge=1)
    """How many answers are sampled side by side; the rest waits its turn."""

    kv_cache_gib: float = Field(1.0, gt=0)
    """On CPU: memory for vLLM's cache of keys and values."""

    gpu_memory_fraction: float = Field(0.4, gt=0, le=1)
    """On GPU: the part of the memory that vLLM takes, cache included; the trainer needs the rest."""

    @model_validator(mode="after")
    def _a_server_has_an_address(self) -> "SamplingConfig":
        settings = {"server_url": self.server_url, "server_weights_folder": self.server_weights_folder}
        for name, value in settings.items():
            if (self.engine == "server") != (value is not None):
                need = f"needs {name} too" if value is None else f"is needed for {name} to mean anything"
                raise ValueError(f"engine: server {need}")
        return self
