"""Sampling with transformers' `generate`: slower than vLLM, and works wherever torch does."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessor, LogitsProcessorList

from accord.models.families import attention_for
from accord.models.files import has_virtual_tokens, weights_folder
from accord.models.loading import with_virtual_tokens
from accord.progress import progress
from accord.sampling.config import SamplingConfig
from accord.sampling.protocol import Completion, check_request
from accord.sampling.weights import merged_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TransformersSampler:
    """A `Sampler` on `model.generate`, with its own copy of the weights in the config's dtype."""

    def __init__(self, folder: Path, eos_token_id: int, config: SamplingConfig) -> None:
        """Load the weights in `folder`, on the GPU if there is one."""
        self.sync_count = 0
        self.eos_token_id = eos_token_id
        self.max_sequence_tokens = config.max_sequence_tokens
        self.answers_at_once = config.answers_at_once
        model: Any = AutoModelForCausalLM.from_pretrained(
            weights_folder(folder),
            dtype=getattr(torch, config.dtype),
            attn_implementation=attention_for(folder, "sdpa"),
            use_safetensors=True,
        )
        model.generation_config = GenerationConfig()  # the folder's may cut the distribution
        model = with_virtual_tokens(model, folder)
        self.has_virtual_tokens = has_virtual_tokens(folder)
        self.model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_response_tokens: int,
        temperature: float = 1.0,
    ) -> list[Completion]:
        """One answer for each prompt; see `Sampler.sample`. Prompts of similar length share a batch."""
        check_request(prompts, seeds, max_response_tokens, self.max_sequence_tokens)
        by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        answers: dict[int, Completion] = {}
        with progress("sampling answers", len(prompts)) as update:
            while len(answers) < len(prompts):
                start = len(answers)
                batch = by_length[start : start + self.answers_at_once]
                if self.has_virtual_tokens:  # padding would stand between them and the prompt
                    batch = [index for index in batch if len(prompts[index]) == len(prompts[batch[0]])]

                def update_step(fraction: float, start: int = start, rows: int = len(batch)) -> None:
                    update(start + fraction * rows)

                completions = self._sample_batch(
                    [prompts[index] for index in batch], [seeds[index] for index in batch],
                    max_response_tokens, temperature, update_step,
                )  # fmt: skip
                answers.update(zip(batch, completions, strict=True))
        return [answers[index] for index in range(len(prompts))]

    def _sample_batch(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_response_tokens: int,
        temperature: float,
        update: Callable[[float], None],
    ) -> list[Completion]:
        width = max(map(len, prompts))
        pad = [[self.eos_token_id] * (width - len(prompt)) for prompt in prompts]  # masked, so any token does
        device = self.model.device
        noise = GumbelNoise(seeds, temperature, device, lambda step: update(step / max_response_tokens))
        with torch.inference_mode(), warnings.catch_warnings():
            # of PEFT's, which counts positions after its virtual tokens itself
            warnings.filterwarnings("ignore", message="Position ids are not supported")
            output: Any = self.model.generate(
                input_ids=torch.tensor(
                    [[*p, *prompt] for p, prompt in zip(pad, prompts, strict=True)], device=device
                ),
                attention_mask=torch.tensor(
                    [[0] * len(p) + [1] * len(prompt) for p, prompt in zip(pad, prompts, strict=True)],
                    device=device,
                ),
                generation_config=GenerationConfig(
                    do_sample=False,  # the likeliest after the noise has been added
                    max_new_tokens=max_response_tokens,
                    eos_token_id=self.eos_token_id,
                    pad_token_id=self.eos_token_id,
                ),
                logits_processor=LogitsProcessorList([noise]),
            )
        chosen = torch.stack(noise.log_probabilities, dim=1).tolist()
        completions = []
        for tokens, log_probabilities in zip(output[:, width:].tolist(), chosen, strict=True):
            at_eos = self.eos_token_id in tokens
            length = tokens.index(self.eos_token_id) + 1 if at_eos else len(tokens)
            completions.append(
                Completion(tokens[:length], log_probabilities[:length], "eos" if at_eos else "length")
            )
        return completions

    def sync(self, policy: "PreTrainedModel") -> None:
        """Take over the policy's weights; see `Sampler.sync`."""
        self.sync_count += 1
        own = self.model.state_dict()
        with torch.no_grad():
            for name, tensor in merged_weights(policy):
                own[name].copy_(tensor)

    def rest(self) -> None:
        """Nothing: what `generate` needs besides the weights is free by now."""

    def close(self) -> None:
        """Free the weights."""
        self.model = None


class GumbelNoise(LogitsProcessor):
    """Turns greedy decoding into sampling: argmax_v(log p(v) - log E_v), with E_v ~ Exp(1), is a draw from p.

    Each row draws from a generator of its own, so its answer depends on its seed and not on the rows beside it.
    (The Gumbel-max trick; see Maddison et al. 2014, https://arxiv.org/abs/1411.0030, section 2.)
    """

    def __init__(
        self,
        seeds: Sequence[int],
        temperature: float,
        device: torch.device,
        on_step: Callable[[int], None] = lambda step: None,
    ) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.temperature = temperature
        self.on_step = on_step
        self.log_probabilities: list[torch.Tensor] = []
        """One tensor [batch] a step: log p of the token that was chosen."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits [batch, vocabulary] to log-probabilities with noise."""
        log_p = torch.log_softmax(scores.float() / (self.temperature or 1.0), dim=-1)
        noisy = log_p
        if self.temperature:
            exponential = torch.empty_like(log_p)
            for row, generator in zip(exponential, self.generators, strict=True):
                row.exponential_(generator=generator)
            noisy = log_p - exponential.log_()
        self.log_probabilities.append(log_p.gather(1, noisy.argmax(dim=-1, keepdim=True)).squeeze(1))
        self.on_step(len(self.log_probabilities))
        return noisy
