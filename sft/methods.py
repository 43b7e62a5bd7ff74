"""Settings of how supervised fine-tuning learns: which weights, by which loss, and what holds it to the base."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from accord.config import Config
from accord.errors import UsageError
from accord.parallel import Sharding
from accord.training_config import TrainingConfig

DEFAULT_VIRTUAL_TOKENS = 20


class AdapterConfig(Config):
    """An adapter of another kind than LoRA."""

    method: Literal["ia3", "prefix", "prompt"]
    """ia3: factors on keys, values and the inner layer of each MLP (Liu et al. 2022, https://arxiv.org/abs/2205.05638);
    merged into the saved model. prefix: keys and values before every sequence, in each layer (Li and Liang 2021,
    https://arxiv.org/abs/2101.00190). prompt: embeddings before every sequence (Lester et al. 2021,
    https://arxiv.org/abs/2104.08691). These two cannot be merged, so no later stage trains the model on, and
    transformers samples it."""
    virtual_tokens: int | None = Field(default=None, ge=1, le=100_000)
    """For prefix and prompt: how many positions come before every sequence; 20 if left out."""

    @property
    def adds_tokens(self) -> bool:
        """Whether it puts virtual tokens before every sequence, and no merged model has what was learned."""
        return self.method != "ia3"

    @model_validator(mode="after")
    def _has_virtual_tokens(self) -> Self:
        if self.virtual_tokens is not None and not self.adds_tokens:
            raise ValueError("virtual_tokens is for the methods prefix and prompt; leave it out for ia3")
        return self


class TrainedWeights(Config):
    """Which weights are trained where not all are: whatever one of these names. The others stay as they are."""

    names: list[str] = Field(default_factory=list)
    """Patterns of whole names of weights, such as `*.self_attn.v_proj.*` or `*.layers.[0-3].*`."""
    last_layers: int | None = Field(default=None, ge=1)
    """All weights of the last so many layers."""
    norms: bool = False
    """The weights of all normalisations."""
    biases: bool = False
    """All biases (BitFit: Ben Zaken et al. 2021, https://arxiv.org/abs/2106.10199); many models have none."""

    @model_validator(mode="after")
    def _names_some(self) -> Self:
        if not (self.names or self.last_layers or self.norms or self.biases):
            raise ValueError(
                "names no weights; set names, last_layers, norms or biases, or leave train_only out"
            )
        return self


class MethodConfig(TrainingConfig):
    """The settings of `sft` that its data have nothing to do with."""

    adapter: AdapterConfig | None = None
    """An adapter of another kind in the place of `lora`."""
    train_only: TrainedWeights | None = None
    """Train some of the model's own weights, and freeze the others."""
    loss: Literal["nll", "dft"] = "nll"
    """nll: each token's negative log-likelihood. dft: the same, weighted by the token's probability, so that unlikely
    tokens pull less (dynamic fine-tuning: Wu et al. 2025, https://arxiv.org/abs/2508.05629). Held-out losses are nll in
    either case."""
    neftune_noise_alpha: float | None = Field(default=None, gt=0)
    """Uniform noise on the embeddings in training, of the size alpha / sqrt(tokens * width) (NEFTune: Jain et al. 2023,
    https://arxiv.org/abs/2310.05914, where it is 5 to 15)."""
    kl_to_base: float = Field(default=0.0, ge=0)
    """What a nat of the KL of the base from the model costs, as a mean over the learned tokens, added to the loss."""
    l2_to_start: float = Field(default=0.0, ge=0)
    """Half of this times the squared distance of the trained weights from their start is added to the loss (L2-SP: Li
    et al. 2018, https://arxiv.org/abs/1802.01483); with lora, the distance is that of the merged weights."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """In every place where the model's architecture has dropout, while it is trained. Of adapters: `lora.dropout`."""
    interpolate: list[Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=list)
    """After training, try the weights this far on the way from the base to the tuned ones, such as [0.5, 0.75, 1], and
    keep those with the lowest held-out loss (WiSE-FT: Wortsman et al. 2022, https://arxiv.org/abs/2109.01903); with
    `retention`, those with the lowest sum of held-out loss and loss on `retention`."""
    retention: str | None = None
    """A demonstration file of what the base can do and must not forget; its loss is measured before and after."""


def check_methods(config: MethodConfig, packing: bool, has_heldout: bool) -> None:
    """Refuse settings that do not go together.

    Args:
        config: the settings.
        packing: whether several conversations stand in one sequence.
        has_heldout: whether there are held-out rows.

    Raises:
        ValueError: with the remedy.
    """
    chosen = [key for key in ("lora", "adapter", "train_only") if getattr(config, key)]
    if len(chosen) > 1:
        raise ValueError(
            f"{' and '.join(chosen)} each say which weights are trained; leave out all of them but one"
        )
    dora = config.lora is not None and config.lora.dora
    start = config.lora is not None and config.lora.start != "zero"
    virtual = config.adapter.method if config.adapter and config.adapter.adds_tokens else None
    if virtual and packing:
        raise ValueError(
            f"adapter.method {virtual} puts virtual tokens before every sequence, and with packing they would "
            "stand before the first conversation of each only; set packing to false"
        )
    if virtual and config.trainer.get("gradient_checkpointing"):
        raise ValueError(
            f"trainer.gradient_checkpointing loses the virtual tokens of adapter.method {virtual}; leave it out"
        )
    if config.l2_to_start and config.adapter:
        raise ValueError("l2_to_start is for weights that are trained themselves, or with lora; set it to 0")
    if config.l2_to_start and dora:
        raise ValueError(
            "l2_to_start takes the distance of merged weights from lora's two factors, and dora scales rows besides; "
            "set one of them to 0 or false"
        )
    if not config.interpolate:
        return
    if not has_heldout:
        raise ValueError("interpolate chooses by held-out rows; give a heldout file or a heldout_fraction")
    if virtual:
        raise ValueError("interpolate is between weights, and virtual tokens change none; leave it out")
    if dora or start:
        raise ValueError(
            "interpolate scales adapters, and what dora or a start from the base's weights change is not in proportion "
            "to that; set lora.dora to false and lora.start to zero, or leave interpolate out"
        )


def check_sharding(config: MethodConfig, sharding: Sharding) -> None:
    """Refuse what needs whole weights outside of the model's own passes, where no process has them.

    Raises:
        UsageError: something does.
    """
    for name in ("l2_to_start", "kl_to_base", "interpolate"):
        ways = ["none", "zero2"] if name == "l2_to_start" else ["none", "zero2", "fsdp2"]
        if getattr(config, name) and sharding not in ways:
            raise UsageError(
                f"sft.{name} needs whole weights between a model's passes, and compute.sharding: {sharding} has them "
                f"in parts then; set that to {' or '.join(ways)}, or leave {name} out"
            )
