"""Opening one of accord's pages in Chromium, and what must hold of every such page."""

import json
from pathlib import Path

from selenium import webdriver


def open_offline(chromium: webdriver.Chrome, page: Path) -> None:
    """Open a file; the console must stay silent, and nothing but the file be asked for."""
    address = page.resolve().as_uri()
    chromium.get(address)
    assert chromium.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    requests = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    asked = {r["request"]["url"] for r in requests if r["documentURL"] == address}
    assert {url for url in asked if not url.startswith("data:,")} == {address}


def fits_every_screen(chromium: webdriver.Chrome) -> None:
    """No part of the open page is wider than a phone, a tablet or a desk's screen."""
    for width in (360, 768, 1280):
        chromium.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 700},
        )
        assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
