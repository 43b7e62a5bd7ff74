"""vLLM in a process of its own: `python -m accord.sampling.vllm_worker <socket> <parent's process id>`.

The trainer (`vllm_engine.VLLMSampler`) starts this program with the environment that vLLM needs and talks to it over
a socket. Nothing of vLLM is ever imported by the trainer, because vLLM sets environment variables, patches torch and
freezes the number of threads wherever it runs. The engine runs inside this very process rather than in another child
of it: each further process would import vLLM and torch again.
"""

import os
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class PolicyLoader:
    """Mixed into vLLM's worker (`worker_extension_cls`), where it can reach the model.

    `vllm_engine` and `vllm_server` use the first method, the others are for `vllm_server` alone.
    """

    def load_policy(self: Any, weights_path: str, version: str | None = None) -> None:
        """Take over the weights in a folder of safetensors; `policy_version` returns `version` from then on.

        On CPU, `reload_weights` reports success and leaves some weights unusable: a tied output head computes from a
        repacked copy of its old ones, and experts, which were packed in place, take raw ones for packed. Nobody packs
        either again, so that is done here.

        Raises:
            FileNotFoundError: the folder does not exist where this worker runs.
        """
        if not Path(weights_path).is_dir():
            raise FileNotFoundError(f"the server sees no folder {weights_path}")
        self.accord_policy_version = None  # until all is done
        self.reload_weights(weights_path=weights_path)
        head = getattr(self.model_runner.get_model(), "lm_head", None)
        if head is not None and hasattr(head, "cpu_linear"):
            head.quant_method.process_weights_after_loading(head)
        for layer in self.model_runner.get_model().modules():
            kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
            experts = getattr(kernel, "fused_experts", None)
            if experts is not None and hasattr(experts, "isa"):  # those of a CPU
                experts.process_weights_after_loading(layer)
        self.accord_policy_version = version

    def policy_version(self: Any) -> str | None:
        """What the latest `load_policy` was told; None before the first one, and after one that failed."""
        return getattr(self, "accord_policy_version", None)

    def describe_policy(self: Any) -> dict[str, Any]:
        """What decides whether this server can sample for a trainer."""
        config = self.model_config
        plain = (int, float, str, bool)
        return {
            "config": {
                key: value for key, value in config.hf_config.to_dict().items() if isinstance(value, plain)
            },
            "dtype": str(config.dtype).removeprefix("torch."),
            "logprobs_mode": str(config.logprobs_mode),
            "max_model_len": int(config.max_model_len),
            "device": str(self.device_config.device_type),
            "chunked_prefill": bool(self.scheduler_config.enable_chunked_prefill),
        }


class Engine:
    """What the trainer may ask for; each public method is one request."""

    def __init__(self, connection: Connection, options: dict[str, Any]) -> None:
        from vllm import LLM

        self.connection = connection
        self.llm: Any = LLM(
            **options, worker_extension_cls=f"{PolicyLoader.__module__}.{PolicyLoader.__name__}"
        )

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_response_tokens: int,
        temperature: float,
        eos_token_id: int,
    ) -> list[tuple[list[int], list[float], bool]]:
        """For each prompt: token ids, their log-probabilities, and whether the last one is the EOS."""
        from vllm import SamplingParams

        # Also within one set of weights: what is cached decides the shapes of the products, and so the last bits.
        self.llm.reset_prefix_cache()
        # `ignore_eos`: vLLM would also stop at the EOS that the model's config names, which may be another one.
        self.llm.enqueue(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            [
                SamplingParams(
                    seed=seed, temperature=temperature, max_tokens=max_response_tokens, logprobs=0,
                    stop_token_ids=[eos_token_id], ignore_eos=True, detokenize=False,
                )
                for seed in seeds
            ],
            use_tqdm=False,
        )  # fmt: skip
        answers = {}
        while self.llm.llm_engine.has_unfinished_requests():
            for output in self.llm.llm_engine.step():
                if output.finished:
                    (answer,) = output.outputs
                    tokens = list(answer.token_ids)
                    steps = zip(tokens, answer.logprobs, strict=True)
                    log_probabilities = [step[token].logprob for token, step in steps]
                    answers[output.request_id] = (tokens, log_probabilities, tokens[-1] == eos_token_id)
            self.connection.send(("progress", len(answers)))
        in_order = sorted(answers, key=int)  # vLLM numbers requests as they come
        return [answers[identifier] for identifier in in_order]

    def call_worker(self, method: str, arguments: dict[str, Any]) -> None:
        """Call a method of vLLM's worker."""
        self.llm.collective_rpc(method, kwargs=arguments)


def _exit_with_parent(parent: int) -> None:
    """End this process soon after the trainer's, whatever ended that one and whatever vLLM is doing."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """Start vLLM, then answer requests `(method, arguments)` until the trainer hangs up."""
    connection = Connection(int(sys.argv[1]))
    threading.Thread(target=_exit_with_parent, args=(int(sys.argv[2]),), daemon=True).start()
    engine = Engine(connection, connection.recv())
    connection.send(("result", None))
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            break
        try:
            connection.send(("result", getattr(engine, method)(*arguments)))
        except Exception as error:
            import traceback

            traceback.print_exc()
            connection.send(("error", f"{type(error).__name__}: {error}"))
    # vLLM's own way out takes seconds and frees nothing that the end of the process does not.
    os._exit(0)


if __name__ == "__main__":
    main()
