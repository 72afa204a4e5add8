"""The page of runs: find one, sort them, open one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium.webdriver.common.by import By

from es_service.cli import build_parser

ROOT = Path(__file__).parents[2]


def names(page: Any) -> list[str]:
    return page.texts("#list td.name")


def test_every_run_is_there_with_what_the_api_says(page: Any, server: Any) -> None:
    page.open("/")
    page.one("#list table")
    told = {run["run"]: run for run in server.get("runs")["runs"]}
    assert set(names(page)) == set(told) == {"clothes", "everything"}
    for row in page.all("#list tbody tr"):
        run = told[row.find_element(By.CSS_SELECTOR, ".name").text]
        cells = [cell.replace("\u00a0", " ") for cell in (one.text for one in row.find_elements(By.CSS_SELECTOR, "td"))]
        assert cells[1] == "finished"
        assert cells[2:4] == [run["method"], run["task"]]
        assert cells[4] == f"{run['num_samples']:,}"
        assert cells[5] == f"{run['accuracy']:.4f}"
        assert cells[6] == f"{100 * run['saving']['samples']:.1f} %"
        assert cells[8].endswith(("ago", "now"))
    assert page.text("#count") == "2 runs"


def test_search_finds_and_says_when_nothing_matches(page: Any) -> None:
    page.open("/")
    page.one("#list table")
    page.one("#search").send_keys("cloth")
    page.until(lambda: names(page) == ["clothes"], "the one run that matches")
    assert page.path == "/?q=cloth"
    page.driver.refresh()
    page.until(lambda: names(page) == ["clothes"], "the same search after a reload")
    assert page.one("#search").get_attribute("value") == "cloth"
    page.one("#search").send_keys("xyz")
    page.until(lambda: "No run matches" in page.text("#list"), "the empty state")


def test_sorting_is_by_click_and_in_the_address(page: Any) -> None:
    page.open("/")
    page.one("#list table")

    def header(title: str) -> str:
        xpath = f"//th[.//button[text()='{title}']]"
        return page.driver.find_element(By.XPATH, xpath).get_attribute("aria-sort") or "none"

    def sort(title: str) -> None:
        page.driver.find_element(By.XPATH, f"//th/button[text()='{title}']").click()

    sort("Run")
    page.until(lambda: names(page) == ["clothes", "everything"] and header("Run") == "ascending", "ascending names")
    sort("Run")
    page.until(lambda: names(page) == ["everything", "clothes"] and header("Run") == "descending", "descending names")
    assert page.path == "/?order=-run"
    page.driver.back()
    page.until(lambda: names(page) == ["clothes", "everything"], "the order before, by the back button")


def test_a_status_is_chosen_and_a_run_opened(page: Any) -> None:
    page.open("/")
    page.one("#list table")
    page.driver.find_element(By.XPATH, "//*[@id='statuses']/button[text()='live']").click()
    page.until(lambda: "No run matches" in page.text("#list"), "no live run")
    page.driver.find_element(By.XPATH, "//*[@id='statuses']/button[text()='finished']").click()
    page.until(lambda: len(names(page)) == 2, "both finished runs")
    page.driver.find_element(By.LINK_TEXT, "clothes").click()
    page.until(lambda: page.path == "/runs/clothes", "the page of the run")
    assert page.text("h1") == "clothes"


def test_an_empty_folder_says_what_to_do(
    serve: Callable[..., Any], open_page: Callable[..., Any], tmp_path: Path
) -> None:
    page = open_page(serve(tmp_path)).open("/")
    assert "No runs yet" in page.text("#list")
    assert f"--storage {tmp_path}" in page.text("#list code")


def test_the_command_in_the_readme_opens_the_run_that_it_names(various: Any, open_page: Callable[..., Any]) -> None:
    """As it stands there, but for the port, which is one that is free."""
    text = (ROOT / "README.md").read_text()
    [(command, url)] = re.findall(r"^es-service (serve [^#\n]*)# opens (\S+)$", text, flags=re.MULTILINE)
    options = build_parser().parse_args(shlex.split(command))
    assert urlsplit(url).netloc == f"{options.host}:{options.port}"
    assert various.storage.name == options.storage
    page = open_page(various).open(urlsplit(url).path)
    assert page.text("h1") == "demo"
    page.one(".sample")


def test_trials_stand_below_the_name_of_their_search(various: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(various).open("/?order=run&q=trial")
    page.one("#list table")
    assert names(page) == ["trial-of-none", "trial-1", "trial-2"]
    [accuracy] = {row["accuracy"] for row in various.get("runs", q="trial")["runs"]}
    assert page.texts("#list th.group") == [f"Search betas 2 trials, best accuracy {accuracy:.4f}"]
    assert [len(body.find_elements(By.CSS_SELECTOR, "td.name")) for body in page.all("#list tbody")] == [1, 2]
