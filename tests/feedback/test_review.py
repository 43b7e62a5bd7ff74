"""Reviews: who wrote what stays hidden, a choice comes back to the right model, and a kill loses nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from feedback_helpers import comparison, free_port

from accord.bundled import data_path
from accord.config import Config
from accord.errors import TamperedError, UsageError, WaitingForAnnotatorsError
from accord.models.references import Model
from accord.records import Comparison, Message, Preference, Prompt, Ranking, read_jsonl
from accord.round import run_round
from accord.round_config import RoundConfig
from accord.round_plan import stages_until
from accord.runs import Run, Runs
from accord.text_files import write_jsonl
from eval.review.adjudicated import adjudicated, preferred_shares
from eval.review.ask import ReviewItem, choose, review
from eval.rows import Judgement, MeasuredAnswer, Sample
from feedback.annotation import conclude
from feedback.argilla.access import argilla_home
from feedback.argilla.client import Client, connect, log_in, request
from feedback.argilla.server import process
from feedback.argilla.server.process import Server
from feedback.asking.plan import Checks, plan
from feedback.config import FeedbackConfig, ReviewConfig
from feedback.export import export_data_set
from feedback.join import join_feedback

ROOT = Path(__file__).parents[2]
MODELS = ("sft-0123456789ab", "dpo-ba9876543210")


def sample(
    number: int, texts: tuple[str, str], utility: float | None = 0.0, reward: float | None = 0.0, k: int = 0,
    better: float | None = None,
) -> Sample:  # fmt: skip
    """A prompt with both answers; the candidate's utility and reward are the changes, the baseline's are 0."""
    name = f"h{number:03}"

    def measured(text: str, value: float | None, score: float | None) -> MeasuredAnswer:
        return MeasuredAnswer(
            prompt_id=name, sample=k, seed=number, text=text, tokens=3, finish="eos", utility=value, reward=score,
            distinct_bigrams=1.0,
        )  # fmt: skip

    prompt = [Message(role="user", content=f"What is the number {number}?")]
    return Sample(
        id=name, sample=k, prompt=prompt, group="even" if number % 2 == 0 else "odd",
        baseline=measured(texts[0], None if utility is None else 0.0, None if reward is None else 0.0),
        candidate=measured(texts[1], utility, reward),
        judgement=None if better is None else Judgement(candidate_is_better=better),
    )  # fmt: skip


def items_of(samples: list[Sample]) -> list[Sample]:
    return [Sample.model_validate_json(each.model_dump_json()) for each in samples]


def parts_of(chosen: list[ReviewItem]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for each in chosen:
        parts.setdefault(each.part, []).append(each.id)
    return parts


# --- what is asked


def test_the_worst_and_the_most_uncertain_are_chosen_by_turns_and_the_same_never() -> None:
    # Changes of utility are 1 or 2 in size, of reward 10 or 20: the root mean squares differ by a factor of 10, so
    # an item counts by u and r / 10. Means: a -2, b -1, c 0, d 0, e +1; distances: a 0, b 0, c 4, d 2, e 0.
    changes = {"a": (-2, -20), "b": (-1, -10), "c": (2, -20), "d": (-1, 10), "e": (1, 10)}
    samples = [sample(i, (f"old {i}", f"new {i}"), u, r) for i, (u, r) in enumerate(changes.values())]
    samples += [sample(5, ("same", " same \n"), -9, 0), sample(6, ("", ""), 9, 0)]
    samples[5:] = [each.model_copy(update={"candidate": each.baseline.model_copy(update={"text": each.candidate.text})})
                   for each in samples[5:]]  # fmt: skip
    names = {letter: f"h{i:03}:0" for i, letter in enumerate(changes)}

    def chosen(items: int, share: float = 0.0) -> dict[str, list[str]]:
        return parts_of(choose(items_of(samples), MODELS, items, round(share * items), 0))

    assert chosen(1)["chosen"] == [names["a"]]
    assert chosen(2)["chosen"] == [names["a"], names["c"]]
    assert chosen(3)["chosen"] == [names["a"], names["b"], names["c"]]
    assert chosen(4)["chosen"] == [names[each] for each in "abcd"]
    assert chosen(4)["same"] == ["h005:0", "h006:0"]
    everything = chosen(100, 0.5)
    assert sorted(len(each) for each in everything.values()) == [2, 5]
    assert set(everything) == {"same", "drawn"}  # 50 may be drawn, and there are only 5


def test_without_rewards_the_worst_are_those_by_utility() -> None:
    samples = [sample(i, ("old", "new"), u, None) for i, u in enumerate((0.3, -0.1, -0.4, 0.0))]
    chosen = choose(items_of(samples), MODELS, 2, 0, 0)
    assert parts_of(chosen) == {"unasked": ["h000:0", "h003:0"], "chosen": ["h001:0", "h002:0"]}


def test_where_people_judge_the_worst_are_those_by_reward_and_judge() -> None:
    rewards, judged = (0.3, -0.1, -0.4, 0.0), (0.1, 0.4, 0.9, 0.5)
    by_reward = [sample(i, ("old", "new"), None, r) for i, r in enumerate(rewards)]
    chosen = choose(items_of(by_reward), MODELS, 2, 0, 0)
    assert parts_of(chosen) == {"unasked": ["h000:0", "h003:0"], "chosen": ["h001:0", "h002:0"]}
    by_judge = [sample(i, ("old", "new"), None, None, better=b) for i, b in enumerate(judged)]
    chosen = choose(items_of(by_judge), MODELS, 2, 0, 0)
    assert parts_of(chosen) == {"chosen": ["h000:0", "h001:0"], "unasked": ["h002:0", "h003:0"]}
    # reward and judge by turns: r / 0.255 is 1.18, -0.39, -1.57, 0 and (b - 0.5) / 0.287 is -1.39, -0.35, 1.39, 0;
    # the worst mean is the second's (-0.37), and the two differ most about the third (2.96 apart, the first 2.57)
    both = [
        sample(i, ("old", "new"), None, r, better=b)
        for i, (r, b) in enumerate(zip(rewards, judged, strict=True))
    ]
    chosen = choose(items_of(both), MODELS, 2, 0, 0)
    assert parts_of(chosen) == {"unasked": ["h000:0", "h003:0"], "chosen": ["h001:0", "h002:0"]}


def test_where_nothing_says_what_got_worse_all_are_drawn() -> None:
    samples = [sample(i, ("old", "new"), None, None) for i in range(6)]
    chosen = choose(items_of(samples), MODELS, 4, 2, 0)
    assert {part: len(ids) for part, ids in parts_of(chosen).items()} == {"drawn": 4, "unasked": 2}
    assert {each.selection_probability for each in chosen if each.part == "drawn"} == {4 / 6}


def test_the_draw_is_by_chance_alone_and_says_with_which() -> None:
    samples = [sample(i, ("old", "new"), i / 10, i / 10) for i in range(10)]
    samples += [each.model_copy(update={"sample": 1}) for each in samples[:2]]
    seen: Counter[str] = Counter()
    for seed in range(600):
        chosen = choose(items_of(samples), MODELS, 6, 3, seed)
        parts = parts_of(chosen)
        assert (len(parts["chosen"]), len(parts["drawn"]), len(parts["unasked"])) == (3, 3, 6)
        assert parts["chosen"] == ["h000:0", "h001:0", "h000:1"]  # of the equally bad the first
        seen.update(parts["drawn"])
        by_part = {each.part: each.selection_probability for each in chosen}
        assert by_part == {"chosen": 1.0, "drawn": pytest.approx(3 / 9), "unasked": None}
    # each of the other 9 in a third of 600 draws; the standard deviation is sqrt(600 * 1/3 * 2/3) = 11.5
    assert len(seen) == 9 and all(abs(count - 200) < 4 * 11.5 for count in seen.values())
    again = [choose(items_of(samples), MODELS, 6, 3, 7) for _ in range(2)]
    assert again[0] == again[1]


def test_neither_place_nor_turn_tells_which_model_or_part() -> None:
    samples = [sample(i, (f"old {i}", f"new {i}"), random.Random(i).gauss(0, 1)) for i in range(800)]
    chosen = choose(items_of(samples), MODELS, 400, 200, 0)
    part = {each.id: each.part for each in chosen}
    asked = [each for each in chosen if each.part in ("chosen", "drawn")]
    queue = plan(asked, Checks(0, None, 0), ["ann"], None, seed=0)
    assert {tuple(response.run for response in each.responses) for each in queue} == {MODELS}
    for kind in (
        "chosen",
        "drawn",
    ):  # 200 each: the standard deviation of a count is 7.1, of a mean place 5.8
        mine = [(place, each) for place, each in enumerate(queue) if part[each.id] == kind]
        assert abs(sum(each.display_order == [0, 1] for _, each in mine) - 100) < 4 * 7.1
        assert abs(sum(place for place, _ in mine) / 200 - 199.5) < 4 * 5.8


def test_a_draw_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves fewer than 2 to draw"):
        ReviewConfig(items=3, random_share=0.3)


# --- with people


class Stage(Config):
    """Stands for any stage's configuration."""

    name: str


def evaluation_of(runs: Runs, samples: list[Sample]) -> Run:
    """A finished evaluation of two made-up models."""
    models = {}
    for role, stage in (("baseline", "sft"), ("candidate", "dpo")):
        with runs.begin(stage, Stage(name=role), {}) as model:
            if not model.is_done:
                model.finish({})
        models[role] = model
    with runs.begin("eval", Stage(name="eval"), models) as run:
        if not run.is_done:
            write_jsonl(run.path / "samples.jsonl", samples)
            run.finish({"verdict": "FAIL"})
    return run


def opinion(number: int) -> str:
    """Which answer people prefer, by the number of the prompt: the baseline's, the candidate's, or neither."""
    return ("baseline", "candidate", "tie")[number % 3]


def made_samples(count: int) -> list[Sample]:
    """Answers that carry their model only in a word that the scripted reviewers know the meaning of; some are equal."""
    rows = [
        sample(
            i,
            ("It is odd.", "It is odd.") if i % 5 == 4 else (f"A heron counts {i}.", f"An otter counts {i}."),
            (i % 7 - 4) / 10,
            (i % 4 - 2) / 2,
        )
        for i in range(count)
    ]
    return [
        each.model_copy(update={"candidate": each.baseline}) if number % 5 == 4 else each
        for number, each in enumerate(rows)
    ]


def pending(http: httpx.Client, dataset: dict[str, Any]) -> list[dict[str, Any]]:
    """What the page shows of what is still to be judged."""
    status = {"type": "terms", "scope": {"entity": "response", "property": "status"}, "values": ["pending"]}
    found = request(
        http, "POST", f"me/datasets/{dataset['id']}/records/search",
        json={"query": {}, "filters": {"and": [status]}}, params={"limit": 100},
    )  # fmt: skip
    return [item["record"] for item in found["items"]]


def judge(http: httpx.Client, name: str, most: int = 100, contrary: bool = False) -> int:
    """Answer as the page does: herons are the baseline's, otters the candidate's; how many were judged."""
    (dataset,) = [each for each in request(http, "GET", "me/datasets")["items"] if each["name"] == name]
    judged = pending(http, dataset)[:most]
    for record in judged:
        first = record["fields"]["response_1"]
        wanted = opinion(int(first.rstrip(".").split()[-1]))
        animal = {"baseline": "heron", "candidate": "otter"}.get(wanted)
        choice = "tie" if animal is None else "first_better" if animal in first else "second_better"
        if contrary:
            choice = {"first_better": "second_better", "second_better": "first_better"}.get(choice, choice)
        body = {"status": "submitted", "values": {"choice": {"value": choice}}}
        request(http, "POST", f"records/{record['id']}/responses", json=body)
    return len(judged)


@pytest.fixture
def people(server: Server, client: Client, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], httpx.Client]:
    monkeypatch.setenv("ARGILLA_API_KEY", server.api_key)

    def sign_in(name: str) -> httpx.Client:
        return log_in(server.url, name, client.set_up_annotator(name))

    return sign_in


@pytest.mark.slow
def test_a_blind_choice_comes_back_to_the_model_it_was_made_for(
    runs: Runs, server: Server, people: Callable[[str], httpx.Client], tmp_path: Path
) -> None:
    samples = made_samples(30)  # 6 of them the same
    evaluation = evaluation_of(runs, samples)
    config = ReviewConfig(
        items=20, annotators="human", human_annotators=("rhea", "saul"), annotators_per_record=2,
        duplicate_rate=0.1, argilla_url=server.url,
    )  # fmt: skip
    with pytest.raises(WaitingForAnnotatorsError, match="22 records wait"):
        review(config, runs, evaluation)
    (run,) = [each for each in runs.all() if each.record.stage == "feedback"]
    assert run.record.status == "waiting" and run.record.parents == {"evaluation": evaluation.id}
    with pytest.raises(UsageError, match="is waiting, not done"):
        adjudicated(run, samples)

    # all that a reviewer's account can read tells nothing of models, of scores, or of why something is asked
    rhea, saul = people("rhea"), people("saul")
    (dataset,) = [each for each in request(rhea, "GET", "me/datasets")["items"] if each["name"] == run.id]
    shown = pending(rhea, dataset)
    assert len(shown) == 22
    for record in shown:
        assert set(record["fields"]) == {"prompt", "response_1", "response_2"}
        assert not record["metadata"] and not record.get("suggestions") and not record.get("vectors")
    read = json.dumps(
        [
            shown,
            dataset,
            *(request(rhea, "GET", f"datasets/{dataset['id']}/{part}") for part in ("fields", "questions")),
        ]
    )
    secrets = [
        *evaluation.record.parents.values(),
        evaluation.id,
        "h00",
        "baseline",
        "candidate",
        "utility",
        "reward",
    ]
    assert [each for each in [*secrets, "chosen", "drawn", "sft", "dpo", "duplicate"] if each in read] == []
    herons_first = sum("heron" in record["fields"]["response_1"] for record in shown)
    assert 3 <= herons_first <= 19  # of 22 fair coins, all but one in 10,000 times

    assert judge(rhea, run.id) == 22 and judge(saul, run.id, most=21) == 21
    with pytest.raises(WaitingForAnnotatorsError, match="1 records wait"):
        review(config, runs, evaluation)
    assert judge(saul, run.id) == 1
    done = review(config, runs, evaluation)
    assert done.is_done and done.id == run.id
    parts = {name: done.metrics[f"items_{name}"] for name in ("same", "chosen", "drawn", "unasked")}
    assert parts == {"same": 6, "chosen": 10, "drawn": 10, "unasked": 4} and done.metrics["items"] == 30

    comparisons = read_jsonl(done.path / "comparisons.jsonl", Comparison)
    judged = preferred_shares(comparisons)
    worth = {"baseline": 0.0, "tie": 0.5, "candidate": 1.0}
    assert judged == {each.id: worth[opinion(int(each.id[1:4]))] for each in comparisons if not each.is_probe}
    orders = {
        (opinion(int(each.id[1:4])), tuple(each.display_order or []))
        for each in comparisons
        if not each.is_probe
    }
    assert orders == {(kind, order) for kind in worth for order in ((0, 1), (1, 0))}
    for preference in read_jsonl(done.path / "preferences.jsonl", Preference):
        wanted = opinion(int((preference.id or "")[1:4]))
        assert ("otter" in preference.chosen[0].content) == (wanted == "candidate")
        assert not {"part", "display_order"} & set(preference.model_extra or {})

    measured = adjudicated(done, samples)
    before, after, clusters, groups = measured.before, measured.after, measured.clusters, measured.groups
    assert before == [0.5] * 30 and clusters == [each.id for each in samples]
    assert groups == [each.group for each in samples]
    part_of = {each.id: each.part for each in read_jsonl(done.path / "items.jsonl", ReviewItem)}

    def mean(part: str) -> float:
        values = [judged[id_] for id_, each in part_of.items() if each == part]
        return sum(values) / len(values)

    assert sum(after) / 30 == pytest.approx((6 * 0.5 + 10 * mean("chosen") + 14 * mean("drawn")) / 30)

    # the same command reuses it, other answers are refused, and so is a change of its files
    assert review(config, runs, evaluation).record == done.record
    other = [samples[0].model_copy(update={"candidate": samples[1].candidate}), *samples[1:]]
    for wrong in (other, samples[1:]):
        with pytest.raises(UsageError, match=f"reviewed other answers than these, those of {evaluation.id}"):
            adjudicated(done, wrong)
    with pytest.raises(UsageError, match="is no review of an evaluation"):
        adjudicated(evaluation, samples)
    assert export_data_set(done, runs, tmp_path / "data")["comparisons.jsonl"] == 22
    assert "Chosen by `review`" in (tmp_path / "data/README.md").read_text()
    (done.path / "items.jsonl").write_text((done.path / "items.jsonl").read_text().replace("drawn", "chosen"))
    with pytest.raises(TamperedError, match=r"items\.jsonl was changed"):
        adjudicated(done, samples)


@pytest.mark.slow
def test_reviewers_who_differ_average_out_and_an_adjudicator_decides(
    runs: Runs, server: Server, people: Callable[[str], httpx.Client]
) -> None:
    samples = made_samples(12)
    config = ReviewConfig(
        items=12, annotators="human", human_annotators=("tess", "ugo"), annotators_per_record=2, duplicate_rate=0,
        argilla_url=server.url,
    )  # fmt: skip
    evaluation = evaluation_of(runs, samples)
    for each, adjudicators in ((0, ()), (1, ("vera",))):
        settings = config.model_copy(update={"adjudicators": adjudicators, "seed": each})
        with pytest.raises(WaitingForAnnotatorsError):
            review(settings, runs, evaluation)
        (run,) = [one for one in runs.all() if one.record.status == "waiting"]
        judge(people("tess"), run.id)
        judge(people("ugo"), run.id, contrary=True)
        if adjudicators:
            with pytest.raises(WaitingForAnnotatorsError):
                review(settings, runs, evaluation)
            vera = log_in(server.url, "vera", connect(server.url, server.api_key).set_up_annotator("vera"))
            assert judge(vera, run.id + "-adjudication") > 0
        values = adjudicated(review(settings, runs, evaluation), samples).after
        if adjudicators:  # everything is asked, so that the values are the judgements
            worth = {"baseline": 0.0, "tie": 0.5, "candidate": 1.0}
            assert values == [0.5 if i % 5 == 4 else worth[opinion(i)] for i in range(12)]
        else:
            assert values == [0.5] * 12


@pytest.fixture
def own_server(runs: Runs) -> Iterator[int]:
    yield free_port()
    process.stop(argilla_home(runs.root))


@pytest.mark.slow
def test_a_review_that_is_killed_between_push_and_pull_goes_on(
    runs: Runs, own_server: int, tmp_path: Path
) -> None:
    samples = made_samples(20)
    evaluation = evaluation_of(runs, samples)
    people = {
        "prompts": "none", "annotators": "human", "human_annotators": ["wim"], "annotators_per_record": 1,
        "port": own_server,
    }  # fmt: skip
    config = tmp_path / "round.yaml"
    config.write_text(json.dumps({**ROUND, "feedback": people}))
    command = [
        sys.executable, "-m", "accord", "--runs", str(runs.root), "feedback", "review", evaluation.id, str(config),
        "--items", "10",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = (tmp_path / "log").open("w")
    first = subprocess.Popen([*command, "--wait"], stdout=log, env=environment)
    try:
        while "rank the answers in your browser" not in (said := (tmp_path / "log").read_text()):
            assert first.poll() is None, said
            time.sleep(0.2)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    (run,) = [each for each in runs.all() if each.record.stage == "feedback"]
    assert run.record.status == "running"
    queue = (run.path / "queue.jsonl").read_bytes()
    (password,) = [line.split()[-4] for line in said.splitlines() if "user wim" in line]

    def again() -> tuple[int, str]:
        found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        return found.returncode, found.stdout + found.stderr

    code, said = again()
    assert code == 75, said
    server = process.running(argilla_home(runs.root))
    assert server
    http = log_in(server.url, "wim", password)
    assert judge(http, run.id) == 10  # and round(0.05 * 10) = 0 duplicates
    code, said = again()
    assert code == 0 and "pulled 10 new answers" in said, said
    assert (run.path / "queue.jsonl").read_bytes() == queue
    record = runs.load(run.id).record
    assert record.status == "done" and len(record.continued_at) == 2
    code, said = again()
    assert code == 0 and runs.load(run.id).record == record
    assert len(adjudicated(runs.load(run.id), samples).after) == 20


# --- into the next round

ROUND: dict[str, Any] = {
    "reward": {
        "minimum_pairs": 2,
        "epochs": 1,
        "rows_per_update": 4,
        "rows_per_pass": 4,
        "heldout_fraction": 0.2,
    },
    "rl": {"algorithm": "dpo"},
    "eval": {"gate": {"eos_rate": {"direction": "higher", "margin": 0.1}}},
}


def feedback_run(runs: Runs, name: str, prompts: list[list[Message]], annotator: str) -> Run:
    """A finished feedback run in which somebody prefers the second of two answers to each prompt."""
    comparisons = [
        comparison(i, [f"No {i}.", f"Yes {i}."]).model_copy(
            update={"prompt": prompt, "rankings": [Ranking(annotator=annotator, ranks=[2, 1])]}
        )
        for i, prompt in enumerate(prompts)
    ]
    with runs.begin("feedback", FeedbackConfig(prompts=name), {}) as run:
        write_jsonl(run.path / "comparisons.jsonl", comparisons)
        conclude(run, comparisons, "human", 0)
    return run


def asked(kind: str, count: int = 12) -> list[list[Message]]:
    return [[Message(role="user", content=f"{kind} {i}?")] for i in range(count)]


def test_joined_judgements_keep_whose_they_are_and_are_weighed_together(runs: Runs) -> None:
    one = feedback_run(runs, "one", asked("Early"), "xena")
    other = feedback_run(runs, "other", asked("Late", 5), "yuri")
    joined = join_feedback(runs, [one, other])
    assert joined.record.parents == {"feedback_0": one.id, "feedback_1": other.id}
    comparisons = read_jsonl(joined.path / "comparisons.jsonl", Comparison)
    assert len({each.id for each in comparisons}) == 17
    assert Counter(each.id.split("/")[0] for each in comparisons) == {one.id: 12, other.id: 5}
    preferences = read_jsonl(joined.output("preferences.jsonl"), Preference)
    assert len(preferences) == 17 and all(each.chosen[0].content.startswith("Yes") for each in preferences)
    assert joined.metrics["annotators"] == ["xena", "yuri"]
    assert joined.metrics["annotators_kind"] == "human"
    # the formula of simulated annotators measures nothing where people judge
    assert not any("mean_utility" in run.metrics for run in (one, other, joined))
    assert join_feedback(runs, [one, other]).record == joined.record
    with pytest.raises(UsageError, match=f"joins the rankings of {one.id}, {other.id}; export each"):
        export_data_set(joined, runs, runs.root / "data")


def test_a_review_s_preferences_train_the_next_reward_model(
    runs: Runs, tiny_model: Model, tmp_path: Path
) -> None:
    run = feedback_run(runs, "review", asked("Reviewed"), "zoe")
    config = {**ROUND, "model": str(tiny_model.folder), "preferences": f"run:{run.id}"}
    trained = run_round(RoundConfig.model_validate(config), runs, until="reward")
    assert trained.record.parents["preferences"] == run.id
    assert trained.metrics["pairs"] + trained.metrics["heldout_pairs"] == 12


@pytest.mark.slow
def test_a_round_adds_a_review_to_what_it_collects(
    runs: Runs, tiny_model: Model, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARGILLA_API_KEY", server.api_key)
    write_jsonl(tmp_path / "prompts.jsonl", [Prompt(prompt=each) for each in asked("Round", 3)])
    earlier = feedback_run(runs, "review", asked("Reviewed"), "zoe")
    feedback = {
        "prompts": str(tmp_path / "prompts.jsonl"), "responses_per_prompt": 2, "max_response_tokens": 4,
        "argilla_url": server.url,
    }  # fmt: skip
    config = {
        **ROUND, "model": str(tiny_model.folder), "sampling": {"engine": "transformers"}, "feedback": feedback,
        "preferences": f"run:{earlier.id}",
    }  # fmt: skip
    joined = run_round(RoundConfig.model_validate(config), runs, until="feedback")
    own, reviewed = (runs.load(id_) for id_ in joined.record.parents.values())
    assert reviewed.id == earlier.id and "policy" in own.record.inputs
    comparisons = read_jsonl(joined.output("comparisons.jsonl"), Comparison)
    assert Counter(each.id.split("/")[0] for each in comparisons) == {own.id: 3, earlier.id: 12}
    assert joined.metrics["annotators_kind"] == "simulated" and "zoe" in joined.metrics["annotators"]
    assert "mean_utility" in own.metrics and "mean_utility" not in joined.metrics


def test_what_the_gate_measures_is_kept_out_of_training(runs: Runs, tiny_model: Model) -> None:
    heldout = data_path("bundled:demo/prompts.heldout.jsonl").read_text().splitlines()
    prompts = [Prompt.model_validate_json(line).prompt for line in heldout[:3]]
    assert sorted(map(len, prompts)) == [1, 1, 3], "prompts of several turns are prompts, too"
    run = feedback_run(runs, "review", [*prompts, *asked("Other", 2)], "zoe")
    config = RoundConfig.model_validate({**ROUND, "preferences": f"run:{run.id}"})
    with pytest.raises(
        UsageError, match=rf"3 of the evaluation's {len(heldout)} prompts were judged in {run.id}"
    ):
        run_round(config, runs, until="reward")
    model = evaluation_of(runs, made_samples(3))
    config = RoundConfig.model_validate({**ROUND, "preferences": f"run:{model.id}"})
    with pytest.raises(UsageError, match=f"{model.id} is no feedback run"):
        run_round(config, runs, until="reward")


def test_a_file_of_preferences_stands_in_place_of_feedback_and_a_run_may_stand_beside_it() -> None:
    feedback = {"prompts": "p"}
    RoundConfig.model_validate({**ROUND, "feedback": feedback, "preferences": "run:feedback-0123456789ab"})
    with pytest.raises(ValueError, match="either a feedback section or a preferences file"):
        RoundConfig.model_validate({**ROUND, "feedback": feedback, "preferences": "file.jsonl"})
    with pytest.raises(UsageError, match=r"feedback section|preferences"):  # what needs them asks for them
        stages_until(RoundConfig.model_validate(ROUND), None)
