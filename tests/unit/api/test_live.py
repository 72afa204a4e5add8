"""Looking for a Ray cluster: which one, and that nobody waits for one that is not there. Nothing here starts Ray."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from es_service.api.live.runs import LiveRuns, clusters


def test_the_newest_raylet_of_this_user_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    script = 'exec -a /opt/raylet "$0" -c "print(1, flush=True); import time; time.sleep(60)" "$1"'
    addresses = [f"--gcs-address=192.0.2.{number}:6379" for number in (1, 2)]
    processes = []
    try:
        for address in addresses:
            words = ["bash", "-c", script, sys.executable, address]
            process = subprocess.Popen(words, stdout=subprocess.PIPE)
            processes.append(process)
            assert process.stdout is not None
            assert process.stdout.readline() == b"1\n"  # it is what it pretends to be by now
            time.sleep(0.05)  # /proc tells when a process began to the hundredth of a second
        assert clusters.find_address() == "192.0.2.2:6379"
        processes[1].kill()
        processes[1].wait()
        assert clusters.find_address() != "192.0.2.2:6379"
        monkeypatch.setenv("RAY_ADDRESS", "192.0.2.9:1")
        assert clusters.find_address() == "192.0.2.9:1"
    finally:
        for process in processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def test_a_cluster_that_is_not_there_leaves_no_process_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    before = set(children())
    live = LiveRuns(str(tmp_path))
    live.connect(wait=True)
    found = live.state()
    assert found["state"] == "absent"
    assert "127.0.0.1:1" in str(found["detail"])
    assert live.runs() == {}
    assert live.table("any") is None
    assert set(children()) == before
    live.close()


def children() -> list[int]:
    """Processes of this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if parent == os.getpid():
            found.append(int(path.parent.name))
    return found


def test_where_ray_is_not_wanted_nobody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    live = LiveRuns(str(tmp_path), enabled=False)
    live.connect(wait=True)
    assert live.state() == {"state": "absent", "detail": None}
    live.close()
