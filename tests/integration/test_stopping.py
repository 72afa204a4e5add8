"""Ctrl-C and SIGTERM at any moment: exit status 130 or 143, no process left behind, `--resume` continues.

As a terminal does, signals go to the whole group of the command. Moments are found by what a command starts or writes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from es_service.cli import main
from es_service.storage.runs import RunStorage

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
SMALL = ("--epochs", 4, "--batch-size", 32, "--limit", 256, "--seed", 3)
Descendants = Callable[[int], dict[int, str]]


class Job:
    """A command under way, and all processes that were seen below it."""

    def __init__(self, folder: Path, descendants: Descendants, words: tuple[Any, ...], env: dict[str, str]) -> None:
        self._log = folder / "stderr.txt"
        self._descendants = descendants
        self.below: dict[int, str] = {}
        with self._log.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "es_service.cli", *map(str, words)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=folder,
                env=env,
                start_new_session=True,
            )

    @property
    def stderr(self) -> str:
        return self._log.read_text()

    def look(self) -> None:
        self.below.update(self._descendants(self.process.pid))

    def wait_for(self, moment: Callable[[Job], bool]) -> None:
        give_up = time.monotonic() + 200
        while self.look() or not moment(self):
            assert self.process.poll() is None, self.stderr
            assert time.monotonic() < give_up, self.stderr
            time.sleep(0.02)

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def end(self, within_s: float) -> int:
        """Wait for its end, and for that of all below it; return its status."""
        give_up = time.monotonic() + within_s
        while self.process.poll() is None:
            self.look()
            assert time.monotonic() < give_up, self.stderr
            time.sleep(0.01)
        give_up = time.monotonic() + 5
        while left := {pid: title for pid, title in self.below.items() if self._is_alive(pid)}:
            assert time.monotonic() < give_up, left
            time.sleep(0.05)
        assert "Traceback" not in self.stderr
        return self.process.returncode

    @staticmethod
    def _is_alive(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False


@pytest.fixture
def start(tmp_path: Path, descendants: Descendants) -> Iterator[Callable[..., Job]]:
    """A function that starts a command in the test's folder, with a Ray of its own where `own_ray` is set."""
    jobs: list[Job] = []
    with tempfile.TemporaryDirectory(prefix="es-", ignore_cleanup_errors=True) as scratch:

        def begin(*words: Any, own_ray: bool = False) -> Job:
            env = dict(os.environ)
            if own_ray:
                env.pop("RAY_ADDRESS", None)
                env["RAY_TMPDIR"] = scratch
            jobs.append(Job(tmp_path, descendants, words, env))
            return jobs[-1]

        yield begin
        for job in jobs:
            job.look()
            for pid in [job.process.pid, *job.below]:
                if Job._is_alive(pid):
                    os.kill(pid, signal.SIGKILL)
            job.process.communicate()


def run(*words: Any, cwd: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "es_service.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def here(*words: Any) -> dict[str, Any]:
    """The same in this process, where torch is imported already: for what is not stopped and needs no Ray."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert main([*map(str, words)]) == 0
    result: dict[str, Any] = json.loads(out.getvalue())
    return result


def process(title: str) -> Callable[[Job], bool]:
    return lambda job: any(title in one for one in job.below.values())


def file(pattern: str) -> Callable[[Job], bool]:
    return lambda job: any(Path(job._log.parent).glob(pattern))


def words_on_stderr(pattern: str) -> Callable[[Job], bool]:
    return lambda job: re.search(pattern, job.stderr) is not None


def library(name: str) -> Callable[[Job], bool]:
    """Once a library is loaded: from before main until long after, whatever is imported then."""
    return lambda job: name in Path(f"/proc/{job.process.pid}/maps").read_text()


def table(storage: Path, name: str) -> dict[str, bytes]:
    found = RunStorage(str(storage), name).table()
    return {column: found[column].to_numpy().tobytes() for column in found.column_names}


CHECKPOINT = file("s/run/checkpoints/epoch-*")
QUICK = [(signal.SIGTERM, CHECKPOINT), (signal.SIGINT, words_on_stderr("epoch 3/4"))]
MORE = [
    (signal.SIGTERM, library("libtorch_cpu")),
    (signal.SIGINT, file("s/run/run.json")),
    (signal.SIGINT, file("s/run/result.json*")),
]


@pytest.mark.parametrize("moments", [QUICK, pytest.param(MORE, marks=pytest.mark.thorough)])
def test_a_training_in_one_process(
    moments: list[tuple[signal.Signals, Callable[[Job], bool]]],
    few_images: Path,
    start: Callable[..., Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped again and again, it ends where an undisturbed one does."""
    common = ("train", "--data", few_images, "--storage", "s", "--exchange", "embedded", *SMALL)
    monkeypatch.chdir(tmp_path)
    undisturbed = here(*common, "--run", "undisturbed", "--json")
    for number, moment in moments:
        begun = (tmp_path / "s" / "run" / "run.json").exists()
        job = start(*common, "--run", "run", *(["--resume"] if begun else []))
        job.wait_for(moment)
        job.send(number)
        status = job.end(within_s=30)
        done = (tmp_path / "s" / "run" / "result.json").exists()
        assert status == STATUS[number] or (done and status == 0), job.stderr
        if status:
            hint = "es-service: stopped; --run run --resume continues it\n"
            assert (hint in job.stderr) == (tmp_path / "s" / "run" / "run.json").exists()
            assert job.stderr.endswith(f"es-service: {'interrupted' if status == 130 else 'terminated'}\n")
    again = here("train", "--run", "run", "--storage", "s", "--resume", "--json")
    assert again["accuracy"] == undisturbed["accuracy"]
    assert table(tmp_path / "s", "run") == table(tmp_path / "s", "undisturbed")


def things() -> dict[str, Any]:
    """Actors and placement groups that are there, but for the actor that Ray itself keeps for all jobs."""
    from ray._private.state import state  # the public list of actors needs Ray's dashboard
    from ray.util import placement_group_table

    actors = {key: one["ActorClassName"] for key, one in state.actor_table(None).items() if one["State"] != "DEAD"}
    groups = {key: one["bundles"] for key, one in placement_group_table().items() if one["state"] != "REMOVED"}
    return {**{key: name for key, name in actors.items() if name != "_AutoscalingCoordinatorActor"}, **groups}


@pytest.mark.thorough  # as in one process, and as chaos ends the processes of a cluster
def test_a_training_on_a_cluster_leaves_nothing_there(
    few_images: Path, ray_cluster: Any, start: Callable[..., Job], tmp_path: Path
) -> None:
    """Ctrl-C once Ray Train's workers are at work ended with status 1 and no word."""
    before = things()
    common = ("train", "--data", few_images, "--storage", "s", "--run", "run", *SMALL)
    job = start(*common)
    job.wait_for(file("s/run/train/checkpoint_*/*"))
    job.send(signal.SIGINT)
    assert job.end(within_s=60) == 130, job.stderr
    assert job.stderr.endswith("es-service: stopped; --run run --resume continues it\nes-service: interrupted\n")
    give_up = time.monotonic() + 10
    while left := {key: one for key, one in things().items() if key not in before}:
        assert time.monotonic() < give_up, left
        time.sleep(0.1)
    result = run("train", "--run", "run", "--storage", "s", "--resume", "--json", cwd=tmp_path)
    assert len(result["history"]) == 4


MOMENTS = {
    "torch is imported": library("libtorch_cpu"),
    "Ray starts": process("gcs_server"),
    "Ray is nearly there": process("raylet"),
    "workers start": process("RayTrainWorker"),
    "the first checkpoint": file("s/run/train/checkpoint_*"),
    "the end": file("s/run/result.json*"),
}


@pytest.mark.thorough
@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_training_with_a_ray_of_its_own(
    moment: str, number: signal.Signals, few_images: Path, start: Callable[..., Job], tmp_path: Path
) -> None:
    job = start("train", "--data", few_images, "--storage", "s", "--run", "run", *SMALL, own_ray=True)
    job.wait_for(MOMENTS[moment])
    job.send(number)
    status = job.end(within_s=60)
    assert status == STATUS[number] or (moment == "the end" and status == 0), job.stderr


SEARCH = ("tune", "--out", "t", "--search", "beta1=grid(0.0, 0.5)", "--max-concurrent", 1, "--no-references", *SMALL)
TUNE_MOMENTS = {
    "Ray starts": process("gcs_server"),
    "Ray is nearly there": process("raylet"),
    "a trial begins": file("t/runs/*/run.json"),
    "the end": file("t/results.json*"),
}


@pytest.mark.thorough
@pytest.mark.parametrize("moment", TUNE_MOMENTS)
def test_a_search_with_a_ray_of_its_own(
    moment: str, few_images: Path, start: Callable[..., Job], tmp_path: Path
) -> None:
    job = start(*SEARCH, "--data", few_images, own_ray=True)
    job.wait_for(TUNE_MOMENTS[moment])
    job.send(signal.SIGTERM)
    status = job.end(within_s=90)
    assert status == 143 or (moment == "the end" and status == 0), job.stderr
    again = start(*SEARCH, "--data", few_images, "--resume", "--json", own_ray=True)
    out, _ = again.process.communicate(timeout=300)
    assert again.process.returncode == 0, again.stderr
    assert [one["status"] for one in json.loads(out)["trials"]] == ["finished", "finished"]


SECOND = {
    "train": (("train", "--storage", "s", *SMALL), process("RayTrainWorker")),
    "tune": (SEARCH, file("t/runs/*/run.json")),
    "compare": (("compare", "--out", "c", *SMALL[:-2]), process("compare.worker")),
}


@pytest.mark.parametrize(
    "command", ["compare", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("train", "tune"))]
)
def test_a_second_signal_ends_at_once(
    command: str, few_images: Path, start: Callable[..., Job], tmp_path: Path
) -> None:
    words, moment = SECOND[command]
    job = start(*words, "--data", few_images, own_ray=True)
    job.wait_for(moment)
    job.look()
    give_up = time.monotonic() + 10
    while job.process.poll() is None:  # those within 0.2 s of the first count as one with it
        assert time.monotonic() < give_up
        job.send(signal.SIGINT)
        time.sleep(0.1)
    assert job.end(within_s=1) == 130


@pytest.mark.parametrize("number", STATUS)
def test_the_service(number: signal.Signals, start: Callable[..., Job], tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    job = start("serve", "--storage", "s", "--port", 0)
    job.wait_for(words_on_stderr("press Ctrl-C to stop"))
    job.send(number)
    assert job.end(within_s=20) == STATUS[number]


def test_a_signal_that_is_ignored_stays_ignored(start: Callable[..., Job], tmp_path: Path) -> None:
    """As in `nohup`, and in the background of a shell without job control."""
    (tmp_path / "s").mkdir()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        job = start("runs", "--storage", "s", "--json")
    finally:
        signal.signal(signal.SIGINT, before)
    job.send(signal.SIGINT)
    assert job.end(within_s=20) == 0
