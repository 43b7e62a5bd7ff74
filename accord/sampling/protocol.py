"""What a sampler is. Two exist: `vllm_engine` (fast, its own process) and `transformers_sampler` (everywhere)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Completion:
    """One sampled answer.

    `log_probabilities[t]` is log p(token_ids[t] | prompt, token_ids[:t]) under the policy, after division of the
    logits by the temperature. The EOS token is part of the answer where the policy ended by itself.
    """

    token_ids: list[int]
    log_probabilities: list[float]
    finish: Literal["eos", "length"]


class Sampler(Protocol):
    """Samples from the full distribution of one policy: no top-p, no top-k, which would bias importance ratios."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_response_tokens: int,
        temperature: float = 1.0,
    ) -> list[Completion]:
        """One answer for each prompt (token ids); the same prompt and seed give the same answer."""
        ...

    def sync(self, policy: "PreTrainedModel") -> None:
        """Take over the policy's weights as they are now."""
        ...

    def close(self) -> None:
        """Free the memory and end the process, if there is one."""
        ...
