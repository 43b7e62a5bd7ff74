"""How answers are sampled. One engine serves a whole round, so this is a section of the round, not of a stage."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from accord.config import Config


class SamplingConfig(Config):
    """The engine that samples and the room that it may take."""

    engine: Literal["auto", "vllm", "transformers", "server"] = "auto"
    """auto: vLLM where it is installed and computes the model as the trainer does, else transformers. server: a
    `vllm serve` that was started elsewhere."""

    server_url: str | list[str] | None = None
    """With engine: server. Of the server, as in `http://127.0.0.1:8000`; its API key is read from `VLLM_API_KEY`. A
    list names servers of the same model that share the work."""

    server_weights_folder: Path | None = None
    """With engine: server. A folder that both sides see under the same path: weights are handed over in it."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """In float32 the sampler's log-probabilities are the trainer's to 1e-3; bfloat16 moves single ones by 0.15."""

    max_sequence_tokens: int = Field(1024, ge=2, le=1_000_000_000)
    """The longest prompt and answer together."""

    answers_at_once: int = Field(128, ge=1)
    """How many answers are sampled side by side; the rest waits its turn."""

    kv_cache_gib: float = Field(1.0, gt=0)
    """On CPU: memory for vLLM's cache of keys and values."""

    gpu_memory_fraction: float = Field(0.4, gt=0, le=1)
    """On GPU: the part of the memory that vLLM takes, cache included; the trainer needs the rest."""

    replicas: int = Field(1, ge=1, le=1024)
    """How many engines share the prompts, each in a process of its own (vLLM only). With the same seeds the answers are
    those of one. On GPUs each has its own."""

    tensor_parallel: int = Field(1, ge=1, le=1024)
    """Over how many GPUs (or processes, on a CPU) an engine spreads a model that is too large for one (vLLM only)."""

    @property
    def server_urls(self) -> list[str]:
        """One for each server."""
        return [self.server_url] if isinstance(self.server_url, str) else list(self.server_url or [])

    @model_validator(mode="after")
    def _several_engines_can_be(self) -> "SamplingConfig":
        if self.engine in ("transformers", "server") and (self.replicas, self.tensor_parallel) != (1, 1):
            remedy = (
                "name several servers in server_url, and start each with --tensor-parallel-size"
                if self.engine == "server"
                else "set the engine to vllm"
            )
            raise ValueError(f"replicas and tensor_parallel do not go with engine: {self.engine}; {remedy}")
        urls = self.server_urls
        if self.server_url == [] or len(set(urls)) < len(urls):
            raise ValueError("server_url must name at least one server, and each once")
        for url in urls:
            if not re.match(r"https?://[^/]", url):
                raise ValueError(f"server_url: {url} must begin with http:// or https:// and a host")
        return self

    @model_validator(mode="after")
    def _a_server_has_an_address(self) -> "SamplingConfig":
        settings = {"server_url": self.server_url, "server_weights_folder": self.server_weights_folder}
        for name, value in settings.items():
            if (self.engine == "server") != (value is not None):
                need = f"needs {name} too" if value is None else f"is needed for {name} to mean anything"
                raise ValueError(f"engine: server {need}")
        return self
