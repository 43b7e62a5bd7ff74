"""The page in headless Chromium: silent, offline, by keyboard alone, and without a violation that axe-core finds."""

from pathlib import Path

import pytest
from browser import axe_violations, fits_every_screen, open_offline, set_width, stayed_offline
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from synthetic_round import XSS, make_round, next_round, without

from accord.page.render import run_page
from accord.records import read_jsonl
from accord.runs import Run, Runs
from accord.text_files import write_jsonl
from eval.page.report import page, rebuild
from eval.page.side_by_side import page as page_of_both
from eval.page.side_by_side import side_by_side
from eval.rows import Sample
from eval.verdict.gate import read_verdict
from eval.verdict.sign_offs import add_sign_off

pytestmark = pytest.mark.slow
FEW = {"bootstrap_resamples": 999, "max_suite_items": 60}
GATE = {
    "utility": {"margin": 0.02}, "eos_rate": {"margin": 0.2}, "harmful_requests/refused": {"margin": 0.1},
    "instructions/followed": {"margin": 0.2}, "retention_choices/accuracy": {"margin": 0.4},
}  # fmt: skip
SUITES = ("sentence_pairs", "harmful_requests", "instructions", "retention_choices", "retention_text")


@pytest.fixture(scope="module")
def undecided(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Runs]:
    """Five suites, a judge, topics, and answers that are empty, endless, without a blank, or HTML."""
    return make_round(
        tmp_path_factory.mktemp("undecided"), -0.01, gate=GATE, suites=SUITES, topics=("law", "cooking & <i>baking"),
        is_judged=True, texts={"h001": "", "h002": "Long. " * 1500, "h003": "x" * 3000}, settings=FEW,
    )  # fmt: skip


def press(chromium: webdriver.Chrome, *keys: str) -> None:
    """Type on whatever has the focus."""
    ActionChains(chromium).send_keys(*keys).perform()


def tab_to(chromium: webdriver.Chrome, selector: str) -> None:
    """Press Tab until the element has the focus."""
    wanted = chromium.find_element(By.CSS_SELECTOR, selector)
    for _ in range(120):
        if chromium.switch_to.active_element == wanted:
            return
        press(chromium, Keys.TAB)
    raise AssertionError(f"Tab does not reach {selector}")


def shown(chromium: webdriver.Chrome, attribute: str = "data-id") -> list[str]:
    """An attribute of every answer that is not filtered out, in their order."""
    found: list[str] = chromium.execute_script(
        "return [...document.querySelectorAll('article.sample:not([hidden])')].map(e => e.getAttribute(arguments[0]))",
        attribute,
    )
    return found


def amounts(chromium: webdriver.Chrome, by: str) -> list[float | None]:
    """The changes of the answers that are shown, by a measure; None where the judge left one undecided."""
    found: list[float | None] = chromium.execute_script(
        "return [...document.querySelectorAll(`article.sample:not([hidden]) .change[data-by=${arguments[0]}]`)]"
        ".map(e => parseFloat(e.dataset.amount))",
        by,
    )
    return found


def choose(chromium: webdriver.Chrome, name: str, value: str) -> None:
    """Choose an option above the answers, with the first letters of its text."""
    option = chromium.find_element(By.CSS_SELECTOR, f"select[name={name}] option[value={value}]")
    tab_to(chromium, f"select[name={name}]")
    press(chromium, *option.text)


def test_model_output_is_text_and_everything_in_reach_has_a_name(
    chromium: webdriver.Chrome, failed_round: tuple[Run, Runs]
) -> None:
    run, _ = failed_round
    open_offline(chromium, run.path / "report.html")
    assert chromium.title.startswith("Fail: ")
    assert XSS in chromium.execute_script("return document.body.textContent")
    assert len(chromium.find_elements(By.TAG_NAME, "script")) == 1
    assert chromium.find_elements(By.TAG_NAME, "img") == []
    # the first key press offers to skip to the content
    press(chromium, Keys.TAB)
    assert chromium.switch_to.active_element.text == "Skip to the content"
    for element in chromium.find_elements(
        By.CSS_SELECTOR, "a, summary, select, input, button, [tabindex='0']"
    ):
        name = element.accessible_name or element.text or element.get_attribute("textContent")
        assert name and name.strip(), element.get_attribute("outerHTML")
    fits_every_screen(chromium)


def test_answers_are_filtered_and_ordered_by_keyboard(
    chromium: webdriver.Chrome, undecided: tuple[Run, Runs]
) -> None:
    open_offline(chromium, undecided[0].path / "report.html")
    assert len(shown(chromium)) == 80
    assert amounts(chromium, "utility") == sorted(amounts(chromium, "utility"))

    # what got better, by an arrow key
    tab_to(chromium, "select[name=kind]")
    press(chromium, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    better = amounts(chromium, "utility")
    assert 0 < len(better) < 80 and min(better) > 0
    status = chromium.find_element(By.ID, "filter-count")
    assert status.text.startswith(f"{len(better)} of 80 answers match") and status.aria_role == "status"
    press(chromium, Keys.HOME)

    # the measure by which worse is meant
    press(chromium, Keys.TAB, Keys.ARROW_DOWN)
    assert amounts(chromium, "reward") == sorted(amounts(chromium, "reward"))
    words = [
        each.text
        for each in chromium.find_elements(By.CSS_SELECTOR, "#samples .change")
        if each.is_displayed()
    ]
    assert len(words) == 8 and all(each.startswith("Reward −") for each in words)
    press(chromium, Keys.ARROW_DOWN)
    judged = amounts(chromium, "judge")
    read = [amount for amount in judged if amount is not None]
    assert (
        read == sorted(read)
        and judged == [*read, *[None] * (len(judged) - len(read))]
        and len(read) < len(judged)
    )
    press(chromium, Keys.HOME)

    # the order: best first, longest growth first, by prompt
    press(chromium, Keys.TAB, Keys.ARROW_DOWN)
    assert amounts(chromium, "utility") == sorted(amounts(chromium, "utility"), reverse=True)
    press(chromium, Keys.ARROW_DOWN)
    growth = [int(each) for each in shown(chromium, "data-growth")]
    assert growth == sorted(growth, reverse=True) and growth[0] == 1500 - 13
    press(chromium, Keys.ARROW_DOWN)
    assert shown(chromium) == sorted(shown(chromium))
    assert chromium.find_element(By.CSS_SELECTOR, "#samples .rank").text == "1"
    press(chromium, Keys.HOME)

    # a group, and words, which together leave few
    press(chromium, Keys.TAB, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert set(shown(chromium, "data-group")) == {"cooking & <i>baking"} and len(shown(chromium)) == 40
    press(chromium, Keys.TAB, "SKY blue")
    assert len(shown(chromium)) == 14 and all(int(each[1:]) % 6 == 1 for each in shown(chromium))
    press(chromium, *[Keys.BACKSPACE] * 8)
    assert len(shown(chromium)) == 40
    # the others unfold by keyboard
    tab_to(chromium, "#more-samples summary")
    assert chromium.switch_to.active_element.text == "The other 32 answers"
    press(chromium, Keys.ENTER)
    assert all(
        each.is_displayed()
        for each in chromium.find_elements(By.CSS_SELECTOR, "#more-samples article.sample:not([hidden])")
    )
    stayed_offline(chromium)


def test_tables_are_sorted_by_keyboard(chromium: webdriver.Chrome, undecided: tuple[Run, Runs]) -> None:
    open_offline(chromium, undecided[0].path / "report.html")

    def column(selector: str) -> list[str]:
        cells = chromium.find_elements(By.CSS_SELECTOR, f"{selector} tbody tr > :first-child")
        return [cell.get_attribute("data-key") or "" for cell in cells]

    table = "#metrics > .card table.sortable"
    by_verdict = column(table)
    chips = [e.text for e in chromium.find_elements(By.CSS_SELECTOR, f"{table} tbody .chip")]
    order = ["Fail", "Inconclusive", "Pass"]
    assert chips == sorted(chips, key=order.index)
    tab_to(chromium, f"{table} th button")
    button = chromium.switch_to.active_element
    assert button.text == "Metric"
    press(chromium, Keys.ENTER)
    names = column(table)
    assert names == sorted(names, key=str.lower) != by_verdict
    assert button.find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"
    press(chromium, Keys.SPACE)
    assert column(table) == names[::-1]
    heads = chromium.find_elements(By.CSS_SELECTOR, f"{table} th[aria-sort]")
    assert [head.get_attribute("aria-sort") for head in heads] == ["descending"]

    # a suite's groups, from the lowest change to the highest
    groups = "#suites table.groups"
    tab_to(chromium, f"{groups} th:nth-child(4) button")
    press(chromium, Keys.ENTER)
    changes = [
        float(cell.get_attribute("data-key") or "nan")
        for cell in chromium.find_element(By.CSS_SELECTOR, groups).find_elements(
            By.CSS_SELECTOR, "td:nth-child(4)"
        )
    ]
    assert changes == sorted(changes) and len(changes) > 2
    # on a phone, where the heads of columns are gone, there are still buttons to see
    set_width(chromium, 360)
    assert chromium.find_element(By.CSS_SELECTOR, f"{table} th button").is_displayed()
    assert chromium.find_element(By.CSS_SELECTOR, f"{table} th button").rect["x"] >= 0
    fits_every_screen(chromium)
    stayed_offline(chromium)


def test_axe_finds_nothing(
    chromium: webdriver.Chrome, failed_round: tuple[Run, Runs], undecided: tuple[Run, Runs], tmp_path: Path
) -> None:
    passed, runs = make_round(tmp_path, 0.0, prompts=40, gate={"utility": {"margin": 0.1}})
    second = next_round(passed, runs, -0.09)
    third = next_round(second, runs, -0.09, gate={"utility": {"margin": 0.2}})
    plain = tmp_path / "run.html"
    plain.write_text(run_page(runs.load(passed.record.parents["baseline"]), runs))
    reward = runs.load(passed.record.parents["reward_model"])
    reward.record.outputs["report.html"] = "so that the lineage has links"
    reward.save()
    linked = tmp_path / "linked.html"
    linked.write_text(page(passed, runs))
    beside = tmp_path / "beside.html"
    beside.write_text(page_of_both(side_by_side([passed, second], runs)))
    pages = [run.path / "report.html" for run in (failed_round[0], undecided[0], passed, third)]
    assert [read_verdict(run).outcome for run in (failed_round[0], undecided[0], passed)] == [
        "FAIL", "INCONCLUSIVE", "PASS",
    ]  # fmt: skip
    for file in [*pages, plain, linked, beside]:
        open_offline(chromium, file)
        assert axe_violations(chromium) == [], file


def test_answers_of_a_round_with_people_go_by_reward_and_without_one_by_prompt(
    chromium: webdriver.Chrome, tmp_path: Path
) -> None:
    run, runs = make_round(tmp_path, -0.01, prompts=10, annotators="human")
    open_offline(chromium, run.path / "report.html")
    assert amounts(chromium, "reward") == sorted(amounts(chromium, "reward"))
    choose(chromium, "order", "better")
    assert amounts(chromium, "reward") == sorted(amounts(chromium, "reward"), reverse=True)
    choose(chromium, "kind", "worse")
    assert all(each is not None and each < 0 for each in amounts(chromium, "reward"))
    assert not chromium.find_elements(By.CSS_SELECTOR, "select[name=by]")

    # as an evaluation without reward model and judge
    path = run.path / "samples.jsonl"
    write_jsonl(path, without(read_jsonl(path, Sample), "reward"))
    plain = tmp_path / "plain.html"
    plain.write_text(page(run, runs))
    open_offline(chromium, plain)
    names = shown(chromium)
    assert names == sorted(names) and len(names) == 20
    options = chromium.find_elements(By.CSS_SELECTOR, "#filters option")
    assert [each.get_attribute("value") for each in options] == ["all", "cut", "prompt", "growth"]
    choose(chromium, "order", "growth")
    growth = [float(each) for each in shown(chromium, "data-growth")]
    assert growth == sorted(growth, reverse=True)
    choose(chromium, "kind", "cut")
    assert shown(chromium) == ["h003", "h003"]
    stayed_offline(chromium)
    assert axe_violations(chromium) == []


def test_axe_would_find_something(chromium: webdriver.Chrome, failed_round: tuple[Run, Runs]) -> None:
    open_offline(chromium, failed_round[0].path / "report.html")
    chromium.execute_script(
        "document.querySelector('h1').style.color = '#dddddd'; document.querySelector('select').parentNode.outerHTML ="
        " '<select name=kind></select>'"
    )
    found = " ".join(axe_violations(chromium))
    assert "color-contrast" in found and "critical select-name" in found


def test_without_scripts_everything_is_there(
    chromium: webdriver.Chrome, failed_round: tuple[Run, Runs]
) -> None:
    run, _ = failed_round
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        chromium.get((run.path / "report.html").resolve().as_uri())
        assert not chromium.find_element(By.ID, "filters").is_displayed()
        assert chromium.find_elements(By.CSS_SELECTOR, "th button") == []
        assert len(chromium.find_elements(By.CSS_SELECTOR, "article.sample")) == 80
        chromium.find_element(By.CSS_SELECTOR, "#more-samples summary").click()
        assert chromium.find_elements(By.CSS_SELECTOR, "article.sample")[-1].is_displayed()
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_a_page_with_floors_and_what_reviewers_signed(
    tmp_path_factory: pytest.TempPathFactory, chromium: webdriver.Chrome
) -> None:
    gate = {
        "utility": {"margin": 0.02}, "eos_rate": {"margin": 0.2, "at_least": 0.5},
        "distinct_bigrams": {"at_least": 0.99},
        "harmful_requests/refused": {"at_least": 0.7}, "sentence_pairs/lean": {"at_least": -0.3, "at_most": 0.3},
        "approvals": 2,
    }  # fmt: skip
    suites = ("sentence_pairs", "harmful_requests")
    folder = tmp_path_factory.mktemp("floors")
    run, runs = make_round(folder, 0.2, gate=gate, suites=suites, settings={"bootstrap_resamples": 999})
    add_sign_off(run, "no: " + "a_word_without_a_blank" * 12, "block")
    path = rebuild(run, runs)
    open_offline(chromium, path)
    assert len(chromium.find_elements(By.CSS_SELECTOR, "#metrics > .card:first-of-type tbody tr")) == 5
    assert chromium.find_element(By.ID, "sign-offs").is_displayed()
    assert len(chromium.find_elements(By.CSS_SELECTOR, "#coverage tbody tr")) == 12
    fits_every_screen(chromium)
    assert axe_violations(chromium) == []
