"""The system's Chromium, driven by selenium."""

import base64
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

OUTPUT = Path(__file__).parents[1] / "test-output"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """Start a browser with an empty profile; skip the test if the machine has no browser."""
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no chromium and chromedriver on this machine")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def screenshot(browser: Any, path: Path, clip: dict[str, float]) -> Image.Image:
    """Save a part of the page as a PNG file under `OUTPUT`.

    Args:
        browser: shows the page.
        path: relative to `OUTPUT`.
        clip: `x`, `y`, `width` and `height` in CSS pixels, and `scale`.
    """
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    content = base64.b64decode(shot["data"])
    (OUTPUT / path).parent.mkdir(parents=True, exist_ok=True)
    (OUTPUT / path).write_bytes(content)
    return Image.open(io.BytesIO(content))
