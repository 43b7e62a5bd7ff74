"""Claim: accord samples answers faster than transformers' `generate`, which is what rollouts fall back on elsewhere.

    python benchmarks/rollout.py                     # a few minutes on two cores
    python benchmarks/rollout.py --dtype bfloat16 --pairs 6

Both sample the same prompts with the bundled model in the same dtype, at temperature 1 from the full distribution,
and stop at EOS; the figure is tokens sampled in a second. The peer is plain `generate` at its fastest: one batch, left
padded, sdpa attention, and it returns no log-probabilities, which accord does; it runs in this process as Python
started it, while accord's engine preloads libraries. The two take turns, so that a busy
machine slows both. The last line printed is one JSON object.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from ratio import mean_ratio
from transformers import AutoModelForCausalLM, AutoTokenizer

from accord import bundled
from accord.chat import encode_prompt
from accord.preload import libraries
from accord.records import Message
from accord.sampling import SamplingConfig
from accord.sampling.transformers_sampler import TransformersSampler
from accord.sampling.vllm_engine import VLLMSampler, vllm_is_installed

GOAL = {"float32": 1.2, "bfloat16": 1.2}


def main() -> None:
    """Run the pairs and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--pairs", type=int, default=3, help="how often each of the two samples all prompts")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64, help="the longest answer")
    arguments = parser.parse_args()

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
    if vllm_is_installed():
        sampler = VLLMSampler(
            folder, tokenizer.eos_token_id, config, Path(tempfile.gettempdir()) / "accord-vllm.log"
        )
    else:
        sampler = TransformersSampler(folder, tokenizer.eos_token_id, config)
    start_seconds = time.perf_counter() - started
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, arguments.dtype)).eval()

    def ours(seed: int) -> float:
        started = time.perf_counter()
        answers = sampler.sample(prompts, range(seed, seed + len(prompts)), arguments.tokens)
        return sum(len(answer.token_ids) for answer in answers) / (time.perf_counter() - started)

    def peer(seed: int) -> float:
        torch.manual_seed(seed)
        started = time.perf_counter()
        batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        output = model.generate(
            **batch, max_new_tokens=arguments.tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
        )
        seconds = time.perf_counter() - started
        width = batch["input_ids"].shape[1]
        tokens = 0
        for row in output[:, width:].tolist():
            end = tokenizer.eos_token_id
            tokens += row.index(end) + 1 if end in row else len(row)
        return tokens / seconds

    ours(0)  # the first call of each prepares what later ones reuse
    pairs = []
    for pair in range(arguments.pairs):
        pairs.append((ours(1000 * pair), peer(pair)))
        print(
            f"pair {pair + 1}: accord {pairs[-1][0]:.0f} tokens/s, generate {pairs[-1][1]:.0f} tokens/s",
            flush=True,
        )
    started = time.perf_counter()
    sampler.sync(model)
    sync_seconds = time.perf_counter() - started
    sampler.close()

    found = mean_ratio([ours / peer for ours, peer in pairs])
    goal = GOAL[arguments.dtype]
    result = {
        "claim": "tokens sampled in a second",
        "peer": "transformers generate",
        **found,
        "goal": goal,
        "ok": found["ratio"] >= goal,
        "engine": type(sampler).__name__,
        "preloaded": [Path(library).name for library in libraries()],
        "dtype": arguments.dtype,
        "tokens_per_second": round(statistics.fmean(ours for ours, _ in pairs), 1),
        "peer_tokens_per_second": round(statistics.fmean(peer for _, peer in pairs), 1),
        "start_seconds": round(start_seconds, 1),
        "sync_seconds": round(sync_seconds, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
