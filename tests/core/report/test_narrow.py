"""Both pages in a browser as wide as a telephone, with names and texts that have no place to break."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pixrec_core import files
from pixrec_core.paths import DatasetPaths
from pixrec_core.report.answer_page import as_html
from pixrec_core.report.build import build_report
from tests.browser import chromium, screenshot
from tests.core.report import example

WIDTH = 400
LONG = "x" * 300


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        metrics = {"width": WIDTH, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        yield browser


def page_width(browser: Any, page: Path) -> int:
    browser.get(page.as_uri())
    height = browser.execute_script("return document.documentElement.scrollHeight")
    screenshot(
        browser, Path("pages", f"{page.stem}.png"), {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1}
    )
    return int(browser.execute_script("return document.documentElement.scrollWidth"))


def test_the_report_does_not_scroll_sideways_but_its_tables_say_that_they_do(browser, paths: DatasetPaths) -> None:
    example.write_promotion(paths, "multimodal")
    build_report(LONG, paths, ["multimodal", "text_only"])
    assert page_width(browser, paths.report / "index.html") == WIDTH
    hint = "return getComputedStyle(document.querySelector('#methods .scroll'), '::before').content"
    assert browser.execute_script(hint) == '"Scrolls sideways →"'


@pytest.mark.parametrize("kind", ["items", "text"])
def test_the_page_of_recommendations_does_not_scroll_sideways(browser, paths: DatasetPaths, tmp_path, kind) -> None:
    page = tmp_path / f"answer-{kind}.html"
    page.write_text(as_html(example.answer(paths, kind, LONG), paths).replace(">i02<", f">{LONG}<"), encoding="utf-8")
    files.require(page)
    assert page_width(browser, page) == WIDTH
    table = "const box = document.querySelector('.scroll'); return box.scrollWidth <= box.clientWidth"
    assert browser.execute_script(table), "the table of recommendations fits"
