"""The feedback stage with people: it leaves while they rank, and goes on when they have."""

import json
import stat
from pathlib import Path

import pytest
from feedback_helpers import free_port

from accord.errors import UsageError, WaitingForAnnotatorsError
from accord.models import Model
from accord.records import Comparison, Message, Preference, Prompt, Ranking, Response, read_jsonl, write_jsonl
from accord.runs import Runs
from accord.sampling.config import SamplingConfig
from accord.sampling.shared import SharedSampler
from feedback.client import log_in, request
from feedback.config import FeedbackConfig
from feedback.server import process
from feedback.stage import argilla_home, gather_preferences, pairwise_agreement


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    questions = ("Why is the sky blue?", "Name a prime.", "What is bread?")
    write_jsonl(
        path, [Prompt(id=f"p{i}", prompt=[Message(role="user", content=q)]) for i, q in enumerate(questions)]
    )
    return path


def test_people_are_waited_for_and_nothing_is_sampled_twice(
    tiny_model: Model, runs: Runs, prompts: Path
) -> None:
    config = FeedbackConfig(
        prompts=str(prompts),
        max_response_tokens=8,
        annotators="human",
        annotators_per_record=1,
        port=free_port(),
    )
    with SharedSampler(SamplingConfig(engine="transformers")) as sampler:
        try:
            with pytest.raises(WaitingForAnnotatorsError, match="3 records wait for annotators"):
                gather_preferences(config, runs, tiny_model, sampler)
            (run,) = runs.all()
            assert run.record.status == "waiting"
            sampled = (run.path / "responses.jsonl").read_bytes()
            assert process.running(argilla_home(runs.root)), "the page must stay up for people"

            logins = argilla_home(runs.root) / "annotators.json"
            assert stat.S_IMODE(logins.stat().st_mode) == 0o600
            _rank_everything(f"http://127.0.0.1:{config.port}", json.loads(logins.read_text())["annotator"])
            done = gather_preferences(config, runs, tiny_model, sampler)
        finally:
            process.stop(argilla_home(runs.root))
    assert done.is_done and done.id == run.id
    assert (done.path / "responses.jsonl").read_bytes() == sampled
    comparisons = read_jsonl(done.path / "comparisons.jsonl", Comparison)
    assert [c.rankings[0].annotator for c in comparisons] == ["annotator"] * 3
    assert done.metrics["rankings_submitted"] == 3 and done.metrics["annotators_kind"] == "human"
    assert done.metrics["preferences"] == len(read_jsonl(done.path / "preferences.jsonl", Preference))


def _rank_everything(url: str, password: str) -> None:
    """What the page sends when a person ranks the answers in the order they are shown."""
    http = log_in(url, "annotator", password)
    (dataset,) = request(http, "GET", "me/datasets")["items"]
    found = request(
        http, "POST", f"me/datasets/{dataset['id']}/records/search", json={}, params={"limit": 10}
    )
    for record in (item["record"] for item in found["items"]):
        shown = sorted(name for name in record["fields"] if name.startswith("response"))
        ranks = [{"value": name, "rank": place} for place, name in enumerate(shown, start=1)]
        answer = {"status": "submitted", "values": {"ranking": {"value": ranks}}}
        request(http, "POST", f"records/{record['id']}/responses", json=answer)


def test_an_id_that_stands_twice_is_refused(tiny_model: Model, runs: Runs, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, [Prompt(id="same", prompt=[Message(role="user", content=text)]) for text in "ab"])
    with (
        SharedSampler(SamplingConfig(engine="transformers")) as sampler,
        pytest.raises(UsageError, match="twice"),
    ):
        gather_preferences(FeedbackConfig(prompts=str(path)), runs, tiny_model, sampler)


def test_agreement_by_hand() -> None:
    """Three annotators, one pair: two say first, one says second: of 3 pairs of annotators, 1 agrees.

    A second comparison with one tie: two annotators order it the same way: 1 of 1. Together 2 of 4.
    """

    def comparison(name: str, ranks: list[list[int]]) -> Comparison:
        return Comparison(
            id=name,
            prompt=[Message(role="user", content="?")],
            responses=[Response(text=text, run="r", seed=0) for text in ("x", "y")],
            rankings=[Ranking(annotator=f"a{i}", ranks=r) for i, r in enumerate(ranks)],
        )

    rows = [comparison("c1", [[1, 2], [1, 2], [2, 1]]), comparison("c2", [[2, 1], [1, 1], [2, 1]])]
    assert pairwise_agreement(rows) == pytest.approx(2 / 4)
    assert pairwise_agreement(rows[:0]) is None
