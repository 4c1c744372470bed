"""The page in a real browser, light and dark, on a desktop and on a phone. Screenshots stay in test-output/report."""

from pathlib import Path

import pytest
from PIL import Image

from pixrec_core.report.answer_page import as_html
from pixrec_core.report.build import build_report
from tests.browser import chromium, screenshot
from tests.core.report import example

OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
BROKEN = "return [...document.images].filter(i => !i.complete || i.naturalWidth === 0).length"
SMALL_TARGETS = """
return [...document.querySelectorAll('nav a, summary')].filter(e => e.getBoundingClientRect().height < 44).length"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_renders(browser, paths, width, scheme):
    build_report("shop", paths, ("multimodal", "text_only"))
    image = show(browser, paths.report / "index.html", f"{width}-{scheme}", width, scheme)
    assert image.height > 2000
    assert browser.execute_script("return document.images.length") > 50
    assert browser.execute_script(SMALL_TARGETS) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_an_answer_renders(browser, paths, width, scheme):
    page = paths.root / "answer.html"
    page.write_text(as_html(example.answer(paths), paths), encoding="utf-8")
    show(browser, page, f"answer-{width}-{scheme}", width, scheme)
    assert browser.execute_script("return document.images.length") == 17  # 8 of the history, 9 recommended


def show(browser, page: Path, name: str, width: int, scheme: str) -> Image.Image:
    """Open a page in a window and colour scheme, and check that nothing is broken or wider than the window."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(page.as_uri())
    height = browser.execute_script("return document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    image = screenshot(browser, Path("report", f"{name}.png"), clip).convert("L")
    assert image.width == width
    assert (image.getpixel((2, 2)) < 64) is (scheme == "dark")
    assert browser.execute_script(OVERFLOW) == 0
    assert browser.execute_script(BROKEN) == 0
    assert browser.get_log("browser") == []
    return image
