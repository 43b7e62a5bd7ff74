"""The four models of PPO: policy, reference, reward model and critic, in three layouts.

    separate      policy and critic are trained in full; reference and reward model are frozen copies
    lora          policy and critic are adapters; without its adapter the policy is the reference, and the critic,
                  which starts from the reward model, is the reward model
    shared base   one frozen base, with an adapter each for policy, critic and reward model

All of them read the same packed rows of token ids (`accord.packing`), so the reward model's tokenizer must be the
policy's. Dropout is off everywhere: PPO's ratios compare one function with itself. Where several processes share the
weights of each (`rl.policy_gradient.sharding`), a model's weights are read only within its `Whole`.
"""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from accord import parallel
from accord.errors import UsageError
from accord.models.families import decoder_layers
from accord.packing import body_of, compute_packed_rows, is_rounding, probe
from reward.score import Ensemble
from rl.maths.token_statistics import TokenStatistics, token_statistics
from rl.policy_gradient.rows import Rows
from rl.policy_gradient.sharding import Whole, gathered, local_device
from rl.policy_gradient.skipping import frozen_layers, skipping

T = TypeVar("T")


class Actors:
    """The four models. Methods that take `Rows` return padded tensors, 0 where there is nothing."""

    def __init__(
        self,
        policy: Any,
        critic: Any,
        critic_head: nn.Linear,
        reference: Any | None = None,
        reward: Any | None = None,
        bfloat16: bool = False,
        reward_head: nn.Linear | None = None,
        ensemble: Ensemble = "mean",
        longest: int = 64,
        wholes: Mapping[str, Whole] | None = None,
        hollow_policy: Any | None = None,
    ) -> None:
        """Args:
        policy: a causal language model, or one with PEFT adapters.
        critic: the critic's transformer without a head; the policy itself for a shared base.
        critic_head: from a state to a value, trained.
        reference: None: the policy without its adapter.
        reward: the reward model's transformer; None: the critic without its adapter or, for a shared base, the
            policy with the adapter "reward".
        bfloat16: compute in it (autocast).
        reward_head: from a state to the scores of a reward model; None: what the critic's is now.
        ensemble: what the score of an ensemble is.
        longest: of the sequences that will be read, to try the models on.
        wholes: for models in shards, by name: "policy", "critic" and, where there are such, "reference" and "reward".
        hollow_policy: for models in shards, the first process's `hollow` copy of the policy.

        Raises:
            UsageError: the attention of a model does not work on packed rows.
        """
        for model in (policy, critic, reference, reward):
            if model is not None:
                pack(model, longest)
        self.policy, self.critic, self.critic_head = policy, critic, critic_head
        self.reference, self.reward = reference, reward
        self.reward_head = reward_head or copy.deepcopy(critic_head).requires_grad_(False)
        self._wholes, self._hollow_policy = wholes or {}, hollow_policy
        self.ensemble = ensemble
        self.bfloat16 = bfloat16
        self.frozen_layers = {"policy": frozen_layers(policy), "critic": frozen_layers(critic)}
        """How many layers at the bottom have no trained weight, by the model of each name."""
        self.score_shift = 0.0
        """Subtracted from scores and values alike, so that the critic still starts where the scores are."""
        shared = self.has_shared_base
        self.policy_parameters = _trained(policy, "default" if shared else None)
        """What is trained of the policy, by name."""
        self.critic_parameters = _trained(critic, "critic" if shared else None) | {
            f"head.{name}": p for name, p in critic_head.named_parameters()
        }
        """What is trained of the critic, by name, its head included."""

    @property
    def device(self) -> torch.device:
        """Where they compute."""
        return local_device() if self._wholes else next(self.policy.parameters()).device

    @property
    def has_shared_base(self) -> bool:
        """Whether policy, critic and reward model are adapters of one base."""
        return self.critic is self.policy

    def policy_statistics(self, rows: Rows, slots: int, temperature: float) -> TokenStatistics:
        """Log-probabilities and entropies [rows, slots] of the answers' tokens under the policy."""
        return self._whole("policy", lambda: self._statistics(self.policy, rows, slots, temperature))

    @torch.no_grad()
    def reference_statistics(self, rows: Rows, slots: int, temperature: float) -> TokenStatistics:
        """The same under the reference, without gradients."""
        if self.reference is not None:
            return self._whole(
                "reference", lambda: self._statistics(self.reference, rows, slots, temperature)
            )
        with self._without_adapter(self.policy):
            return self._whole("policy", lambda: self._statistics(self.policy, rows, slots, temperature))

    def values(self, rows: Rows, slots: int) -> Float[Tensor, "rows {slots}"]:
        """The critic's predictions, one slot more than tokens."""
        row, slot, position = rows.states(extra=1)

        def compute() -> Tensor:
            states = self._states(self.critic, rows)[rows.packed.place(row, position)]
            found: Tensor = self.critic_head(states.float())
            return found

        with self.adapter("critic"):
            values = self._whole("critic", compute).squeeze(-1) - self.score_shift
        return _scatter(values, row, slot, (len(rows.prompt_lengths), slots))

    @torch.no_grad()
    def scores(self, rows: Rows) -> Float[Tensor, "rows heads"]:
        """The reward model's scores, read at each answer's last token, before the shift."""
        if self.reward is not None:
            states = self._whole("reward", lambda: self._states(self.reward, rows))
        elif self.has_shared_base:
            with self.adapter("reward"):
                states = self._whole("policy", lambda: self._states(self.policy, rows))
        else:
            with self._without_adapter(self.critic):
                states = self._whole("critic", lambda: self._states(self.critic, rows))
        last = rows.prompt_lengths + rows.response_lengths - 1
        last = rows.packed.place(torch.arange(len(last), device=last.device), last)
        found: Tensor = self.reward_head(states[last].float())
        return found

    @torch.no_grad()
    def beneath(self, rows: Rows) -> Rows:
        """The same rows with what goes into the first trained layers, which stays as it is however much is learned.

        With adapters in the last layers only, every model that shares a base shares the layers beneath, in all epochs.
        """
        found: dict[str, Tensor] = {}
        for name, model in {"critic": self.critic, "policy": self.policy}.items():
            if self.frozen_layers[name]:
                shared = self.has_shared_base and found
                found[name] = found["critic"] if shared else self._beneath(name, model, rows)
        return dataclasses.replace(rows, beneath=found)

    def check_parts(self, longest: int = 64) -> None:
        """Compute whole models where a transformer in two parts does not give the same.

        Args:
            longest: of the sequences that will be read.
        """
        sequences = probe(body_of(self.policy).config, longest)
        rows = Rows.of([ids[:1] for ids in sequences], [ids[1:] for ids in sequences], self.device)
        models = {"critic": self.critic, "policy": self.policy}

        def states(rows: Rows) -> list[Tensor]:
            return [
                self._whole(name, lambda model=model: self._states(model, rows))  # type: ignore[misc]
                for name, model in models.items()
                if self.frozen_layers[name]
            ]

        with torch.no_grad():
            # whole models first: torch's engine learns at its first pass which layers there are
            right, found = states(rows), states(self.beneath(rows))
        if not parallel.broadcast(all(is_rounding(*both) for both in zip(found, right, strict=True))):
            self.frozen_layers = dict.fromkeys(self.frozen_layers, 0)

    @contextlib.contextmanager
    def whole_policy(self) -> Iterator[Any]:
        """The policy with all of its weights, in the first process at least; all processes take part."""
        if not self._wholes:
            yield self.policy
            return
        with gathered(self.policy, self._hollow_policy) as policy:
            yield policy

    def _whole(self, name: str, compute: Callable[[], T]) -> T:
        """What `compute` returns, which reads the weights of the model of a name."""
        if name not in self._wholes:
            return compute()
        found: T = self._wholes[name](compute)
        return found

    def _statistics(self, model: Any, rows: Rows, slots: int, temperature: float) -> TokenStatistics:
        row, slot, position = rows.states(extra=0)
        packed = rows.packed
        states = self._states(model, rows)[packed.place(row, position)]
        head = model.get_output_embeddings().weight
        head = head.bfloat16() if self.bfloat16 else head
        tokens = packed.input_ids[0, packed.place(row, position + 1)]
        found = token_statistics(states, head, tokens, temperature)
        shape = (len(rows.prompt_lengths), slots)
        return TokenStatistics(*(_scatter(values, row, slot, shape) for values in found))

    def _states(self, model: Any, rows: Rows) -> Float[Tensor, "tokens size"]:
        """The last hidden states, after the final norm."""
        name = "policy" if model is self.policy else "critic" if model is self.critic else None
        body = body_of(model)
        if name is None or name not in rows.beneath:
            return self._run(body, rows)[0]
        with skipping(body, 0, self.frozen_layers[name], rows.beneath[name]):
            return self._run(body, rows)[0]

    def _beneath(self, name: str, model: Any, rows: Rows) -> Float[Tensor, "1 tokens size"]:
        """What comes out of the first layers, those that are frozen."""
        body = body_of(model)
        with skipping(body, self.frozen_layers[name], len(decoder_layers(body)[1])) as skipped:
            self._whole(name, lambda: self._run(body, rows))
        found: Tensor = skipped[0].given
        return found

    def _run(self, body: Any, rows: Rows) -> Float[Tensor, "1 tokens size"]:
        """The output of a transformer."""
        packed = rows.packed
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            output = body(
                input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False, packed=packed
            )
        found: Tensor = output.last_hidden_state
        return found

    @contextlib.contextmanager
    def adapter(self, name: str) -> Iterator[None]:
        """With a shared base, compute with another adapter than the policy's for a while; else nothing changes.

        With gradient checkpointing the backward pass computes states again, so it must be inside, too.
        """
        if not self.has_shared_base:
            yield
            return
        before = self.policy.active_adapter
        self.policy.set_adapter(name)
        try:
            yield
        finally:
            self.policy.set_adapter(before)
            self._keep_training()

    @contextlib.contextmanager
    def _without_adapter(self, model: Any) -> Iterator[None]:
        with model.disable_adapter():
            yield
        self._keep_training()

    def _keep_training(self) -> None:
        """PEFT marks adapters that are not active as frozen, and their gradients would be thrown away silently."""
        for p in (*self.policy_parameters.values(), *self.critic_parameters.values()):
            p.requires_grad_(True)


def pack(model: Any, longest: int) -> None:
    """Have a model compute packed rows of sequences up to `longest`.

    Raises:
        UsageError: its attention does not work on them.
    """
    if not compute_packed_rows(model, longest):
        raise UsageError(
            "PPO packs sequences into rows without padding, and the attention of "
            f"{type(body_of(model)).__name__} does not work that way; use rl.algorithm=dpo for this model"
        )


def _trained(model: nn.Module, adapter: str | None) -> dict[str, nn.Parameter]:
    """The parameters of an adapter or, without one, those that are not frozen."""
    named = model.named_parameters()
    return {name: p for name, p in named if (f".{adapter}." in name if adapter else p.requires_grad)}


def _scatter(values: Tensor, row: Tensor, slot: Tensor, shape: tuple[int, int]) -> Tensor:
    return values.new_zeros(shape).index_put((row, slot), values)
