"""What only a machine with GPUs can prove, in about ten minutes: `make gpu-check`.

    .venv/bin/python tests/gpu_check.py [CHECK]...

Each check runs in a process of its own and ends as ok, as different (the exit code is then 1), or as skipped, with a
sentence about what it lacks. Without a GPU all are skipped.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECONDS = 300
"""For each check."""
STEPS, SEED, LENGTH = 3, 0, 64
QUESTIONS = ["What is the capital of France?", "Why is the sky blue?", "How do I keep bread fresh?"]


def gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def bundled() -> tuple[Any, Any]:
    """The model that accord brings along, and its tokenizer."""
    from accord.bundled import MODEL
    from accord.models.loading import load_tokenizer
    from accord.models.references import resolve
    from accord.runs import Runs

    model = resolve(MODEL, Runs(tempfile.mkdtemp()))
    return model, load_tokenizer(model)


def answers_of(tokenizer: Any) -> list[list[int]]:
    return [tokenizer.encode(f"{question} A short answer is: {question}") for question in QUESTIONS]


def log_probabilities(model: Any, rows: list[list[int]]) -> Any:
    """Of every token but the first, all rows behind one another, in float32 on the CPU."""
    import torch

    found = []
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row], device=model.device)
            logits = model(input_ids=ids).logits[0, :-1].float()
            found.append(torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None]).squeeze(1).cpu())
    return torch.cat(found)


def check_precision() -> str:
    """The trainer's model on the GPU, in float32 and in bfloat16, against the CPU."""
    import torch

    from accord.models.loading import load_policy

    model, tokenizer = bundled()
    rows = answers_of(tokenizer)
    right = log_probabilities(load_policy(model), rows)
    found = {}
    for dtype, bound in ((torch.float32, 1e-2), (torch.bfloat16, 0.1)):
        on_gpu: Any = load_policy(model, dtype)
        found[dtype] = (log_probabilities(on_gpu.cuda(), rows) - right).abs().mean().item()
        assert found[dtype] < bound, f"{dtype}: log-probabilities differ by {found[dtype]:.2g} on average"
    return ", ".join(f"{str(dtype).removeprefix('torch.')} {value:.1g}" for dtype, value in found.items())


def check_sampler() -> str:
    """vLLM's log-probabilities are the trainer's: `SharedSampler.use` compares them, and raises."""
    from accord.sampling.config import SamplingConfig
    from accord.sampling.shared import SharedSampler

    model, _ = bundled()
    for dtype in ("float32", "bfloat16"):
        with SharedSampler(SamplingConfig(engine="vllm", dtype=dtype, max_sequence_tokens=512)) as shared:
            shared.use(model)
    return "float32 and bfloat16 within their bounds"


def check_transfer() -> str:
    """Weights that change reach vLLM, and are noticed if they do not."""
    import torch

    from accord.chat.tokens import encode_prompt
    from accord.models.loading import load_policy
    from accord.records import Message
    from accord.sampling.config import SamplingConfig
    from accord.sampling.shared import SharedSampler
    from accord.sampling.verify import verify

    model, tokenizer = bundled()
    policy: Any = load_policy(model)
    prompts = [encode_prompt(tokenizer, [Message(role="user", content=each)]) for each in QUESTIONS]
    with SharedSampler(SamplingConfig(engine="vllm", max_sequence_tokens=512)) as shared:
        sampler = shared.use(model)
        torch.manual_seed(SEED)
        with torch.no_grad():
            for weight in policy.parameters():
                weight += 0.02 * weight.std() * torch.randn_like(weight)
        started = time.monotonic()
        sampler.sync(policy)
        seconds = time.monotonic() - started
        report = verify(sampler, policy, prompts, shared.bound)
    return f"{seconds:.1f} s, log-probabilities within {report.max_difference:.1g}"


def check_sleep() -> str:
    """vLLM's sleep mode gives memory back, and afterwards it answers as before."""
    import torch
    from vllm import LLM, SamplingParams

    model, _ = bundled()
    engine = LLM(
        str(model.folder),
        enable_sleep_mode=True,
        gpu_memory_utilization=0.4,
        max_model_len=512,
        enforce_eager=True,
    )
    greedy = SamplingParams(temperature=0, max_tokens=32)

    def answers() -> list[list[int]]:
        return [list(each.outputs[0].token_ids) for each in engine.generate(QUESTIONS, greedy)]

    before, used = answers(), torch.cuda.mem_get_info()[0]
    engine.sleep(level=1)
    freed = (torch.cuda.mem_get_info()[0] - used) / 2**30
    engine.wake_up()
    assert freed > 0.1 * torch.cuda.get_device_properties(0).total_memory / 2**30, (
        f"only {freed:.1f} GiB came back"
    )
    assert answers() == before, "answers after waking up are others"
    return f"{freed:.1f} GiB given back, the same answers"


def small_model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, vocab_size=512
        )
    )


def train(
    model: Any, rows: Any, total: int, everywhere: Callable[[Any], Any], norm_of: Callable[[], Any]
) -> Any:
    """Losses and gradient norms of a few steps on this process's rows; a loss is a mean over the rows of all."""
    import torch

    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found = []
    for _ in range(STEPS):
        loss = model(input_ids=rows, labels=rows).loss * len(rows) / total
        loss.backward()
        found += [float(everywhere(loss.detach())), float(norm_of())]
        optimiser.step()
        optimiser.zero_grad()
    return found


def shard_and_compare() -> None:
    """One of several processes: fsdp2 gives what one device gives. Gloo on CPU, for the test of this very check."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    kind = "cuda" if gpus() else "cpu"
    device = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    rows = torch.randint(512, (2 * count, LENGTH), generator=torch.Generator().manual_seed(SEED)).to(device)

    def norm(model: Any) -> Callable[[], Any]:
        def of_all() -> Any:
            found: Any = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
            return found.full_tensor() if hasattr(found, "full_tensor") else found

        return of_all

    def summed(value: Any) -> Any:
        dist.all_reduce(value)
        return value

    alone = small_model().to(device)
    right = train(alone, rows, len(rows), lambda value: value, norm(alone))
    sharded = small_model().to(device)
    mesh = init_device_mesh(kind, (count,))
    for module in (*sharded.model.layers, sharded):
        fully_shard(module, mesh=mesh)
        module.set_gradient_divide_factor(1.0)
        if kind == "cpu":
            module.set_force_sum_reduction_for_comms(True)
    mine = rows[2 * rank : 2 * rank + 2]
    found = train(sharded, mine, len(rows), summed, norm(sharded))
    largest = max(abs(a - b) / abs(a) for a, b in zip(right, found, strict=True))
    if rank == 0:
        print(f"{count} devices, losses and gradient norms within {largest:.1g}")
    dist.destroy_process_group()
    assert largest < 1e-3, f"{right} became {found}"


def check_fsdp2() -> str:
    """A model in shards over all devices learns as a whole one."""
    return run(
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(gpus()),
        __file__,
        "--as-one-of-many",
    )


def check_round() -> str:
    """A tiny round with PPO over all devices comes to a verdict."""
    several = [f"compute.devices={gpus()}", "compute.sharding=fsdp2"] if gpus() > 1 else []
    # as many rows as there are devices
    rows = [f"{key}={4 * gpus()}" for key in ("sft.rows_per_update", "reward.rows_per_update")]
    with tempfile.TemporaryDirectory() as runs:
        command = [
            sys.executable, "-m", "accord", "--runs", runs, "round", str(ROOT / "configs/tiny-ppo.yaml"), *several,
            *rows, f"rl.prompts_per_update={4 * gpus()}", "feedback.max_prompts=40",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 10, 11), done.stderr.strip()[-500:]
    return f"verdict with exit code {done.returncode}"


CHECKS: dict[str, tuple[Callable[[], str], int, bool]] = {
    "precision": (check_precision, 1, False),
    "sampler": (check_sampler, 1, True),
    "weight transfer": (check_transfer, 1, True),
    "sleep mode": (check_sleep, 1, True),
    "fsdp2": (check_fsdp2, 2, False),
    "round": (check_round, 1, False),
}
"""What is called, how many GPUs it needs, and whether it needs vLLM."""


def run(*arguments: str) -> str:
    """The last line that a Python program prints.

    Raises:
        AssertionError: it failed; with its last lines.
    """
    try:
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise AssertionError(f"not done after {SECONDS} s") from None
    assert done.returncode == 0, " / ".join(done.stderr.strip().splitlines()[-3:])
    return done.stdout.strip().splitlines()[-1]


def lacks(devices: int, with_vllm: bool) -> str | None:
    """What a check needs and this machine does not have."""
    there = gpus()
    if there < devices:
        return "no GPU here" if there == 0 else f"needs {devices} GPUs, and there is {there}"
    if with_vllm and importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed; run `make setup`"
    return None


def main() -> int:
    """Run the checks, and say what came of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(CHECKS)}; default: all")
    parser.add_argument("--here", action="store_true", help="run one check in this process")
    parser.add_argument("--as-one-of-many", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.as_one_of_many:
        shard_and_compare()
        return 0
    if chosen.here:
        print(CHECKS[chosen.checks[0]][0]())
        return 0
    differ = []
    for name in chosen.checks or CHECKS:
        _, devices, with_vllm = CHECKS[name]
        if lacking := lacks(devices, with_vllm):
            print(f"{name:<16} skipped    {lacking}", flush=True)
            continue
        started = time.monotonic()
        try:
            state, said = "ok", run(__file__, "--here", name)
        except AssertionError as error:
            state, said = "DIFFERENT", str(error)
            differ.append(name)
        print(f"{name:<16} {state:<10} {said} ({time.monotonic() - started:.0f} s)", flush=True)
    if not gpus():
        print("\nno GPU here: nothing was checked; run this where there is one")
    elif differ:
        print(f"\ndifferent: {', '.join(differ)}", file=sys.stderr)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
