"""Chromium, driven by selenium: opens a page, presses keys, tells what was logged and what was asked of a network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--no-default-browser-check",
)  # fmt: skip


class Browser:
    """One browser, in which each test opens the page anew."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    @classmethod
    @contextmanager
    def started(cls, program: str, driver: str, profile: Path) -> Iterator[Browser]:
        """Start a browser with a profile of its own; it ends with the block."""
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = program
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        started = webdriver.Chrome(options=options, service=Service(driver))
        try:
            yield cls(started)
        finally:
            started.quit()

    def open(self, page: Path, address: str = "", *, width: int = 1280, scheme: str = "light") -> None:
        """Open the page at an address (with its #) and wait until its plans are unpacked."""
        screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get("about:blank")  # else another address of the same page would not load it anew
        self.driver.get(page.as_uri() + address)
        self.wait("document.documentElement.dataset.ready === 'yes'")

    def wait(self, condition: str) -> None:
        """Wait until an expression holds."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 60).until(lambda driver: driver.execute_script(f"return {condition}"))

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a script returns."""
        return self.driver.execute_script(script, *arguments)

    def evaluate(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the page answers for a run."""
        answer: dict[str, Any] = self.run("return planner.engine.evaluate(arguments[0])", dict(run))
        return answer

    def find(self, name: str) -> Any:
        """Return the element of an id."""
        return self.driver.find_element("id", name)

    def text(self, name: str) -> str:
        """Return what an element shows."""
        text: str = self.find(name).text
        return text

    def choose(self, name: str, text: str) -> None:
        """Choose the option that has a value."""
        from selenium.webdriver.support.ui import Select

        Select(self.find(name)).select_by_value(text)

    def type_into(self, name: str, text: str) -> None:
        """Replace what a field holds, as a person at the keyboard does."""
        from selenium.webdriver.common.keys import Keys

        self.find(name).send_keys(Keys.CONTROL, "a")
        self.find(name).send_keys(text)

    def press(self, *keys: str) -> None:
        """Press keys, whatever has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self) -> str:
        """Return the id of what has the focus."""
        name: str = self.run("return document.activeElement.id")
        return name

    def forget(self) -> None:
        """Leave out what was logged before."""
        self.driver.get_log("browser")
        self.driver.get_log("performance")

    def complaints(self) -> list[str]:
        """Return the warnings and errors on the console since `forget`."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] != "INFO"]

    def requests_elsewhere(self, page: Path) -> list[str]:
        """Return the addresses asked for since `forget` that are neither the page nor data in it."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        assert any(url.startswith(page.as_uri()) for url in asked), "requests are not recorded"
        return [url for url in asked if not url.startswith((page.as_uri(), "data:", "blob:", "about:"))]
