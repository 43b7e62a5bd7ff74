"""Opening one of accord's pages in Chromium, and what must hold of every such page."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

SCREENS = (360, 768, 1280)
"""Widths of a phone, a tablet and a desk's screen, in CSS pixels."""


def open_offline(chromium: webdriver.Chrome, page: Path) -> None:
    """Open a file; the console must stay silent, and nothing but the file be asked for."""
    chromium.get(
        "about:blank"
    )  # other tests use the same Chromium, and what their pages wrote is not this one's
    for log in ("browser", "performance"):
        chromium.get_log(log)
    chromium.get(page.resolve().as_uri())
    stayed_offline(chromium)


def stayed_offline(chromium: webdriver.Chrome) -> None:
    """Since the last look, the open page wrote nothing to the console, and asked for nothing but itself."""
    address = chromium.execute_script("return location.href.split('#')[0]")
    log = chromium.get_log("browser")
    assert log == [], log
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    requests = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    asked = {r["request"]["url"].split("#")[0] for r in requests if r["documentURL"].split("#")[0] == address}
    assert {url for url in asked if not url.startswith("data:,")} <= {address}


def set_width(chromium: webdriver.Chrome, width: int) -> None:
    """Show the open page on a screen so many CSS pixels wide."""
    chromium.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 700},
    )


def fits_every_screen(chromium: webdriver.Chrome) -> None:
    """No part of the open page is wider than a phone, a tablet or a desk's screen."""
    for width in SCREENS:
        set_width(chromium, width)
        assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def axe_violations(chromium: webdriver.Chrome) -> list[str]:
    """What axe-core finds wrong with the open page, everything that folds opened, on a desk's and a phone's screen.

    The script comes from the package axe-playwright-python, which is only its carrier. The driver runs it, which the
    page's content security policy does not reach.
    """
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("no axe-playwright-python here, which brings axe-core")
    script = Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")
    chromium.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    chromium.execute_script(f"{script}\nwindow.axe = axe;")
    violations = []
    for width in (1280, 400):
        set_width(chromium, width)
        result: dict[str, Any] = chromium.execute_async_script(
            "const done = arguments[0];"
            "axe.run(document, {resultTypes: ['violations']}).then(done, e => done({error: String(e)}))"
        )
        assert "error" not in result, result
        assert result["testEngine"]["name"] == "axe-core" and result["passes"]
        violations += [
            f"{width}px: {each['impact']} {each['id']}: {each['help']}; {len(each['nodes'])} times, such as "
            f"{each['nodes'][0]['html'][:200]}"
            for each in result["violations"]
        ]
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    return violations
