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
from typing import Any

WORKER_EXTENSION = "accord.sampling.weight_transfer.PolicyLoader"


class Engine:
    """What the trainer may ask for; each public method is one request."""

    def __init__(self, connection: Connection, options: dict[str, Any]) -> None:
        from vllm import LLM

        self.connection = connection
        self.llm: Any = LLM(**options, worker_extension_cls=WORKER_EXTENSION)
        self.llm.init_weight_transfer_engine({"init_info": {}})

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

    def call(self, method: str, arguments: dict[str, Any]) -> None:
        """Call a method of vLLM's `LLM`."""
        getattr(self.llm, method)(**arguments)


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
