"""`es-service train` on a disk that is full, and then is not: a small one of the test's own, mounted by root."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from es_service.storage.runs import RunStorage

BLOCK = 1 << 12


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place]
    if os.geteuid() != 0 or subprocess.run(words, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a disk")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path, left: int) -> Path:
    """Fill a disk but for so many bytes."""
    state, filler = os.statvfs(disk), disk / "filler"
    filler.write_bytes(bytes(state.f_bavail * state.f_frsize - left))
    return filler


def train(data: Path, storage: Path, exchange: str, *more: Any) -> subprocess.CompletedProcess[str]:
    common = ("--run", "mine", "--epochs", 2, "--batch-size", 64, "--set", "anneal=[0,0]", "--exchange", exchange)
    words = (sys.executable, "-m", "es_service.cli", "train", "--data", data, "--storage", storage, *common, *more)
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300, check=False)


def table(storage: Path) -> dict[str, bytes]:
    found = RunStorage(str(storage), "mine").table()
    return {name: found[name].to_numpy().tobytes() for name in found.column_names}


def full_then_not(data: Path, disk: Path, exchange: str, left: int, what: str) -> None:
    undisturbed = train(data, disk.parent / "undisturbed", exchange)
    assert undisturbed.returncode == 0, undisturbed.stderr
    filler = fill(disk, left)
    done = train(data, disk, exchange)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("es-service: "), done.stderr
    assert f"cannot write {what}{disk}" in last, done.stderr
    assert "free space" in last, done.stderr
    assert "Traceback" not in done.stderr
    filler.unlink()
    done = train(data, disk, exchange, "--resume")
    assert done.returncode == 0, done.stderr
    assert table(disk) == table(disk.parent / "undisturbed")


@pytest.mark.parametrize(
    ("left", "what"), [(9 * BLOCK, ""), pytest.param(80 * BLOCK, "the checkpoint ", marks=pytest.mark.thorough)]
)
def test_a_training_in_one_process_ends_with_its_epoch_and_can_be_resumed(
    few_images: Path, disk: Path, left: int, what: str
) -> None:
    full_then_not(few_images, disk, "embedded", left, what)
