"""How answers are sampled. One engine serves a whole round, so this is a section of the round, not of a stage."""

from typing import Literal

from pydantic import Field

from accord.config import Config


class SamplingConfig(Config):
    """The engine that samples and the room that it may take."""

    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """auto: vLLM where it is installed, else transformers."""

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
