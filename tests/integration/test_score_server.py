"""The score server as an actor: names, resources, refusals, what it listens on."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import es_service as es
from es_service.actors import launch
from es_service.actors.calls import call
from es_service.selection.named import preset
from es_service.selection.run import RunConfig

SHAPE = {"num_samples": 500, "num_epochs": 3, "batch_size": 50}
SELECTION = preset("es", seed=1)


def test_it_is_a_named_actor_that_takes_no_cpu(run: str, storage: str) -> None:
    import ray

    before = ray.available_resources().get("CPU")
    es.connect(run, SELECTION, **SHAPE, storage=storage)
    assert ray.get_actor(f"score-server:{run}", namespace="es_service") is not None
    assert ray.available_resources().get("CPU") == before


def test_many_callers_start_one_server(run: str, storage: str) -> None:
    found: list[Any] = []
    config = RunConfig(selection=SELECTION, **SHAPE)

    def start() -> None:
        [server] = launch.start(run, config, storage)
        found.append(call(server.stats.remote(), 30.0, "ask for its pid")["pid"])

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


@pytest.fixture(scope="module")
def refusing(ray_cluster: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A run with a server, and its storage: for what changes nothing there."""
    storage = str(tmp_path_factory.mktemp("refusing"))
    es.connect("refusing", SELECTION, **SHAPE, storage=storage)
    yield "refusing", storage
    launch.stop("refusing")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_samples": 501}, "num_samples: run 500, yours 501"),
        ({"num_epochs": 4}, "num_epochs"),
        ({"selection": preset("es", seed=2)}, "seed: run 1, yours 2"),
        ({"selection": preset("loss", seed=1)}, "method: run 'evolved', yours 'loss'"),
        ({"selection": preset("es", seed=1, beta1=0.1)}, "beta1: run 0.2, yours 0.1"),
    ],
)
def test_another_config_is_refused(change: dict[str, Any], named: str, refusing: tuple[str, str]) -> None:
    run, storage = refusing
    settings: dict[str, Any] = {"selection": SELECTION, **SHAPE, **change}
    with pytest.raises(es.RunMismatchError) as caught:
        es.connect(run, **settings, storage=storage)
    assert named in str(caught.value)


@pytest.mark.parametrize("name", ["a/b", "../up", "", ".hidden", "spaced out", "x" * 101, "nul\0"])
def test_run_names_that_could_leave_their_folder_are_refused(name: str, ray_cluster: None, storage: str) -> None:
    with pytest.raises(es.RunNameError):
        es.connect(name, SELECTION, **SHAPE, storage=storage)
    assert not Path(storage).exists()


def test_a_batch_larger_than_the_plan_is_refused(run: str, storage: str) -> None:
    with pytest.raises(es.ConfigError, match="at most 250"):
        es.connect(run, SELECTION, **{**SHAPE, "batch_size": 251}, storage=storage, rank=0, world_size=2)
    assert not Path(storage).exists()


def test_a_storage_folder_that_cannot_be_written_is_refused(run: str, tmp_path: Path) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("not a folder")
    with pytest.raises(es.StorageError, match="storage"):
        es.connect(run, SELECTION, **SHAPE, storage=str(blocked))
    with pytest.raises(es.RunNotFoundError):  # and no dead server is left behind
        launch.find(run)
    assert stat.S_ISREG(os.stat(blocked).st_mode)


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.thorough
def test_sixty_four_clients_do_not_make_the_server_grow(run: str, storage: str) -> None:
    """What they report is applied and forgotten: after the first epochs the server holds no more than before."""
    num_clients, batch_size, steps = 64, 64, 6
    shape = {"num_samples": num_clients * batch_size * steps, "num_epochs": 6, "batch_size": batch_size}
    selection = preset("es", anneal=(0, 0))
    clients = [
        es.connect(run, selection, **shape, storage=storage, rank=rank, world_size=num_clients, generation="one")
        for rank in range(num_clients)
    ]
    pid, after = call(launch.find(run).pid.remote(), 10.0, "ask for its pid"), []
    for epoch in range(6):
        for row in zip(*(client.epoch(epoch) for client in clients), strict=True):
            for client, ids in zip(clients, row, strict=True):
                client.select(ids, np.ones(batch_size, dtype=np.float32))
        call(launch.find(run).stored_epochs.remote(), 30.0, "wait for the snapshot")  # which takes memory of its own
        after.append(resident_bytes(pid))
    stats = call(launch.find(run).stats.remote(), 10.0, "read stats")
    assert stats["num_observed"] == 6 * shape["num_samples"]
    assert after[-1] - after[2] < 4 << 20
    for client in clients:
        client.close()


def test_a_server_that_does_not_keep_up_ends_in_words_and_not_in_memory(run: str, storage: str) -> None:
    selector = es.connect(run, SELECTION, **SHAPE, storage=storage, exchange="sync")
    server = launch.find(run)
    pid = call(server.pid.remote(), 10.0, "ask for its pid")
    os.kill(pid, signal.SIGSTOP)
    try:
        for number in range(1500):
            selector.exchange.publish(0, number / 1500, selector.ledger)  # may be lost, and raises nothing
        with pytest.raises(es.ServerUnavailableError, match="too many calls of this process wait for shard 0"):
            selector.table()
    finally:
        os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline:
        with contextlib.suppress(es.ServerUnavailableError):
            assert selector.table().num_rows == SHAPE["num_samples"]
            return
        time.sleep(0.05)  # polling: Ray says nothing when the calls before have been answered
    pytest.fail("the server did not come back")


def test_reads_are_answered_while_ranks_report(run: str, storage: str) -> None:
    selector = es.connect(run, SELECTION, **SHAPE, storage=storage, exchange="sync")
    server = launch.find(run)
    for step, ids in enumerate(selector.epoch(0), start=1):
        selector.select(ids, np.ones(ids.size, dtype=np.float32))
        stats = call(server.stats.options(concurrency_group=launch.READ_GROUP).remote(), 10.0, "read stats")
        is_over = step == selector.steps(0)  # behind its last step it is closed, and what that one drew is told
        assert stats["num_reports"] == step + is_over
        assert stats["open_epoch"] == (None if is_over else 0)
        visits = selector.table().column("visits").to_numpy()
        assert visits.sum() == step * SHAPE["batch_size"]
    assert selector.table().num_rows == 500


def test_snapshots_are_written_at_each_epochs_end(run: str, storage: str) -> None:
    from es_service.storage.runs import RunStorage

    selector = es.connect(run, SELECTION, **SHAPE, storage=storage)
    for epoch in range(3):
        for ids in selector.epoch(epoch):
            selector.select(ids, np.full(ids.size, epoch + 1.0, dtype=np.float32))
        assert call(launch.find(run).stored_epochs.remote(), 30.0, "wait for the snapshot") == epoch + 1
        stored = RunStorage(storage, run)
        assert stored.snapshots.newest() == epoch + 1
        assert stored.table().equals(selector.table())
    selector.close()


def test_ray_listens_on_loopback_only(
    ray_cluster: subprocess.Popen[bytes], descendants: Callable[[int], dict[int, str]]
) -> None:
    """Every TCP socket that a process of this Ray listens on is bound to 127.0.0.1 or ::1."""
    listening = {}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                listening[fields[9]] = fields[1].split(":")[0]
    bound = set()
    for pid in {os.getpid(), ray_cluster.pid, *descendants(ray_cluster.pid)}:
        with contextlib.suppress(OSError):  # it ended while we looked
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                target = os.readlink(descriptor)
                if target.startswith("socket:[") and target[8:-1] in listening:
                    bound.add(listening[target[8:-1]])
    assert bound, "no listening socket found: the test looked in the wrong place"
    assert bound <= {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@pytest.mark.parametrize("mode", ["disabled", pytest.param("token", marks=pytest.mark.thorough)])
def test_a_client_without_the_token_is_told_so(mode: str, ray_cluster: object) -> None:
    """None at all, or a wrong one."""
    program = "import es_service.actors.cluster as c; c.ensure_ray()"
    env = {**os.environ, "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": "00" * 32}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ServerUnavailableError: cannot connect to the Ray cluster at RAY_ADDRESS=" in done.stderr
    assert "needs RAY_AUTH_MODE=token here too" in done.stderr
    assert os.environ["RAY_AUTH_TOKEN"] not in done.stderr + done.stdout


def test_no_secret_of_the_environment_reaches_a_runs_files(run: str, storage: str) -> None:
    from pathlib import Path

    secret = os.environ["RAY_AUTH_TOKEN"].encode()
    selection = es.Selection(es.methods.evolved(), anneal=(0, 0))
    selector = es.connect(run, selection, num_samples=40, num_epochs=1, batch_size=10, storage=storage)
    for ids in selector.epoch(0):
        selector.select(ids, np.ones(10, dtype=np.float32))
    selector.close()
    launch.stop(run)  # else it still writes its history, and trims its journal
    written = [path for path in Path(storage).rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"run.json", "manifest.json"}
    assert not [path for path in written if secret in path.read_bytes()]
    assert {path.stat().st_mode & 0o777 for path in written} == {0o600}
