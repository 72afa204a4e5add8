"""The dashboard below a path of a host, behind a real nginx, set up as docs/reference/http_api.md says."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
DOCS = Path(__file__).parents[2] / "docs" / "reference" / "http_api.md"
TOKEN = "open-sesame-1234567890abcdef"

CONFIG = """
daemon off; pid {folder}/pid; error_log {folder}/log; worker_processes 1;
events {{ worker_connections 64; }}
http {{
    access_log off; types {{ }}
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{ listen 127.0.0.1:{port}; {location} }}
}}
"""

pytestmark = pytest.mark.skipif(NGINX is None, reason="no nginx here: `make browser` installs it on Debian, as root")


def snippet() -> str:
    [found] = re.findall(r"```nginx\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return str(found)


@pytest.fixture
def proxied(finished: Path, tmp_path: Path, serve: Callable[..., Any]) -> Iterator[Any]:
    """A server below /es/ that asks for a token, reached through nginx only."""
    server = serve(finished, TOKEN, "/es")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free_port = probe.getsockname()[1]
    location = snippet().replace("127.0.0.1:8420", f"127.0.0.1:{server.port}")
    (tmp_path / "nginx").mkdir(mode=0o755)
    config = tmp_path / "nginx" / "conf"
    config.write_text("user root;" + CONFIG.format(folder=tmp_path / "nginx", port=free_port, location=location))
    assert NGINX is not None
    nginx = subprocess.Popen(
        [NGINX, "-c", str(config), "-p", str(tmp_path / "nginx"), "-e", str(tmp_path / "nginx/log")]
    )
    server.base = f"http://127.0.0.1:{free_port}/es"
    try:
        give_up = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"{server.base}/-/healthz", timeout=5).close()
                break
            except OSError:
                assert nginx.poll() is None, (tmp_path / "nginx" / "log").read_text()
                assert time.monotonic() < give_up
                time.sleep(0.05)
        yield server
    finally:
        nginx.terminate()
        nginx.wait(20)


def test_all_of_it_works_below_a_path(proxied: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(proxied).open("/runs/clothes?view=suspects")
    page.one("#token").send_keys("something else", Keys.ENTER)
    page.until(lambda: page.all("#failed") and page.one("#failed").is_displayed(), "to be told that it was wrong")
    page.one("#token").send_keys(TOKEN, Keys.ENTER)
    page.until(lambda: page.path == "/runs/clothes?view=suspects", "the page that was asked for")
    page.scroll_to(".sample")
    page.until(lambda: page.one(".sample img").get_property("naturalWidth") == 28, "a picture")
    [cookie] = page.driver.get_cookies()
    assert cookie["path"] == "/es"
    page.click("header.top nav a")
    page.until(lambda: page.path == "/", "the list of runs")
    page.one("#list table")
    page.click("#list td.name a")
    page.until(lambda: page.path.startswith("/runs/"), "a run's page")
    page.one(".sample")
    page.click("#logout button")
    page.one("#token")
    assert page.path.startswith("/login")
    asked = page.requests()
    assert len(asked) > 20
    assert [url for url in asked if not url.startswith(f"{proxied.base}/")] == []
