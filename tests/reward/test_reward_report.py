"""The page of a reward model: what it says of which card, nothing from outside, and what a reader sees in a browser."""

import html
import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from browser import fits_every_screen, open_offline
from selenium import webdriver

from accord.config import Config
from accord.errors import AccordError
from accord.page.words import coefficient, points, share
from accord.records import Message, Ranking, Response
from accord.runs import Run, Runs
from accord.statistics import Estimate
from accord.text_files import write_jsonl
from eval.page.report import rebuild
from feedback.belief.preferences import pairwise_preferences
from reward.page.report import page, write_report
from reward.page.words import cautions, headline, summary
from reward.report_card import ReportCard, report_card
from reward.rows import ScoredComparison, ScoredPair
from reward.train import tell_whether_guessing

XSS = '<script>document.title="broken"</script><img src=x onerror="alert(1)"> {{ 7 * 7 }}'


class SomeConfig(Config):
    """Stands for a reward model's configuration."""

    learning_rate: float = 1e-5
    preferences: str = "preferences.jsonl"
    seed: int = 0


def heldout(
    prompts: int,
    heads: int = 3,
    annotators: tuple[str, ...] = ("zoe", "nora", "alice"),
    likes_length: float = 0.5,
) -> tuple[list[ScoredPair], list[ScoredComparison]]:
    """Three answers a prompt of random worth, judged and scored with noise; the scores also follow length."""
    rng = np.random.default_rng(0)
    comparisons = []
    for i in range(prompts):
        tokens, worth = rng.integers(5, 60, 3), rng.normal(size=3)
        score = 2 * (worth + rng.normal(0, 0.5, 3) + likes_length * np.log(tokens / 20))
        judged = [worth + rng.normal(0, 0.5, 3) for _ in annotators]
        comparisons.append(
            ScoredComparison(
                id=f"c-{i}",
                prompt=[Message(role="user", content=f"Question {i}? {XSS}")],
                responses=[
                    Response(text=f"Answer {j}. {XSS} " + "So it is. " * int(t), run="r", seed=j)
                    for j, t in enumerate(tokens)
                ],
                rankings=[
                    Ranking(annotator=name, ranks=[1 + int((each > v).sum()) for v in each])
                    for name, each in zip(annotators, judged, strict=True)
                ],
                scores=(score[:, None] + rng.normal(0, 0.3, (3, heads))).tolist(),
                tokens=tokens.tolist(),
            )
        )
    pairs = []
    for row in pairwise_preferences(comparisons)[0]:
        name, _, places = str(row.id).rpartition(":")
        of, (one, other) = comparisons[int(name[2:])], (int(each) for each in places.split(">"))
        pairs.append(
            ScoredPair(
                **row.model_dump(), topic=("law", XSS)[int(name[2:]) % 2],
                chosen_scores=of.scores[one], rejected_scores=of.scores[other],
                chosen_tokens=of.tokens[one], rejected_tokens=of.tokens[other], shown_first="chosen",
                previous_chosen_score=float(rng.normal(0.2)), previous_rejected_score=float(rng.normal()),
            )
        )  # fmt: skip
    return pairs, comparisons


def make_run(
    root: Path, pairs: list[ScoredPair], comparisons: list[ScoredComparison], previous: str | None
) -> tuple[Run, Runs]:
    """A finished reward run as training leaves it."""
    runs = Runs(root / "runs")
    with runs.begin("reward", SomeConfig(), {}) as run:
        card = report_card(pairs, comparisons, 0.6, previous=previous)
        (run.path / "report_card.json").write_text(card.model_dump_json(indent=2))
        write_jsonl(run.path / "heldout.jsonl", pairs)
        rows = [{"step": i, "loss": 0.7 - 0.01 * i, "accuracy": 0.5 + 0.01 * i} for i in range(1, 20)]
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        dropped = {"too_long": 13}
        run.record.dropped = dropped
        write_report(run, runs)
        run.finish(card.metrics(), dropped)
    return run, runs


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Runs]:
    return make_run(tmp_path_factory.mktemp("full"), *heldout(60), previous="reward-0123456789ab")


@pytest.fixture(scope="module")
def card() -> ReportCard:
    return report_card(*heldout(60), 0.6, previous="reward-0123456789ab")


def text_of(run: Run) -> str:
    return (run.path / "report.html").read_text(encoding="utf-8")


# --- words


def test_figures_read_well() -> None:
    assert share(Estimate(0.712, 0.64, 0.78, 100)) == "71% (64 to 78%)"
    assert share(Estimate(0.712, None, None, 5)) == "71%"
    assert points(Estimate(0.04, -0.012, 0.09, 100)) == "+4 points (−1 to +9)"
    assert coefficient(Estimate(-0.312, -0.4, -0.2, 100)) == "−0.31 (−0.40 to −0.20)"


def test_the_summary_says_what_matters(card: ReportCard) -> None:
    changed = card.model_copy(
        update={
            "pairs": 1234,
            "accuracy": Estimate(0.71, 0.64, 0.78, 1234),
            "baselines": replace(card.baselines, length_only=Estimate(0.58, 0.5, 0.6, 1234)),
            "ceiling": replace(card.ceiling, two_annotators=Estimate(0.8, 0.7, 0.9, 1234)),
        }
    )
    assert summary(changed) == (
        "The model orders 71% (64 to 78%) of 1,234 held-out pairs as the annotators did; always preferring the longer "
        "answer gets 58%; two annotators agree on 80%."
    )
    assert summary(changed.model_copy(update={"ceiling": None})).endswith("gets 58%.")


def test_the_headline_follows_from_the_intervals(card: ReportCard) -> None:
    def says(accuracy: Estimate, above: Estimate) -> str:
        rules = replace(card.baselines, above_length_only=above)
        return headline(card.model_copy(update={"accuracy": accuracy, "baselines": rules}))

    good = Estimate(0.7, 0.6, 0.8, 100)
    assert says(good, Estimate(0.1, 0.01, 0.2, 100)).startswith("This reward model is better than guessing")
    assert says(good, Estimate(0.1, -0.01, 0.2, 100)).endswith("better than judging by length.")
    assert says(good, Estimate(-0.1, -0.2, -0.01, 100)).endswith("is worse than judging by length.")
    assert says(Estimate(0.55, 0.5, 0.6, 100), good).endswith("better than guessing.")
    assert says(Estimate(0.9, None, None, 10), good).startswith("Too little was held out")


def test_the_console_says_when_a_model_may_be_guessing(caplog: pytest.LogCaptureFixture) -> None:
    def told(**metrics: float | None) -> str:
        caplog.clear()
        run: Any = SimpleNamespace(id="reward-1", metrics=metrics, path=Path("runs/reward-1"))
        tell_whether_guessing(run)
        return caplog.text

    low = told(heldout_accuracy=0.6, heldout_accuracy_low=0.488, heldout_accuracy_high=0.7)
    assert (
        "reward-1: this reward model is not certain to be better than guessing: it orders 60% (49 to 70%)"
        in low
    )
    assert str(Path("runs/reward-1/report.html")) in low
    assert not told(heldout_accuracy=0.6, heldout_accuracy_low=0.51, heldout_accuracy_high=0.7)
    assert "too little was held out" in told(heldout_accuracy=0.9)


def fine(card: ReportCard) -> ReportCard:
    """The card with nothing to warn of."""
    level = Estimate(0.0, -0.1, 0.1, 100)
    assert card.best_of_n is not None and card.previous is not None
    return card.model_copy(
        update={
            "accuracy": Estimate(0.7, 0.6, 0.8, 100),
            "baselines": replace(card.baselines, above_length_only=Estimate(0.1, 0.05, 0.2, 100)),
            "length": replace(card.length, excess=level, pearson_within_prompts=level),
            "calibration": replace(card.calibration, overconfidence=level),
            "slices": [],
            "best_of_n": replace(card.best_of_n, gain=Estimate(0.2, 0.1, 0.3, 60), last_step=level),
            "previous": replace(card.previous, difference=level),
        }
    )


Change = Callable[[ReportCard], dict[str, Any]]
HIGH, LOW = Estimate(0.4, 0.3, 0.5, 100), Estimate(-0.4, -0.5, -0.3, 100)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: {"accuracy": Estimate(0.5, 0.4, 0.6, 100)}, "It may be guessing"),
        (lambda c: {"accuracy": Estimate(0.9, None, None, 9), "prompts": 1}, "come from 1 prompt, which"),
        (
            lambda c: {"baselines": replace(c.baselines, above_length_only=Estimate(0.02, -0.07, 0.11, 100))},
            "does about as well: the model is ahead by +2 points (−7 to +11).",
        ),
        (
            lambda c: {"baselines": replace(c.baselines, above_length_only=Estimate(-0.11, -0.22, 0.0, 100))},
            "orders more pairs as the annotators did than the model does: +11 points (+0 to +22).",
        ),
        (lambda c: {"length": replace(c.length, excess=HIGH)}, "It likes length more than the annotators do"),
        (lambda c: {"length": replace(c.length, pearson_within_prompts=HIGH)}, "Scores follow length"),
        (lambda c: {"length": replace(c.length, pearson_within_prompts=LOW)}, "is −0.40 (−0.50 to −0.30)"),
        (
            lambda c: {"calibration": replace(c.calibration, overconfidence=Estimate(0.1, 0.05, 0.15, 100))},
            "It is overconfident: on average it is 80% sure and 70% right.",
        ),
        (lambda c: {"calibration": replace(c.calibration, overconfidence=LOW)}, "less sure than it could be"),
        (lambda c: {"best_of_n": replace(c.best_of_n, gain=LOW)}, "is not certain to find a better one"),
        (lambda c: {"best_of_n": replace(c.best_of_n, last_step=LOW)}, "over-optimised already"),
        (lambda c: {"previous": replace(c.previous, difference=LOW)}, "It is worse than reward-0123456789ab"),
    ],
)
def test_each_warning_has_its_cause(card: ReportCard, change: Change, said: str) -> None:
    good = fine(card)
    assert cautions(good) == []
    (warning,) = cautions(good.model_copy(update=change(good)))
    assert said in warning.text and warning.do.endswith(".")


def test_a_part_that_is_ordered_wrongly_is_named(card: ReportCard) -> None:
    part = next(each for each in card.slices if each.by == "length")
    bad = fine(card).model_copy(update={"slices": [replace(part, accuracy=Estimate(0.3, 0.2, 0.4, 60))]})
    assert "wrong more often than right: 30% (20 to 40%)" in cautions(bad)[0].text


# --- the file


def test_the_page_holds_every_part_in_order(full: tuple[Run, Runs]) -> None:
    text = text_of(full[0])
    parts = (
        "warnings", "accuracy", "parts", "calibration", "length", "ensemble", "people", "best-of-n", "previous",
        "mistakes", "training", "lineage", "record",
    )  # fmt: skip
    places = [text.index(f'<section id="{part}">') for part in parts]
    assert places == sorted(places) and all(f'href="#{part}"' in text for part in parts)
    assert "13 too long" in text and "learning_rate: 1.0e-05" in text
    assert text.count('<article class="card mistake">') == 10
    assert not re.search("alice|nora|zoe", text) and "annotator 3" in text
    assert "built-in method" not in text and "None" not in text and "nan" not in text.lower().split()
    # every cell of every table has a heading that names it, and every table a caption but the shared ones
    assert text.count("<th scope=") == text.count("<th ") == text.count("</th>")
    assert text.count("<caption>") >= text.count("<table") - 2


def test_nothing_comes_from_outside_and_what_was_written_is_text(full: tuple[Run, Runs]) -> None:
    text = text_of(full[0])
    assert re.findall(r"(?:src|href)=[\"'](?!#|data:,)[^\"']*", text) == []
    assert "default-src 'none'" in html.unescape(text) and "script-src 'none'" in html.unescape(text)
    assert "<script" not in text and "<img" not in text
    assert html.escape(XSS, quote=False)[:20] in text and "{{ 7 * 7 }}" in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_rebuilding_gives_the_same_bytes(full: tuple[Run, Runs], tmp_path: Path) -> None:
    run, runs = full
    again = Runs(runs.root).load(run.id)
    assert page(again, runs) == text_of(run)
    assert rebuild(again, runs) == run.path / "report.html"
    assert rebuild(again, runs, tmp_path / "copy.html").read_text(encoding="utf-8") == text_of(run)
    again.check_outputs()


def test_a_page_by_another_version_is_kept(tmp_path: Path) -> None:
    run, runs = make_run(tmp_path, *heldout(12), previous=None)
    (run.path / "report.html").write_text("older")
    with pytest.raises(AccordError, match="--output"):
        rebuild(run, runs)
    assert text_of(run) == "older"


def test_a_reward_run_without_a_card_has_the_page_of_any_run(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    with runs.begin("reward", SomeConfig(), {}) as run:
        run.finish({"heldout_accuracy": 0.7})
    assert "Reward model" in rebuild(run, runs, tmp_path / "page.html").read_text()
    with pytest.raises(AccordError, match="--output"):
        rebuild(run, runs)


def test_a_file_of_three_pairs_has_a_page(tmp_path: Path) -> None:
    """No comparisons, one head, no earlier model, and too few prompts for an interval."""
    pairs = [
        each.model_copy(update={"chosen_scores": [1.0], "rejected_scores": [float(i)], "id": None})
        for i, each in enumerate(heldout(2)[0][:3])
    ]
    text = text_of(make_run(tmp_path, pairs, [], previous=None)[0])
    assert "Too little was held out to tell how good this reward model is." in text
    assert "too small to say" in text and "No temperature fits" in text  # the differences are 1, 0 and -1
    for part in ("ensemble", "people", "best-of-n", "previous"):
        assert f'id="{part}"' not in text and f"#{part}" not in text
    assert text.count('<article class="card mistake">') == 1 and "heldout.jsonl, line 3" in text
    assert "ranked by 3 annotators, of whom" in text


def test_simulated_annotators_are_called_so(tmp_path: Path) -> None:
    names = ("simulated_a", "simulated_b")
    text = text_of(make_run(tmp_path, *heldout(12, annotators=names), previous=None)[0])
    assert "The annotators are simulated." in text and "simulated_b" in text
    mixed = text_of(
        make_run(tmp_path / "b", *heldout(12, annotators=("simulated_a", "bo")), previous=None)[0]
    )
    assert "The annotators are simulated." not in mixed and "annotator 1" in mixed


# --- in a browser


@pytest.mark.slow
def test_in_chromium(chromium: webdriver.Chrome, full: tuple[Run, Runs]) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    open_offline(chromium, full[0].path / "report.html")
    assert chromium.title.startswith("This reward model is ")
    assert XSS in chromium.execute_script("return document.body.textContent")
    assert chromium.find_elements(By.TAG_NAME, "img") == []

    # by keyboard: the first stop skips to the content; the bins open with Enter
    chromium.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert chromium.switch_to.active_element.text == "Skip to the content"
    details = chromium.find_element(By.CSS_SELECTOR, "#calibration details")
    details.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    assert details.get_attribute("open") is not None and details.find_elements(By.CSS_SELECTOR, "tbody tr")
    # headings descend without a gap; pictures have words; every scrolling part can take the focus and has a name
    levels = [int(h.tag_name[1]) for h in chromium.find_elements(By.CSS_SELECTOR, "h1, h2, h3, h4")]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    plots = chromium.find_elements(By.CSS_SELECTOR, "svg.plot")
    assert len(plots) >= 5
    assert all(plot.accessible_name and plot.find_elements(By.TAG_NAME, "desc") for plot in plots)
    for part in chromium.find_elements(By.CSS_SELECTOR, ".scroll, .answers pre, #record pre"):
        assert part.get_attribute("tabindex") == "0" and part.get_attribute("aria-label")
    fits_every_screen(chromium)
