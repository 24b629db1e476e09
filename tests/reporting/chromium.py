"""A headless Chromium for tests of the page: the real thing, as Debian packages it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SWITCHES = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
)


def why_no_chromium() -> str | None:
    """What is missing; None when a browser can be started."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"needs {' and '.join(missing)}: apt-get install chromium chromium-driver" if missing else None


@contextmanager
def open_chromium(*, width: int = 1280, height: int = 800, dark: bool = False) -> Iterator[Any]:
    """A WebDriver with a profile of its own, closed at the end."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        switches = [*SWITCHES, f"--user-data-dir={profile}"]
        if os.geteuid() == 0:
            switches.append("--no-sandbox")  # Chromium's own sandbox does not start as root
        for switch in switches:
            options.add_argument(switch)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            show_as(driver, width=width, height=height, dark=dark)
            yield driver
        finally:
            driver.quit()


def show_as(driver: Any, *, width: int = 1280, height: int = 800, dark: bool = False) -> None:
    """Set the size of the screen and the theme that the system asks for."""
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    stillness = {"name": "prefers-reduced-motion", "value": "reduce"}  # a click must not wait for a scroll to end
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme, stillness]})


def open_page(driver: Any, page: Path, anchor: str = "") -> None:
    """Open a page from disk, anew, and wait until its list of problems stands."""
    driver.get("about:blank")
    driver.get(f"{page.resolve().as_uri()}{anchor}")
    wait_until_idle(driver)


def wait_until_idle(driver: Any) -> None:
    """Wait until the list shows what the form asks for."""
    from selenium.webdriver.support.ui import WebDriverWait

    idle = "return document.querySelector('#list')?.getAttribute('aria-busy') !== 'true'"
    WebDriverWait(driver, 60, poll_frequency=0.02).until(lambda browser: browser.execute_script(idle))
