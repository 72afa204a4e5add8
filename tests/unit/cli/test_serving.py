"""`serve --open` opens the dashboard in the browser: BROWSER names a script that notes the address."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import es_service as es
from es_service.cli import main
from es_service.selection.run import RunConfig
from es_service.storage.runs import RunStorage

SCRIPT = """#!/bin/sh
echo "$1" > "{place}.partial" && mv "{place}.partial" "{place}"
"""


def test_the_dashboard_of_a_run_opens_in_the_browser(tmp_path: Path) -> None:
    storage, noted, browser = tmp_path / "runs", tmp_path / "noted", tmp_path / "browser"
    config = RunConfig(selection=es.Selection(es.methods.full()), num_samples=30, num_epochs=4, batch_size=10)
    RunStorage(str(storage), "one").begin(config)
    browser.write_text(SCRIPT.format(place=noted))
    browser.chmod(0o755)
    words = ["serve", "--storage", str(storage), "--port", "0", "--no-ray", "--open", "one"]
    command = [sys.executable, "-m", "es_service.cli", *words]
    environment = {**os.environ, "BROWSER": f"{browser} %s"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as server:
        try:
            give_up = time.monotonic() + 120
            while not noted.exists():
                assert server.poll() is None
                assert time.monotonic() < give_up
                time.sleep(0.01)
            address = noted.read_text().strip()
            assert address.startswith("http://127.0.0.1:")
            assert address.endswith("/runs/one")
            with urllib.request.urlopen(address, timeout=60) as answer:
                assert b"<html" in answer.read()
        finally:
            server.terminate()


def test_a_name_that_no_run_has_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--storage", str(tmp_path), "--open", "../one"]) == 2
    assert "run name '../one' cannot be used" in capsys.readouterr().err
