"""Claim: accord finds near duplicates in no more processor time than rensa's or datasketch's LSH index alone.

    pip install datasketch==2.0.0                    # in this environment, or where PYTHONPATH points to
    python benchmarks/near_duplicates.py [RUNS] [--rows 500000] [--smoke]

Rows are random words with Zipf's frequencies, 150 of them on average (about 200 tokens), in a file that each program
reads line by line, in a process of its own and in turns. In every tenth row an earlier one is planted with so many of
its words changed that the Jaccard similarity of their sets of 5-word sequences is just above 0.8; in every twentieth it
is about 0.65, which is not near. A program says of every row whether it is near an earlier one that stays: accord
(`NearTexts`, which measures candidates exactly and says to what), and, with accord's sequences, 126 hashes and 21 bands
of 6 each, rensa's RMinHashLSH, its RMinHashDeduplicator, which compares signatures, too, and datasketch's MinHashLSH.
Theirs is the index alone: they say near where there is a candidate.

Recall is over the rows that were planted near, precision over those that a program names. Memory is the largest that a
process had, over what it had before the first row. The last line is one JSON object; `ratio` is the processor time of
rensa's RMinHashLSH over accord's, and those of the others are in `further_claims`.
"""

import argparse
import importlib.util
import itertools
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from helpers.result import mean_ratio, print_result

from accord.data.quality.near import NearTexts, shingles
from accord.data.quality.signatures import BANDS, HASHES

GOAL, LEAST = 1.0, 0.95
WORDS = 50_000
HASHES_IN_ALL = BANDS * HASHES


def make(path: Path, rows: int, seed: int) -> tuple[set[int], set[int]]:
    """Write the rows; returns the numbers of those that are near an earlier one, and of those that only look so."""
    chance = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(WORDS)]
    cumulative = list(itertools.accumulate(1 / (rank + 20) for rank in range(WORDS)))
    pool: list[list[str]] = []
    near, far = set(), set()
    with path.open("w") as file:
        for number in range(rows):
            if number % 10 == 9 or number % 20 == 4:
                is_near = number % 10 == 9
                words = list(chance.choice(pool))
                changed = (len(words) - 4) // (9 if is_near else 5) - 4
                start = chance.randrange(4, len(words) - 4 - changed)
                words[start : start + changed] = [f"x{number}x{i}" for i in range(changed)]
                (near if is_near else far).add(number)
            else:
                words = chance.choices(vocabulary, cum_weights=cumulative, k=chance.randint(90, 210))
                if len(pool) < 20_000:
                    pool.append(words)
                else:
                    pool[chance.randrange(len(pool))] = words
            file.write(json.dumps(" ".join(words)) + "\n")
    return near, far


def texts_of(path: Path) -> Iterator[str]:
    with path.open() as file:
        yield from map(json.loads, file)


def with_accord(texts: Iterable[str]) -> list[int]:
    found = NearTexts().nearest(texts, notes=lambda number: f"rows.jsonl:{number + 1}")
    return [number for number, near in enumerate(found) if near]


def with_rensa(texts: Iterable[str]) -> list[int]:
    from rensa import RMinHash, RMinHashLSH

    index, found = RMinHashLSH(threshold=0.8, num_perm=HASHES_IN_ALL, num_bands=BANDS), []
    for number, text in enumerate(texts):
        signature = RMinHash(num_perm=HASHES_IN_ALL, seed=1)
        signature.update(list(shingles(text)))
        if index.query(signature):
            found.append(number)
        else:
            index.insert(number, signature)
    return found


def with_rensa_deduplicator(texts: Iterable[str]) -> list[int]:
    from rensa import RMinHash, RMinHashDeduplicator

    index, found = RMinHashDeduplicator(0.8, HASHES_IN_ALL, True, BANDS, 1), []
    for number, text in enumerate(texts):
        signature = RMinHash(num_perm=HASHES_IN_ALL, seed=1)
        signature.update(list(shingles(text)))
        if not index.add(str(number), signature):
            found.append(number)
    return found


def with_datasketch(texts: Iterable[str]) -> list[int]:
    from datasketch import MinHash, MinHashLSH

    index, found = MinHashLSH(num_perm=HASHES_IN_ALL, params=(BANDS, HASHES)), []
    for number, text in enumerate(texts):
        signature = MinHash(num_perm=HASHES_IN_ALL)
        signature.update_batch([each.encode() for each in shingles(text)])
        if index.query(signature):
            found.append(number)
        else:
            index.insert(number, signature)
    return found


SIDES = {
    "accord": with_accord, "rensa": with_rensa, "rensa_deduplicator": with_rensa_deduplicator,
    "datasketch": with_datasketch,
}  # fmt: skip


def one_side(side: str, path: Path) -> None:
    """Print what one program found, in which processor time and memory; a process of its own does nothing else."""
    work = SIDES[side]
    work(["Words that load all that it takes, so that it is not counted below."])
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = work(texts_of(path))
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {"found": found, "seconds": seconds, "mib": (peak - before) / 1024, "peak_mib": peak / 1024}
        )
    )


def measure(side: str, path: Path) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__)), "--side", side, "--file", str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="?", type=int, default=3)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--smoke", action="store_true", help="2,000 rows, once: whether it works at all")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        one_side(options.side, options.file)
        sys.exit()
    rows, runs = (2000, 1) if options.smoke else (options.rows, options.runs)
    sides = [side for side in SIDES if side != "datasketch" or importlib.util.find_spec("datasketch")]
    if "datasketch" not in sides:
        print("datasketch is not installed, and left out")
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        for seed in range(runs):
            near, _ = make(path, rows, seed)
            for side in sides if seed % 2 == 0 else reversed(sides):
                result = measure(side, path)
                found = set(result.pop("found"))
                result["recall"] = len(found & near) / len(near)
                result["precision"] = len(found & near) / len(found)
                results[side].append(result)
                print(seed, side, {name: round(value, 3) for name, value in result.items()}, flush=True)

    ratios = {
        side: mean_ratio(
            [b["seconds"] / a["seconds"] for a, b in zip(results["accord"], results[side], strict=True)]
        )
        for side in sides
        if side != "accord"
    }
    figures = {
        f"{side}_{name}": round(sum(each[name] for each in results[side]) / runs, 4)
        for side in sides
        for name in ("seconds", "mib", "peak_mib", "recall", "precision")
    }
    state = figures["accord_mib"] * 2**20 / rows
    ours = results["accord"]
    finds = all(each["recall"] >= LEAST and each["precision"] >= LEAST for each in ours)
    main_ratio = ratios.pop("rensa")
    print_result(
        "near duplicates are found in no more processor time than the LSH index alone takes, and measured exactly",
        "rensa's RMinHashLSH",
        **main_ratio,
        goal=GOAL,
        ok=main_ratio["low"] >= GOAL and finds,
        rows=rows,
        accord_bytes_a_row=round(state),
        **figures,
        further_claims=[
            {"claim": "the same", "peer": peer, **ratio, "goal": GOAL, "ok": ratio["low"] >= GOAL}
            for peer, ratio in ratios.items()
        ],
    )


if __name__ == "__main__":
    main()
