"""One writer of a run at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pyarrow import fs

from es_service import errors
from es_service.storage import ownership
from es_service.storage.ownership import Ownership

LOCAL = fs.LocalFileSystem()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "_STALE_S", 0.4)


def owner(folder: Path, actor: str = "one") -> Ownership:
    return Ownership(LOCAL, str(folder), actor)


def test_a_free_run_is_claimed_and_released(tmp_path: Path) -> None:
    one = owner(tmp_path)
    one.claim()
    one.renew()
    one.check()
    one.release()
    assert [path.suffix for path in (tmp_path / "owners" / "run").iterdir()] == [".json"]  # no heartbeat any more
    before = time.monotonic()
    owner(tmp_path, "two").claim()
    assert time.monotonic() - before < ownership._STALE_S  # not waited for


def test_a_second_one_is_refused_while_the_first_renews(tmp_path: Path) -> None:
    first = owner(tmp_path)
    first.claim()
    stop = threading.Event()

    def live() -> None:
        while not stop.wait(0.02):
            first.renew()

    alive = threading.Thread(target=live)
    alive.start()
    try:
        with pytest.raises(errors.RunExistsError, match=r"another score server \(process \d+ on .*\) writes"):
            owner(tmp_path, "two").claim()
    finally:
        stop.set()
        alive.join()
    first.check()


def test_one_that_is_silent_is_taken_over_from_and_writes_no_more(tmp_path: Path) -> None:
    first, second = owner(tmp_path), owner(tmp_path, "two")
    first.claim()
    second.claim()
    with pytest.raises(errors.RunExistsError):
        first.renew()
    with pytest.raises(errors.RunExistsError):
        first.check()
    second.renew()
    first.release()  # it is not its own any more
    second.renew()


def test_one_that_slept_while_it_renewed_does_not_take_the_run_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had looked who the owner is, and was frozen before it wrote."""
    first, second = owner(tmp_path), owner(tmp_path, "two")
    first.claim()
    beat = Ownership._beat

    def asleep(self: Ownership) -> None:
        if self is first:
            second.claim()
        beat(self)

    monkeypatch.setattr(Ownership, "_beat", asleep)
    first.renew()  # of no consequence: it is no owner any more
    second.renew()
    with pytest.raises(errors.RunExistsError):
        first.renew()
    second.renew()


def test_one_that_wakes_behind_the_end_of_the_other_writes_no_more(tmp_path: Path) -> None:
    first, second = owner(tmp_path), owner(tmp_path, "two")
    first.claim()
    second.claim()
    second.release()
    with pytest.raises(errors.RunExistsError, match=r"another score server \(one that has ended since\)"):
        first.renew()
    assert not list(tmp_path.rglob("*.pulse"))


def test_the_same_actor_started_again_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "_STALE_S", 3600.0)
    owner(tmp_path).claim()
    owner(tmp_path).claim()


def test_a_process_that_has_ended_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "_STALE_S", 3600.0)
    owner(tmp_path).claim()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    [claim] = (tmp_path / "owners" / "run").glob("*.json")
    claim.write_text(json.dumps({**json.loads(claim.read_text()), "pid": ended.pid}))
    owner(tmp_path, "two").claim()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}'])
def test_a_damaged_file_is_nobodys(tmp_path: Path, content: str) -> None:
    owner(tmp_path).claim()
    [claim] = (tmp_path / "owners" / "run").glob("*.json")
    claim.write_text(content)
    owner(tmp_path, "two").claim()
