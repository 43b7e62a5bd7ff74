"""Do reward models find a planted truth? Known worths, annotators of known reliability, the bundled model.

    .venv/bin/python benchmarks/reward_truth.py [--prompts 200] [--seed 0]

Two experiments. One: three of five annotators follow the worth, one guesses and one ranks upside down; models learn
from the rankings, from pairs weighted by the annotators' reliability, and from a majority's pairs; they are compared on
fresh answers with their worths. Two: the judgements are partly about length; a model that leaves out what length
explains is compared with one that does not, on pairs of unequal and of equal length.

Prints a line for each finding; the last is one JSON object, whose `ratio` is the correlation of scores and worths for
weighted pairs over that for the majority's, with its 95% interval by prompt.
"""

import argparse
import itertools
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from helpers import planted
from helpers.result import print_result
from scipy.stats import spearmanr

from accord import bundled
from accord.chat.tokens import answer
from accord.config import LoraConfig
from accord.models.loading import load_tokenizer
from accord.models.references import Model, resolve
from accord.preload import restart_with_libraries
from accord.records import Comparison, Preference
from accord.runs import DataFile, Runs
from accord.text_files import write_jsonl
from feedback.belief.preferences import pairwise_preferences
from reward.config import RewardConfig
from reward.heldout import score_heldout
from reward.report_card import report_card
from reward.train import train_reward_model

RESAMPLES = 1_000
LENGTH_SLOPE = 2.0
"""Worth for a difference of 1 in log length: as much as two sentences' difference in quality."""
SETTINGS: dict[str, Any] = {
    "heldout_fraction": 0.1, "epochs": 1, "learning_rate": 1e-3, "rows_per_update": 8, "rows_per_pass": 8,
    "max_sequence_tokens": 512, "precision": "auto", "checkpoint_every_updates": 1000,
}  # fmt: skip


def train(runs: Runs, base: Model, path: Path, **settings: Any) -> Model:
    config = RewardConfig(**SETTINGS, lora=LoraConfig(rank=16, alpha=32, top_layers=10), **settings)
    run = train_reward_model(config, runs, base, DataFile(path))
    return resolve(f"run:{run.id}", runs)


def judged_pairs(chance: np.random.Generator, comparisons: Sequence[Comparison]) -> list[Preference]:
    """Every pair of answers, chosen by somebody whose odds are those of the qualities."""
    rows = []
    for comparison in comparisons:
        texts = [each.text for each in comparison.responses]
        worths = [planted.quality(text) for text in texts]
        for i, j in itertools.combinations(range(len(texts)), 2):
            first = chance.random() < 1 / (1 + math.exp(worths[j] - worths[i]))
            chosen, rejected = (i, j) if first else (j, i)
            rows.append(
                Preference(
                    prompt=comparison.prompt, chosen=answer(texts[chosen]), rejected=answer(texts[rejected]),
                    id=f"{comparison.id}:{chosen}>{rejected}",
                )
            )  # fmt: skip
    return rows


def rank_correlation(scored: Sequence[Any], seed: int) -> tuple[float, np.ndarray]:
    """Spearman's correlation of score and worth over all answers, and its bootstrap distribution over prompts.

    The same seed draws the same prompts, so distributions of two models can be compared entry by entry.
    """
    scores = [np.mean(each.scores, axis=1) for each in scored]
    worths = [np.array([planted.quality(response.text) for response in each.responses]) for each in scored]
    chance = np.random.default_rng(seed)

    def of(index: Any) -> float:
        return float(
            spearmanr(np.concatenate([scores[i] for i in index]), np.concatenate([worths[i] for i in index]))[
                0
            ]
        )

    drawn = [of(chance.integers(0, len(scores), len(scores))) for _ in range(RESAMPLES)]
    return of(range(len(scores))), np.array(drawn)


def ends(drawn: np.ndarray) -> dict[str, float]:
    """The 95% interval of a bootstrap distribution."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"low": round(float(low), 3), "high": round(float(high), 3)}


def reliability(
    runs: Runs, base: Model, folder: Path, count: int, seed: int
) -> tuple[dict[str, Any], dict[str, float]]:
    """The figures of each model, and how many times the majority's correlation that of weighted pairs is."""
    chance = np.random.default_rng(seed)
    judged = planted.comparisons(chance, count, responses=4)
    write_jsonl(folder / "comparisons.jsonl", judged)
    majority, _ = pairwise_preferences(judged, None)
    write_jsonl(folder / "majority.jsonl", majority)
    fresh = planted.comparisons(chance, count, responses=4)
    pairs = judged_pairs(chance, fresh)
    figures: dict[str, Any] = {}
    distributions: dict[str, np.ndarray] = {}
    for name, file, loss in (
        ("rankings", "comparisons.jsonl", "plackett_luce"),
        ("weighted pairs", "comparisons.jsonl", "bradley_terry"),
        ("majority's pairs", "majority.jsonl", "bradley_terry"),
    ):
        model = train(runs, base, folder / file, loss=loss, heads=4, seed=seed)
        scored_pairs, scored = score_heldout(model, load_tokenizer(model), pairs, fresh)
        card = report_card(scored_pairs, scored, 0.5).metrics()
        correlation, distributions[name] = rank_correlation(scored, seed)
        figures[name] = {
            "spearman": round(correlation, 3), **ends(distributions[name]),
            "accuracy": card["heldout_accuracy"], "ece": card["heldout_ece"],
            "ece_after_temperature": card["heldout_ece_after_temperature"], "temperature": card["temperature"],
            "disagreement_auroc": card.get("disagreement_auroc"),
        }  # fmt: skip
        print(name, figures[name], flush=True)
    weighted, majority = "weighted pairs", "majority's pairs"
    ratio = figures[weighted]["spearman"] / figures[majority]["spearman"]
    return figures, {"ratio": round(ratio, 3), **ends(distributions[weighted] / distributions[majority])}


def length(runs: Runs, base: Model, folder: Path, count: int, seed: int) -> dict[str, Any]:
    chance = np.random.default_rng(seed + 1)
    judged = planted.comparisons(chance, count, responses=4, length_slope=LENGTH_SLOPE)
    write_jsonl(folder / "length.jsonl", judged)
    unequal = planted.comparisons(chance, count // 2, responses=4)
    equal = [
        _of_equal_length(chance, comparison) for comparison in planted.comparisons(chance, count, responses=2)
    ]
    figures: dict[str, Any] = {}
    for name in ("keep", "residual"):
        model = train(runs, base, folder / "length.jsonl", loss="plackett_luce", length=name, seed=seed)
        tokenizer = load_tokenizer(model)
        of_unequal, of_equal = (
            score_heldout(model, tokenizer, [_by_worth(pair) for pair in judged_pairs(chance, part)], [])[0]
            for part in (unequal, equal)
        )
        cards = [report_card(pairs, [], 1.0).metrics() for pairs in (of_unequal, of_equal)]
        figures[name] = {
            "score_length_correlation": cards[0]["score_length_correlation"],
            "length_only_accuracy": cards[0]["length_only_accuracy"],
            "accuracy_unequal": cards[0]["heldout_accuracy"],
            "accuracy_equal": cards[1]["heldout_accuracy"],
            "equal_pairs": cards[1]["heldout_pairs"],
            "lost": cards[0]["heldout_accuracy"] - cards[1]["heldout_accuracy"],
        }
        print(f"length: {name}", figures[name], flush=True)
    return figures


def _of_equal_length(chance: np.random.Generator, comparison: Comparison) -> Comparison:
    """Two other answers to the prompt, of lengths within 5% and of different qualities."""
    while True:
        texts = planted.answers(chance, 2)
        lengths, qualities = [len(text) for text in texts], [planted.quality(text) for text in texts]
        if min(lengths) >= 0.95 * max(lengths) and qualities[0] != qualities[1]:
            responses = [
                response.model_copy(update={"text": text})
                for response, text in zip(comparison.responses, texts, strict=True)
            ]
            return comparison.model_copy(update={"responses": responses})


def _by_worth(pair: Preference) -> Preference:
    """The pair with the answer of higher worth, length included, as the chosen one."""
    chosen, rejected = (
        planted.quality(side[0].content) + LENGTH_SLOPE * math.log(len(side[0].content))
        for side in (pair.chosen, pair.rejected)
    )
    if chosen > rejected:
        return pair
    return pair.model_copy(update={"chosen": pair.rejected, "rejected": pair.chosen})


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--prompts", type=int, default=200)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--only-length", action="store_true")
    options = arguments.parse_args()
    restart_with_libraries()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = Runs(folder / "runs")
        base = resolve(bundled.MODEL, runs)
        of_length = length(runs, base, folder, options.prompts, options.seed)
        if options.only_length:
            return
        found, ratio = reliability(runs, base, folder, options.prompts, options.seed)
    weighted, majority = found["weighted pairs"], found["majority's pairs"]
    print_result(
        "reward models recover the order of planted worths, and weights from agreement help",
        "the same model on the pairs of a majority",
        ratio=ratio["ratio"],
        low=ratio["low"],
        high=ratio["high"],
        goal=1.0,
        ok=weighted["spearman"] > majority["spearman"]
        and all(each["ece_after_temperature"] < 0.05 for each in found.values())
        and of_length["residual"]["lost"] < of_length["keep"]["lost"],
        reliability=found,
        length=of_length,
    )


if __name__ == "__main__":
    main()
