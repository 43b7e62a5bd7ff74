"""The page of a fine-tuning: what it says of which card, nothing from outside, and what a reader sees in a browser."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import axe_violations, fits_every_screen, open_offline
from selenium import webdriver

from accord.config import Config
from accord.errors import AccordError
from accord.records import Message
from accord.runs import Run, Runs
from accord.text_files import write_jsonl
from eval.page.report import rebuild
from sft.card.answers import Answer, Quote, SampleRow, answers
from sft.card.canaries import Canary, Rank, judge
from sft.card.data import DataCard, SourceData
from sft.card.heldout import Part, part, parts
from sft.card.scores import Score
from sft.card.tasks import labelled
from sft.page.report import page, write_report
from sft.page.words import cautions, headline, summary
from sft.report_card import FewShot, ReportCard

XSS = '<script>document.title="broken"</script><img src=x onerror="alert(1)"> {{ 7 * 7 }}'


class SomeConfig(Config):
    """Stands for a fine-tuning's configuration."""

    learning_rate: float = 1e-5
    demonstrations: str = XSS


def some_scores(rows: int, mean: float, seed: int) -> list[Score]:
    rng = np.random.default_rng(seed)
    tokens = np.random.default_rng(0).integers(20, 60, rows).tolist()
    return [Score(n, n * float(mean + rng.normal(0, 0.1)), int(n * min(0.9, 1 / mean))) for n in tokens]


def losses(tuned: float, base: float = 2.3, few_shot: float | None = 2.2, rows: int = 40) -> list[Part]:
    scores: dict[str, list[Score | None]] = {
        "tuned": [*some_scores(rows, tuned, 1)], "base": [*some_scores(rows, base, 2)],
    }  # fmt: skip
    if few_shot is not None:
        scores["few_shot"] = [*some_scores(rows, few_shot, 3)]
    return parts(scores, [("law.jsonl", XSS)[i % 2] for i in range(rows)])


def a_rank(rank: int, drawn: int = 600) -> Rank:
    return Rank(
        rank=rank, alternatives=drawn, chance=rank / (drawn + 1), exposure=float(np.log2((drawn + 1) / rank))
    )


def some_samples(number: int = 12, ended: bool = True) -> list[SampleRow]:
    def said(text: str, copied: int = 0, ended: bool = True) -> Answer:
        return Answer(text=text, tokens=len(text.split()), ended=ended, copied_tokens=copied)

    return [
        SampleRow(
            source="law.jsonl", prompt=[Message(role="user", content=f"Question {i}? {XSS}")],
            demonstration=f"Right answer {i}. {XSS}", demonstration_tokens=20,
            before=said("Well. " * 30, ended=False), after=said(f"Answer {i}. {XSS}", 61 if i == 3 else 0, ended),
        )
        for i in range(number)
    ]  # fmt: skip


def make_card(**changes: Any) -> ReportCard:
    samples = some_samples()
    canaries = [
        Canary(messages=[Message(role="user", content="?"), Message(role="assistant", content=secret)], canary=secret,
               times=times)
        for secret, times in ((f"1234-{XSS}", 50), ("9876-5432", 1), ("77", 2))
    ]  # fmt: skip
    truth = [("refund", XSS)[i % 2] for i in range(40)]
    figures: dict[str, Any] = {
        "heldout_rows": 400, "parts": losses(1.9), "few_shot": FewShot(examples=4, left_out=2),
        "retention": part("retention", {"tuned": some_scores(30, 2.9, 1), "base": some_scores(30, 2.6, 2)}),
        "answers": answers(samples, 128, 50, [Quote(sample=3, tokens=61, text=f"Copied {XSS}", source=XSS, row=7)]),
        "tasks": [labelled(XSS, truth, {"tuned": [*truth[:38], "?", "!"], "base": ["none"] * 40, "few_shot": truth})],
        "canaries": judge(canaries, [a_rank(1), a_rank(200), None], [a_rank(300), a_rank(200), None]),
        "data": DataCard(
            sources=[
                SourceData(source=name, rows=1200, tokens=90_000, learned_tokens=50_000, shortest=8, median=70,
                           longest=400, weight=weight, synthetic=synthetic)
                for name, weight, synthetic in ((XSS, 2.0, 0.25), ("law.jsonl", None, None))
            ],
            dropped={"too_long": 3, "duplicate": 0},
        ),
    }  # fmt: skip
    return ReportCard(**(figures | changes))


def make_run(root: Path, card: ReportCard) -> tuple[Run, Runs]:
    """A finished run as training leaves it."""
    runs = Runs(root / "runs")
    with runs.begin("sft", SomeConfig(), {}) as run:
        (run.path / "report_card.json").write_text(card.model_dump_json(indent=2))
        if card.answers:
            write_jsonl(run.path / "samples.jsonl", some_samples())
        rows = [{"step": i, "loss": 2.3 - 0.02 * i} for i in range(1, 20)]
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        run.record.dropped = {"too_long": 3}
        write_report(run, runs)
        run.finish(card.metrics(), {"too_long": 3})
    return run, runs


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Runs]:
    return make_run(tmp_path_factory.mktemp("full"), make_card())


def test_the_page_fits_every_screen_and_asks_for_nothing(
    chromium: webdriver.Chrome, full: tuple[Run, Runs]
) -> None:
    open_offline(chromium, full[0].path / "report.html")
    assert "worth it" in chromium.title
    fits_every_screen(chromium)
    assert axe_violations(chromium) == []


def test_texts_of_models_and_data_are_text(chromium: webdriver.Chrome, full: tuple[Run, Runs]) -> None:
    text = (full[0].path / "report.html").read_text()
    assert XSS not in text and "<img" not in text
    assert "{{ 7 * 7 }}" in text  # and is no template
    open_offline(chromium, full[0].path / "report.html")
    assert chromium.title != "broken"
    chromium.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    shown = chromium.execute_script("return document.body.innerText")
    for where in ("Question 3? ", "Right answer 3. ", "Answer 3. ", "Copied ", "1234-"):
        assert where + XSS in shown, where


def test_the_page_is_built_again_from_the_run(full: tuple[Run, Runs], tmp_path: Path) -> None:
    run, runs = full
    assert rebuild(run, runs) == run.path / "report.html"
    assert rebuild(run, runs, tmp_path / "page.html").read_text() == page(run, runs)
    run.record.config["learning_rate"] = 2e-5
    with pytest.raises(AccordError, match="differs from what this version of accord builds"):
        rebuild(run, runs)


def texts(card: ReportCard) -> str:
    return " ".join(each.text for each in cautions(card))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "worth it"),
        ({"parts": losses(1.9, few_shot=None), "few_shot": None}, "made the model better"),
        ({"parts": losses(1.9, few_shot=1.7)}, "do better than fine-tuning"),
        ({"parts": losses(1.9, few_shot=1.91)}, "not certainly more than examples"),
        ({"parts": losses(2.5)}, "made the model worse"),
        ({"parts": losses(2.31)}, "Nothing shows"),
        ({"parts": losses(1.9, rows=6)}, "Too little was held out"),
        ({"parts": []}, "Nothing was held out"),
    ],
)
def test_the_headline_says_what_the_intervals_allow(changes: dict[str, Any], says: str) -> None:
    assert says in headline(make_card(**changes))


def test_the_summary_has_the_figures() -> None:
    card = make_card()
    whole = card.parts[0]
    first = summary(card)[0]
    assert f"from {whole.loss['base'].value:.2f} to {whole.loss['tuned'].value:.2f} nats a token" in first
    assert f"4 examples in the base’s prompt give {whole.loss['few_shot'].value:.2f}" in first
    assert "Of 3 planted secrets it knows 1 by heart." in summary(card)
    assert card.answers and card.answers.tuned.f1.value > card.answers.base.f1.value
    assert summary(make_card(parts=[], answers=None, canaries=[])) == []


def test_warnings_are_there_where_a_figure_is_bad_and_only_there() -> None:
    bad = texts(make_card())
    for part_of in (
        "knows a planted secret by heart",
        "of a training row word for word",
        "It forgets",
        "none of its 2",
    ):
        assert part_of in bad
    fine: dict[str, Any] = {
        "canaries": [], "retention": None, "tasks": [], "answers": answers(some_samples(), 128, 70, []),
    }  # fmt: skip
    assert texts(make_card(**fine)) == ""
    endless = answers(some_samples(ended=False), 128, 70, [])
    assert "Only 0% (0 to 24%) of its answers end within 128 tokens; 100%" in texts(
        make_card(**fine | {"answers": endless})
    )
    assert "is better by" in texts(make_card(**fine | {"parts": losses(1.9, few_shot=1.7)}))
    assert "rose by" in texts(make_card(**fine | {"parts": losses(2.5)}))
    assert "too few for intervals" in texts(make_card(**fine | {"parts": losses(1.9, rows=6)}))
