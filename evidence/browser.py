"""Debian's headless Chromium, driven through WebDriver: pages are looked at, and pictures of them taken."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
#: What to say where there is none.
MISSING = "" if CHROMIUM and DRIVER else "needs a browser: apt-get install chromium chromium-driver"
#: Seconds for a page to draw everything, on a loaded machine.
PATIENCE = 60


@contextmanager
def browser(*, dark: bool = False) -> Iterator[Any]:
    """A browser without a network whose log can be read, in one of the two colour schemes."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    try:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        yield driver
    finally:
        driver.quit()


def show(driver: Any, page: Path, width: int, height: int = 900) -> None:
    """Open a page in a window so wide and so high, in CSS pixels."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get(page.as_uri())


def drawn(driver: Any) -> int:
    """Wait until a report has drawn its charts, and return how many."""
    from selenium.webdriver.support.ui import WebDriverWait

    script = "return document.documentElement.dataset.drawn"
    return int(WebDriverWait(driver, PATIENCE).until(lambda d: d.execute_script(script)))


def photograph(page: Path, folder: Path, name: str) -> None:
    """Write pictures of a report's upper part: a wide window in light colours, and a phone in dark ones."""
    for dark, width, height in ((False, 1280, 1380), (True, 390, 1380)):
        with browser(dark=dark) as driver:
            show(driver, page, width, height)
            drawn(driver)
            driver.save_screenshot(str(folder / f"{name}-{width}.png"))
