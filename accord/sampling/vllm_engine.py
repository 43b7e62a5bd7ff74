"""Sampling with vLLM, in a process of its own that lives as long as the sampler.

The engine's process (`vllm_worker`) has its own environment: on CPU it preloads tcmalloc and Intel OpenMP where they
are installed. The trainer's process keeps its environment, its threads and its memory; it does not import vLLM.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.errors import AccordError, SamplerGoneError, UsageError
from accord.preload import libraries
from accord.progress import progress
from accord.sampling.config import SamplingConfig
from accord.sampling.protocol import Completion, check_request
from accord.sampling.transfer import hand_over

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SECONDS_TO_END = 10
TOKENS_PER_STEP = 4096
"""On CPU: how many prompt tokens vLLM takes on at once, unless one prompt is longer."""


def vllm_is_installed() -> bool:
    """Whether vLLM is there; it is not imported, which would take ten seconds and change this process."""
    return importlib.util.find_spec("vllm") is not None


def check_installed(engine: str) -> None:
    """Refuse an engine that is not there.

    Raises:
        UsageError: vLLM is asked for and not installed.
    """
    if engine == "vllm" and not vllm_is_installed():
        raise UsageError(
            "sampling.engine=vllm, but vLLM is not installed; run `make setup`, or set sampling.engine=transformers"
        )


class VLLMSampler:
    """A `Sampler` on vLLM. The weights of `folder` are loaded in the config's dtype."""

    def __init__(
        self, folder: Path, eos_token_id: int, config: SamplingConfig, log: Path, replica: int = 0
    ) -> None:
        """Start the engine; all that vLLM prints goes to the file `log`. `replica` counts from 0.

        Raises:
            UsageError: there are not enough GPUs.
            AccordError: vLLM does not start.
        """
        import torch

        self.sync_count = 0
        self.shares_gpu = self._sleeps = self._is_asleep = False
        self.eos_token_id = eos_token_id
        self.max_sequence_tokens = config.max_sequence_tokens
        self.log = log
        options: dict[str, Any] = {
            "model": str(folder),
            "dtype": config.dtype,
            "max_model_len": config.max_sequence_tokens,
            "max_num_seqs": config.answers_at_once,
            "logprobs_mode": "processed_logprobs",
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # not the folder's, which may cut the distribution
            "weight_transfer_config": {"backend": "accord_files"},
        }
        if config.tensor_parallel > 1:
            options |= {
                "tensor_parallel_size": config.tensor_parallel, "distributed_executor_backend": "mp"
            }  # fmt: skip
        if torch.cuda.is_available():
            gpus, self._sleeps = gpus_of(
                replica, config, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
            )
            self.shares_gpu = config.replicas == 1 and gpus == [torch.cuda.current_device()]
            environment = engine_environment() | {"CUDA_VISIBLE_DEVICES": ",".join(_names_of(gpus))}
            options["gpu_memory_utilization"] = config.gpu_memory_fraction
            options["enable_sleep_mode"] = self._sleeps
            if self.shares_gpu:
                options["weight_transfer_config"] = {"backend": "ipc"}
        else:
            environment = cpu_engine_environment(config.replicas * config.tensor_parallel)
            options["kv_cache_memory_bytes"] = int(config.kv_cache_gib * 2**30)
            options["enforce_eager"] = True  # compiling takes 75 s and makes sampling a fifth faster
            # A prompt that is split over two steps fails on CPU if its request has a seed: vLLM then rewinds the
            # request's generator, which torch can on GPU only ("CPU Generator does not use offset").
            options["enable_chunked_prefill"] = False
            options["max_num_batched_tokens"] = max(TOKENS_PER_STEP, config.max_sequence_tokens)
        self._connection, end = Pipe()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            # A session of its own: Ctrl-C is the trainer's to handle, which then closes the sampler.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "accord.sampling.vllm_worker", str(end.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, pass_fds=[end.fileno()],
                start_new_session=True,
            )  # fmt: skip
        end.close()
        try:
            self._connection.send(options)
            self._wait()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError | EOFError):
                raise AccordError(
                    f"vLLM did not start, the reason is in {log}; free memory, or set sampling.engine=transformers"
                ) from None
            raise

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_response_tokens: int,
        temperature: float = 1.0,
    ) -> list[Completion]:
        """One answer for each prompt; see `Sampler.sample`."""
        check_request(prompts, seeds, max_response_tokens, self.max_sequence_tokens)
        with progress("sampling answers", len(prompts)) as update:
            return self.answer(prompts, seeds, max_response_tokens, temperature, update)

    def answer(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_response_tokens: int, temperature: float,
        update: Callable[[float], None],
    ) -> list[Completion]:  # fmt: skip
        """As `sample`, where somebody else has checked the request and shows how far it is."""
        self._wake_up()
        answers = self._request(
            "sample", (prompts, seeds, max_response_tokens, temperature, self.eos_token_id), update
        )
        return [
            Completion(tokens, log_probabilities, "eos" if at_eos else "length")
            for tokens, log_probabilities, at_eos in answers
        ]

    def sync(self, policy: "PreTrainedModel") -> None:
        """Take over the policy's weights; see `Sampler.sync`."""
        self.sync_count += 1
        hand_over(policy, [self])

    def start_weight_update(self) -> None:
        """Before the first part of new weights."""
        self._wake_up()
        self._call("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Take a part of new weights."""
        self._call("update_weights", request={"update_info": update_info})

    def finish_weight_update(self, weight_version: str) -> None:
        """After the last part of new weights."""
        self._call("finish_weight_update", weight_version=weight_version)

    def rest(self) -> None:
        """Leave a GPU that is the trainer's, too, to it: weights wait on the host, the cache is dropped."""
        if self._sleeps and not self._is_asleep:
            self._call("sleep", level=1)
            self._is_asleep = True

    def _wake_up(self) -> None:
        if self._is_asleep:
            self._call("wake_up")
            self._is_asleep = False

    @property
    def name(self) -> str:
        """To tell it from its like."""
        return f"vLLM's process {self.process.pid}"

    def close(self) -> None:
        """End the engine's process, which frees its memory."""
        self._connection.close()
        try:
            self.process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _call(self, method: str, /, **arguments: Any) -> None:
        """Call a method of vLLM's `LLM`."""
        self._request("call", (method, arguments))

    def _request(
        self, method: str, arguments: tuple[Any, ...], update: Callable[[float], None] | None = None
    ) -> Any:
        try:
            self._connection.send((method, arguments))
            return self._wait(update)
        except (OSError, EOFError):
            raise SamplerGoneError(
                f"vLLM's process ended while it was needed, the reason may be in {self.log}; run the same command "
                "again to continue, with sampling.engine=transformers if this repeats"
            ) from None

    def _wait(self, update: Callable[[float], None] | None = None) -> Any:
        while True:
            kind, value = self._connection.recv()
            if kind == "result":
                return value
            if kind == "error":
                raise AccordError(
                    f"vLLM failed with {value}; details are in {self.log}, and sampling.engine=transformers does "
                    "without vLLM"
                )
            if update:
                update(value)


def engine_environment() -> dict[str, str]:
    """The environment of an engine's process: the trainer's, offline and without usage statistics."""
    return os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # it is in a process of its own already
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "INFO",  # into the log file; TRL sets it to ERROR
        "HF_HUB_OFFLINE": "1",  # every model is a local folder by now
        "TOKENIZERS_PARALLELISM": "false",
    }


def gpus_of(replica: int, config: SamplingConfig, trainers: int, gpus: int) -> tuple[list[int], bool]:
    """The GPUs of a replica, and whether a trainer computes on one of them.

    Trainers have one each, from the first one on. The replicas have the next ones if there are enough, else the same.

    Raises:
        UsageError: there are fewer GPUs than the replicas need.
    """
    each = config.tensor_parallel
    needed = config.replicas * each
    if needed > gpus:
        raise UsageError(
            f"sampling.replicas={config.replicas} with sampling.tensor_parallel={each} needs {needed} GPUs, and there "
            f"are {gpus}; lower one of them"
        )
    first = (trainers if trainers + needed <= gpus else 0) + replica * each
    return list(range(first, first + each)), first < trainers


def _names_of(gpus: Sequence[int]) -> list[str]:
    """Of GPUs as torch counts them here, as CUDA_VISIBLE_DEVICES calls them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else []
    return [names[gpu] if names else str(gpu) for gpu in gpus]


def cpu_engine_environment(processes: int = 1) -> dict[str, str]:
    """What vLLM needs on CPU besides: all cores, and faster libraries for memory and threads where installed.

    Where several processes compute at the same time, each has its share of the cores, and none of its own.
    """
    environment = (
        engine_environment()
        | {
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "TORCH_COMPILE_DISABLE": "1",  # one small function is compiled even when eager: seconds, and a C++ compiler
            # The trainer uses the same cores between two samplings: threads must sleep soon after their work.
            "KMP_BLOCKTIME": "5",
            "KMP_TPAUSE": "0",
        }
    )
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))  # vLLM would take one
    if processes > 1:
        environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else all are bound to the same cores
    preload = [*libraries(), *filter(None, [os.environ.get("LD_PRELOAD")])]
    if preload:
        environment["LD_PRELOAD"] = ":".join(dict.fromkeys(":".join(preload).split(":")))
    return environment
