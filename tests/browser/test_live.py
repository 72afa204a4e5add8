"""A run that trains while we look; a server that goes away and comes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def epoch(page: Any) -> int:
    """From the badge: live, epoch 3 of 2,000."""
    return int(page.text("#state").split("epoch ")[1].split(" of ")[0].replace(",", ""))


def test_a_live_run_moves_by_itself(live: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(live).open("/runs/training")
    page.until(lambda: page.text("#state").startswith("live, epoch"), "a live run")
    begin = epoch(page)
    page.driver.execute_script("window.sameDocument = true")
    page.until(lambda: epoch(page) >= begin + 2, "two more epochs", 60)
    page.until(lambda: "from the score server" in page.text("#figures"), "the live table")
    page.one(".sample")
    page.until(lambda: "now" in page.texts("#distribution text"), "the distribution as it is now")
    assert page.driver.execute_script("return window.sameDocument") is True
    told = live.get("runs/training")
    assert abs(told["epoch"] - epoch(page)) <= 10
    assert told["status"] == "live"
    assert any(url.endswith("/events") for url in page.requests())


def test_where_events_do_not_come_through_the_page_asks(live: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(live)
    page.expected.append("events - Failed to load resource")
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*/events"]})
    try:
        page.open("/runs/training")
        page.until(lambda: page.text("#state").startswith("live, epoch"), "a live run")
        begin = epoch(page)
        page.until(lambda: epoch(page) > begin, "another epoch", 60)
    finally:
        page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})


def test_a_reader_further_down_is_not_moved(live: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(live).open("/runs/training")
    page.until(lambda: len(page.all(".sample")) == 24, "the first samples")
    page.click("#samples .more button")
    page.until(lambda: len(page.all(".sample")) > 24, "more samples")
    before = page.texts(".sample .id")
    page.until(lambda: "new data" in page.text("#samples .more"), "an offer to start again", 60)
    assert page.texts(".sample .id") == before
    page.driver.find_elements("css selector", "#samples .more button")[-1].click()
    page.until(lambda: len(page.all(".sample")) == 24, "the first samples anew")


def test_the_page_of_runs_follows_too(live: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(live).open("/")
    page.one("#list .meter")
    before = page.text("#list .state")
    page.until(lambda: page.text("#list .state") != before, "another epoch on the page of runs", 60)


def test_it_is_said_when_the_server_is_away_and_when_it_is_back(
    serve: Callable[..., Any], open_page: Callable[..., Any], finished: Path
) -> None:
    server = serve(finished)
    page = open_page(server).open("/")
    page.expected.append("ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|ERR_INCOMPLETE")
    page.one("#list table")
    server.stop()
    page.until(lambda: "does not answer" in page.text("#notice"), "the notice on the page of runs", 30)
    assert "What you see is from" in page.text("#notice")
    assert page.all("#list table"), "what was there stays"
    server.start()
    page.until(lambda: not page.all("#notice p"), "the notice to go", 30)

    page.open("/runs/clothes?visits=1000..")  # no samples, hence no pictures on their way when the server goes
    page.one("#samples .empty")
    server.stop()
    page.until(lambda: "does not answer" in page.text("#notice"), "the notice on the page of a run", 40)
    assert page.all("#ledger svg"), "what was there stays"
    server.start()
    page.until(lambda: not page.all("#notice p"), "the notice to go", 40)


def test_a_run_that_was_interrupted_is_said_to_be_old(various: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(various).open("/runs/interrupted")
    page.until(lambda: page.text("#state") == "stale, epoch 4 of 5", "the badge")
    notice = page.text("#notice")
    assert "interrupted" in notice
    assert "the end of epoch 4" in notice
    page.until(lambda: len(page.texts(".sample")) == 24, "its samples, all the same")
    page.open("/?status=stale")
    page.until(lambda: page.texts("#list td.name") == ["interrupted"], "it among the stale ones")
