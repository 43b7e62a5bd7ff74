"""Claim: the memory of the contamination check depends on what is evaluated, and not on how much was trained on.

    .venv/bin/python benchmarks/contamination_growth.py [--rows 1000000] [--items 2000] [--smoke]

Rows of 20 to 40 random words stand in the Arrow files of a run of data, 2,000 in each, as an SFT leaves them; they are
read and compared as the gate does it. Once with a tenth of the rows and once with all of them, each in a process of its
own. Every thousandth row holds an item, so that something is found. Memory is the most that a process had over what it
had before it knew the items, without what the system keeps of the files it has read. The last line is one JSON object;
`ratio` is the memory with a tenth of the rows over that with all, and `seconds_a_million` what they take.
"""

import argparse
import itertools
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.result import print_result

from accord.data.quality.overlap import TrainingText
from accord.run_record import RunRecord
from accord.runs import Run
from eval.checks.contamination import TrainingData, overlap
from sft.data import FILES

GOAL, ROWS_A_FILE, WORDS = 0.8, 2_000, 30_000


def make(folder: Path, rows: int, items: list[list[str]], seed: int = 0) -> None:
    """A folder like that of a run of data, as far as the check reads it."""
    import pyarrow as pa

    chance = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(WORDS)]
    cumulative = list(itertools.accumulate(1 / (rank + 2) for rank in range(WORDS)))
    (folder / FILES).parent.mkdir(parents=True, exist_ok=True)
    (folder / FILES).write_text(json.dumps([{"file": "rows.jsonl"}]))
    (folder / "encoded/000").mkdir(parents=True)
    for start in range(0, rows, ROWS_A_FILE):
        lines = range(start + 1, min(start + ROWS_A_FILE, rows) + 1)
        texts = []
        for line in lines:
            words = chance.choices(vocabulary, cum_weights=cumulative, k=chance.randint(20, 40))
            words += chance.choice(items) if line % 1_000 == 0 else []
            texts.append(json.dumps({"messages": [{"role": "user", "content": " ".join(words)}]}))
        columns = {"source": [0] * len(texts), "line": list(lines), "row": texts}
        table = pa.table({**columns, "input_ids": [[1] * 40] * len(texts)})
        path = folder / "encoded/000" / f"{start // ROWS_A_FILE:06d}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)


def make_items(count: int, seed: int = 1) -> list[list[str]]:
    """Texts of 12 to 60 random words."""
    chance = random.Random(seed)
    cumulative = list(itertools.accumulate(1 / (rank + 2) for rank in range(WORDS)))
    words = [f"w{i}" for i in range(WORDS)]
    return [chance.choices(words, cum_weights=cumulative, k=chance.randint(12, 60)) for _ in range(count)]


def check(folder: Path, items: list[str], answer: Any) -> None:
    """Compare, and say how long it took, how much memory, and how many items were found."""
    import datasets  # noqa: F401  what reading the files needs is no part of what is measured

    record = RunRecord(
        id=folder.name, stage="data", status="done", config={}, parents={}, inputs={}, code={}, packages={},
        hardware={}, seed=0, started_at="",
    )  # fmt: skip
    data = TrainingData([], [], [], [Run(folder, record)])
    most, before = 0, own_kilobytes()

    def watched() -> Iterator[TrainingText]:
        nonlocal most
        for number, text in enumerate(data.texts()):
            if number % 500 == 0:
                most = max(most, own_kilobytes())
            yield text

    started = time.process_time()
    report = overlap(watched(), {"items": [(str(i), item) for i, item in enumerate(items)]})
    seconds = time.process_time() - started
    found = report.suites[0].exact + report.suites[0].near
    answer.send(
        {"rows": report.rows, "seconds": round(seconds, 1), "mib": (most - before) / 1024, "found": found}
    )


def own_kilobytes() -> int:
    """What this process has for itself: resident memory without pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def measured(rows: int, items: list[list[str]]) -> dict[str, Any]:
    """`check` in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data-000000000000"
        make(folder, rows, items)
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=check, args=(folder, [" ".join(item) for item in items], there))
        child.start()
        result: dict[str, Any] = here.recv()
        child.join()
    print({**result, "mib": round(result["mib"], 1)}, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=2_000)
    parser.add_argument("--smoke", action="store_true", help="20,000 rows and 100 items: whether it works")
    options = parser.parse_args()
    rows, count = (20_000, 100) if options.smoke else (options.rows, options.items)
    items = make_items(count)
    few, many = measured(rows // 10, items), measured(rows, items)
    ratio = round(few["mib"] / many["mib"], 3)
    print_result(
        "memory of the contamination check does not grow with the training rows",
        "the same check of a tenth of the rows",
        ratio=ratio,
        low=ratio,
        high=ratio,
        goal=GOAL,
        ok=ratio >= GOAL,
        few=few,
        many=many,
        items=count,
        seconds_a_million=round(many["seconds"] / many["rows"] * 1e6, 1),
    )


if __name__ == "__main__":
    main()
