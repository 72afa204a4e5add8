"""What all tests share: an S3, one thread, and numpy, unless ES_SERVICE_COMPILED=1 is set (numba takes its time)."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch and numpy are loaded: beside other processes, threads of theirs spend most of their time on each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import moto_s3

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background: programs would not hear ours
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("ES_SERVICE_COMPILED", "0")
gc.disable()  # while tests are collected: a third of that time went into looking at what all stays


def pytest_collection_finish() -> None:
    """Collect garbage from now on, but never again look at the libraries and the tests that are loaded."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def example_method(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which pip has installed tests/example_method, with its metadata: put it on sys.path."""
    folder = tmp_path_factory.mktemp("site")
    words = ["install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation"]
    source = Path(__file__).parent / "example_method"
    subprocess.run([sys.executable, "-m", "pip", *words, "--target", str(folder), str(source)], check=True)
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Moto's server of S3, on loopback: its address."""
    with moto_s3.serving() as address:
        yield address


@pytest.fixture
def s3_storage(s3_server: str) -> str:
    """The URI of an empty storage in a bucket of the test's own."""
    return moto_s3.new_storage(s3_server)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets that ES_SERVICE_DATA names; a test that wants one is skipped where it is not set."""
    folder = os.environ.get("ES_SERVICE_DATA")
    if not folder:
        pytest.skip("ES_SERVICE_DATA names no folder of data sets")
    return Path(folder)
