"""The HTTP service on a live run: a real score server on Ray, a real `es-service serve`, and what happens to both."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import es_service as es
from es_service.actors import launch
from es_service.actors.calls import call
from es_service.api.live.runs import LiveRuns
from es_service.selection.named import preset

SHAPE = {"num_samples": 400, "num_epochs": 4, "batch_size": 40}
SELECTION = preset("es", seed=3, anneal=(0, 0))


class Training:
    """A training loop of one rank that goes on when told."""

    def __init__(self, run: str, storage: str) -> None:
        self.selector = es.connect(run, SELECTION, **SHAPE, storage=storage)
        self.epoch = -1
        self.batches: Iterator[Any] = iter(())

    def step(self, num: int = 1) -> None:
        for _ in range(num):
            ids = next(self.batches, None)
            if ids is None:
                self.epoch += 1
                self.batches = self.selector.epoch(self.epoch)
                ids = next(self.batches)
            self.selector.select(ids, (1 + ids / 100).astype(np.float32))

    def finish_epoch(self) -> None:
        for ids in self.batches:
            self.selector.select(ids, (1 + ids / 100).astype(np.float32))


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One folder for all runs here: those who read it are processes, which take their time to start."""
    return str(tmp_path_factory.mktemp("live") / "runs")


@pytest.fixture
def training(run: str, storage: str) -> Iterator[Training]:
    found = Training(run, storage)
    yield found
    found.selector.close()


@pytest.fixture(scope="module")
def still(ray_cluster: subprocess.Popen[bytes], storage: str) -> Iterator[Training]:
    """A run that stands still in its first epoch, after four steps."""
    found = Training("still", storage)
    found.step(4)
    yield found
    found.selector.close()
    launch.stop("still")


@pytest.fixture(scope="module")
def resting(ray_cluster: subprocess.Popen[bytes], storage: str) -> Iterator[Training]:
    """A run that stands still behind its second epoch."""
    found = Training("resting", storage)
    for _ in range(2):
        found.step()
        found.finish_epoch()
    yield found
    found.selector.close()
    launch.stop("resting")


def eventually(look: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What `look` returns once it is true; fails where it never is."""
    give_up = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < give_up, f"still {found!r} after {seconds} s"
        time.sleep(0.05)  # polling is all that a reader can do
    return found


@pytest.fixture(scope="module")
def live(ray_head: subprocess.Popen[bytes], storage: str) -> Iterator[LiveRuns]:
    found = LiveRuns(storage, 0.5)
    found.connect(wait=True)
    assert found.state() == {"state": "connected", "detail": None}
    yield found
    found.close()


def num_copies(run: str) -> int:
    """How often the score server has copied its table for readers."""
    stats = call(launch.find(run).stats.options(concurrency_group="read").remote(), 10.0, "ask")
    counts = {name: sum(one["counts"]) for name, one in stats["calls"].items()}
    return counts.get("copy_records", 0) - counts.get("copy_part", 0)  # a snapshot copies it, too


def same(one: pa.Table, other: pa.Table) -> bool:
    """Whether two tables are equal, a loss that neither has counting as equal."""
    return one.schema == other.schema and str(one.to_pydict()) == str(other.to_pydict())


def test_however_many_read_the_table_is_copied_no_more_often_than_allowed(
    live: LiveRuns, training: Training, run: str
) -> None:
    training.step(3)
    assert eventually(lambda: live.runs().get(run))["open_epoch"] == 0
    before, begin = num_copies(run), time.monotonic()
    versions: set[str] = set()

    def read() -> None:
        while time.monotonic() < begin + 3:
            held = live.table(run)
            assert held is not None
            versions.add(held.version)
            time.sleep(0.005)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    while time.monotonic() < begin + 3:
        if training.epoch < 3:
            training.step()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - begin
    assert len(versions) >= 2
    assert 2 <= num_copies(run) - before <= elapsed / 0.5 + 1


def test_a_table_that_did_not_change_is_not_copied_again(live: LiveRuns, still: Training) -> None:
    first = eventually(lambda: (held := live.table("still")) and held.stats["num_observed"] == 160 and held)
    copies = num_copies("still")
    time.sleep(1.2)  # past the time that a copy is good for
    again = eventually(lambda: (held := live.table("still")) and held.as_of > first.as_of - 1 and held)
    assert again.version == first.version
    assert num_copies("still") == copies


def test_the_copy_is_the_servers_table(live: LiveRuns, still: Training) -> None:
    eventually(lambda: (held := live.table("still")) and held.stats["num_observed"] == 160)
    eventually(lambda: (held := live.table("still")) and same(held.table, still.selector.table()))


def test_runs_kept_elsewhere_are_none_of_ours(still: Training, tmp_path: Path) -> None:
    other = LiveRuns(str(tmp_path / "elsewhere"))
    other.connect(wait=True)
    try:
        assert other.state()["state"] == "connected"
        assert other.runs() == {}
        assert other.table("still") is None
    finally:
        other.close()


def test_a_killed_server_is_counted_as_restarted(live: LiveRuns, training: Training, run: str) -> None:
    training.step(2)
    pid = eventually(lambda: live.runs().get(run))["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: live.runs().get(run, {}).get("pid") not in (None, pid))
    assert live.restarts[run] == 1


def test_without_a_cluster_there_are_no_live_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    alone = LiveRuns(str(tmp_path))
    begin = time.monotonic()
    assert alone.runs() == {}
    assert time.monotonic() - begin < 1  # looking for one holds nobody up
    alone.close()


# -- the command ---------------------------------------------------------------------------------------------------


class Service:
    """`es-service serve` as a process."""

    def __init__(self, storage: str, *more: str) -> None:
        command = [sys.executable, "-m", "es_service.cli", "serve", "--storage", storage, "--port", "0", *more]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found is not None, line + self.process.stderr.read()
        self.address = found[0]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.address + path, timeout=20) as answer:
            return json.load(answer)

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.address + path, timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=20)
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture(scope="module")
def service(ray_head: subprocess.Popen[bytes], storage: str) -> Iterator[Service]:
    Path(storage).mkdir(exist_ok=True)
    found = Service(storage, "--nice", "0")  # other tests are no training
    yield found
    found.close()


def test_a_live_run_answers_like_a_finished_one(service: Service, training: Training, run: str) -> None:
    assert service.status(f"/v1/runs/{run}/samples") in (200, 409)  # 409 until an epoch is open
    training.step(5)
    eventually(lambda: service.get("/v1/runs")["ray"]["state"] == "connected")
    eventually(lambda: service.get(f"/v1/runs/{run}")["server"])
    rows = {row["run"]: row for row in service.get("/v1/runs")["runs"]}
    assert (rows[run]["status"], rows[run]["epoch"]) == ("live", 0)
    eventually(lambda: service.status(f"/v1/runs/{run}/samples") == 200)  # a copy from before the epoch is old by now
    page = eventually(
        lambda: (found := service.get(f"/v1/runs/{run}/samples?where=visits=1&limit=1000"))["matching"] == 200 and found
    )
    assert page["table"]["source"] == "live"
    assert page["table"]["open_epoch"] == 0
    assert page["table"]["age_s"] < 5
    expected = training.selector.table().to_pylist()
    seen = sorted((one for one in expected if one["visits"]), key=lambda one: (-one["w"], one["id"]))
    assert [one["id"] for one in page["samples"]] == [one["id"] for one in seen]
    assert page["samples"][0]["w"] == pytest.approx(seen[0]["w"], rel=1e-6)
    metrics = urllib.request.urlopen(service.address + "/metrics", timeout=20).read().decode()
    assert f'es_service_server_observed_samples_total{{run="{run}"}} 200.0' in metrics
    assert f'es_service_server_queued_reports{{run="{run}"}} 0.0' in metrics
    assert f'es_service_selection_seen_ratio{{run="{run}"}} 0.5' in metrics
    assert re.search(rf'es_service_server_call_seconds_bucket{{call="\w+",le="\+Inf",run="{run}"}} [1-9]', metrics)
    training.finish_epoch()
    training.step(2)
    eventually(lambda: service.get(f"/v1/runs/{run}")["table"]["step"] == 11)
    stale = service.get(f"/v1/runs/{run}/staleness")
    assert stale["older_than_epoch"] == 0  # all were observed since the first epoch began
    assert stale["max"] >= 2
    launch.stop(run)
    after = eventually(lambda: (found := service.get(f"/v1/runs/{run}"))["server"] is None and found)
    assert after["table"]["source"] == "storage"
    assert after["epoch"] == 1


def test_the_history_of_a_sample_is_the_journals(service: Service, resting: Training) -> None:
    path = "/v1/runs/resting/samples/3/history"
    found = eventually(  # snapshots and history are written in the background
        lambda: (
            service.status(path) == 200
            and len((one := service.get(path))["points"]["epoch"]) == len(one["snapshots"]) == 2
            and one
        )
    )
    assert found["source"] == "journal"
    assert found["points"]["epoch"] == [0, 1]
    assert found["points"]["loss"] == [1.03, 1.03]
    first, second = found["points"]["run_step"]
    assert 0 <= first < 10 <= second < 20
    at_end = found["snapshots"][-1]
    assert at_end["epoch"] == 2
    assert sum(found["points"]["selected"]) == at_end["selected"]
    assert at_end["visits"] == 2


def test_each_epoch_is_a_line_of_json_in_the_servers_log(resting: Training) -> None:
    import ray

    pid = call(launch.find("resting").pid.remote(), 10.0, "ask for its pid")
    folder = Path(ray._private.worker._global_node.get_logs_dir_path())
    lines = eventually(
        lambda: (
            len(
                found := [
                    json.loads(line)
                    for path in folder.glob(f"worker-*-{pid}.err")
                    for line in path.read_text().splitlines()
                    if line.startswith('{"event": "epoch_finished"')
                ]
            )
            == 2
            and found
        )
    )
    told = [(one["run"], one["epoch"], one["num_observed"]) for one in lines]
    assert told == [("resting", 0, 400), ("resting", 1, 800)]


def test_events_tell_what_changes(service: Service, training: Training, run: str) -> None:
    training.step()
    eventually(lambda: service.get("/v1/runs")["ray"]["state"] == "connected")
    events: list[tuple[str, dict[str, Any]]] = []

    def listen() -> None:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{service.address}/v1/runs/{run}/events", timeout=30) as stream,
        ):
            name = ""
            for line in stream:
                if line.startswith(b"event: "):
                    name = line[7:].strip().decode()
                elif line.startswith(b"data: "):
                    events.append((name, json.loads(line[6:])))

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    eventually(lambda: any(one["epoch"] == 0 for _, one in events))
    for _ in range(4):
        training.step()
        training.finish_epoch()
    eventually(lambda: events[-1][0] == "finished")
    thread.join(timeout=10)
    assert not thread.is_alive()  # the stream ended
    assert events[-1][1]["epoch"] == 4
    assert {name for name, _ in events} == {"run", "finished"}


def test_ctrl_c_ends_it_and_the_process_that_asks_ray(
    ray_head: subprocess.Popen[bytes], tmp_path: Path, descendants: Callable[[int], dict[int, str]]
) -> None:
    service = Service(str(tmp_path))
    try:
        eventually(lambda: service.get("/v1/runs")["ray"]["state"] == "connected")
        below = descendants(service.process.pid)
        [asking] = [pid for pid, title in below.items() if "live.reader" in title]
        niceness = {os.getpriority(os.PRIO_PROCESS, pid) for pid in (service.process.pid, asking)}
        assert niceness == {19}  # a training that wants the processor gets it first
    finally:
        service.close()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))
