"""Files of a run that others truncate and write over while they are read: an answer or a clear error, never SIGBUS.

Readers are processes of their own, since a signal of the kernel would end them.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from es_service import errors
from es_service.selection import methods
from es_service.selection.config import Selection
from es_service.selection.run import RunConfig, RunState
from es_service.selection.shards import WHOLE
from es_service.selection.table import ScoreTable
from es_service.storage import columns
from es_service.storage.labels import write_notes
from es_service.storage.runs import RunStorage

NUM = 200_000  # 8 MB of table, 2 MB of history
PAGE = 4096
LOCAL = fs.LocalFileSystem()


def write_run(storage: Path, name: str, seed: int, num: int = NUM) -> Path:
    """Write a run behind its first epoch, with a history of it that does not compress well."""
    random = np.random.default_rng(seed)
    config = RunConfig(selection=Selection(methods.evolved(), ratio=0.5), num_samples=num, num_epochs=2, batch_size=100)
    run = RunStorage(str(storage), name)
    run.begin(config)
    write_notes(run, np.arange(num) % 7, None, None)
    records = ScoreTable(num).copy_records()
    records["w"] = records["s"] = random.random(num)
    run.write_snapshot(RunState(records, 1, (0, 10)))
    observed = {
        "id": np.arange(num),
        "run_step": np.arange(num, dtype=np.int32) // 100,
        "rank": np.zeros(num, dtype=np.int32),
        "loss": random.random(num, dtype=np.float32),
        "selected": random.random(num) < 0.5,
    }
    run.history.write(0, WHOLE, pa.table(observed))
    return storage / name


def changed_in_place(run: Path, other: Path) -> Iterator[str]:
    """Truncate and write over the files of a run, in place as `cp` does; yield what was done."""
    for mine in [*run.glob("snapshots/*/shard-0.arrow"), *run.glob("history/*/*.arrow")]:
        [others] = other.glob(f"{mine.parent.parent.name}/*/{'shard-0' if 'shard' in mine.name else '*'}.arrow")
        with mine.open("r+b") as file:
            file.truncate(PAGE)
        yield f"{mine.name} was truncated"
        shutil.copyfile(others, mine)
        yield f"{mine.name} was written over"
        mine.write_bytes(b"")
        yield f"{mine.name} was emptied"


@contextlib.contextmanager
def serving(storage: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    words = [sys.executable, "-m", "es_service.cli", "serve", "--storage", str(storage), "--port", "0", "--no-ray"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"http://127\.0\.0\.1:\d+", process.stderr.readline())
            assert found is not None
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield process, found[0]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def ask(url: str) -> dict[str, Any] | None:
    """Return a problem that the service answers with, None where it answers with what was asked for."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            answer.read()
            return None
    except urllib.error.HTTPError as error:
        problem: dict[str, Any] = json.loads(error.read())
        return problem


def test_the_service_survives_changes_in_the_files_that_it_shows(tmp_path: Path) -> None:
    run, other = write_run(tmp_path, "mine", 1), write_run(tmp_path / "others", "mine", 2)
    with serving(tmp_path) as (process, url):
        paths = ("samples?limit=3&order=-w", "samples/7", "samples/7/history", "export?format=csv", "distribution")
        assert [ask(f"{url}/v1/runs/mine/{path}") for path in paths] == [None] * len(paths)
        for what in changed_in_place(run, other):
            for path in (*paths, "samples/190000/history", "export?format=arrow"):
                problem = ask(f"{url}/v1/runs/mine/{path}")
                assert process.poll() is None, what
                assert problem is None or "detail" in problem, (what, path, problem)
                assert problem is None or "history" in path, (what, path, problem)  # the table is a copy of its own


READER = """
import select, sys
from pyarrow import fs
from es_service import errors
from es_service.storage import columns
from es_service.storage.history import History
local, answers, failures = fs.LocalFileSystem(), 0, set()
print("ready", flush=True)
while answers + len(failures) < 1_000_000:
    for read in (lambda: History(local, sys.argv[1], lambda: 200_000).sample(123_456),
                 lambda: columns.open_snapshot(local, sys.argv[1], 1).shards[0].column("w").to_numpy().sum()):
        try:
            read()
            answers += 1
        except errors.StorageError as error:
            failures.add(str(error))
    if select.select([sys.stdin], [], [], 0)[0]:
        break
print(answers, *sorted(failures), sep="\\n")
"""


def test_files_that_change_again_and_again_are_read_or_refused(tmp_path: Path) -> None:
    run, other = write_run(tmp_path, "mine", 1), write_run(tmp_path / "others", "mine", 2)
    before = {path: path.read_bytes() for path in run.rglob("*.arrow")}
    words = [sys.executable, "-c", READER, str(run)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(60):
            for _ in changed_in_place(run, other):
                pass
            for path, data in before.items():
                path.write_bytes(data)
            assert process.poll() is None
        said, _ = process.communicate("stop\n", timeout=60)
    assert process.returncode == 0
    answers, *failures = said.splitlines()
    assert int(answers) > 0
    for one in failures:
        assert re.search("is damaged|was changed while|cannot read|no such file", one), one


def test_a_copy_is_as_the_files_were_when_it_was_made(tmp_path: Path) -> None:
    run, other = write_run(tmp_path, "mine", 1, 10_000), write_run(tmp_path / "others", "mine", 2, 10_000)
    opened = columns.open_snapshot(LOCAL, str(run), 1)
    weights = opened.shards[0].column("w").to_numpy().copy()
    for what in changed_in_place(run, other):
        np.testing.assert_array_equal(opened.shards[0].column("w").to_numpy(), weights, what)


def test_copies_take_no_more_than_half_of_the_space_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path, "mine", 1, 10_000)
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=500_000))
    with pytest.raises(errors.StorageError, match=r"more than half of the 500,000 that are free in .* set TMPDIR"):
        columns.open_snapshot(LOCAL, str(run), 1)


def test_a_copy_that_does_not_fit_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path, "mine", 1, 10_000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(errors.StorageError, match=r"cannot copy .* to a temporary file"):
        columns.open_snapshot(LOCAL, str(run), 1)
