"""Tests in a real browser: headless Chromium, a real server, real runs. Where there is no Chromium they are skipped."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

ROOT = Path(__file__).parents[2]
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NO_CHROMIUM = "no chromium and chromedriver on this machine: as root, `make browser` installs them"
LIMIT_S = 90.0  # the first picture makes the service import torch, on a machine that is busy with other tests

DESKTOP, PHONE = (1280, 900), (360, 740)
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # keeps all of Ray on 127.0.0.1
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - else workers stand back behind other tests, at 15
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a browser where there is none, and say so."""
    if CHROMIUM is None or DRIVER is None:
        here = Path(__file__).parent
        for item in items:
            if here in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=NO_CHROMIUM))


def es_service(*words: Any) -> list[str]:
    return [sys.executable, "-m", "es_service.cli", *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """`es-service serve` in a process of its own; it can be stopped and started again on the same port."""

    def __init__(self, storage: Path, folder: Path, token: str | None = None, root: str = "", **env: str) -> None:
        self.storage, self.token, self.port = storage, token, free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self._env = environment(**env)
        self._process: subprocess.Popen[bytes] | None = None
        self._folder, self._log, self._root = folder, folder / "log", root

    def start(self) -> Server:
        words = es_service("serve", "--storage", self.storage, "--port", self.port, "--nice", 0)
        if self._root:
            words += ["--root-path", self._root]
        if self.token is not None:
            file = self._folder / "token"
            file.write_text(self.token)
            file.chmod(0o600)
            words += ["--token-file", str(file)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(words, env=self._env, stdout=log, stderr=log)
        deadline = time.monotonic() + 60.0
        while True:
            if self._is_up():
                return self
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, f"the server did not come up: {self.log()}"
            time.sleep(0.05)

    def _is_up(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.base}/-/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, http.client.HTTPException):
            return False

    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                raise AssertionError(f"the server did not end on SIGTERM: {self.log()}") from None

    def get(self, path: str, **query: Any) -> Any:
        """What the API says: the page is checked against it."""
        text = urllib.parse.urlencode(query, doseq=True)
        request = urllib.request.Request(f"{self.base}/v1/{path}{'?' if text else ''}{text}")
        if self.token is not None:
            request.add_header("Authorization", f"Bearer {self.token}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())


class Page:
    """A page as a person has it: what is on it, what can be clicked, and what it did behind their back."""

    def __init__(self, driver: webdriver.Chrome, server: Server) -> None:
        self.driver, self.server = driver, server
        self.expected: list[str] = []  # patterns of console messages that the test provokes
        self.resize(DESKTOP)
        self.scheme("light")
        driver.get("about:blank")
        driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
        driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": server.base, "storageTypes": "all"})
        self.requests()
        driver.get_log("browser")

    def resize(self, size: tuple[int, int]) -> None:
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def scheme(self, name: str) -> None:
        features = [
            {"name": "prefers-color-scheme", "value": name},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, path: str) -> Page:
        self.driver.get(self.server.base + path)
        return self

    @property
    def path(self) -> str:
        return self.driver.current_url.removeprefix(self.server.base)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str) -> WebElement:
        """The one visible element of a selector, waited for."""
        return self.until(lambda: next(iter([one for one in self.all(css) if one.is_displayed()]), None), css)

    def text(self, css: str) -> str:
        return plain(self.one(css).text)

    def texts(self, css: str) -> list[str]:
        """The text of every element, also of those that are not on the screen."""
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"
        return [plain(text) for text in self.driver.execute_script(script, css)]

    def until(self, condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
        """Wait until a condition holds, and return it; an element that was replaced meanwhile is looked for again."""
        wait = WebDriverWait(self.driver, limit_s, 0.05, ignored_exceptions=[StaleElementReferenceException])
        return wait.until(lambda _: condition(), f"waited in vain for {what}; {self.path}; {self.server.log()[-2000:]}")

    def scroll_to(self, css: str) -> WebElement:
        """Bring an element into view: pictures further away are not asked for."""

        def scrolled() -> WebElement:
            element: WebElement = self.one(css)
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
            return element

        found: WebElement = self.until(scrolled, css)
        return found

    def click(self, css: str) -> None:
        """Click on an element; a live page may replace it at any moment."""

        def clicked() -> bool:
            self.scroll_to(css).click()
            return True

        self.until(clicked, f"a click on {css}")

    def requests(self) -> list[str]:
        """The addresses that the browser asked for since the last call."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return found

    def check_behaviour(self) -> None:
        """No errors or warnings in the console, and nothing asked of anybody but our server."""
        expected = [*self.expected, "Password forms should have"]
        said = [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if not any(re.search(pattern, entry["message"]) for pattern in expected)
        ]
        assert not said, said
        elsewhere = [
            url for url in self.requests() if not url.startswith((self.server.base + "/", "data:", "about:", "blob:"))
        ]
        assert not elsewhere, elsewhere


def plain(text: str) -> str:
    """Text with ordinary spaces: a number and its unit are joined by one that does not break."""
    return text.replace("\u00a0", " ").strip()


@pytest.fixture(scope="session")
def chromium() -> Iterator[webdriver.Chrome]:
    """A headless Chromium, which can reach nothing but this machine."""
    options = webdriver.ChromeOptions()
    assert CHROMIUM is not None
    options.binary_location = CHROMIUM
    for word in (
        *("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars"),
        *("disable-background-networking", "disable-component-update", "no-first-run", "disable-sync"),
        "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(30)
    yield driver
    driver.quit()


TRAIN = """
import json, sys
from pathlib import Path
from es_service.cli import main
from es_service.training.tasks import build_task
from es_service.training.tasks.derived import Derived
folder, runs = json.load(sys.stdin)
for words in runs:
    if main(words):
        sys.exit(f"es-service {' '.join(words)} failed")
noisy = build_task("fashion", None, Derived(limit=1200, label_noise=0.1))
Path(folder, "wrong.json").write_text(json.dumps(noisy.corrupted.nonzero()[0].tolist()))
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two storage folders, `finished` and `texts`, and `wrong.json`: the ids of `clothes` mislabelled.

    All are trained by one process, without Ray: it is the import of torch that takes the time.
    """
    folder = tmp_path_factory.mktemp("trained")

    def run(storage: str, name: str, *flags: Any) -> list[str]:
        words = ("train", "--run", name, "--storage", folder / storage, "--exchange", "embedded", *flags)
        return [str(word) for word in words]

    noisy = ("--label-noise", 0.1, "--limit", 1200)
    runs = [
        run("finished", "clothes", "--task", "fashion", *noisy, "--epochs", 5, "--method", "es", "--ratio", 0.25),
        run("finished", "everything", "--task", "fashion", "--limit", 200, "--epochs", 1, "--method", "full"),
    ]
    if list((ROOT / "data").glob("vaderSentiment-*")):
        reviews = ("--task", "reviews", "--data", ROOT / "data")
        runs.append(run("texts", "words", *reviews, "--epochs", 2, "--limit", 400))
    words, asked = [sys.executable, "-c", TRAIN], json.dumps([str(folder), runs])
    done = subprocess.run(
        words, input=asked, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def finished(trained: Path) -> Path:
    """A storage folder with two finished runs on images: `clothes`, a tenth of its labels wrong, and `everything`."""
    return trained / "finished"


@pytest.fixture(scope="session")
def server(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the finished runs, without a token; no test stops it."""
    one = Server(finished, tmp_path_factory.mktemp("server")).start()
    yield one
    one.stop()


@pytest.fixture(scope="session")
def various(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of further runs; no test stops it.

    `demo` and `other` are `clothes` again, `smaller` is `everything`, `words` is on texts, if there are. `trial-1` and
    `trial-2` are of the search `betas`, `trial-of-none` of none. `interrupted` is as a training leaves it that was
    killed an hour ago, after four of its five epochs.
    """
    clothes, storage = trained / "finished" / "clothes", tmp_path_factory.mktemp("various") / "runs"
    storage.mkdir()
    for name in ("demo", "other"):
        shutil.copytree(clothes, storage / name)
    shutil.copytree(trained / "finished" / "everything", storage / "smaller")
    if (trained / "texts").exists():
        shutil.copytree(trained / "texts" / "words", storage / "words")
    for name, search in (("trial-1", "betas"), ("trial-2", "betas"), ("trial-of-none", None)):
        shutil.copytree(clothes, storage / name)
        path = storage / name / "run.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "run": name, "search": search}))
    run = storage / "interrupted"
    shutil.copytree(clothes, run)
    for gone in ("result.json", "progress.json"):
        (run / gone).unlink(missing_ok=True)
    shutil.rmtree(next((run / "snapshots").glob("00000005-*")))
    for path in [run, *run.rglob("*")]:
        os.utime(path, (time.time() - 3600, time.time() - 3600))
    one = Server(storage, tmp_path_factory.mktemp("server")).start()
    yield one
    one.stop()


@pytest.fixture(scope="session")
def locked(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the finished runs that asks for a token, which is kept away from the runs; no test stops it."""
    one = Server(finished, tmp_path_factory.mktemp("locked"), "open-sesame-1234567890abcdef").start()
    yield one
    one.stop()


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """A function that starts a server of the test's own."""
    with contextlib.ExitStack() as stack:

        def start(storage: Path, token: str | None = None, root: str = "", **env: str) -> Server:
            one = Server(storage, tmp_path_factory.mktemp("server"), token, root, **env)
            stack.callback(one.stop)
            return one.start()

        yield start


@pytest.fixture
def open_page(chromium: webdriver.Chrome, serve: Callable[..., Server]) -> Iterator[Callable[[Server], Page]]:
    """A function that gives the browser to a server; what it did behind the reader's back is checked at the end.

    It asks for `serve` so that the browser leaves a server's page before the server stops: a page that is still loading
    its pictures would report that nothing answers.
    """
    pages: list[Page] = []

    def give(server: Server) -> Page:
        pages.append(Page(chromium, server))
        return pages[-1]

    yield give
    for page in pages:
        page.check_behaviour()
    chromium.get("about:blank")


@pytest.fixture
def page(open_page: Callable[[Server], Page], server: Server) -> Page:
    """The browser, at the server of the finished runs."""
    return open_page(server)


@pytest.fixture(scope="session")
def axe() -> str | None:
    """The script of axe-core, which `make browser` fetches; None where it did not."""
    packed = sorted((ROOT / "data").glob("axe-core-*.tgz"))
    if not packed:
        return None
    with tarfile.open(packed[-1]) as archive:
        script = archive.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode()


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """A Ray of our own, on loopback."""
    port = free_port()
    words = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    words += [f"--port={port}", "--num-cpus=4", "--include-dashboard=false", "--object-store-memory=104857600"]
    with tempfile.TemporaryDirectory(prefix="es-", ignore_cleanup_errors=True) as folder:
        words += ["--disable-usage-stats", f"--temp-dir={folder}"]
        more = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1"}
        with tempfile.TemporaryFile() as log:
            head = subprocess.Popen(words, env=environment(**more), stdout=log, stderr=log)
            try:
                while b"Ray runtime started" not in (said := os.pread(log.fileno(), 1 << 16, 0)):
                    assert head.poll() is None, said.decode()
                    time.sleep(0.05)
                yield f"127.0.0.1:{port}"
            finally:
                head.terminate()
                head.wait(timeout=60)


@pytest.fixture(scope="module")
def live(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the run `training`, which trains through a score server on Ray all the while."""
    storage = tmp_path_factory.mktemp("live")
    words = es_service("train", "--run", "training", "--storage", storage, "--task", "fashion", "--limit", 1000)
    words += es_service("--epochs", 2000, "--exchange", "leased", "--workers", 1, "--batch-size", 64)[3:]
    env = environment(RAY_ADDRESS=ray_address, RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2")
    with tempfile.TemporaryFile() as log:
        training = subprocess.Popen(words, env=env, stdout=log, stderr=log, start_new_session=True)
        one = Server(storage, tmp_path_factory.mktemp("server"), RAY_ADDRESS=ray_address)
        try:
            deadline = time.monotonic() + 240.0
            while not list(storage.glob("training/snapshots/*/manifest.json")):
                assert training.poll() is None, os.pread(log.fileno(), 1 << 20, 0).decode()
                assert time.monotonic() < deadline, "the run did not get through its first epoch"
                time.sleep(0.1)
            yield one.start()
        finally:
            one.stop()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(training.pid, signal.SIGKILL)
            training.wait()
