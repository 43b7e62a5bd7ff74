"""Two claims: accord samples answers as fast as vLLM alone, within 5%, and faster than transformers' `generate`.

    python benchmarks/rollout.py                     # some minutes on two cores
    python benchmarks/rollout.py --dtype bfloat16 --rounds 6

All three sample the same prompts with the bundled model in the same dtype, at temperature 1 from the full distribution,
and stop at EOS; the figure is tokens sampled in a second. They take turns, in an order that changes, so that a busy
machine slows all of them.

- *accord* returns log-probabilities and draws each answer with a seed of its own. Its time is the whole call from the
  trainer's process, so the way to the engine's process and back is in it.
- *vLLM alone* is `LLM.generate` as vLLM's documentation shows it: text, no log-probabilities, no seeds, which is the
  least work. It has the environment of accord's engine, preloaded libraries included, and its dtype, cache, lengths,
  number of answers at once and `enforce_eager`; what else can be set is as vLLM sets it. Its time is the call alone.
- *generate* is at its fastest: one batch, left padded, sdpa attention, no log-probabilities; it runs in this process as
  Python started it, without preloaded libraries.

Measured on two quiet cores, float32, 64 prompts of the demo, 6 rounds, with 95% intervals: accord 307 tokens/s, vLLM
alone 315, generate 148; that is 0.97 (0.95 to 0.99) times vLLM alone, and 2.08 (2.04 to 2.12) times generate.

The last line printed is one JSON object: the claim against vLLM alone, and the other in `further_claims`.
`processor_ratio` compares processor seconds in place of seconds: on a machine that others use too, it is the steadier
one of the two.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
from helpers.result import mean_ratio, print_result
from transformers import AutoModelForCausalLM, AutoTokenizer

from accord import bundled
from accord.chat.tokens import encode_prompt
from accord.preload import libraries
from accord.records import Message
from accord.sampling import SamplingConfig
from accord.sampling.transformers_sampler import TransformersSampler
from accord.sampling.vllm_engine import (
    VLLMSampler,
    cpu_engine_environment,
    engine_environment,
    vllm_is_installed,
)

VLLM_GOAL, GENERATE_GOAL = 0.95, 1.2


@dataclass(frozen=True)
class Speed:
    """Tokens in a second, and in a second of one processor's time."""

    tokens_per_second: float
    tokens_per_processor_second: float


def main() -> None:
    """Run the rounds and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=3, help="how often each of them samples all prompts")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64, help="the longest answer")
    parser.add_argument("--without-generate", action="store_true", help="only accord and vLLM alone")
    parser.add_argument("--vllm-alone", metavar="SOCKET", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.vllm_alone is not None:
        serve_vllm_alone(Connection(arguments.vllm_alone))
        return

    folder = bundled.smollm2_135m_instruct()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = bundled.data_path("bundled:demo/prompts.train.jsonl").read_text().splitlines()
    prompts = [
        encode_prompt(tokenizer, [Message(**message) for message in json.loads(line)["prompt"]])
        for line in lines[: arguments.prompts]
    ]
    config = SamplingConfig(dtype=arguments.dtype, answers_at_once=len(prompts))
    started = time.perf_counter()
    sampler: VLLMSampler | TransformersSampler
    alone: VLLMAlone | None = None
    if vllm_is_installed():
        log = Path(tempfile.gettempdir()) / "accord-vllm.log"
        sampler = VLLMSampler(folder, tokenizer.eos_token_id, config, log)
    else:
        sampler = TransformersSampler(folder, tokenizer.eos_token_id, config)
    start_seconds = time.perf_counter() - started
    if vllm_is_installed():
        alone = VLLMAlone(folder, config, Path(tempfile.gettempdir()) / "accord-vllm-alone.log")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, arguments.dtype)).eval()

    def accord(seed: int) -> int:
        answers = sampler.sample(prompts, range(seed, seed + len(prompts)), arguments.tokens)
        return sum(len(answer.token_ids) for answer in answers)

    def generate(seed: int) -> int:
        torch.manual_seed(seed)
        batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        output = model.generate(
            **batch, max_new_tokens=arguments.tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
        )
        end = tokenizer.eos_token_id
        rows = output[:, batch["input_ids"].shape[1] :].tolist()
        return sum(row.index(end) + 1 if end in row else len(row) for row in rows)

    here = psutil.Process()
    engines = [psutil.Process(sampler.process.pid)] if isinstance(sampler, VLLMSampler) else []
    timed: dict[str, Callable[[int], Speed]] = {"accord": lambda seed: speed(accord, seed, [here, *engines])}
    if alone is not None:
        vllm_alone = alone
        timed["vLLM alone"] = lambda seed: vllm_alone.speed(prompts, arguments.tokens)
    if not arguments.without_generate:
        timed["generate"] = lambda seed: speed(generate, seed, [here])
    for measure in timed.values():
        measure(0)  # the first call of each prepares what later ones reuse
    rounds: list[dict[str, Speed]] = []
    for number in range(arguments.rounds):
        names = list(timed)[:: -1 if number % 2 else 1]
        rounds.append({name: timed[name](1000 * (number + 1)) for name in names})
        figures = ", ".join(f"{name} {rounds[-1][name].tokens_per_second:.0f}" for name in timed)
        print(f"round {number + 1}, tokens/s: {figures}", flush=True)
    started = time.perf_counter()
    sampler.sync(model)
    sync_seconds = time.perf_counter() - started
    sampler.close()
    if alone is not None:
        alone.close()

    peers = {
        "vLLM alone": ("vLLM's LLM.generate", VLLM_GOAL),
        "generate": ("transformers generate", GENERATE_GOAL),
    }
    claims = []
    for name, (peer, goal) in peers.items():
        if name not in timed:
            continue
        found = mean_ratio([r["accord"].tokens_per_second / r[name].tokens_per_second for r in rounds])
        of_processor = mean_ratio(
            [r["accord"].tokens_per_processor_second / r[name].tokens_per_processor_second for r in rounds]
        )
        claims.append(
            {
                "claim": "tokens sampled in a second", "peer": peer, **found, "goal": goal,
                "ok": found["ratio"] >= goal,
                "processor_ratio": of_processor["ratio"],
                "peer_tokens_per_second": mean_speed(rounds, name),
            }
        )  # fmt: skip
    first, *others = claims
    print_result(
        **first | {"ok": all(claim["ok"] for claim in claims)},
        rounds=len(rounds),
        engine=type(sampler).__name__,
        preloaded=[Path(library).name for library in libraries()],
        dtype=arguments.dtype,
        tokens_per_second=mean_speed(rounds, "accord"),
        start_seconds=round(start_seconds, 1),
        sync_seconds=round(sync_seconds, 1),
        further_claims=others,
    )


def speed(sample: Callable[[int], int], seed: int, processes: list[psutil.Process]) -> Speed:
    """Time one sampling that returns how many tokens it sampled, and what these processes spent on it."""
    spent = [sum(process.cpu_times()[:2]) for process in processes]
    started = time.perf_counter()
    tokens = sample(seed)
    seconds = time.perf_counter() - started
    processor = sum(sum(process.cpu_times()[:2]) for process in processes) - sum(spent)
    return Speed(tokens / seconds, tokens / processor)


def mean_speed(rounds: list[dict[str, Speed]], name: str) -> float:
    return round(statistics.fmean(speeds[name].tokens_per_second for speeds in rounds), 1)


class VLLMAlone:
    """vLLM's own `LLM.generate` in a process with the environment that accord's engine has."""

    def __init__(self, folder: Path, config: SamplingConfig, log: Path) -> None:
        options: dict[str, Any] = {
            "model": str(folder), "dtype": config.dtype, "max_model_len": config.max_sequence_tokens,
            "max_num_seqs": config.answers_at_once, "generation_config": "vllm",
        }  # fmt: skip
        if torch.cuda.is_available():
            environment = engine_environment()
            options["gpu_memory_utilization"] = config.gpu_memory_fraction
        else:
            environment = cpu_engine_environment()
            options |= {"kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30), "enforce_eager": True}
        self.connection, end = Pipe()
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--vllm-alone", str(end.fileno())],
                stdout=output, stderr=output, env=environment, pass_fds=[end.fileno()],
            )  # fmt: skip
        end.close()
        self.connection.send(options)

    def speed(self, prompts: list[list[int]], tokens: int) -> Speed:
        self.connection.send((prompts, tokens))
        found = self.connection.recv()
        assert isinstance(found, Speed)
        return found

    def close(self) -> None:
        self.connection.close()
        self.process.wait()


def serve_vllm_alone(connection: Connection) -> None:
    """The other end: answers `(prompts, tokens)` with a `Speed` until the benchmark hangs up."""
    from vllm import LLM, SamplingParams

    llm = LLM(**connection.recv())
    while True:
        try:
            prompts, tokens = connection.recv()
        except EOFError:
            os._exit(0)
        inputs: list[Any] = [{"prompt_token_ids": prompt} for prompt in prompts]
        parameters = SamplingParams(temperature=1.0, max_tokens=tokens)
        llm.reset_prefix_cache()  # it would know the prompts from the round before

        def sample(_: int, inputs: list[Any] = inputs, parameters: SamplingParams = parameters) -> int:
            outputs = llm.generate(inputs, parameters, use_tqdm=False)
            return sum(len(output.outputs[0].token_ids) for output in outputs)

        connection.send(speed(sample, 0, [psutil.Process()]))


if __name__ == "__main__":
    main()
