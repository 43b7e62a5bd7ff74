"""What a feedback run fitted is handed to the reward model: the same to the last bit, and fitted once."""

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accord.config import Config
from accord.records import Comparison, Message, Ranking, Response, read_jsonl
from accord.runs import DataFile, Run, Runs
from accord.text_files import write_jsonl
from feedback.annotation import conclude
from feedback.belief import kept
from feedback.belief.kept import RELIABILITY, fitted, read_reliability
from feedback.belief.preferences import pairwise_preferences
from feedback.belief.reliability import Reliability, fit_reliability
from reward import data
from reward.choices import PromptChoices, choices_from_rankings
from reward.data import read_preference_data


def ranked(prompts: int = 24) -> list[Comparison]:
    """Rankings with ties by three annotators, one of whom answers at random; every sixth prompt is asked twice."""
    chance = random.Random(0)
    found = []
    for i in range(prompts):
        responses = [
            Response(text=f"Réponse {i}-{k}" + " oui" * chance.randrange(9), run="p", seed=k)
            for k in range(2 + i % 3)
        ]
        worth = [chance.gauss(0, 1) for _ in responses]
        felt = {
            who: [round(value + chance.gauss(0, noise)) for value in worth]
            for who, noise in (("ann", 0.1), ("böb", 0.6), ("cyn", 9.0))
        }
        rankings = [
            Ranking(
                annotator=who, ranks=[1 + sum(other > own for other in values) for own in values], seconds=0.1
            )
            for who, values in felt.items()
        ]
        found.append(
            Comparison(
                id=f"c{i}", prompt=[Message(role="user", content=f"Question {i}?")], responses=responses,
                rankings=rankings, display_order=chance.sample(range(len(responses)), len(responses)), topic=None,
            )
        )  # fmt: skip
        if i % 6 == 0:
            found.append(found[-1].model_copy(update={"id": f"again-{i}", "duplicate_of": f"c{i}"}))
    return found


@pytest.fixture
def run(runs: Runs) -> Run:
    """A finished feedback run."""
    with runs.begin("feedback", Config(), {}) as begun:
        write_jsonl(begun.path / "comparisons.jsonl", ranked())
        conclude(begun, ranked(), "human", 0)
    return begun


def bits(value: Any) -> Any:
    """A value whose floats are their bytes, so that nothing but the very same floats is equal."""
    if dataclasses.is_dataclass(value):
        return {field.name: bits(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return [(key, bits(each)) for key, each in value.items()]
    if isinstance(value, float):
        return np.float64(value).tobytes()
    if isinstance(value, np.ndarray):
        return (value.shape, value.dtype.str, value.tobytes())
    return value


def choices(comparisons: Sequence[Comparison], reliability: Reliability | None) -> list[Any]:
    assert reliability is not None
    found: list[PromptChoices] = choices_from_rankings(comparisons, comparisons, reliability)
    return [
        [bits(getattr(group, name)) for name in ("chosen", "chosen_offsets", "alternatives", "offsets", "weights")]
        for group in found
    ]  # fmt: skip


def test_what_is_handed_on_is_what_was_fitted_bit_for_bit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    comparisons = read_jsonl(run.output("comparisons.jsonl"), Comparison)
    anew = fit_reliability(comparisons)
    assert len(anew.annotators) == 3 and len(anew.pairs) == 24
    refuse_to_fit(monkeypatch)
    handed = read_preference_data(run, with_reliability=True)
    assert handed.reliability == anew and bits(handed.reliability) == bits(anew)
    assert handed.pairs == pairwise_preferences(comparisons, anew)[0]
    assert choices(comparisons, handed.reliability) == choices(comparisons, anew)


def refuse_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(comparisons: object) -> None:
        raise AssertionError("fitted a second time")

    monkeypatch.setattr(data, "fit_reliability", refuse)
    monkeypatch.setattr(kept, "fit_reliability", refuse)


def test_the_same_comparisons_are_fitted_once_in_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, comparisons = tmp_path / RELIABILITY, ranked()
    first = fitted(path, comparisons)
    with monkeypatch.context() as patch:
        refuse_to_fit(patch)
        assert fitted(path, comparisons) == first
        write_jsonl(tmp_path / "comparisons.jsonl", comparisons)  # as the next command reads them
        assert fitted(path, read_jsonl(tmp_path / "comparisons.jsonl", Comparison)) == first
    # another answer, and it is another fit
    changed = [comparisons[0].model_copy(update={"rankings": []}), *comparisons[1:]]
    assert read_reliability(path, changed) is None
    assert fitted(path, changed) == fit_reliability(changed) != first
    assert read_reliability(path, comparisons) is None


def test_files_and_runs_that_kept_nothing_of_these_comparisons_are_fitted(run: Run, tmp_path: Path) -> None:
    comparisons = read_jsonl(run.output("comparisons.jsonl"), Comparison)
    anew = fit_reliability(comparisons)
    write_jsonl(tmp_path / "comparisons.jsonl", comparisons)
    from_file = read_preference_data(DataFile(tmp_path / "comparisons.jsonl"))
    assert from_file.reliability == anew and from_file.pairs == read_preference_data(run).pairs

    content = json.loads((run.path / RELIABILITY).read_text())
    content["comparisons"], content["shared_length"] = "0" * 64, 99.0
    (run.path / RELIABILITY).write_text(json.dumps(content))
    assert read_preference_data(run, with_reliability=True).reliability == anew
    (run.path / RELIABILITY).unlink()
    del run.record.outputs[RELIABILITY]
    assert read_preference_data(run, with_reliability=True).reliability == anew


def test_choices_of_one_who_ranked_alone_are_not_turned_round() -> None:
    """Ann is reversed: what she ranked with others counts in reverse, what she ranked alone as she said it."""
    comparisons = ranked(4)
    fit = fit_reliability(comparisons)
    reversed_ann = dataclasses.replace(fit.annotators["ann"], beta=-1.0, position=0.0, length=0.0)
    model = dataclasses.replace(fit, annotators={**fit.annotators, "ann": reversed_ann})
    alone = comparisons[2].model_copy(update={"rankings": [Ranking(annotator="ann", ranks=[1, 2])]})
    alone = alone.model_copy(update={"responses": alone.responses[:2], "display_order": [0, 1]})
    (group,) = choices_from_rankings([alone], [alone], model)
    assert group.chosen[0] == pytest.approx([0.367 / 2, -0.367 / 2])
    rankings = [*alone.rankings, Ranking(annotator="böb", ranks=[1, 2])]
    together = alone.model_copy(update={"rankings": rankings})
    (group,) = choices_from_rankings([together], [together], model)
    assert group.chosen[0] == pytest.approx([-0.5, 0.5])


@pytest.mark.parametrize("with_reliability", [True, False])
def test_a_fit_that_did_not_settle_is_told(
    run: Run, with_reliability: bool, caplog: pytest.LogCaptureFixture
) -> None:
    read_preference_data(run, with_reliability)
    assert not caplog.text
    path = run.path / RELIABILITY
    path.write_text(path.read_text().replace('"converged": true', '"converged": false'))
    read_preference_data(run, with_reliability)
    assert f"{run.id}: the model of the annotators' reliability did not settle" in caplog.text
