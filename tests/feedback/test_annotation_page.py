"""The annotation page in headless Chromium: what a person sees, and what a hostile record cannot do."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from feedback_helpers import comparison
from selenium import webdriver
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from accord.records import Comparison, Message, Ranking, Response
from feedback.argilla.client import Client
from feedback.argilla.collect import pull, push
from feedback.argilla.server.process import Server
from feedback.argilla.tasks import display_order

pytestmark = pytest.mark.slow

HOSTILE = """\
Look: <script>top.hacked = 'script'</script><b>bold</b> & <img src=x onerror="top.hacked = 'onerror'">
<svg onload="top.hacked = 'onload'"></svg><iframe srcdoc="<script>top.hacked = 'frame'</script>"></iframe>
<a href="javascript:top.hacked = 'link'" id="trap">click</a><img src="REMOTE/image"><style>@import "REMOTE/style";
body { background: url(REMOTE/background) }</style><link rel="stylesheet" href="REMOTE/link">
<iframe src="REMOTE/frame"></iframe><img src=x onerror="alert('dialog')">
![image](REMOTE/markdown-image) [link](javascript:alert('dialog')) <REMOTE/autolink>
<details open ontoggle="top.hacked = 'toggle'"></details>

[reference]: REMOTE/reference "title"
![by reference][reference]
```html
<script>top.hacked = 'fence'</script>
```"""
# takes the whole page elsewhere, and no policy can forbid it: only the escaping of texts does
REFRESH = '<meta http-equiv="refresh" content="0; url=REMOTE/refresh">'


@pytest.fixture(scope="module")
def browser(chromium: webdriver.Chrome, server: Server, client: Client) -> webdriver.Chrome:
    """Logged in as an annotator, by typing name and password into the sign-in page."""
    chromium.get(f"{server.url}/sign-in")
    password = client.set_up_annotator("gina")
    name, word = until(lambda: chromium.find_elements(By.CSS_SELECTOR, "form input")[:2])  # type: ignore[misc]
    name.send_keys("gina")
    word.send_keys(password)
    chromium.find_element(By.CSS_SELECTOR, "form button[type=submit]").click()
    until(lambda: "sign-in" not in chromium.current_url)
    return chromium


def until(found: Callable[[], object], seconds: float = 30) -> object:
    """The first true value of `found`, asked again and again."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "the page did not get there in time"
        time.sleep(0.1)
    return value


def open_record(browser: webdriver.Chrome, server: Server, client: Client, dataset_name: str) -> str:
    """Open the dataset's queue and return the text of the record that is shown."""
    dataset = client.existing_dataset(dataset_name)
    browser.get(f"{server.url}/dataset/{dataset['id']}/annotation-mode")
    until(lambda: browser.find_elements(By.CSS_SELECTOR, "[class*=draggable]"))
    return shown(browser)


def requested_urls(browser: webdriver.Chrome) -> list[str]:
    """The URL of every request since the last call that the content security policy let through."""
    wanted, blocked = {}, set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            wanted[message["params"]["requestId"]] = message["params"]["request"]["url"]
        elif message["method"] == "Network.loadingFailed" and message["params"].get("blockedReason") == "csp":
            blocked.add(message["params"]["requestId"])
    return [url for request_id, url in wanted.items() if request_id not in blocked]


def shown(browser: webdriver.Chrome) -> str:
    return browser.find_element(By.CSS_SELECTOR, "body").text


def test_a_person_sees_the_conversation_and_ranks_by_keyboard(
    browser: webdriver.Chrome, server: Server, client: Client, tmp_path: Path
) -> None:
    texts = ["Because 1 < 2 & so on.", "<b>No</b> idea.\nSorry.", "It just is."]
    comparison = Comparison(
        id="seen",
        prompt=[
            Message(role="user", content="Name a prime."),
            Message(role="assistant", content="Seven."),
            Message(role="user", content="Why, <you> think?"),
        ],
        responses=[Response(text=text, run="secret-policy", seed=0) for text in texts],
    )
    push(client, "seen", [comparison], min_submitted=1)
    page = open_record(browser, server, client, "seen")
    browser.save_screenshot(str(tmp_path / "ranking.png"))
    for text in ["Name a prime.", "Seven.", "Why, <you> think?", "Rank the responses: 1 is best", *texts]:
        assert text in page
    order = display_order("seen", "seen", 3)
    positions = [page.index(texts[index]) for index in order]
    assert positions == sorted(positions)
    assert "secret-policy" not in browser.page_source

    # the page: an option has the focus, a digit moves it to that rank; two options share rank 1
    for rank in ("1", "2", "1"):
        browser.switch_to.active_element.send_keys(rank)
        time.sleep(0.5)
    submit = until(
        lambda: [
            button
            for button in browser.find_elements(By.TAG_NAME, "button")
            if "Submit" in button.text and button.is_enabled()
        ]
    )
    submit[0].click()  # type: ignore[index]
    until(lambda: pull(client, "seen", [comparison])[0].rankings)
    (ranking,) = pull(client, "seen", [comparison])[0].rankings
    assert (ranking.annotator, ranking.status) == ("gina", "submitted")
    assert ranking.ranks is not None
    assert [ranking.ranks[index] for index in order] == [1, 2, 1]


def test_a_person_drags_flags_declines_searches_filters_and_reads_the_guidelines(
    browser: webdriver.Chrome, server: Server, client: Client, tmp_path: Path
) -> None:
    words = ("apple", "pear", "plum", "grape")
    comparisons = [
        comparison(i, [f"Alpha {word}.", f"Beta {word}.", f"Gamma {word}."]) for i, word in enumerate(words)
    ]
    push(client, "flow", comparisons, min_submitted=1)
    open_record(browser, server, client, "flow")

    def find(selector: str, text: str = "") -> WebElement:
        found: WebElement = until(  # type: ignore[assignment]
            lambda: [each for each in browser.find_elements(By.CSS_SELECTOR, selector) if text in each.text]
        )[0]  # type: ignore[index]
        return found

    def search_for(word: str) -> None:
        box = find(".search-area__input")
        if not box.is_displayed():
            find(".search-area__icon").click()
        box.send_keys(Keys.CONTROL + "a" + Keys.NULL, Keys.DELETE, word, Keys.ENTER)
        until(lambda: shows_only(word))

    def shows_only(word: str) -> bool:
        text = " ".join(shown(browser).split())
        return f"Alpha {word}." in text and " of 1 " in text

    def judged(number: int) -> Ranking:
        (ranking,) = until(lambda: pull(client, "flow", comparisons)[number].rankings)  # type: ignore[misc, attr-defined]
        return ranking

    def as_displayed(number: int) -> list[int]:
        """The comparison's ranks by place on the page."""
        ranks = judged(number).ranks
        assert ranks is not None
        return [ranks[index] for index in display_order("flow", comparisons[number].id, 3)]

    # the search finds one record; its responses are dragged to their ranks, two of them to the first
    search_for("plum")
    for response, rank in ((1, 2), (3, 1), (2, 1)):
        card = find(".draggable__rank-card--unranked", f"Response {response}")
        slot = browser.find_elements(By.CSS_SELECTOR, ".draggable__slot-box")[rank - 1]
        drag = ActionChains(browser).click_and_hold(card).move_by_offset(10, 5).move_to_element(slot)
        drag.move_by_offset(3, 3).pause(0.3).release().perform()
        until(
            lambda response=response, rank=rank: (
                f"Response {response}" in find(f".draggable__slot:nth-child({rank})").text
            )
        )
    find("label", "Response 2").click()  # of the question about harm
    browser.save_screenshot(str(tmp_path / "dragged.png"))
    find(".button--submit").click()
    assert as_displayed(2) == [2, 1, 1]
    assert judged(2).harmful == [display_order("flow", "c-2", 3)[1]]
    assert judged(2).status == "submitted"

    # another is declined, with a reason
    search_for("pear")
    reason = find(".content__text")
    reason.click()
    reason.send_keys("I cannot judge <this>.")
    until(lambda: "I cannot judge" in reason.text)
    find(".button--discard").click()
    assert (judged(1).status, judged(1).reason, judged(1).ranks) == (
        "discarded",
        "I cannot judge <this>.",
        None,
    )

    # the filter on the status of one's own answer shows either
    for status, word in (("Submitted", "plum"), ("Discarded", "pear")):
        open_record(browser, server, client, "flow")
        find(".filter-status button").click()
        find(".filter-status li", status).find_element(By.CSS_SELECTOR, "label").click()
        until(lambda word=word: shows_only(word))

    find(".panel__header", "GUIDELINES").click()
    until(lambda: "A longer response is not better for its length" in " ".join(shown(browser).split()))


@pytest.mark.parametrize("is_raw", [False, True], ids=["as accord sends it", "past accord, as raw HTML"])
def test_html_in_a_record_runs_and_fetches_nothing(
    browser: webdriver.Chrome, server: Server, client: Client, is_raw: bool
) -> None:
    fetched: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    html = HOSTILE if is_raw else HOSTILE + REFRESH
    html = html.replace("REMOTE", f"http://127.0.0.1:{listener.server_port}")
    name = f"hostile-{is_raw}"
    comparison = Comparison(
        id="hostile",
        prompt=[Message(role="user", content=html)],
        responses=[Response(text=text, run="r", seed=0) for text in (html, "Fine.")],
    )
    push(client, name, [comparison], min_submitted=1)
    if is_raw:  # replace it, as another client could: then only the content security policy protects the page
        dataset = client.existing_dataset(name)
        (record,) = client.records(dataset["id"])
        client.request("DELETE", f"records/{record['id']}")
        fields = {"prompt": [{"role": "user", "content": html}], "response_1": html, "response_2": html}
        client.request("POST", f"datasets/{dataset['id']}/records/bulk", json={"items": [{"fields": fields}]})
    requested_urls(browser)  # what earlier pages asked for
    page = open_record(browser, server, client, name)
    for trap in browser.find_elements(By.ID, "trap"):
        browser.execute_script("arguments[0].click()", trap)
    time.sleep(1.0)
    listener.shutdown()
    assert browser.execute_script("return window.hacked") is None
    assert fetched == []
    urls = requested_urls(browser)
    assert any("/records/search" in url for url in urls), "the page's own requests are seen"
    assert [url for url in urls if not url.startswith((server.url, "data:", "blob:"))] == []
    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert.text
    assert browser.current_url.startswith(server.url)
    if not is_raw:  # every character as it was written
        assert " ".join(html.split()) in " ".join(page.split())
