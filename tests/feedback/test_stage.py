"""The feedback stage with people: it leaves while they judge, goes on when they have, and what it yields is usable."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from datasets import load_dataset
from feedback_helpers import free_port
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from accord.errors import DataError, UsageError, WaitingForAnnotatorsError
from accord.models.loading import load_policy, load_reward_model, load_tokenizer
from accord.models.references import Model
from accord.records import Comparison, Message, Preference, Prompt, read_jsonl
from accord.runs import Runs
from accord.sampling.config import SamplingConfig
from accord.sampling.shared import SharedSampler
from accord.text_files import write_jsonl
from feedback.argilla.access import argilla_home
from feedback.argilla.client import log_in, request
from feedback.argilla.server import process
from feedback.config import FeedbackConfig
from feedback.export import export_data_set
from feedback.stage import gather_preferences


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    questions = ("Why is the sky blue?", "Name a prime.", "What is bread?")
    write_jsonl(
        path, [Prompt(id=f"p{i}", prompt=[Message(role="user", content=q)]) for i, q in enumerate(questions)]
    )
    return path


@pytest.fixture(params=["embedded", "remote"])
def place(
    request: pytest.FixtureRequest, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """Where the annotators are: the run's own Argilla, or one that somebody else started, by URL and key."""
    if request.param == "remote":
        server = request.getfixturevalue("server")
        monkeypatch.setenv("ARGILLA_API_KEY", server.api_key)
        yield {"argilla_url": server.url}
        assert not argilla_home(runs.root).exists(), "no Argilla of our own was needed"
    else:
        yield {"port": free_port()}
        process.stop(argilla_home(runs.root))


def url_of(config: FeedbackConfig) -> str:
    return config.argilla_url or f"http://127.0.0.1:{config.port}"


def test_people_are_waited_for_and_nothing_is_sampled_twice(
    tiny_model: Model,
    runs: Runs,
    prompts: Path,
    place: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = FeedbackConfig(
        prompts=str(prompts),
        max_response_tokens=8,
        annotators="human",
        human_annotators=("zara",),
        annotators_per_record=1,
        **place,
    )
    with SharedSampler(SamplingConfig(engine="transformers")) as sampler:
        with pytest.raises(WaitingForAnnotatorsError, match="3 records wait for annotators"):
            gather_preferences(config, runs, tiny_model, sampler)
        (run,) = runs.all()
        assert run.record.status == "waiting"
        sampled = (run.path / "responses.jsonl").read_bytes()
        planned = (run.path / "queue.jsonl").read_bytes()
        (password,) = passwords(capsys.readouterr().out).values()
        assert not any(password.encode() in path.read_bytes() for path in files_in(runs.root))

        # one answer is pulled; our own server dies, and the same command brings it back and pulls the rest
        judge("zara", password, url_of(config), most=1, of=run.id)
        with pytest.raises(WaitingForAnnotatorsError, match="2 records wait"):
            gather_preferences(config, runs, tiny_model, sampler)
        assert "pulled 1 new answers, 0 edited, 0 deleted, 0 as before" in capsys.readouterr().out
        so_far = json.loads((run.path / "agreement.json").read_text())
        assert so_far["annotators"]["zara"]["submitted"] == 1
        assert "zara" not in (run.path / "report.html").read_text()
        if not config.argilla_url:
            server = process.running(argilla_home(runs.root))
            assert server, "the page must stay up for people"
            killed = psutil.Process(server.pid)
            killed.kill()
            killed.wait()
        with pytest.raises(WaitingForAnnotatorsError, match="2 records wait"):
            gather_preferences(config, runs, tiny_model, sampler)
        judge("zara", password, url_of(config), of=run.id)
        done = gather_preferences(config, runs, tiny_model, sampler)
    output = capsys.readouterr().out
    assert "pulled 2 new answers, 0 edited, 0 deleted, 1 as before" in output
    assert passwords(output) == {}, "a password is shown once"
    assert done.is_done and done.id == run.id
    assert (done.path / "responses.jsonl").read_bytes() == sampled
    assert (done.path / "queue.jsonl").read_bytes() == planned
    comparisons = read_jsonl(done.path / "comparisons.jsonl", Comparison)
    assert [c.rankings[0].annotator for c in comparisons] == ["zara"] * 3
    assert done.metrics["rankings_submitted"] == 3 and done.metrics["annotators_kind"] == "human"
    assert done.metrics["preferences"] == len(read_jsonl(done.path / "preferences.jsonl", Preference))


def test_a_team_judges_assigned_records_with_checks_and_somebody_settles_what_it_disagrees_on(
    tiny_model: Model,
    runs: Runs,
    tmp_path: Path,
    place: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts, gold, team = tmp_path / "many.jsonl", tmp_path / "gold.jsonl", tmp_path / "team.yaml"
    write_jsonl(
        prompts,
        [Prompt(id=f"p{i}", prompt=[Message(role="user", content=f"What is {i}?")]) for i in range(12)],
    )
    question = [{"role": "user", "content": "Is water wet?"}]
    gold.write_text(json.dumps({"prompt": question, "responses": ["Yes.", "Blue."], "ranks": [1, 2]}))
    team.write_text("users: [{name: ann}, {name: bob}, {name: eva, role: admin}]")
    config = FeedbackConfig(
        prompts=str(prompts), max_prompts=10, max_comparisons=8, responses_per_prompt=2, max_response_tokens=8,
        task="pairwise", annotators="human", users=str(team), annotators_per_record=2, assignment="balanced",
        duplicate_rate=0.25, gold=str(gold), adjudicators=("dan",), **place,
    )  # fmt: skip
    with SharedSampler(SamplingConfig(engine="transformers")) as sampler:
        with pytest.raises(WaitingForAnnotatorsError, match="22 records wait"):  # (8 + 2 + 1) for each of 2
            gather_preferences(config, runs, tiny_model, sampler)
        known = passwords(capsys.readouterr().out)
        assert set(known) == {"ann", "bob", "eva", "dan"}
        # bob always prefers the opposite of ann, but for the gold answer, which both know
        url = url_of(config)
        judge("ann", known["ann"], url, prefer=max)
        judge("bob", known["bob"], url, prefer=min)
        assert judge("dan", known["dan"], url) == 0
        with pytest.raises(WaitingForAnnotatorsError, match="8 records wait"):
            gather_preferences(config, runs, tiny_model, sampler)
        told = " ".join(capsys.readouterr().out.split())
        assert "annotators disagree on 8 records, which dan settles" in told
        assert judge("dan", known["dan"], url, prefer=max) == 8
        done = gather_preferences(config, runs, tiny_model, sampler)
    comparisons = read_jsonl(done.path / "comparisons.jsonl", Comparison)
    assert len(comparisons) == 11
    asked = [each for each in comparisons if not each.is_probe]
    assert {each.selection_probability for each in asked} == {0.8}
    for each in asked:
        given = {one.annotator: (one.ranks, one.adjudicates) for one in each.rankings}
        best = max(range(2), key=lambda index: each.responses[index].text)
        right, wrong = ([1, 2], [2, 1]) if best == 0 else ([2, 1], [1, 2])
        assert given == {"ann": (right, False), "bob": (wrong, False), "dan": (right, True)}
    preferences = read_jsonl(done.path / "preferences.jsonl", Preference)
    assert len(preferences) == 8
    for each in preferences:
        assert each.chosen[0].content > each.rejected[0].content
        assert each.weight == 1
    figures = json.loads((done.path / "agreement.json").read_text())
    assert (figures["gold_records"], figures["duplicates"]) == (1, 2)
    for name in ("ann", "bob"):
        assert figures["annotators"][name]["self_consistency"]["value"] == 1

    # as a data set: no name in any file, the same pseudonyms again, and TRL's trainers take it as it is
    counts = export_data_set(done, runs, tmp_path / "data")
    assert counts == {"preferences.jsonl": 8, "comparisons.jsonl": 11}
    text = "".join(path.read_text() for path in files_in(tmp_path / "data"))
    assert not re.search(r"\b(ann|bob|dan|eva)\b", text)
    card = (tmp_path / "data/README.md").read_text()
    for fact in (
        "from 8 comparisons",
        "2 duplicates",
        "1 gold",
        "probability of being asked 0.8",
        "Take the order",
    ):
        assert fact in " ".join(card.split())
    assert len(set(re.findall(r"annotator-[0-9a-f]{10}", card))) == 3  # ann, bob and dan; eva judged nothing
    export_data_set(done, runs, tmp_path / "again")
    for path in files_in(tmp_path / "data"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    export_data_set(done, runs, tmp_path / "named", with_names=True)
    assert '"annotator": "ann"' in (tmp_path / "named/comparisons.jsonl").read_text()
    with pytest.raises(UsageError, match="is not empty"):
        export_data_set(done, runs, tmp_path / "data")
    train_one_step(tmp_path / "data", tiny_model, tmp_path)


def passwords(output: str) -> dict[str, str]:
    """By name, what the stage printed of new accounts."""
    return dict(re.findall(r"user (\S+)   password (\S+)", output))


def files_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def judge(
    name: str,
    password: str,
    url: str,
    prefer: Callable[..., str] = max,
    most: int = 100,
    of: str = "feedback-",
) -> int:
    """What the page sends when a person prefers the last text by alphabet, or the first; how many were judged.

    `of` begins the names of the data sets: a server that tests share has those of others, too.
    """
    http = log_in(url, name, password)
    judged = 0
    pending = {"type": "terms", "scope": {"entity": "response", "property": "status"}, "values": ["pending"]}
    datasets = request(http, "GET", "me/datasets")["items"]
    for dataset in [each for each in datasets if each["name"].startswith(of)]:
        body = {"query": {}, "filters": {"and": [pending]}}
        path = f"me/datasets/{dataset['id']}/records/search"
        found = request(http, "POST", path, json=body, params={"limit": most})
        for record in (item["record"] for item in found["items"]):
            texts = {key: text for key, text in record["fields"].items() if key.startswith("response")}
            best = prefer(texts, key=texts.__getitem__)
            if set(texts.values()) == {"Yes.", "Blue."}:
                best = next(key for key, text in texts.items() if text == "Yes.")
            if len(texts) == 2:
                choice = "first_better" if best == "response_1" else "second_better"
                values = {"choice": {"value": choice}}
            else:
                ranks = [{"value": key, "rank": 1 if key == best else 2} for key in texts]
                values = {"ranking": {"value": ranks}}
            request(
                http,
                "POST",
                f"records/{record['id']}/responses",
                json={"status": "submitted", "values": values},
            )
            judged += 1
    return judged


def train_one_step(data: Path, model: Model, scratch: Path) -> None:
    """Both trainers read the file with datasets' own loader, and take a step."""
    rows = load_dataset("json", data_files=str(data / "preferences.jsonl"), split="train")
    options = {
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
    }
    tokenizer = load_tokenizer(model)
    for trainer in (
        RewardTrainer(
            model=load_reward_model(model, new_head=True), args=RewardConfig(str(scratch / "reward"), **options),
            train_dataset=rows, processing_class=tokenizer,
        ),
        DPOTrainer(
            model=load_policy(model), args=DPOConfig(str(scratch / "dpo"), **options),
            train_dataset=rows, processing_class=tokenizer,
        ),
    ):  # fmt: skip
        assert trainer.train().training_loss > 0


def test_another_port_is_the_same_run(tiny_model: Model, runs: Runs) -> None:
    """A port that is taken is no reason to sample again, or to leave what people have judged."""
    config = FeedbackConfig(prompts="p")
    ids = {
        runs.run_id_for("feedback", config.model_copy(update=change), {"policy": tiny_model})
        for change in ({}, {"port": 6901}, {"seed": 1})
    }
    assert len(ids) == 2


def test_an_id_that_stands_twice_is_refused(tiny_model: Model, runs: Runs, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, [Prompt(id="same", prompt=[Message(role="user", content=text)]) for text in "ab"])
    with (
        SharedSampler(SamplingConfig(engine="transformers")) as sampler,
        pytest.raises(DataError, match=r"id: 'same' stands in .*:1, too"),
    ):
        gather_preferences(FeedbackConfig(prompts=str(path)), runs, tiny_model, sampler)
