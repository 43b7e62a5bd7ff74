"""Stages that are killed at random moments and continued by the same command: nothing of it shows in what they leave.

    .venv/bin/python tests/random_kills.py [STAGE]... [--kills N]    SIGKILL of a stage's processes, some 20 minutes
    .venv/bin/python tests/random_kills.py --workers [STAGE]...      SIGKILL of one of a stage's two processes
    .venv/bin/python tests/random_kills.py --processes [STAGE]...    killed in 2 processes, in 4, and ended by one

Each stage runs once undisturbed. Then, without that run, its command is started again, killed at a moment that is drawn
over the time that the work took, and given once more. All files of the run are compared byte for byte but for what a
clock put there. A table is printed, and the exit code is 1 if anything differs; the last line is JSON.
"""

import argparse
import functools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from training_helpers import worker_of
from undisturbed import (
    SECONDS,
    STAGES,
    Undisturbed,
    differing,
    ended,
    free_port,
    kill,
    largest_difference,
    make_material,
    start,
    wait_for,
)  # fmt: skip


def kill_at_random(runs: Undisturbed, name: str, draw: random.Random) -> Iterator[dict[str, Any]]:
    """Kill the stage at one moment after the other, continue it, and say what differs."""
    longest = runs.seconds[name]
    while True:
        runs.forget(name)
        process = start(runs.command(name), runs.root)
        wait_for(functools.partial(runs.has_begun, name), process)
        moment = draw.uniform(0, longest)
        process.join(moment)
        if process.exitcode is not None:  # faster than undisturbed
            longest = moment
            continue
        kill(process)
        at = {"seconds": round(moment, 2), "part": round(moment / longest, 2), "step": runs.last_step(name)}
        record = runs.record(name)
        runs.check(name, ended(start(runs.command(name), runs.root)))
        if record["status"] != "done":
            assert len(runs.record(name)["continued_at"]) == 1
        yield {**at, "status": record["status"], "differ": differing(runs.runs[name], runs.kept(name))}


def in_processes(runs: Undisturbed, name: str, count: int, kill_at: int | None = None) -> None:
    """The stage in several processes, as a launcher starts them; all are killed after a step, if there is one."""
    port = free_port()
    started = []
    for rank in range(count):
        environment = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        started.append(start(runs.command(name), runs.root, environment))
    if kill_at is None:
        for process in started:
            runs.check(name, ended(process))
        return
    assert wait_for(lambda: (runs.last_step(name) or 0) >= kill_at, started[0]), "it ended before"
    for process in started:
        kill(process)


def lose_a_worker(runs: Undisturbed, name: str, draw: random.Random) -> Iterator[dict[str, Any]]:
    """Kill one of the stage's two processes at one moment after the other, let the command go on, and compare."""
    runs.forget(name)
    in_processes(runs, name, 2)
    two = runs.folder / "two" / name
    shutil.copytree(runs.runs[name], two)
    steps = runs.last_step(name) or 0
    while True:
        runs.forget(name)
        rank, step = draw.randrange(2), draw.randrange(1, steps)
        command = [
            sys.executable, "-m", "accord", "--runs", str(runs.root), *runs.command(name), "compute.devices=2",
        ]  # fmt: skip
        with Path(f"{runs.root}.txt").open("ab") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        while process.poll() is None and (runs.last_step(name) or 0) < step:
            time.sleep(0.001)
        worker = worker_of(process.pid, rank)
        if worker is None:
            process.wait()
            continue
        worker.kill()
        at = {"process": rank, "step": runs.last_step(name)}
        runs.check(name, process.wait(SECONDS))
        restarts = len(runs.record(name)["continued_at"])
        if restarts:
            yield {**at, "restarts": restarts, "differ": differing(runs.runs[name], two)}


TOLERANCE = 1e-5
"""Of weights, where another number of processes sums in another order."""


def change_processes(runs: Undisturbed, name: str, draw: random.Random) -> Iterator[dict[str, Any]]:
    """Kill the stage in 2 processes, then in 4, end it in one, and compare with one that did it all."""
    steps = json.loads((runs.kept(name) / "metrics.json").read_text())["updates"]
    while True:
        runs.forget(name)
        first = draw.randrange(2, steps // 2)
        second = draw.randrange(steps // 2 + 1, steps)
        in_processes(runs, name, 2, first)
        in_processes(runs, name, 4, second)
        in_processes(runs, name, 1)
        assert len(runs.record(name)["continued_at"]) == 2
        found = largest_difference(runs.runs[name], runs.kept(name))
        differ = [f"weights by {found:.1e}"] if found > TOLERANCE else []
        yield {"steps": [first, second], "largest_difference": found, "differ": differ}


# --- the tables

DIFFERENT = "different"
"""Below the folder of all, for runs that differ."""


def in_words(kill: dict[str, Any]) -> str:
    """Where it hit."""
    if "steps" in kill:
        return f"2 processes to step {kill['steps'][0]}, 4 to {kill['steps'][1]}: {kill['largest_difference']:.0e}"
    step = "" if kill["step"] is None else f"step {kill['step']}"
    if "process" in kill:
        return f"process {kill['process']} at {step}"
    return " ".join(filter(None, [f"{kill['part']:.0%}", step and f"({step})"]))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--kills", type=int, help="of each stage")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workers", action="store_true", help="lose one of two processes")
    parser.add_argument("--processes", action="store_true", help="change their number")
    asked = parser.parse_args()
    if unknown := set(asked.stages) - STAGES.keys():
        parser.error(f"no stage is called {', '.join(sorted(unknown))}")
    way, names = kill_at_random, list(STAGES)
    if asked.workers:
        way, names = lose_a_worker, ["sft", "reward", "dpo", "kto", "ppo", "rloo", "grpo", "best_of_n"]
    if asked.processes:
        way, names = change_processes, ["reward", "dpo"]
    names = [name for name in STAGES if name in (asked.stages or names)]
    os.environ |= {
        "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(
            None, [str(Path(__file__).parents[1]), str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
        )
    )
    folder = Path(tempfile.mkdtemp(prefix="random-kills-"))
    found = run(folder, way, names, asked.kills, asked.seed)
    kills = [kill for of_stage in found.values() for kill in of_stage]
    different = sum(bool(kill["differ"]) for kill in kills)
    print(f"{len(kills)} kills of {len(found)} stages, {different} of which changed a file")
    if different:
        print(f"beside the undisturbed runs, those that differ are in {folder / DIFFERENT}")
    else:
        shutil.rmtree(folder)
    print(json.dumps({"kills": len(kills), "different": different, "stages": found}))
    raise SystemExit(different > 0)


def run(
    folder: Path,
    way: Callable[..., Iterator[dict[str, Any]]],
    names: Sequence[str],
    kills: int | None,
    seed: int,
) -> dict[str, list[dict[str, Any]]]:
    """All kills of the stages, of which a table is printed."""
    os.environ["ACCORD_KEY"] = str(folder / "key")
    make_material(folder)
    runs = Undisturbed(folder, names)
    found: dict[str, list[dict[str, Any]]] = {}
    print(f"{'stage':<10} {'kills':>5}  {'result':<10} moments")
    for name in names:
        number = kills or (STAGES[name].kills if way is kill_at_random else 1)
        disturbed = way(runs, name, random.Random(f"{seed} {name}"))
        found[name] = []
        for _ in range(number):
            found[name].append(next(disturbed))
            if found[name][-1]["differ"]:
                shutil.copytree(runs.runs[name], folder / DIFFERENT / f"{name} {len(found[name])}")
        differ = sorted({file for kill in found[name] for file in kill["differ"]})
        print(
            f"{name:<10} {number:>5}  {', '.join(differ) or 'same':<10} {', '.join(map(in_words, found[name]))}",
            flush=True,
        )
        runs.restore(name)
    return found


if __name__ == "__main__":
    main()
