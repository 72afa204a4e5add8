"""`es-service` as a user runs it: real processes, real Ray Train, real images, small enough for seconds."""

from __future__ import annotations

import gzip
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from es_service.storage.runs import RunStorage
from es_service.training.tasks import build_task

NUM_TRAIN, NUM_HELD_OUT = 512, 100
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # as Ray gives its workers: sums in the same order everywhere


@pytest.fixture(scope="session")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four standard files, with the first of the images that come with the package."""
    bundled = build_task("fashion").train_set.__getitems__(range(NUM_TRAIN + NUM_HELD_OUT))
    pixels = bundled.images.squeeze(1).numpy()
    pixels = np.round((pixels * 0.3530 + 0.2860) * 255).astype(np.uint8)
    labels = bundled.labels.numpy().astype(np.uint8)
    folder = tmp_path_factory.mktemp("few-images")
    for part, rows in (("train", slice(NUM_TRAIN)), ("t10k", slice(NUM_TRAIN, None))):
        images = pixels[rows]
        header = struct.pack(">4i", 0x803, *images.shape)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        header = struct.pack(">2i", 0x801, len(labels[rows]))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels[rows].tobytes())
    return folder


def command(*words: Any) -> list[str]:
    return [sys.executable, "-m", "es_service.cli", *map(str, words)]


def es_service(*words: Any, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*words), capture_output=True, text=True, timeout=300, check=False, env=ENVIRONMENT)
    assert done.returncode == expect, done.stderr
    return done


def train(data: Path, storage: Path, run: str, *more: Any) -> dict[str, Any]:
    done = es_service(
        *("train", "--data", data, "--storage", storage, "--run", run, "--batch-size", 32, "--json", *more)
    )
    result: dict[str, Any] = json.loads(done.stdout)  # one object is all that stdout gets
    return result


def columns(storage: Path, run: str) -> dict[str, bytes]:
    """The final table, bit for bit."""
    table = RunStorage(str(storage), run).table()
    return {name: table[name].to_numpy().tobytes() for name in table.column_names}


def test_every_exchange_trains_the_same(few_images: Path, tmp_path: Path) -> None:
    """One worker, three exchanges: same weights, same losses, hence the same scores to the last bit."""
    common = ("--epochs", 3, "--set", "anneal=[0.3,0]", "--seed", 4)
    results = {
        exchange: train(few_images, tmp_path, exchange, "--exchange", exchange, *common)
        for exchange in ("embedded", "sync", "leased")
    }
    for exchange, result in results.items():
        assert columns(tmp_path, exchange) == columns(tmp_path, "embedded")
        assert result["accuracy"] == results["embedded"]["accuracy"]
        assert result["samples"] == results["embedded"]["samples"]
        assert result["exchange"] == exchange
    # 1 annealing epoch trains on all and scores nothing by itself; 2 epochs score all and train on a quarter.
    assert results["leased"]["samples"] == {
        "scored": 2 * NUM_TRAIN,
        "trained": NUM_TRAIN + 2 * NUM_TRAIN // 4,
        "full": 3 * NUM_TRAIN,
    }
    assert results["leased"]["saving"]["samples"] == pytest.approx(0.5)
    assert results["leased"]["saving"]["cost"] == pytest.approx(0.5 - 2 / 9)
    for key in ("run", "method", "task", "workers", "epochs", "seed", "seconds", "history"):
        assert key in results["leased"]
    assert {"total", "score", "train", "exchange", "data"} <= set(results["leased"]["seconds"])


def test_two_workers_by_sync_and_leased_are_the_same(few_images: Path, tmp_path: Path) -> None:
    common = ("--workers", 2, "--epochs", 3, "--method", "eswp", "--set", "anneal=[0.3,0]", "--micro-batch-size", 10)
    one = train(few_images, tmp_path, "sync", "--exchange", "sync", *common)
    other = train(few_images, tmp_path, "leased", "--exchange", "leased", *common)
    assert one["workers"] == other["workers"] == 2
    assert columns(tmp_path, "sync") == columns(tmp_path, "leased")
    assert one["accuracy"] == other["accuracy"]
    visits = RunStorage(str(tmp_path), "leased").table()["visits"].to_numpy()
    pruned_share = NUM_TRAIN - int(0.2 * NUM_TRAIN)
    assert visits.sum() == NUM_TRAIN + 2 * (pruned_share - pruned_share % 2)


@pytest.mark.parametrize("exchange", ["embedded", "leased"])
def test_a_killed_training_resumes_with_identical_ids(exchange: str, few_images: Path, tmp_path: Path) -> None:
    """SIGKILL the whole job past its second epoch; `--resume` must end where an undisturbed run ends."""
    workers = 1 if exchange == "embedded" else 2
    common = ("--exchange", exchange, "--workers", workers, "--epochs", 6, "--method", "eswp", "--seed", 2)
    undisturbed = train(few_images, tmp_path, "undisturbed", *common)
    words = ("train", "--data", few_images, "--storage", tmp_path, "--run", "killed", "--batch-size", 32, *common)
    with subprocess.Popen(
        command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=ENVIRONMENT
    ) as job:
        storage = RunStorage(str(tmp_path), "killed")
        checkpoints = (tmp_path / "killed").glob
        give_up = time.monotonic() + 120
        while not (storage.exists() and list(checkpoints("*/epoch-00001/*")) + list(checkpoints("train/checkpoint*/*"))):
            assert job.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < give_up
            time.sleep(0.02)  # polling: the moment itself does not matter, whatever epoch it hits
        os.killpg(job.pid, signal.SIGKILL)
    assert storage.result() is None
    assert "exists" in es_service(*words, expect=1).stderr
    resumed = train(few_images, tmp_path, "killed", *common, "--resume")
    assert columns(tmp_path, "killed") == columns(tmp_path, "undisturbed")
    assert resumed["accuracy"] == undisturbed["accuracy"]
    assert resumed["samples"] == undisturbed["samples"]
    assert [one["accuracy"] for one in resumed["history"]] == [one["accuracy"] for one in undisturbed["history"]]


def test_a_worker_that_dies_mid_epoch_does_not_corrupt_the_table(few_images: Path, tmp_path: Path) -> None:
    """SIGKILL one of two Ray Train workers inside an epoch: Ray Train starts the group again, and the run ends as planned."""
    common = ("--exchange", "leased", "--workers", 2, "--epochs", 6, "--seed", 3)
    undisturbed = train(few_images, tmp_path, "undisturbed", *common)
    words = ("train", "--data", few_images, "--storage", tmp_path, "--run", "hit", "--batch-size", 32, *common, "--json")
    with subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=ENVIRONMENT
    ) as job:
        give_up = time.monotonic() + 120
        while not list((tmp_path / "hit").glob("train/checkpoint*/*")):
            assert job.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.02)  # polling for the first checkpoint
        workers = [pid for pid, title in _processes(os.getsid(job.pid)) if "RayTrainWorker" in title]
        assert len(workers) == 2
        os.kill(workers[-1], signal.SIGKILL)
        stdout, stderr = job.communicate(timeout=300)
    assert job.returncode == 0, stderr
    assert columns(tmp_path, "hit") == columns(tmp_path, "undisturbed")
    assert json.loads(stdout)["accuracy"] == undisturbed["accuracy"]


def _processes(session: int) -> list[tuple[int, str]]:
    """Processes below the job: of its session, or of one that a process of it started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            found.append((int(entry.name), parent, title))
    ours = {session}
    while more := {pid for pid, parent, _ in found if parent in ours} - ours:
        ours |= more
    return [(pid, title) for pid, _, title in found if pid in ours]


def test_runs_top_and_export(few_images: Path, tmp_path: Path) -> None:
    train(few_images, tmp_path / "s", "one", "--exchange", "embedded", "--epochs", 1)
    [listed] = json.loads(es_service("runs", "--storage", tmp_path / "s", "--json").stdout)
    assert listed["run"] == "one"
    assert listed["state"] == "done"
    assert "one" in es_service("runs", "--storage", tmp_path / "s").stdout
    top = json.loads(es_service("top", "one", "--storage", tmp_path / "s", "--json", "--limit", 3).stdout)
    table = RunStorage(str(tmp_path / "s"), "one").table()
    heaviest = np.argsort(-table["w"].to_numpy(), kind="stable")[:3]
    assert [row["id"] for row in top] == heaviest.tolist()
    assert len(es_service("top", "one", "--storage", tmp_path / "s").stdout.splitlines()) == 11
    for form in ("parquet", "arrow", "csv"):
        out = tmp_path / f"table.{form}"
        es_service("export", "one", "--storage", tmp_path / "s", "--format", form, "--out", out)
        read = {
            "parquet": lambda path: parquet.read_table(path),
            "arrow": lambda path: pa.ipc.open_file(path).read_all(),
            "csv": lambda path: csv.read_csv(path),
        }[form](str(out))
        assert read.num_rows == NUM_TRAIN
        assert np.array_equal(read["w"].to_numpy(), table["w"].to_numpy())


def test_settings_from_a_file_and_flags(few_images: Path, tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("method: eswp\nepochs: 2\nratio: 0.5\nset: {beta1: 0.1, anneal: [0, 0]}\nexchange: embedded\n")
    train(few_images, tmp_path, "one", "--config", config, "--ratio", 0.125, "--set", "beta2=0.7")
    stored = RunStorage(str(tmp_path), "one").config()
    assert stored.num_epochs == 2
    assert stored.selection.ratio == 0.125  # a flag wins over the file
    assert stored.selection.prune_ratio == 0.2
    assert stored.selection.method.settings() == {"beta1": 0.1, "beta2": 0.7, "prune_by": "w"}


USAGE = {
    "unknown method": (("--method", "evolve"), "eswp"),
    "unknown task": (("--task", "fashon"), "did you mean 'fashion'"),
    "unknown exchange": (("--exchange", "lease"), "did you mean 'leased'"),
    "unknown setting": (("--set", "beta11=0.1"), "did you mean 'beta1'"),
    "setting without a value": (("--set", "beta1"), "KEY=VALUE"),
    "ratio 0": (("--ratio", "0"), "ratio must lie in (0, 1]"),
    "ratio above 1": (("--ratio", "1.5"), "got 1.5"),
    "beta above 1": (("--set", "beta1=1.5"), "beta1 must lie in [0, 1], got 1.5"),
    "prune_ratio 1": (("--prune-ratio", "1"), "prune_ratio must lie in [0, 1)"),
    "slash in the name": (("--run", "a/b"), "no slash"),
    "batch larger than the plan": (("--batch-size", "513"), "at most 512"),
    "no epochs": (("--epochs", "0"), "num_epochs"),
    "no workers": (("--workers", "0"), "workers"),
    "embedded with two workers": (("--exchange", "embedded", "--workers", "2"), "leased"),
    "micro-batch 0": (("--micro-batch-size", "0"), "micro_batch_size"),
    "not a number": (("--epochs", "many"), "invalid int"),
    "resume without a name": (("--resume",), "--run"),
    "a word for a number": (("--set", "beta1=much"), "beta1"),
}


@pytest.mark.parametrize("case", USAGE)
def test_bad_usage_exits_2_and_writes_nothing(case: str, few_images: Path, tmp_path: Path) -> None:
    words, message = USAGE[case]
    done = es_service("train", "--data", few_images, "--storage", tmp_path / "s", *words, expect=2)
    assert message in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "s").exists()


def test_failures_exit_1_with_what_to_do(few_images: Path, tmp_path: Path) -> None:
    missing = es_service("train", "--data", tmp_path / "nowhere", "--storage", tmp_path / "s", expect=1)
    assert "nowhere" in missing.stderr
    assert "train-images-idx3-ubyte" in missing.stderr
    (tmp_path / "file").write_text("")
    blocked = es_service("train", "--data", few_images, "--storage", tmp_path / "file", "--exchange", "embedded", expect=1)
    assert "--storage" in blocked.stderr
    unknown = es_service("train", "--data", few_images, "--storage", tmp_path / "s", "--run", "x", "--resume", expect=1)
    assert "no run 'x'" in unknown.stderr
    assert "no run 'x'" in es_service("top", "x", "--storage", tmp_path, expect=1).stderr
    assert not (tmp_path / "s").exists()


def test_beta1_above_beta2_is_allowed_with_a_warning(few_images: Path, tmp_path: Path) -> None:
    done = es_service(
        *("train", "--data", few_images, "--storage", tmp_path, "--run", "one", "--exchange", "embedded"),
        *("--epochs", 1, "--set", "beta1=0.9", "--set", "beta2=0.1"),
    )
    assert "warning: beta1=0.9 > beta2=0.1" in done.stderr
    assert "accuracy" in done.stdout
