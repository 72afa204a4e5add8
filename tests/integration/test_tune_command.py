"""`es-service tune` on a real Ray with real training runs: what it writes, how it stops and resumes, what it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

SMALL = ("--epochs", 2, "--batch-size", 32, "--json")
ONE = (*SMALL, "--max-concurrent", 1, "--no-references")


def command(*words: Any) -> list[str]:
    return [sys.executable, "-m", "es_service.cli", *map(str, words)]


def tune(data: Path, out: Path, *more: Any, expect: int = 0) -> subprocess.CompletedProcess[str]:
    words = command("tune", "--data", data, "--out", out, *more)
    done = subprocess.run(words, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == expect, done.stderr
    return done


def start(data: Path, out: Path, *more: Any) -> subprocess.Popen[str]:
    words = command("tune", "--data", data, "--out", out, *more)
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


FINISHED, EPOCHS = "result.json", "spreads/*.json"  # what a run leaves when it has finished, and after each epoch


def there(out: Path, pattern: str) -> int:
    return len(list(out.glob(f"runs/*/{pattern}")))


def wait_for(job: subprocess.Popen[str], out: Path, pattern: str, number: int) -> None:
    give_up = time.monotonic() + 200
    while there(out, pattern) < number:
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < give_up, job.stderr
        time.sleep(0.02)


def wait_until_kept(job: subprocess.Popen[str], out: Path) -> None:
    """Wait for a state of the search that is newer than the results there are now: it is written every second only."""
    newest = max(path.stat().st_mtime_ns for path in out.glob(f"runs/*/{FINISHED}"))
    state, give_up = out / "tune" / "search.tar.gz", time.monotonic() + 60
    while not state.exists() or state.stat().st_mtime_ns <= newest:
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < give_up
        time.sleep(0.02)


def told(results: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What a search decided and measured, without what the clock says."""
    names = ("run", "settings", "seed", "status", "epochs", "accuracy", "held_out_loss", "cost")
    return [tuple(json.dumps(trial[name]) for name in names) for trial in results["trials"]]


def things() -> dict[str, Any]:
    """Actors and placement groups that are there by their ids, but for the actor that Ray itself keeps for all jobs."""
    from ray._private.state import state  # the public list of actors needs Ray's dashboard
    from ray.util import placement_group_table

    actors = {key: one["ActorClassName"] for key, one in state.actor_table(None).items() if one["State"] != "DEAD"}
    groups = {key: one["bundles"] for key, one in placement_group_table().items() if one["state"] != "REMOVED"}
    return {**{key: name for key, name in actors.items() if name != "_AutoscalingCoordinatorActor"}, **groups}


@pytest.fixture
def wait_until_nothing_is_left(ray_cluster: Any) -> Callable[[], None]:
    """A function that waits until only those actors and placement groups are there that were before the test."""
    before = things()

    def wait() -> None:
        give_up = time.monotonic() + 30
        while left := {key: one for key, one in things().items() if key not in before}:
            assert time.monotonic() < give_up, left
            time.sleep(0.1)

    return wait


@pytest.fixture
def here(ray_cluster: Any, capsys: Any) -> Callable[..., tuple[int, str, str]]:
    """A function that runs a command in this process, which has imported all it needs, with one thread as trials do."""
    import torch

    from es_service.cli import main

    def run(*words: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            status = main([*map(str, words)])
        finally:
            torch.set_num_threads(threads)
        return status, *capsys.readouterr()

    return run


def test_what_it_prints_and_writes(
    few_images: Path, ray_cluster: Any, here: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    out = tmp_path / "found"
    words = ("--search", "beta1=choice(0.0, 0.2)", "--search", "anneal=[0, 0]", "--algorithm", "grid", "--seeds", 2)
    words = (*words, *SMALL, "--limit", 256, "--max-concurrent", 1)
    done = tune(few_images, out, *words)
    results = json.loads(done.stdout)
    assert results == json.loads((out / "results.json").read_text())
    assert [one["settings"] for one in results["trials"]] == [{"beta1": 0.0}, {"beta1": 0.2}] * 2
    assert [one["seed"] for one in results["trials"]] == [0, 0, 1, 1]
    assert {one["status"] for one in results["trials"]} == {"finished"}
    assert all(one["cost"] == pytest.approx((1 + 3 / 4) / 3) for one in results["trials"])
    assert results["search_cost"] == pytest.approx(4 * (1 + 3 / 4) / 3)
    assert [one["epochs"] for one in results["references"]] == [2]  # ⌈2·0.58⌉ is 2 as well
    assert results["reference_cost"] == pytest.approx(2.0)
    assert "The search cost as much as 2.33 full training runs: 4 trials." in results["cost_in_words"]
    assert "\n6/6 full-2-s" in done.stderr
    rows = parquet.read_table(out / "trials.parquet").to_pylist()
    assert [(row["run"], row["config/beta1"]) for row in rows] == [(f"trial-000{k}", k % 2 * 0.2) for k in range(4)]
    assert parquet.read_table(out / "history.parquet").num_rows == 6 * 2
    for name in ("report.html", "pictures/front.png"):
        assert (out / name).stat().st_size > 5000
    assert not list(out.glob("runs/*/checkpoints"))

    runs = json.loads(here("runs", "--storage", out / "runs", "--json")[1])["runs"]
    assert {run["search"] for run in runs} == {"found"}
    assert len(runs) == 6
    again = ("train", "--config", out / "best.yaml", "--storage", tmp_path / "runs", "--run", "again", "--json")
    trained = json.loads(here(*again)[1])
    best = [one for one in results["trials"] if one["settings"] == results["best"]["settings"] and one["seed"] == 0]
    assert trained["accuracy"] == best[0]["accuracy"]

    again = ("tune", "--data", few_images, "--out", out, *words)
    status, _, message = here(*again)
    assert status == 2
    assert "holds a search already" in message
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*")}
    status, ended, _ = here(*again, "--resume")
    assert status == 0
    assert told(json.loads(ended)) == told(results)
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*")} == before


@pytest.mark.thorough
@pytest.mark.parametrize("algorithm", ["optuna", "bohb"])
def test_a_search_killed_in_the_middle_becomes_what_an_undisturbed_one_is(
    algorithm: str, few_images: Path, ray_cluster: Any, wait_until_nothing_is_left: Callable[[], None], tmp_path: Path
) -> None:
    if algorithm == "bohb":
        pytest.importorskip("hpbandster")
    words = ("--search", "beta1=uniform(0, 0.5)", "--search", "ratio=choice(0.25, 0.5)", "--search", "anneal=[0, 0]")
    words = (
        *words,
        *ONE,
        "--algorithm",
        algorithm,
        "--limit",
        256,
        "--samples",
        10,
    )  # more than Optuna draws at random, so that results matter
    undisturbed = json.loads(tune(few_images, tmp_path / "one", *words).stdout)
    assert {one["status"] for one in undisturbed["trials"]} <= {"finished", "pruned"}
    assert len({one["accuracy"] for one in undisturbed["trials"]}) > 3
    out = tmp_path / "other"
    job = start(few_images, out, *words)
    wait_for(job, out, FINISHED, 3)
    wait_until_kept(job, out)
    job.kill()
    job.communicate(timeout=60)
    assert 3 <= there(out, FINISHED) < 10
    resumed = tune(few_images, out, *words, "--resume")
    assert "ended before" in resumed.stderr
    assert told(json.loads(resumed.stdout)) == told(undisturbed)
    wait_until_nothing_is_left()


@pytest.mark.thorough  # each quicker search above ends with the same look
def test_after_many_trials_of_every_end_nothing_is_left(
    few_images: Path,
    ray_cluster: subprocess.Popen[bytes],
    wait_until_nothing_is_left: Callable[[], None],
    descendants: Callable[[int], dict[int, str]],
    tmp_path: Path,
) -> None:
    from es_service.experiments.tune import search
    from es_service.experiments.tune.search_spec import Places

    killed: list[int] = []
    stop = threading.Event()
    betas = [k / 50 for k in range(13)]

    def kill_one() -> None:
        while not stop.wait(0.02) and not killed:
            if there(tmp_path / "out", FINISHED) >= 8:
                mine = [pid for pid, title in descendants(ray_cluster.pid).items() if "ray::TrialTrainable" in title]
                for pid in mine[:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    killer = threading.Thread(target=kill_one)
    killer.start()
    space = {"learning_rate": "grid(0.0001, 0.1, 0.00011, 1e30)", "beta1": f"grid({', '.join(map(str, betas))})"}
    settings: dict[str, Any] = {
        "data": str(few_images), "out": str(tmp_path / "out"), "epochs": 2, "batch_size": 32, "derived": {"limit": 64},
        "early_stopping": True, "references": False, "places": Places(max_concurrent=2),
    }  # fmt: skip
    try:
        results = search("fashion", space, **settings)
    finally:
        stop.set()
        killer.join()
    assert len(results["trials"]) == 52
    by_status = {status: [one for one in results["trials"] if one["status"] == status]
                 for status in ("finished", "pruned", "failed")}  # fmt: skip
    assert sum(map(len, by_status.values())) == 52
    assert all(by_status.values())
    diverged = [one for one in by_status["failed"] if "loss" in one["error"]]
    died = [one for one in by_status["failed"] if "its process ended" in one["error"]]
    assert {one["settings"]["learning_rate"] for one in diverged} == {1e30}
    assert len(died) == 1
    assert len(killed) == 1
    assert results["best"]["settings"]["learning_rate"] < 1
    wait_until_nothing_is_left()
    assert not [title for title in descendants(ray_cluster.pid).values() if "ray::TrialTrainable" in title]

    settings["places"] = Places(max_concurrent=1)
    again = search("fashion", space, **settings, resume=True, retry_failed=True)
    failed = [one["run"] for one in again["trials"] if one["status"] == "failed"]
    assert failed == [one["run"] for one in diverged]  # as they must; but the one whose process was killed has ended
    wait_until_nothing_is_left()


@pytest.mark.thorough
def test_trials_of_two_workers_side_by_side_stop_in_order_and_go_on(
    few_images: Path, ray_cluster: Any, wait_until_nothing_is_left: Callable[[], None], tmp_path: Path
) -> None:
    out = tmp_path / "out"  # 4 CPUs: 2 trials of 2 workers fill them, and nothing else may need one
    words = ("--search", "beta1=grid(0.0, 0.5)", "--exchange", "leased", "--workers", 2, "--max-concurrent", 2)
    words = (*words, "--limit", 256, "--epochs", 6, "--batch-size", 16, "--early-stopping", "--no-references", "--json")
    job = start(few_images, out, *words)
    wait_for(job, out, EPOCHS, 1)
    job.send_signal(signal.SIGINT)
    assert "--resume continues" in job.communicate(timeout=100)[1]
    assert job.returncode == 130
    wait_until_nothing_is_left()
    results = json.loads(tune(few_images, out, *words, "--resume").stdout)
    assert {one["status"] for one in results["trials"]} <= {"finished", "pruned"}
    assert "finished" in {one["status"] for one in results["trials"]}
    assert all(one["settings"]["beta1"] in (0.0, 0.5) for one in results["trials"])
    wait_until_nothing_is_left()


@pytest.mark.thorough
def test_trials_that_wait_for_others_hold_nothing_and_go_on_where_they_were(
    few_images: Path, ray_cluster: Any, wait_until_nothing_is_left: Callable[[], None], tmp_path: Path
) -> None:
    pytest.importorskip("hpbandster")
    from es_service.experiments.tune import search
    from es_service.experiments.tune.search_spec import Places
    from es_service.selection.named import preset
    from es_service.training.driver import train
    from es_service.training.spec import TrainingSpec
    from es_service.training.tasks.derived import Derived

    results = search(
        "fashion", {"beta1": "uniform(0, 0.5)", "anneal": [0, 0]}, algorithm="bohb", samples=5, epochs=3, batch_size=32,
        derived={"limit": 128}, data=str(few_images), out=str(tmp_path / "out"), references=False,
        places=Places(max_concurrent=1),
    )  # fmt: skip
    # Three wait after an epoch, and one of them goes on; the two of the next bracket are trained at once.
    assert sorted(one["epochs"] for one in results["trials"]) == [1, 1, 3, 3, 3]
    assert {one["status"] for one in results["trials"][3:]} == {"finished"}
    gone_on = next(one for one in results["trials"][:3] if one["status"] == "finished")
    assert gone_on["cost"] == results["trials"][3]["cost"]  # no epoch was trained twice
    selection = preset("es", **gone_on["settings"], anneal=(0, 0), seed=0)
    again = train(
        TrainingSpec(
            task="fashion", method="es", data=str(few_images), derived=Derived(limit=128),
            storage=str(tmp_path / "runs"), run="again", selection=selection, epochs=3, batch_size=32,
            exchange="embedded",
        ),
        lambda _: None,
    )  # fmt: skip
    assert (again["accuracy"], again["held_out_loss"]) == (gone_on["accuracy"], gone_on["held_out_loss"])
    wait_until_nothing_is_left()


TWO_CPUS = """
import json
import ray
ray.init(log_to_driver=False, configure_logging=False)
from es_service.experiments.tune.search_spec import Places
from es_service.experiments.tune import search
results = search(
    "my_module:build_task", {"beta1": "grid(0.0, 0.5)"}, out="out", epochs=2, batch_size=32,
    derived={"limit": 64}, references=False, places=Places(exchange="leased", max_concurrent=2),
)
print(json.dumps([trial["status"] for trial in results["trials"]]), json.dumps(ray.available_resources()["CPU"]))
"""


@pytest.fixture
def two_cpus(ray_cluster: Any) -> Iterator[None]:
    """Leave two CPUs of Ray's free."""
    from ray.util import placement_group, remove_placement_group

    held = placement_group([{"CPU": 2}])
    assert held.wait(60)
    yield
    remove_placement_group(held)


@pytest.mark.thorough
def test_two_at_a_time_on_two_cpus_do_not_wait_for_each_other(two_cpus: None, tmp_path: Path) -> None:
    """With a task of the user's own, which trials and their workers find in the directory of the command."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "own_task.md").read_text()
    (tmp_path / "my_module.py").write_text(page.split("```python\n")[1].split("```")[0])
    done = subprocess.run(
        [sys.executable, "-c", TWO_CPUS], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == '["finished", "finished"] 2.0'


REGRESSION = """
import torch
from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.supervised import Regression, TensorSet

def build_task(data=None):
    samples = TensorSet(torch.arange(8.0).reshape(8, 1), torch.arange(8.0))
    defaults = TaskDefaults(epochs=2, batch_size=4, learning_rate=0.1)
    model = lambda: torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Flatten(0))
    return Regression(name="line", train_set=samples, held_out=samples, model=model, defaults=defaults)
"""


@pytest.mark.parametrize(
    "words, message",
    [
        (("--search", "beta3=uniform(0, 1)"), "has no setting 'beta3'"),
        (("--search", "beta1=uniform(0, 2)"), "beta1 must lie in [0, 1]"),
        (("--objective", "balanced_accuracy", "--task", "my_regression:build_task"), "has no labels"),
        (("--objective", "cost"), "--target"),
        (("--target", 0.5), "has no target"),
        (("--algorithm", "pb2"), "PB2 is not offered"),
        (("--algorithm", "bohb", "--no-early-stopping"), "bohb"),
        (("--algorithm", "grid"), "is a range"),
        (("--objective", "front", "--early-stopping"), "--no-early-stopping"),
        (("--workers", 2), "--exchange leased"),
        (("--samples", 0), "samples must be an integer of at least 1"),
        (("--method", "kakurenbo"), "has no default search space"),
        (("--resume",), "there is no search in"),
        (("--retry-failed",), "give --resume too"),
        (("--space", "nowhere.yaml"), "cannot read --space"),
        (("--task", "fashon"), "did you mean 'fashion'"),
    ],
)
def test_bad_input_is_refused_before_ray_starts(
    words: tuple[Any, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from es_service.cli import main

    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_regression.py").write_text(REGRESSION)
    assert main(["tune", "--out", str(tmp_path / "out"), *map(str, words)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_folder_of_another_search_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from es_service.cli import main

    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    (tmp_path / "search.json").write_text(json.dumps({"format": 1, "task": "reviews"}))
    assert main(["tune", "--out", str(tmp_path), "--resume"]) == 2
    assert "holds another search (task there 'reviews', here 'fashion'" in capsys.readouterr().err
    assert main(["tune", "--out", str(tmp_path)]) == 2
    assert "holds a search already" in capsys.readouterr().err
