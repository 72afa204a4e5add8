"""The page of a finished run: its figures, its charts, the data map, filters, themes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import es_service as es

MOST_POINTS = 5000


def figures(page: Any) -> dict[str, str]:
    page.one("#figures div")
    return dict(zip(page.texts("#figures dt"), page.texts("#figures dd:not(.note)"), strict=True))


def test_the_key_figures_are_those_of_the_api(page: Any, server: Any) -> None:
    page.open("/runs/clothes")
    shown = figures(page)
    ledger = server.get("runs/clothes/ledger")
    assert shown["Accuracy"] == f"{ledger['history'][-1]['accuracy']:.4f}"
    assert shown["Backward passes saved"] == f"{100 * ledger['saving']['samples']:.1f} %"
    assert shown["Time saved"] == f"{100 * ledger['saving']['seconds']:.1f} %"
    assert shown["Never picked"] == f"{server.get('runs/clothes/coverage')['never_picked']:,}"
    effective = server.get("runs/clothes/effective_sample_size")["effective"]
    assert shown["Effective samples"] == f"{effective:,.0f}"
    assert shown["Table"] == "epoch 5"
    saved = ledger["saving"]["seconds"]
    word = "saves time" if saved > 0.01 else "costs more" if saved < -0.01 else "neither saves nor costs"
    assert word in page.text("#verdict")
    assert page.text("#state") == "finished"


def test_a_run_that_selects_nothing_is_said_to_save_nothing(page: Any) -> None:
    page.open("/runs/everything")
    page.until(lambda: "nothing is saved" in page.text("#verdict"), "the verdict")


def test_the_ledger_and_the_accuracy_are_drawn(page: Any, server: Any) -> None:
    page.open("/runs/clothes")
    page.one("#ledger svg")
    history = server.get("runs/clothes/ledger")["history"]
    assert len(history) == 5
    assert len(page.all("#ledger .hit")) == len(history)
    assert len(page.all("#accuracy .dot")) == len(history)
    page.click("#ledger summary")
    rows = page.texts("#ledger tbody tr")
    assert len(rows) == len(history)
    assert f"{history[-1]['accuracy']:.4f}" in rows[-1]
    trained = history[1]["trained"] - history[0]["trained"]
    assert f"{trained:,}" in rows[1]  # of this epoch alone, while the API counts from the beginning


def test_a_distribution_moves_over_the_epochs(page: Any, server: Any) -> None:
    page.open("/runs/clothes")
    page.one("#distribution .ridge")
    check_distribution(page, server, "w")
    for column in ("loss_mean", "visits"):
        page.one("#column").find_element(By.CSS_SELECTOR, f"option[value={column}]").click()
        page.until(lambda column=column: f"column={column}" in page.path, "the column in the address")
        check_distribution(page, server, column)


def check_distribution(page: Any, server: Any, column: str) -> None:
    told = server.get("runs/clothes/distribution/epochs", column=column, bins=48)
    assert len(told["epochs"]) >= 3
    label = page.one("#column").find_element(By.CSS_SELECTOR, f"option[value={column}]").text
    page.until(
        lambda: (
            page.all("#distribution svg")
            and f"Distribution of {label} over {len(told['epochs'])} epochs"
            in page.all("#distribution svg")[0].get_attribute("aria-label")
        ),
        "the chart of that column",
    )
    assert len(page.all("#distribution .ridge")) == len(told["epochs"])


def test_the_map_is_explored_by_mouse_and_opens_a_sample(page: Any) -> None:
    page.open("/runs/clothes")
    page.one("#figures div")
    page.one(".sample")  # all panels are there: the map moves no more
    canvas = page.one("#map canvas")
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    box = canvas.size
    for offset in range(-box["width"] // 3, box["width"] // 3, 25):
        ActionChains(page.driver).move_to_element_with_offset(canvas, offset, box["height"] // 8).perform()
        if page.all(".tip:not([hidden])"):
            break
    tip = page.text(".tip")
    assert "mean loss" in tip
    assert "picked after" in tip
    picture = page.one(".tip img")
    page.until(lambda: picture.get_property("naturalWidth") == 28, "the picture in the tip")
    asked = picture.get_attribute("src").split("/")[-2]
    ActionChains(page.driver).click().perform()
    assert page.text("#sample h2") == f"Sample {int(asked):,}"


def test_the_map_is_explored_by_keys(page: Any) -> None:
    page.open("/runs/clothes")
    page.one("#figures div")
    page.one(".sample")  # all panels are there: the map moves no more
    canvas = page.one("#map canvas")
    page.driver.execute_script("arguments[0].focus()", canvas)
    said = []
    for key in (Keys.ARROW_UP, Keys.ARROW_RIGHT, Keys.ARROW_UP, Keys.ARROW_LEFT):
        canvas.send_keys(key)
        said.append(page.texts("#map [aria-live]")[0])
    assert all("mean loss" in one for one in said)
    assert len(set(said)) >= 3
    canvas.send_keys(Keys.ENTER)
    page.one("#sample[open]")
    ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    page.until(lambda: not page.all("#sample[open]"), "the dialog to close")


def test_the_page_never_receives_more_points_than_it_may(page: Any) -> None:
    """What came over the wire, as the browser saw it."""
    page.open("/runs/clothes")
    page.one("#map canvas")
    page.one(".sample")
    sizes = {}
    log = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    done = {message["params"]["requestId"] for message in log if message["method"] == "Network.loadingFinished"}
    for message in log:
        if message["method"] != "Network.responseReceived" or message["params"]["requestId"] not in done:
            continue
        url = message["params"]["response"]["url"]
        if "/v1/" in url and "json" in message["params"]["response"]["mimeType"]:
            body = page.driver.execute_cdp_cmd("Network.getResponseBody", {"requestId": message["params"]["requestId"]})
            sizes[url] = longest(json.loads(body["body"]))
    assert any("/map" in url for url in sizes)
    assert max(sizes.values()) <= MOST_POINTS, sizes


def longest(value: Any) -> int:
    if isinstance(value, dict):
        return max(map(longest, value.values()), default=0)
    if isinstance(value, list):
        return max(len(value), *map(longest, value), 0)
    return 0


def test_filters_narrow_map_and_list_and_live_in_the_address(page: Any, server: Any) -> None:
    page.open("/runs/clothes")
    page.one(".sample")
    label = page.one("#filter-label")
    label.find_element(By.CSS_SELECTOR, "option[value=Shirt]").click()
    shirts = server.get("runs/clothes/samples", where="label=Shirt", order="-loss_mean", limit=1000)["samples"]
    bound = f"{shirts[len(shirts) // 3]['loss_mean']:.2f}"
    page.one("[name='loss_mean.low']").send_keys(bound)
    matching = server.get("runs/clothes/samples", where=["label=Shirt", f"loss_mean>={bound}"])["matching"]
    assert 0 < matching < len(shirts) < 1200
    page.until(lambda: f"of {matching:,} sample" in page.text("#samples .more"), "the filtered list")
    page.until(lambda: page.text("#map p:not(.unseen)").startswith(f"{matching:,} sample"), "the filtered map")
    assert set(page.texts(".sample .title span:first-child")) == {"Shirt"}
    assert "label=Shirt" in page.path
    assert f"loss_mean={float(bound):g}.." in page.path or f"loss_mean={bound}.." in page.path
    page.driver.refresh()
    page.until(lambda: f"of {matching:,} sample" in page.text("#samples .more"), "the same after a reload")
    assert page.one("#filter-label").get_property("value") == "Shirt"
    page.click("#reset")
    page.until(lambda: "of 1,200 samples" in page.text("#samples .more"), "all samples again")
    assert page.path == "/runs/clothes"


def test_a_click_on_a_label_filters_by_it(page: Any, server: Any) -> None:
    page.open("/runs/clothes")
    page.one(".labels button")
    shares = {one["label"]: one["picked_share"] for one in server.get("runs/clothes/coverage")["labels"]}
    shown = dict(zip(page.texts(".labels .name"), page.texts(".labels .value"), strict=True))
    assert shown == {label: f"{100 * share:.1f} %" for label, share in shares.items()}
    page.click(".labels [data-label=Bag]")
    page.until(lambda: set(page.texts(".sample .title span:first-child")) == {"Bag"}, "bags alone")
    assert page.one(".labels [data-label=Bag]").get_attribute("aria-pressed") == "true"


def test_a_filter_that_nothing_passes_says_so(page: Any) -> None:
    page.open("/runs/clothes?visits=1000..")
    page.until(lambda: "No sample matches" in page.text("#samples"), "the empty list")
    assert "No sample matches" in page.text("#map")


def test_dark_and_light_by_the_system_and_by_the_switch(page: Any) -> None:
    def background() -> str:
        return str(page.driver.execute_script("return getComputedStyle(document.body).backgroundColor"))

    page.open("/runs/clothes")
    page.one("#map canvas")
    light = background()
    page.scheme("dark")
    page.until(lambda: background() != light, "the dark page")
    dark = background()
    page.click("#theme")
    assert page.text("#theme") == "Theme: light"
    assert background() == light
    page.click("#theme")
    page.scheme("light")
    assert page.text("#theme") == "Theme: dark"
    assert background() == dark
    page.open("/")
    assert page.text("#theme") == "Theme: dark"
    assert background() == dark


def test_a_run_that_is_not_there_is_said_not_to_be(page: Any) -> None:
    page.expected.append(r"/v1/runs/nothing - Failed to load resource.*404")
    page.open("/runs/nothing")
    page.until(lambda: "No such run" in page.text("main"), "to be told")


def test_two_runs_are_compared(various: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(various).open("/runs/demo")
    page.one("#compare-panel")
    offered = [option.text for option in page.all("#other option")]
    fitting = {one["run"] for one in various.get("runs")["runs"] if one["num_samples"] == 1200}
    assert offered[0] == "choose a run"
    assert set(offered[1:]) == fitting - {"demo"}
    assert {"smaller", "words"}.isdisjoint(offered)
    page.one("#other").find_element(By.CSS_SELECTOR, "option[value=other]").click()
    page.one("#compare .figures")
    shown = dict(zip(page.texts("#compare dt"), page.texts("#compare dd:not(.note)"), strict=True))
    told = various.get("compare", a="demo", b="other")
    assert shown["Rank correlation"] == f"{told['rank_correlation']:.3f}" == "1.000"
    assert shown["Heaviest 1 % shared"] == "100.0 %"
    assert "compare=other" in page.path


def test_the_table_can_be_taken_along(page: Any, server: Any) -> None:
    import io
    import urllib.request

    from pyarrow import parquet

    page.open("/runs/clothes")
    page.one("#export a")
    links = {one.text: one.get_attribute("href") for one in page.all("#export a")}
    assert set(links) == {"Parquet", "Arrow", "CSV"}
    with urllib.request.urlopen(links["Parquet"], timeout=30) as answer:
        assert parquet.read_table(io.BytesIO(answer.read())).num_rows == 1200


def test_a_loop_of_ones_own_has_a_page_as_any_other(
    open_page: Callable[[Any], Any], serve: Any, tmp_path: Path
) -> None:
    """Its ledger, accuracy and other metrics, labels and previews; nothing is said to be missing."""
    selection = es.Selection(es.methods.evolved(), ratio=0.5, anneal=(0, 0), seed=1)
    selector = es.Selector(
        selection, num_samples=60, num_epochs=3, batch_size=10, run="own", storage=str(tmp_path),
        labels=np.arange(60) % 2, label_names=["hat", "shoe"],
        preview=lambda sample_id: np.full((8, 8), 4 * sample_id, dtype=np.uint8),
    )  # fmt: skip
    for epoch in range(3):
        for ids in selector.epoch(epoch):
            selector.select(ids, (1 + ids % 13).astype(np.float32))
        selector.log(accuracy=0.5 + epoch / 8, loss=0.25, recall=0.625)
    selector.close()
    page = open_page(serve(tmp_path)).open("/runs/own")
    assert figures(page)["Accuracy"] == "0.7500"
    page.one("#ledger svg")
    assert len(page.all("#ledger .hit")) == len(page.all("#accuracy .dot")) == 3
    assert page.texts("#accuracy .measured li") == ["epoch 3:", "held-out loss 0.25", "recall 0.625"]
    assert "No " not in " ".join(page.texts(".empty h3"))
    page.scroll_to("#samples img")
    script = (
        "return [...document.querySelectorAll('#samples img')].some((one) => one.complete && one.naturalWidth === 8)"
    )
    page.until(lambda: page.driver.execute_script(script), "a preview")
