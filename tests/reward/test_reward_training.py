"""Rankings, ensembles, the shift, the comparison with an earlier model, and models that cannot be packed."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_helpers import assert_same, every_trainer_calls, run_stage, run_stage_and_be_killed
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from accord.errors import DataError
from accord.models.references import Model, resolve
from accord.records import Comparison, Demonstration, Message, Preference, Ranking, Response, read_jsonl
from accord.runs import DataFile, Runs
from accord.text_files import write_jsonl
from reward.config import RewardConfig
from reward.heldout import TRAINED_ON
from reward.rows import ScoredComparison, ScoredPair
from reward.score import HEADS_FILE, score, score_by_head
from reward.train import train_reward_model

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = {
    "epochs": 4, "learning_rate": 1e-3, "rows_per_update": 8, "rows_per_pass": 4, "max_sequence_tokens": 300,
    "checkpoint_every_updates": 100, "seed": 3, "minimum_pairs": 4,
}  # fmt: skip
LORA = {"rank": 4, "alpha": 8}
WORDS = ("now", "so", "please", "please please please")


@pytest.fixture
def comparisons(tmp_path: Path) -> Path:
    """Forty prompts with three answers; more "please" is better, as two of three annotators see, with ties."""
    chance = np.random.default_rng(0)
    rows = []
    for i in range(40):
        worth = chance.permutation(4)[:3]
        truth = [1 + sum(other > each for other in worth) for each in worth]
        tied = [min(rank, 2) for rank in truth]
        wrong = [4 - rank for rank in truth]
        rows.append(
            Comparison(
                id=f"c-{i}", prompt=[Message(role="user", content=f"Ask {i}")],
                responses=[
                    Response(text=f"{WORDS[each]} {i}", run="sft-0", seed=j) for j, each in enumerate(worth)
                ],
                rankings=[
                    Ranking(annotator="ann-1", ranks=truth), Ranking(annotator="ann-2", ranks=tied),
                    Ranking(annotator="ann-3", ranks=wrong if i % 2 else truth),
                ],
                display_order=chance.permutation(3).tolist(),
            )
        )  # fmt: skip
    write_jsonl(tmp_path / "comparisons.jsonl", rows)
    return tmp_path / "comparisons.jsonl"


# --- rankings


@pytest.mark.parametrize("loss", ["plackett_luce", "bradley_terry"])
def test_it_learns_from_a_file_of_comparisons(
    tiny_model: Model, comparisons: Path, runs: Runs, loss: str
) -> None:
    run = run_stage(
        "reward", {**CONFIG, "loss": loss, "heldout_fraction": 0.3}, tiny_model, comparisons, runs
    )
    assert run.metrics["heldout_accuracy"] >= 0.9
    scored = read_jsonl(run.path / "heldout_comparisons.jsonl", ScoredComparison)
    assert len(scored) == 12
    assert run.record.dropped["comparisons_too_long"] == 0
    # what is written about the held-out answers is what the model says
    model = resolve(f"run:{run.id}", runs)
    first = scored[0]
    turns = [[*first.prompt, Message(role="assistant", content=each.text)] for each in first.responses]
    assert [s[0] for s in first.scores] == pytest.approx(score(model, turns), abs=1e-5)
    pairs = read_jsonl(run.path / "heldout.jsonl", ScoredPair)
    assert {pair.shown_first for pair in pairs} == {"chosen", "rejected"}
    for pair in pairs:
        name, _, sides = (pair.id or "").rpartition(":")
        chosen, rejected = map(int, sides.split(">"))
        order = next(each.display_order for each in scored if each.id == name)
        assert order is not None
        assert pair.shown_first == ("chosen" if order.index(chosen) < order.index(rejected) else "rejected")


def test_rankings_are_needed_to_learn_from_rankings(tiny_model: Model, preferences: Path, runs: Runs) -> None:
    with pytest.raises(
        DataError, match="plackett_luce, which learns from rankings, and the file holds pairs"
    ):
        run_stage("reward", {**CONFIG, "loss": "plackett_luce"}, tiny_model, preferences, runs)


def test_comparisons_that_decide_nothing_are_refused(tiny_model: Model, tmp_path: Path, runs: Runs) -> None:
    row = Comparison(
        id="c", prompt=[Message(role="user", content="Ask")],
        responses=[Response(text=text, run="sft-0", seed=0) for text in ("a", "b")],
        rankings=[Ranking(annotator="ann-1", ranks=[1, 1])],
    )  # fmt: skip
    write_jsonl(tmp_path / "tied.jsonl", [row])
    with pytest.raises(DataError, match=r"tied\.jsonl: no pair of answers has a preference \(1 tied\)"):
        run_stage("reward", CONFIG, tiny_model, tmp_path / "tied.jsonl", runs)


# --- ensembles


@pytest.mark.parametrize("lora", [None, LORA])
def test_an_ensemble_s_model_is_the_mean_of_its_heads(
    tiny_model: Model, preferences: Path, runs: Runs, lora: Any
) -> None:
    run = run_stage("reward", {**CONFIG, "heads": 3, "lora": lora}, tiny_model, preferences, runs)
    heads = load_file(run.path / "model" / HEADS_FILE)["weight"]
    assert heads.shape == (3, 64)
    model = AutoModelForSequenceClassification.from_pretrained(run.path / "model")
    assert model.config.num_labels == 1
    torch.testing.assert_close(model.score.weight[0], heads.mean(dim=0))
    found = resolve(f"run:{run.id}", runs)
    rows = read_jsonl(run.path / "heldout.jsonl", ScoredPair)
    texts = [[*row.prompt, *row.chosen] for row in rows]
    by_head = score_by_head(found, texts)
    assert np.array(by_head).shape == (len(rows), 3)
    assert np.std(by_head, axis=1).min() > 1e-4
    assert score(found, texts) == pytest.approx(np.mean(by_head, axis=1).tolist(), abs=1e-5)
    assert [row.chosen_scores for row in rows] == [pytest.approx(each, abs=1e-5) for each in by_head]
    with torch.inference_mode():
        from accord.chat.tokens import encode_conversation
        from accord.models.loading import load_tokenizer

        ids = encode_conversation(load_tokenizer(found), texts[0]).input_ids
        alone = float(model.eval()(torch.tensor([ids])).logits)
    assert score(found, texts[:1])[0] == pytest.approx(alone, abs=1e-5)


def test_heads_start_and_weigh_prompts_differently(tiny_model: Model, preferences: Path, runs: Runs) -> None:
    """The first loss by hand: per head, a prompt counts as much as its draw from the exponential distribution."""
    from accord.records import conversation_id

    seen = []

    def look(train_dataloader: Any, **_: Any) -> None:
        seen.extend(train_dataloader.dataset)

    with every_trainer_calls("train_begin", look):
        run_stage("reward", {**CONFIG, "heads": 4}, tiny_model, preferences, runs)
    weights = np.array([row["head_weights"] for row in seen])
    prompts = {conversation_id(row.prompt): row.prompt for row in read_jsonl(preferences, Preference)}
    drawn = {
        tuple(np.float32(np.random.default_rng([3, int(name[:16], 16)]).exponential(size=4)).tolist())
        for name in prompts
    }
    assert {tuple(np.float32(row).tolist()) for row in weights} < drawn
    assert len(drawn) == 20


def test_a_killed_ensemble_continues_bitwise(tiny_model: Model, preferences: Path, tmp_path: Path) -> None:
    config = {**CONFIG, "heads": 2, "lora": LORA, "checkpoint_every_updates": 1}
    whole = run_stage("reward", config, tiny_model, preferences, Runs(tmp_path / "whole"))
    broken = Runs(tmp_path / "broken")
    for kill_at in ("3", "train_end"):
        run_stage_and_be_killed("reward", config, tiny_model, preferences, broken, kill_at)
    assert_same(run_stage("reward", config, tiny_model, preferences, broken), whole)


# --- the shift


def test_demonstrations_score_zero_on_average(
    tiny_model: Model,
    preferences: Path,
    demonstrations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = Runs(tmp_path / "runs")
    plain = run_stage("reward", CONFIG, tiny_model, preferences, runs)
    loads, load = [], AutoTokenizer.from_pretrained
    with monkeypatch.context() as patch:
        patch.setattr(
            AutoTokenizer, "from_pretrained", lambda *args, **options: loads.append(args) or load(*args)
        )
        run = run_stage(
            "reward", {**CONFIG, "demonstrations": str(demonstrations)}, tiny_model, preferences, runs
        )
    assert loads == [(tiny_model.folder,)], "the tokenizer is loaded once for training, shift and report card"
    texts = [row.messages for row in read_jsonl(demonstrations, Demonstration)]
    shifted, unshifted = (score(resolve(f"run:{each.id}", runs), texts) for each in (run, plain))
    assert sum(shifted) / len(texts) == pytest.approx(0, abs=1e-4)
    shift = sum(unshifted) / len(texts)
    assert abs(shift) > 0.1
    assert shifted == pytest.approx([value - shift for value in unshifted], abs=1e-4)
    assert json.loads((run.path / "model/config.json").read_text())["reward_shift"] == pytest.approx(
        shift, abs=1e-4
    )


# --- an earlier model


def test_the_previous_model_is_compared_on_prompts_that_it_has_not_seen(
    tiny_model: Model, preferences: Path, tmp_path: Path
) -> None:
    runs = Runs(tmp_path / "runs")
    rows = read_jsonl(preferences, Preference)
    early = [row for row in rows if int(row.prompt[0].content.split()[1]) < 12]
    write_jsonl(tmp_path / "early.jsonl", early)
    first = run_stage("reward", {**CONFIG, "minimum_pairs": 4}, tiny_model, tmp_path / "early.jsonl", runs)
    previous = resolve(f"run:{first.id}", runs)
    config = RewardConfig(**{**CONFIG, "heldout_fraction": 0.5, "previous": f"run:{first.id}"})
    run = train_reward_model(config, runs, tiny_model, DataFile(preferences), previous)
    trained_on = set(json.loads((first.path / TRAINED_ON).read_text()))
    assert len(trained_on) == 9  # of 12 prompts
    from accord.records import conversation_id

    pairs = read_jsonl(run.path / "heldout.jsonl", ScoredPair)
    for pair in pairs:
        was_seen = conversation_id(pair.prompt) in trained_on
        assert (pair.previous_chosen_score is None) == was_seen
        if not was_seen:
            assert pair.previous_chosen_score == pytest.approx(
                score(previous, [[*pair.prompt, *pair.chosen]])[0], abs=1e-5
            )
    assert {conversation_id(pair.prompt) in trained_on for pair in pairs} == {True, False}


# --- other attention


def test_a_model_that_cannot_be_packed_gets_padded_rows(
    tiny_model: Model, preferences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same losses from both ways; epochs are few, so that rounding has no time to grow."""
    config = {**CONFIG, "epochs": 1}
    packed = run_stage("reward", config, tiny_model, preferences, Runs(tmp_path / "packed"))
    monkeypatch.setattr("reward.trainer.compute_packed_rows", lambda model, longest: False)
    padded = run_stage("reward", config, tiny_model, preferences, Runs(tmp_path / "padded"))
    losses = [[row["loss"] for row in run.metric_rows() if "loss" in row] for run in (packed, padded)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


# --- length


def pairs_about_length(path: Path, prompts: int) -> None:
    """Annotators choose by the number of "good", and by the logarithm of an answer's length; both are independent."""
    chance = np.random.default_rng(0)
    rows = []
    for i in range(prompts):
        quality, filler = chance.integers(0, 4, 2), chance.integers(1, 24, 2)
        texts = [
            "good " * q + "dull " * (3 - q) + letter * f
            for q, f, letter in zip(quality, filler, "xy", strict=True)
        ]
        lengths = np.log([len(text) for text in texts])
        difference = 1.5 * (quality[0] - quality[1]) + 4.0 * (lengths[0] - lengths[1])
        chosen = 0 if chance.random() < 1 / (1 + math.exp(-difference)) else 1
        rows.append(
            Preference(
                prompt=[Message(role="user", content=f"Ask {i}")],
                chosen=[Message(role="assistant", content=texts[chosen])],
                rejected=[Message(role="assistant", content=texts[1 - chosen])],
            )
        )
    write_jsonl(path, rows)


def test_a_residual_score_leaves_length_out(tiny_model: Model, tmp_path: Path) -> None:
    pairs_about_length(tmp_path / "pairs.jsonl", 200)
    figures = {}
    for length in ("keep", "residual"):
        config = {
            **CONFIG,
            "epochs": 5,
            "rows_per_update": 8,
            "rows_per_pass": 8,
            "length": length,
            "heldout_fraction": 0.3,
        }
        run = run_stage("reward", config, tiny_model, tmp_path / "pairs.jsonl", Runs(tmp_path / "runs"))
        figures[length] = run.metrics
    correlations = {name: each["score_length_correlation_within_prompts"] for name, each in figures.items()}
    assert correlations["keep"] > 0.35
    assert abs(correlations["residual"]) < 0.2
