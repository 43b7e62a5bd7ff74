"""What a sampler is.

Three exist: `vllm_engine` (fast, its own process), `vllm_server` (somebody's `vllm serve`, by URL) and
`transformers_sampler` (everywhere). Several of one of the first two are one sampler, too (`replicas`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from accord.errors import DataError

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

    @property
    def sync_count(self) -> int:
        """How often `sync` was called: two equal counts mean that the weights are the same."""
        ...

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_response_tokens: int,
        temperature: float = 1.0,
    ) -> list[Completion]:
        """One answer for each prompt (token ids); the same prompt and seed give the same answer.

        Temperature 0 takes the likeliest token each time, and its log-probabilities are those of temperature 1.
        """
        ...

    def sync(self, policy: "PreTrainedModel") -> None:
        """Take over the policy's weights as they are now (with a PEFT adapter: merged; the policy stays as it is)."""
        ...

    def rest(self) -> None:
        """Leave a GPU that the trainer needs too to it, until the next call."""
        ...

    def close(self) -> None:
        """Free the memory and end the process, if there is one. May be called twice."""
        ...


def check_request(
    prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_response_tokens: int, max_sequence_tokens: int
) -> None:
    """Check what a sampler is asked for; both samplers refuse the same requests.

    Raises:
        DataError: a prompt is empty, or leaves no room for the answer.
        ValueError: not one seed for each prompt.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}")
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(f"prompt {index + 1} of {len(prompts)} has no tokens; remove it")
        if len(prompt) + max_response_tokens > max_sequence_tokens:
            raise DataError(
                f"prompt {index + 1} of {len(prompts)} has {len(prompt)} tokens and its answer may have "
                f"{max_response_tokens}, which is more than sampling.max_sequence_tokens={max_sequence_tokens}; raise "
                "that, or shorten the prompt"
            )
