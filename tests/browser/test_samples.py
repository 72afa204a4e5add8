"""The samples on a run's page, and one of them in its dialog."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

VIEWS = {
    "weighted": {"order": "-w"},
    "suspects": {"order": "-suspicion"},
    "never": {"order": "-loss_mean", "where": "selected=0"},
    "hardest": {"order": "-loss_mean"},
    "forgotten": {"order": "-age"},
}


def ids(page: Any) -> list[int]:
    return [int(text.removeprefix("#")) for text in page.texts(".sample .id")]


def test_a_view_shows_the_samples_that_the_api_names(page: Any, server: Any) -> None:
    page.open("/runs/clothes")
    for view in VIEWS:
        check_view(page, server, view)


def check_view(page: Any, server: Any, view: str) -> None:
    page.one(f"#views [data-view={view}]")
    page.click(f"#views [data-view={view}]")
    told = server.get("runs/clothes/samples", limit=24, **VIEWS[view])["samples"]
    page.until(lambda: ids(page) == [one["id"] for one in told], f"the samples of {view}")
    assert page.one(f"[data-view={view}]").get_attribute("aria-pressed") == "true"
    assert page.path == "/runs/clothes" + ("" if view == "weighted" else f"?view={view}")
    if not told:
        page.until(lambda: "Every sample was trained on" in page.text("#samples"), "the empty list")
        return
    facts = page.texts(".sample .pairs span")[:10]
    shown = dict(zip(facts[::2], facts[1::2], strict=True))
    assert float(shown["weight"].replace(",", "")) == pytest.approx(told[0]["w"], rel=1e-3, abs=1e-4)
    assert shown["picked"] == f"{told[0]['selected']} of {told[0]['visits']}"
    assert page.texts(".sample .title span:first-child")[0] == told[0]["label"]
    page.scroll_to(".sample")
    page.until(lambda: page.one(".sample img").get_property("naturalWidth") == 28, "the first picture")


def test_suspects_are_mostly_those_with_a_wrong_label(page: Any, trained: Path) -> None:
    """A tenth of the labels was made wrong: among the first suspects they are the rule."""
    wrong = set(json.loads((trained / "wrong.json").read_text()))
    page.open("/runs/clothes?view=suspects")
    page.until(lambda: len(ids(page)) == 24, "the suspects")
    assert len(wrong) == 120
    assert len(wrong.intersection(ids(page))) >= 12


def test_more_samples_come_on_demand_and_none_twice(page: Any) -> None:
    page.open("/runs/clothes")
    page.until(lambda: len(ids(page)) == 24, "the first samples")
    page.click("#samples .more button")
    page.until(lambda: len(ids(page)) == 48, "more samples")
    assert len(set(ids(page))) == 48


def test_a_sample_with_its_history_has_an_address_of_its_own(page: Any, server: Any) -> None:
    page.open("/runs/clothes")
    page.one(".sample")
    [first, second] = ids(page)[:2]
    page.click(".sample")
    assert page.text("#sample h2") == f"Sample {first:,}"
    page.one("#sample .history svg")
    history = server.get(f"runs/clothes/samples/{first}/history")
    assert len(page.all("#sample .dot")) == (len(history["points"]["loss"]) or len(history["snapshots"]))
    sample = server.get(f"runs/clothes/samples/{first}")["sample"]
    shown = page.texts("#sample .pairs span")
    pairs = dict(zip(shown[::2], shown[1::2], strict=True))
    assert pairs["label"] == sample["label"]
    assert int(pairs["visits"]) == sample["visits"]
    assert int(pairs["times picked"]) == sample["selected"]
    assert pairs["rank by weight"] == "1 of 1,200"
    assert page.path == f"/runs/clothes?sample={first}"

    ActionChains(page.driver).send_keys(Keys.ARROW_RIGHT).perform()
    page.until(lambda: page.text("#sample h2") == f"Sample {second:,}", "the next sample")
    page.driver.refresh()
    page.until(lambda: page.text("#sample h2") == f"Sample {second:,}", "the same sample after a reload")
    page.one("#sample [aria-label='Previous sample']")
    ActionChains(page.driver).send_keys(Keys.ARROW_LEFT).perform()
    page.until(lambda: page.text("#sample h2") == f"Sample {first:,}", "the one before, after a reload, too")
    ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    page.until(lambda: not page.all("#sample[open]"), "the dialog to close")
    assert page.path == "/runs/clothes"


def test_the_back_button_closes_a_sample(page: Any) -> None:
    page.open("/runs/clothes")
    page.one(".sample")
    page.click(".sample")
    page.one("#sample .history svg")
    page.driver.back()
    page.until(lambda: not page.all("#sample[open]"), "the dialog to close")
    assert page.path == "/runs/clothes"


def test_a_sample_that_is_not_there_is_said_not_to_be(page: Any) -> None:
    page.expected.append(r"samples/999999(/history)? - Failed to load resource.*404")
    page.open("/runs/clothes?sample=999999")
    assert "999999" in page.text("#sample .notice").replace(",", "")


def test_texts_are_shown_as_texts(various: Any, open_page: Callable[..., Any]) -> None:
    if not (various.storage / "words").exists():
        pytest.skip("no reviews in data/: `make data` fetches them")
    page = open_page(various).open("/runs/words?view=hardest")
    first = various.get("runs/words/samples", order="-loss_mean", limit=1)["samples"][0]
    page.until(lambda: page.texts(".sample .words") and page.texts(".sample .words")[0] not in ("", "…"), "a text")
    assert len(page.texts(".sample .words")[0]) > 10
    assert page.texts(".sample .title span:first-child")[0] == first["label"]
    assert first["label"] in ("negative", "positive")
    assert not page.all(".sample img")
