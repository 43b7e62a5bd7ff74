"""Claim: what 200 annotators said of 20,000 comparisons is chosen, weighed and shown in three minutes and 2 GiB.

    .venv/bin/python benchmarks/feedback_scale.py [--comparisons 20000] [--annotators 200] [--rankings 3] [--smoke]

Simulated annotators rank three responses whose worth is known, most of them with some noise, a few at random, by
length, by place, or reversed. Gold records, which everybody answers, and duplicates stand among the comparisons.
Measured are the choice of the comparisons by uncertainty, the reliability of the annotators, their agreement, the
preferences, and the page, all in one process; the time is the processor's, the memory the process's peak. The last line
is one JSON object; `ratio` is three minutes over what it took.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from helpers.result import print_result

from accord.records import Comparison, Message, Ranking, Response
from feedback.asking.select import select_by_uncertainty
from feedback.belief.agreement import measure_agreement
from feedback.belief.preferences import pairwise_preferences
from feedback.belief.reliability import fit_reliability
from feedback.page.report import figures, write_report

SECONDS, GIB = 180.0, 2.0
KINDS = ("random", "length", "first", "reversed")
"""Every tenth annotator is one of these, in turn."""
GOLD, DUPLICATES = 0.002, 0.05
Result = TypeVar("Result")


def simulate(
    comparisons: int, annotators: int, rankings: int, seed: int = 0, responses: tuple[int, ...] = (3,)
) -> list[Comparison]:
    """Comparisons with known worths that simulated annotators have ranked."""
    chance = np.random.default_rng(seed)
    names = [f"ann-{number:03}" for number in range(annotators)]
    kinds = [KINDS[n // 10 % len(KINDS)] if n % 10 == 9 else "careful" for n in range(annotators)]
    noise = chance.uniform(0.1, 1.0, annotators)
    made = []

    def ranked(
        k: int, who: list[int], worth: np.ndarray, lengths: np.ndarray, order: list[int]
    ) -> list[Ranking]:
        given = []
        for each in who:
            likes = {
                "careful": worth + chance.normal(0, noise[each], k),
                "random": chance.normal(size=k),
                "length": lengths / 100,
                "first": -np.argsort(order).astype(float),
                "reversed": chance.normal(0, 0.1, k) - worth,
            }[kinds[each]]
            likes = np.round(likes / 0.3)  # close ones tie
            ranks = [1 + int((likes > one).sum()) for one in likes]
            given.append(Ranking(annotator=names[each], ranks=ranks, seconds=float(chance.integers(5, 90))))
        return given

    for number in range(comparisons):
        k = responses[number % len(responses)]
        worth, lengths = chance.normal(size=k), chance.integers(20, 400, k)
        order = chance.permutation(k).tolist()
        who = sorted(chance.choice(annotators, min(rankings, annotators), replace=False).tolist())
        columns: dict[str, object] = {}
        is_gold = number < max(1, round(GOLD * comparisons))
        if is_gold:
            who, columns = (
                list(range(annotators)),
                {"gold_ranks": [1 + int((worth > w).sum()) for w in worth]},
            )
        one = Comparison(
            id=f"c-{number:06}", prompt=[Message(role="user", content=f"Question {number}?")],
            responses=[Response(text=f"{i}".ljust(int(n), "x"), run="policy", seed=i) for i, n in enumerate(lengths)],
            rankings=ranked(k, who, worth, lengths, order), display_order=order, **columns,
            assigned_to=[names[each] for each in who],
        )  # fmt: skip
        made.append(one)
        if not is_gold and chance.random() < DUPLICATES:
            again = {
                "id": f"duplicate-{one.id}", "duplicate_of": one.id, "display_order": order[::-1],
                "rankings": ranked(k, who, worth, lengths, order[::-1]),
            }  # fmt: skip
            made.append(one.model_copy(update=again))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--comparisons", type=int, default=20_000)
    parser.add_argument("--annotators", type=int, default=200)
    parser.add_argument("--rankings", type=int, default=3, help="of each comparison")
    parser.add_argument(
        "--smoke", action="store_true", help="200 comparisons, 10 annotators: whether it works"
    )
    options = parser.parse_args()
    if options.smoke:
        options.comparisons, options.annotators = 200, 10
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Result]) -> Result:
        started = time.process_time()
        result = work()
        seconds[name] = round(time.process_time() - started, 1)
        print(f"{name}: {seconds[name]} s, {peak():.2f} GiB at most so far", flush=True)
        return result

    asked = simulate(options.comparisons, options.annotators, options.rankings)
    scores = [np.random.default_rng(i).normal(size=(3, 4)).tolist() for i in range(len(asked))]
    before = peak()
    timed("select", lambda: select_by_uncertainty(asked, max(1, len(asked) // 2), scores, seed=0))
    reliability = timed("reliability", lambda: fit_reliability(asked))
    agreement = timed("agreement", lambda: measure_agreement(asked, reliability))
    preferences, counts = timed("preferences", lambda: pairwise_preferences(asked, reliability))
    evidence = (asked, agreement, reliability, preferences, counts)
    timed("figures", lambda: json.dumps(figures(*evidence)))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        timed("page", lambda: write_report(page, *evidence))
        page_bytes = page.stat().st_size
    taken = sum(seconds.values())
    ratio = round(SECONDS / taken, 3)
    print_result(
        "what annotators said is chosen, weighed and shown in minutes",
        "a budget of three minutes of one processor and 2 GiB",
        ratio=ratio,
        low=ratio,
        high=ratio,
        goal=1.0,
        ok=taken <= SECONDS and peak() <= GIB,
        comparisons=options.comparisons,
        annotators=options.annotators,
        seconds=round(taken, 1),
        seconds_by_part=seconds,
        peak_gib=round(peak(), 2),
        peak_gib_before=round(before, 2),
        page_bytes=page_bytes,
        named=len(agreement.warnings),
        converged=reliability.converged,
    )


def peak() -> float:
    """The most memory that this process has held, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
