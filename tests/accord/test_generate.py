"""Data that a model makes: what is asked, what stays, what it costs, and that a kill costs nothing twice."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from openai_server import FakeServer, completion, serving

from accord import endpoint
from accord.cli.main import main
from accord.data.config import GenerateConfig
from accord.data.generate import bare, generate
from accord.data.rows import open_data
from accord.errors import AccordError, DataError, UsageError
from accord.models.references import Model
from accord.records import Demonstration, Message, Prompt, read_jsonl
from accord.runs import Run, Runs
from accord.sampling.config import SamplingConfig
from accord.sampling.transformers_sampler import TransformersSampler
from sft.config import SFTConfig

pytestmark = pytest.mark.usefixtures("one_thread")

KEY = "sk-this-must-stay-secret"
NAMES = ["oak", "elm", "ash", "fir", "yew", "box"]
WORDS = "Nobody who ever walked there on a cold and windy evening in late autumn would forget how tall they were then"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(endpoint, "SECONDS_BETWEEN_TRIES", (0.01,))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving() as fake:
        yield fake


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    path = tmp_path / "seeds.jsonl"
    rows = [{"prompt": [{"role": "user", "content": f"How tall is the {name} by the old mill?"}], "topic": name}
            for name in NAMES]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def made(server: FakeServer, runs: Runs, seeds: Path, **settings: Any) -> Run:
    config = {"seeds": str(seeds), "model": f"{server.url}#writer", **settings}
    return generate(GenerateConfig.model_validate(config), runs)


def reasons(run: Run) -> list[tuple[int, str]]:
    return [(row["request"], row["reasons"][0]["what"]) for row in lines(run.path / "dropped.jsonl")]


def test_answers_are_filtered_marked_and_paid(server: FakeServer, runs: Runs, seeds: Path) -> None:
    def reply(question: str, body: dict[str, Any]) -> dict[str, Any]:
        said = {
            "oak": f"Forty feet. {WORDS}.", "elm": "I'm sorry, but I can't help with that.", "ash": question,
            "fir": " ", "box": f"{body['seed']} feet.",
        }  # fmt: skip
        name = question.split()[4]
        finish = "length" if name == "yew" else "stop"
        return completion(said.get(name, "It is"), usage=(10, 5), finish=finish)

    server.reply = reply
    run = made(
        server, runs, seeds, samples_per_seed=2, max_response_tokens=40, temperature=0.5,
        price_of_million_prompt_tokens=2, price_of_million_tokens=10,
    )  # fmt: skip
    rows = lines(run.path / "rows.jsonl")
    assert [row["topic"] for row in rows] == ["oak", "box", "box"]
    seed = rows[1]["synthetic"]["seed"]
    assert rows[1] == {
        "messages": [{"role": "user", "content": "How tall is the box by the old mill?"},
                     {"role": "assistant", "content": f"{seed} feet."}],
        "topic": "box",
        "synthetic": {"run": run.id, "kind": "answers", "model": f"{server.url}#writer", "seed": seed,
                      "seed_rows": [6]},
    }  # fmt: skip
    assert (
        rows[2]["synthetic"]["seed"] != seed and len(read_jsonl(run.path / "rows.jsonl", Demonstration)) == 3
    )
    assert reasons(run) == [
        (2, "near_duplicates"), (3, "refusals"), (4, "refusals"), (5, "verbatim"), (6, "verbatim"), (7, "blank"),
        (8, "blank"), (9, "cut_off"), (10, "cut_off"),
    ]  # fmt: skip
    assert run.record.dropped == {
        "near_duplicates": 1,
        "refusals": 2,
        "verbatim": 2,
        "blank": 2,
        "cut_off": 2,
    }
    figures = run.metrics
    assert (figures["seeds"], figures["asked"], figures["written"], figures["kept"]) == (6, 12, 10, 3)
    assert figures["yield"] == 0.25 and (figures["prompt_tokens"], figures["tokens"]) == (120, 60)
    assert figures["price"] == pytest.approx((120 * 2 + 60 * 10) / 1e6) and figures["tokens_unknown"] == 0
    assert {body["temperature"] for body in server.bodies} == {0.5}
    assert {body["max_tokens"] for body in server.bodies} == {40} and set(server.keys) == {f"Bearer {KEY}"}
    assert all(KEY.encode() not in path.read_bytes() for path in run.path.rglob("*") if path.is_file())


def test_what_was_paid_for_is_not_asked_again(
    server: FakeServer, runs: Runs, seeds: Path, tmp_path: Path
) -> None:
    answered = 0

    def reply(question: str, body: dict[str, Any]) -> Any:
        nonlocal answered
        if answered == 7:
            return 400, {"error": {"message": "no credit left"}}
        answered += 1
        return completion(f"{body['seed']} feet. {question}")

    server.reply = reply
    settings: dict[str, Any] = {"samples_per_seed": 3, "requests_at_a_time": 1}
    with pytest.raises(AccordError, match="no credit left"):
        made(server, runs, seeds, **settings)
    (broken,) = runs.all()
    journal = broken.path / "checkpoints" / "replies.jsonl"
    assert len(lines(journal)) == 7
    with journal.open("a") as file:  # a kill cut the last line short
        file.write('{"number": 7, "text": "Fo')
    time.sleep(0.3)  # one more may be under way, and is refused, too
    asked = len(server.bodies)
    server.reply = lambda question, body: completion(f"{body['seed']} feet. {question}")
    run = made(server, runs, seeds, **settings | {"requests_at_a_time": 3})  # which is no other work
    assert run.id == broken.id and len(server.bodies) - asked == 18 - 7
    assert run.metrics["tokens_unknown"] == 18 and run.metrics["price"] is None
    whole = made(server, Runs(tmp_path / "others"), seeds, **settings)
    assert (whole.path / "rows.jsonl").read_bytes() == (run.path / "rows.jsonl").read_bytes()
    count = len(server.bodies)
    assert made(server, runs, seeds, **settings).is_done and len(server.bodies) == count


def test_replies_under_way_when_another_fails_are_kept(server: FakeServer, runs: Runs, seeds: Path) -> None:
    def reply(question: str, body: dict[str, Any]) -> Any:
        if "oak" in question:
            return 400, {"error": {"message": "no"}}
        time.sleep(0.5)
        return completion(f"<think>Hm.</think> {body['seed']} feet.")

    server.reply = reply
    with pytest.raises(AccordError, match="refused"):
        made(server, runs, seeds, requests_at_a_time=3)
    (broken,) = runs.all()
    journal = broken.path / "checkpoints" / "replies.jsonl"
    deadline = time.monotonic() + 20
    while len(lines(journal)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    kept = lines(journal)
    numbers = {each["number"] for each in kept}
    assert numbers >= {1, 2} and 0 not in numbers
    assert all(each["text"].endswith(" feet.") and "Hm" not in each["text"] for each in kept)


def test_paraphrases_keep_what_stands_before(server: FakeServer, runs: Runs, tmp_path: Path) -> None:
    before = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."},
              {"role": "assistant", "content": "Hello."}]  # fmt: skip
    asked = [WORDS + "?", "What is the height of the tower, in {text} feet?", "Who built the bridge?"]
    path = tmp_path / "seeds.jsonl"
    rows = [{"prompt": [*before, {"role": "user", "content": text}],
             "synthetic": {"run": "generate-0"}} for text in asked]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = {
        "Nobody": f"{WORDS}, then?",
        "What": 'New request: "How high is the tower, in feet?"',
        "Who": asked[1],
    }
    server.reply = lambda question, body: completion(texts[question.split("say: ")[1].split()[0]])
    run = made(server, runs, path, kind="paraphrases", instruction="Otherwise say: {text}")
    (row,) = lines(run.path / "rows.jsonl")
    assert row["prompt"] == [*before, {"role": "user", "content": "How high is the tower, in feet?"}]
    assert row["synthetic"]["made_from"] == {"run": "generate-0"} and row["synthetic"]["seed_rows"] == [2]
    assert reasons(run) == [(1, "near_duplicates"), (3, "verbatim")]
    assert "Otherwise say: What is the height of the tower, in {text} feet?" in server.questions


def test_new_prompts_from_some_that_are_shown(server: FakeServer, runs: Runs, seeds: Path) -> None:
    written = iter(
        [*(f"Where does the {name} grow best of all?" for name in ("rowan", "alder")), "Why? " * 3]
    )
    server.reply = lambda question, body: completion(next(written, "Where does the rowan grow best of all?"))
    run = made(server, runs, seeds, kind="prompts", examples=3, requests_at_a_time=1)
    rows = read_jsonl(run.path / "rows.jsonl", Prompt)
    assert [row.prompt[-1].text.split()[3] if len(row.prompt[-1].text) > 20 else "" for row in rows] == [
        "rowan", "alder", "",
    ]  # fmt: skip
    assert run.record.dropped == {"near_duplicates": 3}
    for i, question in enumerate(server.questions):
        shown = [line[2:] for line in question.splitlines() if line.startswith("- ")]
        assert len(set(shown)) == 3 and shown[0] == f"How tall is the {NAMES[i]} by the old mill?"
    marks = [row["synthetic"] for row in lines(run.path / "rows.jsonl")]
    assert [mark["seed_rows"][0] for mark in marks] == [1, 2, 3] and len(marks[0]["seed_rows"]) == 3
    # Both kinds of rows are read wherever such rows are named.
    named = open_data(GenerateConfig(seeds=f"run:{run.id}", model="x"), runs)
    assert read_jsonl(Path(named.seeds), Prompt) == rows
    with pytest.raises(DataError, match="messages"):
        sft = SFTConfig.model_validate({"demonstrations": [{"path": f"run:{run.id}"}]})
        read_jsonl(Path(open_data(sft, runs).demonstrations[0].path), Demonstration)


def test_a_model_here_writes_the_same_after_a_kill(
    tiny_model: Model, runs: Runs, seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = SamplingConfig(engine="transformers", answers_at_once=4, max_sequence_tokens=700)
    settings = {"seeds": str(seeds), "model": tiny_model.reference, "samples_per_seed": 4, "max_response_tokens": 300,
                "drop": ""}  # fmt: skip
    config = GenerateConfig.model_validate(settings)
    whole = generate(config, runs, sampling)
    assert whole.metrics["kept"] > 3 and {"cut_off"} <= whole.record.dropped.keys()
    assert whole.metrics["tokens"] > 0 and whole.metrics["tokens_unknown"] == 0
    sample = TransformersSampler.sample
    sampled = 0

    def killed(self: Any, prompts: Any, *arguments: Any) -> Any:
        nonlocal sampled
        if sampled == 8:
            sampled += 1
            raise KeyboardInterrupt
        if arguments[1] == 300:  # not what the sampler is verified with
            sampled += len(prompts)
        return sample(self, prompts, *arguments)

    monkeypatch.setattr(TransformersSampler, "sample", killed)
    other = Runs(tmp_path / "others")
    with pytest.raises(KeyboardInterrupt):
        generate(config, other, sampling)
    (broken,) = other.all()
    journal = broken.path / "checkpoints" / "replies.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:7]))  # killed within a batch
    again = generate(config, other, sampling)
    assert sampled == 24 + 4 + 1 and again.id == whole.id
    for name in ("rows.jsonl", "dropped.jsonl"):
        assert (again.path / name).read_bytes() == (whole.path / name).read_bytes()
    long = [Prompt(prompt=[Message(role="user", content="a" * 500)]), *read_jsonl(seeds, Prompt)]
    settings = {key: value for key, value in settings.items() if key != "seeds"}
    run = generate(GenerateConfig.model_validate(settings), runs, sampling, seeds=long)
    assert reasons(run)[:4] == [(i, "too_long") for i in range(1, 5)]
    demonstrations = SFTConfig.model_validate({"demonstrations": [{"path": f"run:{run.id}"}]})
    assert open_data(demonstrations, runs).demonstrations[0].path == str(run.path / "rows.jsonl")


def test_the_command_tells_cost_and_yield(server: FakeServer, seeds: Path, tmp_path: Path) -> None:
    server.reply = lambda question, body: completion(f"{body['seed']} feet.", usage=(9, 3))
    path = tmp_path / "make.yaml"
    path.write_text(f'data: {{generate: {{seeds: {seeds}, model: "{server.url}#writer"}}}}\n')

    def accord(*arguments: str) -> Any:
        return CliRunner().invoke(
            main, ["--runs", str(tmp_path / "runs"), "data", "generate", str(path), *arguments]
        )

    result = accord("data.generate.price_of_million_tokens=1000")
    assert result.exit_code == 0, result.output
    assert "rows.jsonl: 6 answers, 100% of 6 (run:generate-" in result.stdout
    assert "54 tokens read, 18 written" in result.stdout and "price 0.018" in result.stdout
    figures = json.loads(accord("data.generate.price_of_million_tokens=1000", "--json").stdout)
    assert figures["kept"] == 6 and figures["dropped"] == {}
    assert accord("data.generate.drop=rudeness").exit_code == 2
    assert accord("data.generate.instruction=Say").exit_code == 2
    nothing = accord("data.generate.drop=loss>0")
    assert nothing.exit_code == 1 and "loss: is missing" in nothing.stderr
    path.write_text("sft: {demonstrations: x.jsonl}\n")
    lacking = accord()
    assert lacking.exit_code == 2 and "has no section data.generate" in lacking.stderr


def test_nothing_that_stays_is_an_error_that_says_why(server: FakeServer, runs: Runs, seeds: Path) -> None:
    server.reply = lambda question, body: completion(question)
    with pytest.raises(DataError, match=r"nothing of what .*#writer wrote stays \(verbatim 6\)"):
        made(server, runs, seeds)
    with pytest.raises(UsageError, match="names no model"):
        generate(GenerateConfig(seeds=str(seeds), model=server.url), runs)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('"How tall is it?"', "How tall is it?"), ("New request: “How tall is it?” ", "How tall is it?"),
        ("Prompt:\nHow tall?", "How tall?"), ('"A" and "B"?', '"A" and "B"?'), ("Request a plan.", "Request a plan."),
        ('Say "hi"', 'Say "hi"'), ("'", "'"), ("", ""),
    ],
)  # fmt: skip
def test_a_prompt_without_what_models_put_around_it(written: str, meant: str) -> None:
    assert bare(written) == meant
