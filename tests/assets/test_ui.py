"""Dagster's own UI in a real browser: what its user sees of the pipeline, and runs from there.

Pictures stay in test-output/ui. One is in docs/how-it-works.md: after a change of the graph, run
`pytest tests/assets/test_ui.py -k graph` and copy test-output/ui/asset-graph.png to docs/.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pixrec_assets.definitions import defs
from pixrec_core import files
from pixrec_core.paths import DatasetPaths
from tests.assets.dev_server import Server, dagster_dev, until
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
#: The graph from top to bottom, of each asset only its name and kinds: so it can be read at the width of a page.
LAYOUT = """
localStorage.setItem('asset-graph-direction', JSON.stringify('vertical'));
localStorage.setItem('asset-node-facets', JSON.stringify(['kind-tag']));"""
GRAPH_BOX = """
const boxes = [...document.querySelectorAll('[class*=svgContainer] foreignObject')].map(e => e.getBoundingClientRect());
const x = Math.min(...boxes.map(b => b.left)) - 12, y = Math.min(...boxes.map(b => b.top)) - 12;
const right = Math.max(...boxes.map(b => b.right)) + 12, bottom = Math.max(...boxes.map(b => b.bottom)) + 12;
return {x, y, width: right - x, height: bottom - y};"""
ARROWS = "return document.querySelectorAll('[class*=svgContainer] path[marker-end]').length"
REPORT_EVENT = """mutation ($of: ReportRunlessAssetEventsParams!) { reportRunlessAssetEvents(eventParams: $of) {
    ... on ReportRunlessAssetEventsSuccess { assetKey { path } } } }"""
GRAPH = defs.resolve_asset_graph()
REPORT_INPUTS = ("evaluation", "promoted")  # without them, the UI asks whether to materialise the report

pytestmark = pytest.mark.slow


class Page:
    """What a person does with a page of the UI: look for something until it is there, click, read."""

    def __init__(self, browser: Any, server: Server) -> None:
        self.browser = browser
        self.server = server

    def open(self, path: str, **window: int) -> None:
        metrics = WINDOW | window | {"deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.browser.get(f"{self.server.url}{path}")

    def find(self, xpath: str, patience_s: float = 600) -> Any:
        """The first of these elements, once it can be seen."""
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.expected_conditions import visibility_of_element_located
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.browser, patience_s).until(visibility_of_element_located((By.XPATH, xpath)))

    def click(self, xpath: str, then: str) -> None:
        """Click until `then` is there: the UI redraws as answers arrive, and ignores early clicks."""
        from selenium.common.exceptions import WebDriverException

        def clicked() -> bool:
            with suppress(WebDriverException):  # replaced, covered or gone in this instant
                self.find(xpath, 1).click()
            with suppress(WebDriverException):
                return bool(self.find(then, 5))
            return False

        until(clicked)

    def shoot(self, name: str, **clip: float) -> Image.Image:
        return screenshot(self.browser, Path("ui", f"{name}.png"), {"x": 0, "y": 0, "scale": 1} | WINDOW | clip)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose dataset `shop` has been evaluated."""
    folder = tmp_path_factory.mktemp("ui")
    paths = example.write_all(DatasetPaths.of(folder / "data", "shop"))
    for stage in REPORT_INPUTS:
        files.write_json(paths.stamp(stage), {"data_version": "1", "fingerprint": "1", "stats": {}})
    return folder


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with (
        chromium(tmp_path_factory.mktemp("profile")) as browser,
        dagster_dev(folder, DEFINITIONS, TOML) as server,
    ):
        for stage in REPORT_INPUTS:
            event = {"eventType": "ASSET_MATERIALIZATION", "assetKey": {"path": [stage]}, "partitionKeys": ["shop"]}
            assert server.ask(REPORT_EVENT, of=event)["reportRunlessAssetEvents"]
        yield Page(browser, server)


@pytest.fixture(autouse=True)
def _no_errors(page: Page) -> Iterator[None]:
    """Dagster's UI warns of itself; an error would be of what we show in it."""
    yield
    assert [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.fixture(scope="module")
def launched(page: Page) -> dict[str, dict[str, Any]]:
    """Runs that were started by hand, as a person does, and have ended; by dataset."""
    launches = {"books": "/locations/pixrec/jobs/prepare_data", "broken": "/locations/pixrec/jobs/prepare_data"}
    launches |= {"shop": "/assets/report"}
    for dataset, place in launches.items():
        page.open(place)
        page.click("//button[contains(., 'Materialize')]", then="//*[contains(text(), 'Select a partition')]")
        page.click("//*[contains(text(), 'Select a partition')]", then=f"//li[.//*[@title='{dataset}']]")
        page.click(f"//li[.//*[@title='{dataset}']]", then="//button[contains(., 'Launch 1 run')]")
        page.shoot(f"launch-{dataset}")
        page.click("//button[contains(., 'Launch 1 run')]", then="//*[contains(text(), 'Launched run')]")

    def ended() -> dict[str, dict[str, Any]]:
        runs = {run["tags"]["dagster/partition"]: run for run in page.server.runs()}
        return runs if {run["status"] for run in runs.values()} <= {"SUCCESS", "FAILURE"} else {}

    return until(ended)


def test_the_graph_names_every_asset_and_draws_every_dependency(page: Page) -> None:
    page.open("/server_info")
    page.browser.execute_script(LAYOUT)
    groups = ",".join(f"global@global:{group}" for group in {node.group_name for node in GRAPH.asset_nodes})
    # The UI draws only what is in the window, and no details where it has to zoom out.
    page.open(f"/asset-groups?expanded={groups}", width=3200, height=3200)
    for key in GRAPH.get_all_asset_keys():
        page.find(f"//*[contains(@class, 'assetName')]//*[text()='{key.to_user_string()}']")
    arrows = sum(len(node.parent_keys) for node in GRAPH.asset_nodes)
    until(lambda: page.browser.execute_script(ARROWS) == arrows)
    image = page.shoot("asset-graph", scale=2, **page.browser.execute_script(GRAPH_BOX))
    assert image.width > 1200


@pytest.mark.parametrize(
    ("dataset", "status", "reported"), [("books", "SUCCESS", "Success"), ("broken", "FAILURE", "Failure")]
)
def test_a_run_builds_the_partition_that_is_chosen_in_the_ui(page: Page, launched, dataset, status, reported) -> None:
    assert launched[dataset]["status"] == status
    page.open(f"/runs/{launched[dataset]['runId']}")
    page.find(f"//*[text()='{reported}']")
    page.find(f"//*[text()='RUN_{status}']")
    page.shoot(f"run-{dataset}")


def test_an_asset_says_what_it_is_and_plots_its_numbers(page: Page, launched) -> None:
    page.open("/assets/items")
    page.click("//button[contains(., 'Plots')]", then="//canvas")
    for reported in (
        "Build the catalogue from metadata lines; move bad lines to the quarantine table.",
        "bad/share",
        "Great Expectations",
    ):
        page.find(f"//*[text()='{reported}']")
    page.shoot("asset")


@pytest.mark.parametrize(
    ("asset", "dataset", "outcome", "held"),
    [("items", "books", "Passed", "1 of 1"), ("sequences", "broken", "Failed", "1 of 2")],
)
def test_a_check_has_an_outcome_for_each_partition(page: Page, launched, asset, dataset, outcome, held) -> None:
    page.open(f"/assets/{asset}?view=checks")
    page.find("//*[text()='Latest execution']")  # before it is drawn, the tab of that name is the asset's own
    page.click(
        "(//*[@role='tab'][contains(., 'Partitions')])[last()]", then="//*[text()='Select a partition to view details']"
    )
    page.click(f"(//*[@title='{dataset}'])[last()]", then=f"//*[text()='{held} expectations hold']")
    page.find(f"//*[text()='{outcome}']")
    page.shoot(f"check-{dataset}")


def test_the_reports_markdown_is_drawn(page: Page, launched) -> None:
    assert launched["shop"]["status"] == "SUCCESS"
    page.open("/assets/report?view=partitions&partition=shop")
    page.click("//*[text()='[Show Markdown]']", then="//table//*[text()='multimodal']")
    assert page.find("//h2").text == "Seen items allowed"
    page.shoot("report")
