"""The page: the same bytes when rebuilt, nothing from outside, and what a reader sees in a browser."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import fits_every_screen, open_offline
from selenium import webdriver
from synthetic_round import XSS, make_round

from accord.errors import AccordError
from accord.report import FIGURES, day, duration, line_plot, number, run_page
from accord.runs import Run, Runs
from eval.config import Margin, metrics_of
from eval.gate import read_verdict
from eval.judgement import correct, judge
from eval.metric_rows import Axis, MetricRow, explain, p_text
from eval.report import page, rebuild
from eval.statistics import PairedDifference

ALL = metrics_of(["sentence_pairs"])


def change(low: float, difference: float, high: float) -> PairedDifference:
    return PairedDifference(0.5, 0.5 + difference, difference, low, high, 0.5, 160, 80)


# --- words and numbers


def test_numbers_read_well() -> None:
    assert [number(x) for x in (0.0, 0.5, -0.25, 1.234, 56.78, 1234.5, 12345, None, "x")] == [
        "0.000", "0.500", "−0.250", "1.23", "56.8", "1,234", "12,345", "–", "x",
    ]  # fmt: skip
    assert number(0.5, signed=True) == "+0.500"
    assert number(1e-6) == "1e−06"
    assert number(float("nan")) == "nan"


def test_times_read_well() -> None:
    assert day("2026-11-02T01:42:25+00:00") == "2 November 2026, 01:42 UTC"
    assert duration("2026-11-22T01:42:25+00:00", "2026-11-22T01:42:30+00:00") == "5 s"
    assert duration("2026-11-22T01:42:25+00:00", "2026-11-22T01:45:30+00:00") == "3 min 5 s"
    assert duration("2026-11-22T01:42:25+00:00", "2026-11-22T03:45:30+00:00") == "2 h 3 min"


def test_explanations() -> None:
    fall = Margin(direction="higher", margin=0.1)
    assert explain(judge(ALL["utility"], change(-0.05, 0.01, 0.07), fall), 0.95) == (
        "Simulated annotators' utility: from 0.500 to 0.510. With 95% confidence the change is between −0.050 and "
        "+0.070; the margin tolerates a fall by up to 0.100. Even the worst of these changes is within it."
    )
    assert explain(judge(ALL["eos_rate"], change(-0.4, -0.3, -0.2), fall), 0.9) == (
        "Answers that end by themselves: from 50.0% to 20.0%. With 90% confidence the change is between "
        "−40.0 points and −20.0 points; the margin tolerates a fall by up to 10.0 points. Even the mildest of these "
        "changes is worse than that."
    )
    undecided = explain(judge(ALL["utility"], change(-0.11, 0, 0.11), fall), 0.95)
    assert undecided.endswith("about 200 prompts would decide, and there were 80.")
    assert "0.500, as before." in undecided
    lean = Margin(direction="closer_to_zero", margin=0)
    assert "no move away from 50%" in explain(
        judge(ALL["sentence_pairs/lean"], change(0.1, 0.2, 0.3), lean), 0.95
    )


def test_axis_puts_better_on_the_right_and_the_margin_at_one() -> None:
    metric = judge(ALL["utility"], change(-0.05, 0.01, 0.07), Margin(direction="higher", margin=0.1))
    axis = Axis.around([metric])
    assert (axis.worst, axis.best) == pytest.approx((1.7, 1.2))
    row = MetricRow.of(metric, axis)
    # 1.7 + 1.2 = 2.9 margins wide; the fall of 0.05 is half a margin to the left of zero, which is at 1.7
    assert row.left == pytest.approx(100 * (1.7 - 0.5) / 2.9, abs=0.01)
    assert row.right == pytest.approx(100 * (1.7 + 0.7) / 2.9, abs=0.01)
    lower = judge(ALL["response_tokens"], change(-5, 1, 20), Margin(direction="lower", margin=10))
    row = MetricRow.of(lower, Axis.around([lower]))
    assert row.left < axis.x(1) and row.dot is not None and row.left < row.dot < row.right
    huge = judge(ALL["utility"], change(-3, -2, -1), Margin(direction="higher", margin=0.01))
    row = MetricRow.of(huge, Axis.around([huge]))
    assert row.beyond_left and row.dot is None


@pytest.mark.parametrize(("reason", "times"), [("answers grew & grew", 1), (None, 0)])
def test_the_page_says_why_a_stage_stopped_early(tmp_path: Path, reason: str | None, times: int) -> None:
    run, _ = make_round(tmp_path, stop_reason=reason)
    page = (run.path / "report.html").read_text()
    assert page.count("<strong>Stopped early:</strong>") == times
    assert page.count("answers grew &amp; grew.") == times


def test_plots_are_the_same_bytes_and_have_words() -> None:
    series = {"training": [(0.0, 1.0), (1.0, 0.5)], "held out": [(0.0, 1.1), (1.0, 0.7)]}
    plot = line_plot("a", "Loss <of> sft", "falls & rises", series)
    assert plot == line_plot("a", "Loss <of> sft", "falls & rises", series)
    assert '<title id="a.title">Loss &lt;of&gt; sft</title>' in plot
    assert "falls &amp; rises" in plot
    assert ">update</text>" in plot  # text, not paths
    assert "<?xml" not in plot and "<metadata" not in plot
    ids = re.findall(r'\bid="([^"]+)"', plot)
    assert len(ids) == len(set(ids)) and all(name.startswith("a.") for name in ids)
    assert all(
        f'id="{name}"' in plot for name in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', plot)[0] if name
    )


# --- the file


def test_rebuilding_gives_the_same_bytes(failed_round: tuple[Run, Runs], tmp_path: Path) -> None:
    run, runs = failed_round
    own = run.path / "report.html"
    before = own.read_bytes()
    assert rebuild(run, runs) == own
    assert rebuild(run, Runs(runs.root), tmp_path / "copy.html").read_bytes() == before == own.read_bytes()
    run.check_outputs()


def test_a_page_by_another_version_is_kept(tmp_path: Path) -> None:
    run, runs = make_round(tmp_path, prompts=10)
    (run.path / "report.html").write_text("older")
    with pytest.raises(AccordError, match="--output"):
        rebuild(run, runs)
    assert (run.path / "report.html").read_text() == "older"


def test_other_runs_have_a_page_too(failed_round: tuple[Run, Runs], tmp_path: Path) -> None:
    run, runs = failed_round
    sft = runs.load(run.record.parents["baseline"])
    page = run_page(sft, runs)
    assert "Supervised fine-tuning" in page and "<svg" in page and "demonstrations.jsonl" in page
    assert rebuild(sft, runs, tmp_path / "sft.html").read_text() == page
    with pytest.raises(AccordError, match="--output"):
        rebuild(sft, runs)


class Links(HTMLParser):
    """Every address in a page, and whether its tags are balanced."""

    def __init__(self, page: str):
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br", "input", "img"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "xlink:href", "action") and value:
                self.addresses.append(value)
            if name == "id" and value:
                self.ids.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_asks_nothing_of_the_network(failed_round: tuple[Run, Runs]) -> None:
    run, _ = failed_round
    page = (run.path / "report.html").read_text()
    links = Links(page)
    assert links.open == []
    assert len(links.ids) == len(set(links.ids))
    assert [a for a in links.addresses if not a.startswith(("#", "data:,"))] == []
    assert {a[1:] for a in links.addresses if a.startswith("#")} <= set(links.ids)
    assert (
        "default-src 'none'" in html.unescape(page)
        and "@import" not in page
        and not re.search(r"url\((?!#)", page)
    )


def test_page_says_what_a_reviewer_must_know(failed_round: tuple[Run, Runs]) -> None:
    run, runs = failed_round
    page = (run.path / "report.html").read_text()
    assert "The candidate must not replace the baseline." in page
    assert "No people were asked." in page
    for each in runs.lineage(run):
        assert each.id in page
        for digest in each.record.inputs.values():
            assert digest.split("@")[-1][:12] in page
    for digest in json.loads((run.path / "verdict.json").read_text())["files"].values():
        assert digest in page
    assert "52 pairs tied" in page and "2 duplicate" in page
    assert "76.9%" in page  # the reward model's held-out accuracy


def test_the_page_says_how_sure_one_can_be(failed_round: tuple[Run, Runs]) -> None:
    run, _ = failed_round
    verdict = read_verdict(run)
    page = (run.path / "report.html").read_text()
    metrics = page.split('<section id="metrics">')[1].split("</section>")[0]
    for metric in verdict.metrics:
        if metric.margin is not None:
            assert metric.pass_chance is not None and f"{100 * metric.pass_chance:.0f}%" in metrics
            assert p_text(metric.p_beyond_corrected) in metrics and f"family: {metric.family}" in metrics
    assert "(Holm) for all gated metrics of one family (quality)" in metrics  # the bias family has one
    # 8 groups of sentence pairs with 4 templates each, and prompts without groups
    assert "8 groups are too small to say" in metrics and "gender (4 sentence templates)" in metrics
    assert [p_text(p) for p in (None, 0.0004, 0.0213, 0.7)] == ["", "below 0.001", "0.021", "above 0.5"]


def test_a_metric_that_cannot_decide_is_explained() -> None:
    still = PairedDifference(1.0, 1.0, 0.0, 0.0, 0.0, 0.1, 160, 80, p_above=0.01, p_below=0.99)
    stuck = judge(ALL["eos_rate"], still, Margin(direction="higher", margin=0.1))
    assert "It cannot decide: both models are at the best value" in explain(stuck, 0.95)
    beyond = PairedDifference(0.6, 0.4, -0.2, -0.3, -0.11, 0.5, 160, 80, p_above=0.98, p_below=0.02)
    one = judge(ALL["utility"], beyond, Margin(direction="higher", margin=0.1))
    first, _ = correct([one, one.model_copy(update={"p_beyond": 0.4})])
    assert "one of several metrics may be so by chance (p 0.040, corrected" in explain(first, 0.95)


def test_people_are_not_called_simulated(tmp_path: Path) -> None:
    run, _ = make_round(tmp_path, annotators="human", prompts=10)
    page = (run.path / "report.html").read_text()
    assert "No people were asked" not in page
    assert "People ranked the baseline's answers in Argilla." in page


def reward_section(run: Run, runs: Runs) -> str:
    return page(run, runs).split('<section id="reward">')[1].split("</section>")[0]


def test_the_reward_model_has_a_few_figures_and_a_link_to_its_own_page(tmp_path: Path) -> None:
    run, runs = make_round(tmp_path, prompts=10)
    reward = runs.load(run.record.parents["reward_model"])
    # a run from before the report card: no page to link to, and only the figures that it has
    plain = reward_section(run, runs)
    assert re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", plain) == [
        ("Pairs it was trained on", "313"), ("Held-out pairs", "78"),
    ]  # fmt: skip
    assert "report card" not in plain and Links(plain).addresses == []

    few = {
        "heldout_prompts": 41, "prefer_longer_accuracy": 0.551, "length_only_accuracy": 0.449,
        "annotator_agreement": 0.702, "heldout_ece_after_temperature": 0.033,
        "score_length_correlation_within_prompts": 0.211, "disagreement_auroc": 0.605, "best_of_n_gain": 0.144,
    }  # fmt: skip
    more = {"temperature": 1.987, "heldout_brier": 0.189, "previous_mcnemar_p": 0.876}
    (reward.path / "metrics.json").write_text(json.dumps(reward.metrics | more | few))
    (reward.path / "report.html").write_text("its page")
    reward.record.outputs["report.html"] = "of its page"
    reward.save()
    full = reward_section(run, runs)
    figures = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", full))
    assert list(figures.values()) == ["313", "78", *(number(each) for each in few.values())]
    assert list(figures) == [FIGURES[key] for key in ("training_pairs", "heldout_pairs", *few)]
    assert not any(number(each) in full for each in more.values())
    (address,) = Links(full).addresses
    assert (run.path / address).resolve() == (reward.path / "report.html").resolve()


# --- in a browser


@pytest.mark.slow
def test_in_chromium(chromium: webdriver.Chrome, failed_round: tuple[Run, Runs]) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    run, _ = failed_round
    open_offline(chromium, run.path / "report.html")
    assert chromium.title.startswith("Fail: ")
    assert XSS in chromium.execute_script("return document.body.textContent")
    assert len(chromium.find_elements(By.TAG_NAME, "script")) == 1
    assert chromium.find_elements(By.TAG_NAME, "img") == []

    # the filter works by keyboard
    def shown() -> list[str]:
        return [
            article.get_attribute("data-kind")
            for article in chromium.find_elements(By.CSS_SELECTOR, "article.sample:not([hidden])")
        ]

    everything = len(shown())
    assert everything == 80
    select = chromium.find_element(By.NAME, "kind")
    select.send_keys("answers that got b")
    assert 0 < len(shown()) < everything and all("better" in kind for kind in shown())
    assert chromium.find_element(By.ID, "filter-count").text == f"{len(shown())} of 80 shown"
    select.send_keys(Keys.HOME)
    chromium.find_element(By.NAME, "words").send_keys("SKY blue")
    assert 0 < len(shown()) < everything
    chromium.find_element(By.NAME, "words").clear()

    # the first key press offers to skip to the content, and everything in reach has a visible name
    chromium.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    for element in chromium.find_elements(By.CSS_SELECTOR, "a, summary, select, input, [tabindex='0']"):
        name = element.accessible_name or element.text or element.get_attribute("textContent")
        assert name.strip(), element.get_attribute("outerHTML")

    fits_every_screen(chromium)


@pytest.mark.slow
def test_without_scripts_everything_is_there(
    chromium: webdriver.Chrome, failed_round: tuple[Run, Runs]
) -> None:
    from selenium.webdriver.common.by import By

    run, _ = failed_round
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        chromium.get((run.path / "report.html").resolve().as_uri())
        assert not chromium.find_element(By.ID, "filters").is_displayed()
        assert len(chromium.find_elements(By.CSS_SELECTOR, "article.sample")) == 80
        chromium.find_element(By.CSS_SELECTOR, "#more-samples summary").click()
        assert chromium.find_elements(By.CSS_SELECTOR, "article.sample")[-1].is_displayed()
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
