"""Writes the tables of docs/scale.md from the formulas in accord.compute.planning.

.venv/bin/python docs/make_scale.py
"""

import re
from pathlib import Path

from accord.compute.planning import Devices, ModelShape, Work, estimate

PAGE = Path(__file__).parent / "scale.md"
SHAPES = {
    "8B": ModelShape(4096, 32, 32, 4096, 1024, 14336, 128256),  # Llama 3.1
    "32B": ModelShape(5120, 64, 40, 5120, 1024, 27648, 152064, attention_bias=True),  # Qwen 2.5
    "70B": ModelShape(8192, 80, 64, 8192, 1024, 28672, 128256),  # Llama 3.1
}
DEVICES = [("8B", 1), ("8B", 8), ("32B", 8), ("32B", 16), ("70B", 16), ("70B", 64)]
COMMON = {"bfloat16": True, "checkpointing": True, "tokens_per_pass": 4096, "passes": 4}
LORA = {"lora_rank": 16}
WORKS = {
    "SFT, DPO, all weights": Work("sft", **COMMON),
    "SFT, DPO, LoRA": Work("sft", **COMMON, **LORA),
    "reward, all weights": Work("reward", **COMMON),
    "PPO, all weights (four models)": Work("ppo", **COMMON, steps=4),
    "PPO, LoRA (two models)": Work("ppo", **COMMON, **LORA, steps=4),
    "PPO, LoRA, shared base": Work("ppo", **COMMON, **LORA, steps=4, shared_base=True),
}
ROOM = 80e9
"""Bytes of a device."""
LEFT = 0.9
"""The part of it that torch, the allocator and NCCL leave."""


def cell(shape: ModelShape, work: Work, count: int) -> str:
    """GB on each of so many devices, and whether that fits."""
    memory = estimate(shape, work, Devices(count, "fsdp2" if count > 1 else "none"))
    text = f"{memory.total / 1e9:.0f}"
    return f"**{text}**" if memory.total <= LEFT * ROOM else text


def memory_table() -> str:
    """One row a stage, one column a model and number of devices."""
    lines = [
        "| GB on each device | " + " | ".join(f"{model} on {count}" for model, count in DEVICES) + " |",
        "|---|" + "---|" * len(DEVICES),
    ]
    for name, work in WORKS.items():
        cells = [cell(SHAPES[model], work, count) for model, count in DEVICES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parts_table() -> str:
    """What the memory of an 8B model consists of, on 8 devices."""
    lines = [
        "| 8B on 8, GB on each device | weights | gradients | optimiser | gathered | activations | sent in an update |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, work in WORKS.items():
        memory = estimate(SHAPES["8B"], work, Devices(8, "fsdp2"))
        parts = (
            memory.weights, memory.gradients, memory.optimiser, memory.gathered, memory.activations, memory.sent
        )  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(f"{part / 1e9:.1f}" for part in parts) + " |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """The page with the tables as they are now."""
    for name, table in {"memory": memory_table(), "parts": parts_table()}.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        page = place.sub(lambda found, table=table: found[1] + table + found[2], page)  # type: ignore[misc]
    return page


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
