"""The page in Chromium: a shopper, a history of the visitor's choice, a text, a photo, and two methods side by side."""

from contextlib import suppress

import pytest

from pixrec_core.data.sequences import read_sequences
from pixrec_core.schemas import HAS_IMAGE, ITEM, ITEMS, TEST, USER
from tests.browser import chromium
from tests.core.serving.server.conftest import running_server

WAIT_S = 600

USER_ENCODERS = ("items",)  # what is tested here does not read them


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser, client):
    browser.get(client.url + "/")
    wait_for(browser, "return document.querySelectorAll('#shelves li').length > 0")
    yield browser
    assert not browser.execute_script("return document.getElementById('error').textContent")
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors


def wait_for(browser, script):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, WAIT_S).until(lambda driver: driver.execute_script(script))


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def headings(browser):
    return [each.text for each in find(browser, "#shelves h2")]


def wait_for_heading(browser, start):
    wait_for(browser, f"return document.querySelector('#shelves h2')?.textContent.startsWith({start!r})")


def test_a_shopper_has_history_and_next_items(page, served, recommender):
    user, history = read_sequences(served.paths, TEST).select(USER, ITEMS).row(1)
    box = find(page, "#user")[0]
    box.clear()
    box.send_keys(user + "\n")
    wait_for(page, f"return state.query.user === {user!r} && document.querySelectorAll('#history li').length > 0")
    wait_for(page, f"return document.querySelectorAll('#history li').length === {min(24, len(history))}")
    expected = [each.item for each in recommender.for_user(user, 12)]
    titles = dict(recommender.catalogue.select(ITEM, "title").rows())
    wait_for(page, "return document.querySelectorAll('#shelves li').length === 12")
    assert [each.text for each in find(page, "#shelves li b")] == [titles[item] for item in expected]
    wait_for(page, "return [...document.images].filter(each => each.complete && each.naturalWidth > 0).length > 0")


def test_items_can_be_collected_into_a_history(page):
    find(page, "#find")[0].click()
    wait_for(page, "return document.querySelectorAll('#found li').length > 1")
    find(page, "#found li button")[0].click()
    wait_for(page, "return document.querySelectorAll('#history li').length === 1")
    find(page, "#found li button")[1].click()
    wait_for(page, "return document.querySelectorAll('#history li').length === 2")
    find(page, "#history .remove")[0].click()
    wait_for(page, "return document.querySelectorAll('#history li').length === 1")
    wait_for_heading(page, "Next items")


def test_the_keyboard_reaches_every_control_in_reading_order(page):
    """And a history can be collected with it alone."""
    from selenium.webdriver import ActionChains, Keys

    def press(key):
        ActionChains(page).send_keys(key).perform()

    find(page, "#find")[0].click()
    wait_for(page, "return document.querySelectorAll('#found li').length > 1")
    controls = "[...document.querySelectorAll('button, input, select, a[href]')].filter(each => each.offsetParent)"
    count = page.execute_script(f"return {controls}.length")
    page.execute_script("document.body.tabIndex = -1; document.body.focus()")
    reached = []
    for _ in range(count):
        press(Keys.TAB)
        reached.append(page.execute_script(f"return {controls}.indexOf(document.activeElement)"))
        if page.execute_script("return document.activeElement.matches('#found li button')"):
            break
    assert reached == list(range(len(reached)))
    press(Keys.ENTER)
    wait_for(page, "return document.querySelectorAll('#history li').length === 1")
    unnamed = "each => !(each.textContent.trim() || each.labels?.length || each.ariaLabel || each.title)"
    assert page.execute_script(f"return {controls}.filter({unnamed}).length") == 0


def test_two_methods_side_by_side(page):
    page.execute_script(
        "const other = document.getElementById('other'); other.value = 'ease'; other.dispatchEvent(new Event('change'))"
    )
    wait_for(page, "return document.querySelectorAll('#shelves h2').length === 2")
    assert headings(page)[1] == "Next items, by ease"


def test_a_text_and_a_photo_find_similar_items(page, served, recommender):
    find(page, "#text")[0].send_keys("red hat\n")
    wait_for_heading(page, "Similar to the text")
    item = recommender.catalogue.filter(HAS_IMAGE)[ITEM][0]
    find(page, "#photo")[0].send_keys(str(served.paths.image(item)))
    wait_for_heading(page, "Similar to the photo")


@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_does_not_scroll_sideways(page, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_asks_for_the_token(browser, served):
    from selenium.common.exceptions import UnexpectedAlertPresentException

    with running_server(served.settings.data_dir, token="a long secret") as client:
        with suppress(UnexpectedAlertPresentException):
            browser.get(client.url + "/")
        from selenium.webdriver.support import expected_conditions
        from selenium.webdriver.support.ui import WebDriverWait

        alert = WebDriverWait(browser, WAIT_S).until(expected_conditions.alert_is_present())
        alert.send_keys("a long secret")
        alert.accept()
        wait_for(browser, "return document.querySelectorAll('#shelves li').length > 0")
        wait_for(browser, "return [...document.images].some(each => each.src.startsWith('blob:'))")
        browser.execute_script("sessionStorage.clear()")
