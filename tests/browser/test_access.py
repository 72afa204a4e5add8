"""Who may look, who can: the token, narrow screens, keyboard and screen readers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

PAGES = {
    "runs": "/",
    "run": "/runs/clothes",
    "sample": "/runs/clothes?view=suspects&label=Shirt&sample=12",
    "nothing": "/runs/clothes?visits=1000..",
}
READY = {
    "runs": "#list table",
    "run": ".sample",
    "sample": "#sample .history svg",
    "nothing": "#samples .empty",
}


def test_the_token_is_asked_for_once_and_never_in_an_address(locked: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(locked).open("/runs/clothes?view=suspects")
    page.one("#token")
    assert page.path.startswith("/login?next=")
    page.one("#token").send_keys("something else", Keys.ENTER)
    page.until(lambda: page.all("#failed") and page.one("#failed").is_displayed(), "to be told that it was wrong")
    page.one("#token").send_keys(locked.token, Keys.ENTER)
    page.until(lambda: page.path == "/runs/clothes?view=suspects", "the page that was asked for")
    page.scroll_to(".sample")
    page.until(lambda: page.one(".sample img").get_property("naturalWidth") == 28, "a picture")
    [cookie] = page.driver.get_cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    assert locked.token not in cookie["value"]
    assert page.driver.execute_script("return document.cookie") == ""
    assert not [url for url in page.requests() if locked.token in url]
    page.click("#logout button")
    page.one("#token")
    page.open("/")
    page.one("#token")


def test_a_session_that_ended_leads_to_the_form_and_back(locked: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(locked).open("/")
    page.expected.append("401")
    page.one("#token").send_keys(locked.token, Keys.ENTER)
    page.one("#list table")
    page.driver.delete_all_cookies()
    page.one("#search").send_keys("cloth")
    page.one("#token")
    page.one("#token").send_keys(locked.token, Keys.ENTER)
    page.until(lambda: page.path == "/?q=cloth", "the search that was under way")


def test_where_no_token_is_needed_there_is_nothing_to_sign_out_of(page: Any) -> None:
    page.open("/")
    page.one("#list table")
    assert not page.one("header").find_element("css selector", "#logout").is_displayed()


def violations(page: Any, axe: str | None) -> Any:
    """What axe-core finds wrong with the page as it is."""
    if axe is None:
        pytest.skip("no data/axe-core-*.tgz: `make browser` fetches it with npm")
    page.driver.execute_script(axe)
    return page.driver.execute_async_script(
        "const done = arguments[0];"
        "axe.run().then((all) => done(all.violations.map((one) => [one.id, one.nodes.map((node) => node.html)])))"
    )


def widths(page: Any) -> Any:
    return page.driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")


@pytest.mark.parametrize("name", PAGES)
def test_nothing_sticks_out_at_any_width_and_axe_finds_nothing(page: Any, axe: str | None, name: str) -> None:
    page.open(PAGES[name])
    page.one(READY[name])
    page.resize((768, 1024))
    page.until(lambda: widths(page) == [768, 768], "a page that fits a tablet")
    page.resize((360, 740))
    page.until(lambda: widths(page) == [360, 360], "a page that fits a telephone")
    page.open(PAGES[name])
    page.one(READY[name])
    assert widths(page) == [360, 360]
    assert violations(page, axe) == []
    page.resize((1280, 900))
    page.until(lambda: widths(page) == [1280, 1280], "a page that fits a desk")
    assert violations(page, axe) == []
    page.scheme("dark")
    assert violations(page, axe) == []


def test_axe_finds_nothing_on_the_form(locked: Any, open_page: Callable[..., Any], axe: str | None) -> None:
    page = open_page(locked).open("/")
    page.one("#token")
    assert violations(page, axe) == []
    page.scheme("dark")
    assert violations(page, axe) == []


def test_everything_can_be_reached_with_the_tab_key(page: Any) -> None:
    page.open("/runs/clothes")
    page.one(".sample")
    reached = []
    page.driver.execute_script("document.activeElement?.blur?.()")
    for _ in range(45):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        reached.append(
            page.driver.execute_script(
                "const one = document.activeElement; return one.id || one.name || one.dataset.view || one.tagName"
            )
        )
    assert reached[0] == "A"  # the link that skips to the run
    for control in ("theme", "column", "filter-label", "w.low", "CANVAS", "weighted", "suspects"):
        assert control in reached
    outline = page.driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


def test_the_first_page_loads_within_a_second(page: Any) -> None:
    page.open("/")
    page.one("#list table")
    page.driver.execute_cdp_cmd("Network.clearBrowserCache", {})
    page.open("/")
    page.one("#list table")
    loaded = page.driver.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert loaded < 1000
