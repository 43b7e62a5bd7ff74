"""The page of a feedback run: what it says of whom, nothing from outside, and what a reader sees in a browser."""

import html
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import open_offline
from selenium import webdriver

from accord.records import Comparison, Message, Ranking, Response
from accord.statistics import Estimate
from feedback.belief.agreement import Agreement, measure_agreement
from feedback.belief.preferences import pairwise_preferences
from feedback.belief.reliability import fit_reliability
from feedback.belief.suspicion import Suspicion
from feedback.page.report import believable, displayed_names, figures, summary, write_report

XSS = '<script>document.title="broken"</script><img src=x onerror="alert(1)">'


def collected(*names: str, records: int = 40) -> list[Comparison]:
    """Records of three responses that the first two annotators read well, and the third ranks as displayed."""
    rng = np.random.default_rng(0)
    comparisons = []
    for i in range(records):
        worth, order = rng.normal(size=3), rng.permutation(3).tolist()
        likings = [worth + rng.normal(0, 0.5, 3), worth + rng.normal(0, 0.5, 3), -np.argsort(order)]
        comparisons.append(
            Comparison(
                id=f"c-{i}",
                prompt=[Message(role="user", content=f"Question {i}? {XSS}")],
                responses=[
                    Response(text=f"Answer {j}. {XSS} " + "So it is. " * int(rng.integers(1, 20)), run="r", seed=j)
                    for j in range(3)
                ],
                rankings=[
                    Ranking(
                        annotator=name, ranks=[1 + int((liking > v).sum()) for v in liking], seconds=20.0,
                        reason=f"because {XSS}", harmful=[1],
                    )
                    for name, liking in zip(names, likings, strict=True)
                ],
                display_order=order,
                gold_ranks=[1 + int((worth > w).sum()) for w in worth] if i < 12 else None,
            )
        )  # fmt: skip
    return comparisons


def evidence(*names: str) -> tuple[Any, ...]:
    comparisons = collected(*names)
    reliability = fit_reliability(comparisons)
    agreement = measure_agreement(comparisons, reliability)
    return comparisons, agreement, reliability, *pairwise_preferences(comparisons, reliability)


@pytest.fixture(scope="module")
def people() -> tuple[Any, ...]:
    return evidence("zoe", "nora", "alice")


def page_of(tmp_path: Path, evidence: tuple[Any, ...], **options: Any) -> str:
    write_report(tmp_path / "report.html", *evidence, **options)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_names_numbers_and_not_people(tmp_path: Path, people: tuple[Any, ...]) -> None:
    page = page_of(tmp_path, people, title="feedback-1")
    # numbers go by the order of the names: alice, who follows the display, is 1
    assert not re.search("alice|nora|zoe", page)
    assert "<strong>annotator 1</strong> follows the order of display" in page
    assert page.index('id="warnings"') < page.index('id="agreement"') < page.index('id="annotators"')
    shown = page_of(tmp_path, people, show_names=True)
    assert "<strong>alice</strong> follows the order of display" in shown
    assert "annotator 1" not in shown
    assert page == page_of(tmp_path, people, title="feedback-1")


def test_simulated_annotators_are_called_so(tmp_path: Path) -> None:
    simulated = evidence("simulated_a", "simulated_b", "simulated_c")
    page = page_of(tmp_path, simulated)
    assert "The annotators are simulated." in page and "simulated_c" in page
    assert displayed_names(["simulated_x", "bob"], False) == {
        "bob": "annotator 1",
        "simulated_x": "simulated_x",
    }


def test_nothing_comes_from_outside_and_what_was_written_is_text(
    tmp_path: Path, people: tuple[Any, ...]
) -> None:
    page = page_of(tmp_path, people)
    assert re.findall(r"(?:src|href)=[\"'](?!#|data:,)[^\"']*", page) == []
    assert "default-src 'none'" in html.unescape(page) and "script-src 'none'" in html.unescape(page)
    assert "<script" not in page and "<img" not in page
    assert html.escape(XSS, quote=False)[:20] in page
    assert "built-in method" not in page and "None" not in page and "nan" not in page.lower().split()
    # every cell of every table has a heading that names it
    assert page.count("<th scope=") == page.count("<th ") == page.count("</th>")


def test_the_counts_are_the_preferences(tmp_path: Path, people: tuple[Any, ...]) -> None:
    comparisons, _, _, preferences, counts = people
    page = page_of(tmp_path, people)
    assert counts["probe"] == 36 and sum(counts.values()) == 3 * len(comparisons)
    assert f"120 pairs of responses, of which {len(preferences)} state a preference" in page
    assert re.search(r"of gold records and duplicates.*?</th><td class=\"number\">36<", page)


def test_figures_are_json_and_the_summary_says_them(people: tuple[Any, ...]) -> None:
    found = json.loads(json.dumps(figures(*people), allow_nan=False))
    _, agreement, reliability, preferences, counts = people
    assert found["annotators"]["zoe"]["gold"]["value"] == agreement.annotators["zoe"].gold.value
    assert found["reliability"]["annotators"]["zoe"]["beta"] == reliability.annotators["zoe"].beta
    assert found["preferences"] == len(preferences) and found["pairs"] == counts
    assert found["mean_weight"] == pytest.approx(np.mean([each.weight for each in preferences]))
    assert set(found["dawid_skene"]["confusion"]) == {"alice", "nora", "zoe"}
    assert [each["annotator"] for each in found["warnings"]] == ["alice"]
    assert found["kappa"][0]["annotators"] == ["alice", "nora"]
    text = summary(found)
    assert text.startswith("With care: not all annotators can be relied on.")
    assert "- Warning: alice follows the order of display" in text
    alpha = f"{agreement.alpha_ranks.value:.2f}"
    assert f"- Krippendorff's alpha of ranks: {alpha} (95% interval" in text


def test_a_fit_that_did_not_settle_is_said_in_the_text_too(tmp_path: Path, people: tuple[Any, ...]) -> None:
    comparisons, agreement, reliability, *rest = people
    assert "did not settle" not in summary(figures(*people)) + page_of(tmp_path, people)
    rough = (comparisons, agreement, replace(reliability, converged=False), *rest)
    said = "he model of the annotators' reliability did not settle"
    assert f"- Warning: t{said}" in summary(figures(*rough))
    assert f"T{said}" in html.unescape(page_of(tmp_path, rough))


def test_the_headline_follows_from_agreement_and_warnings(people: tuple[Any, ...]) -> None:
    found: Agreement = people[1]

    def verdict(alpha: Estimate | None, named: bool = False, rest: Estimate | None = None) -> str:
        warnings = [Suspicion("alice", "random", "guesses")] if named else []
        return believable(replace(found, alpha_ranks=alpha, warnings=warnings, alpha_ranks_of_rest=rest))[0]

    good = Estimate(0.8, 0.7, 0.9, 100)
    assert verdict(good) == "Yes: annotators agree well."
    assert verdict(Estimate(0.5, 0.4, 0.6, 100)).startswith("With care: annotators agree more than chance")
    assert verdict(Estimate(0.1, -0.1, 0.3, 100)) == "Not yet: annotators agree no better than chance."
    assert verdict(Estimate(0.1, -0.1, 0.3, 100), named=True).startswith("Not yet")
    assert verdict(Estimate(0.1, -0.1, 0.3, 100), named=True, rest=good).startswith("With care: not all")
    assert verdict(good, named=True).startswith("With care: not all")
    assert verdict(Estimate(0.9, None, None, 6)).startswith("Too few records")
    assert verdict(None).startswith("Nothing here shows")
    assert believable(measure_agreement([]))[0] == "There is nothing to believe yet."


def test_a_run_that_nobody_answered_has_a_page(tmp_path: Path) -> None:
    empty = [each.model_copy(update={"rankings": []}) for each in collected("a", "b", "c", records=2)]
    reliability = fit_reliability(empty)
    given = (empty, measure_agreement(empty), reliability, *pairwise_preferences(empty, reliability))
    assert "There is nothing to believe yet." in page_of(tmp_path, given)
    assert summary(json.loads(json.dumps(figures(*given)))).startswith("There is nothing to believe yet.")


@pytest.mark.slow
def test_in_chromium(chromium: webdriver.Chrome, tmp_path: Path, people: tuple[Any, ...]) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    page_of(tmp_path, people)
    open_offline(chromium, tmp_path / "report.html")
    assert chromium.title.startswith("With care: not all annotators can be relied on.")
    assert XSS in chromium.execute_script("return document.body.textContent")

    # by keyboard: the first stop skips to the content; the kappas open with Enter; wide tables can be scrolled
    chromium.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert chromium.switch_to.active_element.text == "Skip to the content"
    details = chromium.find_element(By.CSS_SELECTOR, "details")
    details.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    assert details.get_attribute("open") is not None
    assert len(details.find_elements(By.CSS_SELECTOR, "tbody tr")) == 3
    # headings descend without a gap, and every scrolling part can take the focus and has a name
    levels = [int(h.tag_name[1]) for h in chromium.find_elements(By.CSS_SELECTOR, "h1, h2, h3, h4")]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    for part in chromium.find_elements(By.CSS_SELECTOR, ".scroll, .responses pre"):
        assert part.get_attribute("tabindex") == "0" and part.get_attribute("aria-label")
    for width in (1280, 400):
        chromium.set_window_size(width, 900)
        overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert chromium.execute_script(overflow) <= 0
