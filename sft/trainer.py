"""TRL's SFTTrainer with what holds a model to the one that it starts from: a KL, and a squared distance of weights.

KL. At each learned token the two models' distributions over the whole vocabulary are compared, exactly, as
KL(base || model): what the base thought likely must stay likely. (The other direction punishes the model for what the
base did not think likely, and that is what the demonstrations teach.) Without its adapter the model is its own base; a
model whose weights are trained is compared with a frozen copy. Only `CHUNK` tokens' logits exist at a time, and they
are computed again in the backward pass.

Distance. Half the squared distance of the trained weights from their start. For LoRA it is that of the merged weights,
|s B A|^2 = s^2 <B'B, A A'>, which takes products of the size of the rank only.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax
from torch.utils.checkpoint import checkpoint
from trl import SFTTrainer

from accord import parallel
from accord.compute.passes import Passes
from accord.errors import UsageError
from accord.packing import is_rounding

CHUNK = 128
"""Tokens whose logits are held at a time, for both models."""


class Trainer(Passes, SFTTrainer):
    """SFTTrainer; what is held out is measured by the plain loss, whatever is trained on."""

    def __init__(
        self,
        kl_to_base: float = 0.0,
        l2_to_start: float = 0.0,
        base: nn.Module | None = None,
        **arguments: Any,
    ):
        """Prepare to train.

        Args:
            kl_to_base: what a nat of the mean KL costs.
            l2_to_start: what half the squared distance from the start costs.
            base: a frozen copy, for the KL of a model that is not its own base without its adapter.
            arguments: SFTTrainer's own.

        Raises:
            UsageError: the KL is wanted, and the model's logits are not its output layer's product.
        """
        super().__init__(**arguments)
        self._kl_to_base, self._l2_to_start = kl_to_base, l2_to_start
        self._arguments = arguments["args"]
        self._training_loss = self._arguments.loss_type
        if kl_to_base:
            if base is not None:
                base.to(self.args.device).eval().requires_grad_(False)
            self._kl = KLToBase(self.model, base)
        if l2_to_start:
            self._distance = SquaredDistance(self.model)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch with what is added in training; see SFTTrainer."""
        own: Any = self.model
        self._arguments.loss_type = self._training_loss if own.training else "nll"
        if own.training and "attention_mask" not in inputs:  # TRL counts the tokens of one row
            rows, length = inputs["position_ids"].shape
            self._total_train_tokens += (rows - 1) * length
        if not own.training or not (self._kl_to_base or self._l2_to_start):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._kl_to_base:
            with self.accelerator.autocast():
                self._kl.look_at_base(inputs)
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        passes = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        if self._kl_to_base:
            with self.accelerator.autocast():
                kl, tokens = self._kl.of_last_batch(inputs["labels"])
            self._metrics["train"]["kl_to_base"].append((kl.detach() / max(tokens, 1)).item())
            whole = (
                tokens if num_items_in_batch is None else num_items_in_batch
            )  # of all passes of the update
            # of all processes, over which gradients are averaged
            processes = 1 if num_items_in_batch is None else parallel.count()
            loss = loss + self._kl_to_base * processes * kl / torch.as_tensor(whole).clamp(min=1)
        if self._l2_to_start:
            distance = self._distance()
            self._metrics["train"]["squared_distance_from_start"].append(distance.item())
            loss = loss + self._l2_to_start / 2 * distance / passes
        return loss


class KLToBase:
    """KL(base || model) over the learned tokens of the batch that the model has just computed."""

    def __init__(self, model: Any, base: Any | None):
        """Listen to the states that `model` computes.

        Args:
            model: with its adapter, or a model whose weights are trained.
            base: None where the model without its adapter is the base.

        Raises:
            UsageError: its logits are not its output layer's product.
        """
        self._model = model
        self._whole = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._base = base if base is not None else self._whole
        self._disables = base is None
        self._looks = False
        self._states: Tensor | None = None
        self._base_states: Tensor | None = None
        check_logits(self._whole)
        self._whole.base_model.register_forward_hook(self._keep)

    def _keep(self, module: Any, arguments: Any, output: Any) -> None:
        if self._model.training:
            self._states = output.last_hidden_state
        elif self._looks:
            self._base_states = output.last_hidden_state

    @torch.no_grad()
    def look_at_base(self, inputs: Mapping[str, Any]) -> None:
        """Compute the base's states of a batch; to be called before the model computes it."""
        was_training = self._model.training
        self._model.eval()  # the base has no dropout and no noise
        inputs = {key: value for key, value in inputs.items() if key != "labels"} | {"use_cache": False}
        try:
            if self._disables:
                with self._model.disable_adapter():
                    self._look(inputs)
            else:
                self._base_states = self._base.base_model(**inputs).last_hidden_state
        finally:
            self._model.train(was_training)

    def _look(self, inputs: dict[str, Any]) -> None:
        if parallel.sharding() == "none":
            self._base_states = self._base.base_model(**inputs).last_hidden_state
            return
        self._looks = True  # weights in shards are gathered where a model is called by its root
        self._model(**inputs, logits_to_keep=1)
        self._looks = False

    def of_last_batch(self, labels: Tensor) -> tuple[Tensor, int]:
        """The sum over the learned tokens, in nats, and their number.

        Args:
            labels: [rows, tokens], -100 wherever nothing is learned.
        """
        assert self._states is not None
        assert self._base_states is not None
        states = self._states[:, -labels.shape[1] :]  # virtual tokens stand before the others
        learned = labels[:, 1:] != -100
        ours, theirs = states[:, :-1][learned], self._base_states[:, :-1][learned]
        self._states = self._base_states = None
        head, base_head = self._whole.get_output_embeddings(), self._base.get_output_embeddings()
        total = ours.sum() * 0.0  # a batch without learned tokens has a gradient, too
        for start in range(0, len(ours), CHUNK):
            chunk = slice(start, start + CHUNK)
            total = total + checkpoint(
                kl_of_states,
                ours[chunk],
                theirs[chunk],
                head,
                base_head,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        return total, len(ours)


def kl_of_states(
    states: Float[Tensor, "tokens width"],
    base_states: Float[Tensor, "tokens width"],
    head: nn.Module,
    base_head: nn.Module,
) -> Float[Tensor, ""]:
    """KL(base || model) over the whole vocabulary, summed over the tokens, in nats."""
    log_q = log_softmax(_logits(head, states).float(), dim=-1)
    with torch.no_grad():
        log_p = log_softmax(_logits(base_head, base_states).float(), dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum()


def _logits(head: Any, states: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens vocabulary"]:
    if parallel.sharding() == "none":
        return head(states)
    # Its weights are there since the model was called; a call of its own would be one to gather them, and the processes
    # differ in how many chunks they have.
    return linear(states, head.weight, head.bias)


class SquaredDistance:
    """The squared distance of what is trained from what it was when this was made."""

    def __init__(self, model: Any):
        self._model = model
        self._factors = list(_factors(model))
        self._start = [(a.detach().clone(), b.detach().clone()) for a, b, _ in self._factors]
        if not self._factors:
            self._own = [p for p in model.parameters() if p.requires_grad]
            self._own_start = [p.detach().clone() for p in self._own]

    def __call__(self) -> Float[Tensor, ""]:
        """For adapters, the distance of the merged weights."""
        if not self._factors:
            return torch.stack(
                [(p - start).square().sum() for p, start in zip(self._own, self._own_start, strict=True)]
            ).sum()
        parts = []
        for (a, b, scale), (a_start, b_start) in zip(self._factors, self._start, strict=True):
            # in float64: near a start that is not zero, large products cancel
            wide = torch.cat([a, a_start]).double()
            tall = torch.cat([b, -b_start], dim=1).double()
            parts.append(scale**2 * ((tall.T @ tall) * (wide @ wide.T)).sum())
        return torch.stack(parts).sum().float()


def _factors(model: Any) -> Iterator[tuple[Tensor, Tensor, float]]:
    """A [rank, in], B [out, rank] and the scale of every adapter of low rank."""
    for module in model.modules():
        if "default" in getattr(module, "lora_A", ()):
            yield module.lora_A["default"].weight, module.lora_B["default"].weight, module.scaling["default"]


@torch.no_grad()
def check_logits(model: Any) -> None:
    """Some models scale or cap their logits after the output layer.

    Raises:
        UsageError: this one does.
    """
    was_training = model.training
    model.eval()
    ids = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
    product = model.get_output_embeddings()(
        model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    )
    logits = model(input_ids=ids, use_cache=False).logits
    model.train(was_training)
    if not is_rounding(logits[0], product[0]):
        raise UsageError(
            f"sft.kl_to_base takes logits from the output layer, and {type(model).__name__} changes them after it (by "
            "a cap or a scale); set it to 0 for this model"
        )
