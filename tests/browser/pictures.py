"""Makes the pictures of docs/how-to/dashboard.md, from a server that runs already:

make demo && es-service serve --storage runs &
python tests/browser/pictures.py http://127.0.0.1:8420 demo docs/images
"""

from __future__ import annotations

import argparse
import base64
import shutil
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

DESKTOP, PHONE = 1280, 360
LOADED = (
    "const shown = [...document.images].filter((one) => one.getBoundingClientRect().top < innerHeight);"
    "return document.querySelector(arguments[0]) !== null && shown.every((one) => one.complete && one.naturalWidth > 0)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server")
    parser.add_argument("run")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    chrome = webdriver.ChromeOptions()
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars"):
        chrome.add_argument(f"--{word}")
    driver = webdriver.Chrome(options=chrome, service=webdriver.ChromeService(shutil.which("chromedriver")))
    page = f"{options.server}/runs/{options.run}"
    try:
        look(driver, DESKTOP, 1290, "light")
        take(driver, page, ".sample", "body", options.folder / "dashboard-run.png", height=1290)
        look(driver, DESKTOP, 1500, "light")
        take(driver, f"{page}?view=suspects", ".sample", "#map", options.folder / "dashboard-suspects.png", height=1140)
        look(driver, PHONE, 780, "dark", scale=2)
        take(driver, page, ".sample", "body", options.folder / "dashboard-phone.png", height=780)
    finally:
        driver.quit()


def look(driver: Any, width: int, height: int, scheme: str, scale: int = 1) -> None:
    """Be a window of this size, in light or dark."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def take(driver: Any, url: str, ready: str, begin: str, file: Path, *, height: int) -> None:
    """Take a picture from the panel around the element `begin` on, once the page is there."""
    driver.get(url)
    wait = WebDriverWait(driver, 30)
    wait.until(lambda one: one.execute_script(LOADED, ready))
    top = driver.execute_script(
        "const one = document.querySelector(arguments[0]); const place = one.closest('.panel') ?? one;"
        "scrollTo(0, place.getBoundingClientRect().top + scrollY - 24); return scrollY",
        begin,
    )
    wait.until(lambda one: one.execute_script(LOADED, ready))
    clip = {"x": 0, "y": top, "width": driver.execute_script("return innerWidth"), "height": height, "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    file.write_bytes(base64.b64decode(shot["data"]))
    print(f"{file}: {file.stat().st_size // 1024} KiB")  # noqa: T201


if __name__ == "__main__":
    main()
