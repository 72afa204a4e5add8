"""`es-service compare` as a user runs it: real processes, real images, small enough for seconds."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from es_service.cli import main
from es_service.experiments.compare.folder import CompareFolder
from es_service.experiments.compare.running import Slots, run_all
from es_service.selection.named import preset
from es_service.training.spec import TrainingSpec

JOBS = min(2, len(os.sched_getaffinity(0)))
CORES_EACH = len(os.sched_getaffinity(0)) // JOBS
COMMON = ("--epochs", 4, "--batch-size", 32, "--seeds", 2, "--jobs", JOBS, "--json")


def command(*words: Any) -> list[str]:
    return [sys.executable, "-m", "es_service.cli", *map(str, words)]


def compare(data: Path, out: Path, *more: Any, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Compare from within this process, where torch is imported already; the runs have processes of their own."""
    words = [str(word) for word in ("compare", "--data", data, "--out", out, *more)]
    printed, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(err):
        status = main(words)
    assert status == expect, err.getvalue()
    return subprocess.CompletedProcess(words, status, printed.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def undisturbed(few_images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A comparison that nothing happened to: its folder and what it printed."""
    out = tmp_path_factory.mktemp("compared") / "out"
    done = compare(few_images, out, "--methods", "es:anneal=[0,0]", *COMMON)
    results: dict[str, Any] = json.loads(done.stdout)  # one object is all that stdout gets
    assert "2/6 " in done.stderr
    assert " left" in done.stderr
    return out, results


def rows_of(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in results["rows"]}


def test_what_it_prints_and_writes(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    out, results = undisturbed
    assert results == json.loads((out / "results.json").read_text())
    assert set(results) >= {"task", "derived", "epochs", "seeds", "timings", "rows"}
    rows = rows_of(results)
    assert {"full", "short_full", "random", "es:anneal=[0,0]"} <= set(rows)
    es = rows["es:anneal=[0,0]"]
    assert es["samples"] == {"scored": 4 * 512, "trained": 512}
    assert es["cost"] == pytest.approx((1 + 3 / 4) / 3)
    assert rows["full"]["cost"] == 1.0
    # On a machine that others are busy on, some runs share their cores, and then no seconds are told.
    runs = parquet.read_table(out / "results.parquet").to_pylist()
    assert all((run["total_s"] is None) == (run["waited_share"] > 0.05) for run in runs)
    assert (results["timings"] == "exclusive") == all(row["seconds"] is not None for row in results["rows"])
    assert es["difference_to_short_full"]["epochs"] == rows_lengths(out)["es:anneal=[0,0]"]
    assert es["verdict"].startswith(("pays", "hurts", "no different from a short run"))
    assert results["tests"] == 2  # random and es
    assert es["difference_to_short_full"]["p"] <= es["difference_to_short_full"]["p_corrected"] <= 1
    assert {"balanced_accuracy", "held_out_loss"} == set(es["by_metric"])
    assert "would be seen in 80 % of such comparisons" in (out / "report.md").read_text()
    assert len(runs) == 2 * len({run["label"] for run in runs})
    assert parquet.read_table(out / "history.parquet").num_rows == sum(run["epochs"] for run in runs)
    for name in ("report.md", "report.html", "pictures/accuracy_against_cost.png", "pictures/curves.png"):
        assert (out / name).stat().st_size > 500
    assert not list(out.glob("runs/*/checkpoints"))


def rows_lengths(out: Path) -> dict[str, int]:
    return {label: one["epochs"] for label, one in json.loads((out / "short_full.json").read_text()).items()}


def test_a_run_is_what_train_makes_of_the_same_seed(
    few_images: Path, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    words = ("--exchange", "embedded", "--method", "es", "--set", "anneal=[0,0]", "--seed", 1, "--json")
    done = subprocess.run(
        command("train", "--data", few_images, "--storage", tmp_path, *words, "--epochs", 4, "--batch-size", 32),
        env={**os.environ, "OMP_NUM_THREADS": str(CORES_EACH)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    runs = parquet.read_table(undisturbed[0] / "results.parquet").to_pylist()
    [run] = [one for one in runs if one["label"].startswith("es") and one["seed"] == 1]
    assert json.loads(done.stdout)["accuracy"] == run["accuracy"]


def test_the_same_command_runs_nothing_again_and_another_is_refused(
    few_images: Path, undisturbed: tuple[Path, dict[str, Any]]
) -> None:
    out, results = undisturbed
    written = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/outcome.json")}
    again = compare(few_images, out, "--methods", "es:anneal=[0,0]", *COMMON)
    assert json.loads(again.stdout) == results
    assert "6 runs finished before" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/outcome.json")} == written
    fewer = compare(few_images, out, "--methods", "random", *COMMON, "--seeds", 1)
    assert set(rows_of(json.loads(fewer.stdout))) >= {"full", "short_full", "random"}
    assert all(row["decision"] in (None, "undecided") for row in json.loads(fewer.stdout)["rows"])
    words = compare(few_images, out, "--methods", "es:anneal=[0,0]", "--epochs", 4, "--batch-size", 32, "--seeds", 2)
    assert "pays" in words.stdout or "hurts" in words.stdout or "no different" in words.stdout
    assert str(out / "report.html") in words.stdout
    assert "corrected for 2 tests (Holm)" in words.stdout
    assert "With these 2 seeds a difference of " in words.stdout
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["compare", "--summary", str(out), "--json"]) == 0
    summed = {row["method"]: row for row in json.loads(printed.getvalue())["rows"]}
    assert set(summed) == {"random", "es:anneal=[0,0]"}
    for method, row in summed.items():
        assert row["decision"] == rows_of(results)[method]["decision"]
        own = rows_of(results)[method]["difference_to_short_full"]
        assert row["difference_to_short_full"]["p_corrected"] == own["p_corrected"]
    other = compare(few_images, out, "--methods", "es:anneal=[0,0]", *COMMON, "--learning-rate", 0.05, expect=2)
    assert "learning_rate there 0.1, here 0.05" in other.stderr


def start(data: Path, out: Path, *more: Any) -> subprocess.Popen[str]:
    words = command("compare", "--data", data, "--out", out, "--methods", "es:anneal=[0,0]", *COMMON, *more)
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finished(out: Path) -> dict[Path, int]:
    """The runs that ended, and when they wrote it."""
    return {path: path.stat().st_mtime_ns for path in out.glob("runs/*/outcome.json")}


def wait_for_one_more(job: subprocess.Popen[str], out: Path, before: int) -> None:
    give_up = time.monotonic() + 120
    while len(finished(out)) <= before:
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < give_up
        time.sleep(0.01)


def wait_for_the_end_of(pids: set[int]) -> None:
    give_up = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < give_up, pids
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


STOPS = ((signal.SIGINT, 130), (signal.SIGKILL, -9), (signal.SIGTERM, 143))


@pytest.mark.parametrize(("stops", "seeds"), [(STOPS[:2], 1), pytest.param(STOPS, 2, marks=pytest.mark.thorough)])
def test_a_comparison_stopped_in_every_way_goes_on(
    stops: tuple[tuple[signal.Signals, int], ...],
    seeds: int,
    few_images: Path,
    undisturbed: tuple[Path, dict[str, Any]],
    descendants: Callable[[int], dict[int, str]],
    tmp_path: Path,
) -> None:
    """Its runs end with it, finished ones are kept, and the end is that of an undisturbed comparison."""
    out, kept = tmp_path / "out", {}
    for number, status in stops:
        with start(few_images, out, "--seeds", seeds) as job:
            wait_for_one_more(job, out, before=len(kept))
            workers = set(descendants(job.pid))
            os.kill(job.pid, number)
            _, stderr = job.communicate(timeout=120)
        assert job.returncode == status, stderr
        if number != signal.SIGKILL:
            assert "finished runs are kept" in stderr
            assert "Traceback" not in stderr
        wait_for_the_end_of(workers)
        assert kept.items() < finished(out).items()
        kept = finished(out)
    compare(few_images, out, "--methods", "es:anneal=[0,0]", *COMMON, "--seeds", seeds)
    assert kept.items() < finished(out).items()
    expected = {run["run"]: run for run in parquet.read_table(undisturbed[0] / "results.parquet").to_pylist()}
    runs = [one for one in parquet.read_table(out / "results.parquet").to_pylist() if "short" not in one["run"]]
    assert len(runs) == 3 * seeds  # the short runs go by the clock, and may have other lengths
    for run in runs:
        for name in ("accuracy", "held_out_loss", "scored", "trained", "trained_by_label"):
            assert run[name] == expected[run["run"]][name]


def test_failed_runs_are_reported_and_end_nothing_unless_all_failed(few_images: Path, tmp_path: Path) -> None:
    common = ("--epochs", 1, "--batch-size", 64, "--seeds", 1, "--jobs", JOBS)
    words = ("--methods", "es:anneal=[0,0]:learning_rate=1e9", *common)
    done = compare(few_images, tmp_path / "one", *words, "--json")
    row = rows_of(json.loads(done.stdout))["es:anneal=[0,0]:learning_rate=1e9"]
    assert row["failed"] == 1
    assert "lower the learning rate" in row["errors"][0]
    assert "1 of 1 runs failed" in row["verdict"]
    assert "lower the learning rate" in (tmp_path / "one" / "report.html").read_text()
    assert "2 runs finished before" not in done.stderr
    none = compare(few_images, tmp_path / "all", "--methods", "full", *common, "--learning-rate", 1e9, expect=1)
    assert "every run failed" in none.stderr
    assert "Traceback" not in none.stderr


def full_run(data: Path) -> TrainingSpec:
    settings: dict[str, Any] = {
        "task": "fashion",
        "epochs": 1,
        "batch_size": 64,
        "learning_rate": 0.1,
        "seed": 0,
    }
    return TrainingSpec(
        run="full-s0",
        storage="runs",
        method="full",
        data=str(data),
        selection=preset("full"),
        exchange="embedded",
        **settings,
    )


def worker(folder: CompareFolder) -> list[str]:
    return [sys.executable, "-m", "es_service.experiments.compare.worker", str(folder.runs), "full-s0", "", "1"]


def test_a_run_ends_by_itself_and_with_who_waits_for_it(few_images: Path, tmp_path: Path) -> None:
    """Its stdin is watched until the end, and does not get in the way of it."""
    folder = CompareFolder(str(tmp_path))
    for stdin, status in ((subprocess.PIPE, 0), (subprocess.DEVNULL, 1)):
        place = folder.prepare(full_run(few_images))
        with subprocess.Popen(worker(folder), stdin=stdin, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            log = process.stderr.read()
            assert process.wait(timeout=60) == status, log
        assert log == ""
        assert (place / "outcome.json").exists() == (status == 0)


def test_a_run_that_cannot_begin_says_why(tmp_path: Path) -> None:
    folder = CompareFolder(str(tmp_path / "out"))
    [outcome] = run_all([full_run(tmp_path / "nowhere")], folder, Slots.of(1), lambda _: None).values()
    assert outcome.error is not None
    assert "nowhere" in outcome.error
    assert "train-images-idx3-ubyte" in outcome.error
    assert "(exit status 1; see " in outcome.error


def test_derived_settings_reach_the_runs(few_images: Path, tmp_path: Path) -> None:
    words = ("--limit", 200, "--long-tail", 0.1, "--label-noise", 0.2, "--epochs", 1, "--batch-size", 16, "--seeds", 1)
    done = compare(few_images, tmp_path / "out", "--methods", "full", *words, "--jobs", JOBS, "--json")
    results = json.loads(done.stdout)
    assert results["derived"] == {"label_noise": 0.2, "long_tail": 0.1, "limit": 200}
    assert results["metric"] == "balanced_accuracy"
    assert results["num_samples"] < 200
    for row in results["rows"]:
        near = 0.1 if row["method"] == "random" else 0.01  # it draws; full takes everything
        assert row["corrupted_share"] == pytest.approx(0.2, abs=near)
        assert 0 <= row["balanced_accuracy"]["mean"] <= 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "the set has a long tail" in page
    other = compare(few_images, tmp_path / "out", "--methods", "full", *words[2:], "--json", expect=2)
    assert "derived there" in other.stderr


USAGE = {
    "no seeds": (("--seeds", "0"), "seeds must be an integer of at least 1, got 0"),
    "negative seed": (("--seed-base", "-1"), "seed-base"),
    "unknown method": (("--methods", "esw"), "did you mean 'eswp'"),
    "unknown setting": (("--methods", "es:raito=0.5"), "did you mean 'ratio'"),
    "unknown task": (("--task", "fashon"), "did you mean 'fashion'"),
    "setting out of range": (("--methods", "es:ratio=0"), "ratio must lie in (0, 1]"),
    "no jobs": (("--jobs", "0"), "jobs must be an integer of at least 1"),
    "more jobs than cores": (("--jobs", "100000"), "core(s)"),
    "no epochs": (("--epochs", "0"), "epochs"),
    "batch larger than the set": (("--batch-size", "513"), "at most 512"),
    "batch larger than one method's plan": (("--methods", "eswp", "--batch-size", "500"), "at most 410"),
    "learning rate 0": (("--learning-rate", "0"), "learning_rate must be above 0"),
    "learning rate of a method": (("--methods", "es:learning_rate=-1"), "learning_rate must be above 0"),
    "learning rate 0 of a method": (("--methods", "es:learning_rate=0"), "learning_rate must be above 0"),
    "learning rate in words": (("--methods", "es:learning_rate=fast"), "learning_rate must be a number"),
    "unwritable": (("--out", "/proc/nowhere/out"), "--out /proc/nowhere/out cannot be used"),
    "label noise above 1": (("--label-noise", "1.2"), "label_noise is a share"),
    "no limit": (("--limit", "0"), "limit must be an integer of at least 1"),
    "a URI": (("--out", "s3://bucket/x"), "not a local folder"),
}


@pytest.mark.parametrize("case", USAGE)
def test_bad_usage_exits_2_and_writes_nothing(
    case: str, few_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = USAGE[case]
    out = tmp_path / "out"
    status = main(["compare", "--data", str(few_images), "--methods", "es", "--out", str(out), *words])
    printed, err = capsys.readouterr()
    assert status == 2
    assert message in err
    assert printed == ""
    assert not out.exists()


@pytest.mark.parametrize("package", ["matplotlib", "jinja2", "scipy"])
def test_without_what_draws_the_report_nothing_is_begun(
    package: str,
    few_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # Python's way to say: not installed
    assert main(["compare", "--data", str(few_images), "--methods", "es", "--out", str(tmp_path / "out")]) == 2
    assert "es-service[report]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
