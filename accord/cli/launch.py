"""`accord launch CONFIG`: what starts a round on a cluster, and what it will take of each device."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accord.cli.shared import AS_JSON, CONFIG, OVERRIDES, runs_of_command
from accord.errors import UsageError
from accord.terminal import say

if TYPE_CHECKING:
    from accord.compute.planning import Memory, Work
    from accord.round_config import RoundConfig


@click.command(short_help="Print what starts a round on a cluster, or its memory.")
@CONFIG
@OVERRIDES
@click.option(
    "--print", "what", type=click.Choice(["slurm", "skypilot"]),
    help="A batch script for sbatch, or a task for sky jobs launch.",
)  # fmt: skip
@click.option("--plan", is_flag=True, help="The memory of each training stage on each device, on paper.")
@AS_JSON
def launch(config: Path, overrides: tuple[str, ...], what: str | None, plan: bool, as_json: bool) -> None:
    """Print what starts a round on a cluster, or the memory that it takes; nothing is started.

    A round on this machine needs neither: `accord round CONFIG compute.devices=8`.
    """
    from accord.compute.scripts import skypilot_task, slurm_script
    from accord.config import load_config
    from accord.round_config import RoundConfig

    if plan == (what is not None):
        raise UsageError("say one of --print slurm, --print skypilot and --plan")
    # a script gives the address itself
    machines = ("compute.rendezvous=first:1",) if what else ()
    settings = load_config(config, RoundConfig, (*overrides, *machines))
    if what == "slurm":
        say(slurm_script(settings.compute, config, overrides, runs_of_command().root), nl=False)
    elif what == "skypilot":
        say(skypilot_task(settings.compute, config, overrides), nl=False)
    else:
        _show_plan(settings, as_json)


def _show_plan(config: "RoundConfig", as_json: bool) -> None:
    from accord.compute.planning import Devices, ModelShape, estimate
    from accord.models.references import locate

    compute = config.compute
    devices = Devices(compute.processes, compute.sharding, compute.offload)
    shape = ModelShape.of(locate(config.model, runs_of_command()).folder)
    found = {name: estimate(shape, work, devices) for name, work in works_of(config).items()}
    if as_json:
        rows = {name: {**vars(memory), "total": memory.total} for name, memory in found.items()}
        say(json.dumps({"parameters": shape.parameters, "stages": rows}, indent=2))
        return
    say(
        f"{config.model}: {shape.parameters / 1e9:.2f} billion weights, on {compute.processes} "
        f"{'devices' if compute.processes > 1 else 'device'}, sharding: {compute.sharding}"
    )
    say("GiB on each device; what torch and the allocator take comes on top (docs/scale.md)\n")
    head = ("stage", "weights", "gradients", "optimiser", "gathered", "activations", "peak", "sent")
    say(f"{head[0]:<10}" + "".join(f"{word:>12}" for word in head[1:]))
    for name, memory in found.items():
        say(f"{name:<10}" + "".join(f"{number / 2**30:>12.2f}" for number in _columns(memory)))


def _columns(memory: "Memory") -> tuple[int, ...]:
    return (
        memory.weights, memory.gradients, memory.optimiser, memory.gathered, memory.activations, memory.total,
        memory.sent,
    )  # fmt: skip


def works_of(config: "RoundConfig") -> "dict[str, Work]":
    """What each training stage of a round computes.

    Raises:
        UsageError: there is none, or an algorithm of the user's own, of which nothing is known.
    """
    from accord.compute.planning import Work
    from rl.config import PPOConfig

    found: dict[str, Work] = {}
    for name in ("sft", "reward", "rl"):
        section: Any = getattr(config, name)
        if section is None:
            continue
        stage = section.algorithm if name == "rl" else name
        kind: Any = "online" if stage in ("rloo", "grpo") else stage
        if kind not in ("sft", "reward", "dpo", "kto", "online", "best_of_n", "ppo"):
            raise UsageError(f"rl.algorithm: {stage} is your own, and its memory is not known here")
        lora = section.lora
        common: dict[str, Any] = {
            "lora_rank": lora.rank if lora else None,
            "top_layers": lora.top_layers if lora else None,
            "four_bit": bool(lora and lora.quantize_base),
            "bfloat16": section.precision != "float32",
            "adamw_8bit": section.optimizer == "adamw_8bit",
        }
        if isinstance(section, PPOConfig):
            tokens = section.prompts_per_update * section.max_sequence_tokens
            share = -(-tokens // config.compute.processes // section.minibatches_per_epoch)
            found[stage] = Work(
                kind, **common, shared_base=section.shared_base, checkpointing=section.gradient_checkpointing,
                tokens_per_pass=section.tokens_per_pass, passes=max(1, share // section.tokens_per_pass),
                steps=section.epochs_per_update * section.minibatches_per_epoch,
            )  # fmt: skip
            continue
        processes = config.compute.processes
        sequences = 2 if kind in ("dpo", "reward") else 1  # a pair, or at least two answers
        found[stage] = Work(
            kind, **common, checkpointing=bool(section.trainer.get("gradient_checkpointing")),
            tokens_per_pass=section.rows_at_a_time(processes) * sequences * section.max_sequence_tokens,
            passes=section.passes_per_update(processes),
        )  # fmt: skip
    if not found:
        raise UsageError("this configuration has no section of a training stage; add sft, reward or rl")
    return found
