"""Dagster's own UI in a real browser: what its user sees of the pipeline, and runs from there.

Pictures stay in test-output/ui; docs/asset-graph.png is a copy of the one of the same name.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pixrec_assets.definitions import defs
from pixrec_core import files
from pixrec_core.paths import DatasetPaths
from tests.assets.dev_server import DEADLINE_S, Server, dagster_dev, until
from tests.browser import chromium, screenshot
from tests.core.report import example

#: The report is a real one; the sequences of `broken` break their contract.
DEFINITIONS = """
from pixrec_core import pipeline
from tests.assets import fake_stages

whole, broken = fake_stages.sequences, fake_stages.broken("sequences")

def sequences(work):
    return broken(work) if work.dataset == "broken" else whole(work)

def report(work, run=pipeline.REPORT.run):
    return run(work)

fake_stages.sequences, fake_stages.report = sequences, report
fake_stages.install()
from pixrec_assets.definitions import defs
"""
TOML = """
variants = ["multimodal", "text_only"]
[datasets]
books = { source = { kind = "sample" } }
broken = { source = { kind = "sample" } }
shop = { source = { kind = "sample" } }
"""
WINDOW = {"width": 1400, "height": 1000}
#: The graph from top to bottom, without what a screenful has no room for.
LAYOUT = """
localStorage.setItem('asset-graph-direction', JSON.stringify('vertical'));
localStorage.setItem('asset-node-facets', JSON.stringify(['checks', 'partitions', 'kind-tag']));"""
GRAPH = defs.resolve_asset_graph()

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("ui")]


class Page:
    """What a person does with a page of the UI: look for something until it is there, click, read."""

    def __init__(self, browser: Any, server: Server) -> None:
        self.browser = browser
        self.server = server

    def open(self, path: str, **window: int) -> None:
        metrics = WINDOW | window | {"deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.browser.get(f"{self.server.url}{path}")

    def find(self, xpath: str) -> Any:
        """The first element of these that can be seen."""
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.expected_conditions import visibility_of_element_located
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.browser, DEADLINE_S).until(visibility_of_element_located((By.XPATH, xpath)))

    def click(self, xpath: str) -> None:
        self.find(xpath)
        until(lambda: self._clicked(xpath))

    def _clicked(self, xpath: str) -> bool:
        """The UI draws anew as answers arrive: what was found may have been replaced since, or be covered still."""
        from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException

        try:
            self.find(xpath).click()
        except (ElementClickInterceptedException, StaleElementReferenceException):
            return False
        return True

    def text(self) -> str:
        return str(self.browser.execute_script("return document.body.innerText"))

    def shoot(self, name: str, **clip: float) -> None:
        screenshot(self.browser, Path("ui", f"{name}.png"), {"x": 0, "y": 0, "scale": 1} | WINDOW | clip)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose dataset `shop` has been evaluated."""
    folder = tmp_path_factory.mktemp("ui")
    paths = example.write_all(DatasetPaths.of(folder / "data", "shop"))
    files.write_json(paths.stamp("evaluation"), {"data_version": "1"})
    return folder


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with (
        chromium(tmp_path_factory.mktemp("profile")) as browser,
        dagster_dev(folder, DEFINITIONS, TOML) as server,
    ):
        yield Page(browser, server)


@pytest.fixture(autouse=True)
def _no_errors(page: Page) -> Iterator[None]:
    """Dagster's UI warns of itself; an error would be of what we show in it."""
    yield
    assert [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.fixture(scope="module")
def launched(page: Page) -> dict[str, str]:
    """Three runs, started by hand as a person does; dataset -> outcome."""
    for path, dataset in (
        ("/locations/pixrec/jobs/prepare_data", "books"),
        ("/locations/pixrec/jobs/prepare_data", "broken"),
        ("/assets/report", "shop"),
    ):
        page.open(path)
        page.click("//button[contains(., 'Materialize')]")
        page.click("//*[contains(text(), 'Select a partition')]")
        page.click(f"//li[.//*[@title='{dataset}']]")
        page.click("//*[contains(text(), 'Partition selection')]")  # closes the list
        page.click("//button[contains(., 'Launch 1 run')]")
        page.find("//*[contains(text(), 'Launched')]")
    return {}
