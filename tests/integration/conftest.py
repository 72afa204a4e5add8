"""Integration tests share one Ray, started once on loopback, with more CPUs on paper than the machine has."""

from __future__ import annotations

import contextlib
import gzip
import os
import pickle
import secrets
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # keeps all of Ray on 127.0.0.1
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ |= {"RAY_worker_niceness": "0"}  # else other tests on the machine come before all that Ray starts
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # a process for each job, for machines that are taken away
os.environ["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # as Ray gives its workers: sums are made in the same order everywhere
os.environ["RAY_AUTH_MODE"] = "token"  # what `ray start` takes by default; a client has to be told
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # of this Ray alone: the tests need none in the user's home
os.environ.pop("RAY_ADDRESS", None)


@pytest.fixture(scope="session")
def ray_head() -> Iterator[subprocess.Popen[bytes]]:
    """A Ray of our own with 4 CPUs on paper: the process that holds it, found by RAY_ADDRESS."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray = Path(sys.executable).with_name("ray")
    words = [str(ray), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=4"]
    words += ["--no-monitor", "--include-dashboard=false", "--include-log-monitor=false", "--disable-usage-stats"]
    words += ["--object-store-memory=104857600"]
    # A folder of its own (and with a short name: it holds sockets), or other Rays would take ours for theirs.
    with tempfile.TemporaryDirectory(prefix="es-", ignore_cleanup_errors=True) as folder:
        words.append(f"--temp-dir={folder}")
        with tempfile.TemporaryFile() as log:
            head = subprocess.Popen(words, stdout=log, stderr=log)
            try:
                while b"Ray runtime started" not in (said := os.pread(log.fileno(), 1 << 16, 0)):
                    assert head.poll() is None, said.decode()
                    time.sleep(0.05)
                os.environ["RAY_ADDRESS"] = f"127.0.0.1:{port}"
                yield head
            finally:
                os.environ.pop("RAY_ADDRESS", None)
                head.terminate()
                head.wait(timeout=60)


@pytest.fixture(scope="session")
def ray_cluster(ray_head: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """This process, connected to that Ray."""
    import ray

    ray.init(log_to_driver=False)
    yield ray_head
    ray.shutdown()


@pytest.fixture
def run(ray_cluster: subprocess.Popen[bytes]) -> Iterator[str]:
    """A run name of the test's own, whose score server is gone afterwards."""
    from es_service import errors
    from es_service.actors import launch

    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    with contextlib.suppress(errors.RunNotFoundError):
        launch.stop(name)


@pytest.fixture
def storage(tmp_path: Path) -> str:
    """An empty storage folder."""
    return str(tmp_path / "runs")


@pytest.fixture(scope="session")
def descendants() -> Callable[[int], dict[int, str]]:
    """A function that lists the processes below one."""
    return _descendants


def _descendants(pid: int) -> dict[int, str]:
    """Return the processes below one, with their titles."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):  # it ended while we looked
                stat = Path(f"/proc/{name}/stat").read_bytes()
                children.setdefault(int(stat.rpartition(b")")[2].split()[1]), []).append(int(name))
    titles: dict[int, str] = {}
    left = [pid]
    while left:
        for child in children.get(left.pop(), ()):
            left.append(child)
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ")
                titles[child] = title.decode(errors="replace").strip()
    return titles


class Ranks:
    """Processes joined by torch.distributed (gloo, on loopback), which run a test's functions side by side."""

    _LIMIT_S = 120.0

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def run(self, function: Callable[..., Any], *args: Any, world_size: int) -> list[Any]:
        """Call a function of a test file on every rank; return what each returned or raised, None where it died."""
        meeting = self._folder / uuid.uuid4().hex
        asked = [self._process(rank) for rank in range(world_size)]
        timers = [threading.Timer(self._LIMIT_S, process.kill) for process in asked]
        for rank, (process, timer) in enumerate(zip(asked, timers, strict=True)):
            timer.start()
            request = (function.__code__.co_filename, function.__name__, args, rank, world_size, str(meeting))
            pickle.dump(request, process.stdin)  # type: ignore[arg-type]
            process.stdin.flush()  # type: ignore[union-attr]
        answers: list[Any] = []
        for process, timer in zip(asked, timers, strict=True):
            try:
                answers.append(pickle.load(process.stdout))  # type: ignore[arg-type]
            except EOFError:
                answers.append(None)
                process.communicate()
            timer.cancel()
        return answers

    def _process(self, rank: int) -> subprocess.Popen[bytes]:
        process = self._processes.get(rank)
        if process is not None and process.poll() is None:
            return process
        program = str(Path(__file__).with_name("rank_process.py"))
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
        self._processes[rank] = subprocess.Popen(
            [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        return self._processes[rank]

    def close(self) -> None:
        for process in self._processes.values():
            process.communicate()  # its end of requests


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Ranks of torch.distributed, started once: torch takes its time."""
    group = Ranks(tmp_path_factory.mktemp("ranks"))
    yield group
    group.close()


NUM_TRAIN, NUM_HELD_OUT = 512, 100


@pytest.fixture(scope="session")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four standard files, with the first of the images that come with the package."""
    from es_service.training.tasks import build_task

    inputs, targets = build_task("fashion").train_set.__getitems__(range(NUM_TRAIN + NUM_HELD_OUT))
    pixels = inputs.squeeze(1).numpy()
    pixels = np.round((pixels * 0.3530 + 0.2860) * 255).astype(np.uint8)
    labels = targets.numpy().astype(np.uint8)
    folder = tmp_path_factory.mktemp("few-images")
    for part, rows in (("train", slice(NUM_TRAIN)), ("t10k", slice(NUM_TRAIN, None))):
        images = pixels[rows]
        header = struct.pack(">4i", 0x803, *images.shape)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        header = struct.pack(">2i", 0x801, len(labels[rows]))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels[rows].tobytes())
    return folder
