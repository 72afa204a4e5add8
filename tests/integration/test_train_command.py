"""`es-service` as a user runs it: real Ray Train, real images, small enough for seconds.

What needs Ray runs in a process of its own; what does not, in this one, where torch is imported already.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from es_service.cli import main
from es_service.storage.runs import RunStorage
from es_service.training.irreducible import write_losses

NUM_TRAIN = 512  # of the fixture few_images


def command(*words: Any) -> list[str]:
    return [sys.executable, "-m", "es_service.cli", *map(str, words)]


def es_service(*words: Any, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*words), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == expect, done.stderr
    return done


def here(*words: Any, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """The same in this process, for what must not need Ray."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(word) for word in words])
        except SystemExit as exit_:  # argparse's way
            status = int(exit_.code or 0)
    assert status == expect, err.getvalue()
    return subprocess.CompletedProcess(list(words), status, out.getvalue(), err.getvalue())


def train(data: Path, storage: Path, run: str, *more: Any) -> dict[str, Any]:
    words = ("train", "--data", data, "--storage", storage, "--run", run, "--batch-size", 32, "--json", *more)
    done = (here if "embedded" in more else es_service)(*words)
    result: dict[str, Any] = json.loads(done.stdout)  # one object is all that stdout gets
    return result


def columns(storage: Path, run: str) -> dict[str, bytes]:
    """The final table, bit for bit."""
    table = RunStorage(str(storage), run).table()
    return {name: table[name].to_numpy().tobytes() for name in table.column_names}


RHO = ("--method", "rho", "--epochs", 3, "--ratio", 0.25)
COMMON = ("--epochs", 6, "--method", "eswp", "--set", "anneal=[0.2,0]", "--seed", 2, "--micro-batch-size", 10)


@pytest.fixture(scope="module")
def undisturbed(
    few_images: Path, ray_head: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A run of two workers by `collective` that nothing happened to: its storage and its result."""
    storage = tmp_path_factory.mktemp("undisturbed")
    exchange = ("--exchange", "collective", "--every", 3)
    result = train(few_images, storage, "undisturbed", *exchange, "--workers", 2, *COMMON)
    assert result["exchange"] == "collective"
    assert result["workers"] == 2
    visits = RunStorage(str(storage), "undisturbed").table()["visits"].to_numpy()
    kept = NUM_TRAIN - int(0.2 * NUM_TRAIN)
    assert visits.sum() == 2 * NUM_TRAIN + 4 * (kept - kept % 2)  # 2 annealing epochs, 4 pruned ones
    return storage, result


def test_samples_are_counted_and_the_saving_follows(few_images: Path, tmp_path: Path) -> None:
    common = ("--epochs", 3, "--set", "anneal=[0.3,0]", "--set", "anneal_by=epochs", "--seed", 4)
    result = train(few_images, tmp_path, "embedded", "--exchange", "embedded", *common)
    # 1 annealing epoch trains on all and scores nothing by itself; 2 epochs score all and train on a quarter.
    expected = {"scored": 2 * NUM_TRAIN, "trained": NUM_TRAIN + 2 * NUM_TRAIN // 4, "full": 3 * NUM_TRAIN}
    assert result["samples"] == expected
    assert result["saving"]["samples"] == pytest.approx(0.5)
    assert result["saving"]["cost"] == pytest.approx(0.5 - 2 / 9)
    assert set(result) >= {"run", "method", "task", "exchange", "workers", "epochs", "seed", "seconds", "history"}
    assert set(result["seconds"]) >= {"total", "score", "train", "exchange", "data"}


@pytest.mark.thorough  # test_other_methods.py compares a quicker method
def test_one_worker_is_the_same_with_and_without_ray(few_images: Path, ray_head: Any, tmp_path: Path) -> None:
    """Same weights, same losses, hence the same scores; KAKURENBO needs more signals, and a pass over the hidden."""
    common = ("--method", "kakurenbo", "--epochs", 4, "--set", "fraction=0.4", "--set", "threshold=0.2")
    one, there = (train(few_images, tmp_path, name, "--exchange", name, *common) for name in ("embedded", "leased"))
    assert columns(tmp_path, "leased") == columns(tmp_path, "embedded")
    assert there["accuracy"] == one["accuracy"]
    assert there["samples"] == one["samples"]
    assert there["samples"]["scored"] > 0
    assert there["samples"]["trained"] + there["samples"]["scored"] == pytest.approx(
        4 * NUM_TRAIN, abs=4 + 0.4 * NUM_TRAIN
    )  # what was not trained on was scored, but for odd ids and the last epoch's hidden
    table = RunStorage(str(tmp_path), "leased").table()
    assert set(table["correct"].to_numpy()) == {0.0, 1.0}
    assert 0 < table["confidence"].to_numpy().min() < table["confidence"].to_numpy().max() <= 1


def start(data: Path, storage: Path, run: str, *more: Any) -> subprocess.Popen[str]:
    words = ("train", "--data", data, "--storage", storage, "--run", run, "--batch-size", 32, "--json", *more)
    pipe = subprocess.PIPE
    return subprocess.Popen(command(*words), stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def checkpoints(folder: Path) -> set[Path]:
    return {*folder.glob("checkpoints/epoch-*"), *folder.glob("train/checkpoint_*/training.pt")}


def wait_for_checkpoint(job: subprocess.Popen[str], folder: Path, before: Collection[Path] = ()) -> None:
    """Poll until the run has stored one more epoch; whatever it does at that moment is what gets hit."""
    give_up = time.monotonic() + 120
    while not checkpoints(folder) - set(before):
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < give_up
        time.sleep(0.01)


def kill_a_worker(ray_head: subprocess.Popen[bytes], descendants: Callable[[int], dict[int, str]]) -> None:
    titles = descendants(ray_head.pid)
    assert not [title for title in titles.values() if "DatasetManager" in title]  # a process that has nothing to do
    workers = [pid for pid, title in titles.items() if "RayTrainWorker" in title]
    assert len(workers) == 2
    os.kill(workers[-1], signal.SIGKILL)


def wait_for_epoch_line(job: subprocess.Popen[str]) -> str:
    """Read stderr until the first line on an epoch is there, and return what was read."""
    assert job.stderr is not None
    read = ""
    for line in job.stderr:
        read += line
        if epochs_told(line):
            break
    return read


def epochs_told(stderr: str) -> list[str]:
    return [line.split(":")[0] for line in stderr.splitlines() if line.startswith("epoch ")]


def check_the_end(run: Path, result: dict[str, Any], undisturbed: tuple[Path, dict[str, Any]]) -> None:
    storage, expected = undisturbed
    assert columns(run.parent, run.name) == columns(storage, "undisturbed")
    for key in ("accuracy", "samples"):
        assert result[key] == expected[key]
    assert [one["accuracy"] for one in result["history"]] == [one["accuracy"] for one in expected["history"]]


def test_a_killed_job_resumes_with_identical_ids(few_images: Path, tmp_path: Path) -> None:
    """SIGKILL the whole job once it has a checkpoint; `--resume` must end where an undisturbed run ends."""
    common = ("--exchange", "embedded", *COMMON)
    expected = train(few_images, tmp_path, "undisturbed", *common)
    with start(few_images, tmp_path, "killed", *common) as job:
        wait_for_checkpoint(job, tmp_path / "killed")
        job.kill()
    assert RunStorage(str(tmp_path), "killed").result() is None
    taken = here("train", "--data", few_images, "--storage", tmp_path, "--run", "killed", *common, expect=1)
    assert "--resume" in taken.stderr
    again = ("train", "--run", "killed", "--storage", tmp_path, "--resume")
    assert "learning_rate: was 0.1, now 0.5" in here(*again, "--learning-rate", 0.5, expect=1).stderr
    resumed = json.loads(here(*again, "--json").stdout)  # what it was begun with need not be said again
    check_the_end(tmp_path / "killed", resumed, (tmp_path, expected))


def test_two_workers_are_the_same_by_every_exchange_whatever_is_killed(
    few_images: Path,
    ray_head: subprocess.Popen[bytes],
    undisturbed: tuple[Path, dict[str, Any]],
    descendants: Callable[[int], dict[int, str]],
    tmp_path: Path,
) -> None:
    """By `leased`: SIGKILL a worker, so that Ray Train starts the group again; then the whole job. Resume by `sync`."""
    run = tmp_path / "hit"
    with start(few_images, tmp_path, run.name, "--exchange", "leased", "--workers", 2, *COMMON) as job:
        wait_for_checkpoint(job, run)
        kill_a_worker(ray_head, descendants)
        wait_for_checkpoint(job, run, checkpoints(run))
        begin = wait_for_epoch_line(job)  # the driver asks twice a second: an epoch may end before its line is there
        os.killpg(job.pid, signal.SIGKILL)
        told = epochs_told(begin + job.communicate()[1])
    assert told
    assert told == [f"epoch {epoch}/6" for epoch in range(1, 1 + len(told))]  # each told once, though one ran twice
    assert RunStorage(str(tmp_path), run.name).result() is None
    again = ("train", "--run", run.name, "--storage", tmp_path, "--resume", "--exchange", "sync", "--json")
    result = json.loads(es_service(*again).stdout)
    assert result["exchange"] == "sync"
    check_the_end(run, result, undisturbed)


@pytest.mark.thorough
@pytest.mark.parametrize("exchange", ["sync", "leased", "collective"])
def test_a_worker_killed_mid_epoch_does_not_corrupt_the_table(
    exchange: str,
    few_images: Path,
    ray_head: subprocess.Popen[bytes],
    undisturbed: tuple[Path, dict[str, Any]],
    descendants: Callable[[int], dict[int, str]],
    tmp_path: Path,
) -> None:
    run = tmp_path / "hit"
    with start(few_images, tmp_path, run.name, "--exchange", exchange, "--workers", 2, *COMMON) as job:
        wait_for_checkpoint(job, run)
        kill_a_worker(ray_head, descendants)
        stdout, stderr = job.communicate(timeout=300)
    assert job.returncode == 0, stderr
    check_the_end(run, json.loads(stdout), undisturbed)
    assert epochs_told(stderr) == [f"epoch {epoch}/6" for epoch in range(1, 7)]


def test_runs_top_and_export(few_images: Path, tmp_path: Path) -> None:
    train(few_images, tmp_path / "s", "one", "--exchange", "embedded", "--epochs", 1)
    [listed] = json.loads(es_service("runs", "--storage", tmp_path / "s", "--json").stdout)["runs"]
    assert listed["run"] == "one"
    assert listed["state"] == "done"
    assert "one" in here("runs", "--storage", tmp_path / "s").stdout
    top = json.loads(here("top", "one", "--storage", tmp_path / "s", "--json", "--limit", 3).stdout)["samples"]
    table = RunStorage(str(tmp_path / "s"), "one").table()
    heaviest = np.argsort(-table["w"].to_numpy(), kind="stable")[:3]
    assert [row["id"] for row in top] == heaviest.tolist()
    assert len(here("top", "one", "--storage", tmp_path / "s").stdout.splitlines()) == 11
    for form in ("parquet", "arrow", "csv"):
        out = tmp_path / f"table.{form}"
        here("export", "one", "--storage", tmp_path / "s", "--format", form, "--out", out)
        read = {
            "parquet": lambda path: parquet.read_table(path),
            "arrow": lambda path: pa.ipc.open_file(path).read_all(),
            "csv": lambda path: csv.read_csv(path),
        }[form](str(out))
        assert read.num_rows == NUM_TRAIN
        assert np.array_equal(read["w"].to_numpy().astype(np.float32), table["w"].to_numpy())


def test_settings_from_a_file_and_flags(few_images: Path, tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(
        "method: eswp\nepochs: 2\nlearning_rate: 5e-2\nmicro_batch_size: null\nratio: 0.5\n"
        "set: {beta1: 0.1, anneal: [0, 0]}\nexchange: embedded\n"
    )
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
    "no epochs": (("--epochs", "0"), "epochs must be an integer of at least 1, got 0"),
    "no workers": (("--workers", "0"), "workers"),
    "every 0": (("--exchange", "collective", "--every", "0"), "every must be"),
    "every without collective": (("--every", "2"), "every=2 is a setting of exchange 'collective'"),
    "embedded with two workers": (("--exchange", "embedded", "--workers", "2"), "leased"),
    "micro-batch 0": (("--micro-batch-size", "0"), "micro_batch_size"),
    "not a number": (("--epochs", "many"), "invalid int"),
    "resume without a name": (("--resume",), "--run"),
    "a word for a number": (("--set", "beta1=much"), "beta1"),
}


@pytest.mark.parametrize("case", USAGE)
def test_bad_usage_exits_2_and_writes_nothing(case: str, few_images: Path, tmp_path: Path) -> None:
    """Nothing of these may get as far as starting Ray."""
    words, message = USAGE[case]
    done = here("train", "--data", few_images, "--storage", tmp_path / "s", *words, expect=2)
    assert message in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: fast", "learning_rate must be a number, got 'fast'"),
        ("workers: two", "workers must be a whole number"),
        ("method: 5", "method must be a word, got 5"),
        ("set: {1: 2}", "'set' must hold settings by name"),
        ("set: [1]", "'set' must hold settings by name"),
        ("ratios: 0.5", "did you mean 'ratio'"),
        ("- 1", "expected settings by name"),
        ("a: b: c", "cannot read"),
    ],
)
def test_bad_files_exit_2(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(text)
    done = here("train", "--config", tmp_path / "f.yaml", "--storage", tmp_path / "s", expect=2)
    assert message in done.stderr
    assert not (tmp_path / "s").exists()


def test_failures_exit_1_with_what_to_do(few_images: Path, tmp_path: Path) -> None:
    missing = here("train", "--data", tmp_path / "nowhere", "--storage", tmp_path / "s", expect=1)
    assert "nowhere" in missing.stderr
    (tmp_path / "empty").mkdir()
    missing = here("train", "--data", tmp_path / "empty", "--storage", tmp_path / "s", expect=1)
    assert "train-images-idx3-ubyte" in missing.stderr
    (tmp_path / "file").write_text("")
    blocked = here("train", "--data", few_images, "--storage", tmp_path / "file", "--exchange", "embedded", expect=1)
    assert "--storage" in blocked.stderr
    diverged = here(
        *("train", "--data", few_images, "--storage", tmp_path / "d", "--exchange", "embedded", "--batch-size", 32),
        *("--learning-rate", 1e9, "--set", "anneal=[0,0]"),
        expect=1,
    )
    assert "lower the learning rate" in diverged.stderr
    assert "Traceback" not in diverged.stderr
    nobody = subprocess.run(
        command("train", "--data", few_images, "--storage", tmp_path / "s", "--batch-size", 32),
        env={**os.environ, "RAY_ADDRESS": "127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert nobody.returncode == 1
    assert "RAY_ADDRESS=127.0.0.1:9" in nobody.stderr
    assert "Traceback" not in nobody.stderr
    unknown = here("train", "--data", few_images, "--storage", tmp_path / "s", "--run", "x", "--resume", expect=1)
    assert "no run 'x'" in unknown.stderr
    assert "no run 'x'" in here("top", "x", "--storage", tmp_path, expect=1).stderr
    assert not (tmp_path / "s").exists()


def test_beta1_above_beta2_is_allowed_with_a_warning(few_images: Path, tmp_path: Path) -> None:
    done = es_service(
        *("train", "--data", few_images, "--storage", tmp_path, "--run", "one", "--exchange", "embedded"),
        *("--epochs", 1, "--set", "beta1=0.9", "--set", "beta2=0.1"),
    )
    assert "warning: beta1=0.9 > beta2=0.1" in done.stderr
    assert "accuracy" in done.stdout


# -- methods that need more than a loss ---------------------------------------------------------------------------


def test_irreducible_losses_are_worked_out_once_and_can_be_given(few_images: Path, tmp_path: Path) -> None:
    made = train(few_images, tmp_path, "made", "--exchange", "embedded", *RHO)
    assert made["prepared"]["trained"] == 2 * NUM_TRAIN  # two halves, two of the three epochs
    assert made["prepared"]["scored"] == NUM_TRAIN
    again = here("train", "--resume", "--run", "made", "--storage", tmp_path, "--data", few_images, "--json")
    assert json.loads(again.stdout)["prepared"] == made["prepared"]  # not made a second time


@pytest.mark.thorough  # two workers do both
def test_one_worker_holds_its_own_replica_and_a_resume_may_take_another_exchange(
    few_images: Path, ray_head: Any, tmp_path: Path
) -> None:
    file = tmp_path / "il.arrow"
    write_losses(str(file), np.linspace(0, 1, NUM_TRAIN, dtype=np.float32))
    given = (*RHO, "--irreducible", file)
    one = train(few_images, tmp_path, "embedded", "--exchange", "embedded", *given)
    alone = train(few_images, tmp_path, "alone", "--exchange", "collective", "--every", 2, *given)
    assert alone["prepared"] == {"scored": 0, "trained": 0, "seconds": 0.0}
    assert columns(tmp_path, "alone") == columns(tmp_path, "embedded")
    assert alone["accuracy"] == one["accuracy"]
    again = ("--resume", "--run", "alone", "--storage", tmp_path, "--json")
    resumed = json.loads(es_service("train", *again, "--exchange", "leased").stdout)  # which needs not know of k
    assert resumed["exchange"] == "leased"
    assert resumed["accuracy"] == one["accuracy"]


@pytest.mark.parametrize("begun, other", [("eswp", "infobatch"), ("rho", "es"), ("random", "kakurenbo")])
def test_a_resume_by_another_method_is_told_which_it_was(
    begun: str, other: str, few_images: Path, tmp_path: Path
) -> None:
    """What only the first method has is no setting of the other one, and not what is wrong."""
    where = ["--storage", str(tmp_path), "--run", "one"]
    common = ["train", "--data", str(few_images), *where, "--epochs", "1", "--batch-size", "32"]
    words = ["--exchange", "embedded", "--method", begun, "--set", "max_age=7"]
    if begun == "rho":
        write_losses(str(tmp_path / "il.arrow"), np.zeros(NUM_TRAIN, dtype=np.float32))
        words += ["--irreducible", str(tmp_path / "il.arrow")]
    here(*common, *words)
    done = here("train", *where, "--resume", "--method", other, expect=1)
    assert f"method: was {begun!r}, now {other!r}" in done.stderr
    here("train", *where, "--resume", "--method", begun)  # named again, it keeps its settings


def test_wrong_labels_are_told_apart_and_kept_by_a_resume(few_images: Path, tmp_path: Path) -> None:
    common = ("--label-noise", 0.25, "--limit", 400, "--epochs", 2, "--exchange", "embedded")
    result = train(few_images, tmp_path, "noisy", "--method", "loss", "--set", "anneal=[0,0]", *common)
    assert result["corrupted"]["share_of_set"] == 0.25
    assert result["corrupted"]["share_of_trained"] > 0.25  # the loss runs after what is mislabelled
    assert sum(result["trained_by_label"]) == pytest.approx(1.0)
    assert len(result["accuracy_by_label"]) == len(result["label_names"]) == 10
    assert result["balanced_accuracy"] == pytest.approx(np.mean(result["accuracy_by_label"]))
    again = here("train", "--resume", "--run", "noisy", "--storage", tmp_path, "--json")
    assert json.loads(again.stdout)["corrupted"] == result["corrupted"]
    other = here("train", "--resume", "--run", "noisy", "--storage", tmp_path, "--label-noise", 0.5, expect=1)
    assert "derived" in other.stderr


def test_a_task_of_ones_own_trains_on_ray(ray_head: Any, tmp_path: Path) -> None:
    """The example of the documents, by name, from the folder that holds it."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "own_task.md").read_text()
    (tmp_path / "my_module.py").write_text(page.split("```python\n")[1].split("```")[0])
    done = subprocess.run(
        command("train", "--task", "my_module:build_task", "--epochs", 3, "--storage", "runs", "--json"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["task"] == "my_module:build_task"
    assert result["accuracy"] > 0.6
    assert result["run"].startswith("my_module-build_task-es-")


BAD_USE = {
    "an unknown method": (("--method", "infobatsch"), "did you mean 'infobatch'"),
    "an unknown setting": (("--method", "kakurenbo", "--set", "fractoin=0.2"), "did you mean 'fraction'"),
    "a setting of another method": (("--method", "es", "--set", "fraction=0.2"), "no setting 'fraction'"),
    "a draw that cannot": (("--method", "rho", "--set", "draw=race"), "take draw='topk'"),
    "irreducible losses nobody needs": (("--method", "es", "--irreducible", "x.arrow"), "take rho"),
    "an unknown task": (("--task", "fashoin"), "did you mean 'fashion'"),
    "a task of one's own that is not there": (("--task", "no_such_module:build"), "no_such_module"),
    "noise above 1": (("--label-noise", 1.5), "label_noise"),
}


@pytest.mark.parametrize("use", BAD_USE)
def test_bad_use_is_said_before_anything_starts(use: str, tmp_path: Path) -> None:
    words, message = BAD_USE[use]
    done = here("train", "--storage", tmp_path / "runs", "--exchange", "embedded", *words, expect=2)
    assert message in done.stderr
    assert not done.stdout
    assert not (tmp_path / "runs").exists()
