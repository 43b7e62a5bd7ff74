"""Which evaluation items occur in the training rows: time and recall against datasketch's MinHash LSH Ensemble.

    .venv/bin/python benchmarks/contamination.py [RUNS] [--datasketch FOLDER]

LSH Ensemble (Zhu et al. 2016) is the MinHash index for containment: which of many large sets hold most of a small one.
Both sides get the same rows and items, in turn, and time is processor time. Of the items, some stand verbatim in a
longer row, some with one word in eight changed, some with their halves swapped; the others are unrelated. The peer
works on sets of 3-word sequences, with its default of 128 permutations, and only names candidates; accord compares them
too, and says where. Recall is over planted items. The last line is one JSON object; `ratio` is the peer's time over
accord's.
"""

import argparse
import itertools
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.result import mean_ratio, print_result

from accord.data.quality.overlap import TrainingText, find_overlaps, words_of

GOAL = 3.0
ROWS, ITEMS, WORDS = 20_000, 1_000, 30_000
THRESHOLD = 0.5
"""Containment that the peer looks for: a worst-placed change in every eighth word leaves about so much."""

Work = tuple[list[str], list[str], list[str]]
"""Items, what was planted of each ("" for nothing), and training rows."""


def make(seed: int) -> Work:
    """Random words with Zipf's frequencies."""
    chance = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(WORDS)]
    cumulative = list(itertools.accumulate(1 / (rank + 2) for rank in range(WORDS)))

    def sentence(words: int) -> list[str]:
        return chance.choices(vocabulary, cum_weights=cumulative, k=words)

    items = [sentence(chance.randint(12, 100)) for _ in range(ITEMS)]
    rows = [sentence(chance.randint(20, 200)) for _ in range(ROWS)]
    planted = [chance.choice(["verbatim", "edited", "swapped", "", "", ""]) for _ in items]
    chosen = chance.sample(rows, len(items))
    for item, way, row in zip(items, planted, chosen, strict=True):
        copy = list(item)
        if way == "edited":
            for place in chance.sample(range(len(item)), len(item) // 8):
                copy[place] = "another"
        elif way == "swapped":
            copy = copy[len(copy) // 2 :] + copy[: len(copy) // 2]
        if way:
            place = chance.randrange(len(row))
            row[place:place] = copy
    return [" ".join(item) for item in items], planted, [" ".join(row) for row in rows]


def with_accord(items: list[str], rows: list[str]) -> set[int]:
    """The numbers of the items that were found."""
    texts = (TrainingText((row,), "rows", line) for line, row in enumerate(rows, start=1))
    return {i for i, overlap in enumerate(find_overlaps(items, texts)) if overlap}


def with_datasketch(items: list[str], rows: list[str]) -> set[int]:
    """The same, as far as the peer names a candidate."""
    from datasketch import MinHash, MinHashLSHEnsemble

    def sketch(text: str) -> tuple[Any, int]:
        words = words_of(text)
        shingles = {" ".join(words[i : i + 3]).encode() for i in range(len(words) - 2)}
        result = MinHash()
        result.update_batch(shingles)
        return result, len(shingles)

    index = MinHashLSHEnsemble(threshold=THRESHOLD)
    index.index((i, *sketch(row)) for i, row in enumerate(rows))
    return {i for i, item in enumerate(items) if next(iter(index.query(*sketch(item))), None) is not None}


def timed(work: Callable[[list[str], list[str]], set[int]], items: list[str], rows: list[str]) -> Any:
    started = time.process_time()
    found = work(items, rows)
    return time.process_time() - started, found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="?", type=int, default=3)
    parser.add_argument(
        "--datasketch", help="the folder that datasketch is in; else it is installed into a temporary one"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.datasketch or temporary
        if not options.datasketch:
            command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder]
            subprocess.run([*command, "datasketch==2.0.0"], check=True)
        sys.path.append(str(Path(folder)))
        sides = {"accord": with_accord, "datasketch": with_datasketch}
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        shares: dict[str, dict[str, list[float]]] = {side: {} for side in sides}
        for seed in range(options.runs):
            items, planted, rows = make(seed)
            for side, work in sides.items():
                taken, found = timed(work, items, rows)
                seconds[side].append(taken)
                for way in ("verbatim", "edited", "swapped", ""):
                    members = [i for i, each in enumerate(planted) if each == way]
                    share = sum(i in found for i in members) / len(members)
                    shares[side].setdefault(way or "false_alarms", []).append(share)
            print(seed, {side: round(taken[-1], 2) for side, taken in seconds.items()}, flush=True)

    ratio = mean_ratio([b / a for a, b in zip(seconds["accord"], seconds["datasketch"], strict=True)])
    figures = {
        f"{side}_{name}": round(statistics.fmean(values), 4)
        for side, ways in shares.items()
        for name, values in ways.items()
    } | {f"{side}_seconds": round(statistics.fmean(values), 2) for side, values in seconds.items()}
    finds_all = all(figures[f"accord_{way}"] == 1 for way in ("verbatim", "edited", "swapped"))
    print_result(
        "training rows are searched for evaluation items in less processor time, and none is missed",
        "datasketch's MinHashLSHEnsemble",
        **ratio,
        goal=GOAL,
        ok=ratio["low"] >= GOAL and finds_all,
        rows=ROWS,
        items=ITEMS,
        **figures,
    )


if __name__ == "__main__":
    main()
