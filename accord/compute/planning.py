"""How much memory a training stage takes on each device, and how much its processes tell one another: on paper.

    shape = ModelShape.of(folder)                                   # from config.json alone
    estimate(shape, Work("ppo", lora_rank=16, bfloat16=True), Devices(8, "fsdp2")).total

docs/scale.md explains each formula; benchmarks/memory_plan.py compares them with measured peaks. Bytes throughout. What
is left out: what torch, the allocator and NCCL take for themselves, 1 to 3 GB a GPU.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accord.errors import UsageError
from accord.parallel import Sharding

Kind = Literal["sft", "reward", "dpo", "kto", "online", "best_of_n", "ppo"]
MASTER = 4
"""Bytes of a weight that is trained, and of its gradient."""
MOMENTS = 8
"""Bytes of AdamW's state for such a weight."""
MOMENTS_IN_8_BIT = 2 + 2 * 4 / 256
"""With a scale for every 256 of them; embeddings keep theirs in float32."""
LOGITS_PER_CHUNK = 256
"""Tokens of which PPO has logits at a time."""
TILE = (4096, 32768)
"""Tokens and words of which TRL's trainers have logits at a time."""
COPIES_ON_CPU = 8.5
"""Of such a tile in float32, where no Triton computes in place."""


@dataclass(frozen=True)
class ModelShape:
    """A decoder like Llama: attention with grouped keys, a gated MLP, RMS norms."""

    hidden: int
    layers: int
    heads: int
    query: int
    """Numbers of a token's queries, over all heads."""
    key_value: int
    """Of its keys, and as many of its values."""
    intermediate: int
    """Inside the MLP; with experts, of one of them."""
    vocabulary: int
    tied: bool = False
    """The output layer is the embedding."""
    experts: int = 1
    experts_per_token: int = 1
    attention_bias: bool = False

    @classmethod
    def of(cls, folder: Path) -> "ModelShape":
        """Of the model in a folder, from its config.json.

        Raises:
            UsageError: there is none, or it lacks what such a model has.
        """
        try:
            written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(
                f"{folder}: has no config.json ({error.strerror}); name a model's folder"
            ) from None
        config: dict[str, Any] = written.get("text_config") or written
        try:
            heads = config["num_attention_heads"]
            size = config.get("head_dim") or config["hidden_size"] // heads
            experts = config.get("num_local_experts") or config.get("num_experts") or 1
            return cls(
                config["hidden_size"], config["num_hidden_layers"], heads, heads * size,
                (config.get("num_key_value_heads") or heads) * size,
                (experts > 1 and config.get("moe_intermediate_size")) or config["intermediate_size"],
                config["vocab_size"], bool(written.get("tie_word_embeddings", False)), experts,
                config.get("num_experts_per_tok", 1),
                bool(config.get("attention_bias", config.get("model_type") == "qwen2")),
            )  # fmt: skip
        except KeyError as error:
            raise UsageError(
                f"{folder / 'config.json'}: has no {error}, so its memory cannot be estimated; this works for decoders "
                "like Llama, Qwen, Mistral and Gemma"
            ) from None

    @property
    def layer(self) -> int:
        """Weights of a layer."""
        biases = self.query + 2 * self.key_value if self.attention_bias else 0
        router = self.hidden * self.experts if self.experts > 1 else 0
        attention = self.hidden * (2 * self.query + 2 * self.key_value) + biases
        return attention + 3 * self.hidden * self.intermediate * self.experts + router + 2 * self.hidden

    @property
    def embedding(self) -> int:
        """Weights of the embedding."""
        return self.vocabulary * self.hidden

    @property
    def body(self) -> int:
        """Weights without an output layer: a reward model's and a critic's."""
        return self.embedding + self.layers * self.layer + self.hidden

    @property
    def parameters(self) -> int:
        """Weights in all."""
        return self.body + (0 if self.tied else self.embedding)

    def adapters(self, rank: int, top_layers: int | None = None) -> int:
        """Weights of low-rank adapters of every linear layer in the last layers."""
        sides = 4 * self.hidden + 2 * self.query + 2 * self.key_value
        sides += 3 * (self.hidden + self.intermediate) * self.experts
        return rank * sides * min(self.layers, top_layers or self.layers)

    def activations(self, token_bytes: int, attended: int = 0, lora: bool = False) -> int:
        """Bytes that a layer keeps of a token for its backward pass.

        Args:
            token_bytes: of a number.
            attended: tokens that a token is compared with, where attention keeps its weights ("eager").
            lora: weights are frozen, so what norms would need for theirs is not kept.
        """
        numbers = (4 if lora else 6) * self.hidden + 4 * self.query + self.heads * attended
        return token_bytes * (numbers + 4 * self.intermediate * self.experts_per_token)


@dataclass(frozen=True)
class Devices:
    """What a stage is spread over."""

    count: int = 1
    sharding: Sharding = "none"
    offload: bool = False


@dataclass(frozen=True)
class Work:
    """What a stage computes; `rl` of every algorithm but PPO, DPO, KTO and best_of_n is online."""

    kind: Kind
    lora_rank: int | None = None
    """None: all weights are trained."""
    top_layers: int | None = None
    shared_base: bool = False
    bfloat16: bool = False
    """Computed in it; frozen weights are kept in it."""
    four_bit: bool = False
    adamw_8bit: bool = False
    """The optimiser's moments are in 8 bit."""
    checkpointing: bool = False
    """Activations are computed again in the backward pass."""
    tokens_per_pass: int = 1024
    """Of all rows that a device computes at a time, padding included."""
    attended: int = 0
    """On CPU, where attention is eager: the longest row, as in `ModelShape.activations`. On GPUs 0."""
    passes: int = 2
    """Passes of a device in an optimiser step."""
    steps: int = 1
    """Optimiser steps in an update: PPO's epochs times minibatches."""


@dataclass(frozen=True)
class Memory:
    """Bytes on each device, and between them."""

    weights: int
    gradients: int
    optimiser: int
    gathered: int
    """Weights that are whole while they are computed with, copies in bfloat16, and gradients before they are added."""
    activations: int
    """Of one pass, logits among them."""
    host: int
    """In the machine's memory for each device, with offload."""
    sent: int
    """By each device in an update of the policy."""
    accumulates: bool
    """Gradients of one pass lie beside the activations of the next; else the ones grow as the others go."""

    @property
    def total(self) -> int:
        """The peak on a device."""
        learning = (
            self.gradients + self.activations if self.accumulates else max(self.gradients, self.activations)
        )
        return self.weights + self.optimiser + self.gathered + learning


def estimate(shape: ModelShape, work: Work, devices: Devices = Devices()) -> Memory:
    """The memory and traffic of a stage."""
    trained, frozen, learned, forward = _numbers(shape, work)
    n, sharding = devices.count, devices.sharding
    whole = 0.5 if work.four_bit else 2 if work.bfloat16 and work.lora_rank else 4  # of what is frozen
    computed = 2 if work.bfloat16 else 4
    shards_weights, shards_state = sharding in ("fsdp2", "zero3"), sharding != "none"

    weights: float = MASTER * trained + whole * frozen
    gradients: float = MASTER * learned
    optimiser: float = MOMENTS * trained
    if work.adamw_8bit:
        embeddings = 0 if work.lora_rank else shape.embedding * (2 if work.kind == "ppo" else 1)
        optimiser = MOMENTS * embeddings + MOMENTS_IN_8_BIT * (trained - embeddings)
    host = 0.0
    if shards_weights:
        weights /= n
    if shards_state:
        gradients, optimiser = gradients / n, optimiser / n
    if devices.offload:
        host = optimiser + (weights + gradients if shards_weights else 0)
        optimiser = 0.0
        if shards_weights:
            weights = gradients = 0.0

    base = MASTER if work.lora_rank is None else whole
    ends = shape.embedding * (1 if shape.tied or work.kind == "reward" else 2)
    gathered = 0.0
    if work.lora_rank is None and work.passes > 1:  # a gradient before it is added, or shared out
        gathered = MASTER * (ends if shards_state else shape.embedding)
    if shards_weights:
        gathered += base * (2 * shape.layer + ends)  # a layer, the next one, and what stands around them
    if work.bfloat16 and work.lora_rank is None:  # autocast keeps its copies for as long as a pass takes
        gathered += 2 * (2 * shape.layer if shards_weights else learned)

    return Memory(
        round(weights), round(gradients), round(optimiser), round(gathered),
        _activations(shape, work, computed), round(host),
        round(_sent(shape, work, devices, trained, base, forward)), work.passes > 1,
    )  # fmt: skip


def _numbers(shape: ModelShape, work: Work) -> tuple[int, int, int, int]:
    """Weights that are trained, that are frozen, those with gradients at a time, and of models that only compute."""
    whole, body = shape.parameters, shape.body
    adapters = shape.adapters(work.lora_rank, work.top_layers) if work.lora_rank else 0
    if work.kind == "ppo":
        if not adapters:
            return whole + body, whole + body, whole, whole + body
        if work.shared_base:
            return 2 * adapters, whole + adapters, adapters, 2 * whole
        return 2 * adapters, whole + body, adapters, whole + body
    model = body if work.kind == "reward" else whole
    # RLOO and GRPO have a reward model beside the policy and, without adapters, a reference.
    beside = (body if adapters else whole + body) if work.kind == "online" else 0
    return (adapters, model + beside, adapters, beside) if adapters else (model, beside, model, beside)


def _activations(shape: ModelShape, work: Work, computed: int) -> int:
    layers = min(shape.layers, work.top_layers or shape.layers) if work.lora_rank else shape.layers
    layer = shape.activations(computed, work.attended, lora=work.lora_rank is not None)
    kept = layers * computed * shape.hidden + layer if work.checkpointing else layers * layer
    if work.kind == "reward":
        logits = 0
    elif work.kind == "ppo":
        logits = 3 * LOGITS_PER_CHUNK * shape.vocabulary * 4
    else:
        tile = min(work.tokens_per_pass, TILE[0]) * min(shape.vocabulary, TILE[1])
        logits = round(tile * (4 * COPIES_ON_CPU if work.attended else computed))
    return work.tokens_per_pass * kept + logits


def _sent(shape: ModelShape, work: Work, devices: Devices, trained: int, base: float, forward: int) -> float:
    """Rings: each device sends (n - 1) / n of what is gathered or scattered, and twice that of what is summed."""
    share = (devices.count - 1) / devices.count
    passes = work.passes * work.steps
    if devices.sharding == "none":
        return share * 2 * MASTER * trained * work.steps
    if devices.sharding == "zero2":
        return share * MASTER * trained * (passes + work.steps)
    learning = shape.parameters if work.kind != "reward" else shape.body
    if work.kind == "ppo":
        learning += shape.parameters if work.shared_base else shape.body
    looked = work.passes * base * (forward + (learning if work.kind == "ppo" else 0))
    return share * (looked + passes * (2 * base * learning + MASTER * trained))
