"""Does a training step gain from preloading tcmalloc and Intel OpenMP (accord.preload)? Against the same step without.

    python benchmarks/preload.py [PAIRS]

Both run in processes of their own, in turn, on the same work: forward and backward of the bundled model with LoRA in
bfloat16, 8 x 96 tokens. The last line is one JSON object; `ratio` is seconds without over seconds with.
"""

import argparse
import os
import statistics
import subprocess
import sys

from helpers.result import print_result

from accord.preload import ALREADY, libraries

GOAL = 1.05
STEP = """
import time, torch
from pathlib import Path
from accord import bundled, models
from accord.config import LoraConfig
from accord.runs import Runs
import peft
base = models.resolve(bundled.MODEL, Runs(Path("runs")))
model = models.load_policy(base, torch.bfloat16)
model = peft.get_peft_model(model, models.peft_config(base, LoraConfig(), "CAUSAL_LM"))
ids = torch.randint(5, 40000, (8, 96), generator=torch.Generator().manual_seed(0))
def step():
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
step()
started = time.perf_counter()
for _ in range(3):
    step()
print((time.perf_counter() - started) / 3)
"""


def seconds(preload: bool) -> float:
    environment = {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", ALREADY)}
    if preload:
        environment["LD_PRELOAD"] = ":".join(libraries())
    command = [sys.executable, "-c", STEP]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", nargs="?", type=int, default=3)
    pairs = parser.parse_args().pairs
    if not libraries():
        sys.exit("neither tcmalloc nor Intel OpenMP is here; `make setup` installs what it can")
    measured = []
    for pair in range(pairs):
        without, with_libraries = seconds(False), seconds(True)
        measured.append((without, with_libraries))
        print(f"pair {pair + 1}: {without:.2f} s without, {with_libraries:.2f} s with")
    ratios = sorted(without / with_libraries for without, with_libraries in measured)
    ratio = statistics.median(ratios)
    print_result(
        "a training step is faster with tcmalloc and Intel OpenMP preloaded",
        "the same step with glibc's malloc and GNU OpenMP",
        ratio=round(ratio, 2),
        low=round(ratios[0], 2),
        high=round(ratios[-1], 2),
        goal=GOAL,
        ok=ratio >= GOAL,
        seconds_without=round(statistics.median(m[0] for m in measured), 2),
        seconds_with=round(statistics.median(m[1] for m in measured), 2),
        pairs=pairs,
    )


if __name__ == "__main__":
    main()
