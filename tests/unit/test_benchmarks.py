"""The benchmarks still run: at a size where their figures mean nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import api, draws, loader, peers, scoring, service, service_kernel
from benchmarks.figures import Figure
from es_service.training.tasks import build_task
from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.derived import Derived
from es_service.training.tasks.supervised import Classification, TensorSet


def test_the_kernel_is_timed() -> None:
    [measured] = service_kernel.measure_kernel(5_000, (64,), 20, 0, 0.0)
    assert measured["kernel"]["p50_ms"] > 0
    assert measured["to_bare"] > 0
    assert measured["bytes_per_sample"] == 32


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_loops_over_jpeg_files_are_timed() -> None:
    found = loader.measure(128, 1, pixels=32)
    assert set(found["ms"]) == {"plain", "full", "selective"}
    assert all(clock > 0 and cpu > 0 for [(clock, cpu)] in found["ms"].values())
    assert [figure["target"] for figure in found["figures"]] == [1.05, 1.05]


def test_scoring_is_timed_beside_a_full_step() -> None:
    names = ["plain", "scoring in bfloat16", "scoring in pieces of B/8", "gradient checkpointing", *scoring.WAYS]
    sizes = {"most_s": 0.0, "least": 1}
    samples = TensorSet(torch.randn(20, 3), np.tile([0, 1], 10))
    points = Classification(
        name="points", train_set=samples, held_out=samples, model=lambda: torch.nn.Linear(3, 2),
        defaults=TaskDefaults(epochs=1, batch_size=16, learning_rate=0.1),
    )  # fmt: skip
    rows = scoring.measure(build_task("fashion", None, Derived(limit=40)), "fashion", 8, names, **sizes)
    rows += scoring.measure(points, "points", 16, names, **sizes)
    less = [one for one in names if one not in ("gradient checkpointing", "4 meta-batches at once")]
    assert [row["setting"] for row in rows] == [*names, *less]  # which points does not offer, nor has samples for
    assert all(row[key] > 0 for row in rows for key in ("score_ms", "step_ms", "score_to_step", "score_to_plain_step"))
    assert rows[0]["step_to_plain_step"] == 1.0
    assert scoring.readable(rows).splitlines()[1].split()[:3] == ["fashion", "8", "plain"]


def test_a_table_that_does_not_fit_is_named() -> None:
    [measured] = service_kernel.measure_kernel(10**14, (64,), 20, 0, 0.0)
    assert "GiB of memory are missing" in measured["skipped"]


def test_a_figure_knows_whether_its_target_was_reached() -> None:
    assert Figure("cost", 3.0, "x", 3.0).reached is True
    assert Figure("cost", 3.1, "x", 3.0).reached is False
    assert Figure("rate", 3.1, "M samples/s", 3.0, at_most=False).reached is True
    assert Figure("cost", None, "x", 3.0, note="no memory").reached is None


def test_table_sizes_are_read_from_the_command_line() -> None:
    assert service._rows("1e7,1e6") == (10**6, 10**7)
    assert service.Sizes(rows=(10**6, 10**8)).large_rows == 10**6
    for refused in ("many", "100"):
        with pytest.raises(argparse.ArgumentTypeError):
            service._rows(refused)


@pytest.mark.parametrize("name", ["systematic", "pivotal"])
def test_a_draw_is_measured_against_its_target(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "ROUNDS", 400)
    small = draws.make_batches()[0]
    figures = draws.measure_draw(name, small, draws.draws.inclusion_targets(small.weights, small.num))
    assert figures["rounds"] == 400
    assert figures["max_deviation"] < 0.1
    assert figures["unbiased_mean"][0] == pytest.approx(1.0, abs=0.1)


def test_a_peer_that_cannot_run_is_named_with_the_reason(tmp_path: Path) -> None:
    results = peers.measure(["cpprb"], ["--rows", "100"], {"cpprb": tmp_path / "python"}, None)
    assert results["measured"] == []
    assert "No such file" in results["not_run"]["cpprb"]
    assert "cpprb: " in peers.readable(results)


def test_peers_are_listed_by_speed_with_their_ratio_to_ours() -> None:
    size = {"rows": 1000, "batch_size": 64, "p99_ms": 9.0}
    measured = [{"peer": "other", "p50_ms": 3.0, **size}, {"peer": "es_service", "p50_ms": 2.0, **size}]
    lines = peers.readable({"measured": measured, "versions": {"other": "1"}, "not_run": {}}).splitlines()
    assert lines[0] == "other 1"
    assert lines[-2].split()[:2] == ["es_service", "2.000"]
    assert lines[-1].split()[-1] == "1.50"


def test_the_http_service_is_measured() -> None:
    found = api.measure(3_000, live=False)
    assert found["point"]["p50_ms"] > 0
    assert found["top_100"]["p99_ms"] >= found["top_100"]["p50_ms"]
    assert set(found["export"]) == {"arrow", "parquet", "csv"}
    assert all(one["bytes"] > 3_000 * 8 for one in found["export"].values())
    assert len(found["figures"]) == 6
    assert all(one["reached"] in (True, False) for one in found["figures"])
    assert "top_100_filtered: p50" in api.readable(found)
