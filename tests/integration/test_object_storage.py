"""The whole command on S3, as moto's server speaks it: train with Ray, be killed, resume, look at it, serve it.

It has to come to what a run in one process on a local disk comes to, of which nothing is disturbed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs

from es_service.cli import main
from es_service.storage.files import open_filesystem
from es_service.storage.runs import RunStorage

SECRET = os.environ["AWS_SECRET_ACCESS_KEY"]


def command(*words: Any) -> list[str]:
    return [sys.executable, "-m", "es_service.cli", *map(str, words)]


def es_service(*words: Any, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*words), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == expect, done.stderr
    assert SECRET not in done.stdout + done.stderr
    return done


def words(data: Path, storage: str, exchange: str, workers: int = 1) -> list[Any]:
    found = ["train", "--data", data, "--storage", storage, "--batch-size", 32, "--epochs", 4, "--json"]
    return [*found, "--exchange", exchange, "--workers", workers]


def table_of(storage: str, run: str) -> pa.Table:
    return RunStorage(storage, run).table()


def contents(storage: str) -> bytes:
    """All that is written there, but for tables and models."""
    filesystem, path = open_filesystem(storage)
    infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    found = b""
    for info in infos:
        if info.type == fs.FileType.File and info.base_name.endswith(".json"):
            with filesystem.open_input_file(info.path) as file:
                found += file.read()
    return found


def test_a_training_killed_and_resumed_and_all_that_is_asked_of_it(
    few_images: Path, ray_head: Any, s3_storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = str(tmp_path / "runs")
    assert main([*map(str, words(few_images, local, "embedded")), "--run", "demo"]) == 0
    undisturbed = json.loads(capsys.readouterr().out)
    job = subprocess.Popen(
        command(*words(few_images, s3_storage, "leased"), "--run", "demo"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    kept, give_up = RunStorage(s3_storage, "demo"), time.monotonic() + 120
    filesystem = kept.filesystem
    selector = fs.FileSelector(f"{kept.path}/train", recursive=True, allow_not_found=True)
    while not any("checkpoint_" in info.path for info in filesystem.get_file_info(selector)):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.1)  # polling a bucket
    job.send_signal(signal.SIGKILL)
    job.communicate()
    resumed = json.loads(es_service(*words(few_images, s3_storage, "leased"), "--run", "demo", "--resume").stdout)
    assert resumed["accuracy"] == undisturbed["accuracy"]
    assert table_of(s3_storage, "demo") == table_of(local, "demo")
    assert kept.snapshots.epochs() == [2, 3, 4]
    assert kept.history.epochs() == [0, 1, 2, 3]

    assert "demo" in es_service("runs", "--storage", s3_storage).stdout
    capsys.readouterr()
    shown = []
    for storage in (s3_storage, local):
        assert main(["top", "demo", "--storage", storage, "--limit", "5"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    for form in ("arrow", "parquet", "csv"):
        for storage, name in ((s3_storage, "remote"), (local, "local")):
            out = str(tmp_path / f"{name}.{form}")
            assert main(["export", "demo", "--storage", storage, "--format", form, "--out", out]) == 0
        assert (tmp_path / f"remote.{form}").read_bytes() == (tmp_path / f"local.{form}").read_bytes()
    assert SECRET.encode() not in contents(s3_storage)
    check_pages(s3_storage, local)


@pytest.mark.thorough
def test_every_exchange_that_trains_on_ray(few_images: Path, ray_head: Any, s3_storage: str) -> None:
    done = {
        exchange: json.loads(es_service(*words(few_images, s3_storage, exchange), "--run", exchange).stdout)
        for exchange in ("sync", "collective")
    }
    assert done["sync"]["accuracy"] == done["collective"]["accuracy"]
    assert table_of(s3_storage, "sync") == table_of(s3_storage, "collective")
    assert json.loads(es_service("runs", "--storage", s3_storage, "--json").stdout)


def test_in_process_it_is_refused_in_words(few_images: Path, s3_storage: str) -> None:
    done = es_service(*words(few_images, s3_storage, "embedded"), "--run", "demo", expect=2)
    assert "keeps its checkpoints in a local folder" in done.stderr


@contextlib.contextmanager
def served(storage: str) -> Iterator[str]:
    """`es-service serve` of a storage: its address."""
    words = command("serve", "--storage", storage, "--port", 0, "--no-ray")
    job = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert job.stdout is not None
    said = ""
    while not (found := re.search(r"http://127\.0\.0\.1:\d+", said)):
        line = job.stdout.readline()
        assert line, said
        said += line
    try:
        yield found[0]
    finally:
        job.terminate()
        rest, _ = job.communicate(timeout=60)
        assert SECRET not in said + rest


def check_pages(storage: str, local: str) -> None:
    """What the service says of the run in the bucket is what it says of the same one on a disk."""
    paths = ["samples?limit=5", "distribution?column=w", "samples/7/history", "map?points=100", "ledger"]
    with served(storage) as remote, served(local) as here:
        for path in paths:
            answers = []
            for base in (remote, here):
                with urllib.request.urlopen(f"{base}/v1/runs/demo/{path}") as answer:
                    answers.append(json.load(answer))
            if path == "ledger":
                assert answers[0].keys() == answers[1].keys()  # seconds differ
            else:
                for answer in answers:
                    answer.pop("table", None)  # it says when it was written
                assert answers[0] == answers[1]
        with urllib.request.urlopen(f"{remote}/v1/runs/demo/export?format=csv") as answer:
            assert answer.read().count(b"\n") == 1 + len(table_of(local, "demo"))
        with urllib.request.urlopen(f"{remote}/v1/runs") as answer:
            page = answer.read()
        assert b'"demo"' in page
        assert SECRET.encode() not in page
