"""Conversations read, checked and encoded: against `load_dataset` and `map(apply_chat_template)`, TRL's own path.

    .venv/bin/python benchmarks/data.py [--rows 500000] [--runs 3] [--growth]

Both read the same JSON Lines file of generated conversations of about 200 tokens, with the bundled model's tokenizer,
in two processes, in turn, each time with nothing cached. Both give `input_ids` and which of them the assistant said:
TRL by its `_tokenize` with `return_assistant_tokens_mask`, for which its template must mark the assistant's parts;
`without_masks` is its time without. accord also checks every row, drops duplicates, mixes and sets rows aside. What is
timed is the work, without imports; CPU-seconds of all processes. Memory is the peak, over all processes, of what is
not a file mapped into memory. `second_start` is how long accord takes where the data are there, in seconds.
`--growth` adds files of other sizes. The last line is one JSON object.
"""

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from helpers.result import mean_ratio, print_result

GOAL = 2.0
MOST_MEMORY = 1.5
SECONDS_OF_A_SECOND_START = 3.0
GROWTH = (10_000, 50_000)
SYLLABLES = ("ba", "co", "di", "fe", "gu", "ka", "lo", "mi", "ne", "pu", "ra", "so", "ti", "ve", "wa", "zo")
COMMON = (
    "the a of and to in is that for it as was with be by on not he this are or his from at which but have an they you "
    "were there one all we can her has their been if more when will would who so no out up into than them its only"
)
SAID = "{{- message['content'] + '<|im_end|>' -}}"


def write_conversations(path: Path, rows: int) -> None:
    chance = random.Random(0)
    rare = ["".join(chance.choices(SYLLABLES, k=chance.randint(1, 4))) for _ in range(20_000)]

    common = COMMON.split()

    def sentence(words: int) -> str:
        said = [chance.choice(common) if chance.random() < 0.7 else chance.choice(rare) for _ in range(words)]
        return " ".join(said).capitalize() + "."

    with path.open("w") as file:
        for _ in range(rows):
            messages = []
            for _ in range(chance.choice((1, 1, 1, 2))):
                asked = " ".join(sentence(chance.randint(5, 15)) for _ in range(2))
                answered = " ".join(sentence(chance.randint(8, 18)) for _ in range(chance.randint(2, 6)))
                messages += [
                    {"role": "user", "content": asked},
                    {"role": "assistant", "content": answered},
                ]
            file.write(json.dumps({"messages": messages}) + "\n")


def processor_seconds() -> float:
    return sum(
        sum(resource.getrusage(whose)[:2]) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def with_accord(rows: Path, folder: Path) -> dict[str, Any]:
    from joblib.externals.loky import get_reusable_executor

    from accord import bundled
    from accord.models.loading import load_tokenizer
    from accord.models.references import resolve
    from accord.runs import Runs
    from sft.config import SFTConfig
    from sft.data import open_data_run, prepare

    runs = Runs(folder)
    tokenizer = load_tokenizer(resolve(bundled.MODEL, runs))
    config = SFTConfig.model_validate({"demonstrations": str(rows)})
    started, spent = time.perf_counter(), processor_seconds()
    run = prepare(config, runs, tokenizer)
    data = open_data_run(run)
    seconds = time.perf_counter() - started
    get_reusable_executor().shutdown()  # so that their time is counted
    count = len(data.rows) + len(data.heldout or [])
    tokens = sum(len(ids) for ids in data.rows[:1000]["input_ids"]) / len(data.rows[:1000]["input_ids"])
    return {
        "seconds": seconds,
        "processor": processor_seconds() - spent,
        "rows": count,
        "tokens_a_row": tokens,
    }


def with_trl(rows: Path, folder: Path, masks: bool = True) -> dict[str, Any]:
    import datasets
    from trl.trainer.sft_trainer import _tokenize

    from accord import bundled
    from accord.models.loading import load_tokenizer
    from accord.models.references import resolve
    from accord.runs import Runs

    tokenizer = load_tokenizer(resolve(bundled.MODEL, Runs(folder)))
    template = str(tokenizer.chat_template)
    assert SAID in template
    marked = template.replace(SAID, "{%- generation -%}" + SAID + "{%- endgeneration -%}")
    datasets.config.HF_DATASETS_CACHE = folder / "cache"

    def encode(row: dict[str, Any], processing_class: Any) -> dict[str, Any]:
        found = _tokenize(
            processing_class, row["messages"], tools=None,
            chat_template=marked if masks else None, return_assistant_tokens_mask=masks,
        )  # fmt: skip
        return {name: found[name] for name in ("input_ids", "assistant_masks") if name in found}

    started, spent = time.perf_counter(), processor_seconds()
    loaded = datasets.load_dataset(
        "json", data_files=str(rows), split="train", cache_dir=str(folder / "cache")
    )
    found = loaded.map(
        encode, num_proc=2, fn_kwargs={"processing_class": tokenizer}, remove_columns=["messages"]
    )
    seconds = time.perf_counter() - started
    tokens = sum(len(ids) for ids in found[:1000]["input_ids"]) / len(found[:1000]["input_ids"])
    return {
        "seconds": seconds, "processor": processor_seconds() - spent, "rows": len(found), "tokens_a_row": tokens,
    }  # fmt: skip


def anonymous_memory(process: psutil.Process) -> int:
    """What a process and its children hold that is no file mapped into memory, in bytes; shared pages in parts."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            text = Path(f"/proc/{each.pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss_Anon:"))
    return total * 1024


def measure(what: str, rows: Path, folder: Path, keep: bool = False) -> dict[str, Any]:
    """Figures of one process that works in `folder`, which is emptied before unless `keep`."""
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    command = [sys.executable, __file__, "--what", what, "--file", str(rows), "--folder", str(folder)]
    with (folder.parent / "log").open("w+") as log:
        child = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        peak = 0
        while child.poll() is None:
            peak = max(peak, anonymous_memory(child))
            time.sleep(0.2)
        log.seek(0)
        said = log.read()
    if child.returncode:
        sys.exit(said)
    return {**json.loads(said.splitlines()[-1]), "memory": round(peak / 2**30, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--what", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what:
        os.environ["HF_HUB_OFFLINE"] = "1"
        if options.what == "accord":
            found = with_accord(options.file, options.folder)
        else:
            found = with_trl(options.file, options.folder, masks=options.what == "trl")
        print()
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory(prefix="accord-data-") as place:
        folder, rows = Path(place), Path(place) / "rows.jsonl"
        growth = []
        for size in GROWTH if options.growth else ():
            write_conversations(rows, size)
            growth.append({"size": size, **measure("accord", rows, folder / "accord")})
            print(growth[-1], flush=True)
        write_conversations(rows, options.rows)
        pairs: list[dict[str, Any]] = []
        second: list[float] = []
        for _ in range(options.runs):
            pair = {"accord": measure("accord", rows, folder / "accord")}
            second.append(measure("accord", rows, folder / "accord", keep=True)["seconds"])
            pair["trl"] = measure("trl", rows, folder / "trl")
            assert pair["trl"]["rows"] == options.rows >= pair["accord"]["rows"]
            pairs.append(pair)
            print(pair, {"second_start": second[-1]}, flush=True)
        bare = measure("trl-without-masks", rows, folder / "trl")
    each = {who: [pair[who] for pair in pairs] for who in ("accord", "trl")}
    ratio = mean_ratio([pair["trl"]["processor"] / pair["accord"]["processor"] for pair in pairs])
    middle = {
        f"{name}_{who}": round(statistics.median(one[name] for one in each[who]), 2)
        for name in ("processor", "seconds", "memory")
        for who in each
    }
    print_result(
        "conversations are read, checked, masked and encoded in fewer CPU-seconds",
        "load_dataset and map(trl's _tokenize, num_proc=2)",
        **ratio,
        goal=GOAL,
        ok=ratio["low"] >= GOAL,
        rows=options.rows,
        **middle,
        without_masks=round(bare["processor"], 2),
        second_start=round(statistics.median(second), 2),
        memory_ok=middle["memory_accord"] <= MOST_MEMORY,
        second_start_ok=statistics.median(second) < SECONDS_OF_A_SECOND_START,
        growth=growth,
    )


if __name__ == "__main__":
    main()
