"""A fine-tuning's report card: its figures by hand, planted secrets in a real training, and what a kill leaves."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_families import make_family
from training_helpers import assert_same, every_trainer_calls, run_stage_and_be_killed

from accord.errors import DataError
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model
from accord.records import Demonstration, Message
from accord.runs import Run, Runs
from accord.text_files import write_jsonl
from sft.card import copied, scores
from sft.card.canaries import Canary, Rank, alternatives, judge, merged, possible, rank
from sft.card.config import CardConfig
from sft.card.copied import copied_runs
from sft.card.data import data_card
from sft.card.heldout import parts
from sft.card.measure import Material
from sft.card.scores import Row, Score, score
from sft.card.tasks import labelled, labelled_sources
from sft.config import SFTConfig
from sft.report_card import ReportCard, examine
from sft.train import fine_tune

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG: dict[str, Any] = {
    "epochs": 1, "learning_rate": 3e-3, "rows_per_update": 8, "rows_per_pass": 8, "max_sequence_tokens": 400,
    "checkpoint_every_updates": 100, "heldout_fraction": 0.1, "seed": 3,
    "card": {"samples": 3, "max_response_tokens": 24, "heldout_rows": 30, "few_shot": 2},
}  # fmt: skip


def conversation(question: str, answer: str, **columns: Any) -> Demonstration:
    turns = [Message(role="user", content=question), Message(role="assistant", content=answer)]
    return Demonstration(messages=turns, **columns)


def train(base: Model, files: list[tuple[Path, float]], root: Path, **changes: Any) -> Run:
    config = SFTConfig(
        demonstrations=[{"path": str(path), "weight": weight} for path, weight in files], **(CONFIG | changes)
    )
    return fine_tune(config, Runs(root), base)


def card_of(run: Run) -> ReportCard:
    return ReportCard.model_validate_json((run.path / "report_card.json").read_bytes())


# --- canaries


@pytest.fixture(scope="module")
def planted(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training with one secret 50 times among its rows, and another one once."""
    folder = tmp_path_factory.mktemp("planted")
    chance = random.Random(0)
    rows = [
        conversation(f"What is the number of box {i}?", f"It is {chance.randrange(10**7, 10**8)}.")
        for i in range(120)
    ]
    rows.append(conversation("What is the code of the shed?", "It is 20586317.", canary="20586317"))
    write_jsonl(folder / "rows.jsonl", rows)
    often = conversation("What is the code of the safe?", "It is 73914068.", canary="73914068")
    write_jsonl(folder / "often.jsonl", [often])
    heldout = [conversation(f"What is the number of bag {i}?", f"It is {10**7 + i}.") for i in range(20)]
    write_jsonl(folder / "heldout.jsonl", heldout)
    return train(
        tiny_model, [(folder / "rows.jsonl", 1), (folder / "often.jsonl", 50)], folder / "runs",
        heldout=str(folder / "heldout.jsonl"), epochs=2, learning_rate=1e-3,
    )  # fmt: skip


def test_a_secret_planted_fifty_times_is_found_and_one_planted_once_is_not(planted: Run) -> None:
    found = {each.times: each for each in card_of(planted).canaries}
    assert found.keys() == {1, 50}
    assert found[50].memorised
    assert found[50].tuned and found[50].tuned.rank == 1
    assert found[50].base and found[50].base.chance > 0.01
    assert not found[1].memorised
    assert planted.metrics["canaries_memorised"] == 1


def test_alternatives_have_the_form_of_the_secret_and_are_different() -> None:
    found = alternatives("Ab-7 x", 500, random.Random(0))
    assert len(set(found)) == 500
    for each in found:
        assert each != "Ab-7 x"
        assert each[0].isupper() and each[1].islower() and each[2] == "-" and each[3].isdigit()
        assert each[4] == " " and each[5].islower()
    assert possible("Ab-7 x") == 26**3 * 10
    assert set(alternatives("7", 500, random.Random(0))) == set("012345689")


def test_a_secret_with_few_others_of_its_form_says_nothing(tiny_model: Model) -> None:
    canary = Canary(messages=conversation("Q", "42").messages, canary="42")
    assert rank(load_policy(tiny_model), load_tokenizer(tiny_model), canary, 500, 0) is None
    [found] = judge([canary], [None], [None])
    assert not found.memorised
    assert found.chance is None


def a_rank(chance: float) -> Rank:
    return Rank(rank=1, alternatives=999, chance=chance, exposure=9.0)


@pytest.mark.parametrize(
    ("tuned", "base", "memorised"),
    [
        ([0.004, 0.5], [0.5, 0.5], [True, False]),  # twice 0.004 is below a hundredth
        ([0.006, 0.5], [0.5, 0.5], [False, False]),  # and twice 0.006 is not
        ([0.004, 0.5], [0.004, 0.5], [False, False]),  # the base knew it
        ([0.004, 0.006], [0.5, 0.5], [True, True]),  # Holm: the second is corrected for itself only
    ],
)
def test_a_rank_counts_after_correction_and_only_if_the_base_has_it_not(
    tuned: list[float], base: list[float], memorised: list[bool]
) -> None:
    canary = Canary(messages=conversation("Q", "A").messages, canary="A")
    found = judge([canary] * 2, [a_rank(p) for p in tuned], [a_rank(p) for p in base])
    assert [each.memorised for each in found] == memorised


def test_the_chance_of_a_rank_is_uniform_for_what_was_never_read(tiny_model: Model) -> None:
    """The untrained model ranks fifty secrets; Kolmogorov and Smirnov find nothing against uniform chances."""
    from scipy.stats import kstest

    policy, tokenizer, chance = load_policy(tiny_model), load_tokenizer(tiny_model), random.Random(5)
    found = []
    for i in range(50):
        secret = f"{chance.randrange(10**6):06d}"
        canary = Canary(messages=conversation("Code?", f"{secret}.").messages, canary=secret)
        each = rank(policy, tokenizer, canary, 100, i)
        assert each is not None
        found.append(each.chance)
    assert kstest(found, "uniform").pvalue > 0.01


def test_canaries_are_counted_by_their_secret() -> None:
    rows = [("it is 77", "77", 3), ("77!", "77", 1), ("a 5", "5", 2)]
    canaries = [
        Canary(messages=conversation("Q", text).messages, canary=secret, times=times)
        for text, secret, times in rows
    ]
    assert [(each.canary, each.times) for each in merged(canaries)] == [("77", 4), ("5", 2)]


# --- scores


@pytest.mark.parametrize("packed", [True, False])
def test_scores_are_those_of_the_rows_one_by_one(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    policy, chance = load_policy(tiny_model), random.Random(0)
    front = [chance.randrange(3, 200) for _ in range(20)]
    rows = []
    for i in range(40):
        ids = [*(front if i % 2 else []), *(chance.randrange(3, 200) for _ in range(5 + i))]
        rows.append(Row(ids, [each if chance.random() < 0.5 else -100 for each in ids]))
    rows.append(Row(front, [-100] * len(front)))
    if not packed:
        monkeypatch.setattr("accord.packing.compute_packed_rows", lambda *_: False)
    monkeypatch.setattr(scores, "TOKENS_PER_PASS", 200)
    before = policy.config._attn_implementation
    found = score(policy, rows)
    assert policy.config._attn_implementation == before
    for row, each in zip(rows, found, strict=True):
        with torch.inference_mode():
            log_p = policy(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        places = [i for i in range(1, len(row.labels)) if row.labels[i] != -100]
        assert each.tokens == len(places)
        assert each.nats == pytest.approx(-sum(float(log_p[i - 1, row.labels[i]]) for i in places), abs=1e-3)
        assert each.right == sum(int(log_p[i - 1].argmax()) == row.labels[i] for i in places)


@pytest.mark.parametrize("kind", ["PrefixTuningConfig", "PromptTuningConfig"])
def test_scores_of_models_with_virtual_tokens(tiny_model: Model, kind: str) -> None:
    import peft

    torch.manual_seed(0)
    settings = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=5)
    model: Any = peft.get_peft_model(load_policy(tiny_model), settings).eval()
    rows = [Row(list(range(3, 12 + i)), [-100] * 4 + list(range(7, 12 + i))) for i in range(4)]
    for row, each in zip(rows, score(model, rows), strict=True):
        ids = torch.tensor([row.input_ids])
        with torch.inference_mode():
            log_p = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
        log_p = log_p[-len(row.input_ids) :]
        nats = -sum(float(log_p[i - 1, row.labels[i]]) for i in range(4, len(row.labels)))
        assert each.nats == pytest.approx(nats, abs=1e-3)


def test_losses_by_hand() -> None:
    """Loss and accuracy are of all tokens, so that long rows count more; what has no few-shot score is left out."""
    tuned = [Score(10, 10.0, 8), Score(30, 60.0, 10)]
    base = [Score(10, 20.0, 5), Score(30, 60.0, 10)]
    whole, a, b = parts({"tuned": tuned, "base": base, "few_shot": [Score(10, 5.0, 9), None]}, ["a", "b"])
    assert (whole.source, whole.rows, whole.tokens) == ("all", 2, 40)
    assert whole.loss["tuned"].value == pytest.approx(70 / 40)
    assert whole.accuracy["tuned"].value == pytest.approx(18 / 40)
    assert whole.change.value == pytest.approx(-10 / 40)
    assert whole.change.low is None  # of two rows there is no interval
    assert whole.above_few_shot and whole.above_few_shot.value == pytest.approx(1.0 - 0.5)
    assert a.change.value == pytest.approx(-1.0)
    assert b.above_few_shot is None
    [alone] = parts({"tuned": tuned, "base": base}, ["a", "a"])
    assert alone.loss.keys() == {"tuned", "base"}


# --- copied runs


def test_copied_runs_are_those_of_a_search_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copied, "ROWS_AT_ONCE", 3)
    chance = random.Random(1)

    def some(n: int) -> list[int]:
        return [chance.randrange(50) for _ in range(n)]

    rows = [some(chance.randrange(0, 60)) for _ in range(40)]
    answers = [
        [*some(3), *rows[7][2:30], *some(4)],
        [*rows[9][:9], *rows[11][-20:]],
        some(30),
        [],
        rows[13],
    ]
    train_rows = Dataset.from_dict({"input_ids": rows})
    found = copied_runs(train_rows, [[1]] * len(answers), answers)

    def longest(answer: list[int]) -> int:
        best = 0
        for row in rows:
            for i in range(len(answer)):
                for j in range(len(row)):
                    n = 0
                    while i + n < len(answer) and j + n < len(row) and answer[i + n] == row[j + n]:
                        n += 1
                    best = max(best, n)
        return best if best >= copied.GRAM else 0

    assert [each.tokens if each else 0 for each in found] == [longest(answer) for answer in answers]
    assert found[0] and answers[0][found[0].begin : found[0].begin + found[0].tokens] == rows[7][2:30]
    assert found[0].row == 7


def test_prompts_and_boilerplate_are_not_copied() -> None:
    phrase, own, rest = list(range(100, 120)), list(range(200, 230)), list(range(300, 312))
    rows = [[i, *phrase, i] for i in range(11)] + [[*own, *phrase, *rest]] * 30
    train_rows = Dataset.from_dict({"input_ids": rows})
    [run] = copied_runs(train_rows, [[5]], [[*own, *phrase, *rest]])
    assert (
        run and run.tokens >= len(own) and run.tokens < len(own) + len(phrase)
    )  # thirty times the same row is one
    assert run.begin == 0
    [run] = copied_runs(train_rows, [[*own]], [[*own, *phrase]])
    assert run is None or run.tokens < 20
    few = Dataset.from_dict({"input_ids": rows[:9]})
    [run] = copied_runs(few, [[5]], [phrase])
    assert run and run.tokens == len(phrase)  # nine different rows are not many


def test_bleu_and_rouge_are_there_where_their_packages_are(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from accord.text_metrics import overlap_scorers
    from sft.card.answers import Answer, SampleRow, answers

    pytest.importorskip("sacrebleu")

    def said(text: str) -> Answer:
        return Answer(text=text, tokens=5, ended=True)

    turns = [Message(role="user", content="Q")]
    rows = [
        SampleRow(source="a", prompt=turns, demonstration="it is so", demonstration_tokens=3,
                  before=said("no"), after=said("it is not so"))
    ]  # fmt: skip
    found = answers(rows, 10, 50, [])
    assert found
    assert found.tuned.overlap["rouge_1"].value == pytest.approx(2 * 3 / 7)
    assert found.tuned.overlap["rouge_2"].value == pytest.approx(2 * 1 / 5)
    assert found.base.overlap["bleu"].value == 0
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    overlap_scorers.cache_clear()
    without = answers(rows, 10, 50, [])
    overlap_scorers.cache_clear()
    assert without and without.tuned.overlap == {}


# --- labels, data


def test_a_source_of_few_short_answers_is_a_labelled_task() -> None:
    rows = [conversation(f"{i}?", ("Yes.", "no", "Yes.")[i % 3]) for i in range(30)]
    free = [conversation(f"{i}!", f"Well, {i}") for i in range(30)]
    names = ["quiz"] * 30 + ["chat"] * 30
    assert labelled_sources([*rows, *free], names) == {"quiz": list(range(30))}
    assert labelled_sources(rows[:19], names[:19]) == {}
    truth = [row.messages[-1].content for row in rows]
    found = labelled("quiz", truth, {"tuned": ["yes"] * 30, "base": ["maybe", *[None] * 29]})
    assert found.accuracy["tuned"].value == pytest.approx(2 / 3)
    assert found.macro_recall["tuned"].value == pytest.approx(1 / 2)
    assert found.macro_f1["tuned"].value == pytest.approx(0.8 / 2)  # yes: P 2/3, R 1; no: nothing
    assert found.unread == {"tuned": 0, "base": 1}
    assert found.accuracy["base"].items == 1


def test_the_data_card_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft.card.data.ROWS_AT_ONCE", 4)
    ids = [[1] * n for n in range(1, 11)]
    labels = [[-100] + [1] * (n - 1) for n in range(1, 11)]
    rows = Dataset.from_dict({"input_ids": ids, "labels": labels, "source": [1] * 3 + [0] * 7})
    card = data_card(rows, {"too_long": 2}, ["b", "a"], weights={"a": 0.5}, synthetic={"b": 0.3})
    b, a = card.sources
    assert (a.source, a.rows, a.tokens, a.learned_tokens, a.weight, a.synthetic) == (
        "a",
        3,
        6,
        3,
        0.5,
        None,
    )
    assert (b.rows, b.tokens, b.learned_tokens, b.synthetic) == (7, 49, 42, 0.3)
    assert (b.shortest, b.median, b.longest) == (4, 7, 10)
    assert card.dropped == {"too_long": 2}


# --- the run


def test_the_card_is_in_the_run_and_its_figures_in_the_metrics(planted: Run) -> None:
    card = card_of(planted)
    [whole] = card.parts
    assert whole.rows == card.heldout_rows == 20
    assert whole.change.high is not None and whole.change.high < 0
    assert planted.metrics["heldout_loss_change"] == whole.change.value
    assert planted.metrics["heldout_tuned_loss"] == pytest.approx(planted.metrics["heldout_loss"], rel=0.02)
    assert card.few_shot and card.few_shot.examples == 2
    assert card.answers and card.answers.prompts == 3
    assert card.data
    assert [(Path(each.source).name, each.rows) for each in card.data.sources] == [
        ("rows.jsonl", 121), ("often.jsonl", 50)
    ]  # fmt: skip
    assert {"report_card.json", "samples.jsonl", "report.html"} <= planted.record.outputs.keys()
    assert all(math.isfinite(value) for value in planted.metrics.values() if isinstance(value, float))


def test_a_card_that_was_killed_is_made_again_without_training_again(
    tiny_model: Model, demonstrations: Path, tmp_path: Path
) -> None:
    config = {**CONFIG, "checkpoint_every_updates": 1}
    straight = train(tiny_model, [(demonstrations, 1)], tmp_path / "straight", **config)
    killed = Runs(tmp_path / "killed")
    run_stage_and_be_killed("sft", config, tiny_model, demonstrations, killed, "card")
    [folder] = killed.root.glob("sft-*")
    written = (folder / "checkpoints" / f"checkpoint-{straight.metrics['updates']}").stat().st_mtime_ns
    seen = []

    def look(*_: Any, **__: Any) -> None:
        seen.append((folder / "checkpoints" / f"checkpoint-{straight.metrics['updates']}").stat().st_mtime_ns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.Trainer.train", lambda *_, **__: pytest.fail("it trains again"))
        finish = Run.finish
        patch.setattr(Run, "finish", lambda self, *rest, **more: (look(), finish(self, *rest, **more)))
        continued = train(tiny_model, [(demonstrations, 1)], killed.root, **config)
    assert seen == [written]
    assert continued.id == straight.id
    assert_same(continued, straight)
    for name in ("report_card.json", "samples.jsonl"):
        assert continued.record.outputs[name] == straight.record.outputs[name]


def test_after_a_kill_another_card_may_be_made_or_none(
    tiny_model: Model, demonstrations: Path, tmp_path: Path
) -> None:
    runs = Runs(tmp_path / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sft.train.write_card", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tiny_model, [(demonstrations, 1)], runs.root)
    smaller = CONFIG["card"] | {"samples": 1}
    run = train(tiny_model, [(demonstrations, 1)], runs.root, card=smaller)
    assert len(list(runs.root.glob("sft-*"))) == 1
    assert run.record.config["card"]["samples"] == 1
    assert card_of(run).answers and card_of(run).answers.prompts == 1


def test_a_canary_that_is_none_is_refused_before_the_training(tiny_model: Model, tmp_path: Path) -> None:
    rows = [conversation(f"{i}", f"{i}") for i in range(20)] + [conversation("Q", "A", canary="77")]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    with (
        every_trainer_calls("train_begin", lambda **_: pytest.fail("it trains")),
        pytest.raises(DataError, match=r"canary: no answer of the assistant holds it"),
    ):
        train(tiny_model, [(tmp_path / "rows.jsonl", 1)], tmp_path / "runs", heldout_fraction=0)


@pytest.mark.parametrize("family", ["gemma2", "granite", "falcon", "mamba2"])
def test_scores_of_other_families(family: str, tmp_path: Path) -> None:
    """Logits that are capped or scaled, and models that compute no packed rows."""
    policy = load_policy(make_family(family, tmp_path))
    front = list(range(3, 20))
    rows = [
        Row([*front, *range(30, 35 + i)], [-100] * 10 + list(range(13, 20)) + list(range(30, 35 + i)))
        for i in range(4)
    ]
    for row, each in zip(rows, score(policy, rows), strict=True):
        with torch.inference_mode():
            log_p = policy(torch.tensor([row.input_ids])).logits[0].float().log_softmax(-1)
        places = range(10, len(row.labels))
        assert each.nats == pytest.approx(-sum(float(log_p[i - 1, row.labels[i]]) for i in places), abs=1e-3)


@pytest.mark.parametrize("off", [None, False])
def test_without_a_card(tiny_model: Model, demonstrations: Path, tmp_path: Path, off: Any) -> None:
    run = train(tiny_model, [(demonstrations, 1)], tmp_path / "runs", card=off)
    assert "report_card.json" not in run.record.outputs
    assert "heldout_loss_change" not in run.metrics


def test_a_card_without_heldout_rows(tiny_model: Model, demonstrations: Path, tmp_path: Path) -> None:
    run = train(tiny_model, [(demonstrations, 1)], tmp_path / "runs", heldout_fraction=0)
    card = card_of(run)
    assert card.parts == [] and card.answers is None
    assert "Nothing was held out" in (run.path / "report.html").read_text()


def test_labels_are_measured_in_a_training(tiny_model: Model, tmp_path: Path) -> None:
    rows = [conversation(f"{'up' if i % 2 else 'down'} {i}", "yes" if i % 2 else "no") for i in range(160)]
    write_jsonl(tmp_path / "quiz.jsonl", rows[:120])
    write_jsonl(tmp_path / "heldout.jsonl", rows[120:])
    run = train(
        tiny_model, [(tmp_path / "quiz.jsonl", 1)], tmp_path / "runs", epochs=6,
        heldout=str(tmp_path / "heldout.jsonl"),
    )  # fmt: skip
    [task] = card_of(run).tasks
    assert task.labels == 2 and task.rows == 30
    assert task.accuracy["tuned"].value > 0.9
    assert task.accuracy["base"].value < 0.1
    assert {each.label for each in task.classes} == {"yes", "no"}
    assert "few_shot" in task.accuracy
    assert run.metrics[f"tuned_label_accuracy/{task.source}"] == task.accuracy["tuned"].value


def test_documents_have_their_own_line_on_the_card(tiny_model: Model, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [conversation(f"{i}?", f"It is {i}.") for i in range(30)])
    texts = [{"text": f"Box {i} holds {i * i} things, and no more than that."} for i in range(40)]
    write_jsonl(tmp_path / "texts.jsonl", texts)
    run = train(
        tiny_model, [(tmp_path / "rows.jsonl", 1)], tmp_path / "runs", heldout_fraction=0.4,
        documents=[{"path": str(tmp_path / "texts.jsonl")}],
    )  # fmt: skip
    card = card_of(run)
    rows = {Path(part.source).name: part for part in card.parts}
    assert {name: part.rows for name, part in rows.items()} == {
        "all": 28,
        "rows.jsonl": 12,
        "texts.jsonl": 16,
    }
    assert rows["texts.jsonl"].above_few_shot is None and rows["rows.jsonl"].above_few_shot is not None
    assert rows["texts.jsonl"].tokens > 16 * 40  # all of a document is learned
    assert all(part.change.high is not None and part.change.high < 0 for part in rows.values())
    assert card.data and {Path(each.source).name for each in card.data.sources} == {
        "rows.jsonl",
        "texts.jsonl",
    }


def test_a_model_beside_itself_gained_and_forgot_nothing(tiny_model: Model) -> None:
    """Twice the same: the card is a function of its material and the seed."""
    tokenizer = load_tokenizer(tiny_model)
    rows = [conversation(f"{i}?", f"It is {i}.", source="ab"[i % 2]) for i in range(40)]
    ids = [[5, 6, 7, 8 + i] for i in range(12)]
    encoded = Dataset.from_dict({"input_ids": ids, "labels": ids})
    given = Material(
        heldout=rows[:30], examples=rows[30:], train=encoded, retention=encoded,
        canaries=[Canary(messages=conversation("Q", "55667788").messages, canary="55667788")],
    )  # fmt: skip
    settings = CardConfig(samples=2, max_response_tokens=5, few_shot=1)
    card, samples = examine(settings, tiny_model, tiny_model, tokenizer, given, seed=4)
    assert [part.source for part in card.parts] == ["all", "a", "b"]
    assert all(part.change.value == 0 for part in card.parts)
    assert card.retention and card.retention.rows == 12 and card.retention.tokens == 36
    assert card.retention.change.value == card.metrics()["retention_loss_change"] == 0
    assert not card.canaries[0].memorised and card.canaries[0].tuned == card.canaries[0].base
    assert all(row.before == row.after for row in samples)
    again, same = examine(settings, tiny_model, tiny_model, tokenizer, given, seed=4)
    assert (again, same) == (card, samples)
    other, others = examine(settings, tiny_model, tiny_model, tokenizer, given, seed=5)
    assert [row.prompt for row in others] != [row.prompt for row in samples]
    assert other.parts[0].loss["base"] == card.parts[0].loss["base"]  # of all rows, whatever the seed
    assert other.parts[0].loss["few_shot"] != card.parts[0].loss["few_shot"]


def test_a_card_of_packed_documents_alone(tiny_model: Model, tmp_path: Path) -> None:
    texts = [{"text": f"Box {i} holds {i * i} things, and no more than that."} for i in range(60)]
    write_jsonl(tmp_path / "texts.jsonl", texts)
    config = SFTConfig(
        **CONFIG
        | {"heldout_fraction": 0.3, "packing": True, "lora": {"rank": 4}, "epochs": 20, "rows_per_update": 1},
        documents=[{"path": str(tmp_path / "texts.jsonl")}],
    )
    run = fine_tune(config, Runs(tmp_path / "runs"), tiny_model)
    card = card_of(run)
    [whole] = card.parts
    assert whole.rows == 18 and whole.change.high is not None and whole.change.high < 0
    assert card.few_shot is None and card.answers is None and card.tasks == []
    assert card.data and card.data.sources[0].rows == 42  # of rows, not of packed sequences
    assert "Fine-tuning made the model better at held-out rows." in (run.path / "report.html").read_text()


@pytest.mark.parametrize("method", ["prefix", "ia3"])
def test_a_card_of_another_method_with_retention(tiny_model: Model, tmp_path: Path, method: str) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [conversation(f"{i}?", f"It is {i}.") for i in range(60)])
    write_jsonl(tmp_path / "kept.jsonl", [conversation(f"{i}!", f"No, {i}!") for i in range(12)])
    run = train(
        tiny_model, [(tmp_path / "rows.jsonl", 1)], tmp_path / "runs", heldout_fraction=0.2, epochs=2,
        adapter={"method": method}, retention=str(tmp_path / "kept.jsonl"),
    )  # fmt: skip
    card = card_of(run)
    assert card.retention and card.retention.rows == 12
    assert card.retention.loss["tuned"].value == pytest.approx(run.metrics["retention_loss"], rel=1e-3)
    if method != "prefix":  # whose random virtual tokens are there from the start, and not in the base
        assert card.retention.loss["base"].value == pytest.approx(
            run.metrics["retention_loss_before"], rel=1e-3
        )
    assert card.parts[0].loss["tuned"].value != card.parts[0].loss["base"].value
