"""The page in a real browser, by day and night, on a desk and on a phone. Pictures stay in test-output/report."""

import base64
import io
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pixrec_core.report.answer import as_html
from pixrec_core.report.build import build
from tests.core.report import example

OUTPUT = Path(__file__).parents[3] / "test-output" / "report"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
BROKEN = "return [...document.images].filter(i => !i.complete || i.naturalWidth === 0).length"
SMALL_TARGETS = """
return [...document.querySelectorAll('nav a, summary')].filter(e => e.getBoundingClientRect().height < 44).length"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver on this machine")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def screenshot(browser, name: str, width: int) -> Image.Image:
    height = browser.execute_script("return document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    OUTPUT.mkdir(parents=True, exist_ok=True)
    content = base64.b64decode(shot["data"])
    (OUTPUT / f"{name}.png").write_bytes(content)
    return Image.open(io.BytesIO(content))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_reads_well(browser, paths, width, scheme):
    build("shop", paths, ("multimodal", "text_only"))
    image = show(browser, paths.report / "index.html", f"{width}-{scheme}", width, scheme)
    assert image.height > 2000
    assert browser.execute_script("return document.images.length") > 50
    assert browser.execute_script(SMALL_TARGETS) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_an_answer_reads_well(browser, paths, width, scheme):
    page = paths.root / "answer.html"
    page.write_text(as_html(example.answer(paths), paths), encoding="utf-8")
    show(browser, page, f"answer-{width}-{scheme}", width, scheme)
    assert browser.execute_script("return document.images.length") == 17  # 8 of the history, 9 found


def show(browser, page: Path, name: str, width: int, scheme: str) -> Image.Image:
    """Open a page in a window and colour scheme, and see that nothing is broken or wider than the window."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(page.as_uri())
    image = screenshot(browser, name, width).convert("L")
    assert image.width == width
    assert (image.getpixel((2, 2)) < 64) is (scheme == "dark")
    assert browser.execute_script(OVERFLOW) == 0
    assert browser.execute_script(BROKEN) == 0
    assert browser.get_log("browser") == []
    return image
