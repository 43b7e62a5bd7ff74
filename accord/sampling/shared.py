"""One sampler for a whole round: it starts at its first use and changes weights, instead of starting again."""

import functools
import json
import logging
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from accord.chat.tokens import encode_prompt
from accord.digests import file_digest
from accord.errors import SyncError, UsageError
from accord.models.files import ADAPTER_WEIGHTS, has_virtual_tokens
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model
from accord.records import Message
from accord.sampling.config import SamplingConfig
from accord.sampling.protocol import Sampler
from accord.sampling.replicas import Replicas
from accord.sampling.verify import BOUNDS, Bound, verify
from accord.sampling.vllm_engine import VLLMSampler, check_installed, vllm_is_installed
from accord.sampling.weights import NOT_ARCHITECTURE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

VERIFICATION_QUESTIONS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "How do I keep bread fresh?",
    "Why is the sky blue?",
]


class SharedSampler:
    """Hands out the round's sampler with the weights that a stage needs.

    with SharedSampler(config, log) as shared:
        completions = shared.use(model).sample(...)

    There is one engine, so a sampler that `use` returned earlier has the weights of the latest `use`.
    """

    def __init__(self, config: SamplingConfig | None = None, log: Path | None = None) -> None:
        """Nothing starts before the first `use`; what vLLM prints goes to `log` (default: a temporary file)."""
        self._config = config or SamplingConfig()
        self._log = log
        self._sampler: Sampler | None = None
        self._architecture: dict[str, Any] = {}
        self._loaded: tuple[str, int] | None = None  # a model's digest, and the sampler's sync count with it

    @property
    def bound(self) -> Bound:
        """How far the sampler's log-probabilities may be from those of the same weights in float32."""
        return BOUNDS[self._config.dtype]

    def use(self, model: Model, tokenizer: "PreTrainedTokenizerBase | None" = None) -> Sampler:
        """The sampler, with this model's weights; new weights are verified against the model in float32.

        Args:
            model: whose weights.
            tokenizer: the model's, from who has loaded it already.

        Raises:
            UsageError: vLLM is asked for and not installed.
            AccordError: vLLM does not start or has ended, or a server is not what is needed.
            SyncError: the sampler's log-probabilities are not the model's.
        """
        if self._sampler and self._loaded == (model.digest, self._sampler.sync_count):
            return self._sampler
        started = time.monotonic()
        tokenizer = tokenizer or load_tokenizer(model)
        policy = load_policy(model)
        architecture = _architecture(model, tokenizer)
        if self._sampler and self._architecture == architecture:
            self._loaded = None
            self._sampler.sync(policy)
        else:
            self.close()
            self._sampler = self._start(model, tokenizer)
            if (
                self._config.engine == "server"
            ):  # it has the weights that it was started with, or of its last use
                self._sampler.sync(policy)
            self._architecture = architecture
        prompts = [
            encode_prompt(tokenizer, [Message(role="user", content=question)])
            for question in VERIFICATION_QUESTIONS
        ]
        # Until the first sync it has the very files of the model.
        cause = [] if self._sampler.sync_count else ["{name} computes this model otherwise than the trainer"]
        try:
            report = verify(self._sampler, policy, prompts, self.bound, *cause)
        except SyncError as error:
            if not (
                cause and self._config.engine == "auto" and isinstance(self._sampler, VLLMSampler | Replicas)
            ):
                raise
            logger.info("%s; answers of it are sampled with transformers", error)
            self._sampler.close()
            self._sampler = self._start(model, tokenizer, engine="transformers")
            report = verify(self._sampler, policy, prompts, self.bound)
        self._loaded = (model.digest, self._sampler.sync_count)
        logger.info(
            "%s has the weights of %s after %.0f s; log-probabilities agree to %.1g over %d tokens",
            type(self._sampler).__name__, model.reference, time.monotonic() - started,
            report.max_difference, report.tokens,
        )  # fmt: skip
        return self._sampler

    def _start(
        self, model: Model, tokenizer: "PreTrainedTokenizerBase", engine: str | None = None
    ) -> Sampler:
        engine = engine or self._config.engine
        check_installed(engine)
        if has_virtual_tokens(model.folder):
            if engine == "server":
                raise UsageError(
                    f"sampling.engine: {model.reference} was tuned by virtual tokens, which the server at "
                    f"{self._config.server_urls[0]} cannot have; set it to transformers"
                )
            if engine != "transformers":
                logger.info(
                    "%s was tuned by virtual tokens, which vLLM cannot have; answers of it are sampled with "
                    "transformers", model.reference,
                )  # fmt: skip
            engine = "transformers"
        eos_token_id: Any = tokenizer.eos_token_id
        if engine == "server":
            from accord.sampling.vllm_server import VLLMServerSampler

            servers = [
                functools.partial(VLLMServerSampler, model.folder, eos_token_id, self._config, url)
                for url in self._config.server_urls
            ]
            if len(servers) == 1:
                return servers[0]()
            return Replicas(servers, self._config.server_weights_folder)
        if engine == "transformers" or not vllm_is_installed():
            from accord.sampling.transformers_sampler import TransformersSampler

            if (self._config.replicas, self._config.tensor_parallel) != (1, 1):
                logger.info(
                    "sampling.replicas and sampling.tensor_parallel are vLLM's; transformers has one process"
                )
            return TransformersSampler(model.folder, eos_token_id, self._config)
        log = self._log or Path(tempfile.mkdtemp(prefix="accord-")) / "vllm.log"
        logger.info("vLLM starts; what it prints is in %s", log)
        if self._config.replicas == 1:
            return VLLMSampler(model.folder, eos_token_id, self._config, log)
        return Replicas(
            [
                functools.partial(
                    VLLMSampler, model.folder, eos_token_id, self._config,
                    log.with_name(f"{log.stem}-{number + 1}{log.suffix}"), number,
                )
                for number in range(self._config.replicas)
            ]
        )  # fmt: skip

    def close(self) -> None:
        """End the engine; the next `use` starts one again."""
        self._loaded = None
        if self._sampler:
            self._sampler.close()
            self._sampler = None

    def __enter__(self) -> "SharedSampler":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _architecture(model: Model, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    config = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    kept = {
        key: value
        for key, value in config.items()
        if key not in NOT_ARCHITECTURE and not key.endswith("_token_id")  # the tokenizer's EOS ends an answer
    }
    kept["tokenizer_eos"] = tokenizer.eos_token_id
    if has_virtual_tokens(model.folder):
        kept["virtual_tokens"] = file_digest(model.folder / ADAPTER_WEIGHTS)
    return kept
