# ruff: noqa: T201
"""Measures how the page of a run opens, from a server that runs already: what comes when, and how much of it.

es-service serve --storage runs &
python tests/browser/opening.py http://127.0.0.1:8420 demo
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

SHOWN = {
    "key figures": "#figures div",
    "map": "#map canvas",
    "samples": ".sample",
    "distribution": "#distribution .ridge",
    "labels": ".labels button",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server")
    parser.add_argument("run")
    options = parser.parse_args()
    chrome = webdriver.ChromeOptions()
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1280,900"):
        chrome.add_argument(f"--{word}")
    chrome.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=chrome, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        for title in ("first look", "again"):
            driver.get("about:blank")
            driver.get_log("performance")
            print(f"{title}:")
            look(driver, f"{options.server}/runs/{options.run}")
    finally:
        driver.quit()


def look(driver: Any, url: str) -> None:
    """Open the page, and say when its panels were there and what each answer held."""
    begin = time.perf_counter()
    driver.get(url)
    print(f"  {1e3 * (time.perf_counter() - begin):6.0f} ms  loaded")
    left = dict(SHOWN)

    def seen(one: Any) -> bool:
        for name, css in list(left.items()):
            if one.execute_script("return document.querySelector(arguments[0]) !== null", css):
                del left[name]
                print(f"  {1e3 * (time.perf_counter() - begin):6.0f} ms  {name}")
        return not left

    WebDriverWait(driver, 60, 0.01).until(seen)
    log = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    done = {one["params"]["requestId"]: one["params"] for one in log if one["method"] == "Network.loadingFinished"}
    for one in log:
        if one["method"] != "Network.responseReceived" or one["params"]["requestId"] not in done:
            continue
        response, number = one["params"]["response"], one["params"]["requestId"]
        if "json" in response["mimeType"]:
            body = driver.execute_cdp_cmd("Network.getResponseBody", {"requestId": number})["body"]
            seconds = done[number]["timestamp"] - response["timing"]["requestTime"]
            path = urlsplit(response["url"])._replace(scheme="", netloc="").geturl()
            print(f"  {1e3 * seconds:6.0f} ms  {len(body):8,} bytes  {path[:90]}")


if __name__ == "__main__":
    main()
